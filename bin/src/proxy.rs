//! A proxy from its listeners to the stack, and its life: start, serve, drain.

mod descriptors;
mod listen;
mod pac;
mod server;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use kubevpn_client::{Action, ApiServer, classify_api};
use kubevpn_conn::Addr;
use kubevpn_dns::{Message, Query};
use kubevpn_stack::{
    Cluster, ClusterSettings, Egress, Forwarder, ForwarderConfig, FromHost, Outside, OwnListeners,
    Settings, Stack, stack,
};
use kubevpn_target::{Connect, ConnectError, Name, Refusal};
use tower::util::BoxCloneSyncService;

pub(crate) use self::descriptors::allow_for;
pub(crate) use self::listen::{
    AUTH, Bound, Clients, DEFAULT_SOCKS, ListenArgs, Listening, Protocol, at_least_one, bind,
    credentials_in, dns_settings, forward_of, own,
};
pub(crate) use self::pac::{PacArgs, facts};
pub(crate) use self::server::Server;
use crate::exit::Failure;
use crate::out::{self, even_unheard};
use crate::signals::Termination;

/// How long open connections may take to finish once the program is told to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the API server may take to answer at the start.
const CHECK: Duration = Duration::from_secs(10);

/// The chain from a target to its stream, for one cluster.
pub(crate) fn connect(client: kube::Client, api_server: ApiServer, path: Path) -> ClusterStack {
    chain(client, api_server, path).0
}

/// The same, and the part of it that holds the sessions.
pub(crate) fn chain(
    client: kube::Client,
    api_server: ApiServer,
    path: Path,
) -> (ClusterStack, Forwarder) {
    let cluster = Cluster::new(client.clone(), path.cluster);
    let forwarder = Forwarder::new(client, path.forwarder);
    let egress = Egress::new(api_server, path.outside, FromHost::sharing(path.own));
    let stack = stack(cluster, forwarder.clone(), egress, path.settings);
    (stack, forwarder)
}

/// What [`connect`] makes.
pub(crate) type ClusterStack = Stack<Egress<ApiServer>>;

/// What answers a DNS client.
pub(crate) type Names = BoxCloneSyncService<Query, Message, ConnectError>;

/// What the listeners lead to.
#[derive(Clone)]
pub(crate) struct Backend<C> {
    pub(crate) connect: C,
    /// Who is asked for a PAC file; nobody, where there is no cluster.
    pub(crate) cluster: Option<Cluster>,
    /// Who answers DNS clients; nobody, where there is no cluster.
    pub(crate) names: Option<Names>,
}

impl Backend<ClusterStack> {
    pub(crate) fn of_cluster(connect: ClusterStack) -> Self {
        let cluster = connect.get_ref().cluster().clone();
        let names = {
            let connect = connect.clone();
            tower::service_fn(move |query: Query| {
                let connect = connect.clone();
                async move { connect.get_ref().answer(&query).await }
            })
        };
        Self {
            connect,
            cluster: Some(cluster),
            names: Some(BoxCloneSyncService::new(names)),
        }
    }
}

impl<C> Backend<C> {
    /// Something that is no cluster.
    pub(crate) fn of_host(connect: C) -> Self {
        Self {
            connect,
            cluster: None,
            names: None,
        }
    }

    /// The same, dialled another way.
    pub(crate) fn map<D>(self, connect: impl FnOnce(C) -> D) -> Backend<D> {
        Backend {
            connect: connect(self.connect),
            cluster: self.cluster,
            names: self.names,
        }
    }
}

/// The settings of the chain.
#[derive(Debug, Default)]
pub(crate) struct Path {
    pub(crate) cluster: ClusterSettings,
    pub(crate) forwarder: ForwarderConfig,
    pub(crate) outside: Outside,
    /// Where this program listens, and must not connect to.
    pub(crate) own: OwnListeners,
    pub(crate) settings: Settings,
}

/// Asks the API server for something everybody may read, so that a wrong address or stale credentials are
/// said now and not to the first client.
pub(crate) async fn check(client: &kube::Client) -> Result<(), Failure> {
    let asked = Action {
        verb: "get",
        resource: "/version",
        api_group: "",
        namespace: None,
        name: None,
    };
    let error = match tokio::time::timeout(CHECK, client.apiserver_version()).await {
        Ok(Ok(version)) => {
            tracing::debug!(version = %version.git_version, "the API server answers");
            return Ok(());
        }
        Ok(Err(error)) => classify_api(error, &asked),
        Err(_) => ConnectError::new(
            Refusal::ClusterAway,
            format!("the API server did not answer within {} s", CHECK.as_secs()),
        ),
    };
    match error.refusal() {
        // Whoever may not even read the version may still be allowed to forward ports.
        Refusal::Forbidden => Ok(()),
        _ => Err(error.into()),
    }
}

/// What names of the cluster end in; nothing, if it does not say so soon.
pub(crate) async fn endings(cluster: &Cluster) -> Vec<String> {
    let domain = tokio::time::timeout(CHECK, cluster.domain()).await;
    let endings = domain.map(|domain| domain.endings().map(Name::to_string).collect());
    endings.unwrap_or_default()
}

