//! What is lost, and what is not, when something behind the proxy goes away.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::scenario;
use crate::cluster::{client, pods};
use crate::load::Load;
use crate::proxy::PATIENCE;
use crate::relay::TestRelay;
use crate::space::until;
use crate::{Context, Curl, Scenario, Socks};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("failover", a_killed_pod_fails_only_its_streams),
        scenario!("failover", a_pod_that_left_its_service_keeps_its_streams),
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

/// Streams to every Pod of `productpage` by its address, so that each stream's Pod is known by name.
async fn streams_by_pod(
    api: &kube::Client,
    socks: SocketAddr,
) -> anyhow::Result<Vec<(String, TcpStream)>> {
    // Another scenario may have ended one of them a moment ago.
    let both = until("two ready Pods of productpage", async || {
        let mut running = pods(api, "default", "productpage").await?;
        running.retain(is_ready);
        Ok((running.len() > 1).then_some(running))
    });
    let mut streams = Vec::new();
    for pod in both.await? {
        let ip = pod.status.and_then(|s| s.pod_ip).unwrap_or_default();
        for _ in 0..5 {
            let mut stream = Socks::connect(socks, &ip, 2525).await?;
            let name = greeted(&mut stream).await?;
            streams.push((name, stream));
        }
    }
    let (first, _) = streams.first().context("no Pod of productpage runs")?;
    anyhow::ensure!(
        streams.iter().any(|(name, _)| name != first),
        "one Pod has all the streams"
    );
    Ok(streams)
}

/// The Pod that a new connection to `productpage` reaches.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

async fn answering(socks: SocketAddr) -> anyhow::Result<String> {
    let answer = Curl::get(socks, "http://productpage:9080/").await?.json()?;
    Ok(answer["hostname"].as_str().unwrap_or_default().to_owned())
}

/// One of two Pods is deleted while clients go on connecting.
async fn a_killed_pod_fails_only_its_streams(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let api = client(&kubeconfig).await?;
    let proxy = cx.proxy(&kubeconfig, &[]).await?;
    let mut streams = streams_by_pod(&api, proxy.socks).await?;
    let victim = streams[0].0.clone();
    let load = Load::start(proxy.socks, "productpage", 9080);
    load.more(50).await?;
    Api::<Pod>::namespaced(api, "default")
        .delete(&victim, &DeleteParams::default().grace_period(0))
        .await?;
    // Its streams end; only then is it known that the Pod is gone.
    for (name, stream) in &mut streams {
        if *name == victim {
            let _ended = Socks::read_all(stream).await;
        }
    }
    let gone = Instant::now();
    let next = answering(proxy.socks).await?;
    let took = gone.elapsed();
    anyhow::ensure!(next != victim, "the deleted Pod answered");
    for (name, stream) in &mut streams {
        if *name != victim {
            echoes(stream).await?;
        }
    }
    for _ in 0..10 {
        let next = answering(proxy.socks).await?;
        anyhow::ensure!(next != victim, "the deleted Pod answered");
    }
    load.more(50).await?;
    let (answered, failed) = load.end().await;
    cx.measured(format_args!(
        "a new connection on another Pod {took:?} after the first one's streams had ended; \
         beside it {answered} connections answered, {failed} lost"
    ));
    // What was under way when the Pod ended is lost with it.
    anyhow::ensure!(failed < answered / 2, "{failed} lost, {answered} answered");
    Ok(())
}

/// A Pod that no longer serves: readiness and labels decide alike, by the EndpointSlice.
async fn a_pod_that_left_its_service_keeps_its_streams(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let api = client(&kubeconfig).await?;
    let proxy = cx.proxy(&kubeconfig, &[]).await?;
    let mut streams = streams_by_pod(&api, proxy.socks).await?;
    let left = streams[0].0.clone();
    let pods = Api::<Pod>::namespaced(api, "default");
    let patch = serde_json::json!({ "metadata": { "labels": { "app": "productpage-left" } } });
    pods.patch(&left, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    // The slice follows, then the proxy; from then on the Pod is not chosen again.
    let mut in_a_row = 0;
    let settled = tokio::time::timeout(PATIENCE, async {
        while in_a_row < 20 {
            match answering(proxy.socks).await? == left {
                true => in_a_row = 0,
                false => in_a_row += 1,
            }
        }
        anyhow::Ok(())
    });
    settled.await.context("the Pod is still chosen")??;
    for _ in 0..50 {
        let next = answering(proxy.socks).await?;
        anyhow::ensure!(next != left, "a Pod that had left was chosen");
    }
    for (_, stream) in &mut streams {
        echoes(stream).await?;
    }
    pods.delete(&left, &DeleteParams::default().grace_period(0))
        .await?;
    Ok(())
}

/// Clients that go on connecting while the API server is away: each gets an answer or a refusal, and the very
/// process that was there before serves again.
async fn connects_succeed_once_the_api_server_is_back(cx: Context) -> anyhow::Result<()> {
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let load = Load::start(proxy.socks, "multi", 80);
    load.more(50).await?;
    cx.cluster.stop_api().await?;
    cx.cluster.start_api().await?;
    let back = Instant::now();
    let again = async {
        load.more(1).await?;
        let first = back.elapsed();
        load.more(50).await?;
        anyhow::Ok(first)
    };
    let first = again.await.with_context(|| proxy.log())?;
    let (answered, failed) = load.end().await;
    cx.measured(format_args!(
        "the first connection {first:?} after the API server answered again; {answered} connections answered, \
         {failed} refused or cut while it was away"
    ));
    proxy.pid()?;
    Ok(())
}

/// Bytes stop passing on every connection there is, and nothing is closed: a NAT that forgot, a laptop that slept.
async fn dead_connections_to_the_api_server_are_replaced(cx: Context) -> anyhow::Result<()> {
    /// What `proxy-out` gives a dial, and room for a busy machine.
    const DIAL: Duration = Duration::from_secs(30 + 10);
    let relay = TestRelay::start(&cx.cluster.kubeconfig()).await?;
    let proxy = cx.proxy(relay.kubeconfig(), &[]).await?;
    let mut old = Socks::connect(proxy.socks, "multi", 7007).await?;
    echoes(&mut old).await?;
    for _ in 0..5 {
        answering(proxy.socks).await?;
    }
    relay.forget_connections();
    let dead = Instant::now();
    old.write_all(b"ping").await?;
    let told = async {
        // The stream that was on a dead session is told.
        let _ended = Socks::read_all(&mut old).await;
        dead.elapsed()
    };
    let replaced = async {
        // The first may be refused, when its dial timeout runs out before the silence is noticed; none may hang
        // longer.
        for _ in 0..5 {
            let asked = Instant::now();
            let fresh = Curl::get(proxy.socks, "http://productpage:9080/").await?;
            anyhow::ensure!(asked.elapsed() < DIAL, "it took {:?}", asked.elapsed());
            if fresh.code == 0 {
                return Ok(dead.elapsed());
            }
        }
        anyhow::bail!("still refused: {}", proxy.log())
    };
    let (told, replaced) = tokio::join!(told, replaced);
    let replaced = replaced?;
    cx.measured(format_args!(
        "every connection to the API server dead: a new one through after {replaced:?}, an open one told after {told:?}"
    ));
    Ok(())
}
