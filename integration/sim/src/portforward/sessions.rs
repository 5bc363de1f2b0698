//! The port-forward sessions that are open.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::faults::SimTransport;
use crate::link::Link;
use crate::pod::PodInfo;

/// A live port-forward session, as it was when asked. See [`Sim::sessions`](crate::Sim::sessions).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimSession {
    /// For [`Sim::kill_session`](crate::Sim::kill_session).
    pub id: u64,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// What carries it.
    pub transport: SimTransport,
    /// Who opened it.
    pub user: String,
    /// Forwarded connections open in it now.
    pub open: usize,
    /// Forwarded connections opened in it so far.
    pub total: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Sessions {
    entries: Arc<Mutex<BTreeMap<u64, SimSessionEntry>>>,
}

#[derive(Debug)]
struct SimSessionEntry {
    session: SimSession,
    link: Link,
    counts: Arc<SessionCounts>,
}

#[derive(Debug, Default)]
struct SessionCounts {
    open: AtomicUsize,
    total: AtomicUsize,
}

/// A session's place among the open ones; gives it up when dropped.
#[derive(Debug)]
pub(crate) struct SessionPlace {
    id: u64,
    counts: Arc<SessionCounts>,
    entries: Arc<Mutex<BTreeMap<u64, SimSessionEntry>>>,
}

/// Counts a session's forwarded connections, also when the session itself is over.
#[derive(Clone, Debug)]
pub(super) struct Counter(Arc<SessionCounts>);

/// Counts a forwarded connection while it lives.
#[derive(Debug)]
pub(super) struct CountedForward(Arc<SessionCounts>);

impl Sessions {
    pub(super) fn open(
        &self,
        link: &Link,
        pod: &PodInfo,
        transport: SimTransport,
        user: &str,
    ) -> SessionPlace {
        let counts = Arc::new(SessionCounts::default());
        let mut entries = lock(&self.entries);
        // A connection is upgraded once: its number will do.
        let id = link.id;
        entries.insert(
            id,
            SimSessionEntry {
                session: SimSession {
                    id,
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    transport,
                    user: user.into(),
                    open: 0,
                    total: 0,
                },
                link: link.clone(),
                counts: Arc::clone(&counts),
            },
        );
        SessionPlace {
            id,
            counts,
            entries: Arc::clone(&self.entries),
        }
    }

    pub(crate) fn list(&self) -> Vec<SimSession> {
        let entries = lock(&self.entries);
        let now = |entry: &SimSessionEntry| SimSession {
            open: entry.counts.open.load(Ordering::Relaxed),
            total: entry.counts.total.load(Ordering::Relaxed),
            ..entry.session.clone()
        };
        let open = entries.values().filter(|e| e.link.is_open());
        open.map(now).collect()
    }

    /// Resets the connection of a session; whether it was there.
    pub(crate) fn kill(&self, id: u64) -> bool {
        let link = lock(&self.entries).get(&id).map(|e| e.link.clone());
        link.is_some_and(|l| l.reset())
    }

    /// Lets no byte of a session pass, or lets them pass again; whether it was there.
    pub(crate) fn silence(&self, id: u64, silent: bool) -> bool {
        let link = lock(&self.entries).get(&id).map(|e| e.link.clone());
        link.inspect(|l| l.set_silent(silent)).is_some()
    }
}

impl SessionPlace {
    pub(super) fn counter(&self) -> Counter {
        Counter(Arc::clone(&self.counts))
    }
}

impl Counter {
    pub(super) fn count(&self) -> CountedForward {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        self.0.total.fetch_add(1, Ordering::Relaxed);
        CountedForward(Arc::clone(&self.0))
    }
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        lock(&self.entries).remove(&self.id);
    }
}

impl Drop for CountedForward {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock(
    entries: &Mutex<BTreeMap<u64, SimSessionEntry>>,
) -> MutexGuard<'_, BTreeMap<u64, SimSessionEntry>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}
