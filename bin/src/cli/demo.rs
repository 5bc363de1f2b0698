//! `kubevpn demo`.

use kubevpn_client::{Options, build};
use kubevpn_sim::Sim;
use kubevpn_stack::ClusterSettings;

use super::proxy_out::user_agent;
use crate::exit::Failure;
use crate::proxy::{self, ListenArgs};

/// Try it on a cluster in memory: no kubeconfig, no root, no network
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    #[command(flatten)]
    listen: ListenArgs,
}

impl Demo {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let listener = self.listen.bind().await?;
        let cluster = Sim::builder()
            .plain()
            .sample()
            .start()
            .await
            .map_err(|e| Failure::Other(e.into()))?;
        let client = build(cluster.config(), &Options::new(user_agent()))
            .map_err(|e| Failure::Other(e.into()))?;
        proxy::check(&client).await?;
        say_what_to_try(&cluster, listener.addr());
        proxy::serve(listener, proxy::connect(client, ClusterSettings::default())).await
    }
}

/// Each line works as it is printed.
#[expect(clippy::print_stdout, reason = "what the command is for")]
fn say_what_to_try(cluster: &Sim, proxy: &kubevpn_conn::Addr) {
    println!(
        "A cluster in memory is up at {}. Paste into another terminal:",
        cluster.server_url()
    );
    for url in [
        "http://productpage.default.svc.cluster.local:9080",
        "http://reviews",
        "http://api.team-a",
        "http://productpage:9080/bytes?n=3000000 --output /dev/null",
    ] {
        println!("  curl --proxy socks5h://{proxy} {url}");
    }
    println!("and, to see refusals with their reasons here:");
    println!("  curl --proxy socks5h://{proxy} http://notready");
    println!("  curl --proxy socks5h://{proxy} http://productpage:81");
}
