//! `kubevpn daemon`: the daemon process, and its log level.

use clap::{Subcommand, ValueEnum};
use kubevpn_daemon::log::LogLevel;
use kubevpn_daemon::{ApiError, Code, DaemonClient, IDLE_VARIABLE, ProxyEngine, StateDir, run};

use crate::exit::Failure;
use crate::out;

/// Set the log level of the background daemon
///
/// The daemon keeps the connections of `kubevpn connect`, which starts it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # log each step of the running daemon
  kubevpn daemon log-level debug")]
pub(crate) struct DaemonCommand {
    /// End after DURATION without a connection [default: 5m]
    #[arg(long, value_name = "DURATION", env = IDLE_VARIABLE, hide = true)]
    idle: Option<String>,
    #[command(subcommand)]
    what: Option<DaemonAction>,
}

#[derive(Debug, Subcommand)]
enum DaemonAction {
    /// Set the log level of the running daemon; `connect -v` sets that of a connection's log
    LogLevel {
        /// Level of the daemon's log
        #[arg(value_name = "LEVEL", value_enum)]
        level: LevelArg,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LevelArg {
    /// Start and end of connections, and failures
    Info,
    /// Each step
    Debug,
    /// Each frame, and the log lines of libraries
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
            #[cfg(feature = "otel")]
            let export = crate::otel::Export::of_environment();
            #[cfg(feature = "otel")]
            let engine = engine.opened({
                let export = export.clone();
                move |view| {
                    if let Err(failure) = export.follow(view) {
                        tracing::warn!(error = failure.message(), "no traces are exported");
                    }
                }
            });
            let ended = run(engine, self.idle.as_deref()).await;
            #[cfg(feature = "otel")]
            export.end(std::future::pending()).await;
            return Ok(ended?);
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
