//! Everything there is at one moment: what the status page, the terminal and others show.

use serde::{Deserialize, Serialize};

/// Everything there is to see of one proxy. Whatever names a target, a Pod or a program is from outside, and has to be
/// escaped by whoever shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalSnapshot {
    /// When: RFC 3339.
    pub at: String,
    pub about: AboutProxy,
    pub totals: TrafficTotals,
    pub listeners: Vec<ListenerSnapshot>,
    /// By their number: the oldest first.
    pub connections: Vec<ConnectionSnapshot>,
    pub sessions: Vec<SessionSnapshot>,
    pub watches: Vec<WatchSnapshot>,
    /// Newest first.
    pub refusals: Vec<RefusedConnection>,
    /// `None` where there is no cluster.
    pub credentials: Option<CredentialSnapshot>,
    /// Events that were dropped because a listener did not keep up.
    pub dropped_events: u64,
}

/// Which proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AboutProxy {
    pub version: String,
    pub pid: u32,
    /// RFC 3339.
    pub started_at: String,
    /// Of the daemon's connection; empty for a proxy in the foreground.
    pub connection: String,
    pub context: String,
    pub cluster: String,
    pub namespace: String,
    /// The API server's URL; empty where there is none.
    pub server: String,
}

/// Of all connections since the proxy began. Connections that asked for nothing are in none of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficTotals {
    /// That have a stream now.
    pub open: u64,
    /// That have or had one.
    pub connected: u64,
    /// That got none.
    pub refused: u64,
    /// Bytes to targets.
    pub up: u64,
    /// Bytes from targets.
    pub down: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerSnapshot {
    /// `socks`, `http`, `mixed`, `forward`, `dns`, `admin`.
    pub protocol: String,
    pub address: String,
    /// Of a forward: what it leads to.
    pub target: Option<String>,
}

/// A connection that lives (for HTTP: a request).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionSnapshot {
    /// Its number in this process, as in events and access records; what [`cut`](super::ProxyView::cut) takes.
    pub id: u64,
    pub frontend: String,
    /// The client's address, where it has one.
    pub client: Option<String>,
    /// The client's program, where the system tells.
    pub program: Option<String>,
    /// What was asked for, once the client has said.
    pub target: Option<String>,
    /// Where its stream went, `namespace/pod:port`; empty until there is one.
    pub via: String,
    pub transport: String,
    /// Bytes so far.
    pub up: u64,
    pub down: u64,
    /// Bytes per second of late.
    pub up_rate: f64,
    pub down_rate: f64,
    /// In seconds.
    pub age: f64,
    pub exchange: Option<super::ExchangeEvent>,
}

/// A port-forward session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionSnapshot {
    pub id: u64,
    /// `namespace/pod`
    pub pod: String,
    pub transport: String,
    /// Connections on it.
    pub streams: usize,
    /// `well`, `suspect`, `stalled`, `wedged`, `closing`.
    pub health: String,
    /// In seconds.
    pub age: f64,
    /// Seconds since something came over it.
    pub silent: f64,
}

/// Objects of the cluster that are followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchSnapshot {
    /// In words: `services shop/web`.
    pub what: String,
    /// `watched`, `read`, `lost`.
    pub health: String,
}

/// A connection that got no stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedConnection {
    /// RFC 3339.
    pub at: String,
    pub frontend: String,
    pub client: Option<String>,
    pub target: String,
    /// A class of refusals: `no_such_port`.
    pub refusal: String,
    /// What failed, and what to try.
    pub sentence: String,
}

/// The credentials that the API server is shown, without anything secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialSnapshot {
    /// `token`, `password`, `certificate`, in words.
    pub kinds: Vec<String>,
    /// The plugin that makes them.
    pub plugin: Option<String>,
    /// When they end, as far as they say: RFC 3339.
    pub expires: Option<String>,
    /// Whether others can be had then.
    pub renewable: bool,
    /// Why there are none.
    pub trouble: Option<String>,
}
