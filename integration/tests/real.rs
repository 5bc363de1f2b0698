//! The same scenarios on the real cluster that `cargo run -p lab -- up` boots.
//!
//! Without `KUBEVPN_LAB` in the environment nothing runs; with it a cluster that is not there is a
//! failure. One at a time: some stop the API server.

mod certificates;
mod common;
mod differential;
mod kubelet;
mod logins;
mod nginx;
mod watches;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::future::LocalBoxFuture;
use kubevpn_scenarios::{Asked, Cluster, Right, service_account};
use lab::{Daemon, Lab, Signal};
use libtest_mimic::{Arguments, Trial};
use tempfile::TempPath;

use self::common::with_subresource;

/// Scenarios that only the simulation can run, with the reason.
const SKIPS: &[(&str, &str)] = &[(
    "targets::pods_with_ipv6_addresses",
    "the lab's pods have IPv4 addresses only",
)];

#[expect(clippy::print_stdout, reason = "says why nothing runs")]
fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if std::env::var_os("KUBEVPN_LAB").is_none() {
        println!("not run: needs the real cluster; cargo run -p lab -- up, then set KUBEVPN_LAB=1");
        return ExitCode::SUCCESS;
    }
    arguments.test_threads = Some(1);
    let without = match without() {
        Ok(without) => without,
        Err(error) => {
            println!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    common::run(
        arguments,
        || Box::pin(async { Ok(Arc::new(Real(Lab::attach().await?)) as _) }),
        SKIPS,
        &without,
        vec![
            real_only("names::same_as_the_clusters_dns", || {
                Box::pin(differential::same_as_the_clusters_dns())
            }),
            real_only("certificates::of_every_kind", || {
                Box::pin(certificates::of_every_kind())
            }),
            real_only("env_from::beside_the_kubelet", || {
                Box::pin(kubelet::environment_of_a_container())
            }),
            real_only("logins::kubectl_with_another_context", || {
                Box::pin(logins::kubectl_with_another_context())
            }),
            real_only("logins::a_plugin_that_fetches_its_token", || {
                Box::pin(logins::a_plugin_that_fetches_its_token())
            }),
            real_only("watches::however_they_fail", || {
                Box::pin(watches::however_they_fail())
            })
            // It takes a minute.
            .with_ignored_flag(true),
        ],
    )
}

/// Transports that this cluster does not have, with the reason: it is asked.
fn without() -> anyhow::Result<Vec<(&'static str, String)>> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let lab = Lab::attach().await?;
        Ok(match lab.carries_spdy_in_websocket().await? {
            true => Vec::new(),
            false => vec![(
                "spdy-ws::",
                format!("{} has no SPDY in WebSocket", lab.versions()),
            )],
        })
    })
}

/// A test that is no scenario.
fn real_only(name: &str, test: fn() -> LocalBoxFuture<'static, anyhow::Result<()>>) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Runtime::new()?;
        let done = runtime.block_on(test());
        done.map_err(|error| format!("{error:#}").into())
    })
}

struct Real(Lab);

impl Cluster for Real {
    fn kubeconfig(&self) -> PathBuf {
        self.0.kubeconfig()
    }

    fn viewer_kubeconfig(&self) -> PathBuf {
        self.0.viewer_kubeconfig()
    }

    fn stop_api(&self) -> LocalBoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async { self.0.stop(Daemon::ApiServer, Signal::Kill).await })
    }

    fn start_api(&self) -> LocalBoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async { self.0.resume(Daemon::ApiServer).await })
    }

    fn account(
        &self,
        namespace: &str,
        rights: &'static [Right],
    ) -> LocalBoxFuture<'_, anyhow::Result<TempPath>> {
        let namespace = namespace.to_owned();
        Box::pin(async move { service_account(&self.0.kubeconfig(), &namespace, rights).await })
    }

    fn mark(&self) -> LocalBoxFuture<'_, anyhow::Result<String>> {
        Box::pin(async { Ok(self.0.audit_mark()?.to_string()) })
    }

    fn asked_since(&self, mark: String) -> LocalBoxFuture<'_, anyhow::Result<Vec<Asked>>> {
        Box::pin(async move {
            let asked = self.0.audit_since(&mark.parse()?).await?;
            Ok(asked
                .into_iter()
                .map(|event| Asked {
                    resource: with_subresource(event.resource, &event.subresource),
                    verb: event.verb,
                    user_agent: event.user_agent,
                    uri: event.uri,
                })
                .collect())
        })
    }

    fn forwards_at_node(&self) -> LocalBoxFuture<'_, anyhow::Result<usize>> {
        Box::pin(async { containerd_descriptors(&self.0) })
    }
}

/// containerd holds some four descriptors for each connection it forwards.
fn containerd_descriptors(lab: &Lab) -> anyhow::Result<usize> {
    let pid = lab
        .status()?
        .into_iter()
        .find_map(|(daemon, pid)| pid.filter(|_| daemon == Daemon::Containerd));
    let pid = pid.context("containerd is not running")?;
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
