//! `kubevpn disconnect`.

use kubevpn_daemon::{ApiError, Client, StateDir, identity};

use crate::exit::Failure;
use crate::out;

/// End a connection: its listeners close at once, and open connections have five seconds
///
/// What was kept of it is deleted, but for its log.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "kubevpn disconnect [--now] <CONNECTION-ID>\n       kubevpn disconnect [--now] --all"
)]
pub(crate) struct Disconnect {
    /// The connection, as kubevpn status lists it
    #[arg(value_name = "CONNECTION-ID", required_unless_present = "all")]
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
        if let Some(id) = self.id.as_deref().filter(|id| !identity::is_id(id)) {
            return Err(ApiError::no_such_connection(id).into());
        }
        let daemon = Client::new(StateDir::locate()?);
        let ended = daemon.disconnect(self.id.as_deref(), self.now).await?;
        for id in ended {
            out::line(format_args!("Stopped connection {id}"))?;
        }
        out::line("Disconnect completed")
    }
}
