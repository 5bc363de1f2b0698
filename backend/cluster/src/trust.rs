//! How long an answer may be trusted.

use tokio::time::Instant;

/// Rides along with one lookup and notes the earliest time at which something it rests on gets old.
#[derive(Default)]
pub(crate) struct Trust {
    /// `None` while all of it is watched.
    pub(crate) until: Option<Instant>,
}

impl Trust {
    /// The answer rests on something that was true until `at` at least.
    pub(crate) fn until(&mut self, at: Instant) {
        self.until = Some(self.until.map_or(at, |known| known.min(at)));
    }
}
