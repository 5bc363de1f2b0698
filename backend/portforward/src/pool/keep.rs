//! The keeper: once a second it pings sessions, evicts dead ones, resets connections that stall others, closes unused ones.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use kubevpn_spdy::{ResetStatus, Session};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::config::Config;
use crate::news::{SessionName, SessionNews};
use crate::pod::PodId;
use crate::pool::probe::{PINGS, ProbeVerdict, SessionActivity};
use crate::pool::state::{PodSessions, SessionEntry, ms};
use crate::pool::{Pool, spawn};
use crate::stats::{ConnectionCounters, Epoch, Stats};

const TICK: Duration = Duration::from_secs(1);
/// A tick this late, or a system clock this far ahead of the monotonic one, means that the machine slept.
const JUMP: Duration = Duration::from_secs(5);

/// How often a wedged session is pinged, for middleboxes that forget a connection after 4 minutes. The server's SPDY
/// library queues 50 frames for a stopped worker and then stops reading. One PING of each probe goes to that worker, so the
/// rest of the session lives for 2.7 hours.
const RENEW: Duration = Duration::from_secs(200);

/// A session used this recently, in milliseconds, is likely to be used again.
const IN_USE: u64 = 60_000;

const DEAD: &str = "the connection to the cluster stopped answering";
const WEDGED: &str = "the connection's session to the pod stopped carrying data";
const STALLED: &str = "not read for too long while others waited on the same session";

impl Pool {
    /// Starts the keeper if none runs, and wakes it.
    pub(crate) fn start_keeping(self: &Arc<Self>) {
        let mut state = self.state();
        let start = state.runtime.is_none() && !state.shut;
        if start {
            state.runtime = Some(Handle::current());
        }
        drop(state);
        if start {
            let running = KeeperGuard(Arc::downgrade(self));
            let keeping = keep(Arc::downgrade(self), self.busy.clone());
            spawn(async move {
                let _running = running;
                keeping.await;
            });
        }
        self.busy.notify_one();
    }

    pub(crate) fn probe_all(self: &Arc<Self>) {
        let now = self.epoch.now();
        let mut rounds = Vec::new();
        for (id, pod) in &mut self.state().pods {
            for entry in &mut pod.sessions {
                if !entry.probe.is_suspect() {
                    self.tell(|| SessionNews::Suspected(SessionName::new(id, entry.id)));
                }
                let round = entry.probe.suspect(now);
                rounds.extend(round.map(|r| (id.clone(), entry.id, entry.handle.clone(), r)));
            }
        }
        for (pod, id, handle, round) in rounds {
            self.ping(&pod, id, handle, round);
        }
    }

    /// Probes this session now, because it is suspected.
    pub(crate) fn suspect(self: &Arc<Self>, pod: &Arc<PodId>, id: u64) {
        let now = self.epoch.now();
        let mut state = self.state();
        let Some(entry) = state.entry(pod, id) else {
            return;
        };
        let known = entry.probe.is_suspect();
        let (round, handle) = (entry.probe.suspect(now), entry.handle.clone());
        drop(state);
        if !known {
            self.tell(|| SessionNews::Suspected(SessionName::new(pod, id)));
        }
        if let Some(round) = round {
            self.ping(pod, id, handle, round);
        }
    }

    /// Sends the PINGs of a probe.
    fn ping(self: &Arc<Self>, pod: &Arc<PodId>, id: u64, handle: Session, round: u64) {
        tracing::trace!(%pod, session = id, "probing");
        let pinging = PingTask {
            pool: Arc::downgrade(self),
            pod: pod.clone(),
            id,
            round,
        };
        let mut state = self.state();
        if let Some(entry) = state.entry(pod, id) {
            entry.connections.iter().for_each(|c| c.mark());
        }
        // The keeper's runtime: a stream may be dropped outside of any.
        let runtime = state.runtime.clone();
        drop(state);
        let Some(runtime) = runtime else { return };
        runtime.spawn(async move {
            let PingTask { pool, pod, .. } = &pinging;
            let mut echoes: FuturesUnordered<_> = (0..PINGS).map(|_| handle.ping()).collect();
            // An error means that the session has ended, which is handled elsewhere.
            while let Some(Ok(_)) = echoes.next().await {
                tracing::trace!(%pod, session = id, round, "echo");
                match pool.upgrade() {
                    Some(pool) => pool.echo(pod, id, round),
                    None => return,
                }
            }
        });
    }

    fn echo(self: &Arc<Self>, pod: &Arc<PodId>, id: u64, round: u64) {
        let now = self.epoch.now();
        let mut state = self.state();
        let Some(entry) = state.entry(pod, id) else {
            return;
        };
        if !entry.probe.echo(round, now) {
            return;
        }
        let proven = entry.probe.proven();
        entry.connections.iter().for_each(|l| l.prove(proven));
        let doubted = entry.probe.is_suspect();
        let (round, handle) = (entry.probe.again(now), entry.handle.clone());
        let recovered = doubted && !entry.probe.is_suspect();
        state.pod(pod).wake();
        drop(state);
        if recovered {
            self.tell(|| SessionNews::Recovered(SessionName::new(pod, id)));
        }
        if let Some(round) = round {
            self.ping(pod, id, handle, round);
        }
    }

