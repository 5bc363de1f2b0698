//! Ways to Pods that are opened before a connection asks for them.

use std::fmt;
use std::sync::Arc;

use kubevpn_cluster::Endpoint;
use kubevpn_portforward::{Forwarder, PodPort};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Lookups at a time that are made ahead of a connection.
const LOOKUPS: usize = 16;

/// Ways to Pods that can be opened before a connection needs them. None of the calls waits.
pub trait Ahead: Send + Sync + 'static {
    /// A connection to some Pod is likely soon.
    fn expect(&self);

    /// Opens the way to this Pod.
    fn warm(&self, to: &PodPort);

    /// Whether a connection to this Pod finds its way open.
    fn is_warm(&self, to: &PodPort) -> bool;
}

impl Ahead for Forwarder {
    fn expect(&self) {
        Self::expect(self);
    }

    fn warm(&self, to: &PodPort) {
        Self::warm(self, to);
    }

    fn is_warm(&self, to: &PodPort) -> bool {
        Self::is_warm(self, to)
    }
}

/// The [`Ahead`] that a layer was given, or none.
#[derive(Clone, Default)]
pub(crate) struct Ways(Option<Known>);

#[derive(Clone)]
struct Known {
    ahead: Arc<dyn Ahead>,
    turns: Arc<Semaphore>,
}

impl Ways {
    pub(crate) fn new(ahead: impl Ahead) -> Self {
        Self(Some(Known {
            ahead: Arc::new(ahead),
            turns: Arc::new(Semaphore::new(LOOKUPS)),
        }))
    }

    /// For one lookup that nobody waits for; `None` while there are as many as may be.
    pub(crate) fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let known = self.0.as_ref()?;
        known.turns.clone().try_acquire_owned().ok()
    }

    pub(crate) fn expect(&self) {
        if let Some(known) = &self.0 {
            known.ahead.expect();
        }
    }

    pub(crate) fn warm(&self, to: &Endpoint) {
        if let Some(known) = &self.0 {
            known.ahead.warm(&pod_port(to));
        }
    }

    pub(crate) fn is_warm(&self, to: &Endpoint) -> bool {
        let known = self.0.as_ref();
        known.is_some_and(|known| known.ahead.is_warm(&pod_port(to)))
    }
}

impl fmt::Debug for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Ways" } else { "None" })
    }
}

pub(crate) fn pod_port(endpoint: &Endpoint) -> PodPort {
    PodPort {
        namespace: endpoint.pod.namespace.clone(),
        pod: endpoint.pod.name.clone(),
        uid: endpoint.pod.uid.clone(),
        port: endpoint.port,
    }
}
