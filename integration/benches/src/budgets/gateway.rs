//! What stands between the proxy and the API server: a relay that counts connections, and a gateway that swallows or
//! refuses upgrades.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use kube::config::Kubeconfig;
use lab::Lab;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A longer request head is cut off.
const LONGEST_HEAD: usize = 32 << 10;

/// The kubeconfig with another address of its server.
pub(crate) fn kubeconfig_at(
    kubeconfig: &Path,
    server: impl FnOnce(&str) -> String,
) -> anyhow::Result<tempfile::NamedTempFile> {
    let mut config = Kubeconfig::read_from(kubeconfig)?;
    let cluster = config.clusters.first_mut();
    let cluster = cluster.and_then(|c| c.cluster.as_mut());
    let at = cluster
        .and_then(|c| c.server.as_mut())
        .context("no server")?;
    *at = server(at);
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(&serde_json::to_vec(&config)?)?;
    Ok(file)
}

/// Passes connections on to the API server and counts them.
pub(super) struct CountingRelay {
    kubeconfig: tempfile::NamedTempFile,
    accepted: Arc<AtomicU64>,
    reached: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl CountingRelay {
    pub(super) async fn start(kubeconfig: &Path) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let own = listener.local_addr()?;
        let mut api = None;
        let kubeconfig = kubeconfig_at(kubeconfig, |server| {
            api = server.rsplit("//").next().and_then(|a| a.parse().ok());
            format!("https://{own}")
        })?;
        let api: SocketAddr = api.context("the server is no address")?;
        let (accepted, reached) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let counters = (accepted.clone(), reached.clone());
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                counters.0.fetch_add(1, SeqCst);
                let reached = counters.1.clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(api).await?;
                    reached.fetch_add(1, SeqCst);
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Ok(Self {
            kubeconfig,
            accepted,
            reached,
            task,
        })
    }

    pub(super) fn kubeconfig(&self) -> &Path {
        self.kubeconfig.path()
    }

    /// Connections so far, those to an API server that was away among them.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(SeqCst)
    }

    /// Those that an API server accepted: a TLS handshake each.
    pub(super) fn reached(&self) -> u64 {
        self.reached.load(SeqCst)
    }
}

impl Drop for CountingRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a port-forward can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    Spdy,
    SpdyInWebSocket,
    Channel,
}

impl Upgrade {
    pub(super) const ALL: [Self; 3] = [Self::Spdy, Self::SpdyInWebSocket, Self::Channel];

    fn of(head: &str) -> Option<Self> {
        let head = head.to_ascii_lowercase();
        if !head.contains("/portforward") {
            None
        } else if head.contains("upgrade: spdy/3.1") {
            Some(Self::Spdy)
        } else if head.contains("spdy/3.1+portforward.k8s.io") {
            Some(Self::SpdyInWebSocket)
        } else {
            head.contains("upgrade: websocket").then_some(Self::Channel)
        }
    }

    /// As `--transport` has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Spdy => "spdy",
            Self::SpdyInWebSocket => "spdy-ws",
            Self::Channel => "ws",
        }
    }
}

/// What becomes of upgrades.
#[derive(Clone, Debug, Default)]
pub(super) struct Treatment {
    /// No answer, ever.
    pub(super) swallowed: Vec<Upgrade>,
    /// So many of the next are answered with 429.
    pub(super) too_many: usize,
}

/// A gateway without TLS in front of `kubectl proxy`, which adds the credentials.
pub(super) struct PlainGateway {
    kubeconfig: tempfile::NamedTempFile,
    treatment: Arc<Mutex<Treatment>>,
    asked: Arc<Mutex<Vec<Upgrade>>>,
    cut: watch::Sender<u64>,
    task: JoinHandle<()>,
    _kubectl: Child,
}

impl PlainGateway {
    pub(super) async fn start(lab: &Lab) -> anyhow::Result<Self> {
        let mut kubectl = lab.kubectl_command(&["proxy", "--port=0"]);
        kubectl.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut kubectl = kubectl.kill_on_drop(true).spawn()?;
        let stdout = kubectl.stdout.take().context("stdout is piped")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        let line = line.context("kubectl proxy ended")?;
        let behind: SocketAddr = line.rsplit(' ').next().unwrap_or_default().parse()?;

        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let own = listener.local_addr()?;
        let kubeconfig = kubeconfig_at(&lab.kubeconfig(), |_| format!("http://{own}"))?;
        let treatment = Arc::new(Mutex::new(Treatment::default()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (cut, cuts) = watch::channel(0);
        let (treat, seen) = (treatment.clone(), asked.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (treat, seen, mut cuts) = (treat.clone(), seen.clone(), cuts.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let upgraded = Arc::new(AtomicU64::new(0));
                    tokio::select! {
                        passed = pass(client, behind, &treat, &seen, &upgraded) => passed,
                        () = cut_off(cuts, &upgraded) => Ok(()),
                    }
                });
            }
        });
        Ok(Self {
            kubeconfig,
            treatment,
            asked,
            cut,
            task,
            _kubectl: kubectl,
        })
    }

    pub(super) fn kubeconfig(&self) -> &Path {
        self.kubeconfig.path()
    }

    pub(super) fn treat(&self, treatment: Treatment) {
        *lock(&self.treatment) = treatment;
    }

    /// Ends the connections that were upgraded.
    pub(super) fn cut_upgraded(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    /// The upgrades that were asked for since the last call, in their order.
    pub(super) fn asked(&self) -> Vec<Upgrade> {
        std::mem::take(&mut *lock(&self.asked))
    }
}

impl Drop for PlainGateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(it: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn cut_off(mut cuts: watch::Receiver<u64>, upgraded: &AtomicU64) {
    while cuts.changed().await.is_ok() {
        if upgraded.load(SeqCst) > 0 {
            return;
        }
    }
    std::future::pending().await
}

/// One connection. Its first request says what it is for: an upgrade has a connection of its own.
async fn pass(
    mut client: TcpStream,
    behind: SocketAddr,
    treatment: &Mutex<Treatment>,
    asked: &Mutex<Vec<Upgrade>>,
    upgraded: &AtomicU64,
) -> anyhow::Result<()> {
    client.set_nodelay(true)?;
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        anyhow::ensure!(head.len() < LONGEST_HEAD, "a head without end");
        anyhow::ensure!(client.read_buf(&mut head).await? > 0, "ended");
    }
    if let Some(upgrade) = Upgrade::of(&String::from_utf8_lossy(&head)) {
        lock(asked).push(upgrade);
        upgraded.store(1, SeqCst);
        let (swallowed, refused) = {
            let mut treatment = lock(treatment);
            let refused = treatment.too_many > 0;
            treatment.too_many = treatment.too_many.saturating_sub(1);
            (treatment.swallowed.contains(&upgrade), refused)
        };
        if swallowed {
            // Until the client gives up.
            while client.read(&mut [0; 1024]).await? > 0 {}
            return Ok(());
        }
        if refused {
            let answer =
                "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            client.write_all(answer.as_bytes()).await?;
            return Ok(());
        }
    }
    let mut server = TcpStream::connect(behind).await?;
    server.set_nodelay(true)?;
    server.write_all(&head).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
