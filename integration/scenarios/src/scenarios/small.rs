//! The small commands: `check`, `services`, `nc`, and the forwards of `run`.

use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{self, Poll};

use anyhow::Context as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::scenario;
use crate::cluster::client;
use crate::proxy::PATIENCE;
use crate::{Context, Scenario, run_to_end};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("small", check_finds_nothing_missing, One),
        scenario!("small", services_have_addresses_that_answer, One),
        scenario!("small", nc_carries_a_stream_whole),
        scenario!("small", nc_carries_both_directions_whole),
        scenario!("small", nc_prints_what_comes_at_once),
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
    let version = client(&cx.cluster.kubeconfig())
        .await?
        .apiserver_version()
        .await?;
    // `34+` on some managed clusters.
    let minor: u32 = version.minor.trim_end_matches('+').parse()?;
    for (transport, since) in [("spdy", 0), ("spdy-ws", 31), ("ws", 0)] {
        anyhow::ensure!(
            works(transport) == (minor >= since),
            "{transport}: {document:#}"
        );
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

/// `kubevpn nc` with these words.
fn nc(cx: &Context, words: &[&str]) -> anyhow::Result<(Child, ChildStdin, ChildStdout)> {
    let mut command = Command::new(&cx.kubevpn);
    command
        .arg("nc")
        .args(words)
        .arg("--kubeconfig")
        .arg(cx.cluster.kubeconfig())
        .args(&cx.flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    let stdin = child.stdin.take().context("stdin is piped")?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    Ok((child, stdin, stdout))
}

/// The number of bytes to the end, and their SHA-256.
async fn digest(mut from: impl AsyncRead + Unpin) -> anyhow::Result<(u64, String)> {
    let (mut bytes, mut hash) = (0, Sha256::new());
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = timeout(PATIENCE, from.read(&mut buffer)).await;
        match read.context("it stalls")?? {
            0 => return Ok((bytes, hex(hash))),
            n => {
                bytes += n as u64;
                hash.update(&buffer[..n]);
            }
        }
    }
}

fn hex(hash: Sha256) -> String {
    let hash = hash.finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The code that a command ends with.
async fn code(child: &mut Child) -> anyhow::Result<i32> {
    let ended = timeout(PATIENCE, child.wait()).await;
    let ended = ended.context("it does not end")??;
    ended
        .code()
        .with_context(|| format!("it ended with {ended}"))
}

/// The input ends before the answer does, and the server closes after the answer.
async fn nc_carries_a_stream_whole(cx: Context) -> anyhow::Result<()> {
    let bytes: u64 = cx.size(20_000_000, 1 << 30);
    let (mut child, mut stdin, mut stdout) = nc(&cx, &["productpage", "9080"])?;
    let request = format!("GET /bytes?n={bytes} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stdin.write_all(request.as_bytes()).await?;
    drop(stdin);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(PATIENCE, stdout.read_u8())
            .await
            .context("no head")??;
        head.push(byte);
    }
    let received = digest(stdout).await?;
    let sent = digest(pattern().take(bytes)).await?;
    anyhow::ensure!(received == sent, "{received:?} of {sent:?}");
    let code = code(&mut child).await?;
    anyhow::ensure!(code == 0, "all arrived, and it ended with {code}");
    Ok(())
}

/// What the sample program sends without end: 64 KiB, again and again.
fn pattern() -> impl AsyncRead + Unpin {
    struct BytePattern(Vec<u8>, usize);
    impl AsyncRead for BytePattern {
        fn poll_read(
            self: Pin<&mut Self>,
            _cx: &mut task::Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let this = self.get_mut();
            let rest = &this.0[this.1..];
            let n = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..n]);
            this.1 = (this.1 + n) % this.0.len();
            Poll::Ready(Ok(()))
        }
    }
    let block = (0..64 * 1024_usize).map(|i| (i * 7 + (i >> 8)) as u8);
    BytePattern(block.collect(), 0)
}

/// As much each way at once. The server ends when its client does, which a port-forward cannot tell it: the end is what
/// `--wait` says, or else a cut that is told.
async fn nc_carries_both_directions_whole(cx: Context) -> anyhow::Result<()> {
    let bytes: u64 = cx.size(20_000_000, 1 << 30);
    let (mut child, stdin, stdout) = nc(&cx, &["multi", "7007", "--wait", "5s"])?;
    let sending = async {
        let mut stdin = stdin;
        let (mut left, mut block, mut hash) = (bytes, vec![0_u8; 64 * 1024], Sha256::new());
        while left > 0 {
            // Each block differs, so that one that is lost, doubled or moved shows.
            for (i, byte) in block.iter_mut().enumerate() {
                *byte = (left.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (i % 57)) as u8;
            }
            let n = left.min(block.len() as u64) as usize;
            hash.update(&block[..n]);
            let written = timeout(PATIENCE, stdin.write_all(&block[..n])).await;
            written.context("it takes no more")??;
            left -= n as u64;
        }
        anyhow::Ok((bytes, hex(hash)))
    };
    let (sent, received) = tokio::try_join!(sending, digest(stdout))?;
    anyhow::ensure!(received == sent, "{received:?} of {sent:?}");
    let ended = code(&mut child).await?;
    anyhow::ensure!(ended == 0, "all came back, and it ended with {ended}");
    if cx.full {
        let (mut child, mut stdin, stdout) = nc(&cx, &["multi", "7007"])?;
        stdin.write_all(b"ping").await?;
        drop(stdin);
        let (bytes, _) = digest(stdout).await?;
        let ended = code(&mut child).await?;
        anyhow::ensure!(
            (bytes, ended) == (4, 42),
            "{bytes} bytes, and it ended with {ended}"
        );
    }
    Ok(())
}

/// An answer that does not end in a newline, while both directions stay open: SSH begins with such answers.
async fn nc_prints_what_comes_at_once(cx: Context) -> anyhow::Result<()> {
    let (mut child, mut stdin, mut stdout) = nc(&cx, &["multi", "7007", "--wait", "0s"])?;
    for question in [&b"\0\0\0\x0c"[..], b"one line\nand a half", b"?"] {
        stdin.write_all(question).await?;
        let mut answer = vec![0; question.len()];
        let read = timeout(PATIENCE, stdout.read_exact(&mut answer)).await;
        read.with_context(|| format!("{question:?} is not answered"))??;
        anyhow::ensure!(answer == question, "{answer:?} for {question:?}");
    }
    drop(stdin);
    let code = code(&mut child).await?;
    anyhow::ensure!(code == 0, "it ended with {code}");
    Ok(())
}

async fn nc_ends_as_it_was_refused(cx: Context) -> anyhow::Result<()> {
    for (words, code) in [
        (["nc", "nosuch", "80"], 50),
        (["nc", "productpage", "81"], 50),
        (["nc", "notready", "80"], 43),
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
