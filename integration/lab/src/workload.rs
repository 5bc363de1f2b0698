//! What runs in the cluster: CoreDNS, the sample Services, and fake pods by the thousand.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use tracing::info;

use crate::Lab;
use crate::command::{output, output_of_input};
use crate::daemon::Daemon;
use crate::process::until;
use crate::settings::NODE;

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
            Daemon::Kubelet,
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

    /// `pods` fake pods, each behind a Service of its own, on fake nodes: what a large cluster looks like to
    /// a client. `svc-I` in namespace `scale-(I / 500)`, port 80 to 8080, which an echo program on the host answers.
    ///
    /// # Errors
    /// What did not come up.
    pub async fn fill(&self, pods: u32) -> Result<()> {
        self.build_kwok().await?;
        fs::write(
            self.settings.path("kwok.yaml"),
            self.render("config/kwok.yaml")?,
        )?;
        self.ensure_started(Daemon::KwokEcho).await?;
        self.ensure_started(Daemon::Kwok).await?;
        let nodes = pods / 200 + 1;
        let kubeconfig = self.settings.path("pki/kwok.kubeconfig");
        output(&mut self.hyperkube(&["fill", &kubeconfig, &nodes.to_string(), &pods.to_string()]))
            .await?;
        info!("{pods} fake pods and Services created");
        until(
            Duration::from_secs(300),
            "the fake pods to run",
            async || {
                let pending = [
                    "get",
                    "pods",
                    "-A",
                    "--field-selector=status.phase=Pending",
                    "-o",
                    "name",
                ];
                Ok(self.kubectl(&pending).await?.is_empty().then_some(()))
            },
        )
        .await?;
        info!("fake pods running");
        Ok(())
    }
}
