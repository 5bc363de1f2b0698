//! Every scenario on the cluster in memory, each on one of its own.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use kubevpn_scenarios::Cluster;
use kubevpn_sim::{Sim, User};
use libtest_mimic::Arguments;

/// Scenarios that only a real cluster can run, with the reason.
const SKIPS: &[(&str, &str)] = &[
    ("dns::agrees_with_the_clusters_own", NO_DNS),
    ("spdy-ws::dns::agrees_with_the_clusters_own", NO_DNS),
    ("ws::dns::agrees_with_the_clusters_own", NO_DNS),
];

const NO_DNS: &str = "the simulation runs no CoreDNS";

/// Scenarios wait more than they work.
const AT_ONCE: usize = 8;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    common::run(
        arguments,
        || Box::pin(async { Ok(Arc::new(InMemory::start().await?) as _) }),
        SKIPS,
        Vec::new(),
    )
}

struct InMemory {
    sim: Sim,
    dir: tempfile::TempDir,
}

impl InMemory {
    async fn start() -> anyhow::Result<Self> {
        let sim = Sim::builder()
            .sample()
            .user(User::new("viewer", "viewer-token"))
            .start()
            .await?;
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("kubeconfig"), sim.kubeconfig_yaml())?;
        std::fs::write(
            dir.path().join("viewer"),
            sim.kubeconfig_yaml_for("viewer-token"),
        )?;
        Ok(Self { sim, dir })
    }
}

impl Cluster for InMemory {
    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    fn viewer_kubeconfig(&self) -> PathBuf {
        self.dir.path().join("viewer")
    }

    fn stop_api(&self) -> LocalBoxFuture<'_, anyhow::Result<()>> {
        self.sim.faults().go_away();
        Box::pin(async { Ok(()) })
    }

    fn start_api(&self) -> LocalBoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async { Ok(self.sim.faults().come_back()?) })
    }

    fn forwards_at_node(&self) -> LocalBoxFuture<'_, anyhow::Result<usize>> {
        Box::pin(async { Ok(self.sim.sessions().iter().map(|session| session.open).sum()) })
    }
}
