//! THE DATA PATH: every layer between a target and its stream, in order, with the reason it stands there.

use std::time::Duration;

use kubevpn_cluster::Cluster;
use kubevpn_portforward::Forwarder;
use tower::ServiceBuilder;

use crate::{Deadline, DeadlineLayer, Dispatch, DispatchLayer, Resolve, ResolveLayer};

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// From the request to the open stream.
    pub dial_timeout: Duration,
    /// One attempt, while there are other endpoints to try: 10 s, and 1 s where another is known to answer at once.
    pub attempt_timeout: Duration,
    /// How long a connection may be held while a Service has no ready endpoint, beside the rest; zero for not
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

/// The default chain. Each of its layers is public and works alone: compose your own to leave one out or put one
/// of yours between.
pub type Stack<E> = Deadline<Resolve<Dispatch<Forwarder>, E>>;

/// Builds the default chain. Clones share the cluster's view, the load balance and the sessions.
///
/// What no Pod serves goes to `elsewhere`, an [`Egress`](crate::Egress) as a rule.
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
        // Names before anything else: all below speaks of Pods, and the rest leaves here.
        .layer(ResolveLayer::new(cluster, elsewhere).ahead(forwarder.clone()))
        // Innermost, and one layer: which endpoint is dialled, and what a failed dial means, follows from what there is
        // and from what was tried.
        .layer(
            DispatchLayer::new(settings.attempt_timeout)
                .waiting(settings.wait_ready)
                .ahead(forwarder.clone()),
        )
        .service(forwarder)
}
