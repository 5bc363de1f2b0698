//! Snapshots of the journal, for the status page, the terminal and others.

use serde::{Deserialize, Serialize};

/// Snapshot of one proxy. Names of targets, Pods and programs are from outside, and have to be escaped when they are shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalSnapshot {
    /// Time of the snapshot, RFC 3339.
    pub at: String,
    pub about: AboutProxy,
    pub totals: TrafficTotals,
    pub listeners: Vec<ListenerSnapshot>,
    /// Live connections, sorted by their number: the oldest first.
    pub connections: Vec<ConnectionSnapshot>,
    pub sessions: Vec<SessionSnapshot>,
    pub watches: Vec<WatchSnapshot>,
    /// The last refusals, newest first.
    pub refusals: Vec<RefusedConnection>,
    /// `None` for a proxy without a cluster.
    pub credentials: Option<CredentialSnapshot>,
    /// Number of events that were dropped for slow listeners.
    pub dropped_events: u64,
}

/// Identity of the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AboutProxy {
    pub version: String,
    pub pid: u32,
    /// RFC 3339.
    pub started_at: String,
    /// ID of the managed connection; empty for a proxy in the foreground.
    pub connection: String,
    pub context: String,
    pub cluster: String,
    pub namespace: String,
    /// URL of the API server; empty for a proxy without a cluster.
    pub server: String,
}

/// Totals of all connections since the proxy started. Connections without a request are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficTotals {
    /// Connections with an open stream.
    pub open: u64,
    /// Connections that have or had a stream.
    pub connected: u64,
    /// Connections that were refused.
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
    /// Target of a forward.
    pub target: Option<String>,
}

/// A live connection (for HTTP: a request).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionSnapshot {
    /// Number of the connection in this process, as in events, access records and [`cut`](super::ProxyView::cut).
    pub id: u64,
    pub frontend: String,
    /// The client's address, if it has one.
    pub client: Option<String>,
    /// The client's program, if the system reports it.
    pub program: Option<String>,
    /// The target, once the client has sent it.
    pub target: Option<String>,
    /// Endpoint of its stream, `namespace/pod:port`; empty until there is one.
    pub via: String,
    pub transport: String,
    /// Bytes so far.
    pub up: u64,
    pub down: u64,
    /// Bytes per second, last measured.
    pub up_rate: f64,
    pub down_rate: f64,
    /// Age in seconds.
    pub age: f64,
    /// Of HTTP, while somebody wants to know requests: without heads, its credentials replaced by `REDACTED`.
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
    /// Age in seconds.
    pub age: f64,
    /// Seconds since the last byte was received.
    pub silent: f64,
}

/// A selection of objects of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchSnapshot {
    /// The selection in words: `services shop/web`.
    pub what: String,
    /// `watched`, `read`, `lost`.
    pub health: String,
}

/// A connection that got no stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedConnection {
    /// Number of the connection in this process, as in events.
    pub id: u64,
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

/// The credentials for the API server, without secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialSnapshot {
    /// Kinds of credentials: `token`, `password`, `certificate`.
    pub kinds: Vec<String>,
    /// The credential plugin.
    pub plugin: Option<String>,
    /// Expiry, if it is known: RFC 3339.
    pub expires: Option<String>,
    /// Whether they can be renewed then.
    pub renewable: bool,
    /// Reason why there are none.
    pub trouble: Option<String>,
}
