//! What the budgets of the program come to on the real cluster, in numbers: sessions and memory with many Pods in
//! use, connections and requests around an outage of the API server, gateways that swallow or refuse upgrades, an
//! upload that its Pod pauses, and a node that freezes.
//!
//!     cargo run -p lab -- bench budgets
//!
//! The Pods of the first two parts are kwok's, behind the real API server. `--only PART` takes one; the outage takes
//! ten minutes, or `--down SECONDS`.

pub(crate) mod gateway;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{ClusterDaemon, Lab, Signal};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use self::gateway::{CountingRelay, PlainGateway, Treatment, Upgrade};
use crate::subject::{RunningSubject, resident};
use crate::wire;

const PARTS: [&str; 7] = [
    "pods",
    "restart",
    "outage",
    "swallowed",
    "refused",
    "pause",
    "frozen",
];

const SERVICES: u32 = 200;
const PODS: u32 = 100;
const EACH: u32 = 20;

/// Nothing that is waited for here takes longer.
const PATIENCE: Duration = Duration::from_secs(90);

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: budgets\r\n\r\n";

#[derive(Debug, clap::Args)]
pub(crate) struct BudgetArgs {
    /// Only these parts: pods, restart, outage, swallowed, refused, pause, frozen
    #[arg(long = "only", value_name = "PART")]
    only: Vec<String>,
    /// How long the API server is down in the part `outage`
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    down: u64,
    /// The program under test [default: `kubevpn` beside this one]
    #[arg(long)]
    kubevpn: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "the figures")]
pub(crate) async fn run(args: BudgetArgs) -> anyhow::Result<()> {
    for part in &args.only {
        ensure!(PARTS.contains(&part.as_str()), "no part {part}: {PARTS:?}");
    }
    let lab = Lab::attach().await?;
    let kubevpn = match args.kubevpn {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("kubevpn"),
    };
    for part in PARTS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == part) {
            continue;
        }
        let lines = match part {
            "pods" => pods(&lab, &kubevpn).await,
            "restart" => restart(&lab, &kubevpn).await,
            "outage" => outage(&lab, &kubevpn, Duration::from_secs(args.down)).await,
            "swallowed" => swallowed(&lab, &kubevpn).await,
            "refused" => refused(&lab, &kubevpn).await,
            "pause" => pause(&lab, &kubevpn).await,
            _ => frozen(&lab, &kubevpn).await,
        };
        for line in lines.with_context(|| part.to_owned())? {
            println!("{part}: {line}");
        }
    }
    Ok(())
}

/// A GET on a new connection, which stays open.
async fn get(proxy: &RunningSubject, host: &str, port: u16) -> anyhow::Result<TcpStream> {
    timeout(PATIENCE, async {
        let mut stream = proxy.connect_to(host, port).await?;
        wire::exchange(&mut stream, GET, &mut Vec::new()).await?;
        Ok(stream)
    })
    .await
    .context("no answer in time")?
}

fn fake(i: u32) -> String {
    format!("svc-{i}.scale-0")
}

async fn filled(lab: &Lab) -> anyhow::Result<()> {
    if lab.kubectl(&["get", "namespace", "scale-0"]).await.is_err() {
        lab.fill(SERVICES, 1).await?;
    }
    Ok(())
}

fn mib(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}

fn api_server(lab: &Lab) -> anyhow::Result<u32> {
    let status = lab.status()?;
    let found = status
        .into_iter()
        .find(|(d, _)| *d == ClusterDaemon::ApiServer);
    found.and_then(|(_, pid)| pid).context("no API server")
}

