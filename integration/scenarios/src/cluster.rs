//! What a scenario may ask of the cluster it runs on, beyond the Kubernetes API.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use futures_util::future::LocalBoxFuture;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tempfile::TempPath;

use crate::AccountRight;

/// A cluster with the sample workload (`integration/lab/cluster/manifests/sample.yaml`) running.
///
/// What both kinds offer through the Kubernetes API is asked there; the methods are for the rest.
pub trait TestCluster: Send + Sync {
    /// A kubeconfig that may do everything; its context's namespace is `default`.
    fn kubeconfig(&self) -> PathBuf;

    /// A kubeconfig of a user without any right.
    fn viewer_kubeconfig(&self) -> PathBuf;

    /// Makes the API server refuse connections, cutting those it has.
    fn stop_api(&self) -> LocalBoxFuture<'_, anyhow::Result<()>>;

    /// Brings it back and waits until it answers.
    fn start_api(&self) -> LocalBoxFuture<'_, anyhow::Result<()>>;

    /// A kubeconfig of a ServiceAccount in this namespace that may do this and no more; its context's namespace
    /// is that one. For [`service_account`](crate::service_account) to do where the API server knows RBAC.
    fn account(
        &self,
        namespace: &str,
        rights: &'static [AccountRight],
    ) -> LocalBoxFuture<'_, anyhow::Result<TempPath>>;

    /// Now, for [`TestCluster::asked_since`].
    fn mark(&self) -> LocalBoxFuture<'_, anyhow::Result<String>>;

    /// What clients have asked the API server for since then.
    fn asked_since(&self, mark: String) -> LocalBoxFuture<'_, anyhow::Result<Vec<ApiRequest>>>;

    /// Makes every watch that resumes be told 410 Gone; whether that can be had of this cluster.
    fn expire_watches(&self) -> bool {
        false
    }

    /// Connections into Pods that are open at the node now.
    fn forwards_at_node(&self) -> LocalBoxFuture<'_, anyhow::Result<usize>>;
}

/// One request to the API server.
#[derive(Clone, Debug)]
pub struct ApiRequest {
    /// As RBAC has it: `get`, `list`, `watch`, `create`.
    pub verb: String,
    /// With its subresource: `pods/portforward`; empty for a path that is no resource.
    pub resource: String,
    /// What the client calls itself.
    pub user_agent: String,
    /// Path and query.
    pub uri: String,
}

impl ApiRequest {
    /// Whether it asked by the program under test, and for an answer from the API server's store.
    pub(crate) fn is_read(&self) -> bool {
        self.user_agent.starts_with("kubevpn/")
            && matches!(self.verb.as_str(), "get" | "list")
            && !matches!(self.resource.as_str(), "" | "pods/portforward")
    }
}

/// A client of its own for a kubeconfig.
pub(crate) async fn client(kubeconfig: &Path) -> anyhow::Result<kube::Client> {
    let file = Kubeconfig::read_from(kubeconfig).context("reading the kubeconfig")?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

/// The ClusterIPs of a Service.
pub(crate) async fn cluster_ips(
    client: &kube::Client,
    namespace: &str,
    name: &str,
) -> anyhow::Result<Vec<String>> {
    let service = Api::<Service>::namespaced(client.clone(), namespace)
        .get(name)
        .await?;
    service
        .spec
        .and_then(|s| s.cluster_ips)
        .context("the Service has no ClusterIP")
}

/// The running Pods with this `app` label.
pub(crate) async fn pods(
    client: &kube::Client,
    namespace: &str,
    app: &str,
) -> anyhow::Result<Vec<Pod>> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let list = pods
        .list(&kube::api::ListParams::default().labels(&format!("app={app}")))
        .await?;
    Ok(list
        .items
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .collect())
}

/// The addresses of the running Pods with this `app` label.
pub(crate) async fn pod_ips(
    client: &kube::Client,
    namespace: &str,
    app: &str,
) -> anyhow::Result<Vec<String>> {
    let ips = pods(client, namespace, app)
        .await?
        .into_iter()
        .filter_map(|pod| pod.status?.pod_ip)
        .collect::<Vec<_>>();
    anyhow::ensure!(!ips.is_empty(), "no Pod with app={app} has an address");
    Ok(ips)
}
