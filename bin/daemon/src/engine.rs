//! The interface between the registry and the proxies. [`ProxyEngine`](crate::ProxyEngine) implements it; tests use a fake.

use std::time::Duration;

use kubevpn_conn::Addr;
use kubevpn_proxy::journal::AboutProxy;
use kubevpn_proxy::probe::PortForwardAccess;
use kubevpn_proxy::{ListenerSpec, Policy, ProxyView};
use kubevpn_target::ConnectError;
use tracing::Dispatch;

use crate::ApiError;
use crate::api::{RefusalInfo, TrafficInfo};

/// Opens sessions to clusters.
pub trait Engine: Send + Sync + 'static {
    /// A proxy into one cluster.
    type Session: EngineSession;

    /// Prepares a session, without any call or listener.
    fn open(&self, settings: SessionSettings<'_>) -> Result<Self::Session, ApiError>;
}

/// Settings of a session.
pub struct SessionSettings<'a> {
    /// Resolution and dialling of hosts.
    pub policy: &'a Policy,
    /// The namespace of names without one.
    pub namespace: &'a str,
    /// API server and credentials.
    pub config: kube::Config,
    /// Log of its clients.
    pub log: Dispatch,
    /// Its identity in snapshots.
    pub about: AboutProxy,
}

/// A proxy into one cluster.
pub trait EngineSession: Send + Sync + 'static {
    /// A bound socket that is not served yet.
    type Bound: Send;
    /// A served listener.
    type Listener: ServedListener;

    /// Reads the namespace, to check API server and credentials. Returns the namespace's UID, if it may be read.
    fn ask_api(
        &self,
        namespace: &str,
    ) -> impl Future<Output = Result<Option<String>, ConnectError>> + Send;

    /// Opens a stream to a ready Pod of the namespace, if there is one.
    fn try_pods(
        &self,
        namespace: &str,
    ) -> impl Future<Output = Result<PortForwardAccess, ConnectError>> + Send;

    /// Binds a listener at `address`, its own or the one it had before.
    fn bind(
        &self,
        spec: &ListenerSpec,
        address: &Addr,
    ) -> impl Future<Output = Result<Self::Bound, ApiError>> + Send;

    /// Accepts clients from now on.
    fn serve(&self, spec: &ListenerSpec, bound: Self::Bound) -> Result<Self::Listener, ApiError>;

    /// Suffixes of names of the cluster; empty if they cannot be read in time.
    fn endings(&self) -> impl Future<Output = Vec<String>> + Send;

    /// Uses these credentials for new requests.
    fn renew(&self, config: kube::Config) -> Result<(), ApiError>;

    /// Waits for a refusal that is caused by the connection, not by a target. Cancel safe: an earlier refusal is not lost.
    fn trouble(&self) -> impl Future<Output = ()> + Send;

    /// Counters of the session.
    fn stats(&self) -> Stats;

    /// View of the proxy.
    fn view(&self) -> Option<&ProxyView>;

    /// Closes the session, after its listeners.
    fn shutdown(&self) -> impl Future<Output = ()> + Send;
}

/// A served listener.
pub trait ServedListener: Send + Sync + 'static {
    /// Its address, with the actual port.
    fn address(&self) -> &Addr;

    /// Number of connected clients.
    fn open_clients(&self) -> usize;

    /// Checks it with a handshake.
    fn handshake(&self) -> impl Future<Output = Result<(), String>> + Send;

    /// Stops accepting, and closes connections between two requests.
    fn stop(&self);

    /// Waits for clients up to `patience`, and cuts the rest.
    fn end(self, patience: Duration) -> impl Future<Output = ()> + Send;
}

/// Counters of a session.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Counts of connections and bytes.
    pub traffic: TrafficInfo,
    /// Open port-forward sessions.
    pub sessions: usize,
    /// Streams of these sessions.
    pub streams: usize,
    /// The last refusals, newest first.
    pub last_refusals: Vec<RefusalInfo>,
}
