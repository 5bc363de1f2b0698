//! What runs in the cluster: CoreDNS, the sample Services, and fake pods by the thousand.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use tracing::info;

use crate::Lab;
use crate::command::{output_of_input, output_within};
use crate::daemon::ClusterDaemon;
use crate::process::until;
use crate::settings::NODE;

/// Twenty thousand pods on a busy machine.
const FILLED: Duration = Duration::from_secs(1200);

/// What `manifests/` makes that becomes ready (namespace, kind/name).
const READY: [(&str, &str); 6] = [
    ("default", "deployment/productpage"),
    ("default", "deployment/reviews"),
    ("default", "deployment/multi"),
    ("default", "statefulset/db"),
    ("team-a", "deployment/api"),
    ("kube-system", "deployment/coredns"),
];

impl Lab {
    pub(crate) async fn workload(&self) -> Result<()> {
        for manifest in ["manifests/coredns.yaml", "manifests/sample.yaml"] {
            output_of_input(
                &mut self.kubectl_command(&["apply", "-f", "-"]),
                &self.render(manifest)?,
            )
            .await?;
        }
        // It registers itself; to wait for what does not exist is an error.
        let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        self.alive_until(
            ClusterDaemon::Kubelet,
            Duration::from_secs(60),
            "a ready node",
            async || {
                let answer = self.kubectl(&["get", "node", NODE, "-o", ready]).await;
                Ok(answer.ok().filter(|status| status == "True"))
            },
        )
        .await?;
        info!("node ready");
        for (namespace, name) in READY {
            self.kubectl(&[
                "rollout",
                "status",
                "--namespace",
                namespace,
                name,
                "--timeout=120s",
            ])
            .await?;
        }
        info!("workload ready");
        Ok(())
    }

    /// `services` Services with `each` fake pods behind every one, on fake nodes: what a large cluster looks like
    /// to a client. `svc-I` in namespace `scale-(I / 500)`, port 80 to 8080, which an echo program on the host
    /// answers. Everything runs when this returns, and has an EndpointSlice; its endpoints may follow.
    ///
    /// # Errors
    /// What did not come up.
    pub async fn fill(&self, services: u32, each: u32) -> Result<()> {
        self.build_kwok().await?;
        fs::write(
            self.settings.path("kwok.yaml"),
            self.render("config/kwok.yaml")?,
        )?;
        self.ensure_started(ClusterDaemon::KwokEcho).await?;
        self.ensure_started(ClusterDaemon::Kwok).await?;
        let pods = services * each;
        self.make("pods", services, each).await?;
        info!("{pods} fake pods created");
        until(FILLED, "the fake pods to run", async || {
            let pending = "/api/v1/pods?fieldSelector=status.phase%3DPending";
            Ok((self.count(pending).await? == 0).then_some(()))
        })
        .await?;
        info!("fake pods running");
        self.make("services", services, each).await?;
        info!("{services} Services created");
        until(FILLED, "an EndpointSlice of every Service", async || {
            let slices = self
                .count("/apis/discovery.k8s.io/v1/endpointslices?")
                .await?;
            let services = self.count("/api/v1/services?").await?;
            Ok((slices >= services).then_some(()))
        })
        .await?;
        info!("every Service has an EndpointSlice");
        Ok(())
    }

    async fn make(&self, what: &str, services: u32, each: u32) -> Result<()> {
        let kubeconfig = self.settings.path("pki/kwok.kubeconfig");
        let (services, each) = (services.to_string(), each.to_string());
        let mut fill = self.hyperkube(&["fill", &kubeconfig, what, &services, &each]);
        output_within(FILLED, &mut fill).await.map(drop)
    }

    /// How many objects a list has; the server is asked for no more than one of them, as twenty thousand would keep
    /// it from its work.
    pub(crate) async fn count(&self, list: &str) -> Result<u64> {
        let one = format!("{list}&limit=1");
        let list: serde_json::Value =
            serde_json::from_str(&self.kubectl(&["get", "--raw", &one]).await?)?;
        let here = list["items"].as_array().map_or(0, Vec::len);
        let more = list["metadata"]["remainingItemCount"].as_u64();
        let unsaid = more.is_none() && list["metadata"]["continue"].is_string();
        Ok(u64::try_from(here)? + more.unwrap_or_else(|| u64::from(unsaid)))
    }
}
