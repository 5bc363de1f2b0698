//! `kubevpn proxy-out`.

use kubevpn_client::{ApiServer, Env, KubeconfigArgs, build_renewable, load};
use kubevpn_daemon::ApiError;
use kubevpn_proxy::{self as proxy, Backend, probe};
use kubevpn_stack::{DeadlineLayer, FromHost, Settings};
use tower::Layer as _;

use super::kube::KubeArgs;
use super::listen::ListenerArgs;
use super::policy::PolicyArgs;
use super::serve::serve;
use crate::exit::Failure;

/// Run a local SOCKS5 and HTTP proxy that reaches the Services and Pods of a cluster
///
/// Programs that use the proxy reach Services and Pods by cluster name or IP, over nothing but the Kubernetes
/// API's port-forward: no root, no routes, nothing installed in the cluster. It runs until Ctrl-C; `kubevpn connect` does the
/// same in the background.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # a proxy for the current context
  kubevpn proxy-out
  curl --proxy socks5h://127.0.0.1:1080 http://productpage.default.svc.cluster.local:9080

  # another context, another port
  kubevpn proxy-out --context staging -n shop --listen-socks 127.0.0.1:1081

  # an HTTP proxy beside it
  kubevpn proxy-out --listen-http 127.0.0.1:3128
  curl --proxy http://127.0.0.1:3128 http://productpage.default:9080")]
pub(crate) struct ProxyOut {
    #[command(flatten)]
    listen: ListenerArgs,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Dial everything from this machine, with its DNS and routes, as when a VPN into the cluster is up: no
    /// kubeconfig is read, and no cluster asked
    #[arg(long, help_heading = "Names", conflicts_with_all = ["outside", "listen_dns"])]
    egress: bool,
}

impl ProxyOut {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let policy = self.policy.policy()?;
        let specs = self.listen.own_specs()?;
        if self.egress {
            let listening = self.listen.bind(specs).await?;
            let host = FromHost::new(listening.addresses());
            let connect = DeadlineLayer::new(Settings::default().dial_timeout).layer(host);
            return serve(listening, Backend::of_host(connect)).await;
        }
        let loaded = load(&KubeconfigArgs::from(self.kube), &Env::of_process())?;
        let listening = self.listen.bind(specs).await?;
        tracing::debug!(context = ?loaded.context, server = %loaded.server, namespace = %loaded.namespace, "kubeconfig");
        let own = listening.addresses().into_iter().collect();
        let config = policy.stack(&loaded.namespace, own);
        let (client, api_server) = reach(loaded.config).await?;
        probe::check(&client).await?;
        let connect = proxy::connect(client, api_server, config);
        serve(listening, Backend::of_cluster(connect)).await
    }
}

/// The API server, for our own calls and for others, with credentials: a plugin that asks for them has the time it takes.
pub(crate) async fn reach(config: kube::Config) -> Result<(kube::Client, ApiServer), Failure> {
    let options = super::options();
    let (client, renewal) = build_renewable(config, &options).map_err(ApiError::from)?;
    renewal.log_in().await?;
    Ok((client, renewal.api_server()))
}
