//! `kubevpn connect`.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use kubevpn_client::{Env, KubeconfigArgs, Loaded, load};
use kubevpn_conn::{Addr, Limits};
use tokio::time::{Instant, sleep};

use super::kube::KubeArgs;
use super::policy::PolicyArgs;
use super::proxy_out::reach;
use crate::daemon::api::{Ask, Cluster, Opened, Source};
use crate::daemon::listener::{Kind, Wanted};
use crate::daemon::{Daemon, Home, identity, probe};
use crate::exit::Failure;
use crate::out::{self, even_unheard};
use crate::proxy::{
    AUTH, DEFAULT_SOCKS, PacArgs, at_least_one, dns_settings, forward_of, say_dns, say_hints,
    say_scope,
};
use crate::signals::Termination;

/// Where the HTTP proxy listens if nothing else is said.
const DEFAULT_HTTP: &str = "127.0.0.1:3128";
/// How long a daemon that is about to end is waited for.
const ENDING: Duration = Duration::from_secs(30);

/// Open a connection in the background, with local proxies into the cluster
///
/// A daemon of yours keeps the connection until `kubevpn disconnect`, and brings it back after it was killed. Asking
/// again adds the listeners that are missing. This program makes no VPN: without a listener nothing listens.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # a SOCKS5 proxy for the current context, until it is disconnected
  kubevpn connect --socks
  curl --proxy socks5h://127.0.0.1:1080 http://productpage.default.svc.cluster.local:9080

  # an HTTP proxy beside it, on the same connection
  kubevpn connect --http

  # another namespace has a connection and a port of its own
  kubevpn connect -n team-a --socks-listen 127.0.0.1:1081")]
pub(crate) struct Connect {
    /// Stay, and end the connection when this command is ended
    #[arg(long)]
    foreground: bool,
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Listeners")]
struct Listen {
    /// Listen for SOCKS5
    #[arg(long)]
    socks: bool,
    /// Local SOCKS5 listen address: IP:PORT (port 0 takes a free one) or unix:PATH; means --socks
    /// [default: 127.0.0.1:1080]
    #[arg(long, visible_alias = "listen-socks", value_name = "ADDR")]
    socks_listen: Option<String>,
    /// Listen for HTTP proxy requests, CONNECT and plain http
    #[arg(long)]
    http: bool,
    /// Local HTTP proxy listen address; means --http [default: 127.0.0.1:3128]
    #[arg(
        long,
        visible_alias = "listen-http",
        alias = "listen-http-connect",
        value_name = "ADDR"
    )]
    http_listen: Option<String>,
    /// Local listen address for SOCKS5 and HTTP on one port
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Forward a local port to one host and port, for programs that know no proxy: PORT:HOST:PORT or ADDR:PORT:HOST:PORT, IPv6
    /// addresses in brackets. May be given more than once
    #[arg(long, value_name = "FORWARD", action = clap::ArgAction::Append)]
    forward: Vec<String>,
    /// Local DNS listen address, UDP and TCP: answers for the cluster's names and addresses
    #[arg(long, visible_alias = "listen-dns", value_name = "ADDR")]
    dns_listen: Option<String>,
    /// DNS server, as IP or IP:PORT, for the names that are not the cluster's [default: they are REFUSED]
    #[arg(long, value_name = "ADDR", requires = "dns_listen")]
    dns_upstream: Option<String>,
    /// The SOCKS listener dials everything from this machine, with its DNS and routes, and nothing in the cluster
    #[arg(long)]
    egress: bool,
    /// Ask clients for the user and password in this file, one line of USER:PASSWORD. It is read again when the
    /// daemon starts anew. Forwards and DNS cannot ask
    #[arg(long, value_name = "FILE", env = "KUBEVPN_AUTH_FILE")]
    auth_file: Option<PathBuf>,
    /// Let clients on other machines in without a password, where a listener is not on loopback
    #[arg(long)]
    allow_unauthenticated: bool,
    /// Connections open at once, for each listener; further clients wait
    #[arg(long, value_name = "N", default_value_t = Limits::default().total, value_parser = at_least_one)]
    max_connections: usize,
    /// Connections open at once from one IP address; further ones are closed [default: no limit of its own]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_connections_per_client: Option<usize>,
    // Last: what follows would be under its heading.
    #[command(flatten)]
    pac: PacArgs,
}

