//! The first minute: what is said at the start, how to have it otherwise, and an API server that comes later.

use std::process::Stdio;
use std::time::Duration;

use kubevpn_scenarios::{Curl, Proxy, run_to_end};
use kubevpn_sim::Sim;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{ChildStderr, Command};
use tokio::time::timeout;

#[cfg(target_os = "linux")]
use crate::terminal::Terminal;
use crate::{Files, Rig, kubevpn};

const PATIENCE: Duration = Duration::from_secs(60);

fn proxy_out(kubeconfig: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(kubevpn());
    command
        .args([
            "proxy-out",
            "--listen-socks",
            "127.0.0.1:0",
            "--kubeconfig",
            kubeconfig,
        ])
        .args(flags)
        .env("SHELL", "/bin/zsh")
        .env_remove("RUST_LOG");
    command
}

/// Listeners, cluster, and two lines to paste, of which the second is for the person's shell.
#[tokio::test]
async fn what_is_said_at_the_start() {
    let rig = Rig::start().await;
    let mut proxy = Proxy::spawn(proxy_out(&rig.kubeconfig, &[])).await.unwrap();
    proxy.logged(&["Shell: "]).await.unwrap();
    let log = proxy.log();
    let socks = proxy.socks;
    let lines: Vec<_> = log.lines().collect();
    let wanted = [
        format!("SOCKS5 proxy listening on {socks}"),
        "Cluster: context sim, namespace default (https://127.0.0.1:".to_owned(),
        format!("Try: curl --proxy socks5h://{socks} http://SERVICE.NAMESPACE:PORT/"),
        format!("Shell: eval \"$(kubevpn env --use-socks {socks})\""),
    ];
    assert_eq!(lines.len(), wanted.len(), "{log}");
    for (line, wanted) in lines.iter().zip(&wanted) {
        assert!(line.starts_with(wanted), "{line} is not {wanted}");
    }
}

#[tokio::test]
async fn logs_as_json() {
    let rig = Rig::start().await;
    let flags = ["--log-format", "json"];
    let mut proxy = Proxy::spawn(proxy_out(&rig.kubeconfig, &flags))
        .await
        .unwrap();
    let answer = Curl::get(proxy.socks, "http://reviews/").await.unwrap();
    assert_eq!(answer.json().unwrap()["service"], "reviews");
    proxy.logged(&["\"target\":\"access\""]).await.unwrap();
    let log = proxy.log();
    let record = log
        .lines()
        .find(|line| line.contains("\"target\":\"access\""));
    let record: serde_json::Value = serde_json::from_str(record.unwrap()).unwrap();
    let fields = &record["fields"];
    assert_eq!(
        (&record["level"], &fields["target"]),
        (&"INFO".into(), &"reviews:80".into())
    );
    assert!(
        record["timestamp"].is_string() && fields["seconds"].is_number(),
        "{record}"
    );
}

/// Colors are escape sequences: none in a pipe, and with `NO_COLOR` none on a terminal either.
#[tokio::test]
async fn colors_on_request() {
    let rig = Rig::start().await;
    for (color, colored) in [("auto", false), ("always", true), ("never", false)] {
        let flags = ["-v", "--color", color];
        let mut proxy = Proxy::spawn(proxy_out(&rig.kubeconfig, &flags))
            .await
            .unwrap();
        proxy.logged(&["kubeconfig"]).await.unwrap();
        assert_eq!(proxy.log().contains('\u{1b}'), colored, "{color}");
    }
}

/// Standard error is the command's: a log is there for who asks for it.
#[tokio::test]
async fn run_is_silent() {
    let rig = Rig::start().await;
    for (flags, silent) in [(&[][..], true), (&["-v"], false)] {
        let words = [
            &["run", "--kubeconfig", &*rig.kubeconfig][..],
            flags,
            &["--", "curl", "-sS", "http://reviews/"],
        ];
        let output = run_to_end(kubevpn(), words.concat(), &[("RUST_LOG", "")]);
        let output = output.await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.is_empty(), silent, "{said}");
    }
}

async fn says(lines: &mut Lines<BufReader<ChildStderr>>, word: &str) {
    let reading = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(word) {
                return;
            }
        }
        panic!("it ended before it said {word}");
    };
    timeout(PATIENCE, reading).await.unwrap();
}

