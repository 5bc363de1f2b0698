//! `kubevpn version`.

use std::time::Duration;

use clap::ValueEnum;
use kubevpn_client::{Env, KubeconfigArgs, load};
use kubevpn_daemon::{DaemonClient, StateDir};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::kube::KubeArgs;
use super::reach::reach;
use crate::exit::Failure;
use crate::out;
use crate::progress;

/// Time limit of the API server, its login included.
const ANSWER: Duration = Duration::from_secs(10);
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Set when a release is built.
const COMMIT: Option<&str> = option_env!("KUBEVPN_COMMIT");

/// Print the version
///
/// With -o json, also print the commit and the target of the build, and the versions of the API server and, if it runs, of
/// the daemon.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # this program's
  kubevpn version

  # the daemon's and the API server's, too
  kubevpn version -o json")]
pub(crate) struct VersionCommand {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: VersionOutput,
    /// Print only the version of this program: contact neither the daemon nor the API server
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    kube: KubeArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum VersionOutput {
    /// One line
    #[default]
    Text,
    /// One document; keys are never removed
    Json,
}

impl VersionCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        if self.output == VersionOutput::Text {
            let commit = COMMIT.map(|commit| format!(" ({commit})"));
            return out::line(format_args!(
                "kubevpn {VERSION}{}",
                commit.unwrap_or_default()
            ));
        }
        let args = KubeconfigArgs::from(self.kube);
        let asked = (!self.client).then_some(&args);
        let document = progress::said("the daemon and the API server", document(asked)).await;
        out::json(&document)
    }
}

/// The document, with daemon and API server unless `asked` is `None`.
pub(super) async fn document(asked: Option<&KubeconfigArgs>) -> Value {
    let mut document = json!({
        "version": VERSION,
        "commit": COMMIT,
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
    });
    if let Some(args) = asked {
        let (daemon, server) = tokio::join!(daemon(), timeout(ANSWER, server(args)));
        let late = || Err("the API server did not answer in time".to_owned());
        for (name, asked) in [
            ("daemon", daemon),
            ("server", server.unwrap_or_else(|_| late())),
        ] {
            document[name] = match asked {
                Ok(found) => found,
                Err(why) => json!({"error": why}),
            };
        }
    }
    document
}

/// The daemon's version; `null` if none runs.
async fn daemon() -> Result<Value, String> {
    let asked = async {
        let daemon = DaemonClient::new(StateDir::locate()?);
        match daemon.find().await? {
            true => daemon.status().await.map(|status| status.daemon),
            false => Ok(None),
        }
    };
    let status = asked.await.map_err(|error| error.whole())?;
    Ok(status.map_or(Value::Null, |daemon| {
        json!({"version": daemon.version, "pid": daemon.pid, "startedAt": daemon.started_at})
    }))
}

async fn server(args: &KubeconfigArgs) -> Result<Value, String> {
    let loaded = load(args, &Env::of_process()).map_err(|error| error.to_string())?;
    let url = loaded.server;
    let (client, _) = reach(loaded.config)
        .await
        .map_err(|failure| failure.message())?;
    match client.apiserver_version().await {
        Ok(version) => Ok(json!({"version": version.git_version, "url": url})),
        Err(error) => Err(kubevpn_client::classify_api(
            error,
            &kubevpn_client::Action {
                verb: "get",
                resource: "/version",
                api_group: "",
                namespace: None,
                name: None,
            },
        )
        .to_string()),
    }
}
