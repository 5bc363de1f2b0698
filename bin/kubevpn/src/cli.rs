//! The command line: a file per subcommand.

mod at;
mod bugreport;
mod check;
mod child;
pub(crate) mod complete;
mod completion;
mod config;
mod connect;
mod connection;
mod console;
mod daemon;
#[cfg(feature = "demo")]
mod demo;
mod disconnect;
mod env;
mod env_from;
mod forwards;
mod groups;
pub(crate) mod habits;
mod holder;
mod isolated;
mod kube;
mod listen;
mod login;
mod logs;
mod man;
mod nc;
mod open;
mod pac;
mod plugin;
mod policy;
mod port_forward;
mod proxy_out;
mod quit;
mod reach;
mod resolve;
mod run;
#[cfg(test)]
mod sample;
mod serve;
mod service;
mod services;
mod shell;
mod snippet;
mod status;
mod suggest;
mod tap;
mod top;
mod version;
mod which;

use std::ffi::OsString;
use std::time::Duration;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use kubevpn_client::Options;

use crate::config::ConfigFile;
use crate::exit::Failure;
use crate::telemetry::{LogArgs, LoggedSteps, Usual};

/// Reach the Services and Pods of a Kubernetes cluster from this machine
#[derive(Debug, Parser)]
#[command(
    name = "kubevpn",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  # a proxy for the current context, what is behind it, and a request
  kubevpn proxy-out
  kubevpn services
  curl --proxy socks5h://127.0.0.1:1080 http://productpage.default:9080

  # a program with the proxy in its environment
  kubevpn run -- python3 fetch.py

  # short and complete help of a command
  kubevpn run -h
  kubevpn run --help"
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    ProxyOut(Box<proxy_out::ProxyOut>),
    #[command(alias = "forward")]
    PortForward(Box<port_forward::PortForward>),
    Run(Box<run::Run>),
    Shell(Box<shell::ShellCommand>),
    Env(Box<env::EnvCommand>),
    Pac(Box<pac::PacCommand>),
    Connect(Box<connect::ConnectCommand>),
    Disconnect(disconnect::Disconnect),
    Quit(quit::Quit),
    Status(status::StatusCommand),
    Logs(logs::Logs),
    Tap(Box<tap::Tap>),
    Top(top::Top),
    #[command(visible_alias = "conn")]
    Connection(connection::ConnectionCommand),
    Daemon(daemon::DaemonCommand),
    #[command(alias = "svc")]
    Services(Box<services::ServicesCommand>),
    Open(Box<open::OpenCommand>),
    Nc(Box<nc::Nc>),
    Snippet(Box<snippet::Snippet>),
    Check(Box<check::CheckCommand>),
    Resolve(Box<resolve::ResolveCommand>),
    #[command(name = "bugreport")]
    BugReport(Box<bugreport::BugReport>),
    #[cfg(feature = "demo")]
    Demo(Box<demo::Demo>),
    Config(config::ConfigCommand),
    Completion(completion::Completion),
    Man(man::Man),
    Version(Box<version::VersionCommand>),
}

/// The clap command, with these defaults.
pub(crate) fn command(config: &ConfigFile) -> clap::Command {
    let command = groups::grouped(config.apply(Args::command()));
    match plugin::is_plugin() {
        true => plugin::renamed(command),
        false => command,
    }
}

/// Parses the command line, with these defaults.
pub(crate) fn parse(words: Vec<OsString>, config: &ConfigFile) -> Result<Args, clap::Error> {
    let mut command = command(config);
    let matches = command.try_get_matches_from_mut(words)?;
    Args::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Checks that each value of the settings is valid for its flag.
pub(crate) fn judged(config: ConfigFile) -> Result<ConfigFile, Failure> {
    for (key, values) in config.settings() {
        let flags = values.iter().map(|value| match value.as_str() {
            "true" => format!("--{key}"),
            value => format!("--{key}={value}"),
        });
        let words = ["kubevpn", "proxy-out"].map(str::to_owned);
        let words = words
            .into_iter()
            .chain(flags.filter(|_| values != ["false"]));
        if let Err(error) = Args::try_parse_from(words) {
            let error = error.to_string();
            let said = error.trim_start_matches("error: ");
            let said = said.split("\n\n").next().unwrap_or_default();
            let path = crate::config::path().unwrap_or_default();
            return Err(Failure::value(format!("{}: {said}", path.display())));
        }
    }
    Ok(config)
}

impl Args {
    /// Whether the command works with a broken configuration file.
    pub(crate) fn needs_no_config(&self) -> bool {
        matches!(
            self.command,
            Command::Config(_) | Command::Completion(_) | Command::Man(_)
        )
    }

    /// Whether the command prints the steps of the layers.
    pub(crate) fn tells_steps(&self) -> bool {
        matches!(self.command, Command::Resolve(_) | Command::Check(_))
    }

    /// Its log level without `-v`.
    pub(crate) fn usual_log(&self) -> Usual {
        match &self.command {
            Command::Run(_) | Command::Nc(_) | Command::Open(_) | Command::Top(_) => Usual::Errors,
            Command::BugReport(_) => Usual::Warnings,
            _ if self.tells_steps() => Usual::Warnings,
            _ => Usual::Info,
        }
    }

    /// Whether the command reads standard input. Such a read cannot be cancelled, and is not awaited at the end.
    pub(crate) fn reads_input(&self) -> bool {
        matches!(self.command, Command::Nc(_))
    }

    /// Whether it is the daemon, which logs to a file.
    pub(crate) fn is_daemon(&self) -> bool {
        matches!(&self.command, Command::Daemon(command) if command.is_daemon())
    }

    pub(crate) async fn run(self, steps: LoggedSteps) -> Result<(), Failure> {
        match self.command {
            Command::Services(command) => command.run().await,
            Command::Open(command) => command.run().await,
            Command::Nc(command) => command.run().await,
            Command::Snippet(command) => command.run().await,
            Command::Check(command) => command.run(steps).await,
            Command::BugReport(command) => command.run().await,
            Command::Resolve(command) => command.run(steps).await,
            Command::ProxyOut(command) => command.run().await,
            Command::PortForward(command) => command.run().await,
            Command::Run(command) => command.run().await,
            Command::Shell(command) => command.run().await,
            Command::Env(command) => command.run().await,
            Command::Pac(command) => command.run().await,
            Command::Connect(command) => command.run(self.log.verbose).await,
            Command::Disconnect(command) => command.run().await,
            Command::Quit(command) => command.run().await,
            Command::Status(command) => command.run().await,
            Command::Logs(command) => command.run().await,
            Command::Tap(command) => command.run().await,
            Command::Top(command) => command.run(self.log.is_colored(true)).await,
            Command::Connection(command) => command.run().await,
            Command::Daemon(command) => command.run().await,
            #[cfg(feature = "demo")]
            Command::Demo(command) => command.run().await,
            Command::Config(command) => command.run(),
            Command::Completion(command) => command.run(),
            Command::Man(command) => command.run(),
            Command::Version(command) => command.run().await,
        }
    }
}

/// A duration as flags take it.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write e.g. 30s, 2m or 500ms".into())
}

/// Options of the client of the API server, for every command.
pub(crate) fn options() -> Options {
    Options::new(format!("kubevpn/{}", env!("CARGO_PKG_VERSION")))
}
