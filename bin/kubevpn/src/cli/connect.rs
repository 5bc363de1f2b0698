//! `kubevpn connect`.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use kubevpn_client::{Env, KubeconfigArgs, Loaded, load};
use kubevpn_conn::Addr;
use kubevpn_daemon::api::{
    ClusterRef, ConnectRequest, ConnectionInfo, ConnectionQuery, KubeconfigSelection,
    OpenedConnection,
};
use kubevpn_daemon::log::LogLevel;
use kubevpn_daemon::{Code, DaemonClient, StateDir, Termination, identity};
use kubevpn_proxy::{ListenerSpec, Policy, Protocol, probe};
use kubevpn_target::Refusal;
use tokio::time::{Instant, sleep};

use super::kube::KubeArgs;
use super::listen::{AUTH, ListenerArgs, ProtocolArgs, usual_socks, warn_of_readers};
use super::policy::PolicyArgs;
use super::reach::{reach, server_named};
use super::serve::{self, result, say_hints, say_pages, termination};
use super::service;
use super::suggest::missing_namespace;
use crate::exit::Failure;
use crate::notify;
use crate::out::{self, even_unheard};
use crate::progress;

/// Time limit for waiting until a daemon that is draining has ended.
const ENDING: Duration = Duration::from_secs(30);

/// Open a connection in the background, with local proxies
///
/// A per-user background daemon keeps the connection open until `kubevpn disconnect`, and restores it after the daemon was
/// killed. If the connection is already open, the listeners that it lacks are added. A new connection for which no listener is
/// named gets a SOCKS5 proxy on 127.0.0.1:1080. With -v, the log of the connection is more detailed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # a SOCKS5 proxy for the current context, until it is disconnected
  kubevpn connect
  curl --proxy socks5h://127.0.0.1:1080 http://productpage.default.svc.cluster.local:9080

  # an HTTP proxy beside it, on the same connection
  kubevpn connect --http

  # another namespace has a connection and a port of its own
  kubevpn connect -n team-a --listen-socks 127.0.0.1:1081")]
pub(crate) struct ConnectCommand {
    /// Run in the foreground, and disconnect when interrupted, when terminated, or when the terminal is closed
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
    #[command(flatten)]
    protocols: ProtocolArgs,
    /// Make the SOCKS listener dial every target from this machine, with its DNS and routes, and none in the cluster
    #[arg(long)]
    egress: bool,
    #[command(flatten)]
    more: ListenerArgs,
}

/// Listeners that the flags of `connect` ask for.
struct WantedListeners {
    specs: Vec<ListenerSpec>,
    /// Whether no flag names a listener; a new connection then gets the default one.
    is_usual: bool,
}

impl Listen {
    /// Listeners of the flags. Values are checked here, before the daemon is started.
    fn specs(mut self) -> Result<WantedListeners, Failure> {
        let auth = std::env::var_os(AUTH).is_some_and(|value| !value.is_empty());
        if auth && self.more.auth_file.is_none() {
            return Err(Failure::value(format!(
                "{AUTH} is not kept for the daemon, which would have to write it down: use --auth-file"
            )));
        }
        self.protocols.apply(&mut self.more)?;
        if let Some(file) = &self.more.auth_file {
            warn_of_readers(file);
        }
        let mut specs = self.more.specs("", "")?;
        // --egress opens the network of this machine: it gets no default listener, only one that is named.
        let is_usual = specs.is_empty() && !self.egress;
        if is_usual {
            specs = self.more.specs(usual_socks(), "")?;
        }
        // Paths become absolute, because the daemon runs in another directory.
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        for spec in &mut specs {
            spec.auth_file = spec.auth_file.as_ref().map(absolute);
            if let Addr::Unix(path) = &spec.address {
                spec.address = Addr::Unix(absolute(path));
            }
            spec.egress = self.egress && matches!(spec.protocol, Protocol::Socks | Protocol::Mixed);
        }
        if self.egress && !specs.iter().any(|spec| spec.egress) {
            return Err(Failure::value(
                "--egress is for a SOCKS listener: add --socks",
            ));
        }
        Ok(WantedListeners { specs, is_usual })
    }
}

