//! What the crate promises, against a real cluster. The kubeconfig is found as kubectl finds it; Pods labelled
//! `app=productpage` must run the echo program of `integration/lab` with HTTP on port 9080.
//!
//! ```text
//! cargo test -p kubevpn-portforward --test cluster -- --ignored --test-threads 1
//! ```

use std::io;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use kubevpn_client::{Env, KubeconfigArgs, Options, build, load};
use kubevpn_portforward::{
    Config, ForwardError, Forwarder, PodPort, PodStream, Transport, TransportChoice,
};
use kubevpn_target::Refusal;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceExt as _;

const HTTP: u16 = 9080;
const ECHO: u16 = 7007;
const RESET: u16 = 7666;
const NOTHING: u16 = 9999;

struct Lab {
    forwarder: Forwarder,
    pod: PodPort,
}

impl Lab {
    async fn new(transport: TransportChoice) -> Self {
        let config = Config {
            transport,
            ..Config::default()
        };
        Self::with(config).await
    }

    async fn with(config: Config) -> Self {
        let loaded = load(&KubeconfigArgs::default(), &Env::of_process()).unwrap();
        let client = build(loaded.config, &Options::new("kubevpn-test")).unwrap();
        let pod = pod(client.clone()).await;
        let forwarder = Forwarder::new(client, config);
        Self { forwarder, pod }
    }

    async fn dial(&self, port: u16) -> Result<PodStream, ForwardError> {
        let to = PodPort {
            port,
            ..self.pod.clone()
        };
        self.forwarder.clone().oneshot(to).await
    }

    /// So many requests, one after another on connections of their own: what the dials took, and all of it.
    async fn rounds(&self, n: usize) -> (Vec<Duration>, Vec<Duration>) {
        let (mut dials, mut gets) = (Vec::new(), Vec::new());
        for _ in 0..n {
            let began = Instant::now();
            let mut stream = self.dial(HTTP).await.unwrap();
            dials.push(began.elapsed());
            request(&mut stream, "/ready").await.unwrap();
            gets.push(began.elapsed());
            close(stream);
        }
        (dials, gets)
    }

    /// One request on a connection of its own, which is then closed.
    async fn get(&self, path: &str) -> io::Result<String> {
        let mut stream = self.dial(HTTP).await.map_err(io::Error::other)?;
        let body = request(&mut stream, path).await?;
        close(stream);
        Ok(body)
    }
}

/// Ends the client's side, and reads on, as a relay does.
fn close(stream: PodStream) {
    tokio::spawn(async move {
        let (mut read, mut write) = split(stream);
        let mut rest = Vec::new();
        let _ = tokio::join!(write.shutdown(), read.read_to_end(&mut rest));
    });
}

async fn pod(client: Client) -> PodPort {
    let pods: Api<Pod> = Api::default_namespaced(client);
    let list = ListParams::default().labels("app=productpage");
    let pods = pods.list(&list).await.unwrap();
    let mut running = pods
        .iter()
        .filter(|p| p.metadata.deletion_timestamp.is_none());
    let pod = running.next().expect("a productpage pod");
    PodPort {
        namespace: pod.namespace().unwrap(),
        pod: pod.name_any(),
        uid: pod.uid(),
        port: HTTP,
    }
}

/// A keep-alive request; its answer has a length.
async fn request(stream: &mut PodStream, path: &str) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("Content-Length: "));
            if body.len() >= length.unwrap().parse().unwrap() {
                return Ok(body.to_owned());
            }
        }
    }
}

