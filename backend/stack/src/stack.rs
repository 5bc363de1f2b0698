//! THE DATA PATH: every layer between a target and its stream, in order, with the reason it stands there.

use std::time::Duration;

use kubevpn_cluster::Cluster;
use kubevpn_portforward::Forwarder;
use tower::ServiceBuilder;

use crate::{
    Deadline, DeadlineLayer, Failover, FailoverLayer, OnlyReady, OnlyReadyLayer, Resolve,
    ResolveLayer,
};

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// From the request to the open stream.
    pub dial_timeout: Duration,
    /// One attempt, while there are other endpoints to try.
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
pub type Stack<E> = Deadline<Resolve<OnlyReady<Failover<Forwarder>>, E>>;

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
        .layer(ResolveLayer::new(cluster, elsewhere))
        // Before picking: what is not ready is not worth an attempt, and may be worth waiting for.
        .layer(OnlyReadyLayer::waiting(settings.wait_ready))
        // Innermost: a failed dial takes the next of the endpoints that are left.
        .layer(FailoverLayer::new(settings.attempt_timeout))
        .service(forwarder)
}
