//! What a cluster spends on each transport of a port-forward, and which of them `auto` takes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::time::Instant;

use crate::Lab;
use crate::command::{command, output};
use crate::daemon::ClusterDaemon;
use crate::matrix::Rows;
use crate::proxy::ProxyUnderTest;

const SERVICE: &str = "http://productpage.default:9080";
/// Down, over one connection.
const BYTES: u32 = 500_000_000;
/// One after the other, each with a request of its own.
const CONNECTIONS: u32 = 200;
/// Those that a port-forward passes through.
const DAEMONS: [ClusterDaemon; 3] = [
    ClusterDaemon::ApiServer,
    ClusterDaemon::Kubelet,
    ClusterDaemon::Containerd,
];

/// Number of WebSocket requests, labelled by the component that answers them (API server or kubelet); since Kubernetes 1.36.
const METRIC: &str = "apiserver_websocket_streaming_requests_total{";

impl Lab {
    /// Time, and the processor time of API server, kubelet and containerd, for a download and for connections.
    pub(crate) async fn transports(&self, kubevpn: &Path) -> Result<Rows> {
        let dir = tempfile::tempdir()?;
        let kubeconfig = dir.path().join("kubeconfig");
        fs::copy(self.kubeconfig(), &kubeconfig)?;
        let mut transports = vec!["spdy", "spdy-ws", "ws"];
        if !self.carries_spdy_in_websocket().await? {
            transports.retain(|t| *t != "spdy-ws");
        }
        let begun = self.websockets().await?;
        let mut rows = Rows::new();
        let mut least = (Duration::MAX, "");
        for transport in transports {
            let flags = ["--transport", transport];
            let mut proxy = ProxyUnderTest::start(kubevpn, &kubeconfig, None, &flags).await?;
            reach(&mut proxy, "/").await?;
            let begun = self.spent()?;
            let path = format!("/bytes?n={BYTES}");
            reach(&mut proxy, &path).await?;
            let between = self.spent()?;
            let mut curl = command("curl")?;
            curl.args(["-sS", "--fail", "--noproxy", "", "--proxytunnel", "--proxy"])
                .arg(proxy.url())
                .args(["-H", "Connection: close", "-o", "/dev/null"])
                .arg(format!("{SERVICE}/?[1-{CONNECTIONS}]"));
            output(&mut curl).await?;
            let ended = self.spent()?;
            let what = format!("{} MB down, `{transport}`", BYTES / 1_000_000);
            rows.push((what, between.since(&begun)));
            let what = format!("{CONNECTIONS} connections, `{transport}`");
            rows.push((what, ended.since(&between)));
            least = least.min((ended.in_all() - begun.in_all(), transport));
        }
        rows.push((
            "least processor time in all".into(),
            format!("`{}`", least.1),
        ));
        let mut proxy = ProxyUnderTest::start(kubevpn, &kubeconfig, None, &[]).await?;
        let auto = reach(&mut proxy, "/").await?;
        rows.push(("`auto` takes".into(), format!("`{auto}`")));
        let counted: Vec<String> = self
            .websockets()
            .await?
            .into_iter()
            .map(|(labels, count)| {
                (
                    count.saturating_sub(*begun.get(&labels).unwrap_or(&0)),
                    labels,
                )
            })
            .filter(|(count, _)| *count > 0)
            .map(|(count, labels)| format!("{count} `{labels}`"))
            .collect();
        let counted = match counted.is_empty() {
            true => "none (it came with 1.36)".to_owned(),
            false => counted.join(", "),
        };
        rows.push(("WebSockets, by the API server's metric".into(), counted));
        Ok(rows)
    }

    fn spent(&self) -> Result<Spent> {
        let mut processor = [Duration::ZERO; DAEMONS.len()];
        for (spent, daemon) in processor.iter_mut().zip(DAEMONS) {
            let process = self.written(daemon)?;
            let process = process.first().with_context(|| daemon.name())?;
            *spent = process.processor_time().with_context(|| daemon.name())?;
        }
        Ok(Spent {
            at: Instant::now(),
            processor,
        })
    }

    /// Number of WebSockets so far, by the labels of [`METRIC`].
    async fn websockets(&self) -> Result<BTreeMap<String, u64>> {
        let metrics = self.kubectl(&["get", "--raw", "/metrics"]).await?;
        let counted = metrics.lines().filter_map(|line| {
            let (labels, count) = line.strip_prefix(METRIC)?.rsplit_once("} ")?;
            Some((labels.to_owned(), count.parse().ok()?))
        });
        Ok(counted.collect())
    }
}

/// The transport of a connection that has to be answered.
async fn reach(proxy: &mut ProxyUnderTest, path: &str) -> Result<String> {
    match proxy.reach(&format!("{SERVICE}{path}")).await?.how {
        Ok(transport) => Ok(transport),
        Err(refused) => bail!("refused: {refused}"),
    }
}

/// Processor time of [`DAEMONS`] so far.
struct Spent {
    at: Instant,
    processor: [Duration; DAEMONS.len()],
}

impl Spent {
    fn in_all(&self) -> Duration {
        self.processor.iter().sum()
    }

    /// A cell of a table.
    fn since(&self, earlier: &Self) -> String {
        let spent = self.processor.iter().zip(&earlier.processor);
        let spent = spent.map(|(now, then)| format!("{:.2}", (*now - *then).as_secs_f64()));
        let spent: Vec<String> = spent.collect();
        let took = (self.at - earlier.at).as_secs_f64();
        format!("{took:.1} s; {}", spent.join(", "))
    }
}