    /// Checks every session once; `false` if there is none.
    pub(super) fn tick(self: &Arc<Self>) -> bool {
        let now = self.epoch.now();
        let mut rounds = Vec::new();
        let mut state = self.state();
        let far = !state.upgrades_take(self.config.share_after);
        let mut counts = std::mem::take(&mut state.counts);
        for (id, pod) in &mut state.pods {
            for entry in &mut pod.sessions {
                let mut look = Look {
                    pod: id,
                    entry,
                    now,
                    epoch: self.epoch,
                    far,
                    config: &self.config,
                    counts: &mut counts,
                };
                if let Some(round) = look.look() {
                    rounds.push((id.clone(), entry.id, entry.handle.clone(), round));
                }
            }
            retire_spares(pod, now, &self.config);
            pod.wake();
        }
        state.counts = counts;
        state.prune(now);
        let busy = !state.pods.is_empty();
        drop(state);
        for (pod, id, handle, round) in rounds {
            self.ping(&pod, id, handle, round);
        }
        busy
    }
}

/// A round of PINGs. If it is dropped before its echoes have come, because no keeper runs or its runtime has ended, the
/// round says nothing of the session: the keeper starts another.
struct PingTask {
    pool: Weak<Pool>,
    pod: Arc<PodId>,
    id: u64,
    round: u64,
}

impl Drop for PingTask {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade()
            && let Some(entry) = pool.state().entry(&self.pod, self.id)
        {
            entry.probe.abandon(self.round);
        }
    }
}

/// Marks the keeper as ended when it is dropped: it panicked, or its runtime ended. The next dial starts another.
struct KeeperGuard(Weak<Pool>);

impl Drop for KeeperGuard {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.state().runtime = None;
        }
    }
}

/// Closes the sessions that a burst of connections has left unused, except one.
fn retire_spares(pod: &mut PodSessions, now: u64, config: &Config) {
    let unused = |e: &&mut SessionEntry| e.connections.is_empty() && !e.retired;
    let Some(latest) = pod.sessions.iter_mut().filter(unused).map(|e| e.used).max() else {
        return;
    };
    let mut kept = false;
    for entry in pod.sessions.iter_mut().filter(unused) {
        if entry.used == latest && !kept {
            kept = true;
        } else if now.saturating_sub(entry.used) >= ms(config.idle_spare) {
            entry.retire();
        }
    }
}

/// The check of one session.
struct Look<'a> {
    pod: &'a PodId,
    entry: &'a mut SessionEntry,
    now: u64,
    epoch: Epoch,
    /// The API server is distant: a round trip is worth saving.
    far: bool,
    config: &'a Config,
    counts: &'a mut Stats,
}

