//! Changes of sessions and the durations of dials, for metrics and the status page.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Transport;
use crate::pod::PodId;

/// Change of a session, or a dial that succeeded.
#[derive(Clone, Copy, Debug)]
pub enum SessionNews<'a> {
    /// The session is open.
    Opened(SessionName<'a>, Transport),
    /// The session is suspected and being probed.
    Suspected(SessionName<'a>),
    /// All probes were answered.
    Recovered(SessionName<'a>),
    /// The session has ended, for this reason.
    Ended(SessionName<'a>, &'a str),
    /// A connection was opened.
    Dialled {
        /// The wait for a session.
        session: Duration,
        /// The connection's streams on it, and the first answer of its port where that is waited for.
        stream: Duration,
    },
}

/// Identity of a session.
#[derive(Clone, Copy, Debug)]
pub struct SessionName<'a> {
    /// Its number within the forwarder.
    pub id: u64,
    /// The Pod's namespace.
    pub namespace: &'a str,
    /// The Pod's name.
    pub pod: &'a str,
}

impl<'a> SessionName<'a> {
    pub(crate) fn new(pod: &'a PodId, id: u64) -> Self {
        Self {
            id,
            namespace: &pod.namespace,
            pod: &pod.pod,
        }
    }
}

/// A session that is open.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionState {
    /// Its number within the forwarder.
    pub id: u64,
    /// The Pod's namespace.
    pub namespace: String,
    /// The Pod's name.
    pub pod: String,
    /// What carries it.
    pub transport: Transport,
    /// Connections on it.
    pub connections: usize,
    /// Its health.
    pub health: SessionHealth,
    /// How long ago it was opened.
    pub age: Duration,
    /// Time since something was received on it.
    pub silent: Duration,
}

/// Health of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionHealth {
    /// No known problem.
    Well,
    /// Suspected, and being probed.
    Suspect,
    /// A connection on it is not read, and may hold up the others.
    Stalled,
    /// A worker of the server is stopped, and some connections carry nothing.
    Wedged,
    /// Takes no new connections, and ends with its last one.
    Closing,
}

/// Called synchronously, sometimes under the pool's lock: it must be quick, must not block, and must not call the
/// forwarder.
pub(crate) type SessionObserver = Arc<dyn Fn(SessionNews<'_>) + Send + Sync>;
