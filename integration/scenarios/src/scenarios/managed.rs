//! Managed mode: connections that a daemon keeps.

use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::dns::dig;
use super::scenario;
use crate::cluster::{client, cluster_ips};
use crate::managed::{Managed, connection, id_of, listener};
use crate::{Context, Curl, Scenario, Socks};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("managed", the_validation_list, One),
        scenario!("managed", two_namespaces_at_once, One),
        scenario!("managed", dns_pac_and_forward, One),
        scenario!("managed", killed_and_brought_back, One),
        scenario!("managed", counters_equal_what_was_sent, One),
        scenario!("managed", the_api_server_goes_and_comes_back, One),
        scenario!("managed", another_user_is_not_answered, One, SECOND_USER),
    ]
}

const FREE: [&str; 2] = ["--socks-listen", "127.0.0.1:0"];

async fn answers(proxy: SocketAddr, url: &str) -> anyhow::Result<()> {
    let answer = Curl::get(proxy, url).await?.json()?;
    anyhow::ensure!(
        answer["service"] == "productpage",
        "{url} answered {answer}"
    );
    Ok(())
}

/// `proxy-out`; Service hostname through socks5h; ClusterIP through socks5h; `connect --socks`; `disconnect` and `quit`
/// remove the managed state and the kubeconfig file while the log stays.
async fn the_validation_list(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let api = client(&kubeconfig).await?;
    let ip = cluster_ips(&api, "default", "productpage")
        .await?
        .swap_remove(0);
    let both = async |socks| {
        answers(socks, "http://productpage.default.svc.cluster.local:9080/").await?;
        answers(socks, &format!("http://{ip}:9080/")).await
    };
    let proxy = cx.proxy(&kubeconfig, &[]).await?;
    let socks = proxy.socks;
    both(socks).await?;
    let ended = proxy.stop("TERM").await?;
    anyhow::ensure!(ended.success(), "proxy-out ended with {ended}");

    // The same port, which is free again.
    let managed = Managed::new(&cx.kubevpn)?;
    let at = socks.port().to_string();
    let words = [&cx.flags[..], &["--socks", "--socks-listen", &at]].concat();
    let said = managed.connect(&kubeconfig, &words).await?;
    let said = said.with(
        0,
        &[
            "Started managed local SOCKS5 proxy for connection",
            "Shell: eval \"$(kubevpn env)\"",
        ],
    )?;
    let id = id_of(&said)?;
    let namespace = Api::<Namespace>::all(api).get("default").await?;
    let uid = namespace.metadata.uid.context("a namespace has a UID")?;
    anyhow::ensure!(uid.ends_with(&id), "connection {id} of namespace {uid}");
    both(socks).await?;
    // A port alone is of both families.
    let second = SocketAddr::from((Ipv6Addr::LOCALHOST, socks.port()));
    both(second).await?;
    let files = managed.files()?;
    for file in [format!("{id}.json"), format!("{id}.kubeconfig")] {
        anyhow::ensure!(files.contains(&file), "no {file} in {files:?}");
    }

    managed
        .run(&["disconnect", &id])
        .await?
        .with(0, &["Disconnect completed"])?;
    let files = managed.files()?;
    let stays = files.iter().find(|file| file.contains(&id));
    anyhow::ensure!(stays.is_none(), "disconnect left {files:?}");
    for at in [socks, second] {
        let there = tokio::net::TcpStream::connect(at).await.is_ok();
        anyhow::ensure!(!there, "something still listens on {at}");
    }
    managed.quit().await?;
    for log in [format!("{id}.log"), "daemon.log".into()] {
        let log = managed.home().join("log").join(log);
        anyhow::ensure!(log.is_file(), "there is no {}", log.display());
    }
    managed
        .run(&["logs", &id])
        .await?
        .with(0, &["productpage"])?;
    Ok(())
}

