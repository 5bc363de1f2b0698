//! What the clients go through: ours, kubectl, a kube-rs forwarder, or any command.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use lab::Lab;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::interval;

use crate::wire;

/// Names of ours without and with metrics that are read.
pub(crate) const OURS: &str = "ours (SOCKS5)";
pub(crate) const SCRAPED: &str = "ours (SOCKS5), --metrics";
/// How often Prometheus would read them.
const SCRAPE: Duration = Duration::from_secs(1);

/// Which program, and how it is run.
#[derive(Clone, Debug)]
pub(crate) enum SubjectKind {
    Ours(PathBuf),
    /// Ours with `--metrics`, which are read once a second.
    Scraped(PathBuf),
    Kubectl {
        websocket: bool,
    },
    KubeRs {
        nodelay: bool,
    },
    Command {
        name: String,
        command: String,
    },
}

impl SubjectKind {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Ours(_) => OURS.into(),
            Self::Scraped(_) => SCRAPED.into(),
            Self::Kubectl { websocket: false } => "kubectl, SPDY".into(),
            Self::Kubectl { websocket: true } => "kubectl, WebSocket".into(),
            Self::KubeRs { nodelay: false } => "kube-rs".into(),
            Self::KubeRs { nodelay: true } => "kube-rs, TCP_NODELAY".into(),
            Self::Command { name, .. } => name.clone(),
        }
    }
}

/// A running subject. Killed when dropped.
pub(crate) struct RunningSubject {
    child: Child,
    way: SubjectRoute,
    /// Reads its metrics, where that is measured; ends with it.
    _scraping: JoinSet<()>,
}

/// How a client gets to a port of the Service.
enum SubjectRoute {
    Socks(SocketAddr),
    /// Local ports for the Service's port 80 and for the ports that only `multi` has.
    Forwards(Vec<(Port, SocketAddr)>),
}

/// Where the load goes. All of them have one Pod behind them, so that nobody gains by spreading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// HTTP of `reviews`.
    Http,
    /// `multi`: takes a byte and resets.
    Reset,
    /// `multi`: nothing listens.
    Nothing,
    /// `multi`: echo.
    Echo,
}

impl Port {
    fn target(self) -> (&'static str, u16) {
        match self {
            Self::Http => ("reviews.default.svc.cluster.local", 80),
            Self::Reset => ("multi.default.svc.cluster.local", 7666),
            Self::Nothing => ("multi.default.svc.cluster.local", 9999),
            Self::Echo => ("multi.default.svc.cluster.local", 7007),
        }
    }
}

async fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

/// Starts it on a kubeconfig, with its output to be read.
fn spawn(mut command: Command, kubeconfig: &Path) -> anyhow::Result<Child> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
        .env("KUBECONFIG", kubeconfig)
        .spawn()
        .context("starting the subject")
}

impl RunningSubject {
    /// `kubevpn proxy-out` on this kubeconfig, with these flags as well.
    pub(crate) async fn proxy(
        kubevpn: &Path,
        kubeconfig: &Path,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(kubevpn);
        command
            .args(["proxy-out", "--listen-socks", "127.0.0.1:0"])
            .args(flags)
            .env("RUST_LOG", "warn");
        let mut child = spawn(command, kubeconfig)?;
        let line = line_with(&mut child, "SOCKS5 proxy listening on ").await?;
        let socks = line.rsplit(' ').next().unwrap_or_default().parse()?;
        Ok(Self {
            child,
            way: SubjectRoute::Socks(socks),
            _scraping: JoinSet::new(),
        })
    }

