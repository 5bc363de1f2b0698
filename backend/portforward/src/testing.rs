//! The far side of every session, for tests: API server, kubelet and container runtime in one, in memory.
//!
//! It does what containerd does: accepts before it connects, reports failure on the error stream, and closes both
//! directions 1 s after the first of them has ended.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use kubevpn_spdy::{Headers, Incoming, SpdyStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::io::{copy, duplex, split};
use tokio::time::{Instant, sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::config::{Config, Transport};
use crate::error::{ForwardError, Rejection};
use crate::pod::{PodId, PodPort};
use crate::pool::Pool;
use crate::stream::PodStream;
use crate::transport::{BoxFuture, OpenedSession, Opener, SessionIo};

/// Echoes.
pub(crate) const ECHO: u16 = 7;
/// Takes everything in and says nothing.
pub(crate) const SINK: u16 = 9;
/// Speaks first, then echoes.
pub(crate) const GREET: u16 = 25;
/// Reads three bytes, then answers with ten after 3 s, and closes.
pub(crate) const SLOW: u16 = 30;
/// Reads three bytes, then sends six, 2 s apart, and closes.
pub(crate) const EVENTS: u16 = 31;
/// Sends without end.
pub(crate) const FLOOD: u16 = 19;
/// Accepts and closes.
pub(crate) const CLOSE: u16 = 21;
/// The node never answers the stream, nor anything on a channel.
pub(crate) const MUTE: u16 = 44;
/// Reads nothing.
pub(crate) const DEAF: u16 = 45;
/// Nothing listens on any other port.
pub(crate) const CLOSED: u16 = 9999;

/// What the node says of a Pod whose sandbox is gone.
pub(crate) const GONE: &str =
    "error forwarding port 7 to pod 1f, uid : network namespace for sandbox \"1f\" is closed";

pub(crate) const REFUSED: &str = "error forwarding port 9999 to pod 1f, uid : failed to connect: dial tcp4 127.0.0.1:9999: connect: connection refused";

/// A node with any number of Pods.
#[derive(Default)]
pub(crate) struct TestNode {
    pub(crate) upgrades: AtomicUsize,
    /// How long an upgrade takes, in milliseconds.
    pub(crate) upgrade_ms: AtomicUsize,
    /// Forwards that are open now, and at most.
    pub(crate) forwards: Arc<AtomicUsize>,
    pub(crate) peak: Arc<AtomicUsize>,
    /// The switch of each connection, in the order they were made.
    pub(crate) links: Mutex<Vec<Arc<TestLink>>>,
    /// How long it takes to find that a port is closed, in milliseconds; on a channel nothing else is done meanwhile.
    pub(crate) refusal_ms: AtomicUsize,
    /// Ports that are taken to be closed, for the while.
    pub(crate) down: Arc<Mutex<Vec<u16>>>,
    /// The Pods are gone, and their sessions are not.
    pub(crate) gone: AtomicBool,
    /// How upgrades fail.
    pub(crate) refuse: Mutex<Option<ForwardError>>,
}

/// What a connection does to its bytes.
#[derive(Default)]
pub(crate) struct TestLink(AtomicU8);

// 0: everything passes.
const HOLE: u8 = 1;
const WEDGE: u8 = 2;
const NAT: u8 = 3;
const SLUGGISH: u8 = 4;

/// What a sluggish connection takes for each piece it carries to the client.
const PIECE: Duration = Duration::from_millis(40);

/// How long a NAT remembers a connection nothing passes on.
const NAT_MEMORY: Duration = Duration::from_secs(4 * 60);

impl TestLink {
    /// From now on nothing passes, in silence.
    pub(crate) fn black_hole(&self) {
        self.0.store(HOLE, SeqCst);
    }

    /// From now on it is a black hole once the client has been silent for 4 minutes.
    pub(crate) fn behind_nat(&self) {
        self.0.store(NAT, SeqCst);
    }

    /// From now on each piece that the server sends takes its time, as on a busy machine.
    pub(crate) fn slow_down(&self) {
        self.0.store(SLUGGISH, SeqCst);
    }

    /// From now on every fifth PING is not answered.
    pub(crate) fn wedge(&self) {
        self.0.store(WEDGE, SeqCst);
    }
}

impl TestNode {
    pub(crate) fn start(config: Config) -> (Arc<Self>, Arc<Pool>) {
        let node = Arc::new(Self::default());
        let pool = Pool::new(Arc::new(config), Box::new(Far(node.clone())));
        (node, pool)
    }

    pub(crate) fn upgrades(&self) -> usize {
        self.upgrades.load(SeqCst)
    }

    pub(crate) fn forwards(&self) -> usize {
        self.forwards.load(SeqCst)
    }

    pub(crate) fn link(&self, index: usize) -> Arc<TestLink> {
        self.links.lock().unwrap()[index].clone()
    }

    pub(crate) fn close_port(&self, port: u16) {
        self.down.lock().unwrap().push(port);
    }

    fn connect(self: &Arc<Self>) -> Box<dyn SessionIo> {
        let link = Arc::new(TestLink::default());
        self.links.lock().unwrap().push(link.clone());
        let (near, left) = duplex(64 * 1024);
        let (right, far) = duplex(64 * 1024);
        let ((left_read, left_write), (right_read, right_write)) = (split(left), split(right));
        tokio::spawn(up(left_read, right_write, link.clone()));
        tokio::spawn(down(right_read, left_write, link));
        tokio::spawn(self.clone().speak_spdy(far));
        Box::new(near)
    }

    /// The server of a session, to its end.
    pub(crate) async fn speak_spdy(self: Arc<Self>, io: impl SessionIo + 'static) {
        let (session, incoming, driver) = kubevpn_spdy::server(io, Default::default());
        tokio::spawn(driver);
        self.serve(incoming).await;
        drop(session);
    }

    /// The server of a channel, to its end.
    pub(crate) async fn speak_v4(self: Arc<Self>, io: impl SessionIo + 'static, port: u16) {
        let mut ws = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        let message = |channel: u8, bytes: &[u8]| Message::binary([&[channel], bytes].concat());
        for channel in [0, 1] {
            ws.send(message(channel, &port.to_le_bytes()))
                .await
                .unwrap();
        }
        if port == MUTE {
            std::future::pending::<()>().await;
        }
        let down = self.down.lock().unwrap().contains(&port);
        let Some(pod) = (if down { None } else { pod(port) }) else {
            self.find_closed().await;
            ws.send(message(1, REFUSED.as_bytes())).await.unwrap();
            let _ = ws.close(None).await;
            return;
        };
        self.forwards.fetch_add(1, SeqCst);
        let (mut pod_read, mut pod_write) = split(pod);
        let (mut sink, mut stream) = ws.split();
        let up = async {
            while let Some(Ok(message)) = stream.next().await {
                match message {
                    Message::Binary(data) => {
                        assert_eq!(data[0], 0, "the error channel is one way");
                        if pod_write.write_all(&data[1..]).await.is_err() {
                            break;
                        }
                    }
                    Message::Close(_) => break,
                    _ => {}
                }
            }
        };
        let down = async {
            let mut buf = vec![0; 4096];
            while let Ok(n @ 1..) = pod_read.read(&mut buf).await {
                if sink.send(message(0, &buf[..n])).await.is_err() {
                    return;
                }
            }
            sleep(Duration::from_secs(1)).await;
        };
        tokio::select! {
            () = up => {}
            () = down => {}
        }
        let mut ws = sink.reunite(stream).unwrap();
        let _ = ws.close(None).await;
        self.forwards.fetch_sub(1, SeqCst);
    }

    async fn find_closed(&self) {
        let took = self.refusal_ms.load(SeqCst) as u64;
        if took > 0 {
            sleep(Duration::from_millis(took)).await;
        }
    }

    async fn serve(self: Arc<Self>, mut incoming: Incoming) {
        let mut errors = HashMap::new();
        let mut mute = Vec::new();
        while let Some(request) = incoming.next().await {
            let get = |name| request.headers().get(name).unwrap_or_default().to_owned();
            let (kind, port, id) = (get("streamtype"), get("port"), get("requestid"));
            let port: u16 = port.parse().unwrap();
            if port == MUTE {
                mute.push(request);
                continue;
            }
            if kind == "error" {
                assert!(request.fin(), "the error stream is one way");
                let stream = request.accept(&Headers::default(), false);
                assert!(errors.insert(id, stream).is_none(), "ids are used once");
                continue;
            }
            let data = request.accept(&Headers::default(), false);
            let error = errors.remove(&id).expect("the error stream comes first");
            tokio::spawn(self.clone().forward(port, data, error));
        }
    }

    async fn forward(self: Arc<Self>, port: u16, mut data: SpdyStream, mut error: SpdyStream) {
        if self.gone.load(SeqCst) {
            error.write_all(GONE.as_bytes()).await.unwrap();
            error.shutdown().await.unwrap();
            let _ = data.shutdown().await;
            return;
        }
        let down = self.down.lock().unwrap().contains(&port);
        let pod = if down { None } else { pod(port) };
        let Some(pod) = pod else {
            self.find_closed().await;
            data.shutdown().await.unwrap();
            tokio::task::yield_now().await;
            error.write_all(REFUSED.as_bytes()).await.unwrap();
            error.shutdown().await.unwrap();
            return;
        };
        let now = self.forwards.fetch_add(1, SeqCst) + 1;
        self.peak.fetch_max(now, SeqCst);
        {
            let (mut read, mut write) = split(&mut data);
            let (mut pod_read, mut pod_write) = split(pod);
            let (out, back) = (
                copy(&mut read, &mut pod_write),
                copy(&mut pod_read, &mut write),
            );
            tokio::pin!(out, back);
            let first = tokio::select! {
                _ = &mut out => true,
                _ = &mut back => false,
            };
            let rest = async { if first { back.await } else { out.await } };
            let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
        }
        self.forwards.fetch_sub(1, SeqCst);
        let _ = error.shutdown().await;
        let _ = data.shutdown().await;
        // The stream is there until the client has ended it too.
        let _ = copy(&mut data, &mut tokio::io::sink()).await;
    }
}

/// Starts what listens on the port.
fn pod(port: u16) -> Option<DuplexStream> {
    let (near, mut io) = duplex(16 * 1024);
    let serve: Pin<Box<dyn Future<Output = io::Result<()>> + Send>> = match port {
        ECHO | GREET => Box::pin(async move {
            if port == GREET {
                io.write_all(b"220 hello\r\n").await?;
            }
            let (mut read, mut write) = split(io);
            copy(&mut read, &mut write).await.map(drop)
        }),
        SINK => Box::pin(async move { copy(&mut io, &mut tokio::io::sink()).await.map(drop) }),
        SLOW => Box::pin(async move {
            io.read_exact(&mut [0; 3]).await?;
            sleep(Duration::from_secs(3)).await;
            io.write_all(b"0123456789").await
        }),
        EVENTS => Box::pin(async move {
            io.read_exact(&mut [0; 3]).await?;
            for event in b"123456" {
                io.write_all(&[*event]).await?;
                sleep(Duration::from_secs(2)).await;
            }
            Ok(())
        }),
        FLOOD => Box::pin(async move {
            loop {
                io.write_all(&[0; 8192]).await?
            }
        }),
        CLOSE => Box::pin(async { Ok(()) }),
        DEAF => Box::pin(async move {
            let _held = io;
            std::future::pending().await
        }),
        _ => return None,
    };
    tokio::spawn(serve);
    Some(near)
}

/// What the pool asks.
struct Far(Arc<TestNode>);

impl Opener for Far {
    fn has_sessions(&self) -> bool {
        true
    }

    fn has_channels(&self) -> bool {
        false
    }

    fn session(&self, _: Arc<PodId>) -> BoxFuture<Result<OpenedSession, ForwardError>> {
        let node = self.0.clone();
        Box::pin(async move {
            node.upgrades.fetch_add(1, SeqCst);
            let took = node.upgrade_ms.load(SeqCst) as u64;
            sleep(Duration::from_millis(took)).await;
            match &*node.refuse.lock().unwrap() {
                Some(error) => Err(error.clone()),
                None => Ok(OpenedSession::Session(node.connect(), Transport::Spdy)),
            }
        })
    }

    fn channel(
        &self,
        _: Arc<PodId>,
        _: u16,
        _: Vec<Rejection>,
    ) -> BoxFuture<Result<Box<dyn SessionIo>, ForwardError>> {
        unreachable!("there are sessions")
    }
}

/// Carries the frames of one connection from client to server, as its switch says.
async fn up(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    link: Arc<TestLink>,
) {
    let mut pings = 0;
    let mut passed = Instant::now();
    loop {
        let mut frame = vec![0; 8];
        if from.read_exact(&mut frame).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
        let len = u32::from_be_bytes([0, frame[5], frame[6], frame[7]]);
        frame.resize(8 + len as usize, 0);
        from.read_exact(&mut frame[8..]).await.unwrap();
        if link.0.load(SeqCst) == NAT && passed.elapsed() > NAT_MEMORY {
            link.black_hole();
        }
        passed = Instant::now();
        let state = link.0.load(SeqCst);
        let ping = frame[..4] == [0x80, 3, 0, 6];
        pings += usize::from(ping);
        if state == HOLE || (state == WEDGE && ping && pings.is_multiple_of(5)) {
            continue;
        }
        if to.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// The same from server to client.
async fn down(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    link: Arc<TestLink>,
) {
    let mut buf = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buf).await {
        if link.0.load(SeqCst) == HOLE {
            // A black hole does not say that the other side is gone, either.
            std::future::pending().await
        }
        if link.0.load(SeqCst) == SLUGGISH {
            sleep(PIECE).await;
        }
        if to.write_all(&buf[..n]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

pub(crate) fn to(port: u16) -> PodPort {
    PodPort {
        namespace: "shop".into(),
        pod: "web-0".into(),
        uid: Some("1f".into()),
        port,
    }
}

/// Bounds what would otherwise wait for ever when it goes wrong: on a paused clock, with a keeper that ticks, that is a
/// test that never ends.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    let within = Duration::from_secs(600);
    let done = tokio::time::timeout(within, future).await;
    done.expect("it ends within ten minutes")
}

/// Sends and reads back.
pub(crate) async fn echo(stream: &mut PodStream, text: &[u8]) -> io::Result<()> {
    let mut back = vec![0; text.len()];
    soon(async {
        stream.write_all(text).await?;
        stream.read_exact(&mut back).await
    })
    .await?;
    assert_eq!(back, text);
    Ok(())
}

/// Lets every task run until all of them wait.
pub(crate) async fn settle() {
    sleep(Duration::from_millis(1)).await;
}