/// The VPN comes up later.
#[tokio::test]
async fn an_api_server_that_comes_later() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let files = Files::new();
    let kubeconfig = files.write("config", &sim.kubeconfig_yaml());
    sim.faults().go_away();
    let mut command = proxy_out(&kubeconfig, &["--wait-api"]);
    let command = command.stdin(Stdio::null()).kill_on_drop(true);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    says(&mut stderr, "waiting: ").await;
    sim.faults().come_back().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = timeout(PATIENCE, stdout.next_line())
        .await
        .unwrap()
        .unwrap();
    let first = first.unwrap();
    let socks = first.strip_prefix("SOCKS5 proxy listening on ").unwrap();
    let answer = Curl::get(socks.parse().unwrap(), "http://reviews/")
        .await
        .unwrap();
    assert_eq!(answer.json().unwrap()["service"], "reviews");
    child.kill().await.unwrap();
    // With a limit it ends as without the flag.
    sim.faults().go_away();
    let words = [
        "proxy-out",
        "--listen-socks",
        "127.0.0.1:0",
        "--wait-api=100ms",
        "--kubeconfig",
        &kubeconfig,
    ];
    let output = run_to_end(kubevpn(), words, &[]).await.unwrap();
    assert_eq!(output.status.code(), Some(40));
}

