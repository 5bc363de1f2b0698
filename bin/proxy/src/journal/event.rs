//! Events of the journal: a closed set, and the channel to listeners.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use jiff::Timestamp;
use kubevpn_conn::Live;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::lock;

/// Number of events that wait for a slow listener. Older ones are dropped for it, and counted.
const WAITING: usize = 1024;

/// An event. Strings that name a kind (`frontend`, `refusal`, `transport`, `end`) are of closed sets; all others are from
/// outside, and have to be escaped when they are shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "event",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum JournalEvent {
    /// A connection has begun (for HTTP: a request). Its target is not known yet.
    ConnectionOpened {
        id: u64,
        frontend: String,
        client: Option<String>,
    },
    /// A stream to its target is open.
    ConnectionResolved {
        id: u64,
        target: String,
        via: String,
        transport: String,
        /// Time from the complete request to the open stream.
        seconds: f64,
    },
    /// No stream was opened.
    ConnectionRefused {
        id: u64,
        frontend: String,
        client: Option<String>,
        target: Option<String>,
        refusal: String,
        /// What failed, and what to try.
        sentence: String,
        seconds: f64,
        exchange: Option<ExchangeEvent>,
        /// When what happened, if somebody wants traces.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trace: Option<Trace>,
    },
    /// A connection has ended.
    ConnectionClosed {
        id: u64,
        frontend: String,
        client: Option<String>,
        target: Option<String>,
        via: String,
        transport: String,
        up: u64,
        down: u64,
        seconds: f64,
        /// One of [`ENDS`](kubevpn_conn::ENDS).
        end: String,
        error: Option<String>,
        /// The forwarded HTTP request, if a listener wants these.
        exchange: Option<ExchangeEvent>,
        /// When what happened, if somebody wants traces.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trace: Option<Trace>,
    },
    /// A port-forward session is open.
    SessionOpened {
        session: u64,
        pod: String,
        transport: String,
    },
    /// A session is suspect, and is being probed.
    SessionSuspected { session: u64, pod: String },
    /// A suspect session has answered all probes.
    SessionRecovered { session: u64, pod: String },
    /// A session has ended.
    SessionEnded {
        session: u64,
        pod: String,
        reason: String,
    },
    /// A watch has ended: its objects are not followed any more.
    WatchLost { watch: String, reason: String },
    /// A watch follows its objects again.
    WatchBack { watch: String },
    /// The credential plugin has returned credentials.
    LoggedIn { expires: Option<String> },
    /// The plugin failed, or the files could not be read again.
    LoginFailed { reason: String },
    /// The API server rejects the credentials.
    CredentialsRefused,
    /// Events were dropped because this listener is too slow.
    Dropped { events: u64 },
}

/// An HTTP request that was forwarded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExchangeEvent {
    pub method: String,
    /// URL including credentials, complete up to 8 KiB; `…` is in place of what follows.
    pub url: String,
    /// Status of the answer, if there was one.
    pub status: Option<u16>,
    /// Time of the request, RFC 3339.
    #[serde(default)]
    pub began: String,
    /// Seconds from the request to a stream to the target, if there was one.
    #[serde(default)]
    pub dialled: Option<f64>,
    /// Seconds from the request to the head of the answer, if there was one.
    #[serde(default)]
    pub waited: Option<f64>,
    /// The request's head as the client sent it, if a listener wants heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<MessageHead>,
    /// The answer's head as the client got it, if a listener wants heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<MessageHead>,
}

/// The head of an HTTP message, at most 16 KiB of it. Secrets are not removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageHead {
    /// `HTTP/1.1`
    pub version: String,
    /// Names and values.
    pub fields: Vec<(String, String)>,
    /// Whether there are no further fields.
    pub is_whole: bool,
}

impl ExchangeEvent {
    /// Exchange of a live connection, for snapshots: without heads, and to be redacted. A snapshot is for whoever looks
    /// at connections; only events have the URL as it was asked for.
    pub(super) fn of(live: &Live) -> Option<Self> {
        Self::read(live, false)
    }

