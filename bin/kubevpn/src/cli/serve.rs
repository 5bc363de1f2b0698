//! Serving until told to end, and what is said about it.

use std::net::SocketAddr;
use std::time::Duration;

use kubevpn_conn::Addr;
use kubevpn_daemon::Termination;
use kubevpn_proxy::{Backend, Bound, Listening, Protocol, Server, allow_for, endings, reachable};
use kubevpn_target::Connect;

use crate::exit::Failure;
use crate::out::{self, even_unheard};

/// How long open connections may take to finish once the program is told to end.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until told to end, then lets open connections finish for a while. A second signal cuts them.
pub(crate) async fn serve<C>(listening: Listening, backend: Backend<C>) -> Result<(), Failure>
where
    C: Connect + Clone + Sync + 'static,
{
    let mut termination = termination()?;
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
    result(ended)
}

/// The signals that end a command, from now on.
pub(crate) fn termination() -> Result<Termination, Failure> {
    let termination = Termination::new().map_err(anyhow::Error::new);
    termination.map_err(|error| error.context("cannot wait for signals").into())
}

/// How a command ends that a signal has ended.
pub(crate) fn result(ended: kubevpn_daemon::Ended) -> Result<(), Failure> {
    match ended {
        kubevpn_daemon::Ended::Interrupted => Err(Failure::Interrupted),
        kubevpn_daemon::Ended::Terminated => Ok(()),
    }
}

/// Says where the proxy listens and how to use it. Only what is bound is said.
fn say_listening(bound: &[Bound], endings: &[String]) -> Result<(), Failure> {
    for Bound {
        listener, protocol, ..
    } in bound
    {
        let addr = listener.addr();
        match protocol {
            Protocol::Forward(to) => out::line(format_args!("Forwarding {addr} -> {}", to.0))?,
            Protocol::Dns => out::line(format_args!("DNS listening on {addr} (UDP and TCP)"))?,
            other => out::line(format_args!("{} listening on {addr}", service(other)))?,
        }
    }
    let listeners = bound.iter().map(|b| (b.listener.addr(), &b.protocol));
    say_hints(listeners, endings)?;
    let is_proxy = |bound: &Bound| is_proxy(&bound.protocol);
    match bound.iter().any(is_proxy) {
        true => say_scope(),
        false => Ok(()),
    }
}

/// What a listener is to its clients.
pub(crate) fn service(protocol: &Protocol) -> String {
    match protocol {
        Protocol::Socks => "SOCKS5 proxy".into(),
        Protocol::Http => "HTTP proxy".into(),
        Protocol::Mixed => "SOCKS5 and HTTP proxy".into(),
        Protocol::Forward(to) => format!("forward to {}", to.0),
        Protocol::Dns => "DNS (UDP and TCP)".into(),
    }
}

/// Whether clients name the hosts they go to.
pub(crate) fn is_proxy(protocol: &Protocol) -> bool {
    match protocol {
        Protocol::Socks | Protocol::Http | Protocol::Mixed => true,
        Protocol::Forward(_) | Protocol::Dns => false,
    }
}

/// Says what makes programs use these listeners.
pub(crate) fn say_hints<'a>(
    listeners: impl Iterator<Item = (&'a Addr, &'a Protocol)>,
    endings: &[String],
) -> Result<(), Failure> {
    hints(listeners, endings).iter().try_for_each(out::line)
}

/// HTTP where there is a listener for it: every program speaks that. Python's httpx, for one, ends with an error where
/// `ALL_PROXY` names SOCKS and a package is missing.
fn hints<'a>(
    listeners: impl Iterator<Item = (&'a Addr, &'a Protocol)>,
    endings: &[String],
) -> Vec<String> {
    let (mut http, mut socks, mut dns) = (None, None, Vec::new());
    for (addr, protocol) in listeners {
        let Addr::Tcp(addr) = addr else { continue };
        let addr = reachable(*addr);
        match protocol {
            Protocol::Http | Protocol::Mixed => http = http.or(Some(addr)),
            Protocol::Socks => socks = socks.or(Some(addr)),
            Protocol::Dns => dns.extend(dns_hints(addr, endings)),
            Protocol::Forward(_) => {}
        }
    }
    let export = |name: &str, url: String| {
        let lower = name.to_lowercase();
        format!("Proxy hint: export {name}={url} {lower}={url}")
    };
    let mut hints = match (http, socks) {
        (Some(http), _) => ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
            .map(|name| export(name, format!("http://{http}")))
            .into(),
        (None, Some(socks)) => vec![
            export("ALL_PROXY", format!("socks5h://{socks}")),
            "Proxy hint: Go, Java and Node take no SOCKS proxy from ALL_PROXY, and Python needs a package \
             (requests[socks], httpx[socks]): for those add an HTTP listener"
                .into(),
        ],
        (None, None) => Vec::new(),
    };
    hints.extend(dns);
    hints
}

/// Says what the proxy is for.
pub(crate) fn say_scope() -> Result<(), Failure> {
    out::line(
        "Proxy scope: TCP traffic only. Use socks5h if you want proxy-side cluster DNS resolution.",
    )
}

/// How this machine's own resolver is told to ask us for the cluster's names, and for no others. Each works as it is
/// printed, also where its directory is not there yet, as on most systems.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_what_programs_are_told_of() {
        let addr = |text: &str| text.parse::<Addr>().unwrap();
        let (socks, http) = (addr("127.0.0.1:1080"), addr("0.0.0.0:3128"));
        let both = [(&socks, &Protocol::Socks), (&http, &Protocol::Http)];
        let said = hints(both.into_iter(), &[]);
        assert_eq!(said.len(), 3);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            let lower = name.to_lowercase();
            let url = "http://127.0.0.1:3128";
            let line = format!("Proxy hint: export {name}={url} {lower}={url}");
            assert!(said.contains(&line), "{said:?}");
        }
        let said = hints(both[..1].iter().copied(), &[]);
        assert!(said[0].ends_with("all_proxy=socks5h://127.0.0.1:1080"));
        assert!(said[1].contains("httpx[socks]"), "{said:?}");
    }

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
