//! The address for whoever operates the proxy: a listener beside those of clients, which leads nowhere.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 as long as the process answers |
//! | `/readyz` | 200 while clients are accepted, else 503 with the reason in a line |
//!
//! Readiness says nothing of the API server: where that is away, it is so for every replica, and a client is better
//! answered with the reason than refused.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kubevpn_conn::{Addr, Client, Drain, Gate, HANDSHAKE_TIMEOUT, Limits, Listener};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::BindError;
use crate::listener::not_bound;

/// Connections at once; further ones wait.
const LIMITS: Limits = Limits {
    total: 64,
    per_client: None,
};
/// Upper bound on the head of a request.
const MAX_HEAD: usize = 16 * 1024;
/// As errors call the listener.
const NAME: &str = "admin listener";

/// Whether clients are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Readiness {
    /// Not yet.
    Starting,
    /// They are.
    Ready,
    /// Not any more.
    Ending,
}

/// Answers probes, until [`end`](Self::end).
pub struct Admin {
    addr: Addr,
    readiness: Arc<AtomicU8>,
    drain: Drain,
    accepting: JoinHandle<()>,
}

impl Admin {
    /// Binds the address and answers from then on, [`Readiness::Starting`] at first. Nothing that is told there is secret:
    /// any address will do.
    pub async fn start(addr: &Addr) -> Result<Self, BindError> {
        let bound = Listener::bind(addr).await;
        let listener =
            bound.map_err(|error| not_bound(NAME.into(), error.addr.to_string(), error.source))?;
        let addr = listener.addr().clone();
        let readiness = Arc::new(AtomicU8::new(Readiness::Starting as u8));
        let drain = Drain::new();
        let serving = {
            let readiness = Arc::clone(&readiness);
            listener.serve(Gate::new(LIMITS), drain.clone(), move |client| {
                serve(client, Arc::clone(&readiness))
            })
        };
        Ok(Self {
            addr,
            readiness,
            drain,
            accepting: tokio::spawn(serving),
        })
    }

    /// Where it listens, with the real port.
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// What probes are told from now on.
    pub fn set(&self, readiness: Readiness) {
        self.readiness.store(readiness as u8, Ordering::Relaxed);
    }

    /// Answers no more.
    pub async fn end(self) {
        self.drain.drain(Duration::ZERO).await;
        let _ended = self.accepting.await;
    }
}

/// One request, as probes make them.
async fn serve(client: Client, readiness: Arc<AtomicU8>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&request, readiness.load(Ordering::Relaxed));
        async { Ok::<_, Infallible>(answer) }
    });
    let serving = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(client), service);
    // Whether the client heard it is its own concern.
    let _ended = timeout(HANDSHAKE_TIMEOUT, serving).await;
}

fn answer<B>(request: &Request<B>, readiness: u8) -> Response<Full<Bytes>> {
    let readable = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, text) = match request.uri().path() {
        "/livez" | "/readyz" if !readable => (StatusCode::METHOD_NOT_ALLOWED, "send GET\n"),
        "/livez" => (StatusCode::OK, "ok\n"),
        "/readyz" if readiness == Readiness::Ready as u8 => (StatusCode::OK, "ok\n"),
        "/readyz" if readiness == Readiness::Ending as u8 => (
            StatusCode::SERVICE_UNAVAILABLE,
            "ending: no client is accepted any more\n",
        ),
        "/readyz" => (
            StatusCode::SERVICE_UNAVAILABLE,
            "starting: the API server has not answered yet\n",
        ),
        _ => (StatusCode::NOT_FOUND, "there are /livez and /readyz\n"),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(admin: &Admin, line: &str) -> String {
        let mut stream = TcpStream::connect(admin.addr().to_string()).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn probes_are_told_the_readiness() {
        let admin = Admin::start(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        for (readiness, status, reason) in [
            (Readiness::Starting, 503, "starting"),
            (Readiness::Ready, 200, "ok"),
            (Readiness::Ending, 503, "ending"),
        ] {
            admin.set(readiness);
            let answer = ask(&admin, "GET /readyz").await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
            assert!(answer.contains(&format!("\r\n\r\n{reason}")), "{answer}");
            let answer = ask(&admin, "GET /livez").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        for (line, status) in [
            ("GET /", 404),
            ("GET /livez/x", 404),
            ("POST /livez", 405),
            ("GET http://web.shop/livez", 200),
            ("CONNECT web.shop:80", 404),
        ] {
            let answer = ask(&admin, line).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{line}: {answer}"
            );
        }
        let addr = admin.addr().to_string();
        let taken = Admin::start(admin.addr()).await.err().unwrap();
        assert!(
            taken.to_string().starts_with("the admin listener: "),
            "{taken}"
        );
        admin.end().await;
        assert!(TcpStream::connect(addr).await.is_err());
    }

    /// It holds one of few places.
    #[tokio::test(start_paused = true)]
    async fn silent_client_is_left() {
        let admin = Admin::start(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut stream = TcpStream::connect(admin.addr().to_string()).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }
}