/// Says where the proxy listens and how to use it. Only what is bound is said.
fn say_listening(bound: &[Bound], endings: &[String]) -> Result<(), Failure> {
    for listener in bound {
        let addr = listener.listener.addr();
        let (socks, http) = match &listener.protocol {
            Protocol::Socks => {
                out::line(format_args!("SOCKS5 proxy listening on {addr}"))?;
                (true, false)
            }
            Protocol::Http => {
                out::line(format_args!("HTTP proxy listening on {addr}"))?;
                (false, true)
            }
            Protocol::Mixed => {
                out::line(format_args!("SOCKS5 and HTTP proxy listening on {addr}"))?;
                (true, true)
            }
            Protocol::Forward(to) => {
                out::line(format_args!("Forwarding {addr} -> {to}"))?;
                (false, false)
            }
            Protocol::Dns => {
                out::line(format_args!("DNS listening on {addr} (UDP and TCP)"))?;
                say_dns(addr, endings)?;
                (false, false)
            }
        };
        say_hints(addr, socks, http)?;
    }
    say_scope()
}

/// Says what makes programs use a listener that speaks these.
pub(crate) fn say_hints(addr: &Addr, socks: bool, http: bool) -> Result<(), Failure> {
    let Addr::Tcp(addr) = addr else { return Ok(()) };
    let addr = reachable(*addr);
    if socks {
        out::line(format_args!(
            "Proxy hint: export ALL_PROXY=socks5h://{addr} all_proxy=socks5h://{addr}"
        ))?;
    }
    if http {
        out::line(format_args!(
            "Proxy hint: export HTTP_PROXY=http://{addr} http_proxy=http://{addr}"
        ))?;
        out::line(format_args!(
            "Proxy hint: export HTTPS_PROXY=http://{addr} https_proxy=http://{addr}"
        ))?;
    }
    Ok(())
}

/// Says what the proxy is for.
pub(crate) fn say_scope() -> Result<(), Failure> {
    out::line(
        "Proxy scope: TCP traffic only. Use socks5h if you want proxy-side cluster DNS resolution.",
    )
}

/// How this machine's own resolver is told to ask us for the cluster's names, and for no others.
pub(crate) fn say_dns(addr: &Addr, endings: &[String]) -> Result<(), Failure> {
    let Addr::Tcp(addr) = addr else { return Ok(()) };
    let addr = reachable(*addr);
    for hint in dns_hints(addr, endings) {
        out::line(hint)?;
    }
    Ok(())
}

/// A listener on every address is reached from this machine by loopback.
pub(crate) fn reachable(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr.is_ipv4() {
            true => Ipv4Addr::LOCALHOST.into(),
            false => Ipv6Addr::LOCALHOST.into(),
        });
    }
    addr
}

/// Each works as it is printed, also where its directory is not there yet, as on most systems.
fn dns_hints(addr: SocketAddr, endings: &[String]) -> Vec<String> {
    let (ip, port) = (addr.ip(), addr.port());
    let macos = endings.iter().map(|ending| {
        format!(
            "DNS hint (macOS): sudo mkdir -p /etc/resolver && printf 'nameserver {ip}\\nport {port}\\n' | sudo tee \
             /etc/resolver/{ending}"
        )
    });
    let routes: Vec<_> = endings.iter().map(|ending| format!("~{ending}")).collect();
    let resolved = format!(
        "DNS hint (systemd-resolved): sudo mkdir -p /etc/systemd/resolved.conf.d && printf \
         '[Resolve]\\nDNS={addr}\\nDomains={}\\n' | sudo tee /etc/systemd/resolved.conf.d/kubevpn.conf && sudo \
         systemctl restart systemd-resolved",
        routes.join(" ")
    );
    macos.chain([resolved]).collect()
}

/// Serves until told to end, then lets open connections finish for a while. A second signal cuts them.
pub(crate) async fn serve<C>(listening: Listening, backend: Backend<C>) -> Result<(), Failure>
where
    C: Connect + Clone + Sync + 'static,
{
    let mut termination = Termination::new()?;
    let Listening { bound, clients } = listening;
    allow_for(clients.limits.total);
    let has_dns = bound.iter().any(|bound| bound.protocol == Protocol::Dns);
    let endings = match backend.cluster.as_ref().filter(|_| has_dns) {
        Some(cluster) => endings(cluster).await,
        None => Vec::new(),
    };
    even_unheard(say_listening(&bound, &endings))?;
    let mut server = Server::new(backend, clients);
    bound.into_iter().for_each(|bound| server.add(bound));
    let ended = termination.next().await;
    if server.open() > 0 {
        out::aside(format_args!(
            "waiting up to {} s for open connections to finish; Ctrl-C again cuts them",
            DRAIN.as_secs()
        ));
    }
    let again = async {
        termination.next().await;
    };
    server.end(DRAIN, again).await;
    ended.result()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a shell takes it, with `sudo` and `/etc` somewhere else.
    #[test]
    fn dns_hints_work_where_the_directory_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let addr = reachable("0.0.0.0:5353".parse().unwrap());
        let hints = dns_hints(addr, &["cluster.local".into()]);
        assert_eq!(hints.len(), 2);
        for hint in hints {
            let command = hint.split_once(": ").unwrap().1;
            let command = command.replace("/etc/", &format!("{}/etc/", root.path().display()));
            let script = format!("sudo() {{ \"$@\"; }}; systemctl() {{ :; }}; {command}");
            let status = std::process::Command::new("bash")
                .args(["-ec", &script])
                .status();
            assert!(status.unwrap().success(), "{command}");
        }
        let read = |path: &str| std::fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(
            read("etc/resolver/cluster.local"),
            "nameserver 127.0.0.1\nport 5353\n"
        );
        assert_eq!(
            read("etc/systemd/resolved.conf.d/kubevpn.conf"),
            "[Resolve]\nDNS=127.0.0.1:5353\nDomains=~cluster.local\n"
        );
    }
}
