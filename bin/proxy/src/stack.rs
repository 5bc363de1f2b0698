//! The chain from a target to its stream, and what else listeners lead to.

use std::sync::Arc;
use std::time::Duration;

use kubevpn_client::ApiServer;
use kubevpn_dns::{Message, Query};
use kubevpn_stack::{Cluster, Egress, Forwarder, FromHost, Stack, stack};
use kubevpn_target::{ConnectError, Host, Name};
use tower::util::BoxCloneSyncService;

use crate::StackConfig;
use crate::suggest::Suggest;

/// How long the cluster may take to say what its names end in.
const ENDINGS: Duration = Duration::from_secs(10);

/// The chain from a target to its stream, for one cluster; `api_server` is that of the client
/// ([`Renewal::api_server`](kubevpn_client::Renewal::api_server)), whose next connection is made ahead through it.
pub fn connect(client: kube::Client, api_server: ApiServer, config: StackConfig) -> ClusterStack {
    chain(client, api_server, config).0
}

/// The same, and the part of it that holds the sessions.
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

/// What [`connect`] makes.
pub type ClusterStack = Stack<Egress<ApiServer>>;

/// Who is told that a connection is likely soon, and to which host where that is known.
pub type Expect = Arc<dyn Fn(Option<&Host>) + Send + Sync>;

/// What answers a DNS client.
pub type NameService = BoxCloneSyncService<Query, Message, ConnectError>;

/// What the listeners lead to.
#[derive(Clone)]
pub struct Backend<C> {
    /// The dialer.
    pub connect: C,
    /// Who is asked for a PAC file; nobody, where there is no cluster.
    pub cluster: Option<Cluster>,
    /// Who answers DNS clients; nobody, where there is no cluster.
    pub names: Option<NameService>,
    /// Who prepares what is likely to be asked for; nobody, where there is no cluster.
    pub expect: Option<Expect>,
}

impl Backend<Suggest<ClusterStack>> {
    /// A cluster, and what it knows; its refusals of names suggest others.
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

    /// The same, dialled another way.
    pub fn map<D>(self, connect: impl FnOnce(C) -> D) -> Backend<D> {
        Backend {
            connect: connect(self.connect),
            cluster: self.cluster,
            names: self.names,
            expect: self.expect,
        }
    }
}

/// What names of the cluster end in; nothing, if it does not say so soon.
pub async fn endings(cluster: &Cluster) -> Vec<String> {
    let domain = tokio::time::timeout(ENDINGS, cluster.domain()).await;
    let endings = domain.map(|domain| domain.endings().map(Name::to_string).collect());
    endings.unwrap_or_default()
}
