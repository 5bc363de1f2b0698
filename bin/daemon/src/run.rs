//! The daemon process, from its start by a command to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::engine::Engine;
use crate::error::{ApiError, Code, ErrorContext as _};
use crate::lock::Lock;
use crate::log::{Log, LogLevel};
use crate::readiness;
use crate::registry::{DRAIN, Registry};
use crate::server::{self, DaemonServer};
use crate::signals::Termination;
use crate::state_dir::StateDir;
use crate::sys::{self, Process};

/// Idle time after which it ends without a connection.
const IDLE: Duration = Duration::from_secs(300);
/// Environment variable that overrides the idle time.
pub const IDLE_VARIABLE: &str = "KUBEVPN_DAEMON_IDLE";
/// Time limit for sending the last answers at the end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Runs the daemon until it is told to end or has had no connection for `idle` (a duration as `5m`; `None` is five
/// minutes). This process becomes a session leader and logs to a file. One line on standard output reports to the command
/// that it is ready, or why not.
pub async fn run<E: Engine>(engine: E, idle: Option<&str>) -> Result<(), ApiError> {
    let result = start(engine, idle).await;
    if let Err(error) = &result {
        tracing::error!(error = error.whole(), "the daemon ends");
        readiness::tell(&error.whole());
    }
    result
}

async fn start<E: Engine>(engine: E, idle: Option<&str>) -> Result<(), ApiError> {
    // This fails for a session leader, e.g. when the daemon is started by hand.
    if let Err(error) = sys::new_session() {
        tracing::debug!(%error, "no new session");
    }
    sys::own_files_are_readable();
    let idle = idle.map_or(Ok(IDLE), idle_time)?;
    let dir = StateDir::locate()?;
    dir.prepare()?;
    let Some(lock) = dir.try_lock()? else {
        readiness::tell(readiness::OTHER);
        return Ok(());
    };
    let log = Log::to_file(&dir.log(None), LogLevel::default());
    log.dispatch.clone().init();
    let mut termination = Termination::but_hangup().context("cannot wait for signals")?;
    // The daemon outlives the terminal of the command that started it.
    let _hangup = signal(SignalKind::hangup()).context("cannot wait for signals")?;
    let ready = || {
        readiness::tell(readiness::READY);
        sys::silence().context("cannot let go of the terminal")
    };
    let terminated = async {
        termination.next().await;
    };
    Daemon {
        dir,
        lock,
        log,
        engine,
        idle,
    }
    .live(ready, terminated)
    .await
}

fn idle_time(text: &str) -> Result<Duration, ApiError> {
    let wrong = |why: &str| {
        let message = format!("{IDLE_VARIABLE} is {text:?}: {why}");
        ApiError::new(Code::InvalidValue, message)
    };
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err(wrong("the daemon would end at once")),
        Ok(idle) => Ok(idle),
        Err(error) => Err(wrong(&format!("{error}: write a duration, e.g. 5m"))),
    }
}

/// The daemon of one directory, whose lock it holds.
pub(crate) struct Daemon<E> {
    pub(crate) dir: StateDir,
    pub(crate) lock: Lock,
    pub(crate) log: Log,
    pub(crate) engine: E,
    pub(crate) idle: Duration,
}

impl<E: Engine> Daemon<E> {
    /// Restores the connections, calls `ready` once commands are answered, and ends at `quit`, when idle, or when
    /// `terminated` returns. The last keeps the files that restore the connections.
    pub(crate) async fn live(
        self,
        ready: impl FnOnce() -> Result<(), ApiError>,
        terminated: impl Future<Output = ()>,
    ) -> Result<(), ApiError> {
        let Self {
            dir,
            mut lock,
            log,
            engine,
            idle,
        } = self;
        let me = Process::me().context("cannot tell what this process is")?;
        lock.sign(&me)
            .context(format!("cannot write {}", dir.lock().display()))?;
        tracing::info!(version = crate::VERSION, pid = me.pid, home = %dir.path().display(), "the daemon starts");
        let registry = Registry::bring_back(dir.clone(), engine).await?;
        let listener =
            server::listen(&dir).context(format!("cannot listen on {}", dir.socket().display()))?;
        let (quit, mut quits) = watch::channel(false);
        let commands = TaskTracker::new();
        let server = Arc::new(DaemonServer {
            registry: registry.clone(),
            log,
            about: server::about(),
            quit,
            commands: commands.clone(),
        });
        let serving = tokio::spawn(server.serve(listener));
        ready()?;
        let told = async {
            // The server has the sender, and lives as long as this.
            let _ = quits.wait_for(|quit| *quit).await;
        };
        tokio::select! {
            () = told => tracing::info!("told to quit"),
            () = terminated => {
                tracing::info!("terminated: the next start restores the connections");
                registry.suspend(DRAIN).await;
            }
            () = registry.idle(idle) => tracing::info!(idle = %humantime::format_duration(idle), "no connections: ending"),
        }
        // No new commands are accepted, and the others have their answer.
        serving.abort();
        let _ = serving.await;
        commands.close();
        let _ = tokio::time::timeout(LAST_WORDS, commands.wait()).await;
        let gone = dir.remove_socket().and_then(|()| lock.release());
        gone.context("cannot delete the socket")?;
        tracing::info!("the daemon has ended");
        Ok(())
    }
}

#[cfg(test)]
mod tests;
