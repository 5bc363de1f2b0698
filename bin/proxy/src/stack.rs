//! The stack of a proxy, and the other services that listeners use.

use std::sync::Arc;
use std::time::Duration;

use kubevpn_client::ApiServer;
use kubevpn_dns::{Message, Query};
use kubevpn_stack::{Cluster, Egress, Forwarder, FromHost, Stack, stack};
use kubevpn_target::{ConnectError, Host, Name};
use tower::util::BoxCloneSyncService;

use crate::StackConfig;
use crate::suggest::Suggest;

/// Time limit for reading the cluster's suffixes.
const ENDINGS: Duration = Duration::from_secs(10);

/// The stack for one cluster. `api_server` is that of the client
/// ([`Renewal::api_server`](kubevpn_client::Renewal::api_server)); through it, the client's next connection is made ahead.
pub fn connect(client: kube::Client, api_server: ApiServer, config: StackConfig) -> ClusterStack {
    chain(client, api_server, config).0
}

/// The stack, and its forwarder, which has the sessions.
pub fn chain(
    client: kube::Client,
    api_server: ApiServer,
    config: StackConfig,
) -> (ClusterStack, Forwarder) {
    let cluster = Cluster::new(client.clone(), config.cluster);
    let expected = api_server.clone();
    let forwarder =
        Forwarder::new(client, config.forwarder).expecting(move || expected.expect_upgrade());
    let egress = Egress::new(api_server, config.outside, FromHost::sharing(config.own));
    let stack = stack(cluster, forwarder.clone(), egress, config.settings);
    (stack, forwarder)
}

/// The type that [`connect`] returns.
pub type ClusterStack = Stack<Egress<ApiServer>>;

/// Called when a connection is likely soon, with its host if that is known.
pub type Expect = Arc<dyn Fn(Option<&Host>) + Send + Sync>;

/// The service that answers DNS queries.
pub type NameService = BoxCloneSyncService<Query, Message, ConnectError>;

/// The services behind the listeners.
#[derive(Clone)]
pub struct Backend<C> {
    /// The dialer.
    pub connect: C,
    /// Source of the PAC file; `None` without a cluster.
    pub cluster: Option<Cluster>,
    /// Service for DNS queries; `None` without a cluster.
    pub names: Option<NameService>,
    /// Called to prepare likely connections; `None` without a cluster.
    pub expect: Option<Expect>,
}

impl Backend<Suggest<ClusterStack>> {
    /// A backend for a cluster. Refusals of names suggest similar ones.
    pub fn of_cluster(connect: ClusterStack) -> Self {
        let cluster = connect.get_ref().cluster().clone();
        let names = {
            let connect = connect.clone();
            tower::service_fn(move |query: Query| {
                let connect = connect.clone();
                async move { connect.get_ref().answer(&query).await }
            })
        };
        let expect = {
            let connect = connect.clone();
            move |host: Option<&Host>| match host {
                Some(host) => connect.get_ref().warm(host.clone()),
                None => connect.get_ref().expect(),
            }
        };
        Self {
            connect: Suggest::new(connect, cluster.clone()),
            cluster: Some(cluster),
            names: Some(BoxCloneSyncService::new(names)),
            expect: Some(Arc::new(expect)),
        }
    }
}

impl<C> Backend<C> {
    /// A backend without a cluster: no PAC file and no DNS.
    pub fn of_host(connect: C) -> Self {
        Self {
            connect,
            cluster: None,
            names: None,
            expect: None,
        }
    }

    /// The same backend with another dialer.
    pub fn map<D>(self, connect: impl FnOnce(C) -> D) -> Backend<D> {
        Backend {
            connect: connect(self.connect),
            cluster: self.cluster,
            names: self.names,
            expect: self.expect,
        }
    }
}

/// The suffixes of names of the cluster; empty if they cannot be read in time.
pub async fn endings(cluster: &Cluster) -> Vec<String> {
    let domain = tokio::time::timeout(ENDINGS, cluster.domain()).await;
    let endings = domain.map(|domain| domain.endings().map(Name::to_string).collect());
    endings.unwrap_or_default()
}
