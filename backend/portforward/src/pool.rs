//! Sessions per Pod: alone while few, shared under pressure, probed, retired.
//!
//! A dial ([`Pool::dial`]) takes a session (`choose.rs` says which), opens a pair of streams on it, and waits for its
//! fate where the port is not known to be good. Upgrades run in tasks of their own, so that a dial given up does not
//! take with it what others wait for. `keep.rs` looks after what is open; `state.rs` is what both know.

mod choose;
mod keep;
mod linger;
mod probe;
mod slot;
mod state;
#[cfg(test)]
mod tests;

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kubevpn_spdy::{Config as SpdyConfig, Session, SessionError, StreamError};
use kubevpn_target::BoxError;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use self::choose::{Choice, Demand, What, choose};
use self::probe::Probe;
pub(crate) use self::slot::Slot;
use self::state::{Entry, Failed, State};
use crate::config::{Config, Transport};
use crate::error::{ForwardError, Rejection};
use crate::forward::{PodId, PodPort, Stats};
use crate::life::{Epoch, Life};
use crate::pair::{Fate, Pair};
use crate::stream::{Duct, PodStream};
use crate::transport::{Channel, Io, Open, Opened};

/// A dial that met a broken session tries another; so often.
const ATTEMPTS: usize = 3;
/// A session heard of this recently is taken to be alive.
const FRESH: Duration = Duration::from_secs(5);
/// What a stream may hold unread. A local client that keeps up never lets it fill.
const STREAM_BUFFER: usize = 512 * 1024;

/// All sessions of a forwarder.
pub(crate) struct Pool {
    config: Arc<Config>,
    opener: Box<dyn Open>,
    epoch: Epoch,
    state: Mutex<State>,
    /// There is something to look after.
    busy: Arc<Notify>,
    /// A session has ended.
    ended: Notify,
}

/// A session to open a stream on.
struct Taken {
    slot: Slot,
    handle: Session,
    transport: Transport,
    request: u64,
    /// The port is known to be good.
    good: bool,
}

/// What a look at the state led to.
enum Step {
    Take(Box<Taken>),
    Wait,
    ChannelsOnly(Vec<Rejection>),
}

/// How an attempt failed.
enum Failure {
    /// Another session may do better.
    Session(ForwardError),
    Final(ForwardError),
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The keeper looks, and finds that there is nothing to keep.
        self.busy.notify_one();
    }
}

