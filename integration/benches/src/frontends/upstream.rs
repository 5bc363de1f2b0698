//! Where the proxies lead: an HTTP server as a Pod has it, in this process.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A small answer, about as long as the sample Pod's.
const SMALL: u64 = 300;
const CHUNK: Bytes = Bytes::from_static(&[0; 256 << 10]);

/// `GET /` answers 300 bytes, `GET /bytes?n=N` that many, `POST /sink` swallows.
pub(super) struct BenchUpstream {
    pub(super) addr: SocketAddr,
    accepted: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl BenchUpstream {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let accepted = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&accepted);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = stream.set_nodelay(true);
                tokio::spawn(async move {
                    // A proxy that goes away in the middle is what some workloads end with.
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(answer))
                        .await;
                });
            }
        });
        Ok(Self {
            addr,
            accepted,
            accepting,
        })
    }

    /// Connections so far.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for BenchUpstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Zeros>, Infallible> {
    let mut body = Zeros(SMALL);
    match request.uri().path() {
        "/bytes" => {
            let n = request.uri().query().and_then(|q| q.strip_prefix("n="));
            body = Zeros(n.and_then(|n| n.parse().ok()).unwrap_or_default());
        }
        "/sink" => {
            let mut upload = request.into_body();
            while let Some(frame) = upload.frame().await {
                if frame.is_err() {
                    let mut broken = Response::new(Zeros(0));
                    *broken.status_mut() = StatusCode::BAD_REQUEST;
                    return Ok(broken);
                }
            }
        }
        _ => {}
    }
    Ok(Response::new(body))
}

/// So many bytes of nothing.
struct Zeros(u64);

impl Body for Zeros {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.0 == 0 {
            return Poll::Ready(None);
        }
        let n = self.0.min(CHUNK.len() as u64);
        self.0 -= n;
        Poll::Ready(Some(Ok(Frame::data(CHUNK.slice(..n as usize)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0 == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}
