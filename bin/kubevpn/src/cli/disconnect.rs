//! `kubevpn disconnect`.

use kubevpn_daemon::{DaemonClient, StateDir};

use super::which;
use crate::exit::Failure;
use crate::out;
use crate::progress;

/// Close a background connection
///
/// Its listeners close at once; clients that are connected get up to five seconds to finish. Everything that was stored for the
/// connection is deleted, except its log.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # the only one
  kubevpn disconnect

  # by the beginning of its ID, at once
  kubevpn disconnect --now 03d")]
pub(crate) struct Disconnect {
    /// The connection: its ID or the beginning of it, its context or its namespace [default: the only one]
    #[arg(value_name = "CONNECTION")]
    id: Option<String>,
    /// Every connection
    #[arg(long, conflicts_with = "id")]
    all: bool,
    /// Close established connections immediately instead of waiting up to 5 seconds
    #[arg(long)]
    now: bool,
}

impl Disconnect {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let daemon = DaemonClient::new(StateDir::locate()?);
        let id = match self.all {
            true => None,
            false => Some(which::connection(&daemon, self.id.as_deref()).await?),
        };
        let ending = daemon.disconnect(id.as_deref(), self.now);
        let ended = progress::shown("open connections to finish", ending).await?;
        for id in ended {
            out::line(format_args!("Stopped connection {id}"))?;
        }
        out::line("Disconnect completed")
    }
}
