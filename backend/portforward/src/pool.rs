//! Sessions per Pod: chosen, shared, probed, retired.
//!
//! A dial (`../dial.rs`) takes a session (chosen in `choose.rs`) and opens a stream on it. Upgrades run in tasks of their
//! own, so that other dials still get the session of a dial that was given up. `warm.rs` opens sessions ahead of any dial,
//! `keep.rs` watches over open ones; `state.rs` is the state that all share.
//!
//! Invariants, at every moment the lock is free:
//!
//! * `PoolState::sessions` is the sum of [`PodSessions::sessions`](state::PodSessions::sessions) over all Pods, `PoolState::extras` the sum of those beyond
//!   the first of each Pod. Only `PoolState::gain` and `PoolState::lose` change them.
//! * From before its [`Lease`] is handed out until the lease is dropped, a connection is in `SessionEntry::connections` of its
//!   session, or in `Pod::channels` if it has no session or the session has ended. Only `step`, `lease_channel`,
//!   `session_ended` and `Lease::drop` change these lists.
//! * Whether a side of a connection has ended is stored in its [`ConnectionCounters`] only, and set by its `Lease` only.
//! * `Pod::lingering` holds the connections whose client has ended and whose Pod has not, unless they were cut.
//! * A Pod is in the map while it has a session, a connection, an upgrade under way, a dial that waits, or a port known
//!   to be good.
//! * A retired session gets no new connection and is closed with its last one.
//!
//! Lock order: the pool's lock, then a session's (in `kubevpn_spdy`). Neither is held across an await or while a task is
//! spawned: a runtime that is ending drops the task at once, and its guard takes the pool's lock.

mod choose;
mod keep;
mod lease;
mod linger;
mod probe;
mod state;
#[cfg(test)]
mod tests;
mod warm;

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use kubevpn_spdy::{Config as SpdyConfig, Session, SessionError, Unread};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, sleep};
use tracing::instrument::WithSubscriber as _;

use self::choose::{Choice, Demand, SessionChoice, choose};
pub(crate) use self::lease::Lease;
use self::probe::Probe;
use self::state::{FailedUpgrade, PoolState, SessionEntry, UpgradeFailure};
use crate::config::{Config, Transport};
use crate::error::{ForwardError, Rejection};
use crate::news::{SessionName, SessionNews, SessionObserver, SessionState};
use crate::pod::PodId;
use crate::stats::{ConnectionCounters, Epoch, Stats};
use crate::transport::{BoxFuture, OpenedSession, Opener, SessionIo};

/// All sessions of a forwarder.
pub(crate) struct Pool {
    config: Arc<Config>,
    opener: Box<dyn Opener>,
    epoch: Epoch,
    /// Unread bytes of all sessions.
    unread: Unread,
    state: Mutex<PoolState>,
    /// Wakes the keeper: there are sessions to watch over.
    busy: Arc<Notify>,
    /// Notified when a session has ended.
    ended: Notify,
    told: OnceLock<SessionObserver>,
}

/// A session to open a stream on.
pub(crate) struct TakenSession {
    pub(crate) lease: Lease,
    pub(crate) handle: Session,
    pub(crate) transport: Transport,
    pub(crate) opened: Instant,
    pub(crate) request: u64,
    /// The port is known to be good.
    pub(crate) good: bool,
}

/// What a dial does next, decided under the lock.
enum SearchStep {
    Take(Box<TakenSession>),
    /// Wait until the Pod's state changes.
    Wait(OwnedNotified),
    ChannelsOnly(Vec<Rejection>),
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The keeper wakes, finds nothing to keep, and ends.
        self.busy.notify_one();
    }
}

impl Pool {
    pub(crate) fn new(config: Arc<Config>, opener: Box<dyn Opener>) -> Arc<Self> {
        Arc::new(Self {
            unread: Unread::limited(config.unread),
            config,
            opener,
            epoch: Epoch::new(),
            state: Mutex::default(),
            busy: Arc::default(),
            ended: Notify::new(),
            told: OnceLock::new(),
        })
    }

