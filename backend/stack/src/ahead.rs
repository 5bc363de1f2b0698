//! Sessions to Pods that are opened before a connection needs them.

use std::fmt;
use std::sync::Arc;

use kubevpn_cluster::{Endpoint, PodRef};
use kubevpn_portforward::{Forwarder, PodPort, PodSessionState};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Limit on simultaneous lookups made ahead of a connection.
const LOOKUPS: usize = 16;

/// Opens sessions to Pods before a connection needs them. No call waits.
pub trait Ahead: Send + Sync + 'static {
    /// Announces that a connection to some Pod is likely soon.
    fn expect(&self);

    /// Opens a session to this Pod.
    fn warm(&self, to: &PodPort);

    /// What a new connection to this Pod would find.
    fn way(&self, to: &PodPort) -> PodSessionState;

    /// Whether opening a session takes long.
    fn is_far(&self) -> bool;
}

impl Ahead for Forwarder {
    fn expect(&self) {
        Self::expect(self);
    }

    fn warm(&self, to: &PodPort) {
        Self::warm(self, to);
    }

    fn way(&self, to: &PodPort) -> PodSessionState {
        Self::way(self, to)
    }

    fn is_far(&self) -> bool {
        Self::is_far(self)
    }
}

/// The [`Ahead`] that a layer was given, or none.
#[derive(Clone, Default)]
pub(crate) struct Ways(Option<AheadTurns>);

#[derive(Clone)]
struct AheadTurns {
    ahead: Arc<dyn Ahead>,
    turns: Arc<Semaphore>,
}

impl Ways {
    pub(crate) fn new(ahead: impl Ahead) -> Self {
        Self(Some(AheadTurns {
            ahead: Arc::new(ahead),
            turns: Arc::new(Semaphore::new(LOOKUPS)),
        }))
    }

    /// A permit for one lookup made ahead; `None` at the limit.
    pub(crate) fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let known = self.0.as_ref()?;
        known.turns.clone().try_acquire_owned().ok()
    }

    pub(crate) fn expect(&self) {
        if let Some(known) = &self.0 {
            known.ahead.expect();
        }
    }

    pub(crate) fn warm(&self, to: &PodRef) {
        if let Some(known) = &self.0 {
            known.ahead.warm(&at_port(to, 0));
        }
    }

    pub(crate) fn to(&self, to: &PodRef) -> PodSessionState {
        let known = self.0.as_ref();
        known.map_or(PodSessionState::Closed, |known| {
            known.ahead.way(&at_port(to, 0))
        })
    }

    pub(crate) fn are_far(&self) -> bool {
        self.0.as_ref().is_some_and(|known| known.ahead.is_far())
    }
}

impl fmt::Debug for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Ways" } else { "None" })
    }
}

pub(crate) fn pod_port(endpoint: &Endpoint) -> PodPort {
    at_port(&endpoint.pod, endpoint.port)
}

fn at_port(pod: &PodRef, port: u16) -> PodPort {
    PodPort {
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        uid: pod.uid.clone(),
        port,
    }
}
