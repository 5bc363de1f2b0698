//! Connections as others see them while they live, and an end to any one of them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kubevpn_target::{Frontend, Refusal, Target, Via};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Traffic;

/// Every `end` of an access record ([`Record`](crate::Record)); a closed set, fit for a metric's label.
pub const ENDS: [&str; 10] = [
    "eof", "client", "upstream", "idle", "refused", "rejected", "gone", "unused", "cut", "panicked",
];

/// Told what becomes of the connections of a [`Listener`](crate::Listener), by the one who serves them: it must be quick,
/// and not wait.
///
/// ```
/// use kubevpn_conn::{News, Observer};
/// #[derive(Debug)]
/// struct Printer;
/// impl Observer for Printer {
///     fn told(&self, news: News<'_>) {
///         match news {
///             News::Opened(live) => println!("{} opened", live.id()),
///             News::Connected(live) => println!("{} leads to {}", live.id(), live.route().via),
///             News::Ended(live, ended) => println!("{} ended: {}", live.id(), ended.end),
///         }
///     }
/// }
/// ```
pub trait Observer: fmt::Debug + Send + Sync {
    /// Something became of a connection.
    fn told(&self, news: News<'_>);

    /// Whether somebody wants to know the HTTP requests that are forwarded ([`Route::exchange`]). Asked for each.
    fn wants_exchanges(&self) -> bool {
        false
    }

    /// Whether somebody wants their fields too ([`Exchange::request`], [`Exchange::response`]). Asked for each head.
    fn wants_heads(&self) -> bool {
        false
    }

    /// Whether somebody wants to know the steps of dials ([`Route::steps`]) and what a request belongs to
    /// ([`Route::traceparent`]). Asked for each.
    fn wants_traces(&self) -> bool {
        false
    }
}

/// What became of a connection.
#[derive(Clone, Copy, Debug)]
pub enum News<'a> {
    /// It has begun; what it is to lead to is not known yet.
    Opened(&'a Arc<Live>),
    /// A stream to its target is open.
    Connected(&'a Arc<Live>),
    /// It is over.
    Ended(&'a Arc<Live>, Ended<'a>),
}

/// How a connection ended; the same as its access record says.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// One of [`ENDS`].
    pub end: &'static str,
    /// Why no stream was opened.
    pub refusal: Option<Refusal>,
    /// What went wrong, in words.
    pub error: Option<&'a str>,
    /// To the last byte, where it was relayed.
    pub took: Duration,
}

/// A connection that lives, or has just ended (for HTTP: a request).
#[derive(Debug)]
pub struct Live {
    id: u64,
    frontend: Frontend,
    client: Option<SocketAddr>,
    observed: Observed,
    began: Instant,
    traffic: Arc<Traffic>,
    route: Mutex<Route>,
}

/// Where a connection leads.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// What was asked for, once the client has said.
    pub target: Option<Target>,
    /// Where its stream went; empty until there is one.
    pub via: Via,
    /// From the complete request to the open stream.
    pub took: Option<Duration>,
    /// The HTTP request that is forwarded, if somebody wants to know.
    pub exchange: Option<Exchange>,
    /// The steps of its dial that are over, in the order in which they ended, if somebody wants to know.
    pub steps: Vec<DialStep>,
    /// `traceparent` of the request (W3C Trace Context), as it was sent, if somebody wants to know.
    pub traceparent: Option<String>,
    asked: Option<Instant>,
}

/// A step of a dial that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialStep {
    /// A name of a closed set, which is the backend's.
    pub name: &'static str,
    /// From the beginning of the connection to that of the step.
    pub began: Duration,
    /// How long it took.
    pub took: Duration,
}

tokio::task_local! {
    /// The connection for which the task dials.
    static DIALLED: Arc<Live>;
}

/// An HTTP request that is forwarded, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// `GET`. Cut as the URL is.
    pub method: String,
    /// In full, credentials and all, up to [`MAX_BYTES`](Self::MAX_BYTES).
    pub url: String,
    /// Of the answer's head, once that is there.
    pub status: Option<u16>,
    /// From the complete request to the head of its answer.
    pub waited: Option<Duration>,
    /// The request's head as the client sent it, credentials and all, if somebody wants to know.
    pub request: Option<Arc<Head>>,
    /// The answer's head as the client gets it, if somebody wants to know.
    pub response: Option<Arc<Head>>,
}

