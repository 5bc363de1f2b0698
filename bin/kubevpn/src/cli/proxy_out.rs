//! `kubevpn proxy-out`.

use std::time::Duration;

use clap::ValueEnum;
use kubevpn_client::{Env, KubeconfigArgs, Loaded, load};
use kubevpn_proxy::journal::AboutProxy;
use kubevpn_proxy::{
    self as proxy, Admin, Backend, ClusterStack, Journal, Protocol, ProxyView, probe,
};
use kubevpn_stack::{DeadlineLayer, FromHost, Settings};
use kubevpn_target::{ConnectError, Refusal, Target};
use tokio::time::{Instant, sleep, timeout};
use tower::Layer as _;

use super::kube::KubeArgs;
use super::listen::{ListenerArgs, ProtocolArgs, TlsArgs};
use super::policy::PolicyArgs;
use super::reach::{answers, reach_for_long, server_named};
use super::serve::{DRAIN, Ending, Intro, result, serve};
use super::service;
use super::suggest::{MissingNamespace, advised, missing_namespace};
use crate::exit::Failure;
use crate::notify;
use crate::out;
use crate::{progress, terminal};

/// Time limit, at the start, of checking the target of a forward.
const GLANCE: Duration = Duration::from_secs(1);
/// First and longest pause between calls to an API server that does not answer.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Run a local SOCKS5 or HTTP proxy into the cluster
///
/// Programs that use the proxy reach Services and Pods by cluster name or IP, over nothing but the Kubernetes
/// API's port-forward: no root, no routes, nothing installed in the cluster. It runs until Ctrl-C; `kubevpn connect` does the
/// same in the background.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # a proxy for the current context
  kubevpn proxy-out
  curl --proxy socks5h://127.0.0.1:1080 http://productpage.default.svc.cluster.local:9080

  # another context, another port
  kubevpn proxy-out --context staging -n shop --listen-socks 127.0.0.1:1081

  # an HTTP proxy beside it
  kubevpn proxy-out --listen-http 127.0.0.1:3128
  curl --proxy http://127.0.0.1:3128 http://productpage.default:9080

  # at login, while the VPN may still be down
  kubevpn proxy-out --wait-api")]
pub(crate) struct ProxyOut {
    #[command(flatten)]
    protocols: ProtocolArgs,
    #[command(flatten)]
    listen: ListenerArgs,
    #[command(flatten)]
    tls: TlsArgs,
    /// At the end, wait up to DURATION for open connections to finish
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = super::duration,
        default_value = "5s",
        help_heading = "Listeners"
    )]
    drain: Duration,
    /// Format in which the listeners are printed
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: ReadyFormat,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Dial every host from this machine, with its DNS and routes, e.g. while a VPN into the cluster is up. No kubeconfig
    /// is read, and no cluster is used
    #[arg(long, help_heading = "Names", conflicts_with_all = ["outside", "listen_dns"])]
    egress: bool,
    /// Wait until the API server can be reached, e.g. while a VPN comes up, with =DURATION at most that long [default: fail
    /// at once]
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = super::duration,
        num_args = 0..=1,
        require_equals = true,
        help_heading = "Cluster",
        conflicts_with = "egress"
    )]
    wait_api: Option<Option<Duration>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ReadyFormat {
    /// Human-readable lines, with commands to paste
    #[default]
    Text,
    /// One JSON object per line for each listener, with protocol and address; keys are never removed
    Json,
}

