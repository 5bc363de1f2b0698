//! What a first dial costs in a small cluster and in a large one: API requests by the audit log, and memory.
//!
//! The claims are that neither grows with the cluster: requests are the same, resident memory differs by less than
//! [`MEMORY`], and nothing that is dialled makes the proxy list all objects of a kind.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tracing::info;

use crate::command::{command, output, require};
use crate::process::until;
use crate::{AuditEvent, Extent, Lab};

/// Services in the small cluster, and Pods behind each in both.
const SMALL: u32 = 10;
const EACH: u32 = 4;

/// How much more memory the proxy may take in the large one, in KiB.
const MEMORY: u64 = 10 * 1024;

/// How many Services are used at once for the count of connections.
const USED: u32 = 200;

/// Long enough for any machine; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// How what is asked for begins in words when it grows with the cluster.
const ALL: &str = "list all ";

/// What was measured in one cluster.
#[derive(Debug)]
pub struct ScaleMeasured {
    /// Of the cluster.
    pub services: u32,
    /// Of the cluster.
    pub pods: u32,
    /// What was dialled first, and what that made the proxy ask: `get ipaddresses` and so on, in words; `list all`
    /// where no selector keeps the answer small.
    pub dials: Vec<(&'static str, ApiCalls)>,
    /// Resident memory of the proxy after all of them, in KiB.
    pub resident: u64,
    /// At its highest, in KiB.
    pub peak: u64,
}

/// Questions to the API server, counted by verb and resource. Watches are not among them, nor port-forwards.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ApiCalls(BTreeMap<String, usize>);

/// Connections to the API server with many Services in use.
#[derive(Debug)]
pub struct Connections {
    /// Services that were dialled.
    pub services: u32,
    /// Watches that were begun.
    pub watches: usize,
    /// Port-forward sessions that were begun, each a connection of its own.
    pub sessions: usize,
    /// Connections that are open.
    pub open: usize,
}

impl fmt::Display for ApiCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self
            .0
            .iter()
            .map(|(what, n)| format!("{n} {what}"))
            .collect();
        f.write_str(&all.join(", "))
    }
}

impl ApiCalls {
    fn total(&self) -> usize {
        self.0.values().sum()
    }
}

/// What does not hold, of two clusters.
pub fn contradictions(small: &ScaleMeasured, large: &ScaleMeasured) -> Vec<String> {
    let mut all = Vec::new();
    for ((what, few), (_, many)) in small.dials.iter().zip(&large.dials) {
        if few.total() == 0 {
            all.push(format!(
                "{what}: the first dial asked nothing, so nothing was counted"
            ));
        }
        for (asked, _) in many.0.iter().filter(|(asked, _)| asked.starts_with(ALL)) {
            all.push(format!("{what}: the first dial took to {asked}"));
        }
        if few != many {
            all.push(format!(
                "{what}: {few} in the small cluster, {many} in the large one"
            ));
        }
    }
    let more = large.resident.saturating_sub(small.resident);
    if more >= MEMORY {
        all.push(format!(
            "{more} KiB more resident memory, and less than {MEMORY} was claimed"
        ));
    }
    all
}

impl Lab {
    /// Measures a control plane of its own, small and then with so many Services, with this `kubevpn`. Minutes.
    ///
    /// # Errors
    /// A cluster that is up already and filled; what did not come up, or could not be dialled.
    pub async fn scale(
        &self,
        kubevpn: &Path,
        services: u32,
    ) -> Result<(Vec<ScaleMeasured>, Connections)> {
        require(&["curl"])?;
        ensure!(
            services >= USED,
            "{services} Services are too few: {USED} are used at once"
        );
        ensure!(
            kubevpn.is_file(),
            "no program {}: cargo build -p kubevpn",
            kubevpn.display()
        );
        self.up(Extent::ControlPlane).await?;
        ensure!(
            self.kubectl(&["get", "namespace", "scale-0"])
                .await
                .is_err(),
            "this cluster is filled already: cargo run -p lab -- down"
        );
        let mut measured = Vec::new();
        for services in [SMALL, services] {
            self.fill(services, EACH).await?;
            measured.push(self.measure(kubevpn, services).await?);
            info!("measured with {services} Services");
        }
        let connections = self.connections(kubevpn).await?;
        Ok((measured, connections))
    }

