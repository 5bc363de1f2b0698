//! `kubevpn run --isolated`: a command in a network of its own.

use std::ffi::OsString;
use std::num::NonZeroU16;
use std::process::ExitStatus;
use std::str::FromStr;

use clap::ValueEnum;
use kubevpn_conn::Addr;
use kubevpn_proxy::{Policy, TargetPattern};

use super::env_from::EnvFromArgs;
use super::kube::KubeArgs;
use crate::exit::Failure;
use crate::out;

/// Isolation of a command
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Isolation")]
pub(crate) struct IsolationArgs {
    /// Run the command in a network of its own, in which every connection leads into the cluster (Linux)
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "always"
    )]
    isolated: Option<IsolatedMode>,
    #[command(flatten)]
    inside: InsideArgs,
}

/// The network of an isolated command
#[derive(Debug, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Isolation")]
pub(crate) struct InsideArgs {
    /// End with the command, without waiting for its background processes, which lose their network
    #[arg(long)]
    no_wait: bool,
    /// Let the command connect only to TARGET: a name, *.NAME, an address or a range of addresses, with :PORT to allow one
    /// port only. May be given more than once
    #[arg(long, value_name = "TARGET")]
    allow: Vec<TargetPattern>,
    /// Never let the command connect to TARGET, by any of its names or addresses. May be given more than once
    #[arg(long, value_name = "TARGET")]
    deny: Vec<TargetPattern>,
    /// Make port PORT of the command's loopback reachable from this machine, at the same port of 127.0.0.1, or at
    /// the ADDR and PORT that precede it. May be given more than once
    #[arg(long, value_name = "[ADDR:]PORT[:PORT]")]
    publish: Vec<Publish>,
}

