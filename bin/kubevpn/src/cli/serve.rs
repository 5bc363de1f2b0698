//! Serves a proxy in the foreground, and prints its addresses and hints.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kubevpn_conn::Addr;
use kubevpn_daemon::{StateDir, Termination};
use kubevpn_proxy::{
    Admin, Backend, Listening, Protocol, ProxyReadiness, ProxyView, Server, allow_for, endings,
    reachable,
};
use kubevpn_target::Connect;
use serde_json::json;

use super::env::ShellSyntax;
use crate::exit::Failure;
use crate::live::{self, LiveLine};
use crate::notify;
use crate::out::{self, even_unheard};
use crate::progress;

/// Example URL, if none of the cluster is known.
const EXAMPLE: &str = "http://SERVICE.NAMESPACE:PORT/";
/// Default time limit for open connections to finish at the end.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// Destination of a proxy, for people.
#[derive(Debug, Default)]
pub(crate) struct Intro {
    /// Description of the destination.
    pub(crate) leads_to: Option<String>,
    /// A URL that works there.
    pub(crate) example: Option<String>,
    /// Whether the listeners are printed as JSON, without other output.
    pub(crate) as_json: bool,
}

/// The signals that end a server, and its drain.
pub(crate) struct Ending {
    /// The signals, handled since before the server started.
    pub(crate) termination: Termination,
    /// Time limit for open connections to finish.
    pub(crate) drain: Duration,
    /// Listener whose probes report the end.
    pub(crate) admin: Option<Admin>,
}

impl Ending {
    /// Handles signals from now on, with all other settings at their defaults.
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self {
            termination: termination()?,
            drain: DRAIN,
            admin: None,
        })
    }

    fn tell(&self, readiness: ProxyReadiness) {
        if let Some(admin) = &self.admin {
            admin.set(readiness);
        }
    }
}

