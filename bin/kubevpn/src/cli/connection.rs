//! `kubevpn connection`.

use clap::Subcommand;
use kubevpn_daemon::{ApiError, Client, StateDir};

use super::status::{self, Format, Shown};
use super::which;
use crate::exit::Failure;
use crate::out;

/// List connections, and choose the current one
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # the one that env, pac and run use
  kubevpn connection use 03d")]
pub(crate) struct Connection {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the connections there are
    #[command(visible_alias = "ls")]
    List,
    /// Make a connection the current one, which status marks
    Use {
        /// The connection, as kubevpn status lists it
        #[arg(value_name = "CONNECTION-ID")]
        id: String,
    },
}

impl Connection {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let daemon = Client::new(StateDir::locate()?);
        match self.what {
            What::List => {
                out::print(format_args!(
                    "{}",
                    status::render(
                        &status::ask(&daemon).await?,
                        &Shown::now(Format::Table, false)
                    )?
                ))?;
            }
            What::Use { id } => {
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
