//! The orderly end: stop accepting, let connections finish for a while, then cut.

use std::future::Future;
use std::time::Duration;

use tokio_util::future::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Runs the connections of a process and ends them. Clones are the same drain.
///
/// ```
/// use std::time::Duration;
/// use kubevpn_conn::{Drain, Drained};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let drain = Drain::new();
/// drain.spawn(async { /* a connection that comes to its end */ });
/// drain.spawn(std::future::pending()); // and one that does not
/// let drained = drain.drain(Duration::from_millis(20)).await;
/// assert_eq!(drained, Drained { finished: 1, cut: 1 });
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Drain {
    stop: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// A drain with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a connection until it ends or is cut. A cut drops the future.
    pub fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        self.spawn_until(self.cut.clone(), connection);
    }

    /// A token that cuts one connection; a cut of all connections cancels it too.
    pub(crate) fn cut_of_one(&self) -> CancellationToken {
        self.cut.child_token()
    }

    pub(crate) fn spawn_until(
        &self,
        cut: CancellationToken,
        connection: impl Future<Output = ()> + Send + 'static,
    ) {
        // Not an `async` block, which would hold the connection's memory twice.
        self.tasks
            .spawn(connection.with_cancellation_token_owned(cut));
    }

    /// How many connections are running.
    pub fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Stops accept loops, and connections between two requests.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for [`stop`](Self::stop); returns at once when it has been called.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Stops, waits up to `limit` for the connections to end, and cuts the rest. No connection is left when this
    /// returns. Cancellation: dropping the future leaves the connections running.
    pub async fn drain(&self, limit: Duration) -> Drained {
        self.stop();
        self.tasks.close();
        let open = self.tasks.len();
        let in_time = tokio::time::timeout(limit, self.tasks.wait()).await;
        let cut = if in_time.is_ok() { 0 } else { self.tasks.len() };
        // Also if all have ended: a connection that was just accepted may still be started.
        self.cut.cancel();
        self.tasks.wait().await;
        Drained {
            finished: open.saturating_sub(cut),
            cut,
        }
    }
}

/// Numbers of the connections that were open when the drain began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that ended by themselves.
    pub finished: usize,
    /// Connections that were cut.
    pub cut: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn waits_no_longer_than_needed() {
        let drain = Drain::new();
        let (end, ended) = oneshot::channel::<()>();
        drain.spawn(async {
            let _ = ended.await;
        });
        let started = Instant::now();
        tokio::spawn({
            let drain = drain.clone();
            async move {
                drain.stopping().await;
                tokio::time::sleep(Duration::from_secs(3)).await;
                let _ = end.send(());
            }
        });
        let drained = drain.drain(Duration::from_secs(60)).await;
        assert_eq!(
            drained,
            Drained {
                finished: 1,
                cut: 0
            }
        );
        assert_eq!(started.elapsed(), Duration::from_secs(3));
        assert_eq!(drain.open(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_cuts_connections_that_do_not_end() {
        struct Held(Option<oneshot::Sender<()>>);
        impl Drop for Held {
            fn drop(&mut self) {
                let _ = self.0.take().unwrap().send(());
            }
        }
        let drain = Drain::new();
        let (freed, was_freed) = oneshot::channel();
        let held = Held(Some(freed));
        drain.spawn(async move {
            let _held = held;
            std::future::pending().await
        });
        let started = Instant::now();
        let drained = drain.drain(Duration::from_secs(5)).await;
        assert_eq!(
            drained,
            Drained {
                finished: 0,
                cut: 1
            }
        );
        assert_eq!(started.elapsed(), Duration::from_secs(5));
        was_freed.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_started_after_the_end_is_cancelled() {
        let drain = Drain::new();
        drain.drain(Duration::ZERO).await;
        drain.spawn(std::future::pending());
        drain.tasks.wait().await;
    }
}