/// Serves until a signal, then waits for open connections up to the drain time. A second signal cuts them.
///
/// Clients are accepted from the beginning; the addresses are printed once `ready` is complete. If that fails, the proxy
/// ends.
pub(crate) async fn serve<C>(
    listening: Listening,
    backend: Backend<C>,
    ready: impl Future<Output = Result<Intro, Failure>>,
    view: ProxyView,
    mut ending: Ending,
) -> Result<(), Failure>
where
    C: Connect + Clone + Sync + 'static,
{
    #[cfg(feature = "otel")]
    let export = crate::otel::Export::of_environment();
    #[cfg(feature = "otel")]
    export.follow(&view)?;
    let Listening { bound, clients } = listening;
    allow_for(clients.limits.total);
    let listeners: Vec<_> = bound
        .iter()
        .map(|bound| (bound.listener.addr().clone(), bound.protocol.clone()))
        .collect();
    let cluster = backend.cluster.clone();
    let has_dns = listeners.iter().any(|(_, p)| *p == Protocol::Dns);
    let inside_tls = clients.tls.is_some();
    let mut server = Server::new(backend, clients);
    server.observed_by(view.clone());
    if let Some(admin) = &ending.admin {
        admin.show(view.clone());
    }
    bound.into_iter().for_each(|bound| server.add(bound));
    let admin = ending.admin.as_ref().map(|admin| admin.addr().clone());
    let told = async {
        let intro = ready.await?;
        let as_json = intro.as_json;
        let summary = summary(&listeners, intro.leads_to.as_deref());
        let endings = match cluster.filter(|_| has_dns) {
            Some(cluster) => endings(&cluster).await,
            None => Vec::new(),
        };
        let admin = admin.as_ref();
        even_unheard(match as_json {
            true => print_listeners(&listeners, admin),
            false => say_listening(&listeners, &endings, &intro, inside_tls, admin),
        })?;
        let pages = view.journal().pages();
        match as_json {
            // Standard output contains only JSON.
            true => pages_aside(&pages),
            false => even_unheard(say_pages(&pages))?,
        }
        Ok::<_, Failure>(summary)
    };
    let told = tokio::select! {
        told = told => told.map_err(Err),
        ended = ending.termination.next() => Err(result(ended)),
    };
    let summary = match told {
        Ok(summary) => summary,
        Err(over) => {
            notify::stopping("it ends before it was ready");
            server.end(Duration::ZERO, std::future::pending()).await;
            return over;
        }
    };
    let console = console(&view).await;
    ending.tell(ProxyReadiness::Ready);
    notify::ready(summary);
    let mut live = live::is_wanted().then(|| LiveLine::new(view.journal().clone()));
    let ended = loop {
        let tick = async {
            match &mut live {
                Some(live) => live.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = ending.termination.next() => break ended,
            () = tick => {}
        }
        if let Some(live) = &mut live {
            live.show(server.open());
        }
    };
    // The live line is cleared before other output.
    drop(live);
    ending.tell(ProxyReadiness::Ending);
    let open = server.open();
    notify::stopping(format_args!("open connections: {open}"));
    if open > 0 && !ending.drain.is_zero() {
        let s = if open == 1 { "" } else { "s" };
        out::aside(format_args!(
            "waiting up to {} for {open} open connection{s} to finish; Ctrl-C again ends at once",
            humantime::format_duration(ending.drain)
        ));
    }
    let is_cut = AtomicBool::new(false);
    let again = async {
        ending.termination.next().await;
        is_cut.store(true, Ordering::Relaxed);
    };
    progress::shown(
        "open connections to finish",
        server.end(ending.drain, again),
    )
    .await;
    // The streams of events end with the last events.
    view.journal().close();
    for admin in [ending.admin, console].into_iter().flatten() {
        admin.end().await;
    }
    #[cfg(feature = "otel")]
    {
        let again = async {
            if !is_cut.load(Ordering::Relaxed) {
                ending.termination.next().await;
            }
        };
        export.end(again).await;
    }
    if let Ok(dir) = StateDir::locate() {
        dir.leave_foreground();
    }
    result(ended)
}

/// Where it listens and leads, in a line.
fn summary(listeners: &[(Addr, Protocol)], leads_to: Option<&str>) -> String {
    let listeners = listeners.iter().map(|(addr, protocol)| match protocol {
        Protocol::Forward(to) => format!("{addr} -> {}", to.0),
        other => format!("{} on {addr}", service(other)),
    });
    let listeners = listeners.collect::<Vec<_>>().join(", ");
    match leads_to {
        Some(leads_to) => format!("{listeners}. {leads_to}"),
        None => listeners,
    }
}

/// The socket of this proxy's console for other commands; `None` if it cannot be made, e.g. in a container without a home
/// directory.
async fn console(view: &ProxyView) -> Option<Admin> {
    let dir = StateDir::locate().ok()?;
    let path = dir.foreground_socket(std::process::id()).ok()?;
    match Admin::console(path).await {
        Ok(console) => {
            console.show(view.clone());
            Some(console)
        }
        Err(error) => {
            tracing::debug!(%error, "other commands cannot look at this proxy");
            None
        }
    }
}

/// Handles the signals that end a command.
pub(crate) fn termination() -> Result<Termination, Failure> {
    let termination = Termination::new().map_err(anyhow::Error::new);
    termination.map_err(|error| error.context("cannot wait for signals").into())
}

/// The result of a command that a signal has ended.
pub(crate) fn result(ended: kubevpn_daemon::EndSignal) -> Result<(), Failure> {
    match ended {
        kubevpn_daemon::EndSignal::Interrupted => Err(Failure::Interrupted),
        kubevpn_daemon::EndSignal::Terminated => Ok(()),
    }
}

/// Prints the bound listeners, the destination, and hints.
fn say_listening(
    listeners: &[(Addr, Protocol)],
    endings: &[String],
    intro: &Intro,
    inside_tls: bool,
    admin: Option<&Addr>,
) -> Result<(), Failure> {
    for (addr, protocol) in listeners {
        match protocol {
            Protocol::Forward(to) => out::note(format_args!("Forwarding {addr} -> {}", to.0))?,
            Protocol::Dns => out::note(format_args!("DNS listening on {addr} (UDP and TCP)"))?,
            Protocol::Admin => say_admin(addr)?,
            other => {
                let inside = if inside_tls { " inside TLS" } else { "" };
                out::note(format_args!(
                    "{}{inside} listening on {addr}",
                    service(other)
                ))?;
            }
        }
    }
    if let Some(admin) = admin {
        say_admin(admin)?;
    }
    if let Some(leads_to) = &intro.leads_to {
        out::note(out::escaped(leads_to))?;
    }
    if inside_tls {
        // The certificate does not name this address.
        return Ok(());
    }
    let listeners = listeners.iter().map(|(addr, protocol)| (addr, protocol));
    say_hints(listeners, endings, intro.example.as_deref(), None)
}

/// Prints one JSON object per line.
fn print_listeners(listeners: &[(Addr, Protocol)], admin: Option<&Addr>) -> Result<(), Failure> {
    for (address, protocol) in listeners {
        let mut listener = json!({"protocol": protocol.as_str(), "address": address.to_string()});
        if let Protocol::Forward(to) = protocol {
            listener["to"] = to.0.to_string().into();
        }
        out::json_line(&listener)?;
    }
    match admin {
        Some(admin) => out::json_line(&json!({"protocol": "admin", "address": admin.to_string()})),
        None => Ok(()),
    }
}

fn say_admin(addr: &Addr) -> Result<(), Failure> {
    out::note(format_args!(
        "Admin listening on {addr} (/livez, /readyz, /metrics)"
    ))
}

/// Prints the URLs of the status pages. Their tokens are printed only to a terminal, not to a log.
pub(crate) fn say_pages(pages: &[String]) -> Result<(), Failure> {
    match std::io::stdout().is_terminal() {
        true => pages
            .iter()
            .try_for_each(|page| out::note(format_args!("Status page: {page}"))),
        false => Ok(()),
    }
}

/// The same on standard error, if that is a terminal.
fn pages_aside(pages: &[String]) {
    if !std::io::stderr().is_terminal() || out::is_hushed() {
        return;
    }
    for page in pages {
        out::aside(format_args!("Status page: {page}"));
    }
}

/// The name of a listener in the output.
pub(crate) fn service(protocol: &Protocol) -> String {
    match protocol {
        Protocol::Socks => "SOCKS5 proxy".into(),
        Protocol::Http => "HTTP proxy".into(),
        Protocol::Mixed => "SOCKS5 and HTTP proxy".into(),
        Protocol::Forward(to) => format!("forward to {}", to.0),
        Protocol::Dns => "DNS (UDP and TCP)".into(),
        Protocol::Admin => "admin listener".into(),
    }
}

/// Prints the commands that make programs use these listeners. `env` is such a command without addresses.
pub(crate) fn say_hints<'a>(
    listeners: impl Iterator<Item = (&'a Addr, &'a Protocol)>,
    endings: &[String],
    example: Option<&str>,
    env: Option<&str>,
) -> Result<(), Failure> {
    let hints = hints(listeners, endings, example, env, ShellSyntax::of_user());
    hints.iter().try_for_each(out::note)
}

