//! The daemon's own life: from the command that has started it to its end.

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

/// How long it stays without a connection.
const IDLE: Duration = Duration::from_secs(300);
/// The environment variable that says otherwise.
pub const IDLE_VARIABLE: &str = "KUBEVPN_DAEMON_IDLE";
/// How long answers may take to reach their commands at the end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Is the daemon, until it is told to end or has had no connection for `idle` (a duration as `5m`; `None` for five
/// minutes). Makes this process the leader of a session of its own, logs to a file, and tells the command that has started
/// it by one line on standard output that it is ready, or why it is not.
pub async fn run<E: Engine>(engine: E, idle: Option<&str>) -> Result<(), ApiError> {
    let result = start(engine, idle).await;
    if let Err(error) = &result {
        tracing::error!(error = error.whole(), "the daemon ends");
        readiness::tell(&error.whole());
    }
    result
}

async fn start<E: Engine>(engine: E, idle: Option<&str>) -> Result<(), ApiError> {
    // Fails for a process that leads a session already, as when it is started by hand.
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
    // The terminal it was started from is none of its business.
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
    /// Brings back what there was, calls `ready` once commands are answered, and ends at `quit`, when idle, or when
    /// `terminated` returns, which keeps all that is needed to bring the connections back.
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
            // The sender is the server, which lives as long as this.
            let _ = quits.wait_for(|quit| *quit).await;
        };
        tokio::select! {
            () = told => tracing::info!("told to quit"),
            () = terminated => {
                tracing::info!("told to end: the next start brings the connections back");
                registry.suspend(DRAIN).await;
            }
            () = registry.idle(idle) => tracing::info!(idle = %humantime::format_duration(idle), "nothing to do"),
        }
        // No new command, and those that are there have their answer.
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
