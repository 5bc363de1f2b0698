//! The monitor of a connection: it checks whether the API server answers, whether the kubeconfig has changed, and whether
//! the address of a missing listener is free.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kubevpn_client::{Env, KubeconfigArgs, Loaded, load};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::api::{KubeconfigSelection, own_env};
use crate::connection::ManagedConnection;
use crate::engine::EngineSession;
use crate::error::{ApiError, Code, ErrorContext as _};
use crate::saved::Saved;
use crate::state_dir::{self, StateDir};

/// Interval of calls to the API server.
const ASK: Duration = Duration::from_secs(10);
/// Interval of checks of files.
const LOOK: Duration = Duration::from_secs(2);
/// Pause before a call that refusals cause: refusals of many clients cause one call.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs forever; drop it when the connection ends.
pub(crate) async fn monitor<S: EngineSession>(
    dir: StateDir,
    connection: Arc<ManagedConnection<S>>,
) {
    let mut ask = interval(ASK);
    let mut look = interval(LOOK);
    for timer in [&mut ask, &mut look] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let source = connection.saved().kubeconfig.clone();
    let mut seen = None;
    loop {
        tokio::select! {
            _ = ask.tick() => {}
            () = connection.session.trouble() => {
                tokio::time::sleep(PAUSE).await;
                ask.reset();
            }
            _ = look.tick() => {
                if connection.waits_for_listeners() {
                    connection.restore().await;
                }
                let now = Some(stamps(&source.files));
                if now == seen {
                    continue;
                }
                seen = now;
                match renew(&dir, &connection) {
                    Ok(renewed) => {
                        connection.health(|health| health.source = None);
                        if !renewed {
                            continue;
                        }
                        tracing::info!("the kubeconfig has changed: using the new contents");
                    }
                    Err(error) => {
                        let why = error.whole();
                        tracing::warn!(why, "the kubeconfig has changed and cannot be used");
                        connection.health(|health| health.source = Some(why));
                        continue;
                    }
                }
            }
        }
        let began = Instant::now();
        let answer = connection.session.ask_api(&connection.namespace()).await;
        tracing::debug!(ok = answer.is_ok(), took = ?began.elapsed(), "asked the API server");
        connection.health(|health| health.api(answer.as_ref().map(drop)));
    }
}

/// Times and sizes, by which a change of a file is detected.
fn stamps(files: &[PathBuf]) -> Vec<Option<(SystemTime, u64)>> {
    let stamp = |path: &PathBuf| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.modified().ok()?, found.len()))
    };
    files.iter().map(stamp).collect()
}

/// Makes the transient kubeconfig again from its source. Returns whether it has changed.
fn renew<S: EngineSession>(
    dir: &StateDir,
    connection: &ManagedConnection<S>,
) -> Result<bool, ApiError> {
    let Saved {
        id,
        kubeconfig: source,
        cluster,
        ..
    } = connection.saved().clone();
    // In a Pod, all files are read again by kube itself.
    if source.files.is_empty() || source.read_once {
        return Ok(false);
    }
    let now = load(&source.args(&cluster.namespace), &source.env())?;
    if now.server != cluster.server {
        return Err(ApiError::new(
            Code::Kubeconfig,
            format!(
                "the kubeconfig names {} now and the connection was made to {}: disconnect, and connect again",
                now.server, cluster.server
            ),
        ));
    }
    let path = dir.kubeconfig(&id);
    let before = state_dir::read(&path)?;
    let before = before
        .ok_or_else(|| ApiError::new(Code::Kubeconfig, "the transient kubeconfig is gone"))?;
    let before: serde_json::Value =
        serde_json::from_str(&before).context("the transient kubeconfig is broken")?;
    let unfit = "the kubeconfig cannot be kept";
    let mut now = serde_json::to_value(now.kubeconfig()).context(unfit)?;
    // The token is not in the kubeconfig.
    if source.token_sha256.is_some() {
        now["users"] = before["users"].clone();
    }
    if source.proxy_of_env {
        now["clusters"][0]["cluster"]["proxy-url"] =
            before["clusters"][0]["cluster"]["proxy-url"].clone();
    }
    if now == before {
        return Ok(false);
    }
    state_dir::write(&path, &serde_json::to_vec(&now).context(unfit)?)?;
    connection.renew(transient(dir, &id, &source)?.config)?;
    Ok(true)
}

/// Reads a connection's transient kubeconfig.
pub(crate) fn transient(
    dir: &StateDir,
    id: &str,
    source: &KubeconfigSelection,
) -> Result<Loaded, ApiError> {
    let args = KubeconfigArgs {
        kubeconfig: Some(dir.kubeconfig(id)),
        request_timeout: source.request_timeout,
        ..KubeconfigArgs::default()
    };
    Ok(load(&args, &Env::of(own_env()))?)
}
