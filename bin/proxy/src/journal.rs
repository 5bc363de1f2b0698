//! The journal of a proxy: its live connections, counts and refusals of the others, and a stream of events. Status, status
//! page, terminal and metrics all read it.
//!
//! ```text
//!   frontends ──Record──▶ Observer ┐                        ┌▶ TrafficTotals, ConnectionSnapshot, RefusedConnection ─▶ JournalSnapshot
//!   sessions, watches, logins ─────┴▶ Journal (one lock) ───┤
//!                                                           └▶ JournalEvent ─▶ Events, if somebody listens
//! ```
//!
//! A connection takes the lock when it begins, when it is connected and when it ends, and never for its bytes, which are
//! counted in its own [`Traffic`](kubevpn_conn::Traffic).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kubevpn_conn::{Addr, Ended, Live, News, Observer};
use kubevpn_target::{Refusal, Target};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::event::{EventChannel, WantedHeads};
use self::programs::ClientProgram;
use self::tally::{Dials, EventCounts, count};

pub mod api;
mod ended;
mod event;
mod programs;
mod redact;
mod snapshot;
mod tally;
mod view;

pub use self::ended::EndedConnection;
pub use self::event::{
    Events, ExchangeEvent, JournalEvent, MessageHead, Stamped, Trace, TraceStep,
};
pub use self::redact::redacted;
pub use self::snapshot::{
    AboutProxy, ConnectionSnapshot, CredentialSnapshot, JournalSnapshot, ListenerSnapshot,
    RefusedConnection, SessionSnapshot, TrafficTotals, WatchSnapshot,
};
pub(crate) use self::tally::{Count2, NamedCounts, Tally};
pub use self::view::ProxyView;
pub(crate) use self::view::{SESSION_HEALTHS, WATCH_HEALTHS};
use crate::Protocol;

/// Number of refusals that are kept.
const REFUSALS: usize = 10;
/// Minimum interval over which a rate is measured.
const RATE: Duration = Duration::from_secs(1);

/// The journal of a proxy. Clones share it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let journal = kubevpn_proxy::Journal::default();
/// assert_eq!(journal.totals().open, 0);
/// let events = journal.events(false);
/// # drop(events);
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<JournalShared>);

#[derive(Debug, Default)]
struct JournalShared {
    state: Mutex<JournalState>,
    channel: Arc<EventChannel>,
    listeners: Mutex<Vec<Arc<ListedListener>>>,
    /// Whether a listener is not open.
    lacks_listener: AtomicBool,
    trouble: Notify,
    dials: Dials,
}

#[derive(Debug, Default)]
struct JournalState {
    live: BTreeMap<u64, JournalEntry>,
    /// Totals, with the bytes of connections that have ended.
    totals: TrafficTotals,
    refusals: VecDeque<RefusedConnection>,
    counts: EventCounts,
}

#[derive(Debug)]
struct JournalEntry {
    live: Arc<Live>,
    connected: bool,
    rate: Rate,
    program: ProgramLookup,
}

#[derive(Clone, Debug)]
enum ProgramLookup {
    Unasked,
    Asked(Option<String>),
}

/// Bytes per second, as last measured.
#[derive(Clone, Copy, Debug)]
struct Rate {
    at: Instant,
    before: (u64, u64),
    now: (f64, f64),
}

impl Rate {
    fn measure(&mut self, live: &Live) -> (f64, f64) {
        let elapsed = self.at.elapsed();
        if elapsed >= RATE {
            let (up, down) = (live.traffic().up(), live.traffic().down());
            let per_second = |bytes: u64| bytes as f64 / elapsed.as_secs_f64();
            self.now = (
                per_second(up - self.before.0),
                per_second(down - self.before.1),
            );
            (self.at, self.before) = (Instant::now(), (up, down));
        }
        self.now
    }
}

impl Journal {
    /// Observer that reports connections to this journal.
    pub fn observer(&self) -> Arc<dyn Observer> {
        self.0.clone()
    }

    /// Counts of all connections.
    pub fn totals(&self) -> TrafficTotals {
        self.0.state().totals_now()
    }

