//! `kubevpn tap`, at the daemon and at a proxy in the foreground; and that nothing secret is in what it shows and records.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use futures_util::{StreamExt as _, stream};
use kubevpn_proxy::journal::JournalSnapshot;
use kubevpn_scenarios::managed::{id_of, listener};
use kubevpn_scenarios::{Curl, Socks};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::{Duration, sleep};

use crate::{Rig, eventually, kubevpn, works};

/// A program whose lines are read.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Running {
    fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Self {
            stdout: BufReader::new(child.stdout.take().unwrap()),
            stderr: BufReader::new(child.stderr.take().unwrap()),
            child,
            said: String::new(),
        }
    }

    /// `kubevpn tap` with these words, once it listens.
    async fn tap(rig: &Rig, words: &[&str]) -> Self {
        let mut tap = Self::start(rig.managed.command(&[&["tap"], words].concat()));
        eventually("tap listens", async {
            while !tap.said.contains("Looking at proxy") {
                let n = tap.stderr.read_line(&mut tap.said).await.unwrap();
                assert_ne!(n, 0, "{}", tap.said);
            }
        })
        .await;
        tap
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        eventually("a line", self.stdout.read_line(&mut line))
            .await
            .unwrap();
        assert!(line.ends_with('\n'), "{line:?} {}", self.said);
        line
    }

    async fn json(&mut self) -> Value {
        serde_json::from_str(&self.line().await).unwrap()
    }

    /// A line of `tap -o json`, which is as the schema says.
    async fn event(&mut self) -> Value {
        let event = self.json().await;
        check(&event, "docs/tap.schema.json");
        event
    }

    async fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().await;
        assert!(sent.unwrap().success());
    }

    /// Sends a signal and waits for the end; the exit code, and what else was said.
    async fn end(mut self, signal: &str) -> (Option<i32>, String) {
        self.signal(signal).await;
        let rest = async {
            let mut stdout = String::new();
            self.stdout.read_to_string(&mut stdout).await.unwrap();
            self.stderr.read_to_string(&mut self.said).await.unwrap();
            self.said += &stdout;
            self.child.wait().await.unwrap().code()
        };
        let code = eventually("its end", rest).await;
        (code, self.said)
    }
}

/// A daemon's connection with a SOCKS and an HTTP listener.
async fn open(rig: &Rig) -> (String, SocketAddr, SocketAddr) {
    let words = [
        "--socks-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
    ];
    let said = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
    let id = id_of(&said.with(0, &[]).unwrap()).unwrap();
    let status = rig.managed.status().await.unwrap();
    let at = |protocol| listener(&status, &id, protocol).unwrap();
    (id.clone(), at("socks"), at("http"))
}

/// A secret wherever a request may have one.
const CANARY: &str = "q7canary";
/// `jane:q7canary`, as `Basic` credentials have it.
const IN_BASE64: &str = "amFuZTpxN2NhbmFyeQ";

async fn request_with_canaries(http: SocketAddr) {
    let proxy = format!("http://{http}");
    let url = "http://productpage:9080/";
    let line = format!(
        "http://jane:{CANARY}@productpage:9080/?page=2&access_token={CANARY}&next=%2F%3Fsig%3D{CANARY}"
    );
    let fields = [
        format!("Authorization: Bearer {CANARY}"),
        format!("Cookie: seen=1; sid={CANARY}"),
        format!("X-Api-Key: {CANARY}"),
        format!("Referer: http://jane:{CANARY}@web/?token={CANARY}"),
        "X-Page: 3".to_owned(),
    ];
    let user = format!("jane:{CANARY}");
    let mut words = vec![
        "--proxy",
        &proxy,
        "--proxy-basic",
        "--proxy-user",
        &user,
        "--request-target",
        &line,
        url,
    ];
    for field in &fields {
        words.extend(["--header", field]);
    }
    let answer = Curl::run(&words).await.unwrap();
    assert_eq!(answer.json().unwrap()["service"], "productpage");
}

/// curl's exit code through an HTTP proxy.
async fn fetch(http: SocketAddr, url: &str) -> i32 {
    let proxy = format!("http://{http}");
    Curl::run(&["--proxy", &proxy, url]).await.unwrap().code
}

