//! Load while the API server misbehaves.
//!
//! What may fail is fixed beforehand. *Wrong* is an answer of a Service that was not asked; there may be none. A
//! connection *failed that a ready endpoint could have served* when it was refused, or broke before its answer was
//! whole, and neither of these is true of it:
//!
//! - Part of its life was in the outage: from the moment the API server was told to end until it answered again. Every
//!   byte goes through it, so sessions that stood end with it and none can be made.
//! - It *broke*, and part of its life was between a Pod's deletion and [`NEWS`] after its replacement was ready. It may
//!   have been that Pod's; or it was dialled before the proxy could know, its watches being cut, to a port known to be
//!   good, of which nobody says in time that it is not. To be *refused* in that time is a failure like any other:
//!   another replica was ready.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until, timeout};

use super::scenario;
use crate::cluster::{client, cluster_ips, pods};
use crate::proxy::PATIENCE;
use crate::relay::TestRelay;
use crate::{Context, Scenario, Socks};

pub(super) fn list() -> Vec<Scenario> {
    vec![scenario!("chaos", load_while_the_api_server_misbehaves)]
}

/// How long the load goes on beside the outage, in seconds. Ten by default: every transport runs it.
const SECONDS: &str = "KUBEVPN_CHAOS_SECONDS";

const CLIENTS: usize = 4;

/// How far apart Pods are deleted: faster than the real cluster has them ready again would leave no replica.
const REPLACE: Duration = Duration::from_secs(3);

/// How long the news of a change may be on its way when the watch for it is cut that moment.
const NEWS: Duration = Duration::from_secs(1);

/// How long the API server is down, beside what its start takes: long enough that every connection is known to be gone.
const DOWN: Duration = Duration::from_secs(1);

/// One connection of a client.
struct ChaosAttempt {
    begun: Instant,
    ended: Instant,
    host: String,
    outcome: AttemptOutcome,
}

enum AttemptOutcome {
    Answered,
    Wrong(String),
    Refused(String),
    Broken(String),
}

impl fmt::Display for AttemptOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered => f.write_str("answered"),
            Self::Wrong(answer) => write!(f, "wrongly answered: {answer}"),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Broken(why) => write!(f, "broken: {why}"),
        }
    }
}

/// Times in which something was away.
#[derive(Default)]
struct Windows(Mutex<Vec<(Instant, Option<Instant>)>>);

impl Windows {
    fn open(&self) {
        self.lock().push((Instant::now(), None));
    }

    fn close(&self) {
        if let Some(last) = self.lock().last_mut() {
            last.1 = Some(Instant::now());
        }
    }