/// Many connections to each of many Pods, all held.
async fn pods(lab: &Lab, kubevpn: &Path) -> anyhow::Result<Vec<String>> {
    filled(lab).await?;
    let relay = CountingRelay::start(&lab.kubeconfig()).await?;
    let proxy = RunningSubject::proxy(kubevpn, relay.kubeconfig(), &[]).await?;
    let server = api_server(lab)?;
    let before = (resident(server)?, proxy.resident()?);
    let mark = lab.audit_mark()?;
    let mut held = Vec::new();
    let mut failed = Vec::new();
    for _ in 0..EACH {
        for i in 0..PODS {
            match get(&proxy, &fake(i), 80).await {
                Ok(stream) => held.push(stream),
                Err(error) => failed.push(format!("{error:#}")),
            }
        }
    }
    let mut answered = 0;
    for stream in &mut held {
        let again = timeout(PATIENCE, wire::exchange(stream, GET, &mut Vec::new())).await;
        answered += usize::from(matches!(again, Ok(Ok(_))));
    }
    let after = (resident(server)?, proxy.resident()?);
    let events = lab.audit_since(&mark).await?;
    let upgrades = events.iter().filter(|e| e.subresource == "portforward");
    Ok(vec![
        format!(
            "{answered} of {} connections answered, held together; failed: {failed:?}",
            PODS * EACH
        ),
        format!("{} sessions to {PODS} Pods", upgrades.count()),
        format!(
            "the API server's resident memory: {} before, {} after; ours: {}, {}",
            mib(before.0),
            mib(after.0),
            mib(before.1),
            mib(after.1)
        ),
    ])
}

/// Has every Service in use: looked up, watched and dialled.
async fn in_use(proxy: &RunningSubject) -> anyhow::Result<()> {
    for i in 0..SERVICES {
        get(proxy, &fake(i), 80).await?;
    }
    Ok(())
}

/// Watches that were begun since the mark.
async fn watches(lab: &Lab, mark: &lab::AuditMark) -> anyhow::Result<usize> {
    let events = lab.audit_since(mark).await?;
    Ok(events
        .iter()
        .filter(|e| e.verb == "watch" && e.user_agent.starts_with("kubevpn/"))
        .count())
}