impl Listen {
    /// What is to be listened on. Values are judged here, before anything is started.
    fn wanted(&self) -> Result<Vec<Wanted>, Failure> {
        if std::env::var_os(AUTH).is_some_and(|value| !value.is_empty()) && self.auth_file.is_none()
        {
            return Err(Failure::Value(format!(
                "{AUTH} is not kept for the daemon, which would have to write it down: use --auth-file"
            )));
        }
        let socks = self.socks_listen.as_deref();
        let http = self.http_listen.as_deref();
        self.pac.flags()?;
        dns_settings(self.dns_upstream.as_deref(), &[])?;
        let mut wanted = Vec::new();
        for (kind, asked, address) in [
            (
                Kind::Socks,
                self.socks,
                socks.or_else(|| self.socks.then_some(DEFAULT_SOCKS)),
            ),
            (
                Kind::Http,
                self.http,
                http.or_else(|| self.http.then_some(DEFAULT_HTTP)),
            ),
            (Kind::Mixed, false, self.listen.as_deref()),
            (Kind::Dns, false, self.dns_listen.as_deref()),
        ] {
            match address {
                // `--socks-listen ''` is proxy-out's word for none.
                Some("") if !asked => {}
                Some(address) => wanted.push(self.one(kind, address)?),
                None => {}
            }
        }
        for text in &self.forward {
            let (listen, to) = forward_of(text)?;
            wanted.push(self.one(Kind::Forward(to.to_string()), &listen.to_string())?);
        }
        let egress = wanted.iter().any(|wanted| wanted.egress);
        if self.egress && !egress {
            return Err(Failure::Value(
                "--egress must be used together with --socks".into(),
            ));
        }
        Ok(wanted)
    }

    fn one(&self, kind: Kind, address: &str) -> Result<Wanted, Failure> {
        let flag = kind.flag();
        let addr: Addr = address
            .parse()
            .map_err(|error| Failure::Value(format!("{flag}: {error}")))?;
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        // The daemon is in another directory.
        let addr = match addr {
            Addr::Unix(path) => Addr::Unix(absolute(&path)),
            tcp => tcp,
        };
        Ok(Wanted {
            address: addr.to_string(),
            auth_file: match kind {
                Kind::Forward(_) | Kind::Dns => None,
                _ => self.auth_file.as_ref().map(absolute),
            },
            allow_unauthenticated: self.allow_unauthenticated,
            egress: self.egress && matches!(kind, Kind::Socks | Kind::Mixed),
            max_connections: self.max_connections,
            max_connections_per_client: self.max_connections_per_client,
            dns_upstream: match kind {
                Kind::Dns => self.dns_upstream.clone(),
                _ => None,
            },
            pac: match kind {
                Kind::Http | Kind::Mixed => self.pac.clone(),
                _ => PacArgs::default(),
            },
            kind,
        })
    }
}

impl Connect {
    pub(crate) async fn run(self, verbose: u8) -> Result<(), Failure> {
        let daemon = Daemon::new(Home::locate()?);
        self.policy.path()?;
        let listeners = self.listen.wanted()?;
        let args = KubeconfigArgs::from(self.kube);
        let loaded = load(&args, &Env::of_process())?;
        let steps = Steps::new();
        steps.done(&format!(
            "context {} of {}",
            loaded.context.as_deref().unwrap_or("-"),
            loaded.server
        ));
        // A credential plugin may ask questions now, here, and not in the background.
        let (client, _) = reach(loaded.config.clone()).await?;
        let uid = probe::api(&client, &loaded.namespace).await?;
        steps.done(&format!("namespace {}", loaded.namespace));
        let id = identity::id(uid.as_deref(), &loaded.server, &loaded.namespace);
        let policy = (self.policy != PolicyArgs::default()).then_some(self.policy);
        let ask = ask(id, &args, &loaded, policy, listeners)?;
        // Before the connection is there, so that no signal finds it without anybody to end it.
        let mut termination = self.foreground.then(Termination::new).transpose()?;
        let opened = tokio::select! {
            opened = open(&daemon, verbose, &ask, &steps) => opened?,
            ended = async {
                match &mut termination {
                    Some(termination) => termination.next().await,
                    None => std::future::pending().await,
                }
            } => {
                forget(&daemon, &ask.id).await?;
                return ended.result();
            }
        };
        even_unheard(say(&opened))?;
        match termination {
            Some(termination) => stay(&daemon, &opened.id, termination).await,
            None => Ok(()),
        }
    }
}