/// A port in the isolated network, and its address on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Publish {
    listen: Addr,
    port: NonZeroU16,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (listen, port) = text.rsplit_once(':').unwrap_or((text, text));
        let port = port.parse::<NonZeroU16>();
        let listen = listen.parse::<Addr>();
        match (listen, port) {
            (Ok(listen @ Addr::Tcp(_)), Ok(port)) => Ok(Self { listen, port }),
            _ => Err(
                "write PORT, PORT:PORT or ADDR:PORT:PORT, with IPv6 addresses in brackets".into(),
            ),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IsolatedMode {
    /// Fail if that is not possible
    Always,
    /// If that is not possible, set proxy variables instead
    Auto,
}

/// Network namespaces exist only on Linux.
pub(super) const IS_KNOWN_HERE: bool = cfg!(target_os = "linux");

/// Tests whether a command can be isolated on this machine. The error has the reason and advice. Blocks for some milliseconds.
pub(super) fn possible() -> Result<(), String> {
    system::possible().map_err(|why| why.to_string())
}

impl IsolationArgs {
    /// Whether to isolate the command; for `auto`, whether that is possible.
    pub(super) fn is_wanted(&self) -> Result<bool, Failure> {
        match self.isolated {
            None if self.inside != InsideArgs::default() => Err(Failure::value(
                "--no-wait, --allow, --deny and --publish are about an isolated command: add --isolated",
            )),
            None => Ok(false),
            Some(IsolatedMode::Always) => Ok(true),
            // Rules require isolation: proxy variables would not enforce them.
            Some(IsolatedMode::Auto) if self.inside.has_rules() => Ok(true),
            Some(IsolatedMode::Auto) => match possible() {
                Ok(()) => Ok(true),
                Err(why) => {
                    out::aside(format_args!(
                        "not isolated, using proxy environment variables: {}",
                        out::escaped(&why)
                    ));
                    Ok(false)
                }
            },
        }
    }

    pub(super) async fn run(
        &self,
        words: &[OsString],
        kube: KubeArgs,
        policy: &Policy,
        environment: &EnvFromArgs,
    ) -> Result<ExitStatus, Failure> {
        self.inside
            .run(words, kube, policy, environment, false)
            .await
    }
}

impl InsideArgs {
    fn has_rules(&self) -> bool {
        !self.allow.is_empty() || !self.deny.is_empty()
    }

    /// Runs the command. `prompt`: whether a shell's prompt shows the namespace.
    pub(super) async fn run(
        &self,
        words: &[OsString],
        kube: KubeArgs,
        policy: &Policy,
        environment: &EnvFromArgs,
        prompt: bool,
    ) -> Result<ExitStatus, Failure> {
        system::run(words, kube, policy, self, environment, prompt).await
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::ffi::{OsStr, OsString};
    use std::net::Ipv4Addr;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;
    use std::sync::Arc;
    use std::time::Duration;

    use kubevpn_client::{Env, KubeconfigArgs, OWN_PROXIES, load};
    use kubevpn_conn::{Closed, Drain, Gate, Limits, Listener};
    use kubevpn_daemon::{ApiError, Code};
    use kubevpn_namespace::{
        ADDRESS_V4, EnterError, Keeper, Members, NetworkSockets, PendingNamespace, Porter,
    };
    use kubevpn_proxy::{
        self as proxy, Backend, Guard, Inside, InsideSockets, Policy, Rules, allow_for, endings,
    };
    use kubevpn_stack::OwnListeners;
    use kubevpn_target::{ConnectError, Host, Origin, Refusal, Target};
    use tokio::net::TcpStream;
    use tokio::process::{Child, Command};
    use tokio::task::{JoinSet, spawn_blocking};
    use tower::util::BoxCloneSyncService;

    use super::{InsideArgs, Publish};
    use crate::cli::child::{Signals, not_run, wait};
    use crate::cli::env_from::{EnvFromArgs, Variables};
    use crate::cli::kube::{KubeArgs, TOKEN};
    use crate::cli::listen::AUTH;
    use crate::cli::reach::{answers, reach};
    use crate::exit::Failure;
    use crate::out;

    /// Domain that is assumed if the cluster's cannot be read.
    const USUAL_DOMAIN: &str = "cluster.local";

    /// Variables that are removed, because a proxy on this machine cannot be reached from the isolated network.
    const PROXIES: [&str; 4] = ["http_proxy", "https_proxy", "all_proxy", "ftp_proxy"];

    pub(super) use kubevpn_namespace::possible;

    pub(super) async fn run(
        words: &[OsString],
        kube: KubeArgs,
        policy: &Policy,
        isolation: &InsideArgs,
        environment: &EnvFromArgs,
        prompt: bool,
    ) -> Result<ExitStatus, Failure> {
        let Some(program) = words.first() else {
            return Err(Failure::value("specify the command after --"));
        };
        let loaded = load(&KubeconfigArgs::from(kube), &Env::of_process())?;
        let config = policy.stack(&loaded.namespace, OwnListeners::default());
        let (client, api_server) = reach(loaded.config).await?;
        answers(&client, &loaded.server).await?;
        let variables = environment.read(&client, &loaded.namespace).await?;
        let connect = proxy::connect(client, api_server, config);
        let backend = Backend::of_cluster(connect.clone());
        let endings = match &backend.cluster {
            Some(cluster) => endings(cluster).await,
            None => Vec::new(),
        };
        let domain = endings.first().map_or(USUAL_DOMAIN, String::as_str);
        let resolv_conf = resolv_conf(&loaded.namespace, domain);
        let (allow, deny) = (isolation.allow.clone(), isolation.deny.clone());
        let rules = Rules::new(allow, deny, &loaded.namespace, domain);
        let guard = (!rules.is_empty()).then(|| Guard::new(rules, &connect));

        let prompt = prompt.then(|| format!("kubevpn:{}", loaded.namespace));
        let (entry, mut child, mut signals) = start(words, &variables, prompt)?;
        // The limit is raised after the start, so that the command keeps its own.
        allow_for(Limits::default().total);
        let pid = child.id().unwrap_or_default();
        let making = spawn_blocking(move || -> Result<_, EnterError> {
            let sockets = entry.prepare(pid, resolv_conf)?;
            let keeper = Keeper::start(&sockets.members)?;
            Ok((sockets, entry, keeper))
        });
        let made = making.await;
        let (sockets, entry, keeper) = match made.map_err(|error| Failure::Other(error.into()))? {
            Ok(made) => made,
            Err(error) => return not_made(child, error).await,
        };
        let NetworkSockets {
            listeners,
            dns,
            diagnostics,
            members,
        } = sockets;
        let sockets = InsideSockets {
            listeners,
            dns,
            address: ADDRESS_V4.into(),
            closed: Some(Closed::asked_by(diagnostics)),
            guard,
        };
        let inside = Inside::serve(backend, policy.outside, sockets)
            .map_err(|error| Failure::Other(error.into()))?;
        let (published, members) = publish(&isolation.publish, pid, members).await?;
        let started = spawn_blocking(move || entry.start()).await;
        let status = match started.map_err(|error| Failure::Other(error.into()))? {
            Ok(()) => wait(&mut child, &mut signals).await?,
            Err(error) => {
                let _ended = child.wait().await;
                return Err(not_run(program, error));
            }
        };
        if !isolation.no_wait {
            wait_for_rest(program, &members, &mut signals).await;
        }
        drop((published, keeper));
        inside.end(Duration::ZERO).await;
        Ok(status)
    }

    /// Listens on this machine for servers in the isolated network, until the returned value is dropped.
    async fn publish(
        wanted: &[Publish],
        pid: u32,
        members: Members,
    ) -> Result<(JoinSet<()>, Members), Failure> {
        let mut accepting = JoinSet::new();
        if wanted.is_empty() {
            return Ok((accepting, members));
        }
        let porter = spawn_blocking(move || Porter::enter(pid)).await;
        let porter = porter
            .map_err(|error| Failure::Other(error.into()))?
            .map_err(|error| failure(&error))?;
        let members = members.without(porter.pid());
        let porter = Arc::new(porter);
        let gate = Gate::new(Limits::default());
        for Publish { listen, port } in wanted {
            let listener = Listener::bind(listen).await.map_err(|error| {
                let sentence = format!("--publish: {error}: {}", error.source);
                Failure::Api(ApiError::new(Code::AddressInUse, sentence))
            })?;
            out::aside(format_args!(
                "port {port} of the command is published at {}",
                listener.addr()
            ));
            let to = Target {
                host: Host::from(Ipv4Addr::LOCALHOST),
                port: *port,
                origin: Origin::default(),
            };
            let connect = connect_inside(porter.clone());
            let serving = listener.serve(gate.clone(), Drain::new(), move |client| {
                let (to, connect) = (to.clone(), connect.clone());
                async move {
                    let _ended =
                        kubevpn_forward::serve_connection(client, &to, connect, None).await;
                }
            });
            accepting.spawn(serving);
        }
        Ok((accepting, members))
    }

    /// Connects to a port of the isolated network's loopback.
    fn connect_inside(porter: Arc<Porter>) -> BoxCloneSyncService<Target, TcpStream, ConnectError> {
        BoxCloneSyncService::new(tower::service_fn(move |target: Target| {
            let porter = porter.clone();
            async move {
                let port = target.port.get();
                let connecting = spawn_blocking(move || porter.connect(port)).await;
                let connected = connecting.map_err(std::io::Error::other).flatten();
                let connected = connected.and_then(TcpStream::from_std);
                connected.map_err(|error| {
                    let sentence = format!("nothing listens on port {port} of the command");
                    ConnectError::new(Refusal::Refused, sentence).with_source(error)
                })
            }
        }))
    }

    /// Starts the helper, which becomes the command. The helper is killed when this thread ends, so this has to be the main
    /// thread.
    fn start(
        words: &[OsString],
        variables: &Variables,
        prompt: Option<String>,
    ) -> Result<(PendingNamespace, Child, Signals), Failure> {
        let (command, entry) = PendingNamespace::new(words).map_err(|error| failure(&error))?;
        // Signals are handled before the start, so that none is lost.
        let signals = Signals::new()?;
        let mut command = Command::from(command);
        for name in PROXIES {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        for name in [OWN_PROXIES, AUTH, TOKEN] {
            command.env_remove(name);
        }
        // The container's variables come last and may set a proxy: the Pod's proxy can be reached from the isolated network.
        command.envs(variables.iter());
        command.env("KUBEVPN_ISOLATED", "1");
        if let Some(prompt) = prompt {
            // The bashrc of Debian and its derivatives shows this variable before the prompt.
            command.env("debian_chroot", prompt);
        }
        let spawned = command.spawn();
        let child = spawned.map_err(|error| Failure::NotIsolated {
            message: "an isolated network cannot be made here: /proc/self/exe cannot be run".into(),
            cause: Some(error.to_string()),
        })?;
        Ok((entry, child, signals))
    }

    /// A signal that ended the helper counts as one that ended the command.
    async fn not_made(mut child: Child, error: EnterError) -> Result<ExitStatus, Failure> {
        match child.wait().await {
            Ok(status) if status.signal().is_some() => Ok(status),
            _ => Err(failure(&error)),
        }
    }

    fn failure(error: &EnterError) -> Failure {
        Failure::NotIsolated {
            message: error.to_string(),
            cause: Some(error.source.to_string()),
        }
    }

    /// The `resolv.conf` of a Pod in the namespace.
    fn resolv_conf(namespace: &str, domain: &str) -> String {
        format!(
            "nameserver {ADDRESS_V4}\nsearch {namespace}.svc.{domain} svc.{domain} {domain}\noptions ndots:5\n"
        )
    }

    /// Waits for the command's background processes, which keep their network until they end or a signal is received.
    async fn wait_for_rest(program: &OsStr, members: &Members, signals: &mut Signals) {
        match members.now() {
            Ok(left) if !left.is_empty() => out::aside(format_args!(
                "waiting for {} that {} left behind; Ctrl-C ends their network",
                match left.len() {
                    1 => "a process".to_owned(),
                    several => format!("{several} processes"),
                },
                out::escaped(&program.to_string_lossy())
            )),
            Ok(_) => return,
            Err(error) => return tracing::debug!(%error, "the processes inside are not known"),
        }
        tokio::select! {
            gone = members.gone() => if let Err(error) = gone {
                tracing::debug!(%error, "the processes inside are not known");
            },
            (signal, _) = signals.any() => tracing::debug!(?signal, "stopped waiting"),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn names_are_completed_as_in_a_pod() {
            assert_eq!(
                resolv_conf("shop", "corp.test"),
                "nameserver 198.18.0.1\nsearch shop.svc.corp.test svc.corp.test corp.test\noptions ndots:5\n"
            );
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::ffi::OsString;
    use std::process::ExitStatus;

    use kubevpn_proxy::Policy;

    use crate::cli::env_from::EnvFromArgs;
    use crate::cli::kube::KubeArgs;
    use crate::exit::Failure;

    const WHY: &str = "an isolated network cannot be made here: it takes the namespaces of Linux";

    pub(super) fn possible() -> Result<(), &'static str> {
        Err(WHY)
    }

    pub(super) async fn run(
        _: &[OsString],
        _: KubeArgs,
        _: &Policy,
        _: &super::InsideArgs,
        _: &EnvFromArgs,
        _: bool,
    ) -> Result<ExitStatus, Failure> {
        Err(Failure::NotIsolated {
            message: WHY.into(),
            cause: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use clap::error::ErrorKind;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        isolation: IsolationArgs,
        #[arg(last = true)]
        words: Vec<String>,
    }

    #[test]
    fn when_it_is_isolated() {
        let parse = |args: &[&str]| -> Result<_, ErrorKind> {
            let args = [&["test"][..], args, &["--", "x"]].concat();
            let parsed = Command::try_parse_from(args).map_err(|error| error.kind())?;
            assert_eq!(parsed.words, ["x"]);
            let isolation = parsed.isolation;
            // Flags about an isolated command are refused without `--isolated`.
            let is_wrong = isolation.isolated.is_none() && isolation.is_wanted().is_err();
            Ok((isolation.isolated, isolation.inside.no_wait, is_wrong))
        };
        assert_eq!(parse(&[]), Ok((None, false, false)));
        assert_eq!(
            parse(&["--isolated"]),
            Ok((Some(IsolatedMode::Always), false, false))
        );
        let auto = ["--isolated=auto", "--no-wait"];
        assert_eq!(parse(&auto), Ok((Some(IsolatedMode::Auto), true, false)));
        assert_eq!(parse(&["--no-wait"]), Ok((None, true, true)));
        assert_eq!(parse(&["--isolated=x"]), Err(ErrorKind::InvalidValue));
    }

    #[test]
    fn publish_is_parsed() {
        let read = |text: &str| {
            let published: Publish = text.parse().ok()?;
            Some((published.listen.to_string(), published.port.get()))
        };
        for (text, listen, port) in [
            ("8080", "127.0.0.1:8080", 8080),
            ("9000:8080", "127.0.0.1:9000", 8080),
            ("0:8080", "127.0.0.1:0", 8080),
            ("0.0.0.0:9000:8080", "0.0.0.0:9000", 8080),
            ("[::1]:9000:8080", "[::1]:9000", 8080),
        ] {
            assert_eq!(read(text), Some((listen.into(), port)), "{text}");
        }
        for text in [
            "",
            "0",
            "x",
            "8080:",
            "8080:0",
            "unix:/tmp/x:80",
            "127.0.0.1:80",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
