//! Clients of the gateway, in the node's network: what they ask, and what became of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::{NAME, NAMESPACE, PORT};

/// A step of a client that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(15);
/// Clients of each kind at a time.
const CLIENTS: usize = 3;
/// Between two requests of one client: the load is there to be counted, not to fill two cores.
const PAUSE: Duration = Duration::from_millis(30);
/// A request is given up after so many attempts, as by a client that tries again.
const ATTEMPTS: usize = 20;
/// How long a stream is used, and how often: longer than a Pod that ends is sent new connections, shorter than it drains.
const STREAM: Duration = Duration::from_secs(15);
const EXCHANGE: Duration = Duration::from_millis(100);

/// How a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LoadKind {
    /// An HTTP request in a tunnel, on a connection of its own.
    Connect,
    /// The same over SOCKS5.
    Socks,
    /// A tunnel that is used for 15 s.
    Stream,
}

/// A Pod behind the Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoadEndpoint {
    pub(super) pod: String,
    pub(super) ip: IpAddr,
}

/// A user, and whom it trusts.
#[derive(Clone)]
pub(super) struct Person {
    pub(super) user: &'static str,
    pub(super) password: &'static str,
    tls: TlsConnector,
}

impl Person {
    /// Trusts these certificates, in PEM.
    pub(super) fn new(
        user: &'static str,
        password: &'static str,
        certificates: &[&str],
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(CertificateDer::from_pem_slice(certificate.as_bytes())?)?;
        }
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Each connection is shown the certificate.
        config.resumption = Resumption::disabled();
        Ok(Self {
            user,
            password,
            tls: TlsConnector::from(Arc::new(config)),
        })
    }

    /// A connection to one replica, with its TLS handshake.
    pub(super) async fn connect(&self, ip: IpAddr) -> Result<TlsStream<TcpStream>> {
        let tcp = within("connecting", TcpStream::connect((ip, PORT))).await?;
        tcp.set_nodelay(true)?;
        let name = format!("{NAME}.{NAMESPACE}.svc").try_into()?;
        within("the TLS handshake", self.tls.connect(name, tcp)).await
    }

    /// A tunnel by HTTP; or the status line that says no.
    pub(super) async fn tunnel(&self, ip: IpAddr, to: &str) -> Result<TlsStream<TcpStream>> {
        let mut stream = self.connect(ip).await?;
        let shown = STANDARD.encode(format!("{}:{}", self.user, self.password));
        let request = format!(
            "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nProxy-Authorization: Basic {shown}\r\n\r\n"
        );
        within("asking for a tunnel", stream.write_all(request.as_bytes())).await?;
        let head = within("the answer to CONNECT", head(&mut stream)).await?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{}", first_line(&head));
        Ok(stream)
    }

    /// The same by SOCKS5.
    pub(super) async fn socks(
        &self,
        ip: IpAddr,
        host: &str,
        port: u16,
    ) -> Result<TlsStream<TcpStream>> {
        let mut stream = self.connect(ip).await?;
        let field = |text: &str| {
            let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
            [&[length], text.as_bytes()].concat()
        };
        let login = [vec![1], field(self.user), field(self.password)].concat();
        let request = [vec![5, 1, 0, 3], field(host), port.to_be_bytes().to_vec()].concat();
        for (said, heard) in [
            (vec![5, 1, 2], &[5, 2][..]),
            (login, &[1, 0]),
            (request, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        ] {
            within("SOCKS5", stream.write_all(&said)).await?;
            let mut answer = vec![0; heard.len()];
            within("SOCKS5", stream.read_exact(&mut answer)).await?;
            ensure!(answer == heard, "SOCKS5 answered {answer:?}");
        }
        Ok(stream)
    }

    async fn attempt(&self, kind: LoadKind, ip: IpAddr) -> Result<()> {
        match kind {
            LoadKind::Connect => get(self.tunnel(ip, "web:8080").await?).await,
            LoadKind::Socks => get(self.socks(ip, "web", 8080).await?).await,
            LoadKind::Stream => use_for_a_while(self.tunnel(ip, "web:7007").await?).await,
        }
    }
}

