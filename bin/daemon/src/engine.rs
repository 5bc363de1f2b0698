//! What the registry needs of a way into a cluster. The real one is [`ProxyEngine`](crate::ProxyEngine).

use std::time::Duration;

use kubevpn_conn::Addr;
use kubevpn_proxy::journal::AboutProxy;
use kubevpn_proxy::probe::PortForwardAccess;
use kubevpn_proxy::{ListenerSpec, Policy, ProxyView};
use kubevpn_target::ConnectError;
use tracing::Dispatch;

use crate::ApiError;
use crate::api::{RefusalInfo, TrafficInfo};

/// Makes the ways into clusters.
pub trait Engine: Send + Sync + 'static {
    /// A way into one cluster.
    type Session: EngineSession;

    /// Prepares a way into a cluster. Nothing is sent, and nothing listens yet.
    fn open(&self, settings: SessionSettings<'_>) -> Result<Self::Session, ApiError>;
}

/// What a way into a cluster is made from.
pub struct SessionSettings<'a> {
    /// What a host means.
    pub policy: &'a Policy,
    /// The namespace of names without one.
    pub namespace: &'a str,
    /// The API server, and the credentials.
    pub config: kube::Config,
    /// Where its clients are logged.
    pub log: Dispatch,
    /// What it is to those who look at it.
    pub about: AboutProxy,
}

/// A way into one cluster.
pub trait EngineSession: Send + Sync + 'static {
    /// A socket that is bound and not served yet.
    type Bound: Send;
    /// A listener that is served.
    type Listener: ServedListener;

    /// Asks the API server for the namespace: that it answers, and knows us. The namespace's UID, where we may see it.
    fn ask_api(
        &self,
        namespace: &str,
    ) -> impl Future<Output = Result<Option<String>, ConnectError>> + Send;

    /// Opens a stream to a ready Pod of the namespace, where there is one to try with.
    fn try_pods(
        &self,
        namespace: &str,
    ) -> impl Future<Output = Result<PortForwardAccess, ConnectError>> + Send;

    /// Binds a listener at `address`, which is where it was asked for or where it has been before.
    fn bind(
        &self,
        spec: &ListenerSpec,
        address: &Addr,
    ) -> impl Future<Output = Result<Self::Bound, ApiError>> + Send;

    /// Lets clients in.
    fn serve(&self, spec: &ListenerSpec, bound: Self::Bound) -> Result<Self::Listener, ApiError>;

    /// What names of the cluster end in; none, where it does not say so soon.
    fn endings(&self) -> impl Future<Output = Vec<String>> + Send;

    /// Uses these credentials for everything new.
    fn renew(&self, config: kube::Config) -> Result<(), ApiError>;

    /// Waits for a refusal that tells of the connection and not of a target. Cancel safe; one that came before is not
    /// lost.
    fn trouble(&self) -> impl Future<Output = ()> + Send;

    /// What has gone through it.
    fn stats(&self) -> Stats;

    /// What goes through it, to be looked at.
    fn view(&self) -> Option<&ProxyView>;

    /// Lets go of the cluster. Listeners have ended before.
    fn shutdown(&self) -> impl Future<Output = ()> + Send;
}

/// A listener that is served.
pub trait ServedListener: Send + Sync + 'static {
    /// Where it listens, with the real port.
    fn address(&self) -> &Addr;

    /// Clients connected now.
    fn open_clients(&self) -> usize;

    /// Speaks its protocol to it, as a client.
    fn handshake(&self) -> impl Future<Output = Result<(), String>> + Send;

    /// Stops listening, and tells connections between two requests to end.
    fn stop(&self);

    /// Lets clients finish for `patience`, and cuts the rest.
    fn end(self, patience: Duration) -> impl Future<Output = ()> + Send;
}

/// What has gone through a way into a cluster.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Counted where targets are dialled.
    pub traffic: TrafficInfo,
    /// Port-forward sessions that are open.
    pub sessions: usize,
    /// Streams on them.
    pub streams: usize,
    /// The last refusals, newest first.
    pub last_refusals: Vec<RefusalInfo>,
}
