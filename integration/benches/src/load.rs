//! What the clients do, and what is counted. Each workload gives one or more figures.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use lab::Lab;
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::subject::{Kind, Port, Subject};

/// No single exchange may take longer; one that does has failed.
const LIMIT: Duration = Duration::from_secs(20);

/// One number, with what it counts and whether more is better.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) more_is_better: bool,
    pub(crate) value: f64,
}

fn figure(what: impl Into<String>, unit: &'static str, more_is_better: bool, value: f64) -> Figure {
    Figure {
        what: what.into(),
        unit,
        more_is_better,
        value,
    }
}

/// How much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    sequential: usize,
    window: Duration,
    bulk: u64,
    held: usize,
}

impl Sizes {
    pub(crate) const FULL: Self = Self {
        sequential: 500,
        window: Duration::from_secs(5),
        bulk: 256 << 20,
        held: 2000,
    };
    pub(crate) const QUICK: Self = Self {
        sequential: 50,
        window: Duration::from_secs(1),
        bulk: 16 << 20,
        held: 100,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    Sequential,
    Churn(usize),
    KeepAlive(usize),
    Download(usize),
    Upload(usize),
    BesideStalled,
    Blast,
    Held,
    Upgrades,
}

impl Workload {
    pub(crate) const ALL: [Self; 13] = [
        Self::Sequential,
        Self::Churn(16),
        Self::Churn(64),
        Self::KeepAlive(1),
        Self::KeepAlive(64),
        Self::Download(1),
        Self::Download(8),
        Self::Upload(1),
        Self::Upload(8),
        Self::BesideStalled,
        Self::Blast,
        Self::Held,
        Self::Upgrades,
    ];

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Churn(_) => "churn",
            Self::KeepAlive(_) => "keep-alive",
            Self::Download(_) => "download",
            Self::Upload(_) => "upload",
            Self::BesideStalled => "stalled",
            Self::Blast => "blast",
            Self::Held => "held",
            Self::Upgrades => "upgrades",
        }
    }

    pub(crate) fn names() -> String {
        let mut names: Vec<_> = Self::ALL.iter().map(Self::name).collect();
        names.dedup();
        names.join(", ")
    }

    pub(crate) fn title(&self) -> String {
        match self {
            Self::Churn(n) | Self::KeepAlive(n) => format!("{} {n}", self.name()),
            Self::Download(n) | Self::Upload(n) => format!("{} {n}", self.name()),
            other => other.name().into(),
        }
    }

    /// Starts the subject and puts the load on it.
    pub(crate) async fn run(
        &self,
        kind: &Kind,
        lab: &Lab,
        sizes: Sizes,
    ) -> anyhow::Result<Vec<Figure>> {
        if *self == Self::Blast {
            return match kind {
                Kind::Ours(_) | Kind::Kubectl { .. } => blast(kind, lab).await,
                // Forwards one port to one Service.
                Kind::KubeRs { .. } | Kind::Command { .. } => Ok(Vec::new()),
            };
        }
        let subject = &Subject::start(kind, lab).await?;
        if *self == Self::Upgrades {
            return upgrades(subject, lab).await;
        }
        // What is only paid once (the first session, a first resolution) is not what is compared.
        for _ in 0..5 {
            get(subject).await.context("warm-up")?;
        }
        match *self {
            Self::Sequential => sequential(subject, sizes).await,
            Self::Churn(clients) => churn(subject, clients, sizes).await,
            Self::KeepAlive(clients) => keep_alive(subject, clients, sizes).await,
            Self::Download(streams) => bulk(subject, streams, sizes, true).await,
            Self::Upload(streams) => bulk(subject, streams, sizes, false).await,
            Self::BesideStalled => beside_stalled(subject, sizes).await,
            Self::Held => held(subject, sizes).await,
            Self::Blast | Self::Upgrades => Ok(Vec::new()),
        }
    }
}

