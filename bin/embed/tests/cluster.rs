//! The library on the simulation.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use kubevpn_embed::{Cluster, ConnectError, LocalPortError, Refusal, Target};
use kubevpn_sim::Sim;
use kubevpn_target::Origin;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::{ServiceBuilder, ServiceExt as _};

/// Time limit; a test that reaches it hangs.
const LIMIT: Duration = Duration::from_secs(30);

async fn start() -> (Sim, Cluster) {
    let sim = Sim::builder().sample().start().await.unwrap();
    let cluster = Cluster::builder().build_from(sim.config()).unwrap();
    (sim, cluster)
}

/// Sends a GET with `Connection: close`, and returns the complete answer.
async fn get(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), target: &str) -> String {
    let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = timeout(LIMIT, stream.read_to_string(&mut answer)).await;
    read.expect("it hangs").unwrap();
    answer
}

fn is_of(answer: &str, service: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 ") && answer.contains(&format!(r#""service":"{service}""#))
}

#[tokio::test]
async fn stream_leads_to_a_pod_and_outlives_its_cluster() {
    let (_sim, cluster) = start().await;
    let mut stream = cluster.connect("productpage:9080").await.unwrap();
    drop(cluster);
    let via = stream.via().to_string();
    assert!(via.starts_with("default/productpage-"), "{via}");
    let answer = get(&mut stream, "/").await;
    assert!(is_of(&answer, "productpage"), "{answer}");
}

#[tokio::test]
async fn errors_have_their_class() {
    let (_sim, cluster) = start().await;
    for (target, refusal) in [
        ("nothing:80", Refusal::NameNotFound),
        ("productpage:81", Refusal::NoSuchPort),
        ("notready:80", Refusal::NotReady),
        ("multi:9999", Refusal::Refused),
        ("productpage", Refusal::NameNotFound),
    ] {
        let error = cluster.connect(target).await.unwrap_err();
        assert_eq!(error.refusal(), refusal, "{target}: {error}");
    }
    let error = cluster.connect("productpage").await.unwrap_err();
    assert!(error.to_string().contains("write host:port"), "{error}");
}

#[tokio::test]
async fn namespace_and_patience_are_the_builders() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let cluster = Cluster::builder()
        .namespace("team-a")
        .wait_ready(LIMIT)
        .build_from(sim.config())
        .unwrap();
    let mut stream = cluster.connect("api:80").await.unwrap();
    assert!(stream.via().to_string().starts_with("team-a/api-"));
    assert!(is_of(&get(&mut stream, "/").await, "api"));

    let pods = sim.list("Pod", "default");
    let mut names = pods
        .iter()
        .filter_map(|pod| pod["metadata"]["name"].as_str());
    let pod = names.find(|name| name.starts_with("notready-")).unwrap();
    let waiting = cluster.connect("notready.default:80");
    let (stream, ()) = tokio::join!(waiting, async {
        // The Service has been looked up, and is not ready.
        while !sim.requests().iter().any(|r| r.uri.contains("notready")) {
            tokio::task::yield_now().await;
        }
        sim.set_ready("default", pod, true).unwrap();
    });
    assert!(stream.unwrap().via().to_string().contains("notready"));
}