#[track_caller]
fn check(document: &Value, schema: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let schema = std::fs::read(root.join(schema)).unwrap();
    let schema: Value = serde_json::from_slice(&schema).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let errors = schema.iter_errors(document).map(|error| error.to_string());
    assert_eq!(errors.collect::<Vec<_>>(), Vec::<String>::new());
}

#[track_caller]
fn read(path: &Path) -> Value {
    let document = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    check(&document, "integration/tests/golden/har-1.2.schema.json");
    document
}

fn har(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}

#[tokio::test]
async fn tap_records_requests_without_their_secrets() {
    let rig = Rig::start().await;
    let (_, socks, http) = open(&rig).await;
    let dir = tempfile::tempdir().unwrap();
    let (clean, whole) = (har(&dir, "clean.har"), har(&dir, "whole.har"));
    let record = ["-o", "json", "--record"];
    let mut tap = Running::tap(&rig, &[&record[..], &[clean.to_str().unwrap()]].concat()).await;
    assert!(tap.said.contains("not seen"), "{}", tap.said);
    let words = [
        &record[..],
        &[
            whole.to_str().unwrap(),
            "--credentials",
            "--target",
            "productpage:9080",
        ],
    ];
    let mut other = Running::tap(&rig, &words.concat()).await;

    request_with_canaries(http).await;
    let seen = tap.event().await;
    assert_eq!(seen["event"], "connectionClosed");
    assert_eq!(seen["frontend"], "http");
    assert_eq!(seen["exchange"]["method"], "GET");
    assert_eq!(seen["exchange"]["status"], 200);
    let via = seen["via"].as_str().unwrap();
    assert!(via.contains("/productpage"), "{seen}");
    assert!(!seen.to_string().contains(CANARY), "{seen}");

    // What is not HTTP for the proxy is a line, and no entry.
    works(socks).await;
    let seen = tap.event().await;
    assert_eq!(seen["frontend"], "socks5");
    assert_eq!(seen["exchange"], Value::Null);

    assert_eq!(fetch(http, "http://productpage:81/x").await, 22);
    let seen = tap.event().await;
    assert_eq!(seen["event"], "connectionRefused");
    assert_eq!(seen["refusal"], "no_such_port");

    let (code, said) = tap.end("-INT").await;
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("clean.har: 2 requests"), "{said}");
    assert!(!said.contains(CANARY), "{said}");
    let text = std::fs::read_to_string(&clean).unwrap();
    assert!(
        !text.contains(CANARY) && !text.contains(IN_BASE64),
        "{text}"
    );
    let mode = std::fs::metadata(&clean).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let document = read(&clean);
    let entries = document["log"]["entries"].as_array().unwrap();
    let [first, second] = &entries[..] else {
        panic!("{document:#}");
    };
    let url = "http://REDACTED@productpage:9080/?page=2&access_token=REDACTED&next=REDACTED";
    assert_eq!(first["request"]["url"], url);
    assert_eq!(first["response"]["status"], 200);
    let body = first["response"]["content"]["size"].as_u64().unwrap();
    assert!(body > 0);
    let fields = first["request"]["headers"].as_array().unwrap();
    let value = |name: &str| {
        let mut found = fields.iter().filter(|field| field["name"] == name);
        found
            .next()
            .unwrap_or_else(|| panic!("{name} in {fields:?}"))["value"]
            .clone()
    };
    for name in [
        "authorization",
        "cookie",
        "x-api-key",
        "proxy-authorization",
    ] {
        assert_eq!(value(name), "REDACTED", "{name}");
    }
    assert_eq!(value("referer"), "http://REDACTED@web/?token=REDACTED");
    assert_eq!(value("x-page"), "3");
    assert_eq!(second["response"]["status"], 502);
    assert_eq!(second["_refusal"], "no_such_port");

    // The file is whole though nothing could be done at the end; with what it was told to record, of one target.
    other.event().await;
    other.event().await;
    other.end("-KILL").await;
    let text = std::fs::read_to_string(&whole).unwrap();
    assert_eq!(text.matches(CANARY).count(), 10, "{text}");
    assert!(text.contains(IN_BASE64), "{text}");
    let document = read(&whole);
    assert_eq!(document["log"]["entries"].as_array().unwrap().len(), 1);

    // What is there stays.
    let again = ["tap", "--record", clean.to_str().unwrap()];
    let said = rig.managed.run(&again).await.unwrap();
    said.with(23, &["clean.har", "--overwrite"]).unwrap();
    assert_eq!(read(&clean)["log"]["entries"].as_array().unwrap().len(), 2);
    rig.managed.quit().await.unwrap();
}

