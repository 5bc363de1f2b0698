//! Port-forward over SPDY, raw or in a tunnel: pairs of streams, one for data and one for errors.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kubevpn_spdy::{Config, Headers, Incoming, ResetStatus, SpdyStream, StreamRequest};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::forward::forward;
use super::sessions::{Counter, SessionPlace};
use crate::cluster::SimCluster;
use crate::faults::StreamFault;
use crate::pod::SimPod;

/// How long half a pair waits for its other half.
const PAIRING: Duration = Duration::from_secs(30);
/// Far more streams than the real thing stands.
const STREAMS: usize = 16 * 1024;

/// Serves a session to its end.
pub(super) async fn serve<T>(cluster: Arc<SimCluster>, live: SessionPlace, pod: Arc<SimPod>, io: T)
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    let config = Config {
        max_streams: STREAMS,
        ..Config::default()
    };
    let (session, incoming, driver) = kubevpn_spdy::server(io, config);
    let streams = Streams {
        cluster,
        counter: live.counter(),
        pod,
        halves: HashMap::new(),
        ignored: Vec::new(),
    };
    drop(session);
    // The session is over when its connection is; forwards that still run end by themselves.
    let (error, ()) = tokio::join!(driver, streams.run(incoming));
    drop(live);
    tracing::debug!(%error, "a port-forward session ended");
}

struct Streams {
    cluster: Arc<SimCluster>,
    counter: Counter,
    pod: Arc<SimPod>,
    /// Error streams and data streams whose other half is not there yet, by request.
    halves: HashMap<String, Half>,
    /// Streams that get no answer, on command.
    ignored: Vec<StreamRequest>,
}

/// One stream of a pair; whoever sends the other on `other` completes it.
struct Half {
    error: bool,
    other: oneshot::Sender<SpdyStream>,
}

impl Streams {
    async fn run(mut self, mut incoming: Incoming) {
        while let Some(request) = incoming.next().await {
            match self.cluster.faults.stream_fault() {
                StreamFault::Refuse => request.refuse(ResetStatus::REFUSED_STREAM),
                StreamFault::Silent => self.ignored.push(request),
                StreamFault::None => self.take(request),
            }
        }
    }

    fn take(&mut self, request: StreamRequest) {
        let Some((port, error)) = read(request.headers()) else {
            return request.refuse(ResetStatus::CANCEL);
        };
        // Without a request id the two numbers are next to each other, the error stream first.
        let id = match request.headers().get("requestid") {
            Some(id) => id.to_owned(),
            None if error => request.id().get().to_string(),
            None => request.id().get().saturating_sub(2).to_string(),
        };
        self.halves.retain(|_, half| !half.other.is_closed());
        let stream = request.accept(&Headers::new(), false);
        match self.halves.remove(&id) {
            Some(half) if half.error != error => {
                // Gone if its time has just run out: then nobody waits for this one either.
                let _ = half.other.send(stream);
            }
            Some(half) => {
                tracing::debug!(id, "a stream of a kind this pair has already");
                self.halves.insert(id, half);
            }
            None => {
                let (other, waiting) = oneshot::channel();
                self.halves.insert(id, Half { error, other });
                let pair = WaitingStream {
                    port,
                    error,
                    stream,
                    waiting,
                };
                let task = pair.run(
                    Arc::clone(&self.cluster),
                    self.counter.clone(),
                    Arc::clone(&self.pod),
                );
                self.cluster.spawn(task);
            }
        }
    }
}

/// The port, and whether it is an error stream; `None` for headers that are refused.
fn read(headers: &Headers) -> Option<(u16, bool)> {
    let port = headers.get("port")?.parse().ok().filter(|p| *p > 0)?;
    match headers.get("streamtype")? {
        "error" => Some((port, true)),
        "data" => Some((port, false)),
        _ => None,
    }
}

/// A stream that waits for its other half.
struct WaitingStream {
    port: u16,
    /// Whether `stream` is the error stream.
    error: bool,
    stream: SpdyStream,
    waiting: oneshot::Receiver<SpdyStream>,
}

impl WaitingStream {
    async fn run(mut self, cluster: Arc<SimCluster>, counter: Counter, pod: Arc<SimPod>) {
        let Ok(Ok(other)) = timeout(PAIRING, self.waiting).await else {
            if self.error {
                let why = b"timed out waiting for streams";
                let _ = self.stream.write_all(why).await;
                let _ = self.stream.shutdown().await;
            }
            return;
        };
        let (error, data) = if self.error {
            (self.stream, other)
        } else {
            (other, self.stream)
        };
        let counted = counter.count();
        let delay = cluster.faults.pod_delay();
        serve_pair(&pod, self.port, delay, error, data).await;
        drop(counted);
    }
}

async fn serve_pair(
    pod: &Arc<SimPod>,
    port: u16,
    delay: Duration,
    mut error: SpdyStream,
    mut data: SpdyStream,
) {
    let outcome = forward(pod, port, delay, &mut data).await;
    // What cannot be told any more is of no interest to anybody.
    if outcome.data_first {
        let _ = data.shutdown().await;
    }
    if let Some(text) = &outcome.error {
        let _ = error.write_all(text.as_bytes()).await;
    }
    let _ = error.shutdown().await;
    let _ = data.shutdown().await;
    // The real one sends no RST_STREAM either, to a client that has not ended its side.
    tokio::join!(drain(error), drain(data));
}

/// Throws away what still comes, until the client ends its side.
async fn drain(mut stream: SpdyStream) {
    while stream.chunk().await.is_ok_and(|chunk| !chunk.is_empty()) {}
}
