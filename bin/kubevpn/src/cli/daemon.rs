//! `kubevpn daemon`: the process behind managed mode, and how much it logs.

use clap::{Subcommand, ValueEnum};
use kubevpn_daemon::log::LogLevel;
use kubevpn_daemon::{ApiError, Code, DaemonClient, IDLE_VARIABLE, ProxyEngine, StateDir, run};

use crate::exit::Failure;
use crate::out;

/// Set how much the background daemon logs
///
/// The daemon keeps the connections of `kubevpn connect`, which starts it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # each step of the daemon that runs
  kubevpn daemon log-level debug")]
pub(crate) struct DaemonCommand {
    /// How long to stay without a connection [default: 5m]
    #[arg(long, value_name = "DURATION", env = IDLE_VARIABLE, hide = true)]
    idle: Option<String>,
    #[command(subcommand)]
    what: Option<DaemonAction>,
}

#[derive(Debug, Subcommand)]
enum DaemonAction {
    /// Set how much the running daemon logs; a connection's log has the level that `connect -v` gave it
    LogLevel {
        /// Level of the daemon's log
        #[arg(value_name = "LEVEL", value_enum)]
        level: LevelArg,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LevelArg {
    /// Lifecycles and failures
    Info,
    /// Each step
    Debug,
    /// Each frame, and the libraries' steps
    Trace,
}

impl DaemonCommand {
    /// Whether it is the daemon itself, which logs to a file.
    pub(crate) fn is_daemon(&self) -> bool {
        self.what.is_none()
    }

    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Some(DaemonAction::LogLevel { level }) = self.what else {
            let engine = ProxyEngine::new(super::options());
            return Ok(run(engine, self.idle.as_deref()).await?);
        };
        let level = match level {
            LevelArg::Info => LogLevel::Info,
            LevelArg::Debug => LogLevel::Debug,
            LevelArg::Trace => LogLevel::Trace,
        };
        let daemon = DaemonClient::new(StateDir::locate()?);
        if !daemon.find().await? {
            return Err(ApiError::new(
                Code::NotRunning,
                "the daemon is not running: kubevpn connect starts it",
            )
            .into());
        }
        daemon.set_log_level(level).await?;
        out::line(format_args!("The daemon logs at level {}", level.as_str()))
    }
}
