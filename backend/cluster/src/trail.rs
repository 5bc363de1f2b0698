//! What a lookup did on its way, and how long its answer may be trusted.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// One step of a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Since the lookup began.
    pub at: Duration,
    /// What was done and what came of it.
    pub text: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Rides along with one lookup.
pub(crate) struct Trail {
    begun: Instant,
    /// `None` when nobody wants to read them.
    steps: Option<Vec<Step>>,
    pub(crate) stale_at: Option<Instant>,
}

impl Trail {
    pub(crate) fn silent() -> Self {
        Self {
            begun: Instant::now(),
            steps: None,
            stale_at: None,
        }
    }

    pub(crate) fn telling() -> Self {
        Self {
            steps: Some(Vec::new()),
            ..Self::silent()
        }
    }

    /// Notes a step; the text is made only if somebody will read it.
    pub(crate) fn step(&mut self, text: impl FnOnce() -> String) {
        let at = self.begun.elapsed();
        if let Some(steps) = &mut self.steps {
            steps.push(Step { at, text: text() });
        }
    }

    /// The answer rests on something that was true until `at` at least.
    pub(crate) fn stale_at(&mut self, at: Instant) {
        self.stale_at = Some(self.stale_at.map_or(at, |known| known.min(at)));
    }

    pub(crate) fn steps(self) -> Vec<Step> {
        self.steps.unwrap_or_default()
    }
}
