//! Much at once, and much in one piece. `KUBEVPN_FULL=1` has the sizes that are claimed; without it they are such as
//! every run can afford.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::http as proxies;
use super::scenario;
use crate::client::read_head;
use crate::proxy::PATIENCE;
use crate::{Context, Curl, Proxy, ProxyRoute, Scenario};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("load", a_large_body_each_way_is_whole_and_held_nowhere),
        scenario!("load", slow_clients_delay_nobody_and_are_cut, One),
        scenario!("load", kept_connections_are_few, One),
        scenario!("load", a_pod_that_closes_after_each_answer_fails_nobody),
    ]
}

const MIB: usize = 1 << 20;

// === bodies ===

/// What the program may grow by while a body passes, however large that is: buffers, and what its allocator keeps.
const GROWTH: usize = 48 * MIB;

async fn a_large_body_each_way_is_whole_and_held_nowhere(cx: Context) -> anyhow::Result<()> {
    let size = cx.size(64 * MIB, 1024 * MIB);
    let (proxy, http) = proxies::start(&cx).await?;
    for way in ProxyRoute::ALL {
        // The first bytes of a way open what is kept.
        download(&proxy, http, way, MIB).await?;
        upload(&proxy, http, way, MIB).await?;
        let before = proxy.memory()?;
        let down = watched(&proxy, download(&proxy, http, way, size)).await?;
        let up = watched(&proxy, upload(&proxy, http, way, size)).await?;
        for (direction, Watched { most, took }) in [("down", down), ("up", up)] {
            let figures = format!(
                "{way:?} {direction}: {} MiB in {took:.1?}, from {} to {} MiB resident",
                size / MIB,
                before / MIB,
                most / MIB
            );
            cx.measured(format_args!("{figures}"));
            anyhow::ensure!(most < before + GROWTH, figures);
        }
    }
    Ok(())
}

struct Watched {
    /// The most memory the program had meanwhile.
    most: usize,
    took: Duration,
}

async fn watched(
    proxy: &Proxy,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Watched> {
    let mut most = 0;
    let started = Instant::now();
    let mut look = tokio::time::interval(Duration::from_millis(20));
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                done?;
                let took = started.elapsed();
                return Ok(Watched { most, took });
            }
            _ = look.tick() => most = most.max(proxy.memory()?),
        }
    }
}

/// Bytes of which every eight say their own place: what is lost, doubled or moved shows.
struct CountingBytes {
    at: usize,
    block: Vec<u8>,
}

impl CountingBytes {
    const BLOCK: usize = 64 << 10;

    fn new() -> Self {
        Self {
            at: 0,
            block: vec![0; Self::BLOCK],
        }
    }

    /// The next ones.
    fn next(&mut self, size: usize) -> &[u8] {
        for (i, number) in self.block.chunks_exact_mut(8).enumerate() {
            number.copy_from_slice(&((self.at + 8 * i) as u64).to_be_bytes());
        }
        self.at += size;
        &self.block[..size]
    }
}

