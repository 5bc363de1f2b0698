//! The crate's promises, for any cluster whose Pods labelled `app=productpage` run the echo program of `integration/lab`:
//! the simulation and a real cluster.

use std::io;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, Config, ResourceExt as _};
use kubevpn_client::{Options, build};
use kubevpn_portforward::{
    ForwardError, Forwarder, PodPort, PodStream, Transport, TransportChoice,
};
use kubevpn_target::Refusal;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;

pub(crate) const HTTP: u16 = 9080;
pub(crate) const ECHO: u16 = 7007;
pub(crate) const RESET: u16 = 7666;
pub(crate) const NOTHING: u16 = 9999;

pub(crate) struct Lab {
    pub(crate) forwarder: Forwarder,
    pub(crate) pod: PodPort,
}

impl Lab {
    pub(crate) async fn new(cluster: &Config, transport: TransportChoice) -> Self {
        let config = kubevpn_portforward::Config {
            transport,
            ..Default::default()
        };
        Self::with(cluster, config).await
    }

    pub(crate) async fn with(cluster: &Config, config: kubevpn_portforward::Config) -> Self {
        let client = build(cluster.clone(), &Options::new("kubevpn-test")).unwrap();
        let pod = pod(client.clone()).await;
        let forwarder = Forwarder::new(client, config);
        Self { forwarder, pod }
    }

    pub(crate) async fn dial(&self, port: u16) -> Result<PodStream, ForwardError> {
        let to = PodPort {
            port,
            ..self.pod.clone()
        };
        self.forwarder.clone().oneshot(to).await
    }

    /// One request on a connection of its own, which is then closed.
    pub(crate) async fn get(&self, path: &str) -> io::Result<String> {
        let mut stream = self.dial(HTTP).await.map_err(io::Error::other)?;
        let body = request(&mut stream, path).await?;
        close(stream);
        Ok(body)
    }
}

/// Ends the client's side, and reads the rest, as a relay does.
pub(crate) fn close(stream: PodStream) {
    tokio::spawn(async move {
        let (mut read, mut write) = split(stream);
        let mut rest = Vec::new();
        let _ = tokio::join!(write.shutdown(), read.read_to_end(&mut rest));
    });
}

pub(crate) async fn pod(client: Client) -> PodPort {
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
pub(crate) async fn request(stream: &mut PodStream, path: &str) -> io::Result<String> {
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

pub(crate) fn transports() -> impl Iterator<Item = TransportChoice> {
    Transport::ALL.into_iter().map(TransportChoice::Only)
}

pub(crate) async fn every_transport_carries_a_request(cluster: &Config) {
    for transport in transports() {
        let lab = Lab::new(cluster, transport).await;
        let body = lab.get("/").await.unwrap();
        assert!(body.contains("productpage"), "{transport:?}: {body}");
    }
}

pub(crate) async fn a_port_nothing_listens_on_is_refused(cluster: &Config) {
    for transport in transports() {
        let lab = Lab::new(cluster, transport).await;
        let error = lab.dial(NOTHING).await.unwrap_err();
        assert_eq!(error.refusal(), Refusal::Refused, "{transport:?}: {error}");
        lab.get("/").await.unwrap();
    }
}

pub(crate) async fn a_half_closed_client_gets_its_slow_answer(cluster: &Config) {
    for transport in transports() {
        let lab = Lab::new(cluster, transport).await;
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

pub(crate) async fn a_half_closed_client_gets_all_of_a_large_answer(cluster: &Config, n: u64) {
    for transport in transports() {
        let lab = Lab::new(cluster, transport).await;
        let stream = lab.dial(HTTP).await.unwrap();
        let (mut read, mut write) = split(stream);
        let request = format!("GET /bytes?n={n} HTTP/1.0\r\n\r\n");
        write.write_all(request.as_bytes()).await.unwrap();
        let count = async {
            let (mut got, mut buf) = (0, vec![0; 256 * 1024]);
            loop {
                match read.read(&mut buf).await.unwrap() {
                    0 => break got,
                    more => got += more as u64,
                }
            }
        };
        let (shut, got) = tokio::join!(write.shutdown(), count);
        shut.unwrap();
        assert!(got > n && got < n + 1000, "{transport:?}: {got}");
    }
}

pub(crate) async fn a_reset_by_the_pod_is_an_error_of_its_stream_alone(cluster: &Config) {
    let lab = Lab::new(cluster, TransportChoice::Auto).await;
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
    // The node reports ends 1 s late.
    sleep(Duration::from_secs(5)).await;
    for stream in &mut open {
        stream.write_all(b"still").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
    }
    assert_eq!(lab.forwarder.stats().wedged, 0);
}

pub(crate) async fn a_thousand_connections_cost_few_upgrades(cluster: &Config) {
    let lab = Lab::new(cluster, TransportChoice::Auto).await;
    for _ in 0..1000 {
        lab.get("/ready").await.unwrap();
    }
    let stats = lab.forwarder.stats();
    assert!(stats.upgrades <= 8, "{stats:?}");
    assert_eq!((stats.evicted, stats.wedged), (0, 0));
}

pub(crate) async fn stalled_readers_disturb_nobody(cluster: &Config) {
    let lab = Lab::new(cluster, TransportChoice::Auto).await;
    let mut stalled = Vec::new();
    for n in 1..=4 {
        let mut stream = lab.dial(HTTP).await.unwrap();
        stream
            .write_all(b"GET /bytes?n=1000000000 HTTP/1.0\r\n\r\n")
            .await
            .unwrap();
        stream.read_exact(&mut [0; 1]).await.unwrap();
        stalled.push(stream);
        // A session may be shared until it is noticed that its client does not read. What was read of a piece, and what small
        // pieces cost beyond their bytes, counts towards the bound of 512 KiB as well.
        let held_up = async {
            while lab.forwarder.stats().unread < n * 511 * 1024 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let held_up = timeout(Duration::from_secs(60), held_up).await;
        assert!(held_up.is_ok(), "{n} fill it: {:?}", lab.forwarder.stats());
    }
    for _ in 0..200 {
        let got = timeout(Duration::from_secs(60), lab.get("/ready")).await;
        got.expect("it waits for nobody").unwrap();
    }
    // No connection had to be reset.
    assert_eq!(lab.forwarder.stats().stalled, 0);
}