async fn two_namespaces_at_once(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let managed = Managed::new(&cx.kubevpn)?;
    let first = managed
        .connect(&kubeconfig, &[&cx.flags[..], &FREE].concat())
        .await?
        .with(0, &[])?;
    let first = id_of(&first)?;
    let other = ["-n", "team-a"];
    let second = managed
        .connect(&kubeconfig, &[&cx.flags[..], &FREE, &other].concat())
        .await?
        .with(0, &[])?;
    let second = id_of(&second)?;
    anyhow::ensure!(first != second, "both are {first}");

    // A second kind of listener on the first, and nothing that was there is touched.
    let http = ["--http-listen", "127.0.0.1:0"];
    let words = [&cx.flags[..], &http].concat();
    let said = managed.connect(&kubeconfig, &words).await?.with(0, &[])?;
    anyhow::ensure!(id_of(&said)? == first, "{said:?}");
    let status = managed.status().await?;
    let socks = listener(&status, &first, "socks")?;
    let http = listener(&status, &first, "http")?;
    let team_a = listener(&status, &second, "socks")?;
    answers(socks, "http://productpage:9080/").await?;
    let proxy = format!("http://{http}");
    Curl::run(&["--proxy", &proxy, "http://productpage:9080/"])
        .await?
        .json()?;
    let answer = Curl::get(team_a, "http://api/").await?.json()?;
    anyhow::ensure!(answer["service"] == "api", "{answer}");

    // One ends while the other's download is under way.
    const BYTES: usize = 20_000_000;
    let mut download = Socks::connect(socks, "productpage", 9080).await?;
    let request = format!("GET /bytes?n={BYTES} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    download.write_all(request.as_bytes()).await?;
    let mut begun = [0; 1000];
    download.read_exact(&mut begun).await?;
    managed.run(&["disconnect", &second]).await?.with(0, &[])?;
    anyhow::ensure!(
        tokio::net::TcpStream::connect(team_a).await.is_err(),
        "something still listens on {team_a}"
    );
    let rest = Socks::read_all(&mut download).await?;
    anyhow::ensure!(
        begun.len() + rest.len() > BYTES,
        "the download ended after {} bytes",
        rest.len()
    );
    managed
        .run(&["disconnect", &second])
        .await?
        .with(51, &[&second])?;
    managed.quit().await
}

/// What `proxy-out` listens for, the daemon does too, and again after it was killed.
async fn dns_pac_and_forward(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let api = client(&kubeconfig).await?;
    let ip = cluster_ips(&api, "default", "productpage")
        .await?
        .swap_remove(0);
    let managed = Managed::new(&cx.kubevpn)?;
    let listeners = [
        "--dns-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
        "--pac-range",
        "192.0.2.0/24",
        "--forward",
        "127.0.0.1:0:productpage:9080",
    ];
    let words = [&cx.flags[..], &listeners].concat();
    let said = managed.connect(&kubeconfig, &words).await?;
    let said = said.with(0, &["DNS (UDP and TCP)", "Domains=~cluster.local"])?;
    let id = id_of(&said)?;
    let questions = [
        "productpage.default.svc.cluster.local. A",
        "www.example.com. A",
    ]
    .map(str::to_owned);
    let all_work = async || {
        let status = managed.status().await?;
        let server = listener(&status, &id, "dns")?;
        for how in [&[][..], &["+tcp"]] {
            let told = dig(server, how, &questions).await?;
            anyhow::ensure!(
                told[0].is("NOERROR", &[&ip]) && told[1].is("REFUSED", &[]),
                "{how:?}: {told:?}"
            );
        }
        let http = listener(&status, &id, "http")?;
        let pac = format!("http://{http}/proxy.pac");
        let pac = Curl::run(&["--noproxy", "*", &pac]).await?.body;
        // The range is two halves of 16 bits and the length of its prefix.
        for word in ["[[49152, 512], 24]", &http.to_string(), "productpage"] {
            anyhow::ensure!(pac.contains(word), "no {word} in {pac}");
        }
        let forward = listener(&status, &id, "forward")?;
        let answer = Curl::run(&["--noproxy", "*", &format!("http://{forward}/")]).await?;
        let answer = answer.json()?;
        anyhow::ensure!(answer["service"] == "productpage", "{answer}");
        anyhow::Ok((server, http, forward))
    };
    let before = all_work().await?;
    managed.kill().await?;
    let after = all_work().await?;
    anyhow::ensure!(before == after, "{before:?} came back as {after:?}");

    // Values that cannot be, and an address that is held.
    let itself = before.0.to_string();
    for (words, why) in [
        (["--dns-listen", "unix:/tmp/dns"], "IP address"),
        (["--pac-range", "10.0.0.0"], "--pac-range"),
    ] {
        let said = managed.connect(&kubeconfig, &words).await?;
        said.with(23, &[why])?;
    }
    let said = managed
        .connect(
            &kubeconfig,
            &["--dns-listen", "127.0.0.1:0", "--dns-upstream", "x"],
        )
        .await?;
    said.with(23, &["--dns-upstream x"])?;
    let said = managed
        .connect(
            &kubeconfig,
            &["--dns-listen", &itself, "--dns-upstream", "192.0.2.1"],
        )
        .await?;
    said.with(53, &[&itself])?;
    managed.quit().await
}

async fn killed_and_brought_back(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let managed = Managed::new(&cx.kubevpn)?;
    let words = [&cx.flags[..], &FREE].concat();
    let said = managed.connect(&kubeconfig, &words).await?.with(0, &[])?;
    let id = id_of(&said)?;
    let socks = listener(&managed.status().await?, &id, "socks")?;
    managed.kill().await?;
    anyhow::ensure!(Curl::get(socks, "http://productpage:9080/").await?.code != 0);
    // Any command brings it back, on the port it had.
    let again = listener(&managed.status().await?, &id, "socks")?;
    anyhow::ensure!(again == socks, "{socks} came back as {again}");
    answers(socks, "http://productpage:9080/").await?;
    managed.quit().await
}

async fn counters_equal_what_was_sent(cx: Context) -> anyhow::Result<()> {
    const CLIENTS: u64 = 20;
    let kubeconfig = cx.cluster.kubeconfig();
    let managed = Managed::new(&cx.kubevpn)?;
    let words = [&cx.flags[..], &FREE].concat();
    let said = managed.connect(&kubeconfig, &words).await?.with(0, &[])?;
    let id = id_of(&said)?;
    let socks = listener(&managed.status().await?, &id, "socks")?;
    let (mut up, mut down) = (0, 0);
    for n in 0..CLIENTS {
        let mut stream = Socks::connect(socks, "productpage", 9080).await?;
        let request = format!(
            "GET /bytes?n={} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            n * 1000
        );
        stream.write_all(request.as_bytes()).await?;
        up += request.len();
        down += Socks::read_all(&mut stream).await?.len();
    }
    anyhow::ensure!(Socks::connect(socks, "productpage", 81).await.is_err());
    let held = Socks::connect(socks, "multi", 7007).await?;
    // The last client's end is seen a moment after the client has seen it.
    let wanted = serde_json::json!({
        "OpenConnections": 1,
        "TotalConnections": CLIENTS + 1,
        "RefusedConnections": 1,
        "BytesUp": up,
        "BytesDown": down,
    });
    let mut status = managed.status().await?;
    let until = tokio::time::Instant::now() + crate::proxy::PATIENCE;
    while connection(&status, &id)?["Traffic"] != wanted {
        anyhow::ensure!(
            tokio::time::Instant::now() < until,
            "expected {wanted}, found {}",
            connection(&status, &id)?["Traffic"]
        );
        status = managed.status().await?;
    }
    let refusal = &connection(&status, &id)?["LastRefusals"][0];
    anyhow::ensure!(
        refusal["Class"] == "no_such_port" && refusal["Target"] == "productpage:81",
        "{refusal}"
    );
    drop(held);
    managed.quit().await
}

async fn the_api_server_goes_and_comes_back(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let managed = Managed::new(&cx.kubevpn)?;
    let words = [&cx.flags[..], &FREE].concat();
    let said = managed.connect(&kubeconfig, &words).await?.with(0, &[])?;
    let id = id_of(&said)?;
    let until = async |wanted: &str| {
        let until = tokio::time::Instant::now() + crate::proxy::PATIENCE;
        loop {
            let status = managed.status().await?;
            let state = connection(&status, &id)?["State"].clone();
            if state == wanted {
                return anyhow::Ok(());
            }
            anyhow::ensure!(
                tokio::time::Instant::now() < until,
                "it stays {state}, and never is {wanted}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    until("connected").await?;
    cx.cluster.stop_api().await?;
    let away = until("unreachable").await;
    cx.cluster.start_api().await?;
    away?;
    until("connected").await?;
    let socks = listener(&managed.status().await?, &id, "socks")?;
    answers(socks, "http://productpage:9080/").await?;
    managed.quit().await
}

/// A program as another user, which takes root.
const SECOND_USER: &[&str] = &[
    "setpriv",
    "--reuid=12345",
    "--regid=12345",
    "--clear-groups",
    "true",
];

/// Even one who may open every file: the peer's uid is what counts.
async fn another_user_is_not_answered(cx: Context) -> anyhow::Result<()> {
    let managed = Managed::new(&cx.kubevpn)?;
    let words = [&cx.flags[..], &FREE].concat();
    let said = managed.connect(&cx.cluster.kubeconfig(), &words).await?;
    let id = id_of(&said.with(0, &[])?)?;
    let home = managed.home();
    let socket = home.join("daemon.sock");
    let ask = async |prefix: &[&str]| {
        let words = [
            prefix,
            &["curl", "--silent", "--max-time", "20", "--unix-socket"],
        ]
        .concat();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .arg(&socket)
            .arg("http://x/v1/status");
        command.output().await
    };
    let (_, second_user) = SECOND_USER.split_last().context("a command")?;
    let own = ask(&["env"]).await?;
    let own = String::from_utf8_lossy(&own.stdout);
    anyhow::ensure!(own.contains(&id), "{own}");
    anyhow::ensure!(!ask(second_user).await?.status.success());
    let all = |mode| {
        for path in home.parent().into_iter().chain([&*home, &*socket]) {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        }
        anyhow::Ok(())
    };
    all(0o777)?;
    let refused = ask(second_user).await?;
    anyhow::ensure!(
        !refused.status.success() && refused.stdout.is_empty(),
        "{refused:?}"
    );
    // Nor does a command of ours trust a directory that others can write to.
    managed.run(&["status"]).await?.with(23, &["chmod go-w"])?;
    all(0o700)?;
    let socks = listener(&managed.status().await?, &id, "socks")?;
    answers(socks, "http://productpage:9080/").await?;
    let log = managed.run(&["logs"]).await?;
    log.with(0, &["another user's process is not answered", "uid=12345"])?;
    managed.quit().await
}
