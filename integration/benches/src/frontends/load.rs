//! What the clients do, and what is counted. Bounded in count and in time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, timeout};

use self::client::{BenchClient, RequestMode};
use super::peers::{Family, PeerProxy};
use super::upstream::BenchUpstream;
use crate::load::Figure;
use crate::wire::{self, quantile};

mod client;

/// No workload may take longer.
const LIMIT: Duration = Duration::from_secs(120);

/// How much.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrontendSizes {
    sequential: u64,
    connections: u64,
    requests: u64,
    bulk: u64,
    held: u64,
}

impl FrontendSizes {
    pub(super) const FULL: Self = Self {
        sequential: 2000,
        connections: 10_000,
        requests: 10_000,
        bulk: 2 << 30,
        held: 500,
    };
    pub(super) const QUICK: Self = Self {
        sequential: 200,
        connections: 1000,
        requests: 1000,
        bulk: 128 << 20,
        held: 50,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrontendWorkload {
    Sequential,
    Churn(u64),
    /// Forwarded GETs on kept connections.
    KeepAlive(u64),
    Download(u64),
    Upload(u64),
    Held,
}

impl FrontendWorkload {
    const SOCKS5: [Self; 8] = [
        Self::Sequential,
        Self::Churn(16),
        Self::Churn(64),
        Self::Download(1),
        Self::Download(8),
        Self::Upload(1),
        Self::Upload(8),
        Self::Held,
    ];
    const HTTP: [Self; 8] = [
        Self::KeepAlive(1),
        Self::KeepAlive(16),
        Self::KeepAlive(64),
        Self::Sequential,
        Self::Churn(16),
        Self::Download(1),
        Self::Upload(1),
        Self::Held,
    ];

    pub(super) fn of(family: Family) -> impl Iterator<Item = Self> {
        match family {
            Family::Socks5 => Self::SOCKS5.into_iter(),
            Family::Http => Self::HTTP.into_iter(),
        }
    }

    pub(super) fn title(self) -> String {
        match self {
            Self::Sequential => "sequential".into(),
            Self::Churn(n) => format!("churn {n}"),
            Self::KeepAlive(n) => format!("keep-alive {n}"),
            Self::Download(n) => format!("download {n}"),
            Self::Upload(n) => format!("upload {n}"),
            Self::Held => "held".into(),
        }
    }

    pub(super) fn titles() -> String {
        let mut titles: Vec<_> = Self::SOCKS5
            .iter()
            .chain(&Self::HTTP)
            .map(|w| w.title())
            .collect();
        titles.sort();
        titles.dedup();
        titles.join(", ")
    }

    /// Puts the load on a proxy that has just been started.
    pub(super) async fn run(
        self,
        proxy: &PeerProxy,
        upstream: &BenchUpstream,
        sizes: FrontendSizes,
    ) -> anyhow::Result<Vec<Figure>> {
        let way = match (proxy.family, self) {
            (Family::Socks5, _) => RequestMode::Socks5,
            (Family::Http, Self::KeepAlive(_)) => RequestMode::Forward,
            (Family::Http, _) => RequestMode::Connect,
        };
        let bench = Bench {
            proxy,
            upstream,
            way,
        };
        // What is paid only once is not what is compared.
        for _ in 0..20 {
            bench.one().await.context("warm-up")?;
        }
        let run = async {
            match self {
                Self::Sequential => bench.sequential(sizes.sequential).await,
                Self::Churn(clients) => bench.churn(clients, sizes.connections).await,
                Self::KeepAlive(clients) => bench.keep_alive(clients, sizes.requests).await,
                Self::Download(streams) => bench.bulk(streams, sizes.bulk, true).await,
                Self::Upload(streams) => bench.bulk(streams, sizes.bulk, false).await,
                Self::Held => bench.held(sizes.held).await,
            }
        };
        timeout(LIMIT, run).await.context("too slow")?
    }
}

struct Bench<'b> {
    proxy: &'b PeerProxy,
    upstream: &'b BenchUpstream,
    way: RequestMode,
}

impl Bench<'_> {
    async fn open(&self) -> anyhow::Result<BenchClient> {
        BenchClient::open(self.proxy.addr, self.upstream.addr, self.way).await
    }

    /// A new connection, one GET, closed by the client.
    async fn one(&self) -> anyhow::Result<()> {
        self.open().await?.get().await?;
        Ok(())
    }

