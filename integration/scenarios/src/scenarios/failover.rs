//! What is lost, and what is not, when something behind the proxy goes away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::scenario;
use crate::cluster::{client, pods};
use crate::relay::Relay;
use crate::{Context, Curl, Scenario, Socks};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("failover", a_killed_pod_fails_only_its_streams),
        scenario!("failover", connects_succeed_once_the_api_server_is_back),
        scenario!("failover", dead_connections_to_the_api_server_are_replaced),
    ]
}

async fn echoes(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.write_all(b"ping").await?;
    let mut back = [0; 4];
    stream.read_exact(&mut back).await?;
    anyhow::ensure!(&back == b"ping", "{back:?}");
    Ok(())
}

/// The Pod that answers on a connection: its name is the host name in the greeting of port 2525.
async fn greeted(stream: &mut TcpStream) -> anyhow::Result<String> {
    let mut greeting = Vec::new();
    while !greeting.ends_with(b"\r\n") {
        let byte = stream.read_u8().await?;
        greeting.push(byte);
        anyhow::ensure!(greeting.len() < 200, "no greeting: {greeting:?}");
    }
    let text = String::from_utf8(greeting)?;
    Ok(text.split(' ').nth(1).unwrap_or_default().to_owned())
}

/// Two Pods by name, so that each stream's Pod is known; one is deleted.
async fn a_killed_pod_fails_only_its_streams(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let api = client(&kubeconfig).await?;
    let proxy = cx.proxy(&kubeconfig, &[]).await?;
    let mut streams = Vec::new();
    for pod in pods(&api, "default", "productpage").await? {
        let ip = pod.status.and_then(|s| s.pod_ip).unwrap_or_default();
        for _ in 0..5 {
            let mut stream = Socks::connect(proxy.socks, &ip, 2525).await?;
            let name = greeted(&mut stream).await?;
            streams.push((name, stream));
        }
    }
    let victim = streams[0].0.clone();
    anyhow::ensure!(
        streams.iter().any(|(name, _)| *name != victim),
        "one Pod has all the streams"
    );
    Api::<Pod>::namespaced(api, "default")
        .delete(&victim, &kube::api::DeleteParams::default().grace_period(0))
        .await?;
    // Its streams end; only then is it known that the Pod is gone.
    for (name, stream) in &mut streams {
        if *name == victim {
            let _ended = Socks::read_all(stream).await;
        }
    }
    for (name, stream) in &mut streams {
        if *name != victim {
            echoes(stream).await?;
        }
    }
    // A new connection goes to a replica that lives.
    for _ in 0..10 {
        let answer = Curl::get(proxy.socks, "http://productpage:9080/")
            .await?
            .json()?;
        anyhow::ensure!(
            answer["hostname"] != victim.as_str(),
            "the deleted Pod answered: {answer}"
        );
    }
    Ok(())
}

/// Clients that go on connecting while the API server is away: each gets an answer or a refusal, and the very
/// process that was there before serves again.
async fn connects_succeed_once_the_api_server_is_back(cx: Context) -> anyhow::Result<()> {
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (socks, stop, answered) = (proxy.socks, stop.clone(), answered.clone());
        clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                if let Ok(mut stream) = Socks::connect(socks, "multi", 7007).await {
                    if echoes(&mut stream).await.is_ok() {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                } else {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    let more = async |than: usize| {
        while answered.load(Ordering::Relaxed) <= than {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::proxy::PATIENCE, more(50)).await?;
    cx.cluster.stop_api().await?;
    cx.cluster.start_api().await?;
    let now = answered.load(Ordering::Relaxed);
    let again = tokio::time::timeout(crate::proxy::PATIENCE, more(now + 50)).await;
    stop.store(true, Ordering::Relaxed);
    while clients.join_next().await.is_some() {}
    anyhow::ensure!(
        again.is_ok(),
        "no connection succeeds after the restart: {}",
        proxy.log()
    );
    Ok(())
}

/// Bytes stop passing on every connection there is, and nothing is closed: a NAT that forgot, a laptop that slept.
async fn dead_connections_to_the_api_server_are_replaced(cx: Context) -> anyhow::Result<()> {
    let relay = Relay::start(&cx.cluster.kubeconfig()).await?;
    let proxy = cx.proxy(relay.kubeconfig(), &[]).await?;
    let mut old = Socks::connect(proxy.socks, "multi", 7007).await?;
    echoes(&mut old).await?;
    for _ in 0..5 {
        Curl::get(proxy.socks, "http://productpage:9080/")
            .await?
            .json()?;
    }
    relay.forget_connections();
    // The first may be refused, when its dial timeout runs out before the silence is noticed; none may hang longer.
    let mut attempts = 0;
    loop {
        attempts += 1;
        let fresh = Curl::get(proxy.socks, "http://productpage:9080/").await?;
        if fresh.code == 0 {
            break;
        }
        anyhow::ensure!(
            attempts < 5,
            "still refused: {}\n{}",
            fresh.message,
            proxy.log()
        );
    }
    // The stream that was on a dead session is told.
    old.write_all(b"ping").await?;
    let _ended = Socks::read_all(&mut old).await;
    Ok(())
}
