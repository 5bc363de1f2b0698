//! The admin listener, for the operator of the proxy: probes, metrics and the status page. It proxies nothing.
//!
//! | request | answer |
//! |---|---|
//! | `GET /livez` | 200 as long as the process answers |
//! | `GET /readyz` | 200 while clients are accepted, else 503 with the reason in a line |
//! | `GET /metrics` | what Prometheus reads: [`METRICS`](crate::METRICS) |
//! | `GET /`, `/style.css`, `/script.js`, `/events`; `POST /cut` | the status page, for a browser that has its token (`admin/gate.rs`) |
//! | `/v1/proxy/…`, on the console alone | what goes through the proxy: [`journal::api`](crate::journal::api) |
//!
//! Readiness does not depend on the API server: if that is away, it is away for every replica, and a client should get the
//! reason rather than no connection. Probes and metrics are for machines, which have no token, and contain no target or
//! client. On a loopback address they are answered by no name that may be another site's.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::unfold;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
    LOCATION, REFERRER_POLICY, SET_COOKIE, X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kubevpn_conn::{Addr, Client, ClientIo as _, Drain, Gate, HANDSHAKE_TIMEOUT, Limits, Listener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::gate::{Denied, Keys};
use crate::journal::api::{self, JournalResponse};
use crate::journal::{ListenerGuard, ProxyView};
use crate::listener::not_bound;
use crate::metrics::{MetricsFormat, scrape};
use crate::{ListenerError, Protocol};

mod gate;
mod page;

/// Concurrent connections; further ones wait.
const LIMITS: Limits = Limits {
    total: 64,
    per_client: None,
};
/// Concurrent streaming responses. The other connections are kept free for probes.
const STREAMS: usize = 32;
/// Upper bound on the head of a request.
const MAX_HEAD: usize = 16 * 1024;
/// Upper bound on a form.
const MAX_FORM: usize = 1024;
/// Name of the listener in errors.
const NAME: &str = "admin listener";
/// Time limit for clients of a console to read events at the end.
const LAST_EVENTS: Duration = Duration::from_secs(1);
/// Interval of the events that update the page.
const TICK: Duration = Duration::from_secs(1);

/// Headers of all answers: the page may load only its own files, and may not be framed.
const HEADERS: [(HeaderName, &str); 6] = [
    (CACHE_CONTROL, "no-store"),
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    // With `no-referrer`, browsers send `Origin: null` with the page's own forms.
    (REFERRER_POLICY, "same-origin"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

/// Whether clients are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ProxyReadiness {
    /// Clients are not accepted yet.
    Starting,
    /// Clients are accepted.
    Ready,
    /// Clients are not accepted any more.
    Ending,
}

/// A running admin listener; it is closed by [`end`](Self::end).
pub struct Admin {
    state: Arc<AdminState>,
    drain: Drain,
    accepting: JoinHandle<()>,
}

/// The state that answers are made from.
pub(crate) struct AdminState {
    readiness: AtomicU8,
    addr: Addr,
    view: OnceLock<ProxyView>,
    /// Entry of this listener in the journal.
    listening: OnceLock<ListenerGuard>,
    /// Whether it is the console, which answers programs of this user.
    is_console: bool,
    /// Secrets of the status page, if there is one.
    keys: Option<Keys>,
    streams: Arc<Semaphore>,
}

impl Admin {
    /// Binds the address and answers from then on, at first with [`ProxyReadiness::Starting`]. On an address that is not
    /// loopback there are probes and metrics, without a token, and no page.
    pub async fn start(addr: &Addr) -> Result<Self, ListenerError> {
        Self::bind(addr, false).await
    }

    /// Binds the console: a Unix socket on which programs of this user, and of no other, are told what goes through the
    /// proxy, by [`journal::api`](crate::journal::api).
    pub async fn console(path: PathBuf) -> Result<Self, ListenerError> {
        Self::bind(&Addr::Unix(path), true).await
    }

    async fn bind(addr: &Addr, is_console: bool) -> Result<Self, ListenerError> {
        let bound = Listener::bind(addr).await;
        let listener =
            bound.map_err(|error| not_bound(NAME.into(), error.addr.to_string(), error.source))?;
        let state = AdminState::new(listener.addr(), is_console);
        let drain = Drain::new();
        let serving = {
            let state = state.clone();
            listener.serve(Gate::new(LIMITS), drain.clone(), move |client| {
                serve(client, state.clone())
            })
        };
        Ok(Self {
            state,
            drain,
            accepting: tokio::spawn(serving),
        })
    }

    /// Address of the listener, with the actual port.
    pub fn addr(&self) -> &Addr {
        &self.state.addr
    }

    /// URL of the status page, with the token that grants access; `None` if there is no page.
    pub fn page(&self) -> Option<String> {
        self.state.keys.as_ref().map(Keys::url)
    }

    /// Sets the readiness that probes are answered with.
    pub fn set(&self, readiness: ProxyReadiness) {
        self.state.set(readiness);
    }

    /// Shows this proxy on the status page and in the metrics.
    pub fn show(&self, view: ProxyView) {
        self.state.show(view);
    }

    /// Closes the listener. Clients of a console get up to a second to read the last events of a journal that was closed
    /// before.
    pub async fn end(self) {
        let limit = match self.state.is_console {
            true => LAST_EVENTS,
            false => Duration::ZERO,
        };
        self.drain.drain(limit).await;
        let _ended = self.accepting.await;
    }
}

/// Progress of a client's one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AdminPhase {
    /// The request has not arrived.
    Waiting,
    /// The answer is being made and sent.
    Answering,
    /// The answer is a stream without an end.
    Streaming,
}

/// Serves one client, with one request. Only a streaming response may take longer than a handshake. The end of the
/// listener waits for an answer, and neither for a stream nor for a client that has not asked.
pub(crate) async fn serve(client: Client, state: Arc<AdminState>) {
    if state.is_console && client.uid() != Some(rustix::process::geteuid().as_raw()) {
        tracing::warn!(uid = client.uid(), "another user's process is not answered");
        return;
    }
    let drain = client.drain();
    let (phase, mut phases) = watch::channel(AdminPhase::Waiting);
    let service = service_fn(|request: Request<Incoming>| {
        let (state, phase) = (&state, &phase);
        async move {
            phase.send_replace(AdminPhase::Answering);
            let answer = state.answer(request).await;
            if answer.body().size_hint().exact().is_none() {
                phase.send_replace(AdminPhase::Streaming);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let serving = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(client), service);
    let mut serving = pin!(serving);
    let served = async {
        // An error here concerns the client alone.
        let ended = timeout(HANDSHAKE_TIMEOUT, &mut serving).await;
        if ended.is_err() && *phase.borrow() == AdminPhase::Streaming {
            let _ended = serving.await;
        }
    };
    let stopped = async {
        drain.stopping().await;
        // Events of a console end with the journal.
        let is_over = |phase: &AdminPhase| match phase {
            AdminPhase::Waiting => true,
            AdminPhase::Answering => false,
            AdminPhase::Streaming => !state.is_console,
        };
        let _ = phases.wait_for(is_over).await;
    };
    tokio::select! {
        () = served => {}
        () = stopped => {}
    }
}

impl AdminState {
    /// State of a listener at this address.
    pub(crate) fn new(addr: &Addr, is_console: bool) -> Arc<Self> {
        let keys = match addr {
            Addr::Tcp(at) if at.ip().is_loopback() => Keys::new(*at),
            Addr::Tcp(_) | Addr::Unix(_) => None,
        };
        Arc::new(Self {
            readiness: AtomicU8::new(ProxyReadiness::Starting as u8),
            addr: addr.clone(),
            view: OnceLock::new(),
            listening: OnceLock::new(),
            is_console,
            keys,
            streams: Arc::new(Semaphore::new(STREAMS)),
        })
    }

    pub(crate) fn set(&self, readiness: ProxyReadiness) {
        self.readiness.store(readiness as u8, Ordering::Relaxed);
    }

    pub(crate) fn show(&self, view: ProxyView) {
        if !self.is_console {
            let page = self.keys.as_ref().map(Keys::url);
            let listening = view.journal().listening(&self.addr, &Protocol::Admin, page);
            let _ = self.listening.set(listening);
        }
        let _ = self.view.set(view);
    }

    async fn answer(&self, request: Request<Incoming>) -> JournalResponse {
        let (head, body) = request.into_parts();
        let mut answer = match head.uri.path() {
            "/livez" | "/readyz" | "/metrics" if !is_read(&head.method) => {
                text(StatusCode::METHOD_NOT_ALLOWED, "send GET\n")
            }
            path @ ("/livez" | "/readyz" | "/metrics") => match self.check_name(&head.headers) {
                Err(Denied(status, why)) => text(status, why),
                Ok(()) if path == "/livez" => text(StatusCode::OK, "ok\n"),
                Ok(()) if path == "/readyz" => self.ready(),
                Ok(()) => self.metrics(&head.headers),
            },
            path => match (&self.keys, self.view.get()) {
                (None, Some(view)) if self.is_console => tell(view, &head).await,
                (Some(keys), Some(view)) => {
                    let answered = self.page_answer(keys, view, &head, body).await;
                    answered.unwrap_or_else(|Denied(status, why)| {
                        html(status, page::message("kubevpn", why))
                    })
                }
                _ if path == "/" => text(
                    StatusCode::NOT_FOUND,
                    "there are /livez, /readyz and /metrics; the status page is on loopback addresses alone\n",
                ),
                _ => nothing(),
            },
        };
        for (name, value) in HEADERS {
            let value = HeaderValue::from_static(value);
            answer.headers_mut().insert(name, value);
        }
        answer
    }

    /// From another machine the name is whatever leads here.
    fn check_name(&self, headers: &HeaderMap) -> Result<(), Denied> {
        match &self.addr {
            Addr::Tcp(at) if at.ip().to_canonical().is_loopback() => gate::check_name(headers),
            Addr::Tcp(_) | Addr::Unix(_) => Ok(()),
        }
    }

    fn ready(&self) -> JournalResponse {
        match self.not_ready() {
            None => text(StatusCode::OK, "ok\n"),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason),
        }
    }

    /// Why clients are not accepted.
    fn not_ready(&self) -> Option<&'static str> {
        let readiness = self.readiness.load(Ordering::Relaxed);
        let lacks_listener = |view: &ProxyView| !view.journal().is_all_listening();
        if readiness == ProxyReadiness::Ending as u8 {
            Some("ending: no client is accepted any more\n")
        } else if readiness == ProxyReadiness::Starting as u8 {
            Some("starting: the API server has not answered yet\n")
        } else if self.view.get().is_some_and(lacks_listener) {
            Some("a listener is not open: kubevpn status says which, and why\n")
        } else {
            None
        }
    }

    fn metrics(&self, headers: &HeaderMap) -> JournalResponse {
        let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
        let format = MetricsFormat::of(accept);
        let scraped = scrape(self.view.get(), self.not_ready().is_none(), format);
        typed(StatusCode::OK, format.content_type(), scraped)
    }

    async fn page_answer(
        &self,
        keys: &Keys,
        view: &ProxyView,
        head: &Parts,
        body: Incoming,
    ) -> Result<JournalResponse, Denied> {
        keys.check_origin(&head.method, &head.headers)?;
        let path = head.uri.path();
        if path == "/style.css" && is_read(&head.method) {
            return Ok(typed(
                StatusCode::OK,
                "text/css; charset=utf-8",
                page::STYLE,
            ));
        }
        if path == "/" && is_read(&head.method) && keys.has_token(head.uri.query()) {
            let mut answer = html(StatusCode::OK, page::OPENED.to_owned());
            if let Ok(cookie) = HeaderValue::try_from(keys.set_cookie()) {
                answer.headers_mut().insert(SET_COOKIE, cookie);
            }
            return Ok(answer);
        }
        keys.check_cookie(&head.headers)?;
        Ok(match (path, &head.method) {
            ("/", method) if is_read(method) => {
                let seen = view.snapshot().await;
                html(StatusCode::OK, page::render(&seen, keys.csrf()))
            }
            ("/script.js", method) if is_read(method) => typed(
                StatusCode::OK,
                "text/javascript; charset=utf-8",
                page::SCRIPT,
            ),
            ("/events", &Method::GET) => self.follow(view),
            ("/cut", &Method::POST) => {
                let form = Limited::new(body, MAX_FORM).collect().await;
                let form = form.map(|form| form.to_bytes()).unwrap_or_default();
                match view.cut(keys.read_form(&form)?) {
                    true => home(),
                    false => text(StatusCode::NOT_FOUND, "it has ended already\n"),
                }
            }
            ("/" | "/script.js" | "/events" | "/cut", _) => text(
                StatusCode::METHOD_NOT_ALLOWED,
                "the page is read by GET, and a connection cut by POST\n",
            ),
            _ => nothing(),
        })
    }

    /// Streams a snapshot once a second.
    fn follow(&self, view: &ProxyView) -> JournalResponse {
        let Ok(place) = self.streams.clone().try_acquire_owned() else {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                "the page is open too often\n",
            );
        };
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let seen = (view.clone(), ticks, place);
        let frames = unfold(seen, |(view, mut ticks, place)| async move {
            ticks.tick().await;
            let mut seen = view.snapshot().await;
            // A URL may contain a credential, and the page does not show URLs.
            for connection in &mut seen.connections {
                connection.exchange = None;
            }
            let seen = serde_json::to_string(&seen).unwrap_or_default();
            let event = format!("event: snapshot\ndata: {seen}\n\n");
            Some((Ok(Frame::data(event.into())), (view, ticks, place)))
        });
        let answer = Response::new(StreamBody::new(frames).boxed_unsync());
        with_type(answer, "text/event-stream")
    }
}

/// Answers a program of this user, on the console.
async fn tell(view: &ProxyView, head: &Parts) -> JournalResponse {
    let path = head
        .uri
        .path()
        .strip_prefix("/v1/proxy/")
        .unwrap_or_default();
    let path: Vec<_> = path.split('/').collect();
    let answer = api::answer(view, &head.method, &path, head.uri.query()).await;
    answer.unwrap_or_else(nothing)
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn text(status: StatusCode, text: &'static str) -> JournalResponse {
    typed(status, "text/plain; charset=utf-8", text)
}

fn html(status: StatusCode, page: String) -> JournalResponse {
    typed(status, "text/html; charset=utf-8", page)
}

fn nothing() -> JournalResponse {
    text(StatusCode::NOT_FOUND, "there is nothing here\n")
}

/// Redirects to the page.
fn home() -> JournalResponse {
    let mut answer = text(StatusCode::SEE_OTHER, "");
    answer
        .headers_mut()
        .insert(LOCATION, HeaderValue::from_static("/"));
    answer
}

fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> JournalResponse {
    let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
    *answer.status_mut() = status;
    with_type(answer, kind)
}

fn with_type(mut answer: JournalResponse, kind: &'static str) -> JournalResponse {
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
