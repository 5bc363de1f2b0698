//! The parts of an API server that the client uses.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::{HandshakeKind, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use super::{Ca, NAME};

/// The protocol below HTTP.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Speaks {
    /// TLS, and by ALPN these.
    Tls(&'static [&'static str]),
    /// TLS with certificates of clients, HTTP/2 and HTTP/1.1.
    MutualTls,
    /// No TLS at all.
    Plain,
}

pub(crate) const BOTH: &[&str] = &["h2", "http/1.1"];

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) connection: usize,
    pub(crate) version: Version,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) resumed: bool,
    pub(crate) certificate: bool,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) ca: Ca,
    speaks: Speaks,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    /// Told about every request.
    arrived: Notify,
    connections: AtomicUsize,
    /// Requests to `/flaky`.
    flaky: AtomicUsize,
    /// Tells the connections to take nothing new.
    leaving: Notify,
}

impl Server {
    /// HTTP/2 and HTTP/1.1 over TLS, as an API server does.
    pub(crate) async fn start() -> Self {
        Self::speaking(Speaks::Tls(BOTH)).await
    }

    pub(crate) async fn speaking(speaks: Speaks) -> Self {
        Self::with(speaks, &["127.0.0.1", NAME], 4000).await
    }

    /// With a certificate for these names, ending in this year.
    pub(crate) async fn with(speaks: Speaks, names: &[&str], until: i32) -> Self {
        let ca = Ca::new();
        let identity = ca.issue(names, until);
        let tls = match speaks {
            Speaks::Tls(alpn) => Some(ca.server(&identity, alpn, false)),
            Speaks::MutualTls => Some(ca.server(&identity, BOTH, true)),
            Speaks::Plain => None,
        };
        Self::serving(speaks, ca, tls).await
    }

    /// With TLS of this configuration, and this authority for those who ask for one.
    pub(crate) async fn presenting(ca: Ca, tls: ServerConfig) -> Self {
        Self::serving(Speaks::Tls(BOTH), ca, Some(tls)).await
    }

    async fn serving(speaks: Speaks, ca: Ca, tls: Option<ServerConfig>) -> Self {
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let sharing = shared.clone();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (tls, shared) = (tls.clone(), sharing.clone());
                let connection = shared.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let Some(tls) = tls else {
                        return serve(tcp, connection, false, false, shared).await;
                    };
                    // A client that does not trust the certificate ends here.
                    let Ok(stream) = tls.accept(tcp).await else {
                        return;
                    };
                    let state = stream.get_ref().1;
                    let resumed = state.handshake_kind() == Some(HandshakeKind::Resumed);
                    let certificate = state.peer_certificates().is_some();
                    serve(stream, connection, resumed, certificate, shared).await;
                });
            }
        });
        Self {
            address,
            ca,
            speaks,
            shared,
        }
    }

    pub(crate) fn url(&self) -> String {
        match self.speaks {
            Speaks::Plain => format!("http://{}", self.address),
            _ => format!("https://{}", self.address),
        }
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The last request.
    pub(crate) fn last(&self) -> Seen {
        self.seen().pop().expect("a request")
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Sends GOAWAY on every connection; requests under way are still served.
    pub(crate) fn leave(&self) {
        self.shared.leaving.notify_waiters();
    }

    /// Waits until so many requests have arrived.
    pub(crate) async fn requests(&self, count: usize) {
        loop {
            let arrived = self.shared.arrived.notified();
            if self.seen().len() >= count {
                return;
            }
            arrived.await;
        }
    }
}

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn serve<T>(io: T, connection: usize, resumed: bool, certificate: bool, shared: Arc<Shared>)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // The limit of API servers since CVE-2023-44487.
    builder.http2().max_concurrent_streams(100);
    let sharing = shared.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = sharing.clone();
        async move {
            shared.seen.lock().unwrap().push(Seen {
                connection,
                version: request.version(),
                path: request.uri().path().to_owned(),
                headers: request.headers().clone(),
                resumed,
                certificate,
            });
            shared.arrived.notify_waiters();
            Ok::<_, Infallible>(answer(request, &shared).await)
        }
    });
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
    let mut serving = std::pin::pin!(serving);
    // Clients end connections in any way.
    tokio::select! {
        _ = &mut serving => {}
        () = shared.leaving.notified() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> Reply {
    let path = request
        .uri()
        .path()
        .trim_start_matches("/prefix")
        .to_owned();
    let upgrade = request.headers().contains_key(header::UPGRADE);
    match path.as_str() {
        "/echo" if upgrade => {
            tokio::spawn(echo(request));
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, "SPDY/3.1")
                .body(empty())
                .unwrap()
        }
        "/version" => json(
            200,
            r#"{"major":"1","minor":"34","gitVersion":"v1.34.4","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#,
        ),
        "/hold" => Response::new(Held.boxed_unsync()),
        "/never" => std::future::pending().await,
        // Unavailable once, then not.
        "/flaky" => match shared.flaky.fetch_add(1, Ordering::Relaxed) {
            0 => status(503, "ServiceUnavailable", "starting"),
            _ => json(200, "{}"),
        },
        "/html" => text(200, "<html>please log in</html>"),
        "/certificate" => text(400, "400 No required SSL certificate was sent"),
        "/gateway" => text(502, "<html>bad gateway</html>"),
        "/waf" => text(403, "blocked\r\nby policy"),
        "/401" => status(401, "Unauthorized", "Unauthorized"),
        "/403" => status(
            403,
            "Forbidden",
            r#"services is forbidden: User "jane" cannot list resource "services" in API group "" in the namespace "shop""#,
        ),
        "/404" => status(404, "NotFound", r#"services "web" not found"#),
        "/422" => status(422, "Invalid", "no"),
        "/429" => status(429, "TooManyRequests", "later"),
        "/500" => status(500, "InternalError", "etcdserver: leader changed"),
        "/504" => status(504, "Timeout", "slow"),
        _ => text(404, "no such page"),
    }
}

async fn echo(request: Request<Incoming>) {
    let upgraded = hyper::upgrade::on(request).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(TokioIo::new(upgraded));
    // A client may vanish.
    let _ = tokio::io::copy(&mut reading, &mut writing).await;
    let _ = writing.shutdown().await;
}

fn status(code: u16, reason: &str, message: &str) -> Reply {
    let body = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    json(code, &body.to_string())
}

fn json(code: u16, body: &str) -> Reply {
    let mut response = text(code, body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    response
}

fn text(code: u16, body: &str) -> Reply {
    let body = http_body_util::Full::new(Bytes::copy_from_slice(body.as_bytes()));
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn empty() -> UnsyncBoxBody<Bytes, Infallible> {
    http_body_util::Empty::new().boxed_unsync()
}

/// A body without data, as a watch without events.
struct Held;

impl Body for Held {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}