#[tokio::test]
async fn tap_shows_a_proxy_in_the_foreground_to_its_end() {
    let rig = Rig::start().await;
    let said = rig.managed.run(&["tap"]).await.unwrap();
    said.with(51, &["no proxy runs"]).unwrap();

    let Foreground {
        running: proxy,
        address,
        pid,
    } = Foreground::start(&rig).await;
    let mut tap = Running::tap(&rig, &[&pid]).await;
    let mut refused = Running::tap(&rig, &["--refused"]).await;

    let url = "http://productpage:9080/?token=q7canary";
    assert_eq!(fetch(address, url).await, 0);
    let line = tap.line().await;
    let parts = [
        "http ",
        " 200 ",
        "GET http://productpage:9080/?token=REDACTED -> ",
        "/productpage-",
    ];
    for part in parts {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(Socks::connect(address, "productpage", 81).await.is_err());
    for line in [tap.line().await, refused.line().await] {
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[1..3], ["socks5", "no_such_port"], "{line}");
        assert!(line.contains("productpage:81: "), "{line}");
    }

    // However the proxy ends, `tap` has nothing to look at any more and says so, as `top` does.
    proxy.end("-INT").await;
    over(tap, &pid).await;
    over(refused, &pid).await;
}

#[tokio::test]
async fn tap_of_a_proxy_that_is_killed_fails() {
    let rig = Rig::start().await;
    let proxy = Foreground::start(&rig).await;
    let tap = Running::tap(&rig, &[&proxy.pid]).await;
    proxy.running.end("-KILL").await;
    over(tap, &proxy.pid).await;
}

/// `tap` ends because there is nothing to look at any more, with the exit code of that.
async fn over(mut tap: Running, pid: &str) {
    let rest = async {
        let code = tap.child.wait().await.unwrap().code();
        tap.stderr.read_to_string(&mut tap.said).await.unwrap();
        code
    };
    assert_eq!(eventually("the end of tap", rest).await, Some(80));
    let said = format!("error: the proxy {pid} has ended");
    assert!(tap.said.contains(&said), "{}", tap.said);
}

/// A proxy in the foreground, once it can be looked at.
struct Foreground {
    running: Running,
    address: SocketAddr,
    pid: String,
}

impl Foreground {
    async fn start(rig: &Rig) -> Self {
        Self::start_with(rig, &[]).await
    }

