//! `kubevpn check`: facts (`check/machine.rs`, `check/cluster.rs`) to findings (`check/findings.rs`) to text or JSON.

mod cluster;
mod facts;
mod findings;
mod machine;

use clap::ValueEnum;
use kubevpn_client::{Env, KubeconfigArgs, load};
use kubevpn_conn::{Addr, AddrError};
use kubevpn_proxy::Policy;
use serde_json::{Value, json};

use self::cluster::ReachedCluster;
use self::facts::{CheckFacts, CheckFailure};
use self::findings::{Finding, FindingLevel, Report};
use super::habits;
use super::kube::KubeArgs;
use super::listen::usual_socks;
use super::policy::PolicyArgs;
use super::resolve::{self, Explained};
use super::suggest::advised;
use crate::exit::Failure;
use crate::out;
use crate::progress;
use crate::telemetry::LoggedSteps;

/// Check everything a proxy needs, and say what to do
///
/// Checks the kubeconfig, API server, credentials, access rules, transports, names, and this machine. Each finding is ok, a
/// warning or a problem, with what to do about it. Nothing is changed in the cluster or on this machine. The exit code is
/// that of the first problem, or 0 if there are only warnings or none. With HOST:PORT, the command then resolves and dials
/// it, as `kubevpn resolve` does.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # the current context
  kubevpn check

  # another namespace, and one Service in it
  kubevpn check -n shop web:80

  # for a program
  kubevpn check -o json")]
pub(crate) struct CheckCommand {
    /// Host and port to resolve and dial after the checks
    #[arg(value_name = "HOST:PORT")]
    target: Option<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: CheckOutput,
    /// Check that a proxy could listen on ADDR [default: 127.0.0.1:1080]
    #[arg(long, value_name = "ADDR")]
    listen_socks: Option<Addr>,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum CheckOutput {
    /// A line for each finding
    #[default]
    Text,
    /// One document, as docs/check.schema.json describes it
    Json,
}

impl CheckCommand {
    pub(crate) async fn run(self, steps: LoggedSteps) -> Result<(), Failure> {
        if let Some(target) = &self.target {
            habits::target(target, "default")?;
        }
        let policy = self.policy.policy()?;
        let args = KubeconfigArgs::from(self.kube);
        let listen = match self.listen_socks {
            Some(address) => address,
            None => usual_listener()?,
        };
        let checking = found(&args, &policy, &listen);
        let (facts, reached) = progress::said("the checks", checking).await;
        let report = findings::report(&facts);
        if self.output == CheckOutput::Text {
            out::print(text(&report))?;
        }
        let explained = match (&self.target, &reached) {
            (Some(target), Some(reached)) => {
                steps.begin();
                if self.output == CheckOutput::Text {
                    out::line("")?;
                    steps.tell();
                }
                let connect = cluster::chain(reached, &policy);
                Some(resolve::explained(&connect, target, &reached.namespace, &steps).await?)
            }
            _ => None,
        };
        if self.output == CheckOutput::Json {
            out::json(&document(&report, explained.as_ref()))?;
        }
        steps.written()?;
        match report.code() {
            0 => {}
            code => return Err(Failure::Ended(code)),
        }
        match (explained, &reached) {
            (
                Some(Explained {
                    host,
                    done: Err(error),
                    ..
                }),
                Some(reached),
            ) => Err(advised(error, &reached.client, &reached.namespace, &host).await),
            _ => Ok(()),
        }
    }
}

/// All facts, and the cluster, if it answers.
async fn found(
    args: &KubeconfigArgs,
    policy: &Policy,
    listen: &Addr,
) -> (CheckFacts, Option<ReachedCluster>) {
    let mut facts = machine::facts(listen).await;
    let loaded = match load(args, &Env::of_process()) {
        Ok(loaded) => loaded,
        Err(error) => {
            facts.kubeconfig = Some(Err(CheckFailure::of(error)));
            return (facts, None);
        }
    };
    let server = loaded.config.cluster_url.clone();
    let is_direct = loaded.config.proxy_url.is_none();
    facts.kubeconfig = Some(Ok(cluster::kubeconfig(&loaded)));
    let addresses = async {
        // A proxy looks the name up itself.
        match is_direct {
            true => machine::addresses(&server).await,
            false => Vec::new(),
        }
    };
    let (reached, addresses, lookup) = tokio::join!(
        cluster::api_server(&mut facts, loaded),
        addresses,
        machine::lookup()
    );
    facts.addresses = addresses;
    facts.lookup = Some(lookup);
    if let Some(reached) = &reached {
        cluster::rest(&mut facts, reached, policy).await;
    }
    (facts, reached)
}

/// The default address of a proxy.
fn usual_listener() -> Result<Addr, Failure> {
    let text = usual_socks();
    let parsed = text.parse();
    parsed.map_err(|error: AddrError| Failure::value(format!("--listen-socks {text}: {error}")))
}

/// The document of a complete check, for the bug report.
pub(super) async fn document_of(args: &KubeconfigArgs) -> Result<Value, Failure> {
    let listen = usual_listener()?;
    let (facts, _) = found(args, &Policy::default(), &listen).await;
    Ok(document(&findings::report(&facts), None))
}

/// Findings in columns, each with its advice below. Text from outside is escaped.
fn text(report: &Report) -> String {
    let mut text = String::new();
    for Finding {
        topic,
        level,
        text: said,
        advice,
        ..
    } in &report.findings
    {
        let said = out::escaped(said);
        text.push_str(&format!("{:<8} {topic:<12} {said}\n", level.as_str()));
        if let Some(advice) = advice {
            let advice = out::escaped(advice);
            text.push_str(&format!("{:<8} {:<12} try: {advice}\n", "", ""));
        }
    }
    if let Some(role) = &report.role {
        text.push_str(
            "\nThe Role with the rights that are missing, for who manages the cluster:\n\n",
        );
        text.push_str(role);
    }
    let counted = |level, one: &str, many: &str| match report.count(level) {
        0 => None,
        1 => Some(format!("1 {one}")),
        n => Some(format!("{n} {many}")),
    };
    let problems = counted(FindingLevel::Problem, "problem", "problems");
    let warnings = counted(FindingLevel::Warning, "warning", "warnings");
    let counts: Vec<_> = [problems, warnings].into_iter().flatten().collect();
    text.push_str(&match counts.is_empty() {
        true => "\nAll is well\n".to_owned(),
        false => format!("\n{}\n", counts.join(", ")),
    });
    text
}

/// The JSON document. Keys are never removed.
fn document(report: &Report, explained: Option<&Explained>) -> Value {
    let findings = report.findings.iter().map(|finding| {
        let mut document = json!({
            "topic": finding.topic,
            "level": finding.level.as_str(),
            "text": finding.text,
        });
        if finding.level == FindingLevel::Problem {
            document["exitCode"] = finding.code.into();
        }
        if let Some(advice) = &finding.advice {
            document["try"] = advice.as_str().into();
        }
        document
    });
    let mut document = json!({
        "exitCode": report.code(),
        "problems": report.count(FindingLevel::Problem),
        "warnings": report.count(FindingLevel::Warning),
        "findings": findings.collect::<Vec<_>>(),
    });
    if let Some(role) = &report.role {
        document["role"] = role.as_str().into();
    }
    if let Some(explained) = explained {
        document["target"] = explained.document.clone();
    }
    document
}
