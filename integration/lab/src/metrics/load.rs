//! Clients of every frontend, which wait for the outcome of each connection and count it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Concurrent clients of each kind.
const CLIENTS: usize = 2;
/// Pause of a client between two connections: they are made to be counted, not to load the machine.
const PAUSE: Duration = Duration::from_millis(50);
/// Time limit of a client. It is longer than a dial may take (30 s): a client that left earlier would not know the outcome.
const PATIENCE: Duration = Duration::from_secs(60);
/// One in this many connections asks for a port that the Service does not have.
const WRONG: u64 = 10;

/// Listeners of the frontends.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScrapedListeners {
    /// Listener for SOCKS5 and HTTP.
    pub(super) mixed: SocketAddr,
    /// Forward to `reviews.default:80`.
    pub(super) forward: SocketAddr,
}

/// Kind of a client.
#[derive(Clone, Copy, Debug)]
enum LoadClient {
    Socks,
    /// HTTP `CONNECT`.
    Tunnel,
    /// A forwarded HTTP request. It has a body, so that it is not retried and has a stream of its own.
    Request,
    Forward,
}

impl LoadClient {
    const ALL: [Self; 4] = [Self::Socks, Self::Tunnel, Self::Request, Self::Forward];

    /// Name of the frontend in the metrics.
    fn frontend(self) -> &'static str {
        match self {
            Self::Socks => "socks5",
            Self::Tunnel | Self::Request => "http",
            Self::Forward => "forward",
        }
    }
}

/// Outcome of a connection, as its client knows it.
enum LoadOutcome {
    Granted,
    Refused,
    /// The connection ended, and the client cannot tell whether there was a stream.
    Unknown,
}

/// Number of connections of a frontend by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OutcomeCounts {
    pub(super) granted: u64,
    pub(super) refused: u64,
    pub(super) unknown: u64,
}

impl OutcomeCounts {
    pub(super) fn all(&self) -> u64 {
        self.granted + self.refused + self.unknown
    }
}

/// Outcomes of all connections.
#[derive(Debug, Default)]
pub(super) struct LoadOutcomes {
    counted: BTreeMap<&'static str, OutcomeCounts>,
    /// Errors of connections without an outcome.
    pub(super) lost: Vec<String>,
}

impl LoadOutcomes {
    pub(super) fn of(&self, frontend: &str) -> OutcomeCounts {
        self.counted.get(frontend).copied().unwrap_or_default()
    }

    pub(super) fn all(&self) -> u64 {
        self.counted.values().map(OutcomeCounts::all).sum()
    }

    fn add(&mut self, asks: LoadClient, told: Result<LoadOutcome>) {
        let counted = self.counted.entry(asks.frontend()).or_default();
        match told {
            Ok(LoadOutcome::Granted) => counted.granted += 1,
            Ok(LoadOutcome::Refused) => counted.refused += 1,
            Ok(LoadOutcome::Unknown) => counted.unknown += 1,
            Err(error) => self.lost.push(format!("{asks:?}: {error:#}")),
        }
    }

    fn join(&mut self, other: Self) {
        for (frontend, more) in other.counted {
            let counted = self.counted.entry(frontend).or_default();
            counted.granted += more.granted;
            counted.refused += more.refused;
            counted.unknown += more.unknown;
        }
        self.lost.extend(other.lost);
    }
}

/// Running clients.
pub(super) struct CountedLoad {
    ending: watch::Sender<bool>,
    clients: JoinSet<LoadOutcomes>,
}

impl CountedLoad {
    pub(super) fn start(addresses: ScrapedListeners) -> Self {
        let (ending, is_ending) = watch::channel(false);
        let mut clients = JoinSet::new();
        for asks in LoadClient::ALL {
            for _ in 0..CLIENTS {
                clients.spawn(work(asks, addresses, is_ending.clone()));
            }
        }
        Self { ending, clients }
    }

    /// Waits for the outcomes of open connections, and adds all up.
    pub(super) async fn end(self) -> LoadOutcomes {
        let _ = self.ending.send(true);
        let mut all = LoadOutcomes::default();
        for outcomes in self.clients.join_all().await {
            all.join(outcomes);
        }
        all
    }
}