    async fn measure(&self, kubevpn: &Path, services: u32) -> Result<ScaleMeasured> {
        for i in 0..4 {
            self.endpoints(&format!("svc-{i}")).await?;
        }
        let proxy = ScaleProxy::start(kubevpn, &self.kubeconfig()).await?;
        let of = async |what: &str, path: &str| {
            let path = format!("jsonpath={path}");
            let words = ["get", "-n", "scale-0", what, "-o", &path];
            self.kubectl(&words).await
        };
        let cluster_ip = of("service/svc-2", "{.spec.clusterIP}").await?;
        let pod_ip = of("pod/svc-3-0", "{.status.podIP}").await?;
        let mut dials = Vec::new();
        for (what, url) in [
            ("a short name", "http://svc-0.scale-0/".to_owned()),
            (
                "a name in full",
                "http://svc-1.scale-0.svc.cluster.local/".to_owned(),
            ),
            ("a ClusterIP", format!("http://{cluster_ip}/")),
            ("a Pod IP", format!("http://{pod_ip}:8080/")),
        ] {
            let asked = self.asked_for(&proxy, &url).await?;
            let again = self.asked_for(&proxy, &url).await?;
            ensure!(again.total() == 0, "the second dial of {url} asked {again}");
            dials.push((what, asked));
        }
        let (resident, peak) = proxy.memory()?;
        let pods = services * EACH;
        Ok(ScaleMeasured {
            services,
            pods,
            dials,
            resident,
            peak,
        })
    }

    /// Waits until all Pods of a Service are in its EndpointSlices: one that is not ready is explained to the client,
    /// which takes a question more.
    async fn endpoints(&self, service: &str) -> Result<()> {
        let label = format!("kubernetes.io/service-name={service}");
        let path = "jsonpath={.items[*].endpoints[*].conditions.ready}";
        let words = [
            "get",
            "endpointslices",
            "-n",
            "scale-0",
            "-l",
            &label,
            "-o",
            path,
        ];
        until(
            PATIENCE * 5,
            "endpoints of the Services to dial",
            async || {
                let ready = self.kubectl(&words).await?;
                let ready = ready.split_whitespace().filter(|ready| *ready == "true");
                Ok((ready.count() == EACH as usize).then_some(()))
            },
        )
        .await
    }

    /// What a dial makes the proxy ask.
    async fn asked_for(&self, proxy: &ScaleProxy, url: &str) -> Result<ApiCalls> {
        let mark = self.audit_mark()?;
        proxy.get(url).await?;
        let mut asked = ApiCalls::default();
        for event in self.audit_since(&mark).await? {
            let ours = event.user_agent.starts_with("kubevpn/");
            if ours
                && ["get", "list"].contains(&event.verb.as_str())
                && event.subresource.is_empty()
            {
                *asked.0.entry(words(&event)).or_default() += 1;
            }
        }
        Ok(asked)
    }

    async fn connections(&self, kubevpn: &Path) -> Result<Connections> {
        let proxy = ScaleProxy::start(kubevpn, &self.kubeconfig()).await?;
        let mark = self.audit_mark()?;
        for i in 0..USED {
            proxy.get(&format!("http://svc-{i}.scale-0/")).await?;
        }
        let count = async |verb: &str, subresource: &str| {
            let events = self.audit_since(&mark).await?;
            let ours = events
                .iter()
                .filter(|e| e.user_agent.starts_with("kubevpn/"));
            let these = ours.filter(|e| e.verb == verb && e.subresource == subresource);
            anyhow::Ok(these.count())
        };
        // A Service and its endpoints are watched from the moment on that the answer is there.
        let watches = until(PATIENCE, "the watches", async || {
            let watches = count("watch", "").await?;
            Ok((watches >= 2 * USED as usize).then_some(watches))
        })
        .await?;
        Ok(Connections {
            services: USED,
            watches,
            sessions: count("create", "portforward").await? + count("get", "portforward").await?,
            open: proxy.connections(self.settings.api_port())?,
        })
    }
}

