//! Validity of an answer that rests on several selections.

use std::future::{pending, poll_fn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// The last use of one selection, and its changes.
pub(crate) struct Pulse {
    used: Mutex<Instant>,
    changes: watch::Sender<()>,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            used: Mutex::new(now),
            changes: watch::Sender::new(()),
        }
    }

    pub(super) fn used(&self) -> Instant {
        *lock(&self.used)
    }

    pub(super) fn touch(&self) {
        *lock(&self.used) = Instant::now();
    }

    /// Reports a change: answers that rest on the selection have to be made again.
    pub(super) fn changed(&self) {
        self.changes.send_replace(());
    }
}

/// Changes of one selection, observed from before it was read.
#[derive(Clone)]
pub(crate) struct Changes {
    pulse: Arc<Pulse>,
    seen: watch::Receiver<()>,
}

impl Changes {
    pub(super) fn of(pulse: &Arc<Pulse>) -> Self {
        Self {
            pulse: pulse.clone(),
            seen: pulse.changes.subscribe(),
        }
    }
}

/// Minimum expiry over all selections read for one answer, and their changes.
#[derive(Clone, Default)]
pub(crate) struct Validity {
    /// `None` while all of them are watched.
    until: Option<Instant>,
    changes: Vec<Changes>,
}

impl Validity {
    /// Lowers the expiry to this time.
    pub(crate) fn until(&mut self, at: Instant) {
        self.until = Some(self.until.map_or(at, |known| known.min(at)));
    }

    /// Adds a selection.
    pub(super) fn rests_on(&mut self, changes: Changes) {
        self.changes.push(changes);
    }

    /// Whether the answer holds now.
    pub(crate) fn holds(&self) -> bool {
        let in_time = self.until.is_none_or(|until| Instant::now() < until);
        in_time
            && !self
                .changes
                .iter()
                .any(|c| c.seen.has_changed().unwrap_or(true))
    }

    /// Marks the answer's selections as used.
    pub(crate) fn touch(&self) {
        self.changes.iter().for_each(|c| c.pulse.touch());
    }

    /// Waits until the answer may no longer hold. It may return without a change.
    pub(crate) async fn over(&self) {
        let changes = self.changes.iter().map(|c| {
            let mut seen = c.seen.clone();
            // The sender is gone if the selection was dropped.
            Box::pin(async move { drop(seen.changed().await) })
        });
        let mut changes: Vec<_> = changes.collect();
        let changed = poll_fn(|cx| {
            let any = changes.iter_mut().any(|c| c.as_mut().poll(cx).is_ready());
            if any { Poll::Ready(()) } else { Poll::Pending }
        });
        let expired = async {
            match self.until {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = expired => {}
        }
    }
}

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