    async fn start_with(rig: &Rig, more: &[&str]) -> Self {
        let words = [
            "proxy-out",
            "--kubeconfig",
            rig.kubeconfig.to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
            "-o",
            "json",
        ];
        let words = [&words[..], more].concat();
        let mut running = Running::start(rig.managed.command(&words));
        let listens = running.json().await;
        let address: SocketAddr = listens["address"].as_str().unwrap().parse().unwrap();
        let pid = running.child.id().unwrap().to_string();
        let socket = rig.file(&format!("foreground/{pid}.sock"));
        eventually("it can be looked at", async {
            while UnixStream::connect(&socket).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        Self {
            running,
            address,
            pid,
        }
    }
}

/// How many connections are more than wait for a program that reads nothing: 1,024 events, and what sockets hold.
const MANY: usize = 3000;

#[tokio::test]
async fn tap_that_is_slow_says_what_it_missed() {
    let rig = Rig::start().await;
    let (_, socks, _) = open(&rig).await;
    let mut tap = Running::tap(&rig, &["-o", "json"]).await;
    tap.signal("-STOP").await;
    let refused = stream::iter(0..MANY).map(async |_| {
        assert!(Socks::connect(socks, "productpage", 81).await.is_err());
    });
    refused.buffer_unordered(50).collect::<Vec<_>>().await;
    tap.signal("-CONT").await;
    // The last one that it sees.
    works(socks).await;
    let (mut lines, mut missed) = (0, 0);
    loop {
        let seen = tap.event().await;
        match seen["event"].as_str().unwrap() {
            "dropped" => missed += seen["events"].as_u64().unwrap(),
            "connectionRefused" => lines += 1,
            "connectionClosed" => break,
            other => panic!("{other} is no line of tap's"),
        }
    }
    // Each was refused, and before that opened, which has no line.
    assert!(missed > 0);
    assert!(lines + missed >= MANY as u64, "{lines} {missed}");
    assert!(lines + missed <= 2 * MANY as u64, "{lines} {missed}");
    let (_, said) = tap.end("-INT").await;
    assert!(
        said.ends_with(&format!(
            "{missed} events were dropped: they came faster than they were read here\n"
        )),
        "{said}"
    );
    rig.managed.quit().await.unwrap();
}

/// Connections whose ends are more than one write.
const HELD: usize = 200;

#[tokio::test]
async fn tap_sees_the_connections_that_a_proxy_cuts_at_its_end() {
    let rig = Rig::start().await;
    let proxy = Foreground::start_with(&rig, &["--drain", "0s"]).await;
    let mut tap = Running::tap(&rig, &["-o", "json"]).await;
    let mut held = Vec::new();
    for _ in 0..HELD {
        held.push(Socks::connect(proxy.address, "multi", 7007).await.unwrap());
    }
    proxy.running.end("-INT").await;
    for _ in 0..HELD {
        let seen = tap.event().await;
        assert_eq!(seen["event"], "connectionClosed");
        assert_eq!(seen["target"], "multi:7007");
    }
    over(tap, &proxy.pid).await;
}

/// Events that are more than a pipe holds (64 KiB), and fewer than are dropped.
const UNREAD: usize = 800;

#[tokio::test]
async fn ctrl_c_ends_commands_whose_output_nobody_reads() {
    let rig = Rig::start().await;
    let (id, socks, _) = open(&rig).await;
    let tap = Running::tap(&rig, &["-o", "json"]).await;
    for _ in 0..UNREAD {
        assert!(Socks::connect(socks, "productpage", 81).await.is_err());
    }
    let logs = Running::start(rig.managed.command(&["logs", "-f", &id]));
    for mut command in [tap, logs] {
        eventually("the pipe is full", async {
            while rustix::io::ioctl_fionread(command.stdout.get_ref()).unwrap() < 50_000 {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        command.signal("-INT").await;
        let ended = eventually("its end", command.child.wait()).await;
        assert_eq!(ended.unwrap().code(), Some(130));
    }
    rig.managed.quit().await.unwrap();
}

#[tokio::test]
async fn recording_that_cannot_begin_replaces_no_file() {
    let rig = Rig::start().await;
    let proxy = Foreground::start(&rig).await;
    let dir = tempfile::tempdir().unwrap();
    let old = har(&dir, "old.har");
    let kept = |said: &str| {
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "old", "{said}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{said}");
    };
    std::fs::write(&old, "old").unwrap();
    let record = ["tap", "--record", old.to_str().unwrap(), "--overwrite"];

    // No byte of the new file can be written.
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$@\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh", kubevpn().to_str().unwrap()])
        .args(record)
        .env("KUBEVPN_HOME", rig.managed.home());
    let output = eventually("its end", command.output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(23), "{said}");
    assert!(said.contains("cannot create"), "{said}");
    kept(&said);

    // There are no events to record.
    proxy.running.end("-INT").await;
    let socket = rig.file("foreground/1.sock");
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let snapshot = serde_json::to_string(&JournalSnapshot::default()).unwrap();
    let silent = tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let mut client = BufReader::new(client);
            let mut head = String::new();
            // A client may only try whether somebody listens.
            while !head.ends_with("\r\n\r\n") && client.read_line(&mut head).await.unwrap() > 0 {}
            let (status, body) = match head.starts_with("GET /v1/proxy/inside ") {
                true => ("200 OK", snapshot.as_str()),
                false => ("503 Service Unavailable", "{}"),
            };
            let length = body.len();
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
            let _ = client.write_all(answer.as_bytes()).await;
        }
    });
    let said = rig.managed.run(&record).await.unwrap();
    let said = said.with(81, &[]).unwrap();
    kept(&format!("{said:?}"));
    silent.abort();
}