impl ConnectCommand {
    pub(crate) async fn run(self, verbose: u8) -> Result<(), Failure> {
        let daemon = DaemonClient::new(StateDir::locate()?);
        let policy = self.policy.policy()?;
        let WantedListeners { specs, is_usual } = self.listen.specs()?;
        let args = KubeconfigArgs::from(self.kube);
        let loaded = load(&args, &Env::of_process())?;
        let steps = ConnectSteps::new();
        steps.done(&format!(
            "context {} of {}",
            loaded.context.as_deref().unwrap_or("-"),
            loaded.server
        ));
        for path in &loaded.once {
            steps.done(&format!(
                "{} can be read only once: what it says is kept, and not looked at again",
                path.display()
            ));
        }
        // A credential plugin can ask questions in this terminal, but not in the daemon.
        let (client, _) = reach(loaded.config.clone()).await?;
        let asked = probe::api(&client, &loaded.namespace);
        let uid = match progress::shown(server_named(&loaded.server), asked).await {
            Err(error) if error.refusal() == Refusal::NameNotFound => {
                let missing = missing_namespace(&client, &loaded.namespace).await;
                return Err(missing.map_or_else(|| error.into(), Failure::from));
            }
            asked => asked?,
        };
        steps.done(&format!("namespace {}", loaded.namespace));
        let id = identity::id(uid.as_deref(), &loaded.server, &loaded.namespace);
        let has_listeners = is_usual && has_listeners(&daemon, &args, &loaded).await?;
        let specs = if has_listeners { Vec::new() } else { specs };
        let mut request = request(id, &args, &loaded, specs)?;
        request.policy = (policy != Policy::default()).then_some(policy);
        request.log_level = (verbose > 0).then(|| LogLevel::of_verbosity(verbose));
        if !self.foreground {
            let opening = open(&daemon, &request, &steps);
            let opened = progress::shown("the connection to open", opening).await;
            let (opened, taken) = match opened {
                Err(Failure::Api(error)) if is_usual && error.code == Code::AddressInUse => {
                    // Nobody asked for this listener: a second connection is of use without it.
                    let taken = taken(&daemon, &request.listeners).await;
                    request.listeners.clear();
                    let opening = open(&daemon, &request, &steps);
                    let opened = progress::shown("the connection to open", opening).await?;
                    (opened, Some(taken))
                }
                opened => (opened?, None),
            };
            let example = service::example(&client, &loaded.namespace).await;
            let said = say(&opened, example.as_deref(), has_listeners, taken.as_deref());
            even_unheard(said)?;
            return say_page(&daemon, &opened).await;
        }
        // Signals are handled before the connection is made, so that a signal always disconnects it.
        let mut termination = termination()?;
        let opening = progress::shown("the connection to open", open(&daemon, &request, &steps));
        let opened = tokio::select! {
            opened = opening => opened?,
            ended = termination.next() => {
                forget(&daemon, &request.id).await?;
                return result(ended);
            }
        };
        let example = service::example(&client, &loaded.namespace).await;
        even_unheard(say(&opened, example.as_deref(), has_listeners, None))?;
        say_page(&daemon, &opened).await?;
        notify::ready(format_args!("connection {}", opened.id));
        stay(&daemon, &opened.id, termination).await
    }
}

fn request(
    id: String,
    args: &KubeconfigArgs,
    loaded: &Loaded,
    listeners: Vec<ListenerSpec>,
) -> Result<ConnectRequest, Failure> {
    Ok(ConnectRequest {
        id,
        cluster: ClusterRef::new(loaded),
        kubeconfig_selection: KubeconfigSelection::new(args, loaded),
        kubeconfig: serde_json::to_value(loaded.kubeconfig()).map_err(anyhow::Error::from)?,
        policy: None,
        listeners,
        log_level: None,
    })
}

/// Whether a connection of this kubeconfig, context and namespace is open and has a listener.
async fn has_listeners(
    daemon: &DaemonClient,
    args: &KubeconfigArgs,
    loaded: &Loaded,
) -> Result<bool, Failure> {
    if !daemon.ensure_if_needed().await? {
        return Ok(false);
    }
    let query = ConnectionQuery {
        cluster: ClusterRef::new(loaded),
        kubeconfig_selection: KubeconfigSelection::new(args, loaded),
        policy: None,
    };
    let connection = daemon.find_connection(&query).await?;
    Ok(connection.is_some_and(|connection| !connection.listeners.is_empty()))
}

