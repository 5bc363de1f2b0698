//! `kubevpn quit`.

use crate::daemon::{Daemon, Home};
use crate::exit::Failure;
use crate::out;

/// End every connection and the daemon; only logs stay
///
/// Works whatever the daemon's version, and if it does not answer.
#[derive(Debug, clap::Args)]
pub(crate) struct Quit {
    /// Cut open connections, instead of giving them five seconds
    #[arg(long)]
    now: bool,
}

impl Quit {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        Daemon::new(Home::locate()?).quit(self.now).await?;
        out::line("Exited")
    }
}
