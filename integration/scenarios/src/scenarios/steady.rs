//! What connections cost the API server once all is known, and how soon news is used.

use std::collections::HashSet;
use std::time::Duration;

use kube::api::DeleteParams;
use kube::config::Kubeconfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::scenario;
use crate::cluster::{ApiRequest, client, cluster_ips, pods};
use crate::space::{Echo, Space, service, until};
use crate::{Context, Proxy, Scenario, Socks};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("steady", a_thousand_connections_ask_nothing, One),
        scenario!("steady", a_new_endpoint_is_used_at_once, One),
        scenario!("steady", two_hundred_services_share_connections, One),
    ]
}

#[expect(clippy::print_stdout, reason = "a figure for whoever runs this")]
pub(super) fn figure(text: &str) {
    println!("    {text}");
}

async fn echoed(proxy: &Proxy, host: &str, port: u16) -> anyhow::Result<()> {
    let mut stream = Socks::connect(proxy.socks, host, port).await?;
    stream.write_all(b"ping").await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    anyhow::ensure!(&answer == b"ping", "{host}:{port} answered {answer:?}");
    Ok(())
}

/// Every form of a target, each asked for once before. What opens and keeps port-forward sessions is not counted.
async fn a_thousand_connections_ask_nothing(cx: Context) -> anyhow::Result<()> {
    const CONNECTIONS: usize = 1000;
    const AT_ONCE: usize = 8;
    let kubeconfig = cx.cluster.kubeconfig();
    let api = client(&kubeconfig).await?;
    let pod = pods(&api, "default", "multi").await?.swap_remove(0);
    let pod_ip = pod.status.and_then(|s| s.pod_ip).unwrap_or_default();
    let pod_name = pod.metadata.name.unwrap_or_default();
    let hosts = [
        "multi".to_owned(),
        "multi.default".into(),
        "multi.default.svc.cluster.local".into(),
        cluster_ips(&api, "default", "multi").await?.swap_remove(0),
        pod_ip.clone(),
        format!("{pod_name}.default.pod"),
        format!("{}.default.pod", pod_ip.replace('.', "-")),
    ];
    let before = cx.cluster.mark().await?;
    let proxy = cx.proxy(&kubeconfig, &[]).await?;
    for host in &hosts {
        echoed(&proxy, host, 7007).await?;
    }
    let cold = cx.cluster.asked_since(before).await?;
    let reads = cold.iter().filter(|asked| asked.is_read()).count();
    anyhow::ensure!(
        reads > 0,
        "no read was seen when everything was asked for first"
    );
    let before = cx.cluster.mark().await?;
    for round in 0..CONNECTIONS / AT_ONCE {
        let at_once = (0..AT_ONCE).map(|n| {
            let host = &hosts[(round * AT_ONCE + n) % hosts.len()];
            echoed(&proxy, host, 7007)
        });
        futures_util::future::try_join_all(at_once).await?;
    }
    let steady = cx.cluster.asked_since(before).await?;
    // Where upgrades take long, as on a busy machine, one page of a namespace's slices is read once in two hours.
    let is_page = |asked: &&ApiRequest| asked.uri.contains("/endpointslices?&limit=64");
    let (pages, reads_now): (Vec<_>, Vec<_>) = steady
        .iter()
        .filter(|asked| asked.is_read())
        .partition(is_page);
    let ours = |verb: &str| {
        let ours = steady
            .iter()
            .filter(|a| a.user_agent.starts_with("kubevpn/"));
        ours.filter(|a| a.verb == verb).count()
    };
    figure(&format!(
        "{} forms of target: {reads} reads when cold; {CONNECTIONS} connections later: {} reads, {} watches, {} other requests",
        hosts.len(),
        reads_now.len(),
        ours("watch"),
        steady
            .iter()
            .filter(|a| a.user_agent.starts_with("kubevpn/") && a.verb != "watch")
            .count()
            - reads_now.len()
            - pages.len(),
    ));
    anyhow::ensure!(reads_now.is_empty(), "read again: {reads_now:?}");
    anyhow::ensure!(pages.len() <= 1, "read again: {pages:?}");
    Ok(())
}

