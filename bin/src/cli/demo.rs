//! `kubevpn demo`.

use kubevpn_client::{Options, build};
use kubevpn_conn::Addr;
use kubevpn_sim::Sim;
use kubevpn_stack::{ClusterSettings, ForwarderConfig};

use super::proxy_out::user_agent;
use crate::exit::Failure;
use crate::proxy::{self, Bound, ListenArgs, Protocol};

/// Try it on a cluster in memory: no kubeconfig, no root, no network
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    #[command(flatten)]
    listen: ListenArgs,
}

impl Demo {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let bound = self.listen.bind().await?;
        let cluster = Sim::builder()
            .plain()
            .sample()
            .start()
            .await
            .map_err(|e| Failure::Other(e.into()))?;
        let client = build(cluster.config(), &Options::new(user_agent()))
            .map_err(|e| Failure::Other(e.into()))?;
        proxy::check(&client).await?;
        say_what_to_try(&cluster, &bound);
        let connect = proxy::connect(
            client,
            ClusterSettings::default(),
            ForwarderConfig::default(),
        );
        proxy::serve(bound, &self.listen, connect).await
    }
}

/// Each line works as it is printed.
#[expect(clippy::print_stdout, reason = "what the command is for")]
fn say_what_to_try(cluster: &Sim, bound: &[Bound]) {
    println!(
        "A cluster in memory is up at {}. Paste into another terminal:",
        cluster.server_url()
    );
    for Bound { listener, protocol } in bound {
        let proxy = match (listener.addr(), protocol) {
            (Addr::Tcp(addr), Protocol::Http) => format!("--proxy http://{addr}"),
            (Addr::Tcp(addr), Protocol::Socks | Protocol::Mixed) => {
                format!("--proxy socks5h://{addr}")
            }
            (Addr::Unix(_), _) => continue,
        };
        for url in [
            "http://productpage.default.svc.cluster.local:9080",
            "http://reviews",
            "http://api.team-a",
            "http://productpage:9080/bytes?n=3000000 --output /dev/null",
        ] {
            println!("  curl {proxy} {url}");
        }
        println!("and, to see refusals with their reasons here:");
        println!("  curl {proxy} http://notready");
        println!("  curl {proxy} http://productpage:81");
    }
}