    /// The last refusals, newest first.
    pub fn refusals(&self) -> Vec<RefusedConnection> {
        self.0.state().refusals.iter().rev().cloned().collect()
    }

    /// The oldest dial that has no outcome yet: its target and age.
    pub fn longest_dial(&self) -> Option<(Target, Duration)> {
        let state = self.0.state();
        state.live.values().find_map(|JournalEntry { live, .. }| {
            let route = live.route();
            Some((route.target?, live.age())).filter(|_| route.took.is_none())
        })
    }

    /// Waits for a refusal that is caused by the way to the cluster, not by a target. Cancel safe: an earlier refusal is
    /// not lost.
    pub async fn trouble(&self) {
        self.0.trouble.notified().await;
    }

    /// Events from now on, optionally with the forwarded HTTP requests; each of those costs a copy of its URL.
    pub fn events(&self, exchanges: bool) -> Events {
        self.0.channel.listen(match exchanges {
            true => WantedHeads::Exchanges,
            false => WantedHeads::Connections,
        })
    }

    /// Events with the heads of requests and answers, including secrets. Each costs a copy of up to 16 KiB.
    pub fn events_with_heads(&self) -> Events {
        self.0.channel.listen(WantedHeads::Heads)
    }

    /// The same as [`events`](Self::events) with HTTP requests, and with the [`Trace`] of each connection: its dial then costs
    /// a place for each of its steps.
    pub fn events_with_traces(&self) -> Events {
        self.0.channel.listen(WantedHeads::Traces)
    }

    /// Reports an event. `event` is called only if there is a listener.
    pub fn tell(&self, event: impl FnOnce() -> JournalEvent) {
        self.0.channel.tell(event);
    }

    /// Ends the streams of events.
    pub fn close(&self) {
        self.0.channel.close();
    }

    /// Cuts the connection with this number; `false` if there is none. For an HTTP request, the client's connection is cut.
    pub fn cut(&self, id: u64) -> bool {
        let live = self.0.state().live.get(&id).map(|e| e.live.clone());
        live.inspect(|live| live.cut()).is_some()
    }

    /// Lists a listener until the returned guard is dropped.
    pub(crate) fn listening(
        &self,
        address: &Addr,
        protocol: &Protocol,
        page: Option<String>,
    ) -> ListenerGuard {
        let listener = ListenerSnapshot {
            protocol: protocol.as_str().to_owned(),
            address: address.to_string(),
            target: match protocol {
                Protocol::Forward(to) => Some(to.0.to_string()),
                _ => None,
            },
        };
        let listed = Arc::new(ListedListener { listener, page });
        lock(&self.0.listeners).push(listed.clone());
        let journal = self.clone();
        ListenerGuard { journal, listed }
    }

    /// URLs of the status pages, each with its token, to be shown to the user only.
    pub fn pages(&self) -> Vec<String> {
        let listeners = lock(&self.0.listeners);
        listeners.iter().filter_map(|l| l.page.clone()).collect()
    }

    /// Sets whether all listeners of the proxy are open, as they are until this is called. While one is not, its admin
    /// listeners answer that it is not ready.
    pub fn set_all_listening(&self, is_complete: bool) {
        self.0.lacks_listener.store(!is_complete, Ordering::Relaxed);
    }

    /// Whether all listeners of the proxy are open.
    pub fn is_all_listening(&self) -> bool {
        !self.0.lacks_listener.load(Ordering::Relaxed)
    }

    fn listeners(&self) -> Vec<ListenerSnapshot> {
        let listeners = lock(&self.0.listeners);
        listeners.iter().map(|l| l.listener.clone()).collect()
    }

    /// Live connections, totals and refusals. Programs that are not known yet are looked up.
    async fn connections(&self) -> (Vec<ConnectionSnapshot>, TrafficTotals) {
        self.find_programs().await;
        let (mut shown, totals) = {
            let mut state = self.0.state();
            let shown: Vec<_> = state.live.values_mut().map(JournalEntry::shown).collect();
            (shown, state.totals_now())
        };
        // Not under the lock, for which every connection waits.
        let exchanges = shown.iter_mut().filter_map(|shown| shown.exchange.as_mut());
        exchanges.for_each(ExchangeEvent::redact);
        (shown, totals)
    }

