//! State of the pool, behind its one lock. Nothing here waits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use kubevpn_spdy::{ResetStatus, Session};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::{Config, Transport};
use crate::error::{ForwardError, Rejection};
use crate::news::{SessionHealth, SessionState};
use crate::pod::PodId;
use crate::pool::choose::SessionView;
use crate::pool::probe::Probe;
use crate::stats::{ConnectionCounters, Stats};

/// How long a spare session is kept after a connection found none free, in milliseconds.
const SPARE: u64 = 60_000;
/// Unread bytes on a session above which a client counts as not keeping up.
const UNREAD: usize = 128 * 1024;
/// Limit on ports of one Pod that are remembered as good.
const PORTS: usize = 64;
/// Number of the last upgrades from which their duration is estimated.
const UPGRADES: usize = 4;
/// How long no session is opened ahead after one failed, in milliseconds.
const COLD: u64 = 5_000;

#[derive(Default)]
pub(crate) struct PoolState {
    pub(crate) pods: HashMap<Arc<PodId>, PodSessions>,
    /// Sessions that are open or being opened.
    pub(crate) sessions: usize,
    /// Of these, all but the first of each Pod.
    pub(crate) extras: usize,
    /// Upgrades under way that no connection asked for.
    pub(crate) warming: usize,
    /// Durations of the last upgrades, the newest at the end.
    took: VecDeque<Duration>,
    /// Tasks that drive a session.
    pub(crate) drivers: usize,
    pub(crate) next_id: u64,
    pub(crate) counts: Stats,
    /// The keeper's runtime, while it runs.
    pub(crate) runtime: Option<Handle>,
    pub(crate) shut: bool,
}

/// An upgrade that failed.
pub(crate) struct FailedUpgrade {
    /// Which of the Pod's failures it was.
    pub(crate) number: u64,
    pub(crate) began: Instant,
    pub(crate) why: UpgradeFailure,
}

/// Sessions and connections of one Pod.
#[derive(Default)]
pub(crate) struct PodSessions {
    pub(crate) sessions: Vec<SessionEntry>,
    /// Connections that are a channel each.
    pub(crate) channels: Vec<Arc<ConnectionCounters>>,
    /// Upgrades under way, by when they began.
    pub(crate) opening: Vec<Instant>,
    /// Dials that wait for a session.
    pub(crate) waiting: usize,
    /// Notified at every change that a waiting dial may use.
    pub(crate) changed: Arc<Notify>,
    /// Number of failed upgrades; `failed` has the last of them.
    pub(crate) failures: u64,
    pub(crate) failed: VecDeque<FailedUpgrade>,
    /// Until when one more session than needed is kept.
    spare_until: u64,
    /// Until when no session is opened ahead.
    cold_until: u64,
    /// Until when each port counts as good.
    good: HashMap<u16, u64>,
    /// Connections whose client has ended, in that order.
    pub(crate) lingering: Vec<Arc<ConnectionCounters>>,
    pub(crate) arrivals: Arrivals,
}

/// Numbers of new connections in the current second and in the one before.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    second: u64,
    now: usize,
    before: usize,
}

impl Arrivals {
    pub(crate) fn count(&mut self, now: u64) {
        let second = now / 1000;
        if second != self.second {
            self.before = if second == self.second + 1 {
                self.now
            } else {
                0
            };
            (self.second, self.now) = (second, 0);
        }
        self.now += 1;
    }

    /// Whether either second had more than `most`.
    pub(crate) fn exceed(&self, most: usize) -> bool {
        self.now.max(self.before) > most
    }
}

/// Why an upgrade failed.
#[derive(Clone)]
pub(crate) enum UpgradeFailure {
    /// No transport with sessions works; channels may.
    ChannelsOnly(Vec<Rejection>),
    Error(ForwardError),
}

/// One session.
pub(crate) struct SessionEntry {
    pub(crate) id: u64,
    pub(crate) handle: Session,
    pub(crate) transport: Transport,
    /// Its connections, including those that only wait for their end.
    pub(crate) connections: Vec<Arc<ConnectionCounters>>,
    pub(crate) opened: Instant,
    pub(crate) used: u64,
    /// Opened ahead of need, and not used by a connection yet.
    pub(crate) ahead: bool,
    /// The last request ID.
    pub(crate) request: u64,
    /// Takes no new connections, and closes with its last.
    pub(crate) retired: bool,
    /// A worker of the server is stopped; shared with the session's streams.
    pub(crate) wedged: Arc<AtomicBool>,
    /// A client on it does not read.
    pub(crate) stalled: bool,
    pub(crate) probe: Probe,
}

pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn longest_idle<'a>(
    entries: impl Iterator<Item = &'a mut SessionEntry>,
) -> Option<&'a mut SessionEntry> {
    let idle = |e: &&mut SessionEntry| e.connections.is_empty() && !e.retired;
    entries.filter(idle).min_by_key(|e| e.used)
}

impl PoolState {
    pub(crate) fn pod(&mut self, pod: &Arc<PodId>) -> &mut PodSessions {
        self.pods.entry(pod.clone()).or_default()
    }

    pub(crate) fn entry(&mut self, pod: &PodId, id: u64) -> Option<&mut SessionEntry> {
        let sessions = &mut self.pods.get_mut(pod)?.sessions;
        sessions.iter_mut().find(|e| e.id == id)
    }

    pub(crate) fn entries(&mut self) -> impl Iterator<Item = &mut SessionEntry> {
        self.pods.values_mut().flat_map(|p| &mut p.sessions)
    }

    /// Counts a session of the Pod, open or being opened.
    pub(crate) fn gain(&mut self, id: &Arc<PodId>) {
        self.sessions += 1;
        self.extras += usize::from(self.pod(id).sessions() > 0);
    }

    /// Uncounts a session that has ended.
    pub(crate) fn lose(&mut self, id: &Arc<PodId>) {
        self.sessions -= 1;
        self.extras -= usize::from(self.pod(id).sessions() > 0);
    }

    /// The session that was unused for the longest time.
    pub(crate) fn idle(&mut self) -> Option<&mut SessionEntry> {
        longest_idle(self.entries())
    }

    /// The same of sessions whose end leaves one less beyond the first of each Pod.
    pub(crate) fn idle_extra(&mut self) -> Option<&mut SessionEntry> {
        let lasts = |e: &&SessionEntry| !(e.retired && e.connections.is_empty());
        let spare = |pod: &&mut PodSessions| {
            pod.opening.len() + pod.sessions.iter().filter(lasts).count() > 1
        };
        let pods = self.pods.values_mut().filter(spare);
        longest_idle(pods.flat_map(|pod| &mut pod.sessions))
    }

    /// Sessions that were opened ahead, or are being opened so, and that no connection has used yet.
    pub(crate) fn ahead(&self) -> usize {
        let sessions = self.pods.values().flat_map(|pod| &pod.sessions);
        self.warming + sessions.filter(|e| e.ahead && !e.retired).count()
    }

    pub(crate) fn upgrade_took(&mut self, took: Duration) {
        if self.took.len() == UPGRADES {
            self.took.pop_front();
        }
        self.took.push_back(took);
    }

    /// Whether the fastest of the last upgrades took no longer than this.
    pub(crate) fn upgrades_take(&self, at_most: Duration) -> bool {
        self.took.iter().min().is_none_or(|took| *took <= at_most)
    }

    /// Removes Pods that are not in use.
    pub(crate) fn prune(&mut self, now: u64) {
        self.pods.retain(|_, pod| {
            pod.good.retain(|_, until| *until > now);
            !(pod.is_unused() && pod.good.is_empty()) || pod.is_cold(now)
        });
    }

    pub(crate) fn sessions(&self) -> Vec<SessionState> {
        let pods = self.pods.iter();
        let all = pods.flat_map(|(id, pod)| pod.sessions.iter().map(move |entry| (id, entry)));
        let state = |(id, entry): (&Arc<PodId>, &SessionEntry)| SessionState {
            id: entry.id,
            namespace: id.namespace.clone(),
            pod: id.pod.clone(),
            transport: entry.transport,
            connections: entry.connections.len(),
            health: entry.health(),
            age: entry.opened.elapsed(),
            silent: entry.handle.stats().last_received.elapsed(),
        };
        all.map(state).collect()
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = self.counts.clone();
        for pod in self.pods.values() {
            stats.streams += pod.streams();
            stats.lingering += pod.lingering.len();
            for entry in &pod.sessions {
                stats.sessions[entry.transport as usize] += 1;
                stats.unread += entry.handle.buffered();
            }
        }
        stats
    }
}

impl PodSessions {
    pub(crate) fn streams(&self) -> usize {
        let shared: usize = self.sessions.iter().map(|e| e.connections.len()).sum();
        shared + self.channels.len()
    }

