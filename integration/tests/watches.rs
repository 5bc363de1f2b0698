//! How soon a change is seen behind an nginx that lets calls through and not watches.
//!
//! One nginx with a port for each way of failing stands before the API server; behind each port a view of its own follows
//! one Service, asked ten times a second as by a busy proxy. Its EndpointSlice is changed twice: soon after the first lookup,
//! and when everything has been tried; kubectl's time for that is counted too.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::future::join_all;
use kubevpn_client::{Env, KubeconfigArgs, Options, build, load};
use kubevpn_stack::{Answer, Cluster, ClusterSettings};
use kubevpn_target::Host;
use lab::Lab;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use crate::nginx::{nginx, write};

/// What nginx does to a watch; `HOLE` is an address that answers nothing.
const WAYS: &[(&str, &str)] = &[
    ("passed on", "proxy_buffering off;"),
    ("400", "if ($arg_watch) { return 400; }"),
    ("403", "if ($arg_watch) { return 403; }"),
    ("404", "if ($arg_watch) { return 404; }"),
    ("405", "if ($arg_watch) { return 405; }"),
    ("410", "if ($arg_watch) { return 410; }"),
    ("429", "if ($arg_watch) { return 429; }"),
    ("500", "if ($arg_watch) { return 500; }"),
    ("501", "if ($arg_watch) { return 501; }"),
    ("503", "if ($arg_watch) { return 503; }"),
    ("connection closed", "if ($arg_watch) { return 444; }"),
    ("no answer", "if ($arg_watch) { proxy_pass http://HOLE; }"),
    (
        "buffered",
        "proxy_buffers 8 256k; proxy_buffer_size 256k; proxy_busy_buffers_size 512k;",
    ),
    (
        "cut after 3 s of silence",
        "proxy_buffering off; proxy_read_timeout 3s;",
    ),
];

/// The view is at most 30 s old, and a slow machine has as much again.
const BOUND: Duration = Duration::from_secs(60);

#[expect(clippy::print_stdout, reason = "the table")]
pub(crate) async fn however_they_fail() -> anyhow::Result<()> {
    let lab = Lab::attach().await?;
    let namespace = format!("watches-{}", std::process::id());
    let dir = tempfile::tempdir()?;
    let (_nginx, ports) = failing(&lab, &dir).await?;
    let measured = async {
        apply(&lab, &dir, &namespace, "a").await?;
        let mut clusters = Vec::new();
        for port in &ports {
            clusters.push(cluster(&dir, &namespace, *port)?);
        }
        let seen = |pod: &'static str| join_all(clusters.iter().map(move |c| seen(c, pod)));
        for (first, (way, _)) in seen("a").await.into_iter().zip(WAYS) {
            first.with_context(|| format!("{way}: the first lookup"))?;
        }
        let change = async |pod: &'static str| {
            let (applied, seen) = tokio::join!(apply(&lab, &dir, &namespace, pod), seen(pod));
            applied.map(|()| seen)
        };
        let busy = |time| timeout(time, seen("nobody"));
        drop(busy(Duration::from_secs(2)).await);
        let soon = change("b").await?;
        drop(busy(Duration::from_secs(20)).await);
        let later = change("c").await?;
        anyhow::Ok((soon, later))
    };
    let measured = measured.await;
    lab.kubectl(&["delete", "namespace", &namespace, "--wait=false"])
        .await?;
    let (soon, later) = measured?;
    println!("\n| a watch is | a change is seen after | and later |\n|-|-|-|");
    let mut late = Vec::new();
    for (((way, _), soon), later) in WAYS.iter().zip(soon).zip(later) {
        let text = |seen: &Option<Duration>| match seen {
            Some(after) => format!("{:.1} s", after.as_secs_f64()),
            None => format!("more than {BOUND:?}"),
        };
        println!("| {way} | {} | {} |", text(&soon), text(&later));
        if soon.is_none() || later.is_none() {
            late.push(*way);
        }
    }
    ensure!(late.is_empty(), "not seen within {BOUND:?}: {late:?}");
    Ok(())
}

/// Asks until this Pod is the endpoint; after how long.
async fn seen(cluster: &Cluster, pod: &str) -> Option<Duration> {
    let begun = Instant::now();
    let host = Host::parse("web").ok()?;
    let asking = async {
        loop {
            if let Ok(Answer::Pods(pods)) = cluster.lookup(&host, None).await
                && pods.endpoints.iter().any(|e| e.pod.name == pod)
            {
                return begun.elapsed();
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(BOUND, asking).await.ok()
}

async fn apply(lab: &Lab, dir: &TempDir, namespace: &str, pod: &str) -> anyhow::Result<()> {
    let objects = format!(
        "
{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: {namespace}}}
spec: {{ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
endpoints: [{{addresses: [10.1.1.1], targetRef: {{kind: Pod, namespace: {namespace}, name: {pod}}}}}]
ports: [{{port: 80}}]
"
    );
    let file = write(dir.path(), "objects.yaml", &objects)?;
    lab.kubectl(&["apply", "-f", &file]).await?;
    Ok(())
}

fn cluster(dir: &TempDir, namespace: &str, port: u16) -> anyhow::Result<Cluster> {
    let kubeconfig = format!(
        "{{apiVersion: v1, kind: Config, current-context: x, contexts: [{{name: x, context: {{cluster: x, user: x}}}}], \
         clusters: [{{name: x, cluster: {{server: 'http://127.0.0.1:{port}'}}}}], users: [{{name: x, user: {{}}}}]}}"
    );
    let kubeconfig = write(dir.path(), &format!("kubeconfig-{port}"), &kubeconfig)?;
    let args = KubeconfigArgs {
        kubeconfig: Some(kubeconfig.into()),
        ..KubeconfigArgs::default()
    };
    let config = load(&args, &Env::of_process())?.config;
    let client = build(config, &Options::new("kubevpn-watches"))?;
    let settings = ClusterSettings {
        namespace: namespace.to_owned(),
        ..ClusterSettings::default()
    };
    Ok(Cluster::new(client, settings))
}

/// The nginx, and its port for each of the ways.
async fn failing(lab: &Lab, dir: &TempDir) -> anyhow::Result<(Child, Vec<u16>)> {
    // It accepts, and answers nothing.
    let hole = TcpListener::bind("127.0.0.1:0").await?;
    let hole_address = hole.local_addr()?.to_string();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = hole.accept().await {
            held.push(connection);
        }
    });
    let servers = WAYS.iter().map(|(_, way)| {
        let way = way.replace("HOLE", &hole_address);
        format!("listen ADDRESS; location / {{ {way} proxy_pass API; }}")
    });
    nginx(lab, dir.path(), &servers.collect::<Vec<_>>()).await
}