    fn through(&self) -> &'static str {
        match self.way {
            RequestMode::Socks5 => "SOCKS5",
            RequestMode::Connect => "CONNECT",
            RequestMode::Forward => "forwarded",
        }
    }

    async fn sequential(&self, count: u64) -> anyhow::Result<Vec<Figure>> {
        let mut times = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            self.one().await?;
            times.push(start.elapsed());
        }
        let what = format!("{}, new connection + GET, one at a time", self.through());
        let (p50, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
        Ok(vec![
            Figure::less(format!("{what}, p50"), "ms", p50),
            Figure::less(format!("{what}, p99"), "ms", p99),
        ])
    }

    async fn churn(&self, clients: u64, count: u64) -> anyhow::Result<Vec<Figure>> {
        let (left, failed) = (AtomicU64::new(count), AtomicU64::new(0));
        let cpu = self.proxy.group.cpu()?;
        let start = Instant::now();
        let client = async || {
            while take(&left) {
                if self.one().await.is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        futures_util::future::join_all((0..clients).map(|_| client())).await;
        let seconds = start.elapsed().as_secs_f64();
        let cpu = self.proxy.group.cpu()? - cpu;
        let failed = failed.into_inner();
        let done = (count - failed) as f64;
        let what = format!("{}, new connections, {clients} clients", self.through());
        Ok(vec![
            Figure::more(what.clone(), "/s", done / seconds),
            Figure::less(
                format!("{what}, the proxy's processor time"),
                "µs each",
                cpu * 1e6 / count as f64,
            ),
            Figure::less(format!("{what}, failed"), "", failed as f64),
        ])
    }

    async fn keep_alive(&self, clients: u64, count: u64) -> anyhow::Result<Vec<Figure>> {
        let (left, failed) = (AtomicU64::new(count), AtomicU64::new(0));
        let (cpu, accepted) = (self.proxy.group.cpu()?, self.upstream.accepted());
        let start = Instant::now();
        let one = async || {
            let mut times = Vec::new();
            let mut kept: Option<BenchClient> = None;
            while take(&left) {
                let start = Instant::now();
                let mut got = match kept.take() {
                    Some(client) => client.again().await,
                    None => Ok(None),
                };
                if let Ok(None) = got {
                    got = match self.open().await {
                        Ok(mut client) => client.get().await.map(|keeps| Some((client, keeps))),
                        Err(error) => Err(error),
                    };
                }
                match got {
                    Ok(Some((client, keeps))) => {
                        times.push(start.elapsed());
                        kept = keeps.then_some(client);
                    }
                    _ => drop(failed.fetch_add(1, Ordering::Relaxed)),
                }
            }
            times
        };
        let all = futures_util::future::join_all((0..clients).map(|_| one())).await;
        let seconds = start.elapsed().as_secs_f64();
        let cpu = self.proxy.group.cpu()? - cpu;
        let opened = self.upstream.accepted() - accepted;
        let mut times: Vec<_> = all.into_iter().flatten().collect();
        anyhow::ensure!(!times.is_empty(), "every request failed");
        let plural = if clients == 1 { "" } else { "s" };
        let what = format!("{} GETs, {clients} client{plural}", self.through());
        Ok(vec![
            Figure::more(what.clone(), "/s", times.len() as f64 / seconds),
            Figure::less(format!("{what}, p50"), "ms", quantile(&mut times, 0.5)),
            Figure::less(
                format!("{what}, the proxy's processor time"),
                "µs each",
                cpu * 1e6 / count as f64,
            ),
            Figure::less(
                format!("{what}, connections to the server for {count}"),
                "",
                opened as f64,
            ),
            Figure::less(format!("{what}, failed"), "", failed.into_inner() as f64),
        ])
    }

    async fn bulk(&self, streams: u64, bytes: u64, down: bool) -> anyhow::Result<Vec<Figure>> {
        let each = bytes / streams;
        let cpu = self.proxy.group.cpu()?;
        let start = Instant::now();
        let one = async || {
            let mut client = self.open().await?;
            match down {
                true => wire::download(client.stream(), each).await,
                false => wire::upload(client.stream(), each).await,
            }
        };
        futures_util::future::try_join_all((0..streams).map(|_| one())).await?;
        let seconds = start.elapsed().as_secs_f64();
        let cpu = self.proxy.group.cpu()? - cpu;
        let mib = (each * streams) as f64 / f64::from(1 << 20);
        let direction = if down { "download" } else { "upload" };
        let plural = if streams == 1 { "" } else { "s" };
        let what = format!("{}, {direction}, {streams} stream{plural}", self.through());
        Ok(vec![
            Figure::more(what.clone(), "MiB/s", mib / seconds),
            Figure::less(
                format!("{what}, the proxy's processor time"),
                "ms per GiB",
                cpu * 1e3 * 1024.0 / mib,
            ),
        ])
    }

    async fn held(&self, count: u64) -> anyhow::Result<Vec<Figure>> {
        let before = self.proxy.group.memory()?;
        let mut held = Vec::new();
        for _ in 0..count {
            let mut client = self.open().await?;
            client.get().await?;
            held.push(client);
        }
        let after = self.proxy.group.memory()?;
        Ok(vec![Figure::less(
            format!("{}, memory of an idle connection", self.through()),
            "KiB",
            after.saturating_sub(before) as f64 / 1024.0 / count as f64,
        )])
    }
}

/// One of what is left to do, if any is.
fn take(left: &AtomicU64) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
        .is_ok()
}
