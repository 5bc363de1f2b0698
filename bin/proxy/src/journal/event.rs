//! Events: the closed set of what is told, and who listens.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use jiff::Timestamp;
use kubevpn_conn::Live;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::lock;

/// Events that wait for a listener that does not keep up; older ones are dropped for it, and counted.
const WAITING: usize = 1024;

/// Something that happened. Strings that name a kind (`frontend`, `refusal`, `transport`, `end`) are of closed sets; the rest
/// is from outside, and has to be escaped by whoever shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "event",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum JournalEvent {
    /// A connection has begun (for HTTP: a request); what it is to lead to is not known yet.
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
        /// From the complete request to the open stream.
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
    },
    /// It is over, however.
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
        /// The HTTP request that was forwarded, if somebody wants these.
        exchange: Option<ExchangeEvent>,
    },
    /// A port-forward session is open.
    SessionOpened {
        session: u64,
        pod: String,
        transport: String,
    },
    /// There is reason to doubt it: it is being probed.
    SessionSuspected { session: u64, pod: String },
    /// All probes were answered after all.
    SessionRecovered { session: u64, pod: String },
    /// It is no more.
    SessionEnded {
        session: u64,
        pod: String,
        reason: String,
    },
    /// A watch broke: what it followed gets old.
    WatchLost { watch: String, reason: String },
    /// It is followed again.
    WatchBack { watch: String },
    /// The credential plugin has given credentials.
    LoggedIn { expires: Option<String> },
    /// The plugin, or reading the files again, failed.
    LoginFailed { reason: String },
    /// The API server does not take the credentials any more.
    CredentialsRefused,
    /// Events that this listener did not read fast enough.
    Dropped { events: u64 },
}

/// An HTTP request that was forwarded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExchangeEvent {
    pub method: String,
    /// In full, with the credentials that are in it.
    pub url: String,
    /// Of the answer, where there was one.
    pub status: Option<u16>,
    /// When the request was there: RFC 3339.
    #[serde(default)]
    pub began: String,
    /// Seconds from there to a stream to the target, where there was one.
    #[serde(default)]
    pub dialled: Option<f64>,
    /// Seconds from there to the head of the answer, where there was one.
    #[serde(default)]
    pub waited: Option<f64>,
    /// The request's head as the client sent it, if somebody wants heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<MessageHead>,
    /// The answer's head as the client got it, if somebody wants heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<MessageHead>,
}

/// The head of an HTTP message: at most 16 KiB of it. Nothing is left out for being secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageHead {
    /// `HTTP/1.1`
    pub version: String,
    /// Names and values.
    pub fields: Vec<(String, String)>,
    /// False where there were more fields.
    pub is_whole: bool,
}

impl ExchangeEvent {
    /// Of a connection that lives.
    pub(super) fn of(live: &Live) -> Option<Self> {
        Self::read(live, false)
    }

    /// Of one that has just ended, with the heads where there are some.
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

/// An event, and when it happened.
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

/// How much of HTTP requests a listener wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WantedHeads {
    Connections,
    Exchanges,
    Heads,
}

impl WantedHeads {
    /// What it adds to `curious` and `thorough`.
    fn counts(self) -> (usize, usize) {
        match self {
            Self::Connections => (0, 0),
            Self::Exchanges => (1, 0),
            Self::Heads => (1, 1),
        }
    }
}

/// Where events go: nowhere, and at no cost, while nobody listens.
#[derive(Debug)]
pub(super) struct EventChannel {
    /// Gone once nothing is told any more.
    sender: Mutex<Option<broadcast::Sender<Arc<Stamped>>>>,
    listeners: AtomicUsize,
    /// Listeners that want HTTP requests too.
    curious: AtomicUsize,
    /// Those among them that want their heads.
    thorough: AtomicUsize,
    dropped: AtomicU64,
}

impl Default for EventChannel {
    fn default() -> Self {
        Self {
            sender: Mutex::new(Some(broadcast::Sender::new(WAITING))),
            listeners: AtomicUsize::new(0),
            curious: AtomicUsize::new(0),
            thorough: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
        }
    }
}

impl EventChannel {
    /// Makes the event if somebody listens.
    pub(super) fn tell(&self, event: impl FnOnce() -> JournalEvent) {
        if self.listeners.load(Ordering::Relaxed) > 0 {
            let event = Arc::new(Stamped::now(event()));
            if let Some(sender) = &*lock(&self.sender) {
                // An error is that the last listener has just left.
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

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn listen(self: &Arc<Self>, wanted: WantedHeads) -> Events {
        self.listeners.fetch_add(1, Ordering::Relaxed);
        let (exchanges, heads) = wanted.counts();
        self.curious.fetch_add(exchanges, Ordering::Relaxed);
        self.thorough.fetch_add(heads, Ordering::Relaxed);
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

    /// Nothing is told any more.
    pub(super) fn close(&self) {
        *lock(&self.sender) = None;
    }
}

/// Events as they happen, from when it was made.
#[derive(Debug)]
pub struct Events {
    channel: Weak<EventChannel>,
    receiver: broadcast::Receiver<Arc<Stamped>>,
    wanted: WantedHeads,
}

impl Events {
    /// Waits for the next one; `None` when there will be none any more. Cancel safe. A listener that does not keep up misses
    /// some, and is told how many.
    pub async fn next(&mut self) -> Option<Arc<Stamped>> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(events)) => {
                if let Some(channel) = self.channel.upgrade() {
                    channel.dropped.fetch_add(events, Ordering::Relaxed);
                }
                Some(Arc::new(Stamped::now(JournalEvent::Dropped { events })))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.upgrade() {
            channel.listeners.fetch_sub(1, Ordering::Relaxed);
            let (exchanges, heads) = self.wanted.counts();
            channel.curious.fetch_sub(exchanges, Ordering::Relaxed);
            channel.thorough.fetch_sub(heads, Ordering::Relaxed);
        }
    }
}