async fn within<T, E: Into<anyhow::Error>>(
    what: &'static str,
    doing: impl Future<Output = Result<T, E>>,
) -> Result<T> {
    match timeout(PATIENCE, doing).await {
        Ok(done) => done.map_err(Into::<anyhow::Error>::into).context(what),
        Err(_) => bail!("{what}: nothing for {PATIENCE:?}"),
    }
}

/// Up to the empty line, of 16 KiB at most; nothing behind it is read.
pub(super) async fn head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 << 10 {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !head.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

pub(super) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    let request = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
    within("sending the request", stream.write_all(request.as_bytes())).await?;
    let mut answer = String::new();
    within("the answer", stream.read_to_string(&mut answer)).await?;
    let whole = answer.starts_with("HTTP/1.1 200 ") && answer.contains(r#""service":"web""#);
    ensure!(whole, "answered {:?}", first_line(&answer));
    Ok(())
}

/// What is said comes back.
async fn use_for_a_while(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    let end = Instant::now() + STREAM;
    let mut ticks = interval(EXCHANGE);
    while Instant::now() < end {
        ticks.tick().await;
        within("the stream", stream.write_all(b"ping")).await?;
        let mut heard = [0; 4];
        within("the stream", stream.read_exact(&mut heard)).await?;
        ensure!(&heard == b"ping", "the stream gave other bytes back");
    }
    Ok(())
}

/// What became of requests.
#[derive(Debug, Default)]
pub(super) struct RequestTally {
    /// Requests that no attempt served.
    pub(super) unserved: usize,
    /// Attempts that failed.
    pub(super) failed: Vec<FailedRequest>,
    /// Served, by kind and Pod.
    pub(super) served: BTreeMap<(LoadKind, String), usize>,
}

#[derive(Clone, Debug)]
pub(super) struct FailedRequest {
    pub(super) kind: LoadKind,
    pub(super) pod: String,
    pub(super) why: String,
}

impl fmt::Display for FailedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}: {}", self.kind, self.pod, self.why)
    }
}

impl RequestTally {
    pub(super) fn served_by(&self, kind: LoadKind) -> BTreeMap<&str, usize> {
        let of_kind = self.served.iter().filter(|((k, _), _)| *k == kind);
        of_kind.map(|((_, pod), n)| (pod.as_str(), *n)).collect()
    }

    /// In a line.
    pub(super) fn summary(&self) -> String {
        let count = |kind| self.served_by(kind).values().sum::<usize>();
        let failed: BTreeSet<_> = self.failed.iter().map(ToString::to_string).collect();
        format!(
            "{} requests by CONNECT, {} by SOCKS5, {} streams; {} attempts failed, {} requests unserved{}{}",
            count(LoadKind::Connect),
            count(LoadKind::Socks),
            count(LoadKind::Stream),
            self.failed.len(),
            self.unserved,
            if failed.is_empty() { "" } else { ": " },
            failed.into_iter().collect::<Vec<_>>().join(", "),
        )
    }
}

/// Clients that go on asking.
pub(super) struct GatewayLoad {
    tally: Arc<Mutex<RequestTally>>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<()>>,
}

impl GatewayLoad {
    /// Of one user, through the endpoints as they are at each moment.
    pub(super) fn start(
        network: PathBuf,
        person: Person,
        endpoints: watch::Receiver<Vec<LoadEndpoint>>,
    ) -> Self {
        let tally = Arc::<Mutex<RequestTally>>::default();
        let (stop, stopping) = watch::channel(false);
        let counted = Arc::clone(&tally);
        let thread = in_network(network, async move || {
            let mut clients = JoinSet::new();
            for kind in [LoadKind::Connect, LoadKind::Socks, LoadKind::Stream] {
                for _ in 0..CLIENTS {
                    let client = ask_on(
                        kind,
                        person.clone(),
                        endpoints.clone(),
                        Arc::clone(&counted),
                        stopping.clone(),
                    );
                    clients.spawn(client);
                }
            }
            clients.join_all().await;
        });
        Self {
            tally,
            stop,
            thread,
        }
    }

