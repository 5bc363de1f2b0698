//! `kubevpn quit`.

use kubevpn_daemon::{DaemonClient, StateDir};

use crate::exit::Failure;
use crate::out;
use crate::progress;

/// Close every background connection and end the daemon
///
/// Only the logs are kept. A daemon of another version, or one that does not answer, is ended too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # with five seconds for open connections
  kubevpn quit")]
pub(crate) struct Quit {
    /// Close established connections immediately instead of waiting up to 5 seconds
    #[arg(long)]
    now: bool,
}

impl Quit {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let daemon = DaemonClient::new(StateDir::locate()?);
        progress::shown("open connections to finish", daemon.quit(self.now)).await?;
        out::line("Exited")
    }
}