impl Exchange {
    /// Bytes that are kept of a URL and of a method (8 KiB), so that what waits for a reader is bounded.
    pub const MAX_BYTES: usize = 8 * 1024;

    /// In place of what is not kept.
    pub const CUT: char = '…';

    pub(crate) fn cut(text: &str) -> String {
        match text.as_bytes().get(..Self::MAX_BYTES) {
            Some(kept) if kept.len() < text.len() => {
                let kept = String::from_utf8_lossy(kept);
                // The part of a character.
                let kept = kept.trim_end_matches(char::REPLACEMENT_CHARACTER);
                format!("{kept}{}", Self::CUT)
            }
            _ => text.to_owned(),
        }
    }
}

/// The head of an HTTP message, as far as it is kept.
///
/// ```
/// use kubevpn_conn::Head;
/// let head = Head::copied("HTTP/1.1", [("host", &b"web"[..])]);
/// assert_eq!(head.fields, [("host".to_owned(), "web".to_owned())]);
/// assert!(head.is_whole);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// `HTTP/1.1`
    pub version: String,
    /// Names and values; bytes that are not UTF-8 are replaced.
    pub fields: Vec<(String, String)>,
    /// False where fields were left out because there are too many bytes of them.
    pub is_whole: bool,
}

impl Head {
    /// Bytes of names and values that are kept of one head (16 KiB), so that what waits for a reader is bounded.
    pub const MAX_BYTES: usize = 16 * 1024;

    /// Bytes that a field needs beside its text, counted with it.
    const FIELD: usize = 64;

    /// Copies as many whole fields as [`MAX_BYTES`](Self::MAX_BYTES) allows.
    pub fn copied<'a>(
        version: impl Into<String>,
        fields: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Self {
        let mut left = Self::MAX_BYTES;
        let mut head = Self {
            version: version.into(),
            fields: Vec::new(),
            is_whole: true,
        };
        for (name, value) in fields {
            let Some(rest) = left.checked_sub(name.len() + value.len() + Self::FIELD) else {
                head.is_whole = false;
                break;
            };
            left = rest;
            let value = String::from_utf8_lossy(value).into_owned();
            head.fields.push((name.to_owned(), value));
        }
        head
    }
}