impl Look<'_> {
    /// Checks the session. Returns the round of PINGs to send, if any.
    fn look(&mut self) -> Option<u64> {
        let stats = self.entry.handle.stats();
        let heard = self.epoch.of(stats.last_received);
        self.entry.stalled = !stats.stalled.is_empty();
        self.reset_stalled(&stats);
        let seen = SessionActivity {
            now: self.now,
            heard,
            held_up: self.entry.stalled,
            upload: self.entry.connections.iter().any(|l| l.is_upload()),
            alone: self
                .entry
                .connections
                .iter()
                .filter(|l| l.is_waiting())
                .count()
                <= 1,
        };
        match self.entry.probe.judge(seen, self.config) {
            ProbeVerdict::Wait => {}
            ProbeVerdict::Dead => {
                self.evict();
                return None;
            }
            ProbeVerdict::Wedged => self.split(),
        }
        let idle = match self.entry.ahead {
            true => self.config.idle_ahead,
            false => self.config.idle,
        };
        let since_use = self.now.saturating_sub(self.entry.used);
        let unused = self.entry.connections.is_empty() && since_use >= ms(idle);
        if unused && !self.entry.retired {
            tracing::debug!(pod = %self.pod, session = self.entry.id, "unused, closing");
            self.entry.retire();
        }
        let ping_every = match self.far && since_use < IN_USE {
            true => self.config.ping_in_use,
            false => self.config.ping_every,
        };
        let silent = self.now.saturating_sub(heard) >= ms(ping_every);
        let overdue = |l: &Arc<ConnectionCounters>| {
            l.asked()
                .is_some_and(|at| self.now.saturating_sub(at) >= ms(self.config.suspect_after))
        };
        // A suspicion is without a probe if there was no keeper to send it.
        let suspect = self.entry.probe.is_suspect();
        let due = silent || suspect || self.entry.connections.iter().any(overdue);
        if self.entry.stalled {
            return None;
        }
        if self.entry.probe.is_running() {
            return self.entry.probe.renew(self.now, ms(RENEW));
        }
        if due {
            self.entry.probe.start(self.now)
        } else {
            None
        }
    }

    /// Resets connections that hold up others.
    fn reset_stalled(&mut self, stats: &kubevpn_spdy::Stats) {
        for stalled in &stats.stalled {
            let since = self.epoch.of(stalled.since);
            let reads =
                |l: &ConnectionCounters| stats.stalled.iter().all(|s| Some(s.stream) != l.id());
            let held_up = |l: &&Arc<ConnectionCounters>| l.is_waiting() && reads(l);
            let others = || self.entry.connections.iter().filter(held_up);
            let wanted = others().any(|l| l.last_write().max(l.began) > since);
            let after = match wanted {
                true => self.config.stall_wanted,
                false => self.config.stall,
            };
            if others().next().is_none() || self.now.saturating_sub(since) < ms(after) {
                continue;
            }
            tracing::debug!(pod = %self.pod, session = self.entry.id, stream = %stalled.stream, "resetting a stalled connection");
            self.counts.stalled += 1;
            let connection = self
                .entry
                .connections
                .iter()
                .find(|l| l.id() == Some(stalled.stream));
            match connection {
                Some(connection) => self.entry.fail(connection, STALLED),
                // An error stream that is not read yet, with far more data than an error.
                None => self.entry.handle.reset(stalled.stream, ResetStatus::CANCEL),
            }
            // The data in flight for it still has to be received and discarded.
            self.entry.retire();
        }
    }

    /// Ends a session that returns nothing, and fails all of its connections.
    fn evict(&mut self) {
        if self.entry.is_over() {
            // Its driver has not noticed yet, or only the peer has told it to end.
            self.entry.handle.close();
            return;
        }
        tracing::info!(pod = %self.pod, session = self.entry.id, streams = self.entry.connections.len(), "session is dead");
        self.counts.evicted += 1;
        for connection in &self.entry.connections {
            connection.fail(DEAD);
        }
        self.entry.retired = true;
        self.entry.handle.close();
    }

    /// Fails the connections of a wedged session whose data may be stuck. The others keep receiving, and fail when they write.
    fn split(&mut self) {
        if self.entry.is_wedged() {
            return;
        }
        let proven = self.entry.probe.proven();
        let (mut lost, mut kept) = (0, 0);
        for connection in &self.entry.connections {
            if connection.is_upload() {
                connection.exempt();
            } else if !connection.is_answered()
                && connection.last_write().max(connection.began) > proven
            {
                self.entry.fail(connection, WEDGED);
                lost += 1;
                continue;
            }
            kept += 1;
        }
        tracing::info!(pod = %self.pod, session = self.entry.id, lost, kept, "session is wedged");
        tracing::debug!(session = self.entry.id, probe = ?self.entry.probe, "what was asked of it");
        self.counts.wedged += 1;
        self.entry.wedge();
    }
}

async fn keep(pool: Weak<Pool>, busy: Arc<Notify>) {
    let mut clocks = Clocks::now();
    loop {
        let tick = || pool.upgrade().map(|pool| pool.tick());
        match tick() {
            None => return,
            Some(true) => sleep(TICK).await,
            Some(false) => {
                busy.notified().await;
                clocks = Clocks::now();
                continue;
            }
        }
        if clocks.jumped() {
            tracing::info!("the clock jumped, probing all sessions");
            match pool.upgrade() {
                None => return,
                Some(pool) => pool.probe_all(),
            }
        }
    }
}

/// Detects that the machine slept.
struct Clocks {
    steady: Instant,
    system: SystemTime,
}

impl Clocks {
    fn now() -> Self {
        Self {
            steady: Instant::now(),
            system: SystemTime::now(),
        }
    }

    /// Whether more time has passed than one tick. On some systems the monotonic clock stops during sleep, on others not.
    fn jumped(&mut self) -> bool {
        let before = std::mem::replace(self, Self::now());
        let steady = self.steady - before.steady;
        // A system clock that was set back is not a jump.
        let system = self
            .system
            .duration_since(before.system)
            .unwrap_or_default();
        steady.max(system) > TICK + JUMP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sleep_shows_on_one_clock_or_the_other() {
        let jumped = |steady, system| {
            let now = Clocks::now();
            let mut clocks = Clocks {
                steady: now.steady - steady,
                system: now.system - system,
            };
            clocks.jumped()
        };
        let hour = Duration::from_secs(3600);
        tokio::time::advance(2 * hour).await;
        assert!(!jumped(TICK, TICK));
        assert!(!jumped(3 * TICK, 3 * TICK), "merely busy");
        assert!(jumped(TICK, hour), "the steady clock stood still");
        assert!(jumped(hour, TICK), "it did not");
        let mut set_back = Clocks {
            system: SystemTime::now() + hour,
            ..Clocks::now()
        };
        assert!(!set_back.jumped());
    }
}
