//! How the program lives: clients that vanish, an API server that goes and comes back, the end.

use std::time::Duration;

use super::scenario;
use crate::proxy::PATIENCE;
use crate::{Context, Curl, Scenario, Socks};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("life", clients_that_vanish_leave_nothing),
        scenario!("life", the_api_server_goes_and_comes_back),
        scenario!("life", it_ends_when_told),
    ]
}

/// Until `enough` says so; what was seen last is in the error.
async fn settles(
    what: &str,
    mut now: impl AsyncFnMut() -> anyhow::Result<usize>,
    limit: usize,
) -> anyhow::Result<()> {
    let mut seen = usize::MAX;
    let settled = tokio::time::timeout(PATIENCE, async {
        loop {
            seen = now().await?;
            if seen <= limit {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    match settled {
        Ok(result) => result,
        Err(_) => anyhow::bail!("{what}: still {seen}, expected at most {limit}"),
    }
}

/// The Pod's port is silent: nothing but our own bound ends these connections.
async fn clients_that_vanish_leave_nothing(cx: Context) -> anyhow::Result<()> {
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let round = async |count: usize| {
        for _ in 0..count / 50 {
            let mut clients = tokio::task::JoinSet::new();
            for _ in 0..50 {
                let socks = proxy.socks;
                clients.spawn(async move { Socks::connect(socks, "multi", 7007).await.map(drop) });
            }
            while let Some(done) = clients.join_next().await {
                done??;
            }
        }
        anyhow::Ok(())
    };
    // What is kept on purpose (a session, caches) is there after a first round. The slack is for what a runtime opens
    // for itself meanwhile; one leaked client in a hundred would be 40 descriptors at the node.
    const SLACK: usize = 16;
    let at_node = cx.cluster.forwards_at_node().await? + SLACK;
    round(100).await?;
    settles(
        "descriptors at the node",
        async || cx.cluster.forwards_at_node().await,
        at_node,
    )
    .await?;
    let descriptors = proxy.descriptors()?;
    round(1000).await?;
    settles(
        "descriptors at the node",
        async || cx.cluster.forwards_at_node().await,
        at_node,
    )
    .await?;
    settles("descriptors", async || proxy.descriptors(), descriptors).await?;
    Curl::get(proxy.socks, "http://productpage:9080/")
        .await?
        .json()?;
    Ok(())
}

async fn the_api_server_goes_and_comes_back(cx: Context) -> anyhow::Result<()> {
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    Curl::get(proxy.socks, "http://productpage:9080/")
        .await?
        .json()?;
    cx.cluster.stop_api().await?;
    // A Service not asked for before, so that no answer of earlier helps.
    let away = Curl::get(proxy.socks, "http://reviews/").await;
    cx.cluster.start_api().await?;
    away?.refused_with(3)?;
    proxy.logged(&["cluster_away"]).await?;
    Curl::get(proxy.socks, "http://reviews/").await?.json()?;
    Curl::get(proxy.socks, "http://productpage:9080/")
        .await?
        .json()?;
    Ok(())
}

/// SIGTERM is a clean end, Ctrl-C is 130; an open connection does not hold either up for ever.
async fn it_ends_when_told(cx: Context) -> anyhow::Result<()> {
    for (signal, code) in [("TERM", 0), ("INT", 130)] {
        let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
        let socks = proxy.socks;
        let mut open = Socks::connect(socks, "multi", 7007).await?;
        let ended = proxy.stop(signal).await?;
        anyhow::ensure!(
            ended.code() == Some(code),
            "after {signal} it ended with {ended}"
        );
        let _cut = Socks::read_all(&mut open).await;
        anyhow::ensure!(
            tokio::net::TcpStream::connect(socks).await.is_err(),
            "something still listens on {socks}"
        );
    }
    Ok(())
}
