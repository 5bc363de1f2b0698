//! Counts by kind, for metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;

/// Counts by a name of a closed set.
pub(crate) type NamedCounts = BTreeMap<&'static str, u64>;
/// Counts by two names of closed sets.
pub(crate) type Count2 = BTreeMap<(&'static str, &'static str), u64>;

/// Counts of events so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventCounts {
    /// By frontend.
    pub(crate) open: NamedCounts,
    pub(crate) connected: NamedCounts,
    /// By frontend and end.
    pub(crate) ended: Count2,
    /// By frontend and class.
    pub(crate) refused: Count2,
    pub(crate) session_events: NamedCounts,
    pub(crate) watch_events: NamedCounts,
    pub(crate) login_events: NamedCounts,
}

/// The values of all metrics at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) counts: EventCounts,
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) dials: Dials,
    /// By transport and health.
    pub(crate) sessions: Count2,
    pub(crate) streams: u64,
    pub(crate) unread: u64,
    pub(crate) upgrades: u64,
    /// By health.
    pub(crate) watches: NamedCounts,
    /// Expiry of the credentials, in seconds since 1970.
    pub(crate) expires: Option<f64>,
    pub(crate) dropped: u64,
}

/// Durations of the steps of dials, in seconds. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Dials([(&'static str, Histogram); 4]);

/// From an open session to one that has to be opened over a slow line.
const BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

impl Default for Dials {
    fn default() -> Self {
        let steps = ["resolve", "session", "stream", "total"];
        Self(steps.map(|step| (step, Histogram::new(BUCKETS))))
    }
}

impl Dials {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(&'static str, Histogram)> {
        self.0.iter()
    }

    pub(super) fn took(&self, step: &str, took: Duration) {
        if let Some((_, histogram)) = self.0.iter().find(|(name, _)| *name == step) {
            histogram.observe(took.as_secs_f64());
        }
    }
}

/// Adds one.
pub(super) fn count<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K) {
    *counts.entry(key).or_default() += 1;
}
