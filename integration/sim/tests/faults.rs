//! What goes wrong on command, and that it goes right again.

mod common;

use std::time::Duration;

use common::{SPDY, ask, h1, h2, portforward, refusal, within};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{ListParams, WatchParams};
use kube::{Api, Client};
use kubevpn_sim::{FaultAnswer, Match, Sim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

async fn sample() -> Sim {
    Sim::builder().plain().sample().start().await.unwrap()
}

fn address(sim: &Sim) -> String {
    let url = sim.server_url();
    url.split_once("//").unwrap().1.to_owned()
}

#[tokio::test]
async fn the_api_server_goes_away_and_comes_back() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(h2(&sim));
    pods.get("db-0").await.unwrap();
    for _ in 0..3 {
        sim.faults().go_away();
        assert_eq!(sim.connections(), 0);
        assert!(sim.connect().is_none());
        let refused = TcpStream::connect(address(&sim)).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(pods.get("db-0").await.is_err());
        sim.faults().come_back().unwrap();
        pods.get("db-0").await.unwrap();
    }
    // Told to end, it lets those go on that it has.
    let mut io = TcpStream::connect(address(&sim)).await.unwrap();
    within(pods.get("db-0")).await.unwrap();
    sim.faults().stop_listening();
    pods.get("db-0").await.unwrap();
    TcpStream::connect(address(&sim)).await.unwrap_err();
    sim.faults().clear().unwrap();
    TcpStream::connect(address(&sim)).await.unwrap();
    io.shutdown().await.unwrap();
}

