//! Health and load of Pods, by which the next connection is assigned.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kubevpn_cluster::{Endpoint, PodRef};
use kubevpn_portforward::PodSessionState;
use tokio::time::Instant;

use crate::ahead::Ways;

/// Back-off of a Pod whose dial failed, while there are others: doubling with each failure in a row.
const FIRST_BACK_OFF: Duration = Duration::from_secs(5);
const LAST_BACK_OFF: Duration = Duration::from_secs(60);

/// A Pod that accepted a connection this recently normally accepts the next at once.
const WARM: Duration = Duration::from_secs(60);

/// How many more connections than a Pod without a session another Pod may have for which it is passed over. Of a hundred
/// connections that come at once, the first session would get all otherwise.
const PASSED_OVER: usize = 8;

/// Age from which a dropped dial counts as failed.
pub(super) const SLOW: Duration = Duration::from_secs(1);

/// Limit on remembered Pods without an open stream, and on Services with an affinity.
const REMEMBERED: usize = 4096;

/// The endpoints' health, shared by all clones.
///
/// The next connection goes to the healthy Pod with the fewest open streams, so that replicas are used evenly even when
/// connections live unevenly long; among equals to the one that was used longest ago. A Pod whose dial failed is not
/// healthy until its back-off is over; then one connection at a time is its probe.
#[derive(Clone, Debug, Default)]
pub(super) struct EndpointHealth {
    known: Arc<Mutex<PodHealths>>,
}

#[derive(Debug, Default)]
struct PodHealths {
    pods: HashMap<PodRef, PodHealth>,
    picks: u64,
    /// By target: the Pod that serves it, and when it last did.
    sticky: HashMap<String, (PodRef, Instant)>,
}

#[derive(Debug, Default)]
struct PodHealth {
    /// Open streams and dials.
    open: usize,
    streams: usize,
    last_pick: u64,
    served: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    retry: Option<Instant>,
    probed: bool,
}

impl PodHealth {
    /// Whether it gets connections while there are other Pods.
    fn is_up(&self, now: Instant) -> bool {
        self.failures == 0 || (!self.probed && self.retry.is_none_or(|at| at <= now))
    }

    fn is_warm(&self, now: Instant) -> bool {
        let lately = |at| now.saturating_duration_since(at) < WARM;
        self.failures == 0 && (self.streams > 0 || self.served.is_some_and(lately))
    }

    fn failed(&mut self, now: Instant) {
        let back_off = FIRST_BACK_OFF.saturating_mul(1 << self.failures.min(8));
        self.retry = Some(now + back_off.min(LAST_BACK_OFF));
        self.failures = self.failures.saturating_add(1);
    }
}

impl EndpointHealth {
    fn lock(&self) -> MutexGuard<'_, PodHealths> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the best endpoint from `left`, and counts a dial on its Pod until the lease is dropped. With `warm`, Pods
    /// that accepted a connection recently come first. If the best Pod has no session and another healthy one has, the other
    /// is taken while it has few connections more, and a session to the best is opened in parallel.
    pub(super) fn take(
        &self,
        left: &mut Vec<Endpoint>,
        warm: bool,
        ways: &Ways,
    ) -> Option<(Endpoint, PodLease)> {
        let mut known = self.lock();
        let now = Instant::now();
        let rank = |endpoint: &Endpoint| match known.pods.get(&endpoint.pod) {
            None => (false, warm, 0, 0),
            Some(pod) => (
                !pod.is_up(now),
                warm && !pod.is_warm(now),
                pod.open,
                pod.last_pick,
            ),
        };
        let mut best = (0..left.len()).min_by_key(|i| rank(&left[*i]))?;
        let way = |i: usize| ways.to(&left[i].pod);
        if left.len() > 1 && way(best) < PodSessionState::Open {
            let open = |i: usize| known.pods.get(&left[i].pod).map_or(0, |pod| pod.open);
            let most = open(best) + PASSED_OVER;
            let nearer = |i: &usize| !rank(&left[*i]).0 && way(*i) > way(best) && open(*i) <= most;
            let others = (0..left.len()).filter(nearer);
            if let Some(other) = others.min_by_key(|i| (Reverse(way(*i)), rank(&left[*i]))) {
                if way(other) == PodSessionState::Open {
                    ways.warm(&left[best].pod);
                }
                best = other;
            }
        }
        let endpoint = left.swap_remove(best);
        known.picks += 1;
        let pick = known.picks;
        if known.pods.len() >= REMEMBERED {
            known.pods.retain(|_, pod| pod.open > 0);
        }
        let pod = known.pods.entry(endpoint.pod.clone()).or_default();
        pod.open += 1;
        pod.last_pick = pick;
        let probe = pod.failures > 0;
        pod.probed |= probe;
        let lease = PodLease {
            health: self.clone(),
            pod: endpoint.pod.clone(),
            phase: LeasePhase::Dial { since: now, probe },
        };
        Some((endpoint, lease))
    }