async fn watched_again(lab: &Lab, mark: &lab::AuditMark) -> anyhow::Result<usize> {
    let all = 2 * SERVICES as usize;
    let begun = Instant::now();
    loop {
        let now = watches(lab, mark).await?;
        if now >= all || begun.elapsed() > PATIENCE {
            return Ok(now);
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// The API server ends and is there again at once.
async fn restart(lab: &Lab, kubevpn: &Path) -> anyhow::Result<Vec<String>> {
    filled(lab).await?;
    let relay = CountingRelay::start(&lab.kubeconfig()).await?;
    let proxy = RunningSubject::proxy(kubevpn, relay.kubeconfig(), &[]).await?;
    let mark = lab.audit_mark()?;
    in_use(&proxy).await?;
    let begun = watched_again(lab, &mark).await?;
    let first = (relay.accepted(), relay.reached());
    let away = async { lab.audit_mark() };
    let mark = lab
        .without(ClusterDaemon::ApiServer, Signal::Kill, away)
        .await?;
    let back = Instant::now();
    let again = watched_again(lab, &mark).await?;
    let took = back.elapsed();
    let attempts = relay.accepted() - first.0;
    let handshakes = relay.reached() - first.1;
    Ok(vec![
        format!(
            "{SERVICES} Services in use: {begun} watches, {} connections made so far",
            first.0
        ),
        format!(
            "the restart: {attempts} connections tried, {handshakes} of them TLS handshakes, {again} watches begun within \
             {took:.1?} of its being ready"
        ),
    ])
}

/// The API server is away for minutes while Services are in use.
async fn outage(lab: &Lab, kubevpn: &Path, down: Duration) -> anyhow::Result<Vec<String>> {
    filled(lab).await?;
    let relay = CountingRelay::start(&lab.kubeconfig()).await?;
    let proxy = RunningSubject::proxy(kubevpn, relay.kubeconfig(), &[]).await?;
    let mark = lab.audit_mark()?;
    in_use(&proxy).await?;
    watched_again(lab, &mark).await?;
    let mut attempts = Vec::new();
    let away = async {
        let begun = Instant::now();
        let mut last = relay.accepted();
        while begun.elapsed() < down {
            sleep(Duration::from_secs(10)).await;
            let now = relay.accepted();
            attempts.push(now - last);
            last = now;
        }
        lab.audit_mark()
    };
    let begun = Instant::now();
    let mark = lab
        .without(ClusterDaemon::ApiServer, Signal::Kill, away)
        .await?;
    let back = Instant::now();
    let mut tries = 0;
    while get(&proxy, &fake(tries % SERVICES), 80).await.is_err() {
        tries += 1;
        ensure!(back.elapsed() < PATIENCE, "no answer after the outage");
        sleep(Duration::from_millis(100)).await;
    }
    let answered = back.elapsed();
    let watching = watched_again(lab, &mark).await?;
    let all: u64 = attempts.iter().sum();
    Ok(vec![
        format!(
            "down for {} s: {:.2} connections a second, in each ten seconds {attempts:?}",
            down.as_secs(),
            all as f64 / begun.elapsed().as_secs_f64(),
        ),
        format!(
            "the first answer {answered:.2?} after it was ready again, at attempt {}; {watching} watches after {:.1?}",
            tries + 1,
            back.elapsed()
        ),
    ])
}

/// A gateway that answers some kinds of upgrade with nothing at all.
async fn swallowed(lab: &Lab, kubevpn: &Path) -> anyhow::Result<Vec<String>> {
    use Upgrade::{Channel, Spdy, SpdyInWebSocket};
    let mut lines = Vec::new();
    for swallow in [
        &[][..],
        &[Spdy],
        &[SpdyInWebSocket],
        &[Channel],
        &[Spdy, SpdyInWebSocket],
        &Upgrade::ALL,
    ] {
        let gateway = PlainGateway::start(lab).await?;
        gateway.treat(Treatment {
            swallowed: swallow.to_vec(),
            too_many: 0,
        });
        let proxy = RunningSubject::proxy(kubevpn, gateway.kubeconfig(), &[]).await?;
        let mut times = Vec::new();
        for _ in 0..2 {
            let begun = Instant::now();
            let got = get(&proxy, "reviews", 80).await;
            let took = begun.elapsed();
            times.push(match got {
                Ok(stream) => {
                    drop(stream);
                    format!("{took:.2?}")
                }
                Err(error) => format!("failed after {took:.2?} ({error:#})"),
            });
            // The next one makes a session of its own.
            gateway.cut_upgraded();
        }
        let names: Vec<_> = swallow.iter().map(|u| u.name()).collect();
        lines.push(format!("{names:?}: {}", times.join(", then ")));
    }
    Ok(lines)
}

/// One 429 in the middle of a day.
async fn refused(lab: &Lab, kubevpn: &Path) -> anyhow::Result<Vec<String>> {
    let gateway = PlainGateway::start(lab).await?;
    let proxy = RunningSubject::proxy(kubevpn, gateway.kubeconfig(), &[]).await?;
    get(&proxy, "reviews", 80).await?;
    let mut lines = vec![format!("before: {:?}", gateway.asked())];
    gateway.treat(Treatment {
        too_many: 1,
        ..Treatment::default()
    });
    gateway.cut_upgraded();
    for n in 1..=3 {
        let got = get(&proxy, "reviews", 80).await;
        let said = got.map_or_else(|error| format!("{error:#}"), |_| "answered".into());
        lines.push(format!(
            "connection {n}: {said}; asked for {:?}",
            gateway.asked()
        ));
        gateway.cut_upgraded();
    }
    Ok(lines)
}

/// A Pod that has answered once, and then does not read an upload for a minute.
async fn pause(lab: &Lab, kubevpn: &Path) -> anyhow::Result<Vec<String>> {
    const BYTES: usize = 64 << 20;
    let mut lines = Vec::new();
    for upgrade in Upgrade::ALL {
        let flags = ["--transport", upgrade.name()];
        let proxy = RunningSubject::proxy(kubevpn, &lab.kubeconfig(), &flags).await?;
        let mut stream = get(&proxy, "reviews", 80).await?;
        let begun = Instant::now();
        let head = format!(
            "POST /sink?ms=60000 HTTP/1.1\r\nHost: budgets\r\nContent-Length: {BYTES}\r\n\r\n"
        );
        let upload = async {
            stream.write_all(head.as_bytes()).await?;
            let chunk = vec![0; 256 << 10];
            for _ in 0..BYTES / chunk.len() {
                stream.write_all(&chunk).await?;
            }
            wire::exchange(&mut stream, b"", &mut Vec::new()).await
        };
        let said = match timeout(2 * PATIENCE, upload).await {
            Ok(Ok(_)) => "answered".into(),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "no answer in time".into(),
        };
        lines.push(format!(
            "{}: {said} after {:.1?}",
            upgrade.name(),
            begun.elapsed()
        ));
    }
    Ok(lines)
}

/// A Service with a Pod of the node and one of kwok's, whose node then freezes: what becomes of the connections.
async fn frozen(lab: &Lab, kubevpn: &Path) -> anyhow::Result<Vec<String>> {
    const OBJECTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: frozen, labels: {frozen: "yes"}}
spec:
  nodeName: kwok-0
  automountServiceAccountToken: false
  tolerations: [{operator: Exists}]
  containers: [{name: fake, image: fake, ports: [{name: web, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: frozen}
spec:
  selector: {frozen: "yes"}
  ports: [{port: 80, targetPort: web}]
"#;
    filled(lab).await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), OBJECTS)?;
    let file = file.path().display().to_string();
    let measured = async {
        lab.kubectl(&["apply", "-f", &file]).await?;
        while_frozen(lab, kubevpn).await
    };
    let remove = async {
        let delete = ["delete", "-f", &file, "--ignore-not-found"];
        let at_once = ["--grace-period=0", "--force"];
        lab.kubectl(&[&delete[..], &at_once].concat()).await?;
        lab.kubectl(&["label", "pod", "-l", "app=reviews", "frozen-"])
            .await?;
        Ok(())
    };
    lab::undone(measured, remove).await
}

/// The figures, once the objects of [`frozen`] are there.
async fn while_frozen(lab: &Lab, kubevpn: &Path) -> anyhow::Result<Vec<String>> {
    let label = [
        "label",
        "pod",
        "-l",
        "app=reviews",
        "--overwrite",
        "frozen=yes",
    ];
    lab.kubectl(&label).await?;
    let ready = [
        "get",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=frozen",
        "-o",
        "jsonpath={.items[*].endpoints[*].conditions.ready}",
    ];
    let begun = Instant::now();
    while lab.kubectl(&ready).await?.trim() != "true true" {
        ensure!(
            begun.elapsed() < PATIENCE,
            "two ready endpoints are awaited"
        );
        sleep(Duration::from_millis(200)).await;
    }
    let mut lines = Vec::new();
    for warm in [true, false] {
        let proxy = RunningSubject::proxy(kubevpn, &lab.kubeconfig(), &[]).await?;
        if warm {
            get_all(&proxy, 40).await;
        }
        let stopped = async {
            lab.signal(ClusterDaemon::Kwok, Signal::Stop)?;
            Ok(get_all(&proxy, 200).await)
        };
        let run_on = async { lab.signal(ClusterDaemon::Kwok, Signal::Cont) };
        let got = lab::undone(stopped, run_on).await?;
        let failed = got.iter().filter(|(ok, _)| !ok).count();
        let waited: Vec<_> = got
            .iter()
            .map(|(_, t)| *t)
            .filter(|t| *t > WAITED)
            .collect();
        lines.push(format!(
            "{} Pods: of 200 connections {failed} failed, {} took longer than {WAITED:?}: {waited:.2?}",
            if warm { "with sessions to both" } else { "without a session to the" },
            waited.len(),
        ));
    }
    Ok(lines)
}

/// A connection that takes longer has waited for the frozen node.
const WAITED: Duration = Duration::from_millis(500);

/// GETs on new connections, one after another: whether each was answered, and its time.
async fn get_all(proxy: &RunningSubject, n: usize) -> Vec<(bool, Duration)> {
    let mut got = Vec::new();
    for _ in 0..n {
        let begun = Instant::now();
        let answered = get(proxy, "frozen", 80).await.is_ok();
        got.push((answered, begun.elapsed()));
    }
    got
}