    /// The same with metrics, which are read from now on.
    async fn scraped(kubevpn: &Path, kubeconfig: &Path) -> anyhow::Result<Self> {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port().await?));
        let flags = ["--metrics", &admin.to_string()];
        let mut subject = Self::proxy(kubevpn, kubeconfig, &flags).await?;
        // That it can be read is known before anything is measured.
        scrape(admin).await?;
        subject._scraping.spawn(async move {
            let mut ticks = interval(SCRAPE);
            loop {
                ticks.tick().await;
                // A proxy that has ended fails the workload.
                let _ = scrape(admin).await;
            }
        });
        Ok(subject)
    }

    pub(crate) async fn start(kind: &SubjectKind, lab: &Lab) -> anyhow::Result<Self> {
        Self::start_for(kind, lab, &[Port::Http]).await
    }

    /// Ours or kubectl on this kubeconfig, with a forward for HTTP: its clients have to try until it listens.
    pub(crate) async fn begin(
        kind: &SubjectKind,
        lab: &Lab,
        kubeconfig: &Path,
    ) -> anyhow::Result<Self> {
        let local = free_port().await?;
        let addr = SocketAddr::from(([127, 0, 0, 1], local));
        let (mut command, way) = match kind {
            SubjectKind::Ours(path) => {
                let mut command = Command::new(path);
                command
                    .args(["proxy-out", "--listen-socks", &addr.to_string()])
                    .env("RUST_LOG", "warn");
                (command, SubjectRoute::Socks(addr))
            }
            SubjectKind::Kubectl { websocket } => {
                let mut command = Command::new(lab.dir().join("bin/kubectl"));
                command
                    .args(["port-forward", "svc/reviews"])
                    .arg(format!("{local}:{}", Port::Http.target().1))
                    .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websocket.to_string());
                (command, SubjectRoute::Forwards(vec![(Port::Http, addr)]))
            }
            SubjectKind::Scraped(_) | SubjectKind::KubeRs { .. } | SubjectKind::Command { .. } => {
                bail!("not measured from its start")
            }
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let child = command.env("KUBECONFIG", kubeconfig).spawn()?;
        Ok(Self {
            child,
            way,
            _scraping: JoinSet::new(),
        })
    }

    /// The same with forwards for these ports, where the kind needs one for each.
    pub(crate) async fn start_for(
        kind: &SubjectKind,
        lab: &Lab,
        ports: &[Port],
    ) -> anyhow::Result<Self> {
        Self::start_on(kind, lab, &lab.kubeconfig(), ports).await
    }

    /// The same on this kubeconfig.
    pub(crate) async fn start_on(
        kind: &SubjectKind,
        lab: &Lab,
        kubeconfig: &Path,
        ports: &[Port],
    ) -> anyhow::Result<Self> {
        let spawn = |command| spawn(command, kubeconfig);
        let (child, way) = match kind {
            SubjectKind::Ours(path) => return Self::proxy(path, kubeconfig, &[]).await,
            SubjectKind::Scraped(path) => return Self::scraped(path, kubeconfig).await,
            SubjectKind::Kubectl { websocket } => {
                let mut forwards = Vec::new();
                let mut words = Vec::new();
                for port in ports {
                    let local = free_port().await?;
                    words.push(format!("{local}:{}", port.target().1));
                    forwards.push((*port, SocketAddr::from(([127, 0, 0, 1], local))));
                }
                let service = if ports.contains(&Port::Http) {
                    "svc/reviews"
                } else {
                    "svc/multi"
                };
                let mut command = Command::new(lab.dir().join("bin/kubectl"));
                command
                    .args(["port-forward", service])
                    .args(words)
                    .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websocket.to_string());
                let mut child = spawn(command)?;
                line_with(&mut child, "Forwarding from 127.0.0.1").await?;
                (child, SubjectRoute::Forwards(forwards))
            }
            SubjectKind::KubeRs { nodelay } => {
                let local = free_port().await?;
                let mut command = Command::new(std::env::current_exe()?);
                command.args([
                    "--kube-rs-forward",
                    &local.to_string(),
                    "--nodelay",
                    if *nodelay { "1" } else { "0" },
                ]);
                let mut child = spawn(command)?;
                line_with(&mut child, "Forwarding from").await?;
                (
                    child,
                    SubjectRoute::Forwards(vec![(Port::Http, ([127, 0, 0, 1], local).into())]),
                )
            }
            SubjectKind::Command { command: words, .. } => {
                let local = free_port().await?;
                let mut command = Command::new("sh");
                command.args([
                    "-c",
                    &format!("exec {}", words.replace("{port}", &local.to_string())),
                ]);
                let child = spawn(command)?;
                let addr = SocketAddr::from(([127, 0, 0, 1], local));
                tokio::time::timeout(Duration::from_secs(30), async {
                    while TcpStream::connect(addr).await.is_err() {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                })
                .await
                .context("the peer does not listen")?;
                (child, SubjectRoute::Forwards(vec![(Port::Http, addr)]))
            }
        };
        Ok(Self {
            child,
            way,
            _scraping: JoinSet::new(),
        })
    }

    /// A connection to the port: for ours with the SOCKS5 handshake, which is part of what is measured.
    pub(crate) async fn connect(&self, port: Port) -> anyhow::Result<TcpStream> {
        match &self.way {
            SubjectRoute::Socks(_) => {
                let (host, port) = port.target();
                self.connect_to(host, port).await
            }
            SubjectRoute::Forwards(forwards) => {
                let found = forwards.iter().find(|(p, _)| *p == port);
                let (_, addr) = found.context("not forwarded by this subject")?;
                let stream = TcpStream::connect(addr).await?;
                stream.set_nodelay(true)?;
                Ok(stream)
            }
        }
    }

    /// A connection to any name, of a subject that is a proxy.
    pub(crate) async fn connect_to(&self, host: &str, port: u16) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.socks()?).await?;
        stream.set_nodelay(true)?;
        let mut address = vec![3, u8::try_from(host.len())?];
        address.extend_from_slice(host.as_bytes());
        address.extend_from_slice(&port.to_be_bytes());
        wire::socks5(&mut stream, &address).await?;
        Ok(stream)
    }

    /// Its listener, of a subject that is a proxy.
    pub(crate) fn socks(&self) -> anyhow::Result<SocketAddr> {
        match self.way {
            SubjectRoute::Socks(proxy) => Ok(proxy),
            SubjectRoute::Forwards(_) => bail!("this subject is no proxy"),
        }
    }

    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("the subject has ended")
    }

    /// Resident memory of the subject's process, in bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        resident(self.pid()?)
    }
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// Reads the metrics once.
async fn scrape(admin: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(admin).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    anyhow::ensure!(
        answer.contains("\nkubevpn_connections_total"),
        "no metrics: {answer}"
    );
    Ok(())
}

async fn line_with(child: &mut Child, words: &str) -> anyhow::Result<String> {
    let stdout = child.stdout.take().context("stdout is piped")?;
    let mut lines = BufReader::new(stdout).lines();
    let found = tokio::time::timeout(Duration::from_secs(60), async {
        while let Some(line) = lines.next_line().await? {
            if line.contains(words) {
                return Ok(line);
            }
        }
        bail!("the subject ended before it said {words:?}");
    })
    .await;
    // What else it prints must not fill the pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    found.with_context(|| format!("the subject never said {words:?}"))?
}