#[tokio::test]
async fn connector_is_one_of_hypers_client() {
    let (_sim, cluster) = start().await;
    let client = Client::builder(TokioExecutor::new()).build(cluster.connector());
    let get = async |uri: &str| {
        let request = http::Request::get(uri).body(Empty::<&[u8]>::new()).unwrap();
        let answer = timeout(LIMIT, client.request(request)).await;
        let answer = answer.expect("it hangs")?;
        let body = answer.into_body().collect().await?.to_bytes();
        Ok::<_, Box<dyn std::error::Error>>(String::from_utf8_lossy(&body).into_owned())
    };
    for (uri, service) in [
        (
            "http://productpage.default.svc.cluster.local:9080/",
            "productpage",
        ),
        ("http://reviews/", "reviews"),
        ("http://reviews/", "reviews"),
    ] {
        let body = get(uri).await.unwrap();
        assert!(
            body.contains(&format!(r#""service":"{service}""#)),
            "{uri}: {body}"
        );
    }
    let error = get("http://nothing/").await.unwrap_err();
    let mut causes = std::iter::successors(error.source(), |cause| cause.source());
    let refusal = causes.find_map(|cause| cause.downcast_ref::<ConnectError>());
    let refusal = refusal.map(ConnectError::refusal);
    assert_eq!(refusal, Some(Refusal::NameNotFound));
}

/// A layer that counts dials.
#[tokio::test]
async fn layer_of_ones_own_goes_around_the_connector() {
    let (_sim, cluster) = start().await;
    let allowed = Target::parse("productpage:9080", Origin::default()).unwrap();
    let connect = ServiceBuilder::new()
        .filter(move |target: Target| match target == allowed {
            true => Ok(target),
            false => Err(ConnectError::new(Refusal::Denied, "not on the list")),
        })
        .service(cluster.connector());
    let to = |target| Target::parse(target, Origin::default()).unwrap();
    let stream = connect.clone().oneshot(to("productpage:9080")).await;
    assert!(stream.is_ok());
    let error = connect.oneshot(to("reviews:80")).await.unwrap_err();
    assert_eq!(error.to_string(), "not on the list");
}

// === ports ===

/// Whether the connection has ended, also by a reset.
async fn is_cut(mut client: TcpStream) -> bool {
    let read = timeout(LIMIT, client.read(&mut [0; 16])).await;
    matches!(read.expect("it is open"), Ok(0) | Err(_))
}

/// Waits until nothing listens on the address.
async fn is_closed(addr: SocketAddr) -> bool {
    let refused = async {
        while TcpStream::connect(addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, refused).await.is_ok()
}

#[tokio::test]
async fn port_leads_to_the_target_until_it_is_dropped() {
    let (_sim, cluster) = start().await;
    let port = cluster.forward("multi:7007").await.unwrap();
    // The port works without the `Cluster`.
    drop(cluster);
    let addr = port.addr();
    assert!(addr.ip().is_loopback() && addr.port() != 0);
    assert_eq!(port.to_string(), addr.to_string());
    let mut clients = Vec::new();
    for said in [b"one", b"two"] {
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(said).await.unwrap();
        let mut heard = [0; 3];
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, said);
        clients.push(client);
    }
    drop(port);
    for client in clients {
        assert!(is_cut(client).await);
    }
    assert!(is_closed(addr).await);
}

#[tokio::test]
async fn port_that_was_closed_is_free_at_once() {
    let (_sim, cluster) = start().await;
    let port = cluster.forward("multi:7007").await.unwrap();
    let addr = port.addr();
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x');
    port.close().await;
    assert!(TcpStream::connect(addr).await.is_err());
    assert!(is_cut(client).await);
    let again = cluster.forward_on(addr, "multi:7007").await.unwrap();
    assert_eq!(again.addr(), addr);
    let error = cluster.forward_on(addr, "multi:7007").await.unwrap_err();
    assert!(matches!(error, LocalPortError::Bind(_)), "{error}");
}

#[tokio::test]
async fn an_invalid_target_is_an_error_and_a_missing_one_resets_clients() {
    let (_sim, cluster) = start().await;
    let error = cluster.forward("multi").await.unwrap_err();
    assert_eq!(error.to_string(), r#""multi" names no target"#);
    let port = cluster.forward("nothing:80").await.unwrap();
    let client = TcpStream::connect(port.addr()).await.unwrap();
    assert!(is_cut(client).await);
}

#[tokio::test]
async fn proxy_tunnels_and_forwards() {
    let (_sim, cluster) = start().await;
    let proxy = cluster.http_proxy().await.unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let answer = get(&mut client, "http://reviews/").await;
    assert!(is_of(&answer, "reviews"), "{answer}");

    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let ask = b"CONNECT productpage:9080 HTTP/1.1\r\nHost: productpage:9080\r\n\r\n";
    client.write_all(ask).await.unwrap();
    let said = b"HTTP/1.1 200 OK\r\n\r\n";
    let mut head = [0; 19];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, said);
    let answer = get(&mut client, "/").await;
    assert!(is_of(&answer, "productpage"), "{answer}");

    let addr = proxy.addr();
    proxy.close().await;
    assert!(TcpStream::connect(addr).await.is_err());
}
