//! THE DATA PATH: every layer between a target and its stream, in order, with the reason it stands there.

use std::time::Duration;

use kubevpn_cluster::Cluster;
use kubevpn_portforward::Forwarder;
use tower::ServiceBuilder;

use crate::{Deadline, DeadlineLayer, Dispatch, DispatchLayer, Resolve, ResolveLayer};

/// Time limits.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// From the request to the open stream.
    pub dial_timeout: Duration,
    /// One attempt while there are other endpoints: 10 s, or 1 s if another is known to answer at once.
    pub attempt_timeout: Duration,
    /// How long a connection may be held while a Service has no ready endpoint, in addition to `dial_timeout`; zero: not
    /// at all.
    pub wait_ready: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(10),
            wait_ready: Duration::ZERO,
        }
    }
}

/// The default stack. Each of its layers is public and works alone: compose your own to leave one out or to add one.
pub type Stack<E> = Deadline<Resolve<Dispatch<Forwarder>, E>>;

/// Builds the default stack. Clones share the store of the cluster, the health of endpoints and the sessions.
///
/// Targets that no Pod serves go to `elsewhere`, normally an [`Egress`](crate::Egress).
pub fn stack<E: Clone>(
    cluster: Cluster,
    forwarder: Forwarder,
    elsewhere: E,
    settings: Settings,
) -> Stack<E> {
    ServiceBuilder::new()
        // Outermost: resolution and every attempt share one limit, so a client never waits longer.
        .layer(DeadlineLayer::new(
            settings.dial_timeout.saturating_add(settings.wait_ready),
        ))
        // Names come before the rest: the layers below handle Pods, and other targets leave here.
        .layer(ResolveLayer::new(cluster, elsewhere).ahead(forwarder.clone()))
        // Innermost, and one layer: the choice of an endpoint and the meaning of a failed dial depend on the same state.
        .layer(
            DispatchLayer::new(settings.attempt_timeout)
                .waiting(settings.wait_ready)
                .ahead(forwarder.clone()),
        )
        .service(forwarder)
}