    /// Sessions, open or being opened.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.len() + self.opening.len()
    }

    /// The same without those of which only the driver is left.
    pub(crate) fn held(&self) -> usize {
        self.sessions
            .iter()
            .filter(|entry| !entry.is_over())
            .count()
            + self.opening.len()
    }

    fn is_unused(&self) -> bool {
        let idle = self.sessions.is_empty() && self.channels.is_empty();
        idle && self.opening.is_empty() && self.waiting == 0
    }

    /// The sessions to choose from, by index; only those on which something was received since `since`, if given.
    pub(crate) fn views(
        &self,
        now: u64,
        config: &Config,
        heard_since: Option<Instant>,
    ) -> Vec<(usize, SessionView)> {
        let fit = |e: &&SessionEntry| {
            let open = !e.retired && e.handle.is_open();
            open && heard_since.is_none_or(|at| e.handle.stats().last_received >= at)
        };
        let sessions = self.sessions.iter().enumerate();
        let fit = sessions.filter(|(_, e)| fit(e));
        fit.map(|(index, e)| (index, e.view(now, config))).collect()
    }

    /// Opens no session ahead for a while: one has failed.
    pub(crate) fn leave_cold(&mut self, now: u64) {
        self.cold_until = now + COLD;
    }

    pub(crate) fn is_cold(&self, now: u64) -> bool {
        self.cold_until > now
    }

    pub(crate) fn want_spare(&mut self, now: u64) {
        self.spare_until = now + SPARE;
    }

    pub(crate) fn wants_spare(&self, now: u64) -> bool {
        self.spare_until > now
    }

    pub(crate) fn is_good(&self, port: u16, now: u64) -> bool {
        self.good.get(&port).is_some_and(|until| *until > now)
    }

    pub(crate) fn remember(&mut self, port: u16, now: u64, config: &Config) {
        if self.good.len() >= PORTS && !self.good.contains_key(&port) {
            let oldest = self.good.iter().min_by_key(|(_, until)| **until);
            if let Some((&oldest, _)) = oldest {
                self.good.remove(&oldest);
            }
        }
        let until = now + u64::try_from(config.good_for.as_millis()).unwrap_or(u64::MAX / 2);
        self.good.insert(port, until);
    }

    pub(crate) fn forget(&mut self, port: u16) {
        self.good.remove(&port);
    }

    pub(crate) fn wake(&self) {
        self.changed.notify_waiters();
    }
}

impl SessionEntry {
    fn view(&self, now: u64, config: &Config) -> SessionView {
        let old = now.saturating_sub(ms(config.short));
        let (mut live, mut long, mut bulk) = (0, false, false);
        for connection in &self.connections {
            // A half-closed connection that waits for its answer counts as live.
            if connection.is_waiting() {
                live += 1;
                long |= connection.began <= old;
            }
            bulk |= connection.is_bulk(now);
        }
        SessionView {
            live,
            long,
            full: self.connections.len() >= config.streams_per_session,
            // The keeper may not have noticed yet that a client does not read.
            busy: self.stalled || bulk || self.handle.buffered() > UNREAD,
            suspect: self.probe.is_suspect(),
            used: self.used,
        }
    }

    fn health(&self) -> SessionHealth {
        match () {
            () if self.is_wedged() => SessionHealth::Wedged,
            () if self.retired => SessionHealth::Closing,
            () if self.stalled => SessionHealth::Stalled,
            () if self.probe.is_suspect() => SessionHealth::Suspect,
            () => SessionHealth::Well,
        }
    }

    /// Whether the session has ended and failed its connections, and only its driver has not noticed yet.
    pub(crate) fn is_over(&self) -> bool {
        let failed = |c: &Arc<ConnectionCounters>| c.failed().is_some();
        self.retired && !self.handle.is_open() && self.connections.iter().all(failed)
    }

    /// Retires the session: it takes no new connections from now on.
    pub(crate) fn retire(&mut self) {
        self.retired = true;
        self.close_if_done();
    }

    pub(crate) fn close_if_done(&mut self) {
        if self.retired && self.connections.is_empty() {
            self.handle.close();
        }
    }

    /// Fails one connection, with the reason for its holder.
    pub(crate) fn fail(&self, connection: &ConnectionCounters, reason: &'static str) {
        connection.fail(reason);
        if let Some(id) = connection.id() {
            self.handle.reset(id, ResetStatus::CANCEL);
        }
    }

    pub(crate) fn is_wedged(&self) -> bool {
        self.wedged.load(Relaxed)
    }

    /// Marks the session as wedged.
    pub(crate) fn wedge(&mut self) {
        self.wedged.store(true, Relaxed);
        self.retire();
    }
}
