//! `kubevpn run`.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use kubevpn_client::{Env, KubeconfigArgs, load};
use kubevpn_proxy::{self as proxy, Backend, Bound, Server, own};
use tokio::process::Command;

use super::at::{AtArgs, ProxyAddresses, exceptions, kubectl_hosts, of_daemon_for_run};
use super::child::{Signals, ended, not_run, wait};
use super::env::{known_exceptions, own_proxies};
use super::env_from::{EnvFromArgs, Variables};
use super::forwards::Forwards;
use super::isolated::IsolationArgs;
use super::kube::{KubeArgs, TOKEN};
use super::listen::{AUTH, credentials_of_environment};
use super::policy::PolicyArgs;
use super::reach::{answers, reach};
use crate::config;
use crate::exit::Failure;
use crate::{out, terminal};

/// Run a command with a proxy into the cluster in its environment
///
/// The proxy is the one at --use-http ADDR or --use-socks ADDR. Without these flags, it is that of the open connection to the
/// same cluster, context and namespace (`kubevpn connect --http`), if it has an HTTP listener without a password. Otherwise it
/// is a temporary proxy on free ports of 127.0.0.1, which ends with the command. The command gets the variables of `kubevpn
/// env`, JAVA_TOOL_OPTIONS for Java and NODE_USE_ENV_PROXY for Node. Signals are passed on to the command, and kubevpn exits
/// with its exit code. With KUBEVPN_AUTH, the proxy is always a temporary one that asks for that user and password; the command
/// gets them in the URLs of the proxies and does not get KUBEVPN_AUTH.
///
/// For programs that read none of these variables (psql, redis-cli, ssh, Node before 24, Python's aiohttp without trust_env),
/// use --forward or --isolated.
///
/// With --isolated (Linux), there is no proxy: the command runs in a network of its own, in which every TCP connection and
/// every DNS lookup of any program leads into the cluster. It does not need root. UDP other than DNS is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # a request by name
  kubevpn run -- curl http://productpage.default:9080

  # a shell in which everything goes through the proxy
  kubevpn run -n shop -- bash

  # a program that knows no proxy
  kubevpn run --forward 5432:db:5432 -- psql -h localhost

  # with a proxy that runs already
  kubevpn run --use-http 127.0.0.1:3128 -- python3 fetch.py

  # any program, whole, in the cluster's network (Linux)
  kubevpn run --isolated -- psql -h db.shop

  # the same with the environment of a Deployment's container
  kubevpn run --isolated --env-from deploy/web -- ./web")]
pub(crate) struct Run {
    #[command(flatten)]
    at: AtArgs,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Forward a local port to one host and port while the command runs. FORWARD is PORT:HOST:PORT. For port 0, a free port is
    /// used: KUBEVPN_FORWARD_1 contains its IP:PORT, and {} in COMMAND is replaced by its PORT, or {2} by that of a second
    /// forward
    #[arg(long, value_name = "FORWARD", conflicts_with_all = ["http", "socks", "isolated"], help_heading = "Listeners")]
    forward: Vec<String>,
    #[command(flatten)]
    isolation: IsolationArgs,
    #[command(flatten)]
    environment: EnvFromArgs,
    /// Command to run, with its arguments
    #[arg(
        required_unless_present = "env_file",
        trailing_var_arg = true,
        value_name = "COMMAND",
        help_heading = "Arguments"
    )]
    command: Vec<OsString>,
}

impl Run {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let environment = &self.environment;
        if self.command.is_empty() {
            environment.read_alone(self.kube).await?;
            return Ok(());
        }
        if self.isolation.is_wanted()? {
            if self.at.named()?.is_some() {
                return Err(Failure::value(
                    "an isolated command uses no proxy: leave --use-http and --use-socks out",
                ));
            }
            let policy = self.policy.policy()?;
            let status = self
                .isolation
                .run(&self.command, self.kube, &policy, environment)
                .await?;
            return ended(status);
        }
        if let Some(proxy) = self.at.named()? {
            if self.policy != config::usual::<PolicyArgs>() {
                return Err(Failure::value(
                    "the flags about names are those of the proxy: give them to the one that --use-http or --use-socks names",
                ));
            }
            let given = environment.read_alone(self.kube.clone()).await?;
            let hosts = kubectl_hosts(self.kube)?;
            let none = Forwards::default();
            let status = run(&self.command, proxy, &hosts, &none, &given).await?;
            return ended(status);
        }
        let policy = self.policy.policy()?;
        let args = KubeconfigArgs::from(self.kube.clone());
        let loaded = load(&args, &Env::of_process())?;
        let credentials = credentials_of_environment()?;
        if credentials.is_none()
            && self.forward.is_empty()
            && let Some(proxy) = of_daemon_for_run(&args, &loaded, &policy).await
        {
            let given = environment.read_alone(self.kube).await?;
            let none = Forwards::default();
            let status = run(&self.command, proxy, &loaded.hosts, &none, &given).await?;
            return ended(status);
        }
        let login = credentials
            .is_some()
            .then(|| std::env::var(AUTH).ok())
            .flatten();
        let mut forwards = Forwards::bind(&self.forward).await?;
        let listening = own(credentials).await?;
        let forwarded = forwards.bound.iter().filter_map(Bound::address);
        let own = listening.addresses().into_iter().chain(forwarded).collect();
        let config = policy.stack(&loaded.namespace, own);
        let (client, api_server) = reach(loaded.config).await?;
        answers(&client, &loaded.server).await?;
        let given = environment.read(&client, &loaded.namespace).await?;
        let connect = proxy::connect(client, api_server, config);
        let proxy = ProxyAddresses {
            http: listening.addresses().first().copied(),
            socks: listening.addresses().last().copied(),
            login: login
                .as_deref()
                .and_then(|text| text.lines().next())
                .map(str::to_owned),
        };
        let mut server = Server::new(Backend::of_cluster(connect), listening.clients);
        listening
            .bound
            .into_iter()
            .for_each(|bound| server.add(bound));
        forwards.bound.drain(..).for_each(|bound| server.add(bound));
        let words = forwards.in_words(&self.command);
        let status = run(&words, proxy, &loaded.hosts, &forwards, &given).await?;
        // Background processes of the command are not waited for: `run` ends with the command.
        server.end(Duration::ZERO, std::future::pending()).await;
        ended(status)
    }
}