fn ask(
    id: String,
    args: &KubeconfigArgs,
    loaded: &Loaded,
    policy: Option<PolicyArgs>,
    listeners: Vec<Wanted>,
) -> Result<Ask, Failure> {
    Ok(Ask {
        id,
        cluster: Cluster {
            server: loaded.server.clone(),
            name: loaded.cluster.clone(),
            context: loaded.context.clone(),
            namespace: loaded.namespace.clone(),
        },
        source: Source::new(args, loaded),
        kubeconfig: serde_json::to_value(loaded.kubeconfig()).map_err(anyhow::Error::from)?,
        policy,
        listeners,
    })
}

/// Asks until there is a daemon that is not about to end.
async fn open(daemon: &Daemon, verbose: u8, ask: &Ask, steps: &Steps) -> Result<Opened, Failure> {
    let until = Instant::now() + ENDING;
    loop {
        daemon.ensure(verbose).await?;
        match daemon.connect(ask, |step| steps.done(step)).await {
            Ok(opened) => return Ok(opened),
            Err(fault) if fault.ending && Instant::now() < until => {
                sleep(Duration::from_millis(50)).await;
            }
            Err(fault) => return Err(Failure::Told(fault)),
        }
    }
}

/// What has happened, as it happens.
struct Steps {
    terminal: bool,
}

impl Steps {
    fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn done(&self, what: &str) {
        let what = out::escaped(what);
        match self.terminal {
            true => out::aside(format_args!(" \u{2713} {what}")),
            false => out::aside(what),
        }
    }
}

fn say(opened: &Opened) -> Result<(), Failure> {
    let id = &opened.id;
    for listener in &opened.listeners {
        let what = match &listener.wanted.kind {
            Kind::Socks => "SOCKS5 proxy".to_owned(),
            Kind::Http => "HTTP proxy".to_owned(),
            Kind::Mixed => "SOCKS5 and HTTP proxy".to_owned(),
            Kind::Forward(to) => format!("forward to {to}"),
            Kind::Dns => "DNS (UDP and TCP)".to_owned(),
        };
        let begun = match listener.already {
            true => "Found",
            false => "Started",
        };
        out::line(format_args!(
            "{begun} managed local {what} for connection {id} on {}",
            listener.bound
        ))?;
    }
    out::line(format_args!("Connection ID: {id}"))?;
    for listener in &opened.listeners {
        let Ok(addr) = listener.bound.parse() else {
            continue;
        };
        let (socks, http) = match listener.wanted.kind {
            Kind::Socks => (true, false),
            Kind::Http => (false, true),
            Kind::Mixed => (true, true),
            Kind::Forward(_) => (false, false),
            Kind::Dns => {
                say_dns(&addr, &opened.endings)?;
                (false, false)
            }
        };
        say_hints(&addr, socks, http)?;
    }
    match opened.listeners.is_empty() {
        true => out::line(
            "Nothing listens yet, and this program makes no VPN: add --socks, --http, --listen ADDR, --dns-listen ADDR or --forward",
        ),
        false => say_scope(),
    }
}

/// Ends what may have been opened; that there is nothing is as good.
async fn forget(daemon: &Daemon, id: &str) -> Result<(), Failure> {
    match daemon.disconnect(Some(id), true).await {
        Err(Failure::Told(fault)) if fault.exit == 51 => Ok(()),
        other => other.map(drop),
    }
}

/// Waits for this command's end or the connection's, whichever is first.
async fn stay(daemon: &Daemon, id: &str, mut termination: Termination) -> Result<(), Failure> {
    let ended = tokio::select! {
        ended = daemon.ended(id) => return ended,
        ended = termination.next() => ended,
    };
    tokio::select! {
        disconnected = daemon.disconnect(Some(id), false) => drop(disconnected?),
        _ = termination.next() => drop(daemon.disconnect(Some(id), true).await?),
    }
    ended.result()
}
