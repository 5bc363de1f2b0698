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
    /// There is reason to doubt it: it is being probed.
    Suspected(SessionName<'a>),
    /// All probes were answered after all.
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

/// Which session.
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
    /// How it is.
    pub health: SessionHealth,
    /// How long ago it was opened.
    pub age: Duration,
    /// How long ago something came over it.
    pub silent: Duration,
}

/// How a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionHealth {
    /// Nothing is known against it.
    Well,
    /// It is being probed, with reason.
    Suspect,
    /// A connection on it is not read, and may hold up the others.
    Stalled,
    /// Parts of it carry nothing any more.
    Wedged,
    /// It takes no new connections, and ends with its last.
    Closing,
}

/// Told at once, under the pool's lock at times: it must be quick, not wait, and not ask the forwarder anything.
pub(crate) type Told = Arc<dyn Fn(SessionNews<'_>) + Send + Sync>;
