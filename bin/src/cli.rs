//! The command line: a file per subcommand.

mod at;
mod completion;
#[cfg(feature = "demo")]
mod demo;
mod env;
mod kube;
mod pac;
mod policy;
mod proxy_out;
mod resolve;
mod run;
mod version;

use clap::{ArgAction, Parser, Subcommand};

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
    /// Say more in the log on stderr: -v about us, -vv about the libraries too (RUST_LOG overrides)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    ProxyOut(Box<proxy_out::ProxyOut>),
    Run(Box<run::Run>),
    Env(Box<env::EnvCommand>),
    Pac(Box<pac::PacCommand>),
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

    pub(crate) async fn run(self, steps: Steps) -> Result<(), Failure> {
        match self.command {
            Command::Resolve(command) => command.run(steps).await,
            Command::ProxyOut(command) => command.run().await,
            Command::Run(command) => command.run().await,
            Command::Env(command) => command.run(),
            Command::Pac(command) => command.run().await,
            #[cfg(feature = "demo")]
            Command::Demo(command) => command.run().await,
            Command::Completion(command) => {
                command.run();
                Ok(())
            }
            Command::Version(command) => {
                command.run();
                Ok(())
            }
        }
    }
}