    /// What there was since the last time this was asked.
    pub(super) fn take(&self) -> RequestTally {
        std::mem::take(&mut *self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many were served since then.
    pub(super) fn served(&self) -> usize {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.served.values().sum()
    }

    /// Lets requests in hand end.
    pub(super) async fn end(self) -> Result<RequestTally> {
        let _ = self.stop.send(true);
        joined(self.thread).await?;
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *tally))
    }
}

/// One client. The replica is chosen by chance for each connection, as kube-proxy does it.
async fn ask_on(
    kind: LoadKind,
    person: Person,
    endpoints: watch::Receiver<Vec<LoadEndpoint>>,
    tally: Arc<Mutex<RequestTally>>,
    stopping: watch::Receiver<bool>,
) {
    let count = |note: &dyn Fn(&mut RequestTally)| {
        note(&mut tally.lock().unwrap_or_else(PoisonError::into_inner));
    };
    let mut ticks = interval(PAUSE);
    while !*stopping.borrow() {
        let mut attempts = 0;
        let served = loop {
            ticks.tick().await;
            attempts += 1;
            let chosen = {
                let all = endpoints.borrow();
                let index = fastrand::usize(..all.len().max(1));
                all.get(index).cloned()
            };
            // Where no endpoint is there, none could have served it.
            let Some(LoadEndpoint { pod, ip }) = chosen else {
                if *stopping.borrow() {
                    return;
                }
                attempts -= 1;
                continue;
            };
            match person.attempt(kind, ip).await {
                Ok(()) => break Some(pod),
                Err(error) => {
                    let why = format!("{error:#}");
                    count(&|tally| {
                        tally.failed.push(FailedRequest {
                            kind,
                            pod: pod.clone(),
                            why: why.clone(),
                        });
                    });
                    if attempts == ATTEMPTS {
                        break None;
                    }
                }
            }
        };
        count(&|tally| match &served {
            Some(pod) => *tally.served.entry((kind, pod.clone())).or_default() += 1,
            None => tally.unserved += 1,
        });
    }
}

/// Runs on a thread in another network namespace, named by its file.
pub(super) fn in_network<T: Send + 'static>(
    network: PathBuf,
    work: impl AsyncFnOnce() -> T + Send + 'static,
) -> JoinHandle<Result<T>> {
    std::thread::spawn(move || {
        let file = File::open(&network).with_context(|| network.display().to_string())?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(work()))
    })
}

/// Its result, waited for without holding up others.
pub(super) async fn joined<T: Send + 'static>(thread: JoinHandle<Result<T>>) -> Result<T> {
    match tokio::task::spawn_blocking(move || thread.join()).await? {
        Ok(result) => result,
        Err(panicked) => std::panic::resume_unwind(panicked),
    }
}

/// The TCP ports of an address on which something accepts.
pub(super) async fn open_ports(ip: IpAddr) -> Vec<u16> {
    let mut open = Vec::new();
    let mut asked = JoinSet::new();
    for port in 1..=u16::MAX {
        if asked.len() == 256
            && let Some(Ok((port, true))) = asked.join_next().await
        {
            open.push(port);
        }
        asked.spawn(async move {
            let connecting = TcpStream::connect(SocketAddr::new(ip, port));
            (
                port,
                timeout(PATIENCE, connecting).await.is_ok_and(|c| c.is_ok()),
            )
        });
    }
    while let Some(asked) = asked.join_next().await {
        if let Ok((port, true)) = asked {
            open.push(port);
        }
    }
    open.sort_unstable();
    open
}