/// Asks again and again until the Pod answers; how long that took.
async fn used_by(proxy: &Proxy, pod: &str) -> anyhow::Result<Duration> {
    let since = Instant::now();
    let used = async {
        loop {
            match Socks::who(proxy.socks, "web", 2525).await {
                Ok(who) if who == pod => return,
                // Another one, or none yet.
                _ => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), used)
        .await
        .map_err(|_| anyhow::anyhow!("{pod} is ready, and not used: {}", proxy.log()))?;
    Ok(since.elapsed())
}

async fn a_new_endpoint_is_used_at_once(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let web = Echo {
        env: &[("GREET_PORTS", "2525")],
        ..Echo::default()
    };
    let port = service("web", "web", "{port: 2525}");
    space
        .create(&(web.workload("Deployment", 1) + &port))
        .await?;
    let first = space.ready("web", 1).await?.swap_remove(0);
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &space.flags()).await?;
    anyhow::ensure!(
        Socks::who(proxy.socks, "web", 2525).await? == first,
        "not the pod"
    );

    space.scale("web", 2).await?;
    let both = space.ready("web", 2).await?;
    let second = both
        .into_iter()
        .find(|pod| *pod != first)
        .unwrap_or_default();
    let scaled = used_by(&proxy, &second).await?;

    space.scale("web", 1).await?;
    let left = space.ready("web", 1).await?.swap_remove(0);
    space.pods().delete(&left, &DeleteParams::default()).await?;
    let replacement = until("the pod to be replaced", async || {
        let pods = space.endpoints("web").await?;
        let new = pods
            .into_iter()
            .find(|(pod, ready)| *ready && *pod != left && *pod != first && *pod != second);
        Ok(new.map(|(pod, _)| pod))
    })
    .await?;
    let replaced = used_by(&proxy, &replacement).await?;
    figure(&format!(
        "used after it was seen to be ready: a scaled endpoint {scaled:?}, a replaced one {replaced:?}"
    ));
    Ok(())
}

/// Each has a watch of its own and one of its endpoints.
async fn two_hundred_services_share_connections(cx: Context) -> anyhow::Result<()> {
    const SERVICES: usize = 200;
    // Watches and calls: 64 to a connection. The rest is for calls and for the sessions to the one Pod.
    const MOST: usize = 2 * SERVICES / 64 + 6;
    let space = Space::new(&cx).await?;
    let web = Echo {
        env: &[("GREET_PORTS", "2525")],
        ..Echo::default()
    };
    let mut objects = web.pod();
    for n in 0..SERVICES {
        objects += &service(&format!("web-{n}"), "web", "{port: 2525}");
    }
    space.create(&objects).await?;
    space.pod_ip("web").await?;
    for n in 0..SERVICES {
        space.ready(&format!("web-{n}"), 1).await?;
    }
    let kubeconfig = cx.cluster.kubeconfig();
    let proxy = cx.proxy(&kubeconfig, &space.flags()).await?;
    for n in 0..SERVICES {
        Socks::who(proxy.socks, &format!("web-{n}"), 2525).await?;
    }
    let open = connections(proxy.pid()?, server_port(&kubeconfig)?)?;
    figure(&format!(
        "{SERVICES} services used: {open} connections to the API server, port-forward sessions included"
    ));
    anyhow::ensure!(
        open <= MOST,
        "{open} connections to the API server, more than {MOST}"
    );
    Ok(())
}

fn server_port(kubeconfig: &std::path::Path) -> anyhow::Result<u16> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let mut clusters = config.clusters.into_iter().filter_map(|c| c.cluster);
    let server = clusters.find_map(|c| c.server).unwrap_or_default();
    Ok(server.rsplit(':').next().unwrap_or_default().parse()?)
}

/// The TCP connections of a process to a port, in any state: its sockets' inodes in the kernel's table (proc(5)).
fn connections(pid: u32, port: u16) -> anyhow::Result<usize> {
    let mut sockets = HashSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that was closed meanwhile is none.
        if let Ok(link) = std::fs::read_link(entry?.path())
            && let Some(text) = link.to_str()
            && let Some(inode) = text.strip_prefix("socket:[")
        {
            sockets.insert(inode.trim_end_matches(']').to_owned());
        }
    }
    let remote = format!(":{port:04X}");
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
    let rows = table.lines().skip(1).map(|line| line.split_whitespace());
    let ours = rows.filter(|row| {
        let mut row = row.clone();
        let to = row.clone().nth(2).unwrap_or_default();
        to.ends_with(&remote) && row.nth(9).is_some_and(|inode| sockets.contains(inode))
    });
    Ok(ours.count())
}
