//! `kubevpn pac`.

use std::path::PathBuf;

use kubevpn_client::{Env, KubeconfigArgs, load};
use kubevpn_proxy::{facts, pac_text};
use kubevpn_stack::Cluster;

use super::at::AtArgs;
use super::kube::KubeArgs;
use super::listen::PacArgs;
use super::policy::PolicyArgs;
use super::reach::reach;
use crate::exit::Failure;
use crate::out;

/// Print a PAC file: a browser then uses the proxy for the cluster
///
/// A proxy with an HTTP listener serves the same file as /proxy.pac, and keeps it up to date. A comment in the file says
/// what could not be read from the cluster. Without --use-http and --use-socks, the file names the listeners of the connection to
/// the cluster (`kubevpn connect`); without a connection, SOCKS5 on 127.0.0.1:1080.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # for a proxy with both listeners
  kubevpn pac --use-http 127.0.0.1:3128 --use-socks 127.0.0.1:1080 -f kubevpn.pac

  # with the addresses of Pods, which the API does not report
  kubevpn pac --use-http 127.0.0.1:3128 --pac-range 10.244.0.0/16")]
pub(crate) struct PacCommand {
    /// Write the PAC file to FILE instead of printing it
    #[arg(
        short = 'f',
        long,
        short_alias = 'o',
        alias = "output",
        value_name = "FILE"
    )]
    file: Option<PathBuf>,
    #[command(flatten)]
    at: AtArgs,
    #[command(flatten)]
    pac: PacArgs,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

impl PacCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        // The flags are checked before anything is read.
        self.at.named()?;
        let settings = self.pac.settings()?;
        let policy = self.policy.policy()?;
        let args = KubeconfigArgs::from(self.kube);
        let loaded = load(&args, &Env::of_process())?;
        let at = self.at.proxy_of(&args, &loaded).await?;
        let config = policy.stack(&loaded.namespace, Default::default());
        let (client, _) = reach(loaded.config).await?;
        let cluster = Cluster::new(client, config.cluster);
        let addr = |addr: std::net::SocketAddr| addr.to_string();
        let facts = facts(&cluster, settings, at.http.map(addr), at.socks.map(addr)).await;
        let file = pac_text(&facts);
        match self.file {
            None => out::print(file),
            Some(path) => std::fs::write(&path, file).map_err(|error| {
                Failure::value(format!("--file: cannot write {}: {error}", path.display()))
            }),
        }
    }
}
