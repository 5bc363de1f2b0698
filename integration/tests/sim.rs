//! Every scenario on the cluster in memory, each on one of its own.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use kubevpn_scenarios::{AccountRight, ApiRequest, TestCluster, kubeconfig};
use kubevpn_sim::{AccessRule, Sim, User};
use libtest_mimic::Arguments;
use tempfile::TempPath;

use self::common::with_subresource;

/// Scenarios that only a real cluster can run, with the reason.
const SKIPS: &[(&str, &str)] = &[("dns::agrees_with_the_clusters_own", NO_DNS)];

const NO_DNS: &str = "the simulation runs no CoreDNS";

/// Scenarios wait more than they work.
const AT_ONCE: usize = 8;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    common::run(
        arguments,
        |_| Box::pin(async { Ok(Arc::new(InMemory::start().await?) as _) }),
        SKIPS,
        &[],
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

impl TestCluster for InMemory {
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

    fn account(
        &self,
        namespace: &str,
        rights: &'static [AccountRight],
    ) -> LocalBoxFuture<'_, anyhow::Result<TempPath>> {
        let token = format!("{namespace}-token");
        let name = format!("system:serviceaccount:{namespace}:tester");
        let mut user = User::new(&name, &token);
        for right in rights {
            let rule = AccessRule::new(right.verbs, &[right.group], right.resources);
            user = user.may(match right.everywhere {
                true => rule,
                false => rule.namespaces(&[namespace]),
            });
        }
        self.sim.add_user(user);
        let kubeconfig = kubeconfig(&self.kubeconfig(), namespace, &token);
        Box::pin(async { kubeconfig })
    }

    fn mark(&self) -> LocalBoxFuture<'_, anyhow::Result<String>> {
        Box::pin(async { Ok(self.sim.requests().len().to_string()) })
    }

    fn asked_since(&self, mark: String) -> LocalBoxFuture<'_, anyhow::Result<Vec<ApiRequest>>> {
        Box::pin(async move {
            let asked = self.sim.requests().into_iter().skip(mark.parse()?);
            Ok(asked
                .map(|r| ApiRequest {
                    resource: with_subresource(r.resource, &r.subresource),
                    verb: r.verb,
                    user_agent: r.user_agent,
                    uri: r.uri,
                })
                .collect())
        })
    }

    fn expire_watches(&self) -> bool {
        self.sim.expire_watches();
        true
    }

    fn forwards_at_node(&self) -> LocalBoxFuture<'_, anyhow::Result<usize>> {
        Box::pin(async { Ok(self.sim.sessions().iter().map(|session| session.open).sum()) })
    }
}
