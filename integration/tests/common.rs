//! Turns the scenarios into tests of one kind of cluster.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use kubevpn_scenarios::{Context, Scenario, TestCluster, Transports, all};
use libtest_mimic::{Arguments, Trial};

/// Makes the cluster that the scenario of this name runs on.
pub(crate) type MakeCluster =
    fn(&'static str) -> LocalBoxFuture<'static, anyhow::Result<Arc<dyn TestCluster>>>;

/// The ways a port-forward can be carried, each forced by a flag, and the scenarios they are run with.
const TRANSPORTS: [(&str, &[&str]); 3] = [
    ("", &[]),
    ("spdy-ws::", &["--transport", "spdy-ws"]),
    ("ws::", &["--transport", "ws"]),
];

/// Set, loads are of the size that is claimed, and not of the size for every run.
const FULL: &str = "KUBEVPN_FULL";

/// As many open files as the system lets us have: some scenarios are a thousand clients.
fn open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        panic!("raising the limit on open files: {error}");
    }
}

/// Runs every scenario over the transports it is for, but those of `skips` (name, reason), which are listed as ignored with the reason. A name that is
/// no scenario's fails: it would skip nothing and hide that. So are all over the transports that `without` names (prefix, reason).
pub(crate) fn run(
    arguments: Arguments,
    cluster: MakeCluster,
    skips: &'static [(&str, &str)],
    without: &[(&str, String)],
    more: Vec<Trial>,
) -> ExitCode {
    open_files();
    let full = std::env::var_os(FULL).is_some();
    let no_namespaces = why_no_namespaces();
    let mut trials = more;
    for (prefix, flags) in TRANSPORTS {
        let runs = |s: &Scenario| prefix.is_empty() || s.transports == Transports::Every;
        for scenario in all().into_iter().filter(runs) {
            let name = format!("{prefix}{}", scenario.name);
            let skip = skips.iter().find(|(skipped, _)| *skipped == name);
            let skip = skip.map(|(_, reason)| (*reason).to_owned());
            let skip = skip.or_else(|| {
                let missing = without.iter().find(|(missing, _)| *missing == prefix)?;
                Some(missing.1.clone())
            });
            let skip = skip.or_else(|| {
                let needs_them = scenario.name.starts_with("isolated::");
                no_namespaces.clone().filter(|_| needs_them)
            });
            let skip = skip.or_else(|| match scenario.needs {
                [] => None,
                words => why_not(words).map(|why| format!("needs {}: {why}", words.join(" "))),
            });
            let test = move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()?;
                runtime.block_on(async {
                    let kubevpn = PathBuf::from(env!("CARGO_BIN_EXE_kubevpn"));
                    let context = Context {
                        cluster: cluster(scenario.name).await?,
                        kubevpn,
                        flags: flags.to_vec(),
                        full,
                    };
                    (scenario.run)(context).await
                })
            };
            let test = move || test().map_err(|error: anyhow::Error| format!("{error:#}").into());
            let title = match &skip {
                Some(reason) => format!("{name} (skipped: {reason})"),
                None => name,
            };
            trials.push(Trial::test(title, test).with_ignored_flag(skip.is_some()));
        }
    }
    for (name, _) in skips {
        assert!(
            trials.iter().any(|t| t.name().starts_with(name)),
            "the skip list names {name}, which is no scenario"
        );
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Why nothing can be isolated on this machine, if that is so: asked of another program than ours.
fn why_no_namespaces() -> Option<String> {
    why_not(&[
        "unshare",
        "--user",
        "--net",
        "--mount",
        "--map-root-user",
        "true",
    ])
}

/// Why these words do not run here, if that is so.
fn why_not(words: &[&str]) -> Option<String> {
    let mut command = std::process::Command::new(words[0]);
    match command.args(&words[1..]).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Some(if said.is_empty() {
                output.status.to_string()
            } else {
                said
            })
        }
        Err(error) => Some(error.to_string()),
    }
}

/// `pods/portforward`
pub(crate) fn with_subresource(resource: String, subresource: &str) -> String {
    match subresource {
        "" => resource,
        sub => format!("{resource}/{sub}"),
    }
}
