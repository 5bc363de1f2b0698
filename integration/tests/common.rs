//! Turns the scenarios into tests of one kind of cluster.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use kubevpn_scenarios::{Cluster, Context, all};
use libtest_mimic::{Arguments, Trial};

/// Makes the cluster one scenario runs on.
pub(crate) type MakeCluster = fn() -> LocalBoxFuture<'static, anyhow::Result<Arc<dyn Cluster>>>;

/// Runs every scenario but those of `skips` (name, reason), which are listed as ignored with the reason. A name that is
/// no scenario's fails: it would skip nothing and hide that.
pub(crate) fn run(
    arguments: Arguments,
    cluster: MakeCluster,
    skips: &'static [(&str, &str)],
) -> ExitCode {
    let scenarios = all();
    for (name, _) in skips {
        assert!(
            scenarios.iter().any(|s| s.name == *name),
            "the skip list names {name}, which is no scenario"
        );
    }
    let trials = scenarios
        .into_iter()
        .map(|scenario| {
            let skip = skips.iter().find(|(name, _)| *name == scenario.name);
            let name = match skip {
                Some((name, reason)) => format!("{name} (skipped: {reason})"),
                None => scenario.name.to_owned(),
            };
            let test = move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()?;
                runtime.block_on(async {
                    let context = Context {
                        cluster: cluster().await?,
                        kubevpn: PathBuf::from(env!("CARGO_BIN_EXE_kubevpn")),
                    };
                    (scenario.run)(context).await
                })?;
                Ok(())
            };
            let test = move || test().map_err(|error: anyhow::Error| format!("{error:#}").into());
            Trial::test(name, test).with_ignored_flag(skip.is_some())
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
