//! Connections to targets, kept for requests to come.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use kubevpn_target::Target;
use tokio::time::Instant;

use crate::upstream::Upstream;

/// A server that ends a connection which was idle for less than this is taken not to keep any.
const KEEPS_NONE: Duration = Duration::from_secs(1);
/// How long it is remembered how long a server keeps its connections.
const MEMORY: Duration = Duration::from_secs(300);
/// Of so many servers.
const MAX_LESSONS: usize = 1024;

/// How many connections a [`Pool`] keeps, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// To one target.
    pub per_target: usize,
    /// To all targets.
    pub total: usize,
    /// A connection nobody used for this long is closed.
    pub idle: Duration,
}

impl Default for PoolLimits {
    /// 128 per target, 256 in all, 15 seconds. A browser and a load test both stay below: beyond it every other
    /// request would open a connection and throw it away.
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
/// It learns how long a server keeps its connections: one that turned out dead when it was used again is
/// the last of its server's that is used after so long a pause.
///
/// ```
/// use kubevpn_http_connect::{Pool, PoolLimits};
/// let none = Pool::new(PoolLimits { total: 0, ..PoolLimits::default() });
/// assert_eq!(none.idle(), 0);
/// ```
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    limits: PoolLimits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    idle: HashMap<Target, Vec<Idle>>,
    count: usize,
    lessons: HashMap<Target, Lesson>,
    /// A task runs that closes what has been idle for too long.
    swept: bool,
}

struct Idle {
    upstream: Upstream,
    since: Instant,
    until: Instant,
}

struct Lesson {
    keep: Duration,
    learned: Instant,
}

/// A connection that was used before.
pub(crate) struct Reused {
    pub(crate) upstream: Upstream,
    /// How long nobody used it.
    pub(crate) rested: Duration,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(PoolLimits::default())
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("limits", &self.0.limits)
            .field("idle", &self.idle())
            .finish()
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(limits: PoolLimits) -> Self {
        Self(Arc::new(Inner {
            limits,
            state: Mutex::default(),
        }))
    }

    /// How many connections nobody uses now.
    pub fn idle(&self) -> usize {
        self.0.state().count
    }

    /// The connection to a target that was used last, if it still seems to be alive.
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

    /// Keeps a connection that is free, if there is room. `promised` is how long the server keeps it.
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
        idle.push(Idle {
            upstream,
            since: now,
            until: now + keep,
        });
        state.count += 1;
        if !std::mem::replace(&mut state.swept, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.0), limits.idle));
        }
    }

    /// A connection that had rested for so long was dead when it was used.
    pub(crate) fn learn(&self, target: &Target, rested: Duration) {
        let keep = match rested < KEEPS_NONE {
            true => Duration::ZERO,
            false => rested / 2,
        };
        let learned = Instant::now();
        let mut state = self.0.state();
        let stale: Vec<Idle> = state.take_all(target);
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

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pop(&mut self, target: &Target) -> Option<Idle> {
        let all = self.idle.get_mut(target)?;
        let last = all.pop();
        if all.is_empty() {
            self.idle.remove(target);
        }
        self.count -= usize::from(last.is_some());
        last
    }

    fn take_all(&mut self, target: &Target) -> Vec<Idle> {
        let all = self.idle.remove(target).unwrap_or_default();
        self.count -= all.len();
        all
    }

    /// Takes out what is over, and says when to look again.
    fn expire(&mut self, now: Instant, over: &mut Vec<Idle>) -> Option<Instant> {
        self.idle.retain(|_, all| {
            over.extend(all.extract_if(.., |idle| idle.until <= now));
            !all.is_empty()
        });
        self.count -= over.len();
        self.idle.values().flatten().map(|idle| idle.until).min()
    }
}

/// Closes connections when their time is over, for as long as there are any.
async fn sweep(pool: Weak<Inner>, first: Duration) {
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
