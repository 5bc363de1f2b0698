//! Rate limits: a back-off for repeated errors, and for repeated warnings.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Waits longer with each failure in a row, and warns once.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use kubevpn_conn::Backoff;
/// let mut backoff = Backoff::default();
/// let error = std::io::Error::from(std::io::ErrorKind::OutOfMemory);
/// backoff.wait(&error, "cannot accept connections for now").await; // 10 ms, then 20
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Backoff(u32);

impl Backoff {
    /// Waits 10 ms, and twice as long each time, up to 1.28 s; warns with `sentence` the first time. An error caused by a
    /// single client causes no wait.
    pub async fn wait(&mut self, error: &io::Error, sentence: &str) {
        use io::ErrorKind as K;
        // The error concerned one client: the next may succeed.
        if matches!(
            error.kind(),
            K::ConnectionAborted | K::ConnectionReset | K::ConnectionRefused | K::Interrupted
        ) {
            tracing::debug!(%error, "a client was gone before it was served");
            return;
        }
        if self.0 == 0 {
            tracing::warn!(%error, "{sentence}");
        }
        tokio::time::sleep(Duration::from_millis(10 << self.0.min(7))).await;
        self.0 = self.0.saturating_add(1);
    }
}

/// Minimum interval between equal warnings.
const SELDOM: Duration = Duration::from_secs(10);

/// Limits repeated warnings to the first, and then one every 10 s.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    pub(crate) fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| last.elapsed() >= SELDOM);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_warning_in_ten_seconds() {
        let seldom = Seldom::default();
        let mut due = Vec::new();
        for second in 0..30 {
            if seldom.is_due() {
                due.push(second);
            }
            assert!(!seldom.is_due());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(due, [0, 10, 20]);
    }
}