async fn run(
    words: &[OsString],
    proxy: ProxyAddresses,
    hosts: &[String],
    forwards: &Forwards,
    given: &Variables,
) -> Result<ExitStatus, Failure> {
    let Some((program, rest)) = words.split_first() else {
        return Err(Failure::value("specify the command after --"));
    };
    let no_proxy = exceptions(hosts, &known_exceptions());
    let java = std::env::var("JAVA_TOOL_OPTIONS").unwrap_or_default();
    // Signals are handled before the command starts, so that none is lost.
    let mut signals = Signals::new()?;
    let mut command = Command::new(program);
    for name in proxy.unset() {
        command.env_remove(name);
    }
    command
        .args(rest)
        .envs(given.iter())
        .envs(proxy.variables(&no_proxy, &own_proxies()))
        .env("JAVA_TOOL_OPTIONS", proxy.java(&no_proxy, &java))
        .env("NODE_USE_ENV_PROXY", "1")
        .envs(forwards.variables())
        .env_remove(AUTH)
        .env_remove(TOKEN);
    let mut child = command.spawn().map_err(|error| not_run(program, error))?;
    let status = wait(&mut child, &mut signals).await?;
    let is_seen = terminal::is_there() && !out::is_hushed();
    if let Some(code) = status.code().filter(|_| is_seen && forwards.is_empty())
        && let Some(hint) = unaware(program, code)
    {
        out::aside(hint);
    }
    Ok(status)
}

/// Advice for a program that reads no proxy variables and ended with the exit code of a failed connection: its own message does
/// not mention proxies.
fn unaware(program: &OsStr, code: i32) -> Option<String> {
    // The usual port of the program, and the exit code for a failed connection, which differs between programs.
    const UNAWARE: [(&str, u16, Option<i32>); 14] = [
        ("psql", 5432, Some(2)),
        ("pg_dump", 5432, None),
        ("mysql", 3306, None),
        ("mariadb", 3306, None),
        ("redis-cli", 6379, None),
        ("mongosh", 27017, None),
        ("nc", 80, None),
        ("ncat", 80, None),
        ("telnet", 80, None),
        ("ssh", 22, Some(255)),
        ("dig", 53, None),
        ("host", 53, None),
        ("nslookup", 53, None),
        ("ping", 0, None),
    ];
    let name = Path::new(program).file_name()?.to_str()?;
    let (_, port, failed) = UNAWARE.iter().find(|(unaware, ..)| *unaware == name)?;
    if code == 0 || failed.is_some_and(|failed| failed != code) {
        return None;
    }
    let mut hint = format!("kubevpn: {name} reads no variables about proxies: ");
    let isolated = "kubevpn run --isolated";
    match (name, *port) {
        ("ping", _) => hint += "and a port-forward carries TCP alone: try kubevpn resolve HOST",
        (_, 53) => hint += &format!("try {isolated} -- {name}, or kubevpn resolve HOST"),
        ("ssh", _) => {
            hint += &format!("try ssh -o ProxyCommand='kubevpn nc %h %p', or {isolated} -- ssh")
        }
        (_, port) => {
            hint += &format!(
                "try kubevpn run --forward {port}:HOST:{port} -- {name}, with localhost for the host, or {isolated} -- {name}"
            );
        }
    }
    Some(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_read_no_variables() {
        let hint = |program: &str, code| unaware(OsStr::new(program), code).unwrap_or_default();
        assert!(hint("/usr/bin/psql", 2).contains("--forward 5432:HOST:5432 -- psql"));
        assert!(hint("ssh", 255).contains("ProxyCommand"));
        assert!(hint("dig", 9).contains("kubevpn resolve"));
        assert!(hint("ping", 2).contains("TCP alone"));
        for (program, code) in [("curl", 6), ("psql", 1), ("ssh", 1), ("redis-cli", 0)] {
            assert_eq!(hint(program, code), "", "{program} {code}");
        }
    }
}