/// The hints name the HTTP listener, if there is one: all programs support HTTP, and show the reason of a refusal. The
/// variables are set by `kubevpn env`, which excepts this machine and the API servers.
fn hints<'a>(
    listeners: impl Iterator<Item = (&'a Addr, &'a Protocol)>,
    endings: &[String],
    example: Option<&str>,
    env: Option<&str>,
    shell: ShellSyntax,
) -> Vec<String> {
    let (mut http, mut socks, mut dns) = (None, None, Vec::new());
    for (addr, protocol) in listeners {
        let Addr::Tcp(addr) = addr else { continue };
        let addr = reachable(*addr);
        match protocol {
            Protocol::Http => http = http.or(Some(addr)),
            Protocol::Socks => socks = socks.or(Some(addr)),
            Protocol::Mixed => (http, socks) = (http.or(Some(addr)), socks.or(Some(addr))),
            Protocol::Dns => dns.extend(dns_hints(addr, endings, cfg!(target_os = "macos"))),
            Protocol::Forward(_) | Protocol::Admin => {}
        }
    }
    let proxy = match (http, socks) {
        (Some(http), _) => Some(format!("http://{http}")),
        (None, Some(socks)) => Some(format!("socks5h://{socks}")),
        (None, None) => None,
    };
    let mut hints = Vec::new();
    if let Some(proxy) = proxy {
        let example = example.unwrap_or(EXAMPLE);
        hints.push(format!("Try: curl --proxy {proxy} {example}"));
        if let Some(http) = http {
            hints.push(format!(
                "Browser: set its proxy configuration URL to http://{http}/proxy.pac"
            ));
        }
        let flag = |flag: &str, addr: Option<SocketAddr>| match addr {
            Some(addr) => format!(" --{flag} {addr}"),
            None => String::new(),
        };
        let command = match env {
            Some(command) => command.to_owned(),
            None => format!(
                "kubevpn env{}{}",
                flag("use-http", http),
                flag("use-socks", socks)
            ),
        };
        hints.push(format!("Shell: {}", shell.evaluates(&command)));
    }
    hints.extend(dns);
    hints
}