    /// Takes the endpoint that served the target before, if that was less than `lasts` ago and no dial to it failed since.
    pub(super) fn take_again(
        &self,
        asked: &str,
        lasts: Duration,
        left: &mut Vec<Endpoint>,
    ) -> Option<(Endpoint, PodLease)> {
        let known = self.lock();
        let (pod, at) = known.sticky.get(asked)?;
        let failing = known.pods.get(pod).is_some_and(|pod| pod.failures > 0);
        if failing || at.elapsed() >= lasts {
            return None;
        }
        let at = left.iter().position(|e| e.pod == *pod)?;
        drop(known);
        let mut only = vec![left.swap_remove(at)];
        self.take(&mut only, false, &Ways::default())
    }

    /// Notes which Pod served the target.
    pub(super) fn stick(&self, asked: &str, pod: &PodRef) {
        let mut known = self.lock();
        if known.sticky.len() >= REMEMBERED {
            let oldest = known.sticky.iter().min_by_key(|(_, (_, at))| *at);
            let oldest = oldest.map(|(asked, _)| asked.clone());
            oldest.and_then(|asked| known.sticky.remove(&asked));
        }
        known
            .sticky
            .insert(asked.to_owned(), (pod.clone(), Instant::now()));
    }

    /// Whether one of the endpoints accepted a connection recently.
    pub(super) fn any_warm(&self, endpoints: &[Endpoint]) -> bool {
        let known = self.lock();
        let now = Instant::now();
        let warm = |e: &Endpoint| known.pods.get(&e.pod).is_some_and(|pod| pod.is_warm(now));
        endpoints.iter().any(warm)
    }
}

/// Counts a dial or a stream on a Pod until it is dropped.
#[derive(Debug)]
pub struct PodLease {
    health: EndpointHealth,
    pod: PodRef,
    phase: LeasePhase,
}

#[derive(Clone, Copy, Debug)]
enum LeasePhase {
    Dial {
        since: Instant,
        probe: bool,
    },
    Stream,
    /// The dial ended without a verdict about the Pod.
    Over,
}

impl PodLease {
    fn end_dial(&mut self, phase: LeasePhase, note: impl FnOnce(&mut PodHealth, Instant)) {
        let LeasePhase::Dial { probe, .. } = self.phase else {
            return;
        };
        self.phase = phase;
        if let Some(pod) = self.health.lock().pods.get_mut(&self.pod) {
            pod.probed &= !probe;
            note(pod, Instant::now());
        }
    }

    /// The dial failed because of the Pod.
    pub(super) fn failed(mut self) {
        self.end_dial(LeasePhase::Over, PodHealth::failed);
    }

    /// The dial failed for a reason that does not concern the Pod.
    pub(super) fn no_fault(mut self) {
        self.end_dial(LeasePhase::Over, |_, _| {});
    }

    /// The dial succeeded: the lease now counts the stream.
    pub(super) fn succeeded(&mut self) {
        self.end_dial(LeasePhase::Stream, |pod, now| {
            pod.streams += 1;
            pod.served = Some(now);
            (pod.failures, pod.retry) = (0, None);
        });
    }
}

impl Drop for PodLease {
    fn drop(&mut self) {
        if let LeasePhase::Dial { since, .. } = self.phase {
            // Dropped by the deadline, or because a parallel dial was faster.
            let slow = since.elapsed() >= SLOW;
            self.end_dial(LeasePhase::Over, |pod, now| {
                if slow {
                    pod.failed(now);
                }
            });
        }
        if let Some(pod) = self.health.lock().pods.get_mut(&self.pod) {
            pod.open -= 1;
            if let LeasePhase::Stream = self.phase {
                pod.streams -= 1;
                pod.served = Some(Instant::now());
            }
        }
    }
}