fn transports() -> impl Iterator<Item = TransportChoice> {
    Transport::ALL.into_iter().map(TransportChoice::Only)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn every_transport_carries_a_request() {
    for transport in transports() {
        let lab = Lab::new(transport).await;
        let body = lab.get("/").await.unwrap();
        assert!(body.contains("productpage"), "{transport:?}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn a_port_nothing_listens_on_is_refused() {
    for transport in transports() {
        let lab = Lab::new(transport).await;
        let error = lab.dial(NOTHING).await.unwrap_err();
        assert_eq!(error.refusal(), Refusal::Refused, "{transport:?}: {error}");
        lab.get("/").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn a_half_closed_client_gets_its_slow_answer() {
    for transport in transports() {
        let lab = Lab::new(transport).await;
        let stream = lab.dial(HTTP).await.unwrap();
        let (mut read, mut write) = split(stream);
        write
            .write_all(b"GET /slow?ms=3000 HTTP/1.0\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        let (shut, got) = tokio::join!(write.shutdown(), read.read_to_string(&mut answer));
        shut.unwrap();
        got.unwrap();
        assert!(
            answer.ends_with("slept 3000\n"),
            "{transport:?}: {answer:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn a_half_closed_client_gets_three_hundred_megabytes() {
    const N: u64 = 300_000_000;
    for transport in transports() {
        let lab = Lab::new(transport).await;
        let stream = lab.dial(HTTP).await.unwrap();
        let (mut read, mut write) = split(stream);
        let request = format!("GET /bytes?n={N} HTTP/1.0\r\n\r\n");
        write.write_all(request.as_bytes()).await.unwrap();
        let count = async {
            let (mut n, mut buf) = (0, vec![0; 256 * 1024]);
            loop {
                match read.read(&mut buf).await.unwrap() {
                    0 => break n,
                    more => n += more as u64,
                }
            }
        };
        let (shut, n) = tokio::join!(write.shutdown(), count);
        shut.unwrap();
        assert!(n > N && n < N + 1000, "{transport:?}: {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn a_reset_by_the_pod_is_an_error_of_its_stream_alone() {
    let lab = Lab::new(TransportChoice::Auto).await;
    let mut open = Vec::new();
    for _ in 0..200 {
        let mut stream = lab.dial(ECHO).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
        open.push(stream);
    }
    let mut reset = lab.dial(RESET).await.unwrap();
    reset.write_all(b"x").await.unwrap();
    let error = reset.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    lab.dial(NOTHING).await.unwrap_err();
    sleep(Duration::from_secs(5)).await;
    for stream in &mut open {
        stream.write_all(b"still").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
    }
    assert_eq!(lab.forwarder.stats().wedged, 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn a_thousand_connections_cost_few_upgrades() {
    let lab = Lab::new(TransportChoice::Auto).await;
    for _ in 0..1000 {
        lab.get("/ready").await.unwrap();
    }
    let stats = lab.forwarder.stats();
    assert!(stats.upgrades <= 8, "{stats:?}");
    assert_eq!((stats.evicted, stats.wedged), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn stalled_readers_disturb_nobody() {
    let lab = Lab::new(TransportChoice::Auto).await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut stream = lab.dial(HTTP).await.unwrap();
        stream
            .write_all(b"GET /bytes?n=1000000000 HTTP/1.0\r\n\r\n")
            .await
            .unwrap();
        stream.read_exact(&mut [0; 1]).await.unwrap();
        stalled.push(stream);
    }
    sleep(Duration::from_secs(2)).await;
    for _ in 0..200 {
        let began = Instant::now();
        lab.get("/ready").await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
    }
    assert_eq!(lab.forwarder.stats().stalled, 0);
}

/// Data on a forward that has ended stops a worker of the server for good. The Pod closes while data is on its way
/// to it: what the crate cannot prevent it has to notice.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn a_wedged_session_is_noticed_and_replaced() {
    let lab = Lab::new(TransportChoice::Auto).await;
    let mut lost = Vec::new();
    for _ in 0..20 {
        let mut stream = lab.dial(HTTP).await.unwrap();
        // Not HTTP: the Pod answers 400 and closes, whatever follows.
        stream.write_all(b"x\r\n\r\n").await.unwrap();
        let until = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < until && stream.write_all(b"more").await.is_ok() {
            tokio::task::yield_now().await;
        }
        drop(stream);
        // Whatever became of the session, new connections work.
        let mut gets = JoinSet::new();
        let lab = &lab;
        for _ in 0..5 {
            let dial = lab.dial(HTTP);
            let mut stream = dial.await.unwrap();
            gets.spawn(async move {
                let within = Duration::from_secs(20);
                let got = timeout(within, request(&mut stream, "/ready")).await;
                got.expect("an answer or an error").map(drop)
            });
        }
        lost.extend(gets.join_all().await.into_iter().filter_map(Result::err));
    }
    sleep(Duration::from_secs(5)).await;
    let stats = lab.forwarder.stats();
    assert!(
        stats.wedged + stats.evicted > 0,
        "nothing was provoked: {stats:?}"
    );
    assert!(
        lost.is_empty(),
        "lost to a wedged session: {lost:?} {stats:?}"
    );
}

/// Prints what `docs/decisions/0003-sessions.md` reports. Asserts nothing about time.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster, and a quiet machine"]
#[expect(clippy::print_stderr, reason = "it is there to be read")]
async fn figures() {
    let lab = Lab::new(TransportChoice::Auto).await;
    let began = Instant::now();
    lab.get("/ready").await.unwrap();
    eprintln!(
        "first GET, with an upgrade and an unknown port: {:?}",
        began.elapsed()
    );

    let (dials, gets) = lab.rounds(500).await;
    eprintln!(
        "dial to a good port: {}; with the GET: {}",
        spread(dials),
        spread(gets)
    );

    let mut busy = Vec::new();
    for (what, read) in [("stalled", false), ("reading", true)] {
        for _ in 0..4 {
            let mut stream = lab.dial(HTTP).await.unwrap();
            stream
                .write_all(b"GET /bytes?n=100000000000 HTTP/1.0\r\n\r\n")
                .await
                .unwrap();
            busy.push(tokio::spawn(async move {
                let mut buf = vec![0; 256 * 1024];
                while stream.read(&mut buf).await.is_ok_and(|n| n > 0) {
                    if !read {
                        std::future::pending().await
                    }
                }
            }));
        }
        sleep(Duration::from_secs(2)).await;
        let (_, gets) = lab.rounds(300).await;
        eprintln!("GETs beside four {what} downloads: {}", spread(gets));
        busy.drain(..).for_each(|b| b.abort());
        sleep(Duration::from_secs(3)).await;
    }

    let mut refused = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        lab.dial(NOTHING).await.unwrap_err();
        refused.push(began.elapsed());
    }
    eprintln!("dial to a closed port: {}", spread(refused));
    eprintln!("{:?}", lab.forwarder.stats());

    let lab = Lab::new(TransportChoice::Auto).await;
    let before = resident();
    let mut held = Vec::new();
    let began = Instant::now();
    for _ in 0..2000 {
        let mut stream = lab.dial(ECHO).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
        held.push(stream);
    }
    let each = (resident() - before) / 2000;
    eprintln!(
        "2,000 held: opened in {:?}, {each} bytes each",
        began.elapsed()
    );
    eprintln!("{:?}", lab.forwarder.stats());
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| times[times.len() * percent / 100];
    format!("p50 {:?}, p99 {:?}", at(50), at(99))
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
