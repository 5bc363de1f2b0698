//! The command line: a file per subcommand.

mod at;
mod completion;
mod connect;
mod connection;
mod daemon;
#[cfg(feature = "demo")]
mod demo;
mod disconnect;
mod env;
mod isolated;
mod kube;
mod listen;
mod login;
mod logs;
mod pac;
mod policy;
mod proxy_out;
mod quit;
mod resolve;
mod run;
#[cfg(test)]
mod sample;
mod serve;
mod shell;
mod status;
mod version;

use clap::{ArgAction, Parser, Subcommand};

use kubevpn_client::Options;

use crate::exit::Failure;
use crate::telemetry::Steps;

/// Reach the Services and Pods of a Kubernetes cluster from this machine, over nothing but the Kubernetes API
#[derive(Debug, Parser)]
#[command(
    name = "kubevpn",
    version,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Args {
    /// Increase log verbosity (-v: debug, -vv: also dependencies); RUST_LOG overrides
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    ProxyOut(Box<proxy_out::ProxyOut>),
    Run(Box<run::Run>),
    Shell(Box<shell::Shell>),
    Env(Box<env::EnvCommand>),
    Pac(Box<pac::PacCommand>),
    Connect(Box<connect::Connect>),
    Disconnect(disconnect::Disconnect),
    Quit(quit::Quit),
    Status(status::Status),
    Logs(logs::Logs),
    #[command(visible_alias = "conn")]
    Connection(connection::Connection),
    Daemon(daemon::DaemonCommand),
    Resolve(Box<resolve::Resolve>),
    #[cfg(feature = "demo")]
    Demo(Box<demo::Demo>),
    Completion(completion::Completion),
    Version(version::Version),
}

impl Args {
    /// Whether the command tells the steps that the layers take.
    pub(crate) fn tells_steps(&self) -> bool {
        matches!(self.command, Command::Resolve(_))
    }

    /// Whether it is the daemon, which logs to a file.
    pub(crate) fn is_daemon(&self) -> bool {
        matches!(&self.command, Command::Daemon(command) if command.is_daemon())
    }

    pub(crate) async fn run(self, steps: Steps) -> Result<(), Failure> {
        match self.command {
            Command::Resolve(command) => command.run(steps).await,
            Command::ProxyOut(command) => command.run().await,
            Command::Run(command) => command.run().await,
            Command::Shell(command) => command.run().await,
            Command::Env(command) => command.run().await,
            Command::Pac(command) => command.run().await,
            Command::Connect(command) => command.run(self.verbose).await,
            Command::Disconnect(command) => command.run().await,
            Command::Quit(command) => command.run().await,
            Command::Status(command) => command.run().await,
            Command::Logs(command) => command.run().await,
            Command::Connection(command) => command.run().await,
            Command::Daemon(command) => command.run().await,
            #[cfg(feature = "demo")]
            Command::Demo(command) => command.run().await,
            Command::Completion(command) => command.run(),
            Command::Version(command) => command.run(),
        }
    }
}

/// How every command behaves towards the API server.
pub(crate) fn options() -> Options {
    Options::new(format!("kubevpn/{}", env!("CARGO_PKG_VERSION")))
}