/// `get pods`, `list pods by selector`, `list all pods`
fn words(event: &AuditEvent) -> String {
    let AuditEvent { verb, resource, .. } = event;
    match event.uri.contains("fieldSelector=") || event.uri.contains("labelSelector=") {
        true => format!("{verb} {resource} by selector"),
        false if verb == "list" => format!("{ALL}{resource}"),
        false => format!("{verb} {resource}"),
    }
}

/// A running `kubevpn proxy-out`; killed when dropped.
struct ScaleProxy {
    child: Child,
    socks: String,
}

impl ScaleProxy {
    async fn start(kubevpn: &Path, kubeconfig: &Path) -> Result<Self> {
        let mut child = Command::new(kubevpn)
            .args(["proxy-out", "--listen-socks", "127.0.0.1:0"])
            .args(["--wait-ready", "60s", "--kubeconfig"])
            .arg(kubeconfig)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", kubevpn.display()))?;
        let mut lines = BufReader::new(child.stdout.take().context("it is piped")?).lines();
        let said = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(address) = line.strip_prefix("SOCKS5 proxy listening on ") {
                    return Ok(address.to_owned());
                }
            }
            anyhow::bail!("kubevpn ended before it listened")
        };
        let socks = tokio::time::timeout(PATIENCE, said)
            .await
            .context("kubevpn does not say where it listens")??;
        // It has little to say from here on, and must not wait for us to hear it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, socks })
    }

    async fn get(&self, url: &str) -> Result<()> {
        let proxy = format!("socks5h://{}", self.socks);
        let mut curl = command("curl")?;
        curl.args([
            "--disable",
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "60",
        ])
        .args(["--noproxy", "", "--proxy", &proxy, url]);
        output(&mut curl).await.map(drop)
    }

    fn proc(&self, file: &str) -> Result<String> {
        let pid = self.child.id().context("kubevpn has ended")?;
        Ok(format!("/proc/{pid}/{file}"))
    }

    /// Resident now and at its highest, in KiB.
    fn memory(&self) -> Result<(u64, u64)> {
        let status = std::fs::read_to_string(self.proc("status")?)?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
            number.with_context(|| format!("no {name} in /proc/PID/status"))
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }

    /// Its established TCP connections to that port of loopback.
    fn connections(&self, port: u16) -> Result<usize> {
        let mut own = Vec::new();
        for entry in std::fs::read_dir(self.proc("fd")?)? {
            // One that was closed just now is no connection any more.
            if let Ok(link) = std::fs::read_link(entry?.path()) {
                let link = link.display().to_string();
                own.extend(
                    link.strip_prefix("socket:[")
                        .map(|l| l.trim_end_matches(']').to_owned()),
                );
            }
        }
        let table = std::fs::read_to_string(self.proc("net/tcp")?)?;
        let to = format!(":{port:04X}");
        let is_one = |line: &&str| {
            // sl, local, remote, state (01 is established), …, inode.
            let fields: Vec<_> = line.split_whitespace().collect();
            fields.len() > 9
                && fields[2].ends_with(&to)
                && fields[3] == "01"
                && own.iter().any(|i| i == fields[9])
        };
        Ok(table.lines().filter(is_one).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(asked: &[(&str, usize)], resident: u64) -> ScaleMeasured {
        let asked = asked
            .iter()
            .map(|(what, n)| ((*what).to_owned(), *n))
            .collect();
        ScaleMeasured {
            services: 1,
            pods: 1,
            dials: vec![("a name", ApiCalls(asked))],
            resident,
            peak: resident,
        }
    }

    #[test]
    fn what_does_not_hold_is_said() {
        let few = [("list services by selector", 2)];
        let small = measured(&few, 20_000);
        assert_eq!(contradictions(&small, &measured(&few, 30_239)), [""; 0]);
        assert_eq!(contradictions(&small, &measured(&few, 30_240)).len(), 1);
        let more = measured(&[("list services by selector", 12)], 20_000);
        assert_eq!(
            contradictions(&small, &more),
            [
                "a name: 2 list services by selector in the small cluster, 12 list services by selector in the large one"
            ]
        );
        let whole = measured(&[("list all services", 1)], 20_000);
        assert_eq!(
            contradictions(&whole, &whole),
            ["a name: the first dial took to list all services"]
        );
        let none = measured(&[], 20_000);
        assert_eq!(
            contradictions(&none, &none).len(),
            1,
            "nothing counted is nothing shown"
        );
    }
}