impl ProxyOut {
    /// A proxy with these listeners and all other settings at their defaults.
    pub(super) fn of(listen: ListenerArgs, kube: KubeArgs, policy: PolicyArgs) -> Self {
        Self {
            protocols: ProtocolArgs::default(),
            listen,
            tls: TlsArgs::default(),
            drain: DRAIN,
            output: ReadyFormat::default(),
            kube,
            policy,
            egress: false,
            wait_api: None,
        }
    }

    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        let policy = self.policy.policy()?;
        self.protocols.apply(&mut self.listen)?;
        let specs = self.listen.own_specs()?;
        let tls = self.tls.read()?;
        let as_json = self.output == ReadyFormat::Json;
        let mut ending = Ending {
            drain: self.drain,
            ..Ending::new()?
        };
        // The admin listener answers before the API server does.
        let (admin, specs): (Vec<_>, _) = specs
            .into_iter()
            .partition(|spec| spec.protocol == Protocol::Admin);
        let admin = async {
            match admin.first() {
                Some(spec) => Admin::start(&spec.address).await.map(Some),
                None => Ok(None),
            }
        };
        if self.egress {
            let mut listening = self.listen.bind(specs).await?;
            listening.clients.speak_tls(tls);
            ending.admin = admin.await?;
            let host = FromHost::new(listening.addresses());
            let connect = DeadlineLayer::new(Settings::default().dial_timeout).layer(host);
            let warning =
                "WARNING: --egress: whoever reaches this port uses this machine's network";
            let intro = Intro {
                leads_to: Some(warning.to_owned()),
                example: None,
                as_json,
            };
            let ready = async { Ok(intro) };
            let view = ProxyView::of_host(Journal::default(), about(None));
            return serve(listening, Backend::of_host(connect), ready, view, ending).await;
        }
        let loaded = load(&KubeconfigArgs::from(self.kube), &Env::of_process())?;
        let mut listening = self.listen.bind(specs).await?;
        listening.clients.speak_tls(tls);
        ending.admin = admin.await?;
        tracing::debug!(context = ?loaded.context, server = %loaded.server, namespace = %loaded.namespace, "kubeconfig");
        let own = listening.addresses().into_iter().collect();
        let config = policy.stack(&loaded.namespace, own);
        let (leads_to, about) = (leads_to(&loaded), about(Some(&loaded)));
        let server = loaded.server;
        if self.wait_api.is_some() {
            // Clients are accepted by the system from here on, and served when the API server answers: units that start
            // after this one need not wait for hours.
            notify::ready("waiting for the API server");
        }
        let reached = async {
            let (client, renewal) = reach_for_long(loaded.config).await?;
            if let Some(limit) = self.wait_api {
                progress::shown(server_named(&server), wait(&client, limit)).await?;
            }
            Ok::<_, Failure>((client, renewal))
        };
        let (client, renewal) = tokio::select! {
            reached = reached => reached?,
            ended = ending.termination.next() => return result(ended),
        };
        // The connection is made concurrently with the first call: the first client needs both.
        let api_server = renewal.api_server();
        api_server.expect_upgrade();
        let (connect, forwarder) = proxy::chain(client.clone(), api_server, config);
        let view = ProxyView::of_cluster(Journal::default(), about, &connect, forwarder, renewal);
        let forwards: Vec<_> = listening
            .bound
            .iter()
            .filter_map(|bound| match &bound.protocol {
                Protocol::Forward(to) => Some(to.0.clone()),
                _ => None,
            })
            .collect();
        let resolver = connect.clone();
        let ready = async move {
            if self.wait_api.is_none() {
                answers(&client, &server).await?;
            }
            for to in &forwards {
                warn_of_nothing(to, &resolver, &client, &loaded.namespace).await;
            }
            let example = match as_json {
                true => None,
                false => service::example(&client, &loaded.namespace).await,
            };
            if example.is_none() && terminal::is_there() && !out::is_hushed() {
                warn_of_no_namespace(&client, &loaded.namespace).await;
            }
            Ok(Intro {
                leads_to: Some(leads_to),
                example,
                as_json,
            })
        };
        serve(listening, Backend::of_cluster(connect), ready, view, ending).await
    }
}

/// Identity of this proxy in snapshots.
pub(super) fn about(loaded: Option<&Loaded>) -> AboutProxy {
    let of = |text: fn(&Loaded) -> Option<String>| loaded.and_then(text).unwrap_or_default();
    AboutProxy {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_at: jiff::Timestamp::now().to_string(),
        connection: String::new(),
        context: of(|loaded| loaded.context.clone()),
        cluster: of(|loaded| loaded.cluster.clone()),
        namespace: of(|loaded| Some(loaded.namespace.clone())),
        server: of(|loaded| Some(loaded.server.clone())),
    }
}

/// Warns of a forward whose target does not exist: its clients are reset, without a reason.
async fn warn_of_nothing(
    to: &Target,
    connect: &ClusterStack,
    client: &kube::Client,
    namespace: &str,
) {
    let resolved = timeout(GLANCE, connect.get_ref().resolve(&to.host, Some(to.port)));
    let Ok(Err(error)) = resolved.await else {
        return;
    };
    if !matches!(error.refusal(), Refusal::NameNotFound | Refusal::NoSuchPort) {
        return;
    }
    let (message, advice) = match advised(error, client, namespace, &to.host).await {
        Failure::Advised { error, advice } => (error.message, format!("; {advice}")),
        other => (other.message(), String::new()),
    };
    if !out::is_hushed() {
        out::aside(format_args!(
            "warning: {}{}",
            out::escaped(&message),
            out::escaped(&advice)
        ));
    }
}

/// Tells a person of a namespace that is not there: short names are looked for in it.
async fn warn_of_no_namespace(client: &kube::Client, namespace: &str) {
    let missing = timeout(GLANCE, missing_namespace(client, namespace)).await;
    if let Ok(Some(MissingNamespace { sentence, advice })) = missing {
        out::aside(format_args!(
            "warning: {}; {}",
            out::escaped(&sentence),
            out::escaped(&advice)
        ));
    }
}

fn leads_to(loaded: &Loaded) -> String {
    let context = loaded
        .context
        .iter()
        .map(|name| format!("context {name}, "));
    let context: String = context.collect();
    format!(
        "Cluster: {context}namespace {} ({})",
        loaded.namespace, loaded.server
    )
}

/// Waits until the API server answers, e.g. while a VPN comes up. Other errors than an unreachable server end the wait.
async fn wait(client: &kube::Client, limit: Option<Duration>) -> Result<(), ConnectError> {
    let begun = Instant::now();
    let mut pause = PAUSES.0;
    loop {
        let error = match probe::check(client).await {
            Err(error) if is_away(&error) => error,
            done => return done,
        };
        if limit.is_some_and(|limit| begun.elapsed() + pause > limit) {
            return Err(error);
        }
        if pause == PAUSES.0 {
            let error = error.to_string();
            notify::status(format_args!("waiting: {error}"));
            if !out::is_hushed() {
                out::aside(format_args!("waiting: {}", out::escaped(&error)));
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

fn is_away(error: &ConnectError) -> bool {
    matches!(error.refusal(), Refusal::ClusterAway | Refusal::TimedOut)
}