    /// Exchange of a connection that has just ended, with the heads if they were kept.
    pub(super) fn with_heads(live: &Live) -> Option<Self> {
        Self::read(live, true)
    }

    fn read(live: &Live, heads: bool) -> Option<Self> {
        let route = live.route();
        let exchange = route.exchange?;
        let head = |head: Option<Arc<kubevpn_conn::Head>>| {
            let head = head.filter(|_| heads).map(Arc::unwrap_or_clone)?;
            Some(MessageHead {
                version: head.version,
                fields: head.fields,
                is_whole: head.is_whole,
            })
        };
        let age = live.age();
        Some(Self {
            method: exchange.method,
            url: exchange.url,
            status: exchange.status,
            began: (Timestamp::now() - age).to_string(),
            dialled: route.took.map(|took| took.as_secs_f64()),
            waited: exchange.waited.map(|waited| waited.as_secs_f64()),
            request: head(exchange.request),
            response: head(exchange.response),
        })
    }
}

/// A connection that has ended, as a trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// When the connection began: RFC 3339.
    pub began: String,
    /// `traceparent` of the HTTP request, as it was sent.
    pub parent: Option<String>,
    /// The steps of its dial that came to an end, the first one first.
    pub steps: Vec<TraceStep>,
}

/// A step of a dial: `resolve`, `session` or `stream`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceStep {
    pub name: String,
    /// Seconds from the beginning of the connection to that of the step.
    pub after: f64,
    pub seconds: f64,
}

impl Trace {
    /// Of a connection that has just ended.
    pub(super) fn of(live: &Live) -> Self {
        let route = live.route();
        let mut steps: Vec<_> = route.steps.iter().collect();
        steps.sort_by_key(|step| step.began);
        let steps = steps.into_iter().map(|step| TraceStep {
            name: step.name.to_owned(),
            after: step.began.as_secs_f64(),
            seconds: step.took.as_secs_f64(),
        });
        Self {
            began: (Timestamp::now() - live.age()).to_string(),
            parent: route.traceparent,
            steps: steps.collect(),
        }
    }
}

/// An event and its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stamped {
    /// RFC 3339.
    pub at: String,
    #[serde(flatten)]
    pub event: JournalEvent,
}

impl Stamped {
    fn now(event: JournalEvent) -> Self {
        let at = Timestamp::now().to_string();
        Self { at, event }
    }
}

/// The part of HTTP requests that a listener wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WantedHeads {
    Connections,
    Exchanges,
    Heads,
    Traces,
}

impl WantedHeads {
    /// Its contribution to `curious`, `thorough` and `tracing`.
    fn counts(self) -> [usize; 3] {
        match self {
            Self::Connections => [0, 0, 0],
            Self::Exchanges => [1, 0, 0],
            Self::Heads => [1, 1, 0],
            Self::Traces => [1, 0, 1],
        }
    }

    /// The event without what only other listeners want: a URL may have a credential.
    fn shown(self, event: Arc<Stamped>) -> Arc<Stamped> {
        let [exchanges, heads, traces] = self.counts().map(|n| n > 0);
        let (JournalEvent::ConnectionClosed {
            exchange, trace, ..
        }
        | JournalEvent::ConnectionRefused {
            exchange, trace, ..
        }) = &event.event
        else {
            return event;
        };
        let has_heads = |seen: &ExchangeEvent| seen.request.is_some() || seen.response.is_some();
        if (exchanges || exchange.is_none())
            && (heads || !exchange.as_ref().is_some_and(has_heads))
            && (traces || trace.is_none())
        {
            return event;
        }
        let mut own = Arc::unwrap_or_clone(event);
        if let JournalEvent::ConnectionClosed {
            exchange, trace, ..
        }
        | JournalEvent::ConnectionRefused {
            exchange, trace, ..
        } = &mut own.event
        {
            exchange.take_if(|_| !exchanges);
            trace.take_if(|_| !traces);
            if let Some(exchange) = exchange
                && !heads
            {
                (exchange.request, exchange.response) = (None, None);
            }
        }
        Arc::new(own)
    }
}

