//! The HTTP proxy: CONNECT and forwarding, beside SOCKS5 and on one port with it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::scenario;
use super::steady::figure;
use crate::client::read_head;
use crate::{Context, Curl, Proxy, ProxyRoute, Scenario, Socks, TunnelClient};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("http", both_frontends_at_once),
        scenario!("http", one_port_for_both),
        scenario!("http", each_refusal_has_its_status_and_sentence),
        scenario!("http", server_sent_events_come_one_by_one),
        scenario!("http", a_websocket_echoes),
        scenario!("http", a_chunked_upload_of_unknown_length),
        scenario!("http", bytes_sent_with_the_request_arrive_whole),
        scenario!("http", a_password_is_asked_for),
        scenario!("http", a_reader_that_pauses_gets_the_whole_answer, One),
    ]
}

pub(super) const HTTP: [&str; 2] = ["--listen-http", "127.0.0.1:0"];

pub(super) async fn start(cx: &Context) -> anyhow::Result<(Proxy, SocketAddr)> {
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &HTTP).await?;
    let http = proxy.http().await?;
    Ok((proxy, http))
}

/// curl with plain forwarding, or through a tunnel.
async fn curl(http: SocketAddr, args: &[&str]) -> anyhow::Result<Curl> {
    let proxy = format!("http://{http}");
    Curl::run(&[&["--proxy", &proxy], args].concat()).await
}

async fn both_frontends_at_once(cx: Context) -> anyhow::Result<()> {
    let (proxy, http) = start(&cx).await?;
    for name in ["productpage", "productpage.default.svc.cluster.local"] {
        let url = format!("http://{name}:9080/");
        let forwarded = curl(http, &[&url]).await?.json()?;
        let tunnelled = curl(http, &["--proxytunnel", &url]).await?.json()?;
        let socks = Curl::get(proxy.socks, &url).await?.json()?;
        let variable = [("http_proxy", &*format!("http://{http}"))];
        let by_variable = Curl::run_in(&variable, &[&url]).await?.json()?;
        for answer in [forwarded, tunnelled, socks, by_variable] {
            anyhow::ensure!(answer["service"] == "productpage", "{answer}");
            anyhow::ensure!(answer["host"] == format!("{name}:9080"), "{answer}");
        }
    }
    Ok(())
}

async fn one_port_for_both(cx: Context) -> anyhow::Result<()> {
    let mut command = tokio::process::Command::new(&cx.kubevpn);
    command.args([
        "proxy-out",
        "--listen-socks",
        "127.0.0.1:0",
        "--listen",
        "127.0.0.1:0",
        "--kubeconfig",
    ]);
    command.arg(cx.cluster.kubeconfig()).args(&cx.flags);
    let mut proxy = Proxy::spawn(command).await?;
    const SAID: &str = "SOCKS5 and HTTP proxy listening on ";
    proxy.logged(&[SAID]).await?;
    let log = proxy.log();
    let mixed: SocketAddr = log
        .lines()
        .find_map(|l| l.strip_prefix(SAID))
        .unwrap_or_default()
        .parse()?;
    for answer in [
        Curl::get(mixed, "http://reviews/").await?,
        curl(mixed, &["http://reviews/"]).await?,
        curl(mixed, &["--proxytunnel", "http://reviews/"]).await?,
    ] {
        anyhow::ensure!(answer.json()?["service"] == "reviews", "{}", answer.body);
    }
    Ok(())
}

async fn each_refusal_has_its_status_and_sentence(cx: Context) -> anyhow::Result<()> {
    let (_proxy, http) = start(&cx).await?;
    for (url, status, error, words) in [
        (
            "http://notready/",
            503,
            "destination_unavailable",
            "notready",
        ),
        ("http://productpage:81/", 502, "connection_refused", "9080"),
        ("http://multi:9999/", 502, "connection_refused", "9999"),
        (
            "http://no-such-service/",
            502,
            "dns_error",
            "no-such-service",
        ),
        (
            "http://example.com/",
            403,
            "http_request_denied",
            "example.com",
        ),
        (
            "http://manual/",
            502,
            "destination_ip_unroutable",
            "198.51.100.55",
        ),
    ] {
        let answer = curl(http, &["--include", url]).await?;
        let text = answer.body.to_ascii_lowercase();
        anyhow::ensure!(
            text.starts_with(&format!("http/1.1 {status}")),
            "{url}: {}",
            answer.body
        );
        anyhow::ensure!(
            text.contains("proxy-status:") && text.contains(error),
            "{url}: {}",
            answer.body
        );
        anyhow::ensure!(text.contains(words), "{url}: {}", answer.body);
        // curl says the status of a refused CONNECT.
        let tunnel = curl(http, &["--proxytunnel", url]).await?;
        anyhow::ensure!(
            tunnel.code == 56 && tunnel.message.contains(&status.to_string()),
            "{}",
            tunnel.message
        );
    }
    Ok(())
}

