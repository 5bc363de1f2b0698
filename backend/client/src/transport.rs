//! Requests on connections: calls share HTTP/2 connections, each upgrade gets an HTTP/1.1 one.

use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{Either, select};
use http::{Request, Response, Uri, header};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Bytes, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, capture_connection};
use hyper_util::client::legacy::{Builder, Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::Body;
use kube::client::retry::RetryPolicy;
use kubevpn_target::BoxError;
use tokio::time::{Instant, sleep_until};
use tower::retry::{Policy, Retry};
use tower::{Service, ServiceExt};

use crate::connector::{ApiConnector, Conn};
use crate::error::ClientError;
use crate::options::Options;
use crate::retry::Retries;
use crate::spare::Spare;

/// Limit on simultaneous requests of one connection before the next is opened. API servers and proxies
/// before them normally allow 100 streams; the margin is for those that allow fewer, and for calls beside
/// long watches.
const STREAMS_PER_CONNECTION: usize = 64;
/// Pause after failed connections to an API server. Hundreds of watches, each with a back-off of its own, would otherwise
/// try a hundred times a second.
const REST: Duration = Duration::from_millis(250);

/// A response body of the API server.
pub(crate) type Received = UnsyncBoxBody<Bytes, BoxError>;

type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<Received>, BoxError>> + Send>>;

/// Sends each request over the connection that it needs. Always ready.
#[derive(Clone)]
pub(crate) struct HttpTransport {
    calls: Retry<Retries, Calls>,
    upgrades: Client<Spare, Body>,
    spare: Spare,
    server: Arc<str>,
    /// How long a call may take until its response's head arrives.
    answer: Duration,
}

impl HttpTransport {
    /// `calls` makes connections for plain calls, `upgrades` for upgrades.
    pub(crate) fn new(
        calls: ApiConnector,
        upgrades: ApiConnector,
        url: Uri,
        server: Arc<str>,
        retry: RetryPolicy,
        options: &Options,
    ) -> Self {
        let mut shared = Client::builder(TokioExecutor::new());
        shared
            // hyper-util treats a connection without new requests as idle, even if it is full of watches, and
            // opens another. The server closes connections that are idle.
            .pool_idle_timeout(None)
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(options.ping_interval)
            .http2_keep_alive_timeout(options.ping_timeout)
            // Detects a dead connection after a laptop's sleep before the next call.
            .http2_keep_alive_while_idle(true);
        // Idle HTTP/1.1 connections are not kept, because they cannot be probed: that of a refused upgrade may
        // be dead by the time of the next one.
        let spare = Spare::new(upgrades, url);
        let upgrades = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(spare.clone());
        Self {
            calls: Retry::new(
                Retries::new(retry),
                Calls::new(shared, calls, server.clone()),
            ),
            upgrades,
            spare,
            server,
            answer: options.answer_timeout,
        }
    }

    /// Announces an upgrade.
    pub(crate) fn expect_upgrade(&self) {
        self.spare.expect();
    }
}

fn received<B>(body: B, server: Arc<str>) -> Received
where
    B: BodyExt<Data = Bytes, Error = hyper::Error> + Send + 'static,
{
    let failed = move |source: hyper::Error| {
        let (server, source) = (server.clone(), source.into());
        ClientError::Transport { server, source }.into()
    };
    body.map_err(failed).boxed_unsync()
}

impl Service<Request<Body>> for HttpTransport {
    type Response = Response<Received>;
    type Error = BoxError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> ResponseFuture {
        let Self {
            calls,
            upgrades,
            server,
            answer,
            ..
        } = self.clone();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        Box::pin(async move {
            let upgrade = request.headers().contains_key(header::UPGRADE);
            let answered = if upgrade {
                // An upgrade is never retried, and limited by the caller: it is one step of a dial.
                let upgraded = upgrades.request(request).await;
                let received = |body| received(body, server.clone());
                upgraded.map(|r| r.map(received)).map_err(Into::into)
            } else {
                match tokio::time::timeout(answer, calls.oneshot(request)).await {
                    Ok(answered) => answered,
                    Err(_) => {
                        let server = server.clone();
                        return Err(ClientError::NoAnswer {
                            server,
                            after: answer,
                        }
                        .into());
                    }
                }
            };
            match answered {
                Ok(response) => {
                    let status = response.status().as_u16();
                    tracing::debug!("{method} {path} answered {status}");
                    Ok(response)
                }
                Err(source) => {
                    tracing::debug!("{method} {path} not answered: {source}");
                    Err(ClientError::Transport { server, source }.into())
                }
            }
        })
    }
}

/// Plain calls over as few connections as possible.
///
/// hyper-util's client keeps one HTTP/2 connection per server and queues requests beyond the server's stream
/// limit: behind 100 watches a call would wait for ever. So there is a client for each
/// [`STREAMS_PER_CONNECTION`] requests in flight; the first with room takes the next request.
#[derive(Clone)]
struct Calls {
    builder: Builder,
    connector: ApiConnector,
    server: Arc<str>,
    lanes: Arc<Mutex<Vec<Lane>>>,
    failures: Arc<Mutex<ConnectFailures>>,
    alone: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
struct Lane {
    client: Client<LaneConnector, Body>,
    /// Each clone lives as long as a request or the body of its response.
    streams: Arc<()>,
    gate: Arc<LaneGate>,
}

/// Lets one request at a time make the lane's connection. Whether others can share it is known only after TLS, so without
/// the gate each of 64 watches would make a connection after one died.
#[derive(Default)]
struct LaneGate {
    /// Connections that are open.
    open: AtomicUsize,
    /// Whether the last connection has taken a request, and since then none has needed another: after GOAWAY a connection
    /// takes nothing new, and is open as long as a watch is on it.
    is_usable: AtomicBool,
    /// The last connection is of HTTP/1.1, so that each simultaneous request needs one of its own.
    is_http1: AtomicBool,
    turn: tokio::sync::Mutex<()>,
    failures: Arc<Mutex<ConnectFailures>>,
    /// Lets one lane at a time try an API server after two failed attempts.
    alone: Arc<tokio::sync::Mutex<()>>,
}

/// The failed attempts of all lanes to connect to one API server.
#[derive(Default)]
struct ConnectFailures {
    count: usize,
    in_a_row: u32,
    last: Option<(Instant, Arc<Error>)>,
}

impl ConnectFailures {
    /// The last failure, if there were more than `before`.
    fn since(&self, before: usize) -> Option<Arc<Error>> {
        let (_, error) = self.last.as_ref()?;
        (self.count > before).then(|| error.clone())
    }

    fn is_resting(&self) -> bool {
        self.in_a_row > 1
    }

    /// When the next attempt may be made.
    fn rest(&self) -> Option<Instant> {
        let (at, _) = self.last.as_ref()?;
        self.is_resting().then(|| *at + REST)
    }
}

impl LaneGate {
    fn is_open(&self) -> bool {
        self.open.load(Relaxed) > 0 && self.is_usable.load(Relaxed)
    }

    /// Whether a connection may be made now. If not, the lane's connection counts as unusable, and the request has to take its
    /// turn.
    fn admits(&self) -> bool {
        let admitted = HAS_TURN.try_with(|()| ()).is_ok()
            || self.open.load(Relaxed) > 0 && self.is_http1.load(Relaxed);
        if !admitted {
            self.is_usable.store(false, Relaxed);
        }
        admitted
    }

    fn connected(&self, conn: &Conn) {
        self.is_http1
            .store(!conn.connected().is_negotiated_h2(), Relaxed);
        self.open.fetch_add(1, Relaxed);
    }

    fn failures(&self) -> MutexGuard<'_, ConnectFailures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection that another request of the lane was making failed.
#[derive(Debug)]
struct NotConnected(Arc<Error>);

impl fmt::Display for NotConnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for NotConnected {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

/// A request that needs a connection has to take its turn. Nothing was sent.
#[derive(Debug, thiserror::Error)]
#[error("it is not this request's turn to connect")]
struct NotItsTurn;

fn has_no_turn(error: &Error) -> bool {
    let cause = std::error::Error::source(error);
    cause.is_some_and(|cause| cause.is::<NotItsTurn>())
}

/// `None` for a body that can be sent only once.
fn copy_of(request: &Request<Body>) -> Option<Request<Body>> {
    let mut policy = RetryPolicy::server_retry();
    Policy::<_, Response<()>, BoxError>::clone_request(&mut policy, request)
}

impl Lane {
    /// Sends the request over the lane's connection, or makes one. If the server turns out to take nothing new on that
    /// connection, the request takes its turn.
    async fn request(&self, mut request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        let gate = &*self.gate;
        loop {
            let copy = copy_of(&request);
            let has_copy = copy.is_some();
            let is_open = || has_copy && gate.is_open();
            if !is_open() {
                let before = gate.failures().count;
                let turn = gate.turn.lock().await;
                if !is_open() {
                    return self.connect(request, before, turn).await;
                }
            }
            match (self.client.request(request).await, copy) {
                (Err(error), Some(copy)) if has_no_turn(&error) => request = copy,
                (answered, _) => return Ok(answered?),
            }
        }
    }

    /// Makes a connection with the request. A failed attempt fails every request that waited for it. After two failures in
    /// a row the next attempt is made [`REST`] later.
    async fn connect(
        &self,
        mut request: Request<Body>,
        before: usize,
        turn: tokio::sync::MutexGuard<'_, ()>,
    ) -> Result<Response<Incoming>, BoxError> {
        let gate = &*self.gate;
        let is_resting = gate.failures().is_resting();
        let alone = match is_resting {
            true => Some(gate.alone.lock().await),
            false => None,
        };
        if let Some(error) = gate.failures().since(before) {
            return Err(NotConnected(error).into());
        }
        let rest = gate.failures().rest();
        if let Some(until) = rest {
            sleep_until(until).await;
        }
        let mut connection = capture_connection(&mut request);
        let mut answer = pin!(HAS_TURN.scope((), self.client.request(request)));
        let connected = pin!(connection.wait_for_connection_metadata());
        let answered = match select(&mut answer, connected).await {
            Either::Left((answered, _)) => Some(answered),
            Either::Right(_) => None,
        };
        if let Some(Err(error)) = answered {
            let error = Arc::new(error);
            let mut failures = gate.failures();
            failures.count += 1;
            failures.in_a_row += 1;
            failures.last = Some((Instant::now(), error.clone()));
            return Err(NotConnected(error).into());
        }
        gate.failures().in_a_row = 0;
        gate.is_usable.store(true, Relaxed);
        match answered {
            Some(answered) => Ok(answered?),
            None => {
                drop((turn, alone));
                Ok(answer.await?)
            }
        }
    }
}

tokio::task_local! {
    /// Set while a request that has its turn is polled. hyper-util calls the connector within that poll. A request without
    /// its turn for which hyper-util has no connection left, as after GOAWAY, is sent back to take it.
    static HAS_TURN: ();
}
/// Makes the connections of one lane.
#[derive(Clone)]
struct LaneConnector {
    connector: ApiConnector,
    gate: Arc<LaneGate>,
}

impl Service<Uri> for LaneConnector {
    type Response = LaneConn;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<LaneConn, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        if !self.gate.admits() {
            return Box::pin(std::future::ready(Err(NotItsTurn.into())));
        }
        let (connecting, gate) = (self.connector.call(server), self.gate.clone());
        Box::pin(async move {
            let conn = connecting.await?;
            gate.connected(&conn);
            Ok(LaneConn { conn, gate })
        })
    }
}

/// A connection of a lane, counted until it is dropped.
struct LaneConn {
    conn: Conn,
    gate: Arc<LaneGate>,
}

impl Drop for LaneConn {
    fn drop(&mut self) {
        self.gate.open.fetch_sub(1, Relaxed);
    }
}

impl Connection for LaneConn {
    fn connected(&self) -> Connected {
        self.conn.connected()
    }
}

impl Read for LaneConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_read(cx, buf)
    }
}

impl Write for LaneConn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.conn).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.conn).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.conn.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_shutdown(cx)
    }
}