/// The channel of events. It costs nothing while there is no listener.
#[derive(Debug)]
pub(super) struct EventChannel {
    /// `None` once the channel is closed.
    sender: Mutex<Option<broadcast::Sender<Arc<Stamped>>>>,
    listeners: AtomicUsize,
    /// Number of listeners that want HTTP requests.
    curious: AtomicUsize,
    /// Number of listeners that want heads too.
    thorough: AtomicUsize,
    /// Listeners that want HTTP requests and traces.
    tracing: AtomicUsize,
    dropped: AtomicU64,
}

impl Default for EventChannel {
    fn default() -> Self {
        Self {
            sender: Mutex::new(Some(broadcast::Sender::new(WAITING))),
            listeners: AtomicUsize::new(0),
            curious: AtomicUsize::new(0),
            thorough: AtomicUsize::new(0),
            tracing: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
        }
    }
}

impl EventChannel {
    /// Makes and sends the event if there is a listener.
    pub(super) fn tell(&self, event: impl FnOnce() -> JournalEvent) {
        if self.listeners.load(Ordering::Relaxed) > 0 {
            let event = Arc::new(Stamped::now(event()));
            if let Some(sender) = &*lock(&self.sender) {
                // An error means that the last listener has just been dropped.
                let _ = sender.send(event);
            }
        }
    }

    pub(super) fn wants_exchanges(&self) -> bool {
        self.curious.load(Ordering::Relaxed) > 0
    }

    pub(super) fn wants_heads(&self) -> bool {
        self.thorough.load(Ordering::Relaxed) > 0
    }

    pub(super) fn wants_traces(&self) -> bool {
        self.tracing.load(Ordering::Relaxed) > 0
    }

    /// Numbers of listeners that want HTTP requests, heads and traces.
    fn wants(&self) -> [&AtomicUsize; 3] {
        [&self.curious, &self.thorough, &self.tracing]
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn listen(self: &Arc<Self>, wanted: WantedHeads) -> Events {
        self.listeners.fetch_add(1, Ordering::Relaxed);
        for (wants, n) in self.wants().into_iter().zip(wanted.counts()) {
            wants.fetch_add(n, Ordering::Relaxed);
        }
        let receiver = match &*lock(&self.sender) {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1,
        };
        Events {
            receiver,
            channel: Arc::downgrade(self),
            wanted,
        }
    }

    /// Closes the channel.
    pub(super) fn close(&self) {
        *lock(&self.sender) = None;
    }
}

/// A stream of events, which begins when it is made.
#[derive(Debug)]
pub struct Events {
    channel: Weak<EventChannel>,
    receiver: broadcast::Receiver<Arc<Stamped>>,
    wanted: WantedHeads,
}

impl Events {
    /// Counts events that the listener has read and could not pass on, with those that it did not read fast enough.
    pub fn lost(&self, events: u64) {
        if let Some(channel) = self.channel.upgrade() {
            channel.dropped.fetch_add(events, Ordering::Relaxed);
        }
    }

    /// Waits for the next event; `None` once the channel is closed. Cancel safe. A listener that is too slow misses events,
    /// and gets their number.
    pub async fn next(&mut self) -> Option<Arc<Stamped>> {
        match self.receiver.recv().await {
            Ok(event) => Some(self.wanted.shown(event)),
            Err(RecvError::Lagged(events)) => Some(self.missed(events)),
            Err(RecvError::Closed) => None,
        }
    }

    /// The same without waiting; `None` if no event is there.
    pub fn next_now(&mut self) -> Option<Arc<Stamped>> {
        match self.receiver.try_recv() {
            Ok(event) => Some(self.wanted.shown(event)),
            Err(TryRecvError::Lagged(events)) => Some(self.missed(events)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }

    fn missed(&self, events: u64) -> Arc<Stamped> {
        self.lost(events);
        Arc::new(Stamped::now(JournalEvent::Dropped { events }))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.upgrade() {
            channel.listeners.fetch_sub(1, Ordering::Relaxed);
            for (wants, n) in channel.wants().into_iter().zip(self.wanted.counts()) {
                wants.fetch_sub(n, Ordering::Relaxed);
            }
        }
    }
}
