//! The daemon's own life: from the command line it was started with to its end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::lock::Lock;
use super::registry::{DRAIN, Registry};
use super::server::{self, Server};
use super::sys::{self, Process};
use super::{Home, log, tell_ready};
use crate::exit::Failure;
use crate::signals::Termination;

/// How long it stays without a connection.
/// The environment variable that says otherwise.
pub(super) const IDLE_VARIABLE: &str = "KUBEVPN_DAEMON_IDLE";
const IDLE: Duration = Duration::from_secs(300);
/// How long answers may take to reach their commands at the end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Own connections until told to end: started by `connect`, not by people
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// How long to stay without a connection [default: 5m]
    #[arg(long, value_name = "DURATION", env = IDLE_VARIABLE)]
    idle: Option<String>,
}

impl Run {
    pub(crate) async fn run(self, verbose: u8) -> Result<(), Failure> {
        let result = self.start(verbose).await;
        if let Err(failure) = &result {
            tracing::error!(%failure, "the daemon ends");
            let cause = std::error::Error::source(failure).map(|cause| format!(": {cause}"));
            tell_ready::tell(&format!("{failure}{}", cause.unwrap_or_default()));
        }
        result
    }

    fn idle(&self) -> Result<Duration, Failure> {
        let Some(text) = &self.idle else {
            return Ok(IDLE);
        };
        let wrong = |why: String| Failure::Value(format!("{IDLE_VARIABLE} is {text:?}: {why}"));
        match humantime::parse_duration(text) {
            Ok(Duration::ZERO) => Err(wrong("the daemon would end at once".into())),
            Ok(idle) => Ok(idle),
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    async fn start(self, verbose: u8) -> Result<(), Failure> {
        // Fails for who leads a session already, as when it is started by hand.
        if let Err(error) = sys::new_session() {
            tracing::debug!(%error, "no new session");
        }
        let idle = self.idle()?;
        let home = Home::locate()?;
        home.prepare()?;
        let taken = Lock::try_take(&home.lock()).context("cannot take the lock")?;
        let Some(mut lock) = taken else {
            tell_ready::tell(tell_ready::OTHER);
            return Ok(());
        };
        let me = Process::me().context("cannot tell who this process is")?;
        lock.sign(&me).context("cannot write the lock")?;
        log::to_file(&home.log(None), verbose).init();
        tracing::info!(version = super::VERSION, pid = me.pid, home = %home.path().display(), "the daemon starts");
        let mut termination = Termination::but_hangup()?;
        // The terminal it was started from is none of its business, also where that is not in a session of its own.
        let mut hangup = signal(SignalKind::hangup()).context("cannot wait for signals")?;
        let registry = Registry::bring_back(home.clone(), verbose).await?;
        let listener = server::listen(&home)
            .with_context(|| format!("cannot listen on {}", home.socket().display()))?;
        let (quit, mut quits) = watch::channel(false);
        let commands = TaskTracker::new();
        let server = Arc::new(Server {
            registry: registry.clone(),
            about: server::about(),
            quit,
            commands: commands.clone(),
        });
        let serving = tokio::spawn(server.serve(listener));
        tell_ready::tell(tell_ready::READY);
        sys::silence().context("cannot let go of the terminal")?;

        loop {
            tokio::select! {
                _ = quits.wait_for(|quit| *quit) => tracing::info!("told to quit"),
                _ = termination.next() => {
                    tracing::info!("told to end: the next start brings the connections back");
                    registry.suspend(DRAIN).await;
                }
                () = is_idle(&registry, idle) => {
                    tracing::info!(?idle, "nothing to do");
                    registry.refuse();
                }
                // The terminal it was started from is none of its business.
                _ = hangup.recv() => continue,
            }
            break;
        }
        // No new command, and those that are there have their answer.
        serving.abort();
        let _ = serving.await;
        commands.close();
        let _ = tokio::time::timeout(LAST_WORDS, commands.wait()).await;
        let gone = home.remove_socket().and_then(|()| lock.release());
        gone.context("cannot delete the socket")?;
        tracing::info!("the daemon has ended");
        Ok(())
    }
}

/// Returns when there has been no connection for so long.
async fn is_idle(registry: &Registry, idle: Duration) {
    let mut busy = registry.busy();
    loop {
        // The sender is the registry, which lives as long as this.
        let _ = busy.wait_for(|n| *n == 0).await;
        tokio::select! {
            () = tokio::time::sleep(idle) => return,
            _ = busy.wait_for(|n| *n > 0) => {}
        }
    }
}
