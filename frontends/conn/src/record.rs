//! The one line that tells how a connection went.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kubevpn_target::{ConnectError, Fault, Frontend, Origin, Refusal, Target, Via};
use tokio::time::Instant;
use tracing::Level;

use crate::observe::{Ended, Exchange, Head, Live, News, Observed};
use crate::{ClientIo, End, Relayed};

/// Bytes of a connection, readable while they flow.
#[derive(Debug, Default)]
pub struct Traffic {
    up: AtomicU64,
    down: AtomicU64,
}

impl Traffic {
    /// Bytes taken from the client and given to the target.
    pub fn up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }

    /// Bytes taken from the target and given to the client.
    pub fn down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }

    /// Counts; for who carries bytes without [`relay`](crate::relay).
    pub fn add_up(&self, n: u64) {
        self.up.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts; for who carries bytes without [`relay`](crate::relay).
    pub fn add_down(&self, n: u64) {
        self.down.fetch_add(n, Ordering::Relaxed);
    }
}

/// The access record of one connection (for HTTP: of one request), written once, when it ends.
///
/// An event of the tracing target `access` outside every span, with the fields `id`, `frontend`,
/// `client.addr`, `target`, `via`, `up` and `down` in bytes, `seconds` (to the last byte, where it was relayed),
/// `end`, `refusal`, `error`. Level
/// `WARN` where the cluster, the way to it or this program is at fault, so that somebody should act; `DEBUG`
/// for a connection that ended before it asked for anything, as those of health checks do; `INFO` for the rest.
///
/// `end` is one of `eof` (also a client that has closed, with all it sent passed on), `client`, `upstream` (that side broke), `idle`, `refused` (see `refusal`),
/// `rejected` (the handshake), `gone` (while dialing), `unused`, `cut`, `panicked`. A record that is dropped
/// before its end is known was `cut`; so was an answer whose upstream cannot tell whether it was whole
/// (`UnexpectedEof`).
///
/// ```
/// use kubevpn_conn::Record;
/// use kubevpn_target::{ConnectError, Frontend, Origin, Refusal, Target};
/// let mut record = Record::start(Frontend::Socks5, None);
/// record.target(&Target::parse("web:81", Origin::default()).unwrap());
/// record.refused(&ConnectError::new(Refusal::NoSuchPort, "service shop/web has no TCP port 81"));
/// ```
#[derive(Debug)]
pub struct Record {
    id: u64,
    frontend: Frontend,
    client: Option<SocketAddr>,
    target: Option<Target>,
    via: Option<Via>,
    started: Instant,
    /// When the last byte moved, if that is what counts.
    last: Option<Instant>,
    traffic: Arc<Traffic>,
    written: bool,
    observed: Option<Arc<Live>>,
}

/// Begins the records of one client's connection: for HTTP there are many.
///
/// ```
/// use kubevpn_conn::Recorder;
/// use kubevpn_target::Frontend;
/// let (client, _app) = tokio::io::duplex(64);
/// let recorder = Recorder::new(Frontend::Http, &client);
/// assert_ne!(recorder.start().id(), recorder.start().id());
/// ```
#[derive(Clone, Debug)]
pub struct Recorder {
    origin: Origin,
    observed: Option<Observed>,
}

impl Recorder {
    /// For a client of this frontend.
    pub fn new(frontend: Frontend, client: &impl ClientIo) -> Self {
        let peer = client.peer();
        Self {
            origin: Origin { frontend, peer },
            observed: client.observed(),
        }
    }

    /// The frontend, and the client's address.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Begins a record and gives it the next number of this process.
    pub fn start(&self) -> Record {
        let mut record = Record::start(self.origin.frontend, self.origin.peer);
        if let Some(observed) = &self.observed {
            let traffic = record.traffic();
            let observed = observed.clone();
            let live = Live::new(record.id, record.frontend, record.client, traffic, observed);
            live.observer().told(News::Opened(&live));
            record.observed = Some(live);
        }
        record
    }
}

