//! SIGINT and SIGTERM: what a command has changed is changed back before the lab ends.
//!
//! ```text
//!   signal ─▶ undone: the work is dropped, its undo runs to the end ─▶ interruptible: the command is dropped
//! ```
//!
//! Dropping the command runs its guards and kills its children. A second signal does not wait for any undo.

use std::sync::LazyLock;

use anyhow::{Error, Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

static INTERRUPTS: LazyLock<Interrupts> = LazyLock::new(Interrupts::default);

/// Runs a command until it ends or a signal interrupts it.
///
/// # Errors
/// The command's own; the name of the signal.
pub async fn interruptible<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let next = async || {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        }
    };
    INTERRUPTS.run(command, next).await
}

/// Runs `work`, and then `undo`: whether the work succeeded, failed or was interrupted by a signal. It may have been
/// interrupted before it began.
///
/// # Errors
/// That of the work; otherwise that of the undo.
pub async fn undone<T>(
    work: impl Future<Output = Result<T>>,
    undo: impl Future<Output = Result<()>>,
) -> Result<T> {
    INTERRUPTS.undone(work, undo).await
}

#[derive(Debug, Default)]
struct Interrupts(watch::Sender<InterruptState>);

#[derive(Debug, Default)]
struct InterruptState {
    /// The first signal that has come.
    signal: Option<&'static str>,
    /// Number of undos that have not ended.
    undos: usize,
}

impl Interrupts {
    async fn run<T>(
        &self,
        command: impl Future<Output = Result<T>>,
        mut next: impl AsyncFnMut() -> &'static str,
    ) -> Result<T> {
        let interrupted = async {
            let signal = next().await;
            self.0.send_modify(|state| state.signal = Some(signal));
            let mut states = self.0.subscribe();
            if states.borrow().undos > 0 {
                info!(
                    "{signal}: changing back what was changed; a second signal leaves it as it is"
                );
            }
            tokio::select! {
                _ = states.wait_for(|state| state.undos == 0) => {}
                second = next() => warn!("{second}: what was changed is left"),
            }
            of_signal(signal)
        };
        tokio::select! {
            biased;
            done = command => done,
            error = interrupted => Err(error),
        }
    }

    async fn undone<T>(
        &self,
        work: impl Future<Output = Result<T>>,
        undo: impl Future<Output = Result<()>>,
    ) -> Result<T> {
        self.0.send_modify(|state| state.undos += 1);
        let depth = self.0.borrow().undos;
        let _counted = CountedUndo(self);
        let done = tokio::select! {
            biased;
            error = self.signalled(depth) => Err(error),
            done = work => done,
        };
        let undone = undo.await;
        if let (Err(_), Err(error)) = (&done, &undone) {
            warn!("not changed back: {error:#}");
        }
        let done = done?;
        undone?;
        Ok(done)
    }

    /// Waits for a signal, and then for the undos inside the work of the undo at this depth.
    async fn signalled(&self, depth: usize) -> Error {
        let mut states = self.0.subscribe();
        let signal = states.wait_for(|state| state.signal.is_some() && state.undos <= depth);
        let signal = signal.await;
        of_signal(
            signal
                .ok()
                .and_then(|state| state.signal)
                .unwrap_or_default(),
        )
    }
}

fn of_signal(signal: &str) -> Error {
    anyhow!("interrupted by {signal}")
}

/// An undo that has not ended.
struct CountedUndo<'a>(&'a Interrupts);

impl Drop for CountedUndo<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.undos -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};

    use anyhow::bail;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn work_is_undone_whatever_comes_of_it() {
        let interrupts = Interrupts::default();
        let undos = Cell::new(0);
        let undo = async || {
            undos.set(undos.get() + 1);
            Ok(())
        };
        assert_eq!(interrupts.undone(ready(Ok(7)), undo()).await.unwrap(), 7);
        let failed = interrupts.undone(async { bail!("no") }, undo()).await;
        let failed: Result<()> = failed;
        assert_eq!(failed.unwrap_err().to_string(), "no");
        assert_eq!(undos.get(), 2);
        let not_undone = interrupts.undone(ready(Ok(())), async { bail!("still") });
        assert_eq!(not_undone.await.unwrap_err().to_string(), "still");
    }

    #[tokio::test]
    async fn signal_undoes_before_the_command_ends() {
        let interrupts = Interrupts::default();
        let (begun, undone) = (Notify::new(), Cell::new([false; 2]));
        let command = async {
            let inner = async {
                begun.notify_one();
                pending::<Result<()>>().await
            };
            let inner = interrupts.undone(inner, async {
                tokio::task::yield_now().await;
                undone.set([true, false]);
                Ok(())
            });
            let outer = interrupts.undone(inner, async {
                tokio::task::yield_now().await;
                undone.set([undone.get()[0], true]);
                Ok(())
            });
            // A command that goes on, as one does that reports a failure and tries the next thing.
            let error = outer.await.unwrap_err();
            assert_eq!(error.to_string(), "interrupted by SIGTERM");
            interrupts.undone(pending(), ready(Ok(()))).await
        };
        let mut signals = 0;
        let signal = async || match signals {
            0 => {
                begun.notified().await;
                signals += 1;
                "SIGTERM"
            }
            _ => pending().await,
        };
        let ended: Result<()> = interrupts.run(command, signal).await;
        assert_eq!(ended.unwrap_err().to_string(), "interrupted by SIGTERM");
        assert_eq!(undone.get(), [true, true]);
    }

    #[tokio::test]
    async fn signal_drops_a_command_that_has_nothing_to_undo() {
        let interrupts = Interrupts::default();
        let ended: Result<()> = interrupts.run(pending(), async || "SIGINT").await;
        assert_eq!(ended.unwrap_err().to_string(), "interrupted by SIGINT");
    }

    #[tokio::test]
    async fn second_signal_does_not_wait_for_an_undo() {
        let interrupts = Interrupts::default();
        let command = interrupts.undone(pending::<Result<()>>(), pending());
        let ended = interrupts.run(command, async || "SIGINT").await;
        assert_eq!(ended.unwrap_err().to_string(), "interrupted by SIGINT");
    }
}