async fn download(
    proxy: &Proxy,
    http: SocketAddr,
    way: ProxyRoute,
    size: usize,
) -> anyhow::Result<()> {
    let (mut stream, base) = way.open(proxy.socks, http, "productpage", 9080).await?;
    let request = format!("GET {base}/count?n={size} HTTP/1.1\r\nHost: productpage\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    read_head(&mut stream, "200").await?;
    let (mut expected, mut got) = (CountingBytes::new(), vec![0; CountingBytes::BLOCK]);
    while expected.at < size {
        let at = expected.at;
        let got = &mut got[..CountingBytes::BLOCK.min(size - at)];
        let read = stream.read_exact(got).await;
        read.with_context(|| format!("{way:?}: after {at} of {size} bytes"))?;
        anyhow::ensure!(
            got == expected.next(got.len()),
            "{way:?}: wrong behind {at}"
        );
    }
    Ok(())
}

async fn upload(
    proxy: &Proxy,
    http: SocketAddr,
    way: ProxyRoute,
    size: usize,
) -> anyhow::Result<()> {
    let (mut stream, base) = way.open(proxy.socks, http, "productpage", 9080).await?;
    let head =
        format!("PUT {base}/count HTTP/1.1\r\nHost: productpage\r\nContent-Length: {size}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut count = CountingBytes::new();
    while count.at < size {
        let left = size - count.at;
        stream
            .write_all(count.next(CountingBytes::BLOCK.min(left)))
            .await?;
    }
    read_head(&mut stream, "200").await?;
    let mut said = String::new();
    BufReader::new(stream).read_line(&mut said).await?;
    anyhow::ensure!(said.trim() == size.to_string(), "{way:?}: {said}");
    Ok(())
}

// === slow clients ===

/// Half of them to each frontend: a byte now and then, never a whole request, and back again when they are cut.
async fn slow_clients_delay_nobody_and_are_cut(cx: Context) -> anyhow::Result<()> {
    const CLIENTS: usize = 1000;
    let (proxy, http) = proxies::start(&cx).await?;
    let descriptors = proxy.descriptors()?;
    let alone = good(&proxy, http).await?;
    let mut slow = JoinSet::new();
    let (begin, mut begun) = mpsc::channel(CLIENTS);
    let (stop, stopped) = watch::channel(false);
    for n in 0..CLIENTS {
        let (proxy, opening) = match n % 2 {
            0 => (proxy.socks, &b"\x05\xff\x00"[..]),
            _ => (http, &b"GET http://productpage:9080/ HTTP/1.1\r\nX: "[..]),
        };
        let (begin, stopped) = (begin.clone(), stopped.clone());
        slow.spawn(async move {
            let mut begin = Some(begin);
            while !*stopped.borrow() {
                let mut stream = TcpStream::connect(proxy).await?;
                stream.write_all(opening).await?;
                if let Some(begin) = begin.take() {
                    begin.send(()).await?;
                }
                trickle(stream).await;
            }
            anyhow::Ok(())
        });
    }
    drop(begin);
    let all = async { while begun.recv().await.is_some() {} };
    tokio::time::timeout(PATIENCE, all).await?;
    let beside = good(&proxy, http).await?;
    let open = proxy.descriptors()?.saturating_sub(descriptors);
    cx.measured(format_args!(
        "20 requests by curl: {alone:.1?} alone, {beside:.1?} beside {open} slow clients"
    ));
    anyhow::ensure!(open > CLIENTS / 2, "only {open} slow clients are open");
    stop.send(true)?;
    let cut = async {
        while let Some(ended) = slow.join_next().await {
            ended??;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, cut)
        .await
        .context("a slow client is never cut")??;
    super::life::settles("descriptors", async || proxy.descriptors(), descriptors + 8).await
}

/// How long some requests through each frontend take.
async fn good(proxy: &Proxy, http: SocketAddr) -> anyhow::Result<Duration> {
    let started = Instant::now();
    for _ in 0..10 {
        let url = "http://productpage:9080/";
        Curl::get(proxy.socks, url).await?.json()?;
        let http = format!("http://{http}");
        Curl::run(&["--proxy", &http, url]).await?.json()?;
    }
    Ok(started.elapsed())
}

/// A byte at a time until the other side has had enough.
async fn trickle(mut stream: TcpStream) {
    let mut pause = tokio::time::interval(Duration::from_millis(500));
    let mut answer = [0; 1024];
    loop {
        tokio::select! {
            read = stream.read(&mut answer) => match read {
                // Told why.
                Ok(n) if n > 0 => {}
                _ => return,
            },
            _ = pause.tick() => if stream.write_all(b"x").await.is_err() { return },
        }
    }
}

// === keep-alive ===

/// A client of the HTTP proxy that keeps its connection.
struct KeptClient(BufReader<TcpStream>);

impl KeptClient {
    async fn connect(proxy: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self(BufReader::new(TcpStream::connect(proxy).await?)))
    }

    /// Sends a request whose answer has a length, and reads the body of that.
    async fn ask(&mut self, method: &str, url: &str, body: &str) -> anyhow::Result<String> {
        let length = body.len();
        let request =
            format!("{method} {url} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
        let request = match method {
            "GET" => request.replace("Content-Length: 0\r\n", ""),
            _ => request,
        };
        self.0.write_all(request.as_bytes()).await?;
        let head = read_head(&mut self.0, "200").await?.to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .with_context(|| format!("no length: {head}"))?;
        let mut body = vec![0; length.trim().parse()?];
        self.0.read_exact(&mut body).await?;
        Ok(String::from_utf8(body)?)
    }
}

/// The Pods say which connection a request came on.
async fn kept_connections_are_few(cx: Context) -> anyhow::Result<()> {
    const CLIENTS: usize = 8;
    let requests = cx.size(2000, 10_000);
    let (_proxy, http) = proxies::start(&cx).await?;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(async move {
            let mut client = KeptClient::connect(http).await?;
            let mut seen = HashSet::new();
            for n in 0..requests / CLIENTS {
                let url = format!("http://productpage:9080/{n}");
                let answer: serde_json::Value =
                    serde_json::from_str(&client.ask("GET", &url, "").await?)?;
                anyhow::ensure!(answer["path"] == format!("/{n}"), "{answer}");
                seen.insert((answer["hostname"].to_string(), answer["remote"].to_string()));
            }
            Ok(seen)
        });
    }
    let mut seen = HashSet::new();
    while let Some(done) = clients.join_next().await {
        seen.extend(done??);
    }
    let connections = seen.len();
    cx.measured(format_args!(
        "{requests} requests of {CLIENTS} clients came on {connections} connections"
    ));
    // One for each request that is under way at once, and a few that two wanted in the same moment.
    anyhow::ensure!(
        seen.len() <= 2 * CLIENTS,
        "{requests} requests of {CLIENTS} clients came on {} connections",
        seen.len()
    );
    Ok(())
}

/// A close that no field announces reaches us late: what is sent on a kept connection may be lost with it.
async fn a_pod_that_closes_after_each_answer_fails_nobody(cx: Context) -> anyhow::Result<()> {
    const CLIENTS: usize = 10;
    const REQUESTS: usize = 1000;
    let (_proxy, http) = proxies::start(&cx).await?;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(async move {
            let mut client = KeptClient::connect(http).await?;
            for n in 0..REQUESTS / CLIENTS {
                let (method, body) = [("GET", ""), ("POST", "four"), ("PUT", "12345")][n % 3];
                let answer = client.ask(method, "http://multi:8082/", body).await;
                let answer = answer.with_context(|| format!("request {n}"))?;
                anyhow::ensure!(answer == format!("{method} {}\n", body.len()), "{answer}");
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    Ok(())
}