impl Record {
    /// Begins the record of a connection that nobody observes and gives it the next number of this process.
    pub fn start(frontend: Frontend, client: Option<SocketAddr>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            frontend,
            client,
            target: None,
            via: None,
            started: Instant::now(),
            last: None,
            traffic: Arc::default(),
            written: false,
            observed: None,
        }
    }

    /// The connection's number, for spans.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The counters that end up in the record; give them to the relay.
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }

    /// What the client asked for.
    pub fn target(&mut self, target: &Target) {
        self.target = Some(target.clone());
        if let Some(live) = &self.observed {
            live.asked(target);
        }
    }

    /// Where its stream went.
    pub fn via(&mut self, via: Via) {
        if let Some(live) = &self.observed {
            live.connected(&via);
            live.observer().told(News::Connected(live));
        }
        self.via = Some(via);
    }

    /// A stream that was used before, on which it is tried: it may be dead, so that it is connected only once
    /// [`via`](Self::via) says so.
    pub fn tried(&mut self, via: &Via) {
        if let Some(live) = &self.observed {
            live.connected(via);
        }
    }

    /// The stream that it was tried on was dead.
    pub fn lost(&mut self) {
        if let Some(live) = &self.observed {
            live.lost();
        }
    }

    /// The HTTP request that it is, told to those who observe and want to know: each function is called only for them.
    pub fn exchange(
        &mut self,
        method: &str,
        url: impl FnOnce() -> String,
        head: impl FnOnce() -> Head,
    ) {
        if let Some(live) = &self.observed
            && live.observer().wants_exchanges()
        {
            live.exchange(Exchange {
                method: Exchange::cut(method),
                url: Exchange::cut(&url()),
                request: live.observer().wants_heads().then(|| Arc::new(head())),
                ..Exchange::default()
            });
        }
    }

    /// `traceparent` of the HTTP request that it is, which is asked for where somebody wants to know.
    pub fn traceparent(&mut self, traceparent: impl FnOnce() -> Option<String>) {
        if let Some(live) = &self.observed
            && live.observer().wants_traces()
        {
            live.traceparent(traceparent());
        }
    }

    /// The connection as others see it, if it is observed.
    pub fn live(&self) -> Option<Arc<Live>> {
        self.observed.clone()
    }

    /// The status of its answer, and its head for those who want to know.
    pub fn answered(&mut self, status: u16, head: impl FnOnce() -> Head) {
        if let Some(live) = &self.observed {
            live.answered(status, head);
        }
    }

    /// The relay has ended.
    pub fn relayed(mut self, relayed: &Relayed) {
        let error = match &relayed.end {
            End::Failed { error, .. } => Some(chain(error)),
            End::Eof | End::Idle | End::Cut => None,
        };
        self.last = Some(relayed.last);
        self.write(Level::INFO, relayed.end.as_str(), None, error.as_deref());
    }

    /// No stream was opened.
    pub fn refused(mut self, error: &ConnectError) {
        let refusal = error.refusal();
        let level = match refusal.fault() {
            Fault::Client => Level::INFO,
            Fault::Cluster | Fault::Network | Fault::Us => Level::WARN,
        };
        self.write(level, "refused", Some(refusal), Some(&chain(error)));
    }

    /// The client's handshake came to nothing.
    pub fn rejected(mut self, error: &(dyn Error + 'static)) {
        self.write(Level::INFO, "rejected", None, Some(&chain(error)));
    }

    /// The client left: in its handshake, while its target was being dialled, or while the answer was sent.
    pub fn gone(mut self, error: &(dyn Error + 'static)) {
        let level = match self.target {
            Some(_) => Level::INFO,
            None => Level::DEBUG,
        };
        self.write(level, "gone", None, Some(&chain(error)));
    }

    /// The client came and went without a byte, as port scans and health checks do.
    pub fn unused(mut self) {
        self.write(Level::DEBUG, "unused", None, None);
    }

    fn write(
        &mut self,
        level: Level,
        end: &'static str,
        refusal: Option<Refusal>,
        error: Option<&str>,
    ) {
        self.written = true;
        let took = self.last.unwrap_or_else(Instant::now) - self.started;
        if let Some(live) = self.observed.take() {
            let ended = Ended {
                end,
                refusal,
                error,
                took,
            };
            live.observer().told(News::Ended(&live, ended));
        }
        macro_rules! event {
            ($level:expr) => {
                tracing::event!(
                    target: "access",
                    parent: None,
                    $level,
                    id = self.id,
                    frontend = self.frontend.as_str(),
                    client.addr = self.client.map(tracing::field::display),
                    target = self.target.as_ref().map(tracing::field::display),
                    via = self.via.as_ref().map(tracing::field::display),
                    up = self.traffic.up(),
                    down = self.traffic.down(),
                    seconds = took.as_secs_f64(),
                    end,
                    refusal = refusal.map(Refusal::as_str),
                    error,
                )
            };
        }
        match level {
            Level::WARN => event!(Level::WARN),
            Level::DEBUG => event!(Level::DEBUG),
            _ => event!(Level::INFO),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.written {
            return;
        }
        if std::thread::panicking() {
            self.write(Level::WARN, "panicked", None, None);
        } else {
            self.write(Level::INFO, "cut", None, None);
        }
    }
}

/// An error and its causes in one line; a cause that its wrapper quotes counts once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            let _: fmt::Result = write!(text, ": {words}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
