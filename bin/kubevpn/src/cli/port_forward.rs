//! `kubevpn port-forward`, for those who know kubectl's.

use super::habits;
use super::kube::KubeArgs;
use super::listen::ListenerArgs;
use super::policy::PolicyArgs;
use super::proxy_out::ProxyOut;
use crate::exit::Failure;

/// Forward local ports to a Service or Pod, like kubectl
///
/// The same as `kubevpn proxy-out --forward`. Each connection is resolved anew: when the Pods behind a Service are replaced, the
/// forward goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # port 8080 of this machine to port 80 of a Service
  kubevpn port-forward svc/web 8080:80

  # the same port on both sides, of a Pod
  kubevpn port-forward pod/db-0 5432")]
pub(crate) struct PortForward {
    /// Target, as svc/NAME or pod/NAME; a name alone is a Service's
    #[arg(value_name = "TYPE/NAME")]
    target: String,
    /// Ports, as LOCAL:REMOTE, or PORT for the same on both sides, or :REMOTE for a free local one
    #[arg(value_name = "PORT", required = true)]
    ports: Vec<String>,
    /// Local address to listen on
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    address: std::net::IpAddr,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

impl PortForward {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let namespace = self.kube.namespace();
        if self.target.starts_with("po") && self.target.contains('/') && namespace.is_none() {
            return Err(Failure::value(format!(
                "{}: name the namespace of the Pod with -n",
                self.target
            )));
        }
        let (host, _) = habits::target(&self.target, namespace.unwrap_or_default())?;
        let forward = |ports: &String| {
            let (local, remote) = match ports.split_once(':') {
                None => (ports.as_str(), ports.as_str()),
                Some(("", remote)) => ("0", remote),
                Some(both) => both,
            };
            let host = match &host {
                kubevpn_target::Host::Ip(std::net::IpAddr::V6(ip)) => format!("[{ip}]"),
                host => host.to_string(),
            };
            let listen = std::net::SocketAddr::new(self.address, 0).to_string();
            let listen = listen.trim_end_matches('0');
            format!("{listen}{local}:{host}:{remote}")
        };
        let listen = ListenerArgs::of_forwards(self.ports.iter().map(forward).collect());
        ProxyOut::of(listen, self.kube, self.policy).run().await
    }
}
