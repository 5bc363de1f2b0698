//! Events: the closed set of what is told, and who listens.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use jiff::Timestamp;
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
pub enum Event {
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
        exchange: Option<Exchange>,
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
        exchange: Option<Exchange>,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    pub method: String,
    /// In full.
    pub url: String,
    /// Of the answer, where there was one.
    pub status: Option<u16>,
}

/// An event, and when it happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stamped {
    /// RFC 3339.
    pub at: String,
    #[serde(flatten)]
    pub event: Event,
}

impl Stamped {
    fn now(event: Event) -> Self {
        let at = Timestamp::now().to_string();
        Self { at, event }
    }
}

/// Where events go: nowhere, and at no cost, while nobody listens.
#[derive(Debug)]
pub(super) struct Channel {
    /// Gone once nothing is told any more.
    sender: Mutex<Option<broadcast::Sender<Arc<Stamped>>>>,
    listeners: AtomicUsize,
    /// Listeners that want HTTP requests too.
    curious: AtomicUsize,
    dropped: AtomicU64,
}

impl Default for Channel {
    fn default() -> Self {
        Self {
            sender: Mutex::new(Some(broadcast::Sender::new(WAITING))),
            listeners: AtomicUsize::new(0),
            curious: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
        }
    }
}

impl Channel {
    /// Makes the event if somebody listens.
    pub(super) fn tell(&self, event: impl FnOnce() -> Event) {
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

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn listen(self: &Arc<Self>, exchanges: bool) -> Events {
        self.listeners.fetch_add(1, Ordering::Relaxed);
        self.curious.fetch_add(exchanges.into(), Ordering::Relaxed);
        let receiver = match &*lock(&self.sender) {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1,
        };
        Events {
            receiver,
            channel: Arc::downgrade(self),
            exchanges,
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
    channel: Weak<Channel>,
    receiver: broadcast::Receiver<Arc<Stamped>>,
    exchanges: bool,
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
                Some(Arc::new(Stamped::now(Event::Dropped { events })))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.upgrade() {
            channel.listeners.fetch_sub(1, Ordering::Relaxed);
            let curious = usize::from(self.exchanges);
            channel.curious.fetch_sub(curious, Ordering::Relaxed);
        }
    }
}