impl Pool {
    pub(crate) fn new(config: Arc<Config>, opener: Box<dyn Open>) -> Arc<Self> {
        Arc::new(Self {
            config,
            opener,
            epoch: Epoch::new(),
            state: Mutex::default(),
            busy: Arc::default(),
            ended: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn dial(self: Arc<Self>, to: PodPort) -> Result<PodStream, ForwardError> {
        let pod = Arc::new(PodId::from(&to));
        if !pod.is_valid() {
            let pod = pod.to_string();
            return Err(ForwardError::PodNotFound { pod });
        }
        self.start_keeping();
        let after = self.config.dial_timeout;
        let dialed = timeout(after, self.attempts(&pod, &to)).await;
        let dialed = dialed.unwrap_or_else(|_| {
            Err(ForwardError::TimedOut {
                pod: pod.to_string(),
                step: "opening the connection",
                after,
            })
        });
        let mut state = self.state();
        match &dialed {
            Ok(_) => state.counts.opened += 1,
            Err(ForwardError::Refused { .. }) => state.counts.refused += 1,
            Err(_) => {}
        }
        dialed
    }

    async fn attempts(
        self: &Arc<Self>,
        pod: &Arc<PodId>,
        to: &PodPort,
    ) -> Result<PodStream, ForwardError> {
        let began = Instant::now();
        // After a failure only a session that was heard of meanwhile is trusted: what broke one may have
        // broken all of them.
        let mut heard_since = None;
        let mut attempt = 1;
        loop {
            let sessions = self.opener.has_sessions();
            let attempted = if sessions {
                match self.session(pod, to.port, heard_since).await {
                    Ok(Ok(taken)) => self.connect(*taken, to, began).await,
                    Ok(Err(tried)) => self.channel(pod, to, tried).await,
                    Err(error) => Err(Failure::Final(error)),
                }
            } else {
                self.channel(pod, to, Vec::new()).await
            };
            match attempted {
                Ok(stream) => return Ok(stream),
                Err(Failure::Session(error)) if attempt < ATTEMPTS => {
                    tracing::debug!(%to, %error, attempt, "trying another session");
                }
                // Channels alone were tried, because they worked before.
                Err(Failure::Final(error @ ForwardError::Rejected { .. }))
                    if !sessions && self.opener.has_sessions() && attempt < ATTEMPTS =>
                {
                    tracing::debug!(%to, %error, attempt, "trying the other transports");
                }
                Err(Failure::Session(error) | Failure::Final(error)) => return Err(error),
            }
            heard_since = Some(began);
            attempt += 1;
        }
    }

    // === getting a session ===

    /// Waits for a session; the inner error says what was turned down where there are none to be had.
    async fn session(
        self: &Arc<Self>,
        pod: &Arc<PodId>,
        port: u16,
        heard_since: Option<Instant>,
    ) -> Result<Result<Box<Taken>, Vec<Rejection>>, ForwardError> {
        let (changed, failures) = {
            let mut state = self.state();
            let pod = state.pod(pod);
            (pod.changed.clone(), pod.failures)
        };
        let mut waiting = None;
        let mut share = pin!(sleep(self.config.share_after));
        let mut ask = Ask {
            port,
            heard_since,
            failures,
            patient: true,
            counted: false,
        };
        loop {
            let mut change = pin!(changed.notified());
            change.as_mut().enable();
            match self.step(pod, &ask)? {
                Step::Take(taken) => return Ok(Ok(taken)),
                Step::ChannelsOnly(tried) => return Ok(Err(tried)),
                Step::Wait => {}
            }
            waiting.get_or_insert_with(|| Waiting::new(self, pod));
            ask.counted = true;
            tokio::select! {
                () = change => {}
                () = &mut share, if ask.patient => ask.patient = false,
            }
        }
    }

    fn step(self: &Arc<Self>, id: &Arc<PodId>, ask: &Ask) -> Result<Step, ForwardError> {
        let now = self.epoch.now();
        let mut state = self.state();
        if state.shut {
            return Err(ForwardError::ShutDown);
        }
        let below_limit = state.sessions < self.config.sessions;
        let room = below_limit || state.idle().is_some();
        let pod = state.pod(id);
        self.check_streams(id, pod)?;
        let (indices, views): (Vec<_>, Vec<_>) = pod
            .views(now, &self.config, ask.heard_since)
            .into_iter()
            .unzip();
        let demand = Demand {
            opening: pod.opening,
            waiting: pod.waiting - usize::from(ask.counted),
            room,
            patient: ask.patient,
            spare: pod.wants_spare(now),
        };
        let Choice { what, open } = choose(&views, demand, &self.config);
        if what == What::Wait && pod.failures != ask.failures {
            // An upgrade failed that this dial, or one that waited with it, had asked for.
            match pod.failure.clone() {
                Some(Failed::Error(error)) => return Err(error.again()),
                Some(Failed::ChannelsOnly(tried)) => return Ok(Step::ChannelsOnly(tried)),
                None => {}
            }
        }
        if !matches!(what, What::Free(_)) && !views.is_empty() {
            pod.want_spare(now);
        }
        if open {
            if !below_limit && let Some(idle) = state.idle() {
                idle.retire();
            }
            self.open(&mut state, id);
        }
        let pod = state.pod(id);
        let index = match what {
            What::Free(index) | What::Share(index) => indices[index],
            What::Wait => return Ok(Step::Wait),
            What::Full => {
                return Err(ForwardError::Overloaded {
                    what: "this program".into(),
                    limit: self.config.sessions,
                    of: "sessions",
                });
            }
        };
        let good = pod.is_good(ask.port, now);
        let entry = &mut pod.sessions[index];
        let life = Arc::new(Life::new(self.epoch));
        entry.lives.push(life.clone());
        entry.live += 1;
        entry.used = now;
        entry.request += 1;
        Ok(Step::Take(Box::new(Taken {
            handle: entry.handle.clone(),
            transport: entry.transport,
            request: entry.request,
            slot: Slot::new(self, id, ask.port, life, Some(entry)),
            good,
        })))
    }

    fn check_streams(&self, id: &PodId, pod: &state::Pod) -> Result<(), ForwardError> {
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

    /// Starts an upgrade.
    fn open(self: &Arc<Self>, state: &mut State, id: &Arc<PodId>) {
        state.sessions += 1;
        state.counts.upgrades += 1;
        state.pod(id).opening += 1;
        let opening = Opening {
            pool: self.clone(),
            pod: id.clone(),
            failed: Some(Failed::Error(Arc::new(ForwardError::SessionLost {
                pod: id.to_string(),
                source: "the upgrade was cut off".into(),
            }))),
        };
        let asked = self.opener.session(id.clone());
        tokio::spawn(async move {
            let failed = match asked.await {
                Ok(Opened::Session(io, transport)) => {
                    opening.pool.add(&opening.pod, io, transport);
                    None
                }
                Ok(Opened::ChannelsOnly(tried)) => Some(Failed::ChannelsOnly(tried)),
                Err(error) => {
                    tracing::debug!(pod = %opening.pod, %error, "no session");
                    Some(Failed::Error(Arc::new(error)))
                }
            };
            opening.done(failed);
        });
    }

    /// Takes up a new session.
    fn add(self: &Arc<Self>, pod: &Arc<PodId>, io: Box<dyn Io>, transport: Transport) {
        let config = SpdyConfig {
            stream_buffer: STREAM_BUFFER,
            // Two streams each; the Pod's own bound is what counts.
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
        state.sessions += 1;
        state.drivers += 1;
        state.pod(pod).sessions.push(Entry {
            id,
            handle,
            transport,
            lives: Vec::new(),
            live: 0,
            used: now,
            request: 0,
            retired: false,
            wedged: Arc::default(),
            stalled: false,
            probe: Probe::new(now),
        });
        drop(state);
        tracing::info!(%pod, %transport, session = id, "session begins");
        let (pool, pod) = (Arc::downgrade(self), pod.clone());
        tokio::spawn(async move {
            let why = driver.await;
            if let Some(pool) = pool.upgrade() {
                pool.session_ended(&pod, id, &why);
            }
        });
        self.busy.notify_one();
    }

    fn session_ended(&self, pod: &Arc<PodId>, id: u64, why: &SessionError) {
        let mut state = self.state();
        state.drivers -= 1;
        state.sessions -= 1;
        let lives = {
            let pod = state.pod(pod);
            let index = pod.sessions.iter().position(|e| e.id == id);
            let entry = index.map(|index| pod.sessions.swap_remove(index));
            pod.wake();
            entry.map_or_else(Vec::new, |e| e.lives)
        };
        // Its streams are counted until they are dropped.
        state.pod(pod).channels.extend(lives.iter().cloned());
        drop(state);
        tracing::info!(%pod, session = id, streams = lives.len(), %why, "session ends");
        self.ended.notify_waiters();
    }

    // === opening a stream ===

    async fn connect(
        &self,
        taken: Taken,
        to: &PodPort,
        began: Instant,
    ) -> Result<PodStream, Failure> {
        let Taken {
            slot,
            handle,
            transport,
            request,
            good,
        } = taken;
        let lost = |source: BoxError| {
            let pod = to.pod_name();
            Failure::Session(ForwardError::SessionLost { pod, source })
        };
        let fresh = handle.stats().last_received.elapsed() < FRESH;
        let mut pair = match Pair::open(&handle, to.port, request) {
            Ok(pair) => pair,
            Err(error) => {
                slot.distrust();
                return Err(lost(error.into()));
            }
        };
        slot.named(pair.id());
        if !(good && fresh) {
            self.replied(&mut pair, &slot, &handle, to, began).await?;
        }
        if !good {
            match pair.fate(&self.config).await {
                Fate::Good => slot.remember(),
                Fate::Refused => {
                    let error = pair.text().refusal(to.to_string());
                    tracing::debug!(%to, text = ?pair.text(), "refused");
                    return Err(Failure::Final(error));
                }
                Fate::Broken(error) => {
                    slot.distrust();
                    return Err(lost(error.into()));
                }
            }
        }
        let duct = Duct::Pair(pair);
        Ok(PodStream::new(
            duct,
            slot,
            to,
            transport,
            self.config.clone(),
        ))
    }

    /// Waits for the reply; a session that does not give one is used no more.
    async fn replied(
        &self,
        pair: &mut Pair,
        slot: &Slot,
        handle: &Session,
        to: &PodPort,
        began: Instant,
    ) -> Result<(), Failure> {
        let timed_out = |after| {
            Failure::Session(ForwardError::TimedOut {
                pod: to.pod_name(),
                step: "the answer to a new stream",
                after,
            })
        };
        let after = self.config.reply_timeout;
        let (until, soon) = (Instant::now() + after, after / 5);
        let replied = match timeout(soon, pair.replied()).await {
            Ok(replied) => replied,
            Err(_) => {
                slot.suspect();
                if handle.stats().last_received < began {
                    // It has been silent since before this dial: its probe will tell, another is tried meanwhile.
                    return Err(timed_out(soon));
                }
                match timeout_at(until, pair.replied()).await {
                    Ok(replied) => replied,
                    Err(_) => {
                        slot.distrust();
                        return Err(timed_out(after));
                    }
                }
            }
        };
        match replied {
            Ok(()) => Ok(()),
            Err(error) => {
                if !matches!(error, StreamError::Session(_)) {
                    slot.distrust();
                }
                Err(Failure::Session(ForwardError::SessionLost {
                    pod: to.pod_name(),
                    source: error.into(),
                }))
            }
        }
    }

    async fn channel(
        self: &Arc<Self>,
        id: &Arc<PodId>,
        to: &PodPort,
        tried: Vec<Rejection>,
    ) -> Result<PodStream, Failure> {
        let (slot, good) = {
            let mut state = self.state();
            if state.shut {
                return Err(Failure::Final(ForwardError::ShutDown));
            }
            let now = self.epoch.now();
            let pod = state.pod(id);
            self.check_streams(id, pod).map_err(Failure::Final)?;
            let good = pod.is_good(to.port, now);
            let life = Arc::new(Life::new(self.epoch));
            pod.channels.push(life.clone());
            state.counts.upgrades += 1;
            (Slot::new(self, id, to.port, life, None), good)
        };
        let io = self.opener.channel(id.clone(), to.port, tried).await;
        let io = io.map_err(Failure::Final)?;
        let mut channel = Channel::new(io, &self.config).await;
        if !good {
            match channel.fate(&self.config).await {
                Fate::Good => slot.remember(),
                Fate::Refused => {
                    let error = channel.text().refusal(to.to_string());
                    return Err(Failure::Final(error));
                }
                Fate::Broken(error) => {
                    return Err(Failure::Final(ForwardError::SessionLost {
                        pod: to.pod_name(),
                        source: error.into(),
                    }));
                }
            }
        }
        let duct = Duct::Channel(Box::new(channel));
        let transport = Transport::WsV4;
        Ok(PodStream::new(
            duct,
            slot,
            to,
            transport,
            self.config.clone(),
        ))
    }

    // === from outside ===

    pub(crate) fn retire(&self, namespace: &str, pod: &str) {
        let mut state = self.state();
        for (id, pod) in state
            .pods
            .iter_mut()
            .filter(|(id, _)| id.namespace == namespace && id.pod == pod)
        {
            tracing::debug!(pod = %id, sessions = pod.sessions.len(), "retired");
            pod.forget_all();
            pod.sessions.iter_mut().for_each(Entry::retire);
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.state().stats()
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
                for life in &pod.channels {
                    life.fail("the proxy is shutting down");
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

/// What a dial wants of the state.
struct Ask {
    port: u16,
    heard_since: Option<Instant>,
    /// The Pod's failures when the dial began.
    failures: u64,
    patient: bool,
    /// It is counted among those that wait.
    counted: bool,
}

/// A dial that waits, counted.
struct Waiting {
    pool: Arc<Pool>,
    pod: Arc<PodId>,
}

impl Waiting {
    fn new(pool: &Arc<Pool>, pod: &Arc<PodId>) -> Self {
        pool.state().pod(pod).waiting += 1;
        Self {
            pool: pool.clone(),
            pod: pod.clone(),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pool.state().pod(&self.pod).waiting -= 1;
    }
}

/// An upgrade under way, counted; tells those who wait how it went, even if its task panics.
struct Opening {
    pool: Arc<Pool>,
    pod: Arc<PodId>,
    failed: Option<Failed>,
}

impl Opening {
    fn done(mut self, failed: Option<Failed>) {
        self.failed = failed;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        state.sessions -= 1;
        let pod = state.pod(&self.pod);
        pod.opening -= 1;
        if let Some(failed) = self.failed.take() {
            pod.failures += 1;
            pod.failure = Some(failed);
        }
        pod.wake();
    }
}
