//! `kubevpn demo`.

use kubevpn_conn::Addr;
use kubevpn_proxy::journal::AboutProxy;
use kubevpn_proxy::{self as proxy, Backend, Bound, Journal, Protocol, ProxyView, probe};
use kubevpn_sim::Sim;

use super::listen::ListenerArgs;
use super::policy::PolicyArgs;
use super::proxy_out::about;
use super::reach::reach_for_long;
use super::serve::{Ending, Intro, serve};
use crate::exit::Failure;
use crate::out::{self, even_unheard};

/// Try a proxy on a cluster in memory, without a kubeconfig
///
/// This process runs a small cluster with sample Services and a proxy into it, and prints lines to paste into another
/// terminal. Ctrl-C ends both. Other commands cannot use this cluster.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # SOCKS5 on 127.0.0.1:1080
  kubevpn demo

  # an HTTP proxy beside it
  kubevpn demo --listen-http 127.0.0.1:3128")]
pub(crate) struct Demo {
    #[command(flatten)]
    listen: ListenerArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

impl Demo {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let policy = self.policy.policy()?;
        let listening = self.listen.bind(self.listen.own_specs()?).await?;
        let cluster = Sim::builder()
            .plain()
            .sample()
            .start()
            .await
            .map_err(|e| Failure::Other(e.into()))?;
        let (client, renewal) = reach_for_long(cluster.config()).await?;
        probe::check(&client).await?;
        even_unheard(say_what_to_try(&cluster, &listening.bound))?;
        let own = listening.addresses().into_iter().collect();
        let config = policy.stack("default", own);
        let (connect, forwarder) = proxy::chain(client, renewal.api_server(), config);
        let about = AboutProxy {
            context: "demo".to_owned(),
            ..about(None)
        };
        let view = ProxyView::of_cluster(Journal::default(), about, &connect, forwarder, renewal);
        let intro = Intro {
            leads_to: Some(format!(
                "Cluster: in memory, namespace default ({})",
                cluster.server_url()
            )),
            example: Some("http://productpage.default:9080/".to_owned()),
            as_json: false,
        };
        serve(
            listening,
            Backend::of_cluster(connect),
            async { Ok(intro) },
            view,
            Ending::new()?,
        )
        .await
    }
}

/// Prints commands to try, each of which works as printed in any shell.
fn say_what_to_try(cluster: &Sim, bound: &[Bound]) -> Result<(), Failure> {
    out::line(format_args!(
        "A cluster in memory is up at {}. Paste into another terminal:",
        cluster.server_url()
    ))?;
    // One listener is enough to try.
    let proxy = bound
        .iter()
        .find_map(|bound| match (bound.listener.addr(), &bound.protocol) {
            (Addr::Tcp(addr), Protocol::Http) => Some(format!("--proxy http://{addr}")),
            (Addr::Tcp(addr), Protocol::Socks | Protocol::Mixed) => {
                Some(format!("--proxy socks5h://{addr}"))
            }
            (Addr::Unix(_), _) | (_, Protocol::Forward(_) | Protocol::Dns | Protocol::Admin) => {
                None
            }
        });
    let Some(proxy) = proxy else {
        return Ok(());
    };
    for url in [
        "http://productpage.default.svc.cluster.local:9080",
        "http://reviews",
        "http://api.team-a",
        "'http://productpage:9080/bytes?n=3000000' --output /dev/null",
    ] {
        out::line(format_args!("  curl {proxy} {url}"))?;
    }
    out::line("and, to see refusals with their reasons here:")?;
    out::line(format_args!("  curl {proxy} http://notready"))?;
    out::line(format_args!("  curl {proxy} http://productpage:81"))?;
    Ok(())
}