impl Live {
    pub(crate) fn new(
        id: u64,
        frontend: Frontend,
        client: Option<SocketAddr>,
        traffic: Arc<Traffic>,
        observed: Observed,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            frontend,
            client,
            observed,
            began: Instant::now(),
            traffic,
            route: Mutex::default(),
        })
    }

    /// Its number in this process, as in its access record.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The frontend that serves it.
    pub fn frontend(&self) -> Frontend {
        self.frontend
    }

    /// The client's address, where it has one.
    pub fn client(&self) -> Option<SocketAddr> {
        self.client
    }

    /// The client's process, where the socket tells (a Unix socket).
    pub fn process(&self) -> Option<u32> {
        self.observed.0.process
    }

    /// How long ago it began.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Its bytes so far.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Where it leads, as far as that is known.
    pub fn route(&self) -> Route {
        self.lock().clone()
    }

    /// Runs a dial for a connection, which is [`dialled`](Self::dialled) meanwhile if somebody wants to know its steps.
    ///
    /// Cancellation: as of the dial.
    pub async fn dialling<D: Future>(live: Option<Arc<Self>>, dial: D) -> D::Output {
        match live.filter(|live| live.observer().wants_traces()) {
            Some(live) => DIALLED.scope(live, dial).await,
            None => dial.await,
        }
    }

    /// The connection for which this task dials; `None` outside a dial, and where nobody wants to know. A backend that reports
    /// its steps by a callback is heard within the dial.
    pub fn dialled() -> Option<Arc<Self>> {
        DIALLED.try_with(Arc::clone).ok()
    }

    /// Notes a step of its dial that took so long and ended so long ago.
    pub fn step(&self, name: &'static str, took: Duration, ago: Duration) {
        /// More are tried by no dial; what is noted is bounded.
        const MOST: usize = 32;
        let began = self.began.elapsed().saturating_sub(took + ago);
        let mut route = self.lock();
        if route.steps.len() < MOST {
            route.steps.push(DialStep { name, began, took });
        }
    }

    /// Ends the client's connection now, whatever it is doing: it is dropped, and its record says `cut`.
    pub fn cut(&self) {
        self.observed.0.cut.cancel();
    }

    pub(crate) fn observer(&self) -> &dyn Observer {
        &*self.observed.0.observer
    }

    pub(crate) fn asked(&self, target: &Target) {
        let mut route = self.lock();
        route.target = Some(target.clone());
        route.asked = Some(Instant::now());
    }

    pub(crate) fn connected(&self, via: &Via) {
        let mut route = self.lock();
        let asked = route.asked;
        route.took = route.took.or_else(|| Some(asked?.elapsed()));
        route.via = via.clone();
    }

    /// The stream that it was tried on was dead.
    pub(crate) fn lost(&self) {
        let mut route = self.lock();
        route.took = None;
        route.via = Via::default();
    }

    pub(crate) fn traceparent(&self, traceparent: Option<String>) {
        self.lock().traceparent = traceparent;
    }

    pub(crate) fn exchange(&self, exchange: Exchange) {
        self.lock().exchange = Some(exchange);
    }

    pub(crate) fn answered(&self, status: u16, head: impl FnOnce() -> Head) {
        let wants_head = self.observer().wants_heads();
        let mut route = self.lock();
        let waited = route.asked.map(|asked| asked.elapsed());
        if let Some(exchange) = &mut route.exchange {
            exchange.status = Some(status);
            exchange.waited = waited;
            exchange.response = wants_head.then(|| Arc::new(head()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Route> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By whom a client's connection is observed, and what ends it. Clones are the same; as small as can be, since each connection
/// has a place for one.
#[derive(Clone, Debug)]
pub struct Observed(Arc<Observation>);

#[derive(Debug)]
struct Observation {
    observer: Arc<dyn Observer>,
    cut: CancellationToken,
    process: Option<u32>,
}

impl Observed {
    pub(crate) fn new(
        observer: Arc<dyn Observer>,
        cut: CancellationToken,
        process: Option<u32>,
    ) -> Self {
        Self(Arc::new(Observation {
            observer,
            cut,
            process,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wants {
        traces: bool,
    }

    impl Observer for Wants {
        fn told(&self, _: News<'_>) {}

        fn wants_traces(&self) -> bool {
            self.traces
        }
    }

    fn live(traces: bool) -> Arc<Live> {
        let observed = Observed::new(Arc::new(Wants { traces }), CancellationToken::new(), None);
        Live::new(1, Frontend::Socks5, None, Arc::default(), observed)
    }

    /// What a backend tells while it dials.
    async fn told(name: &'static str) {
        tokio::task::yield_now().await;
        if let Some(live) = Live::dialled() {
            live.step(name, Duration::from_secs(2), Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn step_is_noted_for_the_connection_that_is_dialled() {
        let (first, second, unasked) = (live(true), live(true), live(false));
        tokio::time::advance(Duration::from_secs(3)).await;
        tokio::join!(
            Live::dialling(Some(first.clone()), told("first")),
            Live::dialling(Some(second.clone()), told("second")),
            Live::dialling(Some(unasked.clone()), told("unasked")),
            Live::dialling(None, told("nobody")),
            told("outside"),
        );
        let step = |name| DialStep {
            name,
            began: Duration::from_secs(1),
            took: Duration::from_secs(2),
        };
        assert_eq!(first.route().steps, [step("first")]);
        assert_eq!(second.route().steps, [step("second")]);
        assert_eq!(unasked.route().steps, []);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        for (text, cut) in [
            ("", ""),
            (
                &"a".repeat(Exchange::MAX_BYTES),
                &"a".repeat(Exchange::MAX_BYTES),
            ),
            (
                &"é".repeat(Exchange::MAX_BYTES),
                &format!("{}…", "é".repeat(Exchange::MAX_BYTES / 2)),
            ),
            (
                &format!("a{}", "é".repeat(Exchange::MAX_BYTES)),
                &format!("a{}…", "é".repeat(Exchange::MAX_BYTES / 2 - 1)),
            ),
        ] {
            assert_eq!(Exchange::cut(text), cut);
        }
    }

    #[tokio::test]
    async fn steps_are_bounded() {
        let live = live(true);
        for _ in 0..1000 {
            live.step("session", Duration::ZERO, Duration::ZERO);
        }
        assert!(live.route().steps.len() < 100);
    }
}