async fn work(
    asks: LoadClient,
    addresses: ScrapedListeners,
    is_ending: watch::Receiver<bool>,
) -> LoadOutcomes {
    let mut outcomes = LoadOutcomes::default();
    let mut n = 0;
    while !*is_ending.borrow() {
        n += 1;
        let (host, port) = match n % 2 {
            0 => ("reviews.default", 80),
            _ => ("productpage.default", 9080),
        };
        let port = if n % WRONG == 0 { 81 } else { port };
        let asked = timeout(PATIENCE, ask(asks, addresses, host, port)).await;
        let told = asked.unwrap_or_else(|_| bail!("no outcome within {PATIENCE:?}"));
        outcomes.add(asks, told);
        sleep(PAUSE).await;
    }
    outcomes
}

async fn ask(
    asks: LoadClient,
    addresses: ScrapedListeners,
    host: &str,
    port: u16,
) -> Result<LoadOutcome> {
    match asks {
        LoadClient::Socks => socks(addresses.mixed, host, port).await,
        LoadClient::Tunnel => tunnel(addresses.mixed, host, port).await,
        LoadClient::Request => request(addresses.mixed, host, port).await,
        LoadClient::Forward => {
            match TcpStream::connect(addresses.forward).await {
                Ok(mut stream) => use_up(&mut stream).await,
                // A refusal that is known at once resets the connection before this side has looked at it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => return Err(error.into()),
            }
            Ok(LoadOutcome::Unknown)
        }
    }
}

/// Connects by SOCKS5, and sends a request.
async fn socks(proxy: SocketAddr, host: &str, port: u16) -> Result<LoadOutcome> {
    let Some(mut stream) = socks_stream(proxy, host, port).await? else {
        return Ok(LoadOutcome::Refused);
    };
    use_up(&mut stream).await;
    Ok(LoadOutcome::Granted)
}

/// Connects by SOCKS5, whose reply says whether there is a stream; `None` if the proxy refuses it.
pub(crate) async fn socks_stream(
    proxy: SocketAddr,
    host: &str,
    port: u16,
) -> Result<Option<TcpStream>> {
    let mut stream = TcpStream::connect(proxy).await?;
    let length = u8::try_from(host.len())?;
    let request = [
        &[5, 1, 0, 5, 1, 0, 3, length][..],
        host.as_bytes(),
        &port.to_be_bytes(),
    ];
    stream.write_all(&request.concat()).await?;
    let mut said = [0; 4];
    let read = stream.read_exact(&mut said).await;
    read.context("the answer of SOCKS5")?;
    ensure!(said[..3] == [5, 0, 5], "SOCKS5 answered {said:?}");
    if said[3] != 0 {
        return Ok(None);
    }
    // The rest of the reply is an IPv4 address and a port.
    stream.read_exact(&mut [0; 8]).await.context("the reply")?;
    Ok(Some(stream))
}

async fn tunnel(proxy: SocketAddr, host: &str, port: u16) -> Result<LoadOutcome> {
    let mut stream = TcpStream::connect(proxy).await?;
    let request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.context("the answer to CONNECT")?);
    }
    if !head.starts_with(b"HTTP/1.1 200 ") {
        return Ok(LoadOutcome::Refused);
    }
    use_up(&mut stream).await;
    Ok(LoadOutcome::Granted)
}

/// Sends a request to be forwarded. If the proxy itself answers, there may have been a stream or not.
async fn request(proxy: SocketAddr, host: &str, port: u16) -> Result<LoadOutcome> {
    let mut stream = TcpStream::connect(proxy).await?;
    let request = format!(
        "POST http://{host}:{port}/sink HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\
         Content-Length: 5\r\n\r\nhello"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // Bytes received before a reset count too.
    let _broken = stream.read_to_end(&mut answer).await;
    ensure!(answer.starts_with(b"HTTP/1.1 "), "no answer to a request");
    Ok(LoadOutcome::Unknown)
}

/// Sends a request on an open stream. Errors are ignored, because the Pod may have ended.
async fn use_up(stream: &mut TcpStream) {
    let request = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
    if stream.write_all(request).await.is_ok() {
        let mut answer = Vec::new();
        let _broken = stream.read_to_end(&mut answer).await;
    }
}
