//! Which of several Pods gets the next connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kubevpn_cluster::{Endpoint, PodRef};
use tokio::time::Instant;

/// How long a Pod whose dial failed is tried only after the others.
const AVOID: Duration = Duration::from_secs(5);
/// Pods without an open stream are forgotten beyond this many.
const REMEMBERED: usize = 4096;

/// Open streams per Pod, shared by all clones.
///
/// The next connection goes to the Pod with the fewest open streams, so that replicas are used evenly even when
/// connections live unevenly long; among equals to the one that was used longest ago. A Pod whose dial has
/// just failed comes last.
#[derive(Clone, Debug, Default)]
pub struct Balance {
    pods: Arc<Mutex<Pods>>,
}

#[derive(Debug, Default)]
struct Pods {
    load: HashMap<PodRef, Load>,
    picks: u64,
}

#[derive(Debug, Default)]
struct Load {
    open: usize,
    last_pick: u64,
    failed: Option<Instant>,
}

impl Balance {
    /// Takes the best endpoint out of `endpoints` and counts a stream on its Pod until the slot is dropped.
    pub(crate) fn take(&self, endpoints: &mut Vec<Endpoint>) -> Option<(Endpoint, Slot)> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let best = (0..endpoints.len()).min_by_key(|&i| {
            pods.load
                .get(&endpoints[i].pod)
                .map_or((false, 0, 0), |load| {
                    (
                        load.failed.is_some_and(|at| at.elapsed() < AVOID),
                        load.open,
                        load.last_pick,
                    )
                })
        })?;
        let endpoint = endpoints.swap_remove(best);
        pods.picks += 1;
        let pick = pods.picks;
        if pods.load.len() >= REMEMBERED {
            pods.load.retain(|_, load| load.open > 0);
        }
        let load = pods.load.entry(endpoint.pod.clone()).or_default();
        load.open += 1;
        load.last_pick = pick;
        let slot = Slot {
            balance: self.clone(),
            pod: endpoint.pod.clone(),
        };
        Some((endpoint, slot))
    }

    fn with(&self, pod: &PodRef, change: impl FnOnce(&mut Load)) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(load) = pods.load.get_mut(pod) {
            change(load);
        }
    }
}

/// One stream's place on a Pod.
#[derive(Debug)]
pub struct Slot {
    balance: Balance,
    pod: PodRef,
}

impl Slot {
    /// The dial failed: prefer other Pods for a while.
    pub(crate) fn failed(self) {
        self.balance
            .with(&self.pod, |load| load.failed = Some(Instant::now()));
    }

    /// The dial succeeded.
    pub(crate) fn succeeded(&self) {
        self.balance.with(&self.pod, |load| load.failed = None);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.balance.with(&self.pod, |load| load.open -= 1);
    }
}
