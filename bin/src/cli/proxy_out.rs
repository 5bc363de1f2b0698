//! `kubevpn proxy-out`.

use kubevpn_client::{Env, KubeconfigArgs, Options, build, load};
use kubevpn_stack::{ForwarderConfig, TransportChoice};

use super::kube::KubeArgs;
use super::policy::PolicyArgs;
use crate::exit::Failure;
use crate::proxy::{self, ListenArgs};

/// Expose cluster workloads through a local outbound proxy
///
/// Programs that use the proxy reach Services and Pods by cluster name or IP, over nothing but the Kubernetes
/// API's port-forward: no root, no routes, nothing installed in the cluster.
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
    listen: ListenArgs,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// How port-forwards are carried: auto, or one of spdy, spdy-ws, ws
    #[arg(
        long,
        value_name = "NAME",
        default_value = "auto",
        help_heading = "Cluster"
    )]
    transport: TransportChoice,
}

impl ProxyOut {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut settings = self.policy.cluster()?;
        let loaded = load(&KubeconfigArgs::from(self.kube), &Env::of_process())?;
        let bound = self.listen.bind().await?;
        tracing::debug!(context = ?loaded.context, server = %loaded.server, namespace = %loaded.namespace, "kubeconfig");
        settings.namespace = loaded.namespace;
        let client = build(loaded.config, &Options::new(user_agent()))
            .map_err(|e| Failure::Other(e.into()))?;
        proxy::check(&client).await?;
        let forwarder = ForwarderConfig {
            transport: self.transport,
            ..ForwarderConfig::default()
        };
        proxy::serve(
            bound,
            &self.listen,
            proxy::connect(client, settings, forwarder),
        )
        .await
    }
}

/// What requests to the API server carry.
pub(crate) fn user_agent() -> String {
    format!("kubevpn/{}", env!("CARGO_PKG_VERSION"))
}