    async fn find_programs(&self) {
        let unasked: Vec<_> = {
            let state = self.0.state();
            let unasked = state.live.values().filter(|entry| entry.is_unasked());
            let client = |entry: &JournalEntry| Some((entry.live.id(), client(&entry.live)?));
            unasked.filter_map(client).collect()
        };
        if unasked.is_empty() {
            return;
        }
        let clients: Vec<_> = unasked.iter().map(|(_, client)| *client).collect();
        let listeners = self.listeners().into_iter();
        let listeners: Vec<_> = listeners.filter_map(|l| l.address.parse().ok()).collect();
        let found = tokio::task::spawn_blocking(move || programs::find(&clients, &listeners)).await;
        let found = found.unwrap_or_default();
        let mut state = self.0.state();
        for (id, client) in unasked {
            if let Some(entry) = state.live.get_mut(&id) {
                entry.program = ProgramLookup::Asked(found.get(&client).cloned());
            }
        }
    }
}

/// The client, if its program can be looked up.
fn client(live: &Live) -> Option<ClientProgram> {
    let by_address = || {
        let client = live.client()?;
        let is_local = client.ip().to_canonical().is_loopback();
        is_local.then_some(ClientProgram::Address(client))
    };
    live.process()
        .map(ClientProgram::Process)
        .or_else(by_address)
}

/// Keeps a listener on the list of the journal until it is dropped.
#[derive(Debug)]
pub(crate) struct ListenerGuard {
    journal: Journal,
    listed: Arc<ListedListener>,
}

#[derive(Debug)]
struct ListedListener {
    listener: ListenerSnapshot,
    /// URL of its status page, with the token. It is never part of a snapshot.
    page: Option<String>,
}

impl Drop for ListenerGuard {
    fn drop(&mut self) {
        let mut listeners = lock(&self.journal.0.listeners);
        listeners.retain(|listed| !Arc::ptr_eq(listed, &self.listed));
    }
}

