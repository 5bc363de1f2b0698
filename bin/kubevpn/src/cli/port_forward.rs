//! `kubevpn port-forward`, with kubectl's arguments.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use kubevpn_client::{Env, KubeconfigArgs, load};
use kubevpn_daemon::{ApiError, Code};
use kubevpn_target::Host;

use super::habits;
use super::kube::KubeArgs;
use super::listen::ListenerArgs;
use super::policy::PolicyArgs;
use super::proxy_out::ProxyOut;
use crate::exit::Failure;

/// Forward local ports to a Service or Pod, like kubectl
///
/// Each connection goes to a Pod that is ready at that time, so the forward keeps working when the Pods behind a Service
/// are replaced. It runs until Ctrl-C. `kubevpn proxy-out --forward` does the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # port 8080 of this machine to port 80 of a Service
  kubevpn port-forward svc/web 8080:80

  # the same port on both sides, of a Pod
  kubevpn port-forward pod/db-0 5432")]
pub(crate) struct PortForward {
    /// Target: svc/NAME or pod/NAME; NAME alone is a Service (for kubectl it is a Pod)
    #[arg(value_name = "TYPE/NAME")]
    target: String,
    /// Ports, as LOCAL:REMOTE, or PORT for the same on both sides, or :REMOTE for a free local port
    #[arg(value_name = "PORT", required = true)]
    ports: Vec<String>,
    /// Local address to listen on
    #[arg(long, value_name = "IP", default_value = "127.0.0.1", value_parser = address)]
    address: IpAddr,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

impl PortForward {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let forwards = self.forwards(&self.namespace()?)?;
        if !self.address.is_loopback() {
            return Err(Failure::Advised {
                error: ApiError::new(
                    Code::Exposed,
                    format!(
                        "{} can be reached from other machines, and whoever connects is in the cluster: port-forward listens \
                         on loopback alone",
                        self.address
                    ),
                ),
                advice: format!(
                    "kubevpn proxy-out --allow-unauthenticated --forward {}, with the same --context and -n",
                    forwards.join(" --forward ")
                ),
            });
        }
        let listen = ListenerArgs::of_forwards(forwards);
        ProxyOut::of(listen, self.kube, self.policy).run().await
    }

    /// Namespace of a Pod; names of Services need none.
    fn namespace(&self) -> Result<String, Failure> {
        if let Some(namespace) = self.kube.namespace() {
            return Ok(namespace.to_owned());
        }
        let is_pod = self.target.starts_with("po") && self.target.contains('/');
        if !is_pod {
            return Ok(String::new());
        }
        let loaded = load(&KubeconfigArgs::from(self.kube.clone()), &Env::of_process())?;
        match loaded.once.is_empty() {
            true => Ok(loaded.namespace),
            false => Err(Failure::value(format!(
                "{}: name the namespace of the Pod with -n, since the kubeconfig can be read only once",
                self.target
            ))),
        }
    }

    /// The ports in the format of `--forward`.
    fn forwards(&self, namespace: &str) -> Result<Vec<String>, Failure> {
        let (host, _) = habits::target(&self.target, namespace)?;
        let host = match host {
            Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
            host => host.to_string(),
        };
        let listen = SocketAddr::new(self.address, 0).to_string();
        let listen = listen.trim_end_matches('0');
        let port = |text: &str| text.parse::<u16>().ok();
        let forward = |ports: &String| {
            let (local, remote) = match ports.split_once(':') {
                None => (ports.as_str(), ports.as_str()),
                Some(("", remote)) => ("0", remote),
                Some(both) => both,
            };
            match (port(local), port(remote)) {
                (Some(local), Some(remote)) if remote != 0 => {
                    Ok(format!("{listen}{local}:{host}:{remote}"))
                }
                _ => Err(Failure::value(format!(
                    "{ports} is no pair of ports: write LOCAL:REMOTE, as 8080:80, or PORT, or :REMOTE, each a number"
                ))),
            }
        };
        self.ports.iter().map(forward).collect()
    }
}

/// An IP address, or `localhost`, as in kubectl.
fn address(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => text
            .parse()
            .map_err(|_| "write one IP address, or localhost".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::exit::exit_code;

    #[derive(clap::Parser)]
    struct Args {
        #[command(flatten)]
        command: PortForward,
    }

    fn forwards(words: &[&str]) -> Result<Vec<String>, Failure> {
        let Args { command } = Args::parse_from([&["test"], words].concat());
        command.forwards("shop")
    }

    #[test]
    fn words_of_kubectl() {
        for (words, wanted) in [
            (&["svc/web", "8080:80"][..], "127.0.0.1:8080:web:80"),
            (&["web", "80"], "127.0.0.1:80:web:80"),
            (&["web", ":80"], "127.0.0.1:0:web:80"),
            (&["pod/db-0", "5432"], "127.0.0.1:5432:db-0.shop.pod:5432"),
            (
                &["web", "80", "--address", "localhost"],
                "127.0.0.1:80:web:80",
            ),
            (&["web", "80", "--address", "::1"], "[::1]:80:web:80"),
        ] {
            assert_eq!(forwards(words).unwrap(), [wanted], "{words:?}");
        }
        for words in [
            &["deploy/web", "80"][..],
            &["web", "80:http"],
            &["web", "80:0"],
            &["web", "80:81:82"],
            &["web", "99999"],
        ] {
            assert_eq!(exit_code(&forwards(words).unwrap_err()), 23, "{words:?}");
        }
    }
}