async fn server_sent_events_come_one_by_one(cx: Context) -> anyhow::Result<()> {
    let (proxy, http) = start(&cx).await?;
    for way in ProxyRoute::ALL {
        let (mut stream, base) = way.open(proxy.socks, http, "productpage", 9080).await?;
        let request = format!("GET {base}/sse?n=0&ms=50 HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut got = String::new();
        // Endless: only what is not held back anywhere is ever seen.
        while !got.contains("data: 3 ") {
            let mut piece = [0; 4096];
            let n = stream.read(&mut piece).await?;
            anyhow::ensure!(n > 0, "{way:?}: ended after {got}");
            got.push_str(std::str::from_utf8(&piece[..n])?);
        }
    }
    Ok(())
}

async fn a_websocket_echoes(cx: Context) -> anyhow::Result<()> {
    let (proxy, http) = start(&cx).await?;
    for way in ProxyRoute::ALL {
        let (mut stream, base) = way.open(proxy.socks, http, "productpage", 9080).await?;
        let request = format!(
            "GET {base}/ws HTTP/1.1\r\nHost: productpage:9080\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let head = read_head(&mut stream, "101").await?;
        // The answer to the key above (RFC 6455 section 1.3).
        anyhow::ensure!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        // A text frame "hi", masked with zeros.
        stream.write_all(b"\x81\x82\0\0\0\0hi").await?;
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).await?;
        anyhow::ensure!(&echo == b"\x81\x02hi", "{way:?}: {echo:?}");
    }
    Ok(())
}

async fn a_chunked_upload_of_unknown_length(cx: Context) -> anyhow::Result<()> {
    let (proxy, http) = start(&cx).await?;
    for way in [
        format!("--proxy http://{http}"),
        format!("--proxytunnel --proxy http://{http}"),
        format!("--proxy socks5h://{}", proxy.socks),
    ] {
        let url = "http://productpage:9080/sink";
        let curl = format!("curl --disable -sS --max-time 60 {way} -T - {url}");
        let output = tokio::process::Command::new("bash")
            .args(["-c", &format!("head -c 20000000 /dev/zero | {curl}")])
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stdout);
        anyhow::ensure!(
            said.trim() == "20000000",
            "{way}: {said} {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

async fn bytes_sent_with_the_request_arrive_whole(cx: Context) -> anyhow::Result<()> {
    let (proxy, http) = start(&cx).await?;
    let early: Vec<u8> = (0..65_536_u32).map(|n| (n % 251) as u8).collect();
    let mut tunnel = TunnelClient::send_early(http, "multi", 7007, &early).await?;
    read_head(&mut tunnel, "200").await?;
    let mut socks = Socks::send_early(proxy.socks, "multi", 7007, &early).await?;
    Socks::read_replies(&mut socks).await?;
    for mut stream in [tunnel, socks] {
        let mut echo = vec![0; early.len()];
        stream.read_exact(&mut echo).await?;
        anyhow::ensure!(echo == early, "the echo differs");
    }
    Ok(())
}

async fn a_password_is_asked_for(cx: Context) -> anyhow::Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), "ann:s3cret\n")?;
    let path = file.path().display().to_string();
    let flags = [&HTTP[..], &["--auth-file", &path]].concat();
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &flags).await?;
    let http = proxy.http().await?;
    let url = "http://reviews/";
    anyhow::ensure!(
        curl(http, &["--include", url])
            .await?
            .body
            .starts_with("HTTP/1.1 407"),
        "no 407"
    );
    anyhow::ensure!(
        Curl::get(proxy.socks, url).await?.code == 97,
        "SOCKS5 lets everybody in"
    );
    anyhow::ensure!(
        Socks::connect(proxy.socks, "reviews", 80).await.is_err(),
        "SOCKS5 lets everybody in"
    );
    for proxy in [
        format!("http://ann:s3cret@{http}"),
        format!("socks5h://ann:s3cret@{}", proxy.socks),
    ] {
        let answer = Curl::run(&["--proxy", &proxy, url]).await?;
        anyhow::ensure!(answer.json()?["service"] == "reviews", "{}", answer.body);
    }
    anyhow::ensure!(
        !proxy.log().contains("s3cret"),
        "the password is in the log"
    );
    Ok(())
}

/// For longer than an idle connection is kept, with `KUBEVPN_FULL=1`. Of the smaller answer nothing is left at the server
/// by then: its end is in our memory, behind what the kernel holds for a Unix socket.
async fn a_reader_that_pauses_gets_the_whole_answer(cx: Context) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("http");
    let listen = format!("unix:{}", socket.display());
    let kubeconfig = cx.cluster.kubeconfig();
    let _proxy = cx.proxy(&kubeconfig, &["--listen-http", &listen]).await?;
    let pause = cx.size(2, 90);
    let read = async |bytes: u32| {
        let url = format!("http://productpage:9080/bytes?n={bytes}");
        let curl = format!(
            "curl --disable -sS --http1.0 --unix-socket {} --request-target {url} {url}",
            socket.display()
        );
        let output = tokio::process::Command::new("bash")
            .args([
                "-c",
                &format!("set -o pipefail; {curl} | (sleep {pause}; wc -c)"),
            ])
            .kill_on_drop(true)
            .output()
            .await?;
        let counted = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        anyhow::ensure!(
            output.status.success() && counted == bytes.to_string(),
            "{counted} of {bytes} bytes after {pause} s: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        figure(&format!(
            "{counted} of {bytes} bytes reach a client that reads after {pause} s"
        ));
        Ok(())
    };
    tokio::try_join!(read(280_100), read(1_000_000))?;
    Ok(())
}