impl Calls {
    fn new(builder: Builder, connector: ApiConnector, server: Arc<str>) -> Self {
        Self {
            builder,
            connector,
            server,
            lanes: Arc::default(),
            failures: Arc::default(),
            alone: Arc::default(),
        }
    }

    fn lane(&self) -> Lane {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let free = lanes
            .iter()
            .find(|lane| Arc::strong_count(&lane.streams) <= STREAMS_PER_CONNECTION);
        if let Some(lane) = free {
            return lane.clone();
        }
        let gate = Arc::new(LaneGate {
            failures: self.failures.clone(),
            alone: self.alone.clone(),
            ..LaneGate::default()
        });
        let connector = LaneConnector {
            connector: self.connector.clone(),
            gate: gate.clone(),
        };
        let lane = Lane {
            client: self.builder.build(connector),
            streams: Arc::default(),
            gate,
        };
        lanes.push(lane.clone());
        lane
    }
}

impl Service<Request<Body>> for Calls {
    type Response = Response<Received>;
    type Error = BoxError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> ResponseFuture {
        let (lane, server) = (self.lane(), self.server.clone());
        Box::pin(async move {
            let response = lane.request(request).await?;
            Ok(response.map(|body| {
                let counted = body.map_frame(move |frame| {
                    let _until_dropped = &lane.streams;
                    frame
                });
                received(counted, server)
            }))
        })
    }
}
