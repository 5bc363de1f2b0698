//! How the program lives: clients that vanish, an API server that goes and comes back, the end.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::http as proxies;
use super::scenario;
use crate::proxy::PATIENCE;
use crate::{Context, Curl, Scenario, Socks, TunnelClient};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("life", clients_that_vanish_leave_nothing),
        scenario!("life", the_api_server_goes_and_comes_back),
        scenario!("life", it_ends_when_told),
        scenario!("life", clients_that_closed_hold_no_place, One),
        scenario!("life", a_killed_transfer_is_reset, One),
    ]
}

/// Until `enough` says so; what was seen last is in the error.
pub(super) async fn settles(
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

/// The Pod's port is silent: nothing but our own bound ends those that were through and said their end.
async fn clients_that_vanish_leave_nothing(cx: Context) -> anyhow::Result<()> {
    let clients = cx.size(1000, 10_000);
    let (proxy, http) = proxies::start(&cx).await?;
    let round = async |count: usize| {
        for first in (0..count).step_by(50) {
            let mut clients = tokio::task::JoinSet::new();
            for n in first..first + 50 {
                clients.spawn(vanish(n, proxy.socks, http));
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
    let (descriptors, memory) = (proxy.descriptors()?, proxy.memory()?);
    round(clients).await?;
    settles(
        "descriptors at the node",
        async || cx.cluster.forwards_at_node().await,
        at_node,
    )
    .await?;
    settles("descriptors", async || proxy.descriptors(), descriptors).await?;
    // An allocator gives back what it likes; a kilobyte left by each of ten thousand would be 10 MiB.
    const KEPT: usize = 16 << 20;
    settles("memory", async || proxy.memory(), memory + KEPT).await?;
    let after = (proxy.descriptors()?, proxy.memory()? / 1024);
    let before = (descriptors, memory / 1024);
    cx.measured(format_args!(
        "{clients} clients: descriptors and KiB resident {before:?} before, {after:?} after"
    ));
    Curl::get(proxy.socks, "http://productpage:9080/")
        .await?
        .json()?;
    Ok(())
}

/// One client, of each frontend in turn: gone before a byte, in mid-handshake, once through by its end, once through
/// by a reset.
async fn vanish(n: usize, socks: SocketAddr, http: SocketAddr) -> anyhow::Result<()> {
    let is_socks = n.is_multiple_of(2);
    let (proxy, half) = match is_socks {
        true => (socks, &b"\x05\x02\x00"[..]),
        false => (http, &b"CONNECT multi:7007 HT"[..]),
    };
    let through = async || match is_socks {
        true => Socks::connect(socks, "multi", 7007).await,
        false => TunnelClient::connect(http, "multi", 7007).await,
    };
    match n / 2 % 4 {
        0 => drop(TcpStream::connect(proxy).await?),
        1 => TcpStream::connect(proxy).await?.write_all(half).await?,
        2 => drop(through().await?),
        _ => through().await?.set_zero_linger()?,
    }
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

/// One after another under a limit of one. Held for the 30 s of a half-close, five would take longer than the patience.
async fn clients_that_closed_hold_no_place(cx: Context) -> anyhow::Result<()> {
    const CLIENTS: usize = 5;
    let limit = ["--max-connections", "1"];
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &limit).await?;
    let all = async {
        for _ in 0..CLIENTS {
            Curl::get(proxy.socks, "http://productpage:9080/")
                .await?
                .json()?;
        }
        let open = async || Ok(CLIENTS - proxy.log().matches("end=\"eof\"").count());
        settles("clients without a record", open, 0).await
    };
    tokio::time::timeout(PATIENCE, all).await?
}

/// Nothing is said of a process that is killed; its sockets must not say that the answer was whole.
async fn a_killed_transfer_is_reset(cx: Context) -> anyhow::Result<()> {
    let to = ["--forward", "0:productpage:9080"];
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &to).await?;
    let forward = proxy.forward("productpage:9080").await?;
    let mut clients = [
        Socks::connect(proxy.socks, "productpage", 9080).await?,
        TcpStream::connect(forward).await?,
    ];
    for client in &mut clients {
        client
            .write_all(b"GET /bytes?n=1000000000 HTTP/1.0\r\n\r\n")
            .await?;
        client.read_exact(&mut [0; 100_000]).await?;
    }
    proxy.stop("KILL").await?;
    for mut client in clients {
        let read = Socks::read_all(&mut client).await;
        anyhow::ensure!(read.is_err(), "{} bytes passed for the whole", read?.len());
    }
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
            TcpStream::connect(socks).await.is_err(),
            "something still listens on {socks}"
        );
    }
    Ok(())
}