impl JournalShared {
    fn state(&self) -> MutexGuard<'_, JournalState> {
        lock(&self.state)
    }

    fn opened(&self, live: &Arc<Live>) {
        let entry = JournalEntry {
            live: live.clone(),
            connected: false,
            rate: Rate {
                at: Instant::now(),
                before: (0, 0),
                now: (0.0, 0.0),
            },
            program: ProgramLookup::Unasked,
        };
        self.state().live.insert(live.id(), entry);
        self.channel.tell(|| JournalEvent::ConnectionOpened {
            id: live.id(),
            frontend: live.frontend().to_string(),
            client: live.client().map(|client| client.to_string()),
        });
    }

    fn connected(&self, live: &Live) {
        let mut state = self.state();
        let Some(entry) = state.live.get_mut(&live.id()) else {
            return;
        };
        // An HTTP request may be sent a second time.
        if std::mem::replace(&mut entry.connected, true) {
            return;
        }
        state.totals.open += 1;
        state.totals.connected += 1;
        count(&mut state.counts.connected, live.frontend().as_str());
        count(&mut state.counts.open, live.frontend().as_str());
        drop(state);
        self.channel.tell(|| {
            let route = live.route();
            JournalEvent::ConnectionResolved {
                id: live.id(),
                target: route.target.map(|to| to.to_string()).unwrap_or_default(),
                via: route.via.to,
                transport: route.via.transport.to_owned(),
                seconds: route.took.unwrap_or_default().as_secs_f64(),
            }
        });
    }

    fn ended(&self, live: &Live, ended: Ended<'_>) {
        let mut state = self.state();
        let Some(entry) = state.live.remove(&live.id()) else {
            return;
        };
        let (up, down) = (live.traffic().up(), live.traffic().down());
        state.totals.up += up;
        state.totals.down += down;
        let frontend = live.frontend().as_str();
        count(&mut state.counts.ended, (frontend, ended.end));
        if entry.connected {
            state.totals.open -= 1;
            if let Some(open) = state.counts.open.get_mut(frontend) {
                *open -= 1;
            }
        }
        let refused = ended.refusal.map(|refusal| RefusedConnection {
            id: live.id(),
            at: Timestamp::now().to_string(),
            frontend: frontend.to_owned(),
            client: live.client().map(|client| client.to_string()),
            target: target(live).unwrap_or_default(),
            refusal: refusal.to_string(),
            sentence: ended.error.unwrap_or_default().to_owned(),
        });
        if let (Some(refused), Some(refusal)) = (&refused, ended.refusal) {
            state.totals.refused += 1;
            count(&mut state.counts.refused, (frontend, refusal.as_str()));
            if state.refusals.len() == REFUSALS {
                state.refusals.pop_front();
            }
            state.refusals.push_back(refused.clone());
        }
        drop(state);
        if let Some(Refusal::ClusterAway | Refusal::Unauthenticated) = ended.refusal {
            self.trouble.notify_one();
        }
        let seconds = ended.took.as_secs_f64();
        self.channel.tell(|| {
            let route = live.route();
            let exchange = ExchangeEvent::with_heads(live);
            let trace = self.channel.wants_traces().then(|| Trace::of(live));
            match refused {
                Some(refused) => JournalEvent::ConnectionRefused {
                    id: refused.id,
                    frontend: refused.frontend,
                    client: refused.client,
                    target: route.target.map(|target| target.to_string()),
                    refusal: refused.refusal,
                    sentence: refused.sentence,
                    seconds,
                    exchange,
                    trace,
                },
                None => JournalEvent::ConnectionClosed {
                    id: live.id(),
                    frontend: live.frontend().to_string(),
                    client: live.client().map(|client| client.to_string()),
                    target: route.target.map(|target| target.to_string()),
                    via: route.via.to,
                    transport: route.via.transport.to_owned(),
                    up,
                    down,
                    seconds,
                    end: ended.end.to_owned(),
                    error: ended.error.map(str::to_owned),
                    exchange,
                    trace,
                },
            }
        });
    }
}

impl Observer for JournalShared {
    fn told(&self, news: News<'_>) {
        match news {
            News::Opened(live) => self.opened(live),
            News::Connected(live) => self.connected(live),
            News::Ended(live, ended) => self.ended(live, ended),
        }
    }

    fn wants_exchanges(&self) -> bool {
        self.channel.wants_exchanges()
    }

    fn wants_heads(&self) -> bool {
        self.channel.wants_heads()
    }

    fn wants_traces(&self) -> bool {
        self.channel.wants_traces()
    }
}

impl JournalState {
    fn totals_now(&self) -> TrafficTotals {
        let mut totals = self.totals;
        for entry in self.live.values() {
            totals.up += entry.live.traffic().up();
            totals.down += entry.live.traffic().down();
        }
        totals
    }
}

impl JournalEntry {
    fn is_unasked(&self) -> bool {
        matches!(self.program, ProgramLookup::Unasked)
    }

    fn shown(&mut self) -> ConnectionSnapshot {
        let live = &self.live;
        let route = live.route();
        let (up_rate, down_rate) = self.rate.measure(live);
        ConnectionSnapshot {
            id: live.id(),
            frontend: live.frontend().to_string(),
            client: live.client().map(|client| client.to_string()),
            program: match &self.program {
                ProgramLookup::Asked(program) => program.clone(),
                ProgramLookup::Unasked => None,
            },
            target: route.target.map(|target| target.to_string()),
            via: route.via.to,
            transport: route.via.transport.to_owned(),
            up: live.traffic().up(),
            down: live.traffic().down(),
            up_rate,
            down_rate,
            age: live.age().as_secs_f64(),
            exchange: ExchangeEvent::of(live),
        }
    }
}

fn target(live: &Live) -> Option<String> {
    live.route().target.map(|target| target.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
