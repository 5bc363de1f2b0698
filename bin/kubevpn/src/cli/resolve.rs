//! `kubevpn resolve`.

use std::num::NonZeroU16;
use std::time::Duration;

use clap::ValueEnum;
use kubevpn_client::{Env, KubeconfigArgs, load};
use kubevpn_proxy::{self as proxy, ClusterStack};
use kubevpn_stack::{Candidates, Resolved, Settings};
use kubevpn_target::{
    Connect as _, ConnectError, Host, Origin, Refusal, Stream as _, Target, Via, classify,
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::habits;
use super::kube::KubeArgs;
use super::policy::PolicyArgs;
use super::reach::reach;
use super::suggest::advised;
use crate::exit::Failure;
use crate::out;
use crate::progress;
use crate::telemetry::{LoggedStep, LoggedSteps};

/// Time limit for a first byte of the server. In most protocols the client sends first.
const FIRST_BYTE: Duration = Duration::from_secs(1);

/// Explain what a host and port lead to, step by step, and dial it
///
/// The steps, each with its time, are those of the proxy for a client. Without a port, the host is resolved but not
/// dialled. The exit code is that of the refusal a client would get: 50 not found, 43 no ready endpoint, 31 forbidden, 40
/// the API server cannot be reached.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # every step to a Service, with its time
  kubevpn resolve productpage.default:9080

  # what a name means
  kubevpn resolve db-0.db

  # for a program
  kubevpn resolve reviews:80 -o json")]
pub(crate) struct ResolveCommand {
    /// Name or address, optionally with a port; svc/NAME, pod/NAME and URLs are accepted
    #[arg(value_name = "HOST[:PORT]")]
    target: String,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: ResolveOutput,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ResolveOutput {
    /// A line for each step, as it happens
    #[default]
    Text,
    /// One document at the end
    Json,
}

/// Results of the steps.
#[derive(Default)]
struct ResolveReport {
    resolved: Option<Resolved>,
    via: Option<Via>,
    first_byte: Option<Duration>,
}

impl ResolveCommand {
    pub(crate) async fn run(self, steps: LoggedSteps) -> Result<(), Failure> {
        // The argument is checked before anything is read.
        habits::target(&self.target, "default")?;
        let policy = self.policy.policy()?;
        let loaded = load(&KubeconfigArgs::from(self.kube), &Env::of_process())?;
        let namespace = loaded.namespace;
        let config = policy.stack(&namespace, Default::default());
        let (client, api_server) = reach(loaded.config).await?;
        let connect = proxy::connect(client.clone(), api_server, config);
        if self.output == ResolveOutput::Text {
            steps.tell();
        }
        for note in loaded.notes {
            steps.note("kubeconfig", note);
        }
        let explaining = explained(&connect, &self.target, &namespace, &steps);
        // The printed steps already show the wait.
        let explained = match self.output {
            ResolveOutput::Text => explaining.await?,
            ResolveOutput::Json => progress::shown(&self.target, explaining).await?,
        };
        if self.output == ResolveOutput::Json {
            out::json(&explained.document)?;
        }
        if let Err(error) = explained.done {
            return Err(advised(error, &client, &namespace, &explained.host).await);
        }
        steps.written()
    }
}

/// Outcome of a target.
pub(super) struct Explained {
    pub(super) host: Host,
    pub(super) document: Value,
    pub(super) done: Result<(), ConnectError>,
}

/// Resolves and dials a target as the proxy does.
pub(super) async fn explained(
    connect: &ClusterStack,
    target: &str,
    namespace: &str,
    steps: &LoggedSteps,
) -> Result<Explained, Failure> {
    let (host, port) = habits::target(target, namespace)?;
    steps.note("parse", parsed(&host, port, namespace));
    let mut found = ResolveReport::default();
    let limit = Settings::default().dial_timeout;
    let done = explain(connect, &host, port, limit, steps, &mut found).await;
    steps.end();
    Ok(Explained {
        document: document(target, &found, &done, &steps.all()),
        host,
        done,
    })
}

fn parsed(host: &Host, port: Option<NonZeroU16>, namespace: &str) -> String {
    let host = match host {
        Host::Name(name) if name.is_absolute() => format!("the name {name} in full"),
        Host::Name(name) => format!("the name {name}, in namespace {namespace}"),
        Host::Ip(ip) => format!("the address {ip}"),
    };
    match port {
        Some(port) => format!("{host}, port {port}"),
        None => format!("{host}, no port"),
    }
}

async fn explain(
    connect: &ClusterStack,
    host: &Host,
    port: Option<NonZeroU16>,
    limit: Duration,
    steps: &LoggedSteps,
    found: &mut ResolveReport,
) -> Result<(), ConnectError> {
    let resolving = timeout(limit, connect.get_ref().resolve(host, port)).await;
    let resolved = resolving.unwrap_or_else(|_| {
        let sentence = format!("{host} was not resolved within {limit:?}: try again");
        Err(ConnectError::new(Refusal::TimedOut, sentence))
    })?;
    steps.note("found", meaning(&resolved));
    found.resolved = Some(resolved.clone());
    let Some(port) = port else {
        if let Resolved::Pods(candidates) = &resolved {
            candidates.usable()?;
        }
        return Ok(());
    };
    let target = Target {
        host: host.clone(),
        port,
        origin: Origin::default(),
    };
    let mut stream = connect.clone().connect(target).await?;
    let via = stream.via();
    steps.note("stream", format!("open, to {via}"));
    found.via = Some(via);
    let mut byte = [0];
    let opened = tokio::time::Instant::now();
    match timeout(FIRST_BYTE, stream.read(&mut byte)).await {
        Err(_) => steps.note(
            "byte",
            format!("none within {FIRST_BYTE:?}: the other side lets the client speak first"),
        ),
        Ok(Ok(0)) => steps.note("byte", "none: the other side closed".into()),
        Ok(Ok(_)) => {
            steps.note("byte", "the first one is here".into());
            found.first_byte = Some(opened.elapsed());
        }
        Ok(Err(error)) => return Err(classify(error.into())),
    }
    Ok(())
}

fn meaning(resolved: &Resolved) -> String {
    match resolved {
        Resolved::Pods(candidates) => {
            let total = candidates.endpoints.len();
            match candidates.usable() {
                Ok(usable) => format!(
                    "{}: {} of {total} endpoints",
                    candidates.asked,
                    usable.len()
                ),
                Err(error) => error.to_string(),
            }
        }
        Resolved::ApiServer => "the API server itself".into(),
        Resolved::Outside { to, learned_from } => {
            let to: Vec<_> = to.iter().map(Host::to_string).collect();
            let from = learned_from.iter().map(|from| format!(", by {from}"));
            let from: String = from.collect();
            format!("a host outside the cluster: {}{from}", to.join(", "))
        }
    }
}

/// The JSON document. Keys are never removed.
fn document(
    target: &str,
    found: &ResolveReport,
    done: &Result<(), ConnectError>,
    steps: &[LoggedStep],
) -> Value {
    let ms = |at: Duration| (at.as_secs_f64() * 1e6).round() / 1e3;
    let steps = steps
        .iter()
        .map(|step| json!({"ms": ms(step.at), "by": step.by, "text": step.text}));
    let mut document = json!({"target": target, "steps": steps.collect::<Vec<_>>()});
    match &found.resolved {
        Some(Resolved::Pods(candidates)) => {
            document["kind"] = "pods".into();
            document["service"] = candidates.service.clone().into();
            document["endpoints"] = endpoints(candidates);
        }
        Some(Resolved::ApiServer) => document["kind"] = "api-server".into(),
        Some(Resolved::Outside { to, learned_from }) => {
            document["kind"] = "outside".into();
            document["to"] = to.iter().map(Host::to_string).collect();
            document["learnedFrom"] = learned_from.clone().into();
        }
        None => {}
    }
    if let Some(via) = &found.via {
        document["via"] = json!({"to": via.to, "transport": via.transport});
        document["firstByteMs"] = found.first_byte.map(ms).into();
    }
    if let Err(error) = done {
        document["refusal"] =
            json!({"class": error.refusal().as_str(), "sentence": error.to_string()});
    }
    document
}

fn endpoints(candidates: &Candidates) -> Value {
    let pods = candidates.endpoints.iter().map(|e| {
        json!({
            "pod": e.pod.to_string(),
            "port": (e.port != 0).then_some(e.port),
            "readiness": e.readiness.to_string(),
            "addresses": e.addresses,
        })
    });
    let strays = candidates.strays.iter().map(|s| {
        json!({
            "address": s.address,
            "port": (s.port != 0).then_some(s.port),
            "readiness": s.readiness.to_string(),
            "notAPod": s.reason,
        })
    });
    pods.chain(strays).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsed_target_in_the_document() {
        let said = |text: &str| {
            let (host, port) = habits::target(text, "shop").unwrap();
            parsed(&host, port, "shop")
        };
        assert_eq!(said("web:80"), "the name web, in namespace shop, port 80");
        assert_eq!(said("web.x."), "the name web.x. in full, no port");
        assert_eq!(said("10.0.0.1"), "the address 10.0.0.1, no port");
    }

    #[test]
    fn a_document_of_a_refusal() {
        let found = ResolveReport {
            resolved: Some(Resolved::Outside {
                to: vec![Host::parse("example.com").unwrap()],
                learned_from: None,
            }),
            ..ResolveReport::default()
        };
        let refused = Err(ConnectError::new(Refusal::Denied, "no"));
        let document = document("example.com:80", &found, &refused, &[]);
        assert_eq!(
            document,
            json!({
                "target": "example.com:80",
                "steps": [],
                "kind": "outside",
                "to": ["example.com"],
                "learnedFrom": null,
                "refusal": {"class": "denied", "sentence": "no"},
            })
        );
    }
}