/// A unit with `Type=notify` has started when the cluster has answered, and not before.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_service_manager_is_told() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let files = Files::new();
    let kubeconfig = files.write("config", &sim.kubeconfig_yaml());
    let path = files.0.path().join("notify");
    let manager = tokio::net::UnixDatagram::bind(&path).unwrap();
    let told = async || {
        let mut bytes = [0; 4096];
        let received = timeout(PATIENCE, manager.recv(&mut bytes)).await;
        let length = received.unwrap().unwrap();
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    sim.faults().go_away();
    let mut command = proxy_out(&kubeconfig, &["--wait-api", "--quiet"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let command = command.env("NOTIFY_SOCKET", &path).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    // The listeners are bound, and units that come after this one may start.
    assert_eq!(
        told().await,
        ["READY=1", "STATUS=waiting for the API server"]
    );
    let waits = told().await;
    assert!(
        waits.len() == 1 && waits[0].starts_with("STATUS=waiting: "),
        "{waits:?}"
    );
    sim.faults().come_back().unwrap();
    let ready = told().await;
    let status = ready[1].strip_prefix("STATUS=SOCKS5 proxy on ").unwrap();
    let (socks, leads_to) = status.split_once(". ").unwrap();
    assert_eq!((ready.len(), ready[0].as_str()), (2, "READY=1"));
    assert!(leads_to.starts_with("Cluster: context sim, "), "{leads_to}");
    let answer = Curl::get(socks.parse().unwrap(), "http://reviews/")
        .await
        .unwrap();
    assert_eq!(answer.json().unwrap()["service"], "reviews");
    let pid = child.id().unwrap().to_string();
    let sent = Command::new("kill").args(["-TERM", &pid]).status().await;
    assert!(sent.unwrap().success());
    assert_eq!(told().await[0], "STOPPING=1");
    let ended = timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test]
async fn services_with_what_to_paste() {
    let rig = Rig::start().await;
    let services = async |flags: &[&str]| {
        let words = [&["services", "--kubeconfig", &*rig.kubeconfig][..], flags].concat();
        let output = run_to_end(kubevpn(), words, &[]).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let table = services(&[]).await;
    let row = |name: &str| {
        let mut lines = table.lines();
        let row = lines.find(|line| line.split_whitespace().nth(1) == Some(name));
        row.unwrap_or_else(|| panic!("no {name} in\n{table}"))
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    assert!(table.starts_with("NAMESPACE"), "{table}");
    let productpage = row("productpage");
    assert_eq!(productpage[2], "9080(http)");
    assert_eq!(productpage[4], "http://productpage.default:9080/");
    assert_eq!(row("notready")[3], "0");
    assert_eq!(row("kubernetes")[4], "kubernetes.default:443");
    assert!(!table.contains("team-a"), "{table}");
    assert!(services(&["-A"]).await.contains("http://api.team-a/"));
    let names = services(&["-o", "name"]).await;
    assert!(
        names.lines().any(|line| line == "service/reviews"),
        "{names}"
    );
    let json: serde_json::Value = serde_json::from_str(&services(&["-o", "json"]).await).unwrap();
    let mut list = json.as_array().unwrap().iter();
    let reviews = list.find(|service| service["name"] == "reviews").unwrap();
    assert_eq!(reviews["address"], "http://reviews.default/");
    assert!(reviews["readyEndpoints"].as_u64().unwrap() > 0);
}

/// Drawn over itself on a terminal, and gone at the end; the exit code is that of Ctrl-C.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_live_line_on_a_terminal() {
    let line = format!("'{}' demo --listen-socks 127.0.0.1:0", kubevpn().display());
    let mut terminal = Terminal::start(&line);
    terminal.until("\r\u{1b}[K0 connections open, 0 B/s").await;
    terminal.interrupt().await;
    let (said, code) = terminal.ended().await;
    let (_, after) = said.rsplit_once("connections open").unwrap();
    assert!(after.contains("\r\u{1b}[K"), "{said:?}");
    assert_eq!(code, Some(130));
}

/// A port that is free is known to a program before anybody reads a line for people.
#[tokio::test]
async fn listeners_as_json() {
    let rig = Rig::start().await;
    let mut command = Command::new(kubevpn());
    command
        .args(["proxy-out", "-o", "json", "--kubeconfig", &rig.kubeconfig])
        .args([
            "--listen-socks",
            "127.0.0.1:0",
            "--listen-http",
            "127.0.0.1:0",
        ])
        .args(["-L", "127.0.0.1:0:reviews:80"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
    for (protocol, to) in [
        ("socks", None),
        ("http", None),
        ("forward", Some("reviews:80")),
    ] {
        let line = timeout(PATIENCE, stdout.next_line()).await.unwrap();
        let line: serde_json::Value = serde_json::from_str(&line.unwrap().unwrap()).unwrap();
        assert_eq!(line["protocol"], protocol, "{line}");
        assert_eq!(line["to"].as_str(), to, "{line}");
        let address: std::net::SocketAddr = line["address"].as_str().unwrap().parse().unwrap();
        let proxy = match protocol {
            "socks" => format!("socks5h://{address}"),
            _ => format!("http://{address}"),
        };
        let words = match to {
            None => vec!["--proxy", &*proxy, "http://reviews/"],
            Some(_) => vec!["--noproxy", "*", &*proxy],
        };
        let answer = Curl::run(&words).await.unwrap();
        assert_eq!(answer.json().unwrap()["service"], "reviews");
    }
    child.kill().await.unwrap();
    let rest = timeout(PATIENCE, stdout.next_line()).await.unwrap();
    assert_eq!(rest.unwrap(), None);
}

/// A person who asks for JSON at a terminal gets JSON, and what is for people goes to standard error.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn json_is_alone_on_standard_output() {
    let rig = Rig::start().await;
    let home = rig.files.0.path().join("home");
    let line = |words: &str| {
        format!(
            "KUBEVPN_HOME='{}' KUBECONFIG='{}' '{}' {words} -o json 2>/dev/null",
            home.display(),
            rig.kubeconfig,
            kubevpn().display()
        )
    };
    for words in [
        "status",
        "services",
        "check --listen-socks 127.0.0.1:0 reviews:80",
        "resolve reviews:80",
        "resolve notready:80",
        "version",
    ] {
        let (said, _) = Terminal::start(&line(words)).ended().await;
        let document = serde_json::from_str::<serde_json::Value>(&said);
        assert!(document.is_ok(), "{words}: {said:?}");
    }
    let words = "proxy-out --listen-socks 127.0.0.1:0 --admin 127.0.0.1:0";
    let mut terminal = Terminal::start(&line(words));
    terminal.until("\"admin\"").await;
    terminal.interrupt().await;
    let (said, code) = terminal.ended().await;
    let lines: Vec<_> = said
        .lines()
        .map(|line| line.trim_start_matches("^C"))
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!((lines.len(), code), (2, Some(130)), "{said:?}");
    for line in lines {
        let listener: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(listener["address"].is_string(), "{listener}");
    }
}