/// Commands that make this machine's resolver use our DNS listener, only for names of the cluster, and that undo it. They
/// make missing directories, and work as printed.
fn dns_hints(addr: SocketAddr, endings: &[String], macos: bool) -> Vec<String> {
    let (ip, port) = (addr.ip(), addr.port());
    if macos {
        let commands = endings.iter().flat_map(|ending| {
            let file = format!("/etc/resolver/{ending}");
            [
                format!(
                    "DNS: sudo mkdir -p /etc/resolver && printf 'nameserver {ip}\\nport {port}\\n' | sudo tee {file}"
                ),
                format!("Undo: sudo rm {file}"),
            ]
        });
        return commands.collect();
    }
    let routes: Vec<_> = endings.iter().map(|ending| format!("~{ending}")).collect();
    let file = "/etc/systemd/resolved.conf.d/kubevpn.conf";
    let restart = "sudo systemctl restart systemd-resolved";
    vec![
        format!(
            "DNS: sudo mkdir -p /etc/systemd/resolved.conf.d && printf '[Resolve]\\nDNS={addr}\\nDomains={}\\n' | sudo tee \
             {file} && {restart}",
            routes.join(" ")
        ),
        format!("Undo: sudo rm {file} && {restart}"),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use kubevpn_stack::FromHost;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::oneshot;

    use kubevpn_proxy::Journal;

    use super::super::listen::ListenerArgs;
    use super::super::proxy_out::about;
    use super::*;

    #[derive(clap::Parser)]
    struct Args {
        #[command(flatten)]
        listen: ListenerArgs,
    }

    fn view() -> ProxyView {
        ProxyView::of_host(Journal::default(), about(None))
    }

    #[tokio::test]
    async fn clients_are_accepted_before_the_addresses_are_printed() {
        let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = behind.local_addr().unwrap().port();
        let Args { listen } = Args::parse_from(["test", "--listen-socks", "127.0.0.1:0"]);
        let listening = listen.bind(listen.own_specs().unwrap()).await.unwrap();
        let proxy = listening.addresses()[0];
        let (answered, answer) = oneshot::channel();
        let ready = async {
            let mut client = TcpStream::connect(proxy).await.unwrap();
            let [high, low] = port.to_be_bytes();
            client.write_all(&[5, 1, 0]).await.unwrap();
            client.read_exact(&mut [0; 2]).await.unwrap();
            let request = [5, 1, 0, 1, 127, 0, 0, 1, high, low];
            client.write_all(&request).await.unwrap();
            let mut reply = [0; 10];
            client.read_exact(&mut reply).await.unwrap();
            answered.send(reply[1]).unwrap();
            std::future::pending().await
        };
        let backend = Backend::of_host(FromHost::default());
        tokio::select! {
            _ended = serve(listening, backend, ready, view(), Ending::new().unwrap()) => panic!("it ended"),
            reply = answer => assert_eq!(reply.unwrap(), 0),
        }
    }

    /// Nothing is printed if the API server rejects the credentials.
    #[tokio::test]
    async fn a_proxy_that_does_not_get_ready_ends() {
        let Args { listen } = Args::parse_from(["test", "--listen-socks", "127.0.0.1:0"]);
        let listening = listen.bind(listen.own_specs().unwrap()).await.unwrap();
        let proxy = listening.addresses()[0];
        let backend = Backend::of_host(FromHost::default());
        let ready = async { Err(Failure::value("no")) };
        let ended = serve(listening, backend, ready, view(), Ending::new().unwrap()).await;
        assert_eq!(ended.unwrap_err().message(), "no");
        assert!(TcpStream::connect(proxy).await.is_err());
    }

    #[test]
    fn hints_name_the_http_listener() {
        let addr = |text: &str| text.parse::<Addr>().unwrap();
        let (socks, http) = (addr("127.0.0.1:1080"), addr("0.0.0.0:3128"));
        let both = [(&socks, &Protocol::Socks), (&http, &Protocol::Http)];
        let said = |shell, example| hints(both.into_iter(), &[], example, None, shell);
        assert_eq!(
            said(ShellSyntax::Bash, Some("http://reviews.default/")),
            [
                "Try: curl --proxy http://127.0.0.1:3128 http://reviews.default/",
                "Browser: set its proxy configuration URL to http://127.0.0.1:3128/proxy.pac",
                "Shell: eval \"$(kubevpn env --use-http 127.0.0.1:3128 --use-socks 127.0.0.1:1080)\"",
            ]
        );
        let fish = &said(ShellSyntax::Fish, None)[2];
        assert!(fish.ends_with("--use-socks 127.0.0.1:1080 --shell fish | source"));
        let managed = hints(
            both[..1].iter().copied(),
            &[],
            None,
            Some("kubevpn env"),
            ShellSyntax::Powershell,
        );
        assert_eq!(
            managed,
            [
                "Try: curl --proxy socks5h://127.0.0.1:1080 http://SERVICE.NAMESPACE:PORT/",
                "Shell: kubevpn env --shell powershell | Out-String | Invoke-Expression",
            ]
        );
        let mixed = [(&socks, &Protocol::Mixed)];
        let mixed = hints(mixed.into_iter(), &[], None, None, ShellSyntax::Zsh);
        assert!(
            mixed[2].contains("--use-http 127.0.0.1:1080 --use-socks 127.0.0.1:1080"),
            "{mixed:?}"
        );
        let forward = Protocol::Forward("db:5432".parse().unwrap());
        let none = hints(
            [(&socks, &forward)].into_iter(),
            &[],
            None,
            None,
            ShellSyntax::Bash,
        );
        assert!(none.is_empty(), "{none:?}");
    }

    /// Runs the hint in a shell, with replacements for `sudo` and `/etc`.
    #[test]
    fn dns_hints_work_where_the_directory_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let addr = reachable("0.0.0.0:5353".parse().unwrap());
        let lines = [
            (
                "etc/resolver/cluster.local",
                "nameserver 127.0.0.1\nport 5353\n",
                true,
            ),
            (
                "etc/systemd/resolved.conf.d/kubevpn.conf",
                "[Resolve]\nDNS=127.0.0.1:5353\nDomains=~cluster.local\n",
                false,
            ),
        ];
        for (file, text, macos) in lines {
            let file = root.path().join(file);
            let hints = dns_hints(addr, &["cluster.local".into()], macos);
            assert_eq!(hints.len(), 2);
            for (hint, written) in hints.iter().zip([Some(text), None]) {
                let command = hint.split_once(": ").unwrap().1;
                let command = command.replace("/etc/", &format!("{}/etc/", root.path().display()));
                let script = format!("sudo() {{ \"$@\"; }}; systemctl() {{ :; }}; {command}");
                let status = std::process::Command::new("bash")
                    .args(["-ec", &script])
                    .status();
                assert!(status.unwrap().success(), "{command}");
                let read = std::fs::read_to_string(&file).ok();
                assert_eq!(read.as_deref(), written, "{command}");
            }
        }
    }
}