/// Sends a request and reads the answer, by its Content-Length, from an open connection.
async fn exchange(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<()> {
    timeout(LIMIT, async {
        stream.write_all(request).await?;
        let mut answer = Vec::with_capacity(1024);
        loop {
            if let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = std::str::from_utf8(&answer[..end])?.to_ascii_lowercase();
                anyhow::ensure!(head.starts_with("http/1.1 200"), "{head}");
                let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
                let length: usize = length.context("no Content-Length")?.trim().parse()?;
                if answer.len() >= end + 4 + length {
                    return Ok(());
                }
            }
            anyhow::ensure!(
                stream.read_buf(&mut answer).await? > 0,
                "ended after {} bytes",
                answer.len()
            );
        }
    })
    .await
    .context("no answer in time")?
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n";

/// A new connection, one GET, closed by the client.
async fn get(subject: &Subject) -> anyhow::Result<Duration> {
    let start = Instant::now();
    timeout(LIMIT, async {
        let mut stream = subject.connect(Port::Http).await?;
        exchange(&mut stream, GET).await
    })
    .await
    .context("no connection in time")??;
    Ok(start.elapsed())
}

fn quantile(times: &mut [Duration], q: f64) -> f64 {
    times.sort_unstable();
    let at = ((times.len() - 1) as f64 * q).round() as usize;
    times[at].as_secs_f64() * 1e3
}

async fn sequential(subject: &Subject, sizes: Sizes) -> anyhow::Result<Vec<Figure>> {
    let mut times = Vec::new();
    for _ in 0..sizes.sequential {
        times.push(get(subject).await?);
    }
    Ok(vec![
        figure(
            "new connection + GET, one at a time, p50",
            "ms",
            false,
            quantile(&mut times, 0.5),
        ),
        figure(
            "new connection + GET, one at a time, p99",
            "ms",
            false,
            quantile(&mut times, 0.99),
        ),
    ])
}

/// `clients` loops for the length of the window; how often the body ran.
async fn in_parallel<F>(clients: usize, window: Duration, body: F) -> anyhow::Result<(u64, u64)>
where
    F: AsyncFn() -> anyhow::Result<()>,
{
    let (done, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let end = Instant::now() + window;
    let one = async || {
        while Instant::now() < end {
            match body().await {
                Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                Err(_) => failed.fetch_add(1, Ordering::Relaxed),
            };
        }
    };
    futures_util::future::join_all((0..clients).map(|_| one())).await;
    Ok((done.into_inner(), failed.into_inner()))
}

async fn churn(subject: &Subject, clients: usize, sizes: Sizes) -> anyhow::Result<Vec<Figure>> {
    let (done, failed) =
        in_parallel(clients, sizes.window, async || get(subject).await.map(drop)).await?;
    let what = format!("new connections, {clients} clients");
    Ok(vec![
        figure(
            what.clone(),
            "/s",
            true,
            done as f64 / sizes.window.as_secs_f64(),
        ),
        figure(format!("{what}, failed"), "", false, failed as f64),
    ])
}

async fn keep_alive(
    subject: &Subject,
    clients: usize,
    sizes: Sizes,
) -> anyhow::Result<Vec<Figure>> {
    let end = Instant::now() + sizes.window;
    let one = async || {
        let mut stream = subject.connect(Port::Http).await?;
        let mut times = Vec::new();
        while Instant::now() < end {
            let start = Instant::now();
            exchange(&mut stream, GET).await?;
            times.push(start.elapsed());
        }
        anyhow::Ok(times)
    };
    let all = futures_util::future::try_join_all((0..clients).map(|_| one())).await?;
    let mut times: Vec<_> = all.into_iter().flatten().collect();
    let rate = times.len() as f64 / sizes.window.as_secs_f64();
    let what = format!(
        "keep-alive GET, {clients} client{}",
        if clients == 1 { "" } else { "s" }
    );
    Ok(vec![
        figure(
            format!("{what}, p50"),
            "ms",
            false,
            quantile(&mut times, 0.5),
        ),
        figure(format!("{what}, rate"), "/s", true, rate),
    ])
}

async fn bulk(
    subject: &Subject,
    streams: usize,
    sizes: Sizes,
    down: bool,
) -> anyhow::Result<Vec<Figure>> {
    let each = sizes.bulk / streams as u64;
    let start = Instant::now();
    let one = async || {
        let mut stream = subject.connect(Port::Http).await?;
        if down {
            let request = format!(
                "GET /bytes?n={each} HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await?;
            let mut buffer = vec![0; 256 << 10];
            let mut got = 0;
            // The head is a few hundred bytes of many millions.
            while got < each {
                let n = timeout(LIMIT, stream.read(&mut buffer))
                    .await
                    .context("stalled")??;
                anyhow::ensure!(n > 0, "ended after {got} of {each} bytes");
                got += n as u64;
            }
        } else {
            let head =
                format!("POST /sink HTTP/1.1\r\nHost: reviews\r\nContent-Length: {each}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            let buffer = vec![0; 256 << 10];
            let mut left = each;
            while left > 0 {
                let n = left.min(buffer.len() as u64) as usize;
                timeout(LIMIT, stream.write_all(&buffer[..n]))
                    .await
                    .context("stalled")??;
                left -= n as u64;
            }
            exchange(&mut stream, b"").await?;
        }
        anyhow::Ok(())
    };
    futures_util::future::try_join_all((0..streams).map(|_| one())).await?;
    let rate = (each * streams as u64) as f64 / f64::from(1 << 20) / start.elapsed().as_secs_f64();
    let what = if down { "download" } else { "upload" };
    let plural = if streams == 1 { "" } else { "s" };
    Ok(vec![figure(
        format!("{what}, {streams} stream{plural}"),
        "MiB/s",
        true,
        rate,
    )])
}

async fn beside_stalled(subject: &Subject, sizes: Sizes) -> anyhow::Result<Vec<Figure>> {
    let gets = async || {
        let (mut times, mut failed) = (Vec::new(), 0);
        let end = Instant::now() + sizes.window;
        while Instant::now() < end {
            match timeout(Duration::from_secs(3), get(subject)).await {
                Ok(Ok(time)) => times.push(time),
                _ => failed += 1,
            }
        }
        let p99 = if times.is_empty() {
            f64::INFINITY
        } else {
            quantile(&mut times, 0.99)
        };
        (p99, failed)
    };
    let (without, _) = gets().await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut stream = subject.connect(Port::Http).await?;
        stream
            .write_all(b"GET /bytes?n=1000000000 HTTP/1.1\r\nHost: reviews\r\n\r\n")
            .await?;
        stream.read_exact(&mut [0; 1]).await?;
        stalled.push(stream);
    }
    let (with, failed) = gets().await;
    Ok(vec![
        figure(
            "GETs beside 4 stalled readers: p99, as a multiple of without them",
            "x",
            false,
            with / without,
        ),
        figure(
            "GETs beside 4 stalled readers, failed",
            "",
            false,
            f64::from(failed),
        ),
    ])
}

/// 200 open connections; one is refused and one reset by the Pod; how many of the 200 still echo.
async fn blast(kind: &Kind, lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    const OPEN: usize = 200;
    let subject = Subject::start_for(kind, lab, &[Port::Echo, Port::Reset, Port::Nothing]).await?;
    let mut open = Vec::new();
    for _ in 0..OPEN {
        let mut stream = subject.connect(Port::Echo).await?;
        echoes(&mut stream).await?;
        open.push(stream);
    }
    let poke = async |port| {
        if let Ok(mut stream) = subject.connect(port).await {
            let _sent = stream.write_all(b"x").await;
            let _ended = timeout(Duration::from_secs(3), stream.read(&mut [0; 1])).await;
        }
    };
    poke(Port::Nothing).await;
    poke(Port::Reset).await;
    let mut alive = 0;
    for stream in &mut open {
        alive += usize::from(echoes(stream).await.is_ok());
    }
    let what = format!("of {OPEN} open connections, dropped when one is refused and one reset");
    Ok(vec![figure(what, "", false, (OPEN - alive) as f64)])
}

async fn echoes(stream: &mut TcpStream) -> anyhow::Result<()> {
    timeout(Duration::from_secs(3), async {
        stream.write_all(b"ping").await?;
        let mut back = [0; 4];
        stream.read_exact(&mut back).await?;
        anyhow::ensure!(&back == b"ping");
        Ok(())
    })
    .await?
}

async fn held(subject: &Subject, sizes: Sizes) -> anyhow::Result<Vec<Figure>> {
    let before = subject.resident()?;
    let mut open = Vec::new();
    let mut failed = 0;
    for _ in 0..sizes.held {
        let attempt = timeout(LIMIT, async {
            let mut stream = subject.connect(Port::Http).await?;
            exchange(&mut stream, GET).await?;
            anyhow::Ok(stream)
        });
        match attempt.await {
            Ok(Ok(stream)) => open.push(stream),
            _ => failed += 1,
        }
    }
    // What connections needed only while they were opened is given back within a moment.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = subject.resident()?;
    let each = after.saturating_sub(before) as f64 / open.len().max(1) as f64 / 1024.0;
    Ok(vec![
        figure(
            format!("memory per idle open connection, {} held", sizes.held),
            "KiB",
            false,
            each,
        ),
        figure(
            format!("of {} connections to hold, failed", sizes.held),
            "",
            false,
            f64::from(failed),
        ),
    ])
}

async fn upgrades(subject: &Subject, lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let mark = lab.audit_mark()?;
    for _ in 0..1000 {
        get(subject).await?;
    }
    let events = lab.audit_since(&mark).await?;
    let upgrades = events
        .iter()
        .filter(|e| e.subresource == "portforward")
        .count();
    Ok(vec![figure(
        "upgrades per 1,000 sequential connections",
        "",
        false,
        upgrades as f64,
    )])
}
