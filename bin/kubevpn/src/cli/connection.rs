//! `kubevpn connection`.

use clap::Subcommand;
use kubevpn_daemon::{ApiError, DaemonClient, StateDir};

use super::status::StatusCommand;
use super::which;
use crate::exit::Failure;
use crate::out;

/// List connections, and choose the current one
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # what kubevpn status shows
  kubevpn connection list -o wide

  # the one that env, pac and run use
  kubevpn connection use 03d")]
pub(crate) struct ConnectionCommand {
    #[command(subcommand)]
    what: ConnectionAction,
}

#[derive(Debug, Subcommand)]
enum ConnectionAction {
    #[command(visible_alias = "ls")]
    List(StatusCommand),
    /// Make a connection the current one, as `kubevpn status` shows it
    Use {
        /// The connection: its ID or the beginning of it, its context or its namespace
        #[arg(value_name = "CONNECTION")]
        id: String,
    },
}

impl ConnectionCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self.what {
            ConnectionAction::List(status) => status.run().await?,
            ConnectionAction::Use { id } => {
                let daemon = DaemonClient::new(StateDir::locate()?);
                let id = which::connection(&daemon, Some(&id)).await?;
                if !daemon.ensure_if_needed().await? {
                    return Err(ApiError::no_such_connection(&id).into());
                }
                daemon.use_current(&id).await?;
                out::line(format_args!("Connection {id} is the current one"))?;
            }
        }
        Ok(())
    }
}