    pub(crate) fn config(&self) -> &Arc<Config> {
        &self.config
    }

    pub(crate) fn opener(&self) -> &dyn Opener {
        &*self.opener
    }

    /// Counts a dial by its outcome.
    pub(crate) fn count_dial(&self, failed: Option<&ForwardError>) {
        let counts = &mut self.state().counts;
        match failed {
            None => counts.opened += 1,
            Some(ForwardError::Refused { .. }) => counts.refused += 1,
            Some(_) => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // === getting a session ===

    /// Waits for a session. The inner error lists the transports that were turned down, if there are no sessions at all.
    pub(crate) async fn session(
        self: &Arc<Self>,
        pod: &Arc<PodId>,
        port: u16,
        heard_since: Option<Instant>,
    ) -> Result<Result<Box<TakenSession>, Vec<Rejection>>, ForwardError> {
        let mut waiting = None;
        let mut share = pin!(sleep(self.config.share_after));
        let mut ask = SessionSearch {
            port,
            heard_since,
            asked: Instant::now(),
            failures: None,
            patient: true,
            waits: false,
        };
        loop {
            let change = match self.step(pod, &mut ask)? {
                SearchStep::Take(taken) => return Ok(Ok(taken)),
                SearchStep::ChannelsOnly(tried) => return Ok(Err(tried)),
                SearchStep::Wait(change) => change,
            };
            waiting.get_or_insert_with(|| Waiting {
                pool: self.clone(),
                pod: pod.clone(),
            });
            tokio::select! {
                () = change => {}
                () = &mut share, if ask.patient => ask.patient = false,
            }
        }
    }

    fn step(
        self: &Arc<Self>,
        id: &Arc<PodId>,
        ask: &mut SessionSearch,
    ) -> Result<SearchStep, ForwardError> {
        let mut upgrade = None;
        let step = self.decide(&mut self.state(), id, ask, &mut upgrade);
        upgrade.into_iter().for_each(spawn);
        step
    }

    /// The next step of a dial, and the upgrade to start for it.
    fn decide(
        self: &Arc<Self>,
        state: &mut PoolState,
        id: &Arc<PodId>,
        ask: &mut SessionSearch,
        upgrade: &mut Option<BoxFuture<()>>,
    ) -> Result<SearchStep, ForwardError> {
        let now = self.epoch.now();
        if state.shut {
            return Err(ForwardError::ShutDown);
        }
        let (limit, extras) = (self.config.sessions, state.extras);
        let crowded = state.sessions >= limit;
        // Below half of the limit a Pod may have more than one session; its first is always allowed.
        let ample = 2 * extras < limit;
        let below_limit = extras < limit || state.idle_extra().is_some();
        let quick = state.upgrades_take(self.config.share_after);
        let pod = state.pod(id);
        self.check_streams(id, pod)?;
        let since = *ask.failures.get_or_insert_with(|| {
            pod.arrivals.count(now);
            pod.failures
        });
        let (indices, views): (Vec<_>, Vec<_>) = pod
            .views(now, &self.config, ask.heard_since)
            .into_iter()
            .unzip();
        // The line of an upgrade that had been silent for long when this dial began may be gone: the dial neither waits for it
        // nor takes its failure for its own, unless it has a session to share meanwhile.
        let (asked, stagger) = (ask.asked, self.config.transport_stagger);
        let in_time = |began: &Instant| asked.saturating_duration_since(*began) < stagger;
        let shares = views.iter().any(|v| !v.full && !v.busy && !v.suspect);
        let opening = pod.opening.iter().filter(|b| shares || in_time(b)).count();
        // Upgrades failed that this dial, or dials that waited with it, had asked for: at most as many as were under way.
        // The dial does not wait for upgrades that others ask for later.
        let is_own = |f: &&FailedUpgrade| f.number > since && in_time(&f.began);
        let mut failures = pod.failed.iter().filter(is_own);
        let failure = failures.next_back().map(|f| f.why.clone());
        let failed = usize::from(failure.is_some()) + failures.count();
        let all_failed = failed >= self.config.upgrades_at_once;
        // A Pod without a session that takes the connection may always open one. Sessions that are retired, going
        // away, or silent since this dial failed on one of them are not among the views.
        let first = views.is_empty() && opening == 0;
        let is_full = pod.opening.len() >= 2 * self.config.upgrades_at_once;
        let demand = Demand {
            held: pod.held(),
            opening: if all_failed { 0 } else { opening },
            waiting: pod.waiting - usize::from(ask.waits),
            room: (first || below_limit) && failed == 0,
            allowance: match ample {
                true => self.config.sessions_per_pod,
                false => self.config.sessions_per_pod.min(2),
            },
            hurried: pod.arrivals.exceed(self.config.hurry),
            patient: ask.patient,
            quick,
            spare: ample && pod.wants_spare(now),
        };
        let Choice { what, open } = choose(&views, demand, &self.config);
        if matches!(what, SessionChoice::Wait | SessionChoice::Full) {
            match failure {
                Some(UpgradeFailure::ChannelsOnly(tried)) => {
                    return Ok(SearchStep::ChannelsOnly(tried));
                }
                Some(UpgradeFailure::Error(error)) if what == SessionChoice::Full => {
                    return Err(error);
                }
                _ => {}
            }
        }
        if !matches!(what, SessionChoice::Free(_)) && !views.is_empty() {
            pod.want_spare(now);
        }
        if open && !is_full {
            let idle = match () {
                () if extras >= limit && !first => state.idle_extra(),
                // The one that was chosen has no connection yet.
                () if crowded && !matches!(what, SessionChoice::Free(_)) => state.idle(),
                () => None,
            };
            if let Some(idle) = idle {
                idle.retire();
            }
            *upgrade = Some(self.open(state, id, false));
        }
        let pod = state.pod(id);
        let index = match what {
            SessionChoice::Free(index) | SessionChoice::Share(index) => indices[index],
            // The entry is looked up again: an unused Pod is removed from the map together with its notifier.
            SessionChoice::Wait => {
                // Set under the same lock: a Pod for which a dial waits is not removed.
                pod.waiting += usize::from(!std::mem::replace(&mut ask.waits, true));
                return Ok(SearchStep::Wait(pod.changed.clone().notified_owned()));
            }
            SessionChoice::Full => {
                let (what, limit) = match first || below_limit {
                    true => (format!("pod {id}"), 2 * self.config.sessions_per_pod),
                    false => ("this program".into(), self.config.sessions),
                };
                return Err(ForwardError::Overloaded {
                    what,
                    limit,
                    of: "sessions",
                });
            }
        };
        let good = pod.is_good(ask.port, now);
        let entry = &mut pod.sessions[index];
        let connection = Arc::new(ConnectionCounters::new(self.epoch));
        entry.connections.push(connection.clone());
        entry.used = now;
        entry.ahead = false;
        entry.request += 1;
        Ok(SearchStep::Take(Box::new(TakenSession {
            handle: entry.handle.clone(),
            transport: entry.transport,
            opened: entry.opened,
            request: entry.request,
            lease: Lease::new(self, id, ask.port, connection, Some(entry)),
            good,
        })))
    }

    /// A lease for a connection that is an upgrade of its own, and whether its port is known to be good.
    pub(crate) fn lease_channel(
        self: &Arc<Self>,
        id: &Arc<PodId>,
        port: u16,
    ) -> Result<(Lease, bool), ForwardError> {
        let mut state = self.state();
        if state.shut {
            return Err(ForwardError::ShutDown);
        }
        let now = self.epoch.now();
        let pod = state.pod(id);
        self.check_streams(id, pod)?;
        let good = pod.is_good(port, now);
        let connection = Arc::new(ConnectionCounters::new(self.epoch));
        pod.channels.push(connection.clone());
        state.counts.upgrades += 1;
        Ok((Lease::new(self, id, port, connection, None), good))
    }

    fn check_streams(&self, id: &PodId, pod: &state::PodSessions) -> Result<(), ForwardError> {
        let limit = self.config.streams_per_pod;
        if pod.streams() < limit {
            return Ok(());
        }
        Err(ForwardError::Overloaded {
            what: format!("pod {id}"),
            limit,
            of: "connections",
        })
    }

    /// An upgrade, to be spawned: for a dial that waits, or `ahead` of any.
    fn open(
        self: &Arc<Self>,
        state: &mut PoolState,
        id: &Arc<PodId>,
        ahead: bool,
    ) -> BoxFuture<()> {
        state.gain(id);
        state.counts.upgrades += 1;
        let began = Instant::now();
        state.pod(id).opening.push(began);
        state.warming += usize::from(ahead);
        let opening = OpeningSession {
            pool: self.clone(),
            pod: id.clone(),
            began,
            ahead,
            failed: Some(UpgradeFailure::Error(ForwardError::session_lost(
                id.to_string(),
                "the upgrade was cut off",
            ))),
        };
        let asked = self.opener.session(id.clone());
        Box::pin(async move {
            let failed = match asked.await {
                Ok(OpenedSession::Session(io, transport)) => {
                    opening.pool.state().upgrade_took(began.elapsed());
                    opening.pool.add(&opening.pod, io, transport, ahead);
                    None
                }
                Ok(OpenedSession::ChannelsOnly(tried)) => Some(UpgradeFailure::ChannelsOnly(tried)),
                Err(error) => {
                    tracing::debug!(pod = %opening.pod, %error, "no session");
                    Some(UpgradeFailure::Error(error))
                }
            };
            opening.done(failed);
        })
    }

    /// Adds a new session to the pool.
    fn add(
        self: &Arc<Self>,
        pod: &Arc<PodId>,
        io: Box<dyn SessionIo>,
        transport: Transport,
        ahead: bool,
    ) {
        let config = SpdyConfig {
            stream_buffer: self.config.unread_per_stream,
            session_buffer: self.config.unread_per_session,
            unread: self.unread.clone(),
            // A connection has two streams. The limit that takes effect is the Pod's.
            max_streams: 2 * self.config.streams_per_pod,
            ..SpdyConfig::default()
        };
        let (handle, driver) = kubevpn_spdy::client(io, config);
        let now = self.epoch.now();
        let mut state = self.state();
        if state.shut {
            return;
        }
        let id = state.next_id;
        state.next_id += 1;
        state.gain(pod);
        state.drivers += 1;
        state.pod(pod).sessions.push(SessionEntry {
            id,
            handle,
            transport,
            connections: Vec::new(),
            opened: Instant::now(),
            used: now,
            ahead,
            request: 0,
            retired: false,
            wedged: Arc::default(),
            stalled: false,
            probe: Probe::new(now),
        });
        drop(state);
        tracing::info!(%pod, %transport, session = id, "session begins");
        self.tell(|| SessionNews::Opened(SessionName::new(pod, id), transport));
        let driven = DrivenSession {
            pool: Arc::downgrade(self),
            pod: pod.clone(),
            id,
            why: SessionError::DriverGone,
        };
        spawn(async move {
            let why = driver.await;
            driven.done(why);
        });
        self.busy.notify_one();
    }

    fn session_ended(&self, pod: &Arc<PodId>, id: u64, why: &SessionError) {
        let mut state = self.state();
        state.drivers -= 1;
        let connections = {
            let pod = state.pod(pod);
            let index = pod.sessions.iter().position(|e| e.id == id);
            let entry = index.map(|index| pod.sessions.swap_remove(index));
            pod.wake();
            entry.map_or_else(Vec::new, |e| e.connections)
        };
        state.lose(pod);
        // Connections of the session are counted until they are dropped.
        state.pod(pod).channels.extend(connections.iter().cloned());
        drop(state);
        tracing::info!(%pod, session = id, streams = connections.len(), %why, "session ends");
        if let Some(told) = self.told.get() {
            let why = why.to_string();
            told(SessionNews::Ended(SessionName::new(pod, id), &why));
        }
        self.ended.notify_waiters();
    }

    // === inspection ===

    pub(crate) fn stats(&self) -> Stats {
        self.state().stats()
    }

    pub(crate) fn sessions(&self) -> Vec<SessionState> {
        self.state().sessions()
    }

    pub(crate) fn tell_to(&self, told: SessionObserver) {
        let _ = self.told.set(told);
    }

    pub(crate) fn tell<'a>(&self, news: impl FnOnce() -> SessionNews<'a>) {
        if let Some(told) = self.told.get() {
            told(news());
        }
    }

    pub(crate) async fn shutdown(&self) {
        {
            let mut state = self.state();
            state.shut = true;
            for pod in state.pods.values() {
                pod.wake();
                for entry in &pod.sessions {
                    entry.handle.close();
                }
                for connection in &pod.channels {
                    connection.fail("the proxy is shutting down");
                }
            }
        }
        self.busy.notify_one();
        loop {
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.state().drivers == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// Spawns a task, which must not be done under a lock: a runtime that is ending drops the task and its guards at once.
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task.with_current_subscriber());
}

/// A dial's state while it looks for a session.
struct SessionSearch {
    port: u16,
    heard_since: Option<Instant>,
    /// When the dial asked for a session.
    asked: Instant,
    /// The Pod's failures when the dial first looked.
    failures: Option<u64>,
    patient: bool,
    /// Whether it is counted in [`PodSessions::waiting`](state::PodSessions::waiting).
    waits: bool,
}

/// Counts a dial that waits, until it is dropped.
struct Waiting {
    pool: Arc<Pool>,
    pod: Arc<PodId>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pool.state().pod(&self.pod).waiting -= 1;
    }
}

/// A session whose driver runs. Its end is noted even if the driver panics, or is dropped with its runtime.
struct DrivenSession {
    pool: Weak<Pool>,
    pod: Arc<PodId>,
    id: u64,
    why: SessionError,
}

impl DrivenSession {
    fn done(mut self, why: SessionError) {
        self.why = why;
    }
}

impl Drop for DrivenSession {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.session_ended(&self.pod, self.id, &self.why);
        }
    }
}

/// Counts an upgrade under way. Reports its outcome to the dials that wait, even if its task panics.
struct OpeningSession {
    pool: Arc<Pool>,
    pod: Arc<PodId>,
    began: Instant,
    ahead: bool,
    failed: Option<UpgradeFailure>,
}

impl OpeningSession {
    fn done(mut self, failed: Option<UpgradeFailure>) {
        self.failed = failed;
    }
}

impl Drop for OpeningSession {
    fn drop(&mut self) {
        let now = self.pool.epoch.now();
        let mut state = self.pool.state();
        let opening = &mut state.pod(&self.pod).opening;
        if let Some(index) = opening.iter().position(|began| *began == self.began) {
            opening.swap_remove(index);
        }
        state.lose(&self.pod);
        state.warming -= usize::from(self.ahead);
        let pod = state.pod(&self.pod);
        if let Some(why) = self.failed.take() {
            pod.failures += 1;
            if pod.failed.len() >= 2 * self.pool.config.upgrades_at_once {
                pod.failed.pop_front();
            }
            pod.failed.push_back(FailedUpgrade {
                number: pod.failures,
                began: self.began,
                why,
            });
            if self.ahead {
                pod.leave_cold(now);
            }
        }
        pod.wake();
    }
}
