//! The small commands: `check`, `services`, `nc`, and the forwards of `run`.

use std::process::Stdio;

use anyhow::Context as _;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use super::scenario;
use crate::proxy::PATIENCE;
use crate::{Context, Scenario, run_to_end};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("small", check_finds_nothing_missing, One),
        scenario!("small", services_have_addresses_that_answer, One),
        scenario!("small", nc_carries_a_stream_whole),
        scenario!("small", nc_ends_as_it_was_refused, One),
        scenario!("small", run_forwards_a_port, One),
    ]
}

/// Standard output of a command with the cluster's kubeconfig, and its exit code.
async fn said(cx: &Context, words: &[&str]) -> anyhow::Result<(i32, String)> {
    let kubeconfig = cx.cluster.kubeconfig();
    let kubeconfig = kubeconfig.to_str().unwrap_or_default();
    let output = run_to_end(&cx.kubevpn, words, &[("KUBECONFIG", kubeconfig)]).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((output.status.code().unwrap_or(-1), said))
}

async fn check_finds_nothing_missing(cx: Context) -> anyhow::Result<()> {
    let words = [
        "check",
        "-o",
        "json",
        "--listen-socks",
        "127.0.0.1:0",
        "reviews:80",
    ];
    let (code, said) = said(&cx, &words).await?;
    let document: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    anyhow::ensure!(code == 0, "ended with {code}: {document:#}");
    let findings = document["findings"].as_array().context("findings")?;
    let works = |transport: &str| {
        let wanted = format!("{transport}: port-forward works");
        let mut texts = findings
            .iter()
            .filter_map(|finding| finding["text"].as_str());
        texts.any(|text| text.starts_with(&wanted))
    };
    for transport in ["spdy", "spdy-ws", "ws"] {
        anyhow::ensure!(works(transport), "{transport}: {document:#}");
    }
    anyhow::ensure!(
        document["target"]["service"] == "default/reviews",
        "{document:#}"
    );
    Ok(())
}

async fn services_have_addresses_that_answer(cx: Context) -> anyhow::Result<()> {
    let (_, listed) = said(&cx, &["services", "-o", "json"]).await?;
    let services: Value = serde_json::from_str(&listed)?;
    let services = services.as_array().context("a list")?;
    let of = |name: &str| services.iter().find(|service| service["name"] == name);
    let notready = of("notready").context("no notready")?;
    anyhow::ensure!(notready["readyEndpoints"] == 0, "{notready}");
    let url = of("productpage").and_then(|service| service["address"].as_str());
    let url = url.context("no address of productpage")?;
    let (code, answer) = said(&cx, &["run", "curl", "-sS", url]).await?;
    anyhow::ensure!(
        code == 0 && answer.contains(r#""service":"productpage""#),
        "{url} ended with {code}: {answer}"
    );
    Ok(())
}

/// The input ends before the answer does.
async fn nc_carries_a_stream_whole(cx: Context) -> anyhow::Result<()> {
    let bytes: u64 = cx.size(20_000_000, 1 << 30);
    let mut command = Command::new(&cx.kubevpn);
    command
        .args(["nc", "productpage", "9080", "--kubeconfig"])
        .arg(cx.cluster.kubeconfig())
        .args(&cx.flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    let request = format!("GET /bytes?n={bytes} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stdin.write_all(request.as_bytes()).await?;
    drop(stdin);
    let mut stdout = child.stdout.take().context("stdout is piped")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(PATIENCE, stdout.read_u8())
            .await
            .context("no head")??;
        head.push(byte);
    }
    let mut received = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match timeout(PATIENCE, stdout.read(&mut buffer))
            .await
            .context("it stalls")??
        {
            0 => break,
            n => received += n as u64,
        }
    }
    let ended = timeout(PATIENCE, child.wait())
        .await
        .context("it does not end")??;
    anyhow::ensure!(
        ended.success() && received == bytes,
        "{received} of {bytes} bytes, and {ended}"
    );
    Ok(())
}

async fn nc_ends_as_it_was_refused(cx: Context) -> anyhow::Result<()> {
    for (words, code) in [
        (["nc", "nosuch", "80"], 50),
        (["nc", "productpage", "81"], 50),
        (["nc", "notready", "80"], 1),
        (["nc", "www.example.com", "443"], 31),
    ] {
        let (ended, said) = said(&cx, &words).await?;
        anyhow::ensure!(ended == code, "{words:?} ended with {ended}: {said}");
    }
    Ok(())
}

/// A program that knows no proxy; the port is told by a variable and by its place among the words.
async fn run_forwards_a_port(cx: Context) -> anyhow::Result<()> {
    let script = "curl -sS --noproxy '*' http://$KUBEVPN_FORWARD_1/ && curl -sS --noproxy '*' http://127.0.0.1:{2}/";
    let words = [
        "run",
        "--forward",
        "127.0.0.1:0:productpage:9080",
        "--forward",
        "0:reviews:80",
        "sh",
        "-c",
        script,
    ];
    let (code, said) = said(&cx, &words).await?;
    let answered = [r#""service":"productpage""#, r#""service":"reviews""#];
    anyhow::ensure!(
        code == 0 && answered.iter().all(|answer| said.contains(answer)),
        "ended with {code}: {said}"
    );
    Ok(())
}
