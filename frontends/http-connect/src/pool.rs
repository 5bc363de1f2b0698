//! Idle connections to targets, kept for later requests.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use kubevpn_target::Target;
use tokio::time::Instant;

use crate::upstream::Upstream;

/// A server that ends a connection which was idle for less than this counts as keeping none.
const KEEPS_NONE: Duration = Duration::from_secs(1);
/// How long a server's keep-alive time is remembered.
const MEMORY: Duration = Duration::from_secs(300);
/// Limit on servers whose keep-alive time is remembered.
const MAX_LESSONS: usize = 1024;

/// Limits of a [`UpstreamPool`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Connections to one target.
    pub per_target: usize,
    /// Connections to all targets.
    pub total: usize,
    /// A connection that was unused for this long is closed.
    pub idle: Duration,
}

impl Default for PoolLimits {
    /// 128 per target, 256 in total, 15 seconds. A browser and a load test both stay below; beyond it, every other
    /// request would open a connection and discard it.
    fn default() -> Self {
        Self {
            per_target: 128,
            total: 256,
            idle: Duration::from_secs(15),
        }
    }
}

/// Idle HTTP connections to targets. Clones are the same pool.
///
/// It learns a server's keep-alive time: after a reused connection turned out to be dead, connections of that
/// server are not reused after as long a pause.
///
/// ```
/// use kubevpn_http_connect::{UpstreamPool, PoolLimits};
/// let none = UpstreamPool::new(PoolLimits { total: 0, ..PoolLimits::default() });
/// assert_eq!(none.idle(), 0);
/// ```
#[derive(Clone)]
pub struct UpstreamPool(Arc<PoolShared>);

struct PoolShared {
    limits: PoolLimits,
    state: Mutex<IdlePool>,
}

#[derive(Default)]
struct IdlePool {
    idle: HashMap<Target, Vec<IdleUpstream>>,
    count: usize,
    lessons: HashMap<Target, Lesson>,
    /// Whether the task that closes expired connections runs.
    swept: bool,
}

struct IdleUpstream {
    upstream: Upstream,
    since: Instant,
    until: Instant,
}

struct Lesson {
    keep: Duration,
    learned: Instant,
}

/// A reused connection.
pub(crate) struct Reused {
    pub(crate) upstream: Upstream,
    /// How long it was idle.
    pub(crate) rested: Duration,
}

impl Default for UpstreamPool {
    fn default() -> Self {
        Self::new(PoolLimits::default())
    }
}

impl fmt::Debug for UpstreamPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("limits", &self.0.limits)
            .field("idle", &self.idle())
            .finish()
    }
}

impl UpstreamPool {
    /// An empty pool.
    pub fn new(limits: PoolLimits) -> Self {
        Self(Arc::new(PoolShared {
            limits,
            state: Mutex::default(),
        }))
    }

    /// Number of idle connections.
    pub fn idle(&self) -> usize {
        self.0.state().count
    }

    /// Takes the most recently used connection to a target, if it still seems to be alive.
    pub(crate) async fn take(&self, target: &Target) -> Option<Reused> {
        loop {
            let mut idle = self.0.state().pop(target)?;
            let now = Instant::now();
            let free =
                now < idle.until && poll_fn(|cx| Poll::Ready(idle.upstream.is_free(cx))).await;
            if free {
                return Some(Reused {
                    upstream: idle.upstream,
                    rested: now - idle.since,
                });
            }
        }
    }

    /// Keeps an idle connection, if there is room. `promised` is the server's keep-alive time.
    pub(crate) fn put(&self, target: &Target, upstream: Upstream, promised: Option<Duration>) {
        let limits = &self.0.limits;
        let now = Instant::now();
        let mut state = self.0.state();
        let learned = state.lessons.get(target);
        let learned = learned.filter(|l| now - l.learned < MEMORY).map(|l| l.keep);
        let keep = [promised, learned]
            .into_iter()
            .flatten()
            .fold(limits.idle, Duration::min);
        if keep.is_zero() || state.count >= limits.total {
            return;
        }
        let idle = state.idle.entry(target.clone()).or_default();
        if idle.len() >= limits.per_target {
            return;
        }
        idle.push(IdleUpstream {
            upstream,
            since: now,
            until: now + keep,
        });
        state.count += 1;
        if !std::mem::replace(&mut state.swept, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.0), limits.idle));
        }
    }

    /// Learns that a connection was dead after this idle time.
    pub(crate) fn learn(&self, target: &Target, rested: Duration) {
        let keep = match rested < KEEPS_NONE {
            true => Duration::ZERO,
            false => rested / 2,
        };
        let learned = Instant::now();
        let mut state = self.0.state();
        let stale: Vec<IdleUpstream> = state.take_all(target);
        if state.lessons.len() >= MAX_LESSONS {
            state.lessons.retain(|_, l| learned - l.learned < MEMORY);
        }
        if state.lessons.len() < MAX_LESSONS {
            state
                .lessons
                .insert(target.clone(), Lesson { keep, learned });
        }
        drop(state);
        drop(stale);
    }
}

impl PoolShared {
    fn state(&self) -> MutexGuard<'_, IdlePool> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdlePool {
    fn pop(&mut self, target: &Target) -> Option<IdleUpstream> {
        let all = self.idle.get_mut(target)?;
        let last = all.pop();
        if all.is_empty() {
            self.idle.remove(target);
        }
        self.count -= usize::from(last.is_some());
        last
    }

    fn take_all(&mut self, target: &Target) -> Vec<IdleUpstream> {
        let all = self.idle.remove(target).unwrap_or_default();
        self.count -= all.len();
        all
    }

    /// Removes expired connections, and returns when to check again.
    fn expire(&mut self, now: Instant, over: &mut Vec<IdleUpstream>) -> Option<Instant> {
        self.idle.retain(|_, all| {
            over.extend(all.extract_if(.., |idle| idle.until <= now));
            !all.is_empty()
        });
        self.count -= over.len();
        self.idle.values().flatten().map(|idle| idle.until).min()
    }
}

/// Closes expired connections until none is left.
async fn sweep(pool: Weak<PoolShared>, first: Duration) {
    let mut next = Instant::now() + first;
    loop {
        tokio::time::sleep_until(next).await;
        let Some(pool) = pool.upgrade() else {
            return;
        };
        let mut over = Vec::new();
        let mut state = pool.state();
        match state.expire(Instant::now(), &mut over) {
            Some(at) => next = at,
            None => {
                state.swept = false;
                return;
            }
        }
    }
}
