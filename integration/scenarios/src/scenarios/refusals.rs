//! What cannot be reached, and how the client and the log learn of it.

use super::scenario;
use crate::cluster::client;
use crate::{ApiRequest, Context, Curl, Scenario, Socks, run_to_end};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("refusals", each_has_its_reply_and_one_sentence),
        scenario!("refusals", nothing_listens_on_the_pod_port),
        scenario!("refusals", a_closed_port_costs_one_question, One),
        scenario!("refusals", a_user_without_rights),
        scenario!("refusals", credentials_that_are_not_accepted),
        scenario!("refusals", nonsense_on_the_socks_port_disturbs_nobody),
    ]
}

async fn each_has_its_reply_and_one_sentence(cx: Context) -> anyhow::Result<()> {
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    for (url, reply, words) in [
        ("http://notready/", 5, &["notready", "ready"][..]),
        ("http://empty/", 5, &["empty", "ready"]),
        ("http://productpage:81/", 5, &["productpage", "81", "9080"]),
        ("http://multi:53/", 5, &["multi", "53", "UDP"]),
        ("http://no-such-service/", 4, &["no-such-service"]),
        (
            "http://productpage.no-such-namespace.svc/",
            4,
            &["no-such-namespace"],
        ),
        ("http://example.com/", 2, &["example.com", "outside"]),
        ("http://198.51.100.7/", 2, &["198.51.100.7"]),
        ("http://manual/", 3, &["manual", "198.51.100.55"]),
    ] {
        Curl::get(proxy.socks, url)
            .await?
            .refused_with(reply)
            .map_err(|e| e.context(url))?;
        proxy.logged(words).await?;
    }
    // It still serves.
    Curl::get(proxy.socks, "http://productpage:9080/")
        .await?
        .json()?;
    Ok(())
}

async fn nothing_listens_on_the_pod_port(cx: Context) -> anyhow::Result<()> {
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    for _ in 0..3 {
        Curl::get(proxy.socks, "http://multi:9999/")
            .await?
            .refused_with(5)?;
    }
    proxy.logged(&["multi", "9999", "refused"]).await?;
    Curl::get(proxy.socks, "http://multi/").await?.json()?;
    Ok(())
}

/// The Pod that refused is asked for, by the API server's own word: it may have been replaced. Nothing else is.
async fn a_closed_port_costs_one_question(cx: Context) -> anyhow::Result<()> {
    const DIALS: usize = 20;
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let refused = async || match Socks::connect(proxy.socks, "multi", 9999).await {
        Ok(_) => anyhow::bail!("something listens on port 9999"),
        Err(error) => {
            anyhow::ensure!(error.to_string() == "SOCKS5 reply 5", "{error}");
            Ok(())
        }
    };
    refused().await?;
    let mark = cx.cluster.mark().await?;
    for _ in 0..DIALS {
        refused().await?;
    }
    let asked = cx.cluster.asked_since(mark).await?;
    let reads: Vec<_> = asked.iter().filter(|asked| asked.is_read()).collect();
    let about_pod = |asked: &&&ApiRequest| asked.verb == "get" && asked.resource == "pods";
    let about_pods = reads.iter().filter(about_pod).count();
    anyhow::ensure!(
        about_pods == reads.len() && (1..=DIALS).contains(&about_pods),
        "{DIALS} refused dials asked: {reads:?}"
    );
    Ok(())
}

async fn a_user_without_rights(cx: Context) -> anyhow::Result<()> {
    let mut proxy = cx.proxy(&cx.cluster.viewer_kubeconfig(), &[]).await?;
    Curl::get(proxy.socks, "http://productpage:9080/")
        .await?
        .refused_with(2)?;
    proxy
        .logged(&["get", "services", "namespace", "default"])
        .await
}

async fn credentials_that_are_not_accepted(cx: Context) -> anyhow::Result<()> {
    let mut config = kube::config::Kubeconfig::read_from(cx.cluster.kubeconfig())?;
    for user in &mut config.auth_infos {
        user.auth_info = Some(serde_json::from_value(
            serde_json::json!({ "token": "revoked" }),
        )?);
    }
    let file = tempfile::NamedTempFile::new()?;
    serde_json::to_writer(&file, &config)?;
    let path = file.path().to_str().unwrap_or_default();
    let ended = run_to_end(
        &cx.kubevpn,
        [
            "proxy-out",
            "--listen-socks",
            "127.0.0.1:0",
            "--kubeconfig",
            path,
        ],
        &[],
    )
    .await?;
    let said = String::from_utf8_lossy(&ended.stderr);
    anyhow::ensure!(
        ended.status.code() == Some(32),
        "ended with {}: {said}",
        ended.status
    );
    anyhow::ensure!(
        said.contains("credentials"),
        "does not say what was wrong: {said}"
    );
    // Nobody who holds such a client is in the way of one who does not.
    client(&cx.cluster.kubeconfig())
        .await?
        .apiserver_version()
        .await?;
    Ok(())
}

async fn nonsense_on_the_socks_port_disturbs_nobody(cx: Context) -> anyhow::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    let mut held = Vec::new();
    for bytes in [
        &b"\xff\xfe\xfd garbage"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x05\x01",
        b"\x05\x01\x00\x05\x01\x00\x03\xff",
    ] {
        let mut stream = tokio::net::TcpStream::connect(proxy.socks).await?;
        stream.write_all(bytes).await?;
        held.push(stream);
    }
    let http = Socks::read_all(&mut held[1]).await?;
    let http = String::from_utf8_lossy(&http);
    anyhow::ensure!(
        http.starts_with("HTTP/1.1 4") && http.contains("SOCKS"),
        "HTTP was answered with {http:?}"
    );
    // Port 0 and a name that cannot be one never reach the backend.
    for (host, port) in [("productpage", 0), ("a..b", 80), ("sp ace", 80)] {
        let error = match Socks::connect(proxy.socks, host, port).await {
            Ok(_) => anyhow::bail!("{host}:{port} was accepted"),
            Err(error) => error.to_string(),
        };
        anyhow::ensure!(error == "SOCKS5 reply 1", "{host}:{port}: {error}");
    }
    proxy.logged(&["port 0"]).await?;
    Curl::get(proxy.socks, "http://productpage:9080/")
        .await?
        .json()?;
    Ok(())
}
