//! The same scenarios on the real cluster that `cargo run -p lab -- up` boots.
//!
//! Without `KUBEVPN_LAB` in the environment nothing runs; with it a cluster that is not there is a
//! failure. Several at a time, but for those that change or count what all of them use.

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
use kubevpn_scenarios::{AccountRight, ApiRequest, TestCluster, service_account};
use lab::{ClusterDaemon, Lab, Signal};
use libtest_mimic::{Arguments, Trial};
use tempfile::TempPath;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::common::with_subresource;

/// Scenarios that only the simulation can run, with the reason.
const SKIPS: &[(&str, &str)] = &[(
    "targets::pods_with_ipv6_addresses",
    "the lab's pods have IPv4 addresses only",
)];

/// Scenarios beside which no other runs, by the beginning of their names: they stop the API server, replace Pods that
/// others use, count what the API server was asked or the node holds, or measure under load.
const ALONE: &[&str] = &[
    "chaos::",
    "failover::",
    "forward::a_rolling_restart",
    "life::",
    "load::",
    "managed::the_api_server_goes",
    "refusals::a_closed_port_costs_one_question",
    "steady::",
];

/// Scenarios wait more than they work.
const AT_ONCE: usize = 4;

/// Held by each that runs: by one of [`ALONE`] to write.
static TURNS: RwLock<()> = RwLock::const_new(());

#[expect(clippy::print_stdout, reason = "says why nothing runs")]
fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if std::env::var_os("KUBEVPN_LAB").is_none() {
        println!("not run: needs the real cluster; cargo run -p lab -- up, then set KUBEVPN_LAB=1");
        return ExitCode::SUCCESS;
    }
    arguments.test_threads.get_or_insert(AT_ONCE);
    let without = match without() {
        Ok(without) => without,
        Err(error) => {
            println!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    common::run(
        arguments,
        |name| Box::pin(async move { Ok(Arc::new(Real::attach(name).await?) as _) }),
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
        let done = runtime.block_on(async {
            let _turn = TURNS.read().await;
            test().await
        });
        done.map_err(|error| format!("{error:#}").into())
    })
}

struct Real {
    lab: Lab,
    _turn: Turn,
}

#[expect(dead_code, reason = "held until the scenario has ended")]
enum Turn {
    Alone(RwLockWriteGuard<'static, ()>),
    Beside(RwLockReadGuard<'static, ()>),
}

impl Real {
    async fn attach(scenario: &str) -> anyhow::Result<Self> {
        let turn = match ALONE.iter().any(|alone| scenario.starts_with(alone)) {
            true => Turn::Alone(TURNS.write().await),
            false => Turn::Beside(TURNS.read().await),
        };
        Ok(Self {
            lab: Lab::attach().await?,
            _turn: turn,
        })
    }
}

impl TestCluster for Real {
    fn kubeconfig(&self) -> PathBuf {
        self.lab.kubeconfig()
    }

    fn viewer_kubeconfig(&self) -> PathBuf {
        self.lab.viewer_kubeconfig()
    }

    fn stop_api(&self) -> LocalBoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async { self.lab.stop(ClusterDaemon::ApiServer, Signal::Kill).await })
    }

    fn start_api(&self) -> LocalBoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async { self.lab.resume(ClusterDaemon::ApiServer).await })
    }

    fn account(
        &self,
        namespace: &str,
        rights: &'static [AccountRight],
    ) -> LocalBoxFuture<'_, anyhow::Result<TempPath>> {
        let namespace = namespace.to_owned();
        Box::pin(async move { service_account(&self.lab.kubeconfig(), &namespace, rights).await })
    }

    fn mark(&self) -> LocalBoxFuture<'_, anyhow::Result<String>> {
        Box::pin(async { Ok(self.lab.audit_mark()?.to_string()) })
    }

    fn asked_since(&self, mark: String) -> LocalBoxFuture<'_, anyhow::Result<Vec<ApiRequest>>> {
        Box::pin(async move {
            let asked = self.lab.audit_since(&mark.parse()?).await?;
            Ok(asked
                .into_iter()
                .map(|event| ApiRequest {
                    resource: with_subresource(event.resource, &event.subresource),
                    verb: event.verb,
                    user_agent: event.user_agent,
                    uri: event.uri,
                })
                .collect())
        })
    }

    fn forwards_at_node(&self) -> LocalBoxFuture<'_, anyhow::Result<usize>> {
        Box::pin(async { containerd_descriptors(&self.lab) })
    }
}

/// containerd holds some four descriptors for each connection it forwards.
fn containerd_descriptors(lab: &Lab) -> anyhow::Result<usize> {
    let pid = lab
        .status()?
        .into_iter()
        .find_map(|(daemon, pid)| pid.filter(|_| daemon == ClusterDaemon::Containerd));
    let pid = pid.context("containerd is not running")?;
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