/// The message that the usual listener's address is taken, with the connection that holds it if it is this daemon's.
async fn taken(daemon: &DaemonClient, usual: &[ListenerSpec]) -> String {
    let addresses: Vec<_> = usual.iter().map(|spec| spec.address.to_string()).collect();
    let holds = |connection: &&ConnectionInfo| {
        let mut listeners = connection.listeners.iter();
        listeners.any(|listener| addresses.contains(&listener.address))
    };
    let holder = match daemon.status().await {
        Ok(status) => match status.list.iter().find(holds) {
            Some(ConnectionInfo { id, namespace, .. }) => {
                format!("connection {id} (namespace {namespace})")
            }
            None => "another program".to_owned(),
        },
        Err(_) => "a connection or another program".to_owned(),
    };
    format!(
        "Connected, without a listener: {} is taken by {}. Add one with the same flags: kubevpn connect --socks 127.0.0.1:0",
        addresses.join(", "),
        out::escaped(&holder)
    )
}

/// Retries until a daemon answers that is not draining.
async fn open(
    daemon: &DaemonClient,
    request: &ConnectRequest,
    steps: &ConnectSteps,
) -> Result<OpenedConnection, Failure> {
    let until = Instant::now() + ENDING;
    loop {
        daemon.ensure().await?;
        match daemon.connect(request, |step| steps.done(step)).await {
            Ok(opened) => return Ok(opened),
            Err(error) if error.code == Code::Ending && Instant::now() < until => {
                sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Closes the connection if it was opened; a missing one is no failure.
async fn forget(daemon: &DaemonClient, id: &str) -> Result<(), Failure> {
    match daemon.disconnect(Some(id), true).await {
        Err(error) if error.code != Code::NoSuchConnection => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints events as they arrive.
struct ConnectSteps {
    terminal: bool,
}

impl ConnectSteps {
    fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn done(&self, what: &str) {
        if out::is_hushed() {
            return;
        }
        let what = out::escaped(what);
        match self.terminal {
            true => out::aside(format_args!(" \u{2713} {what}")),
            false => out::aside(what),
        }
    }
}

/// `has_others`: whether the connection has listeners that this command did not ask for. `taken`: why it has no usual listener.
fn say(
    opened: &OpenedConnection,
    example: Option<&str>,
    has_others: bool,
    taken: Option<&str>,
) -> Result<(), Failure> {
    let id = &opened.id;
    for listener in &opened.listeners {
        let begun = match listener.already {
            true => "Found",
            false => "Started",
        };
        out::line(format_args!(
            "{begun} managed local {} for connection {id} on {}",
            serve::service(&listener.spec.protocol),
            listener.bound
        ))?;
    }
    out::line(format_args!("Connection ID: {id}"))?;
    let listeners = opened.listeners.iter();
    let listeners = listeners.map(|listener| (&listener.bound, &listener.spec.protocol));
    say_hints(listeners, &opened.endings, example, Some("kubevpn env"))?;
    if let Some(taken) = taken {
        return out::note(taken);
    }
    match (opened.listeners.is_empty(), has_others) {
        (true, true) => out::note(
            "It was open, with its listeners: kubevpn status lists them; --socks, --http and --forward add one",
        ),
        (true, false) => out::note(
            "Connected, but no listener is configured. Add one: --socks, --http, --listen ADDR, --listen-dns ADDR or --forward",
        ),
        (false, _) => Ok(()),
    }
}

/// Prints the URL of the status page, if one was asked for.
async fn say_page(daemon: &DaemonClient, opened: &OpenedConnection) -> Result<(), Failure> {
    let mut listeners = opened.listeners.iter();
    if !listeners.any(|listener| listener.spec.protocol == Protocol::Admin) {
        return Ok(());
    }
    let pages = daemon.console(&opened.id).pages().await?;
    even_unheard(say_pages(&pages))
}

/// Waits for a signal or the end of the connection, whichever is first. A second signal cuts open connections.
async fn stay(
    daemon: &DaemonClient,
    id: &str,
    mut termination: Termination,
) -> Result<(), Failure> {
    let ended = tokio::select! {
        ended = daemon.ended(id) => return Ok(ended?),
        ended = termination.next() => ended,
    };
    notify::stopping(format_args!("disconnecting {id}"));
    let ending = daemon.disconnect(Some(id), false);
    tokio::select! {
        disconnected = progress::shown("open connections to finish", ending) => drop(disconnected?),
        _ = termination.next() => forget(daemon, id).await?,
    }
    result(ended)
}