#[tokio::test]
async fn connections_are_reset() {
    let sim = sample().await;
    let mut io = TcpStream::connect(address(&sim)).await.unwrap();
    io.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut head = [0; 12];
    io.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    assert_eq!(sim.faults().reset_connections(), 1);
    let mut rest = Vec::new();
    let error = within(io.read_to_end(&mut rest)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(sim.faults().reset_connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn bytes_stop_and_flow_again() {
    let sim = sample().await;
    let mut io = sim.connect().unwrap();
    sim.faults().black_hole(true);
    io.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut head = [0; 12];
    let patience = Duration::from_secs(3600);
    let silence = tokio::time::timeout(patience, io.read_exact(&mut head)).await;
    assert!(silence.is_err(), "{head:?}");
    let mut other = sim.connect().unwrap();
    other
        .write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    assert!(
        tokio::time::timeout(patience, other.read(&mut [0]))
            .await
            .is_err()
    );
    sim.faults().black_hole(false);
    io.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");

    // A NAT that forgets: only those that are open.
    let (answer, mut old) = ask(sim.connect().unwrap(), "GET", "/readyz", &[]).await;
    assert_eq!(answer.body, "ok");
    sim.faults().black_hole_open(true);
    old.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let silence = tokio::time::timeout(patience, old.read(&mut [0])).await;
    assert!(silence.is_err());
    let (answer, _) = ask(sim.connect().unwrap(), "GET", "/readyz", &[]).await;
    assert_eq!(answer.body, "ok");
    sim.faults().clear().unwrap();
    old.read_exact(&mut head).await.unwrap();
}

#[tokio::test]
async fn requests_get_other_answers() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let faults = sim.faults();
    let pods: Api<Pod> = Api::default_namespaced(h1(&sim));
    let services: Api<Service> = Api::default_namespaced(h1(&sim));
    let gets = || Match::any().verb("get").resource("pods");
    for (answer, code) in [
        (FaultAnswer::Unauthorized, 401),
        (FaultAnswer::Forbidden, 403),
        (FaultAnswer::Gone, 410),
        (FaultAnswer::InternalError, 500),
    ] {
        let id = faults.answer(gets().name("db-0"), answer);
        assert_eq!(refusal(pods.get("db-0").await).0, code);
        pods.get("db-1").await.unwrap();
        services.get("db").await.unwrap();
        faults.remove(id);
        pods.get("db-0").await.unwrap();
    }
    let forbidden = faults.answer(gets(), FaultAnswer::Forbidden);
    let (_, message) = refusal(pods.get("db-0").await);
    assert_eq!(
        message,
        "pods \"db-0\" is forbidden: User \"kubernetes-admin\" cannot get resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    faults.remove(forbidden);
    // A number of times.
    faults.answer_times(
        Match::any().resource("services").namespace("default"),
        FaultAnswer::Forbidden,
        2,
    );
    assert_eq!(refusal(services.get("db").await).0, 403);
    assert_eq!(refusal(services.list(&ListParams::default()).await).0, 403);
    services.get("db").await.unwrap();
    // A watch that cannot start where it wants to.
    faults.answer(Match::any().verb("watch"), FaultAnswer::Gone);
    let watch = services.watch(&WatchParams::default(), "0").await;
    assert_eq!(refusal(watch.map(|_| ())).0, 410);
    let codes: Vec<u16> = sim.requests().iter().map(|r| r.code).collect();
    assert_eq!(codes.iter().filter(|c| **c != 200).count(), 8);
}

#[tokio::test]
async fn answers_that_do_not_come() {
    let sim = sample().await;
    let client = Client::try_from(sim.config()).unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client);
    sim.faults()
        .answer_times(Match::any().name("db-0"), FaultAnswer::Drop, 1);
    let (code, user) = {
        assert!(!matches!(
            pods.get("db-0").await.unwrap_err(),
            kube::Error::Api(_)
        ));
        let request = sim.requests().remove(0);
        (request.code, request.user)
    };
    assert_eq!((code, &*user), (0, "kubernetes-admin"));
    // Too many requests, and what to do about it.
    sim.faults()
        .answer_times(Match::any(), FaultAnswer::TooManyRequests, 1);
    let (answer, _) = ask(sim.connect().unwrap(), "GET", "/api/v1/pods", &[]).await;
    assert_eq!(
        (&*answer.status, answer.header("retry-after")),
        ("429 Too Many Requests", Some("1"))
    );
    sim.faults()
        .answer_times(Match::any(), FaultAnswer::Unavailable, 1);
    let (answer, _) = ask(sim.connect().unwrap(), "GET", "/api/v1/pods", &[]).await;
    assert_eq!(answer.status, "503 Service Unavailable");
}

#[tokio::test(start_paused = true)]
async fn answers_that_come_late() {
    let sim = sample().await;
    let upgrades = || Match::any().resource("pods").subresource("portforward");
    let delay = Duration::from_secs(7);
    sim.faults()
        .answer_times(upgrades(), FaultAnswer::Delay(delay), 1);
    let start = Instant::now();
    let path = portforward("db-0");
    let (answer, _io) = ask(sim.connect().unwrap(), "POST", &path, &SPDY).await;
    assert_eq!(answer.status, "101 Switching Protocols");
    assert_eq!(start.elapsed(), delay);
    sim.faults().answer_times(upgrades(), FaultAnswer::Hang, 1);
    let hang = ask(sim.connect().unwrap(), "POST", &path, &SPDY);
    let patience = Duration::from_secs(3600);
    assert!(tokio::time::timeout(patience, hang).await.is_err());
}

#[tokio::test]
async fn nothing_is_left_of_it() {
    let sim = sample().await;
    let pods: Api<Pod> = Api::default_namespaced(Client::try_from(sim.config()).unwrap());
    let watch = pods.watch(&WatchParams::default(), "0").await.unwrap();
    let path = portforward("db-0");
    let (_, mut io) = ask(
        TcpStream::connect(address(&sim)).await.unwrap(),
        "POST",
        &path,
        &SPDY,
    )
    .await;
    assert_eq!(sim.sessions().len(), 1);
    let address = address(&sim);
    within(sim.shutdown()).await;
    assert!(TcpStream::connect(address).await.is_err());
    let error = within(io.read(&mut [0; 8])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    drop(watch);
}