    /// Whether part of the attempt was in one of them, or so long after it.
    fn touch(&self, attempt: &ChaosAttempt, after: Duration) -> bool {
        let windows = self.lock();
        let mut windows = windows.iter();
        windows.any(|(from, to)| {
            attempt.ended >= *from && to.is_none_or(|to| attempt.begun <= to + after)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Instant, Option<Instant>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls and their watches are cut every second, watches are told 410 Gone, Pods are replaced, and the API server is
/// restarted at half-time.
#[expect(clippy::print_stdout, reason = "figures")]
async fn load_while_the_api_server_misbehaves(cx: Context) -> anyhow::Result<()> {
    let seconds = match std::env::var(SECONDS) {
        Ok(seconds) => seconds
            .parse()
            .with_context(|| format!("{SECONDS}={seconds}"))?,
        Err(_) => 10,
    };
    let kubeconfig = cx.cluster.kubeconfig();
    let api = client(&kubeconfig).await?;
    let relay = TestRelay::start(&kubeconfig).await?;
    let proxy = cx
        .logging_proxy(
            relay.kubeconfig(),
            "warn,kubevpn_cluster::store::watch=debug",
        )
        .await?;
    let ip = cluster_ips(&api, "default", "productpage")
        .await?
        .swap_remove(0);
    let targets = Arc::new([
        ("productpage".to_owned(), 9080, "productpage"),
        (ip, 9080, "productpage"),
        (
            "reviews.default.svc.cluster.local".to_owned(),
            80,
            "reviews",
        ),
        ("api.team-a".to_owned(), 80, "api"),
    ]);
    // A first dial needs a call, and a call a connection that lasts as long: that is another matter.
    for (host, port, service) in targets.iter() {
        let outcome = ask(proxy.socks, host, *port, service).await;
        anyhow::ensure!(
            matches!(outcome, AttemptOutcome::Answered),
            "{host}: {outcome}"
        );
    }
    let begun = Instant::now();
    let half = begun + Duration::from_secs(seconds) / 2;
    let stop = Arc::new(AtomicBool::new(false));

    let mut clients = JoinSet::new();
    for i in 0..CLIENTS {
        let (targets, socks, stop) = (targets.clone(), proxy.socks, stop.clone());
        clients.spawn(async move {
            let mut attempts = Vec::new();
            for (host, port, service) in targets.iter().cycle().skip(i) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let begun = Instant::now();
                let outcome = ask(socks, host, *port, service).await;
                let (ended, host) = (Instant::now(), host.clone());
                attempts.push(ChaosAttempt {
                    begun,
                    ended,
                    host,
                    outcome,
                });
            }
            attempts
        });
    }

    let (outage, replacing) = (Windows::default(), Windows::default());
    let expires = AtomicBool::new(false);
    let cut = async {
        let mut every = interval(Duration::from_secs(1));
        for n in 0_u64.. {
            every.tick().await;
            relay.cut_calls();
            if n % 3 == 1 {
                expires.store(cx.cluster.expire_watches(), Ordering::Relaxed);
            }
        }
    };
    let disturb = async {
        while Instant::now() + REPLACE < half {
            let next = Instant::now() + REPLACE;
            replacing.open();
            replace(&api).await?;
            replacing.close();
            sleep_until(next).await;
        }
        sleep_until(half).await;
        outage.open();
        cx.cluster.stop_api().await?;
        tokio::time::sleep(DOWN).await;
        cx.cluster.start_api().await?;
        outage.close();
        // As long as before, however long that took.
        tokio::time::sleep(half - begun).await;
        anyhow::Ok(())
    };
    tokio::select! {
        () = cut => {}
        disturbed = disturb => disturbed?,
    }
    stop.store(true, Ordering::Relaxed);
    let attempts = timeout(PATIENCE, clients.join_all())
        .await
        .context("a client hangs")?;
    let attempts: Vec<_> = attempts.into_iter().flatten().collect();

    let (mut answered, mut after, mut in_outage, mut in_replacing) = (0, 0, 0, 0);
    let mut failed = Vec::new();
    for attempt in &attempts {
        match &attempt.outcome {
            AttemptOutcome::Answered => {
                answered += 1;
                after +=
                    usize::from(attempt.begun > half && !outage.touch(attempt, Duration::ZERO));
            }
            AttemptOutcome::Wrong(_) => failed.push(attempt),
            _ if outage.touch(attempt, Duration::ZERO) => in_outage += 1,
            AttemptOutcome::Broken(_) if replacing.touch(attempt, NEWS) => in_replacing += 1,
            _ => failed.push(attempt),
        }
    }
    let gone = proxy.log().matches("watch too far behind").count();
    let outside = attempts.iter().filter(|a| !outage.touch(a, NEWS));
    let slowest = outside.max_by_key(|a| a.ended - a.begun);
    let slowest = slowest.map(|a| (a.ended - a.begun, &a.host, a.begun - begun));
    println!(
        "{seconds} s: {answered} of {} connections answered, {after} of them after the restart; {in_outage} failed in \
         the outage, {in_replacing} with a Pod that was deleted, {} otherwise; {gone} times 410 Gone; the slowest \
         outside the outage (time, host, begun): {slowest:.2?}",
        attempts.len(),
        failed.len(),
    );
    let told: Vec<_> = failed
        .iter()
        .take(10)
        .map(|a| {
            let (from, to) = (a.begun - begun, a.ended - begun);
            format!("{} from {from:.2?} to {to:.2?}: {}", a.host, a.outcome)
        })
        .collect();
    // The log first: the end of a long text is what is read.
    anyhow::ensure!(
        failed.is_empty(),
        "the log:\n{}\n{} connections failed or were answered wrongly (the outage began at {:.2?}):\n{}",
        proxy.log(),
        failed.len(),
        half - begun,
        told.join("\n"),
    );
    // A real API server says it after its restart, to watches that were not listed anew by then.
    anyhow::ensure!(
        gone > 0 || !expires.into_inner(),
        "{}\nno watch was told 410 Gone",
        proxy.log()
    );
    anyhow::ensure!(after > 0 && answered > CLIENTS * 10, "that was no load");
    Ok(())
}

/// Deletes a Pod and waits until there are as many ready ones as before.
async fn replace(api: &kube::Client) -> anyhow::Result<()> {
    let ready = |pod: &Pod| {
        let conditions = pod
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten());
        conditions
            .into_iter()
            .any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let before = pods(api, "default", "productpage").await?;
    let victim = before
        .first()
        .and_then(|pod| pod.metadata.name.clone())
        .context("no Pod")?;
    let at_once = kube::api::DeleteParams::default().grace_period(0);
    Api::<Pod>::namespaced(api.clone(), "default")
        .delete(&victim, &at_once)
        .await?;
    let replaced = async {
        loop {
            let now = pods(api, "default", "productpage").await?;
            let there = now
                .iter()
                .filter(|p| p.metadata.name.as_deref() != Some(&victim) && ready(p))
                .count();
            if there >= before.len() {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, replaced)
        .await
        .context("the Pod is not replaced")?
}

/// One HTTP request over one connection.
async fn ask(socks: std::net::SocketAddr, host: &str, port: u16, service: &str) -> AttemptOutcome {
    let mut stream = match timeout(PATIENCE, Socks::connect(socks, host, port)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return AttemptOutcome::Refused(format!("{error:#}")),
        Err(_) => return AttemptOutcome::Refused("no answer to CONNECT".into()),
    };
    match timeout(PATIENCE, get(&mut stream, host)).await {
        Ok(Ok(answer)) if answer["service"] == service => AttemptOutcome::Answered,
        Ok(Ok(answer)) => AttemptOutcome::Wrong(answer.to_string()),
        Ok(Err(error)) => AttemptOutcome::Broken(format!("{error:#}")),
        Err(_) => AttemptOutcome::Broken("no answer to GET".into()),
    }
}

async fn get(stream: &mut TcpStream, host: &str) -> anyhow::Result<serde_json::Value> {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            anyhow::bail!("it ended after {} bytes", answer.len());
        }
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>())
        });
        let length = length.context("an answer without a length")??;
        if body.len() >= length {
            return Ok(serde_json::from_str(body)?);
        }
    }
}
