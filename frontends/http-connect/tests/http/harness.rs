//! A proxy between a test's client and a test's servers, all in memory.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use kubevpn_http_connect::{ServeError, Settings, serve_connection};
use kubevpn_target::{ConnectError, Refusal, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longer than any time limit of the proxy. With a paused clock it takes no time.
const NEVER: Duration = Duration::from_secs(3600);
/// A pause after which all tasks are idle.
const MOMENT: Duration = Duration::from_millis(1);

/// The proxy: its settings, and the servers it can reach.
pub(crate) struct Rig {
    pub(crate) settings: Arc<Settings>,
    dial: Dialer,
    dials: mpsc::Receiver<(Target, DuplexStream)>,
    pub(crate) dialled: Arc<Mutex<Vec<Target>>>,
}

type Dialing = Pin<Box<dyn Future<Output = Result<DuplexStream, ConnectError>> + Send>>;
type Dialer = Arc<dyn Fn(Target) -> Dialing + Send + Sync>;

/// Limit on the bytes in flight between proxy and server.
const PIPE: usize = 16 * 1024;

impl Rig {
    /// Every dial is for the test to serve: see [`Rig::server`].
    pub(crate) fn new(settings: Settings) -> Self {
        let (streams, dials) = mpsc::channel(64);
        let mut rig = Self::with(settings, move |target| {
            let streams = streams.clone();
            Box::pin(async move {
                let (near, far) = duplex(PIPE);
                streams.send((target, far)).await.unwrap();
                Ok(near)
            })
        });
        rig.dials = dials;
        rig
    }

    /// Every dial is refused.
    pub(crate) fn refusing(settings: Settings, refusal: Refusal, sentence: &'static str) -> Self {
        Self::with(settings, move |_| {
            Box::pin(async move { Err(ConnectError::new(refusal, sentence)) })
        })
    }

    /// Every dial hangs.
    pub(crate) fn stalling(settings: Settings) -> Self {
        Self::with(settings, |_| Box::pin(std::future::pending()))
    }

    fn with(settings: Settings, dial: impl Fn(Target) -> Dialing + Send + Sync + 'static) -> Self {
        Self {
            settings: Arc::new(settings),
            dial: Arc::new(dial),
            dials: mpsc::channel(1).1,
            dialled: Arc::default(),
        }
    }

    /// A client of the proxy.
    pub(crate) fn client(&self) -> Client {
        let (near, far) = duplex(PIPE);
        let served = tokio::spawn(self.serve(far));
        Client {
            peer: Peer::new(near),
            served,
        }
    }

    pub(crate) fn serve(
        &self,
        client: DuplexStream,
    ) -> impl Future<Output = Result<(), ServeError>> + Send + use<> {
        let settings = Arc::clone(&self.settings);
        let (dial, dialled) = (Arc::clone(&self.dial), Arc::clone(&self.dialled));
        let backend = tower::service_fn(move |target: Target| {
            dialled.lock().unwrap().push(target.clone());
            dial(target)
        });
        async move { serve_connection(client, backend, &settings).await }
    }

    /// The server of the next dial, and what was asked for.
    pub(crate) async fn server(&mut self) -> (Target, Peer) {
        let dialled = timeout(NEVER, self.dials.recv()).await;
        let (target, stream) = dialled.expect("no dial").unwrap();
        (target, Peer::new(stream))
    }

    /// The dials to come, to be served apart from the rig.
    pub(crate) fn take_dials(&mut self) -> mpsc::Receiver<(Target, DuplexStream)> {
        std::mem::replace(&mut self.dials, mpsc::channel(1).1)
    }

    pub(crate) fn dials(&self) -> usize {
        self.dialled.lock().unwrap().len()
    }
}

pub(crate) struct Client {
    pub(crate) peer: Peer,
    pub(crate) served: JoinHandle<Result<(), ServeError>>,
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.peer.send(bytes).await;
    }

    pub(crate) async fn answer(&mut self) -> Answer {
        self.peer.answer(false).await
    }

    /// The proxy's result for the connection.
    pub(crate) async fn served(self) -> Result<(), ServeError> {
        drop(self.peer);
        timeout(NEVER, self.served).await.unwrap().unwrap()
    }
}

/// One end of a connection, read by messages.
pub(crate) struct Peer {
    pub(crate) io: DuplexStream,
    buffer: BytesMut,
}

