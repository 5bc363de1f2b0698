//! What happens to bytes, and to the end of a stream.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::scenario;
use crate::{Context, Curl, Scenario, Socks};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("streams", a_slow_answer_after_half_close_is_whole),
        scenario!("streams", a_long_answer_after_half_close_is_whole),
        scenario!("streams", bytes_sent_with_the_handshake_arrive),
        scenario!("streams", the_server_speaks_first),
        scenario!("streams", an_upload_is_whole),
        scenario!("streams", many_at_once),
        scenario!("streams", a_reset_by_the_pod_ends_only_its_connection),
        scenario!("streams", two_hundred_outlive_a_refusal_and_a_reset),
        scenario!("streams", a_reader_that_stops_stalls_nobody),
    ]
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes()
}

/// The body of an answer with a Content-Length, checked against it.
fn body(answer: &[u8]) -> anyhow::Result<&[u8]> {
    let head = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map(|at| at + 4);
    let Some(head) = head else {
        anyhow::bail!("no head in {} bytes", answer.len())
    };
    anyhow::ensure!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer[..head])
    );
    Ok(&answer[head..])
}

/// The sample Pods' endless pattern: a shift or a lost piece shows.
fn pattern(at: usize) -> u8 {
    let i = at % (64 << 10);
    (i.wrapping_mul(7).wrapping_add(i >> 8)) as u8
}

async fn a_slow_answer_after_half_close_is_whole(cx: Context) -> anyhow::Result<()> {
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let mut stream = Socks::connect(proxy.socks, "productpage", 9080).await?;
    stream.write_all(&get("/slow?ms=3000")).await?;
    stream.shutdown().await?;
    let answer = Socks::read_all(&mut stream).await?;
    anyhow::ensure!(
        body(&answer)? == b"slept 3000\n",
        "{}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

async fn a_long_answer_after_half_close_is_whole(cx: Context) -> anyhow::Result<()> {
    const LENGTH: usize = 300_000_000;
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let mut stream = Socks::connect(proxy.socks, "productpage", 9080).await?;
    stream
        .write_all(&get(&format!("/bytes?n={LENGTH}")))
        .await?;
    stream.shutdown().await?;
    let answer = Socks::read_all(&mut stream).await?;
    let body = body(&answer)?;
    anyhow::ensure!(body.len() == LENGTH, "{} of {LENGTH} bytes", body.len());
    let wrong = body
        .iter()
        .enumerate()
        .position(|(at, &byte)| byte != pattern(at));
    anyhow::ensure!(wrong.is_none(), "the byte at {wrong:?} is wrong");
    Ok(())
}

async fn bytes_sent_with_the_handshake_arrive(cx: Context) -> anyhow::Result<()> {
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let mut stream = Socks::send_early(proxy.socks, "productpage", 9080, &get("/early")).await?;
    Socks::read_replies(&mut stream).await?;
    let answer = Socks::read_all(&mut stream).await?;
    let answer: serde_json::Value = serde_json::from_slice(body(&answer)?)?;
    anyhow::ensure!(answer["path"] == "/early", "{answer}");
    Ok(())
}

async fn the_server_speaks_first(cx: Context) -> anyhow::Result<()> {
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let mut stream = Socks::connect(proxy.socks, "multi", 25).await?;
    let mut greeting = [0; 4];
    stream.read_exact(&mut greeting).await?;
    anyhow::ensure!(&greeting == b"220 ", "{greeting:?}");
    Ok(())
}

async fn an_upload_is_whole(cx: Context) -> anyhow::Result<()> {
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let file = tempfile::NamedTempFile::new()?;
    file.as_file().set_len(50_000_000)?;
    let path = file.path().display().to_string();
    let socks = format!("socks5h://{}", proxy.socks);
    let sunk = Curl::run(&[
        "--proxy",
        &socks,
        "--upload-file",
        &path,
        "http://productpage:9080/sink",
    ])
    .await?;
    anyhow::ensure!(
        sunk.body.trim() == "50000000",
        "{} {}",
        sunk.body,
        sunk.message
    );
    Ok(())
}

async fn many_at_once(cx: Context) -> anyhow::Result<()> {
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let socks = proxy.socks;
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..100 {
        clients.spawn(async move {
            let mut stream = Socks::connect(socks, "productpage", 9080).await?;
            stream.write_all(&get(&format!("/{n}"))).await?;
            let answer = Socks::read_all(&mut stream).await?;
            let answer: serde_json::Value = serde_json::from_slice(body(&answer)?)?;
            anyhow::ensure!(
                answer["path"] == format!("/{n}"),
                "asked for /{n}: {answer}"
            );
            Ok(answer["hostname"].as_str().unwrap_or_default().to_owned())
        });
    }
    let mut hosts = std::collections::HashMap::<String, usize>::new();
    while let Some(done) = clients.join_next().await {
        *hosts.entry(done??).or_default() += 1;
    }
    anyhow::ensure!(
        hosts.len() == 2 && hosts.values().all(|&n| n >= 30),
        "replicas used unevenly: {hosts:?}"
    );
    Ok(())
}

async fn a_reset_by_the_pod_ends_only_its_connection(cx: Context) -> anyhow::Result<()> {
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let mut other = Socks::connect(proxy.socks, "multi", 7007).await?;
    for _ in 0..5 {
        let mut reset = Socks::connect(proxy.socks, "multi", 7666).await?;
        reset.write_all(b"x").await?;
        // A clean end or a reset: both tell the client that it is over.
        let _ended = Socks::read_all(&mut reset).await;
    }
    other.write_all(b"still here").await?;
    let mut echo = [0; 10];
    other.read_exact(&mut echo).await?;
    anyhow::ensure!(&echo == b"still here", "{echo:?}");
    Ok(())
}

async fn two_hundred_outlive_a_refusal_and_a_reset(cx: Context) -> anyhow::Result<()> {
    const OPEN: usize = 200;
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let mut open = Vec::new();
    for _ in 0..OPEN {
        let mut stream = Socks::connect(proxy.socks, "multi", 7007).await?;
        stream.write_all(b"open").await?;
        stream.read_exact(&mut [0; 4]).await?;
        open.push(stream);
    }
    let refused = Socks::connect(proxy.socks, "multi", 9999).await;
    anyhow::ensure!(
        refused.is_err_and(|e| e.to_string() == "SOCKS5 reply 5"),
        "not refused"
    );
    let mut reset = Socks::connect(proxy.socks, "multi", 7666).await?;
    reset.write_all(b"x").await?;
    let _ended = Socks::read_all(&mut reset).await;
    let mut dropped = 0;
    for stream in &mut open {
        let back = async {
            stream.write_all(b"still").await?;
            stream.read_exact(&mut [0; 5]).await
        };
        dropped += usize::from(back.await.is_err());
    }
    cx.measured(format_args!(
        "{dropped} of {OPEN} open connections dropped by a refused and a reset one"
    ));
    anyhow::ensure!(dropped == 0, "{dropped} of {OPEN} dropped");
    Ok(())
}

async fn a_reader_that_stops_stalls_nobody(cx: Context) -> anyhow::Result<()> {
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut stream = Socks::connect(proxy.socks, "productpage", 9080).await?;
        stream.write_all(&get("/bytes?n=1000000000")).await?;
        stream.read_exact(&mut [0; 1]).await?;
        stalled.push(stream);
    }
    for _ in 0..50 {
        Curl::get(proxy.socks, "http://productpage:9080/")
            .await?
            .json()?;
    }
    Ok(())
}