impl Peer {
    pub(crate) fn new(io: DuplexStream) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = timeout(NEVER, self.io.write_all(bytes.as_ref())).await;
        sent.expect("nobody reads").expect("the other side is gone");
    }

    pub(crate) async fn end(&mut self) {
        self.io.shutdown().await.unwrap();
    }

    async fn fill(&mut self) -> io::Result<usize> {
        timeout(NEVER, self.io.read_buf(&mut self.buffer))
            .await
            .unwrap_or_else(|_| panic!("nothing comes behind {:?}", self.buffer))
    }

    /// Up to and with the empty line.
    pub(crate) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// The next head, or `None` when the other side has ended.
    pub(crate) async fn try_head(&mut self) -> Option<String> {
        if self.buffer.is_empty() && !matches!(self.io.read_buf(&mut self.buffer).await, Ok(1..)) {
            return None;
        }
        Some(self.head().await)
    }

    async fn until(&mut self, end: &str) -> String {
        loop {
            let found = self
                .buffer
                .windows(end.len())
                .position(|w| w == end.as_bytes());
            if let Some(at) = found {
                let head = self.buffer.split_to(at + end.len());
                return String::from_utf8(head.to_vec()).unwrap();
            }
            let got = self.fill().await.unwrap();
            assert!(got > 0, "ended behind {:?}", self.buffer);
        }
    }

    pub(crate) async fn take(&mut self, n: usize) -> Vec<u8> {
        while self.buffer.len() < n {
            let got = self.fill().await.unwrap();
            assert!(got > 0, "ended behind {} of {n} bytes", self.buffer.len());
        }
        self.buffer.split_to(n).to_vec()
    }

    pub(crate) async fn text(&mut self, n: usize) -> String {
        String::from_utf8(self.take(n).await).unwrap()
    }

    /// All there is until the other side ends.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await.unwrap_or(0) > 0 {}
        std::mem::take(&mut self.buffer).to_vec()
    }

    /// Asserts that no data comes and the other side does not end.
    pub(crate) async fn is_silent(&mut self) -> bool {
        self.buffer.is_empty()
            && timeout(MOMENT, self.io.read_buf(&mut self.buffer))
                .await
                .is_err()
    }

    /// Asserts that the other side has ended without further data.
    pub(crate) async fn has_ended(&mut self) -> bool {
        self.rest().await.is_empty()
    }

    /// A body in chunks, and its trailer section.
    pub(crate) async fn chunks(&mut self) -> (Vec<u8>, String) {
        let mut body = Vec::new();
        loop {
            let line = self.until("\r\n").await;
            let size = line.trim_end().split(';').next().unwrap();
            let size =
                usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("{line:?} is no chunk"));
            if size == 0 {
                break;
            }
            body.extend(self.take(size).await);
            assert_eq!(self.take(2).await, b"\r\n");
        }
        let mut trailers = String::new();
        loop {
            let line = self.until("\r\n").await;
            if line == "\r\n" {
                return (body, trailers);
            }
            trailers += &line;
        }
    }

    /// A whole answer, framed by its own head.
    pub(crate) async fn answer(&mut self, to_head: bool) -> Answer {
        let head = self.head().await;
        let mut answer = Answer::parse(&head);
        answer.body = if to_head || matches!(answer.status, 100..=199 | 204 | 304) {
            Vec::new()
        } else if answer.fields.contains_key("transfer-encoding") {
            let (body, trailers) = self.chunks().await;
            answer.trailers = trailers;
            body
        } else if let Some(length) = answer.fields.get("content-length") {
            self.take(length.parse().unwrap()).await
        } else {
            self.rest().await
        };
        answer
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.buffer.has_remaining()
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) version: String,
    pub(crate) fields: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: String,
}

impl Answer {
    fn parse(head: &str) -> Self {
        let mut lines = head.split("\r\n");
        let mut first = lines.next().unwrap().splitn(3, ' ');
        let version = first.next().unwrap().to_owned();
        let status = first.next().unwrap().parse().unwrap();
        let mut fields = HashMap::new();
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line:?}"));
            let name = name.to_ascii_lowercase();
            let before = fields.insert(name.clone(), value.to_owned());
            assert!(before.is_none() || name == "via", "{name} twice in {head}");
        }
        Self {
            status,
            version,
            fields,
            body: Vec::new(),
            trailers: String::new(),
        }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// Refused by the proxy: status and error type, with a sentence in body and `Proxy-Status`.
    #[track_caller]
    pub(crate) fn assert_refused(&self, status: u16, error: &str) -> &str {
        assert_eq!(self.status, status, "{self:?}");
        let begin = format!("kubevpn; error={error}; details=\"");
        assert!(self.field("proxy-status").starts_with(&begin), "{self:?}");
        assert_eq!(
            self.field("content-type"),
            "text/plain; charset=utf-8",
            "{self:?}"
        );
        assert_eq!(self.field("x-content-type-options"), "nosniff", "{self:?}");
        let sentence = self.text().strip_suffix('\n').expect("a line");
        assert!(!sentence.is_empty() && !sentence.contains('\n'), "{self:?}");
        sentence
    }

    pub(crate) fn closes(&self) -> bool {
        self.field("connection") == "close"
    }
}

/// A GET of the path `/` as a proxy's client sends it.
pub(crate) fn get(host: &str) -> String {
    format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
