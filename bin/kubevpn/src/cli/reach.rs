//! The client of the API server, for all commands.

use kubevpn_client::{ApiServer, Renewal, build_renewable};
use kubevpn_daemon::ApiError;
use kubevpn_proxy::probe;
use kubevpn_target::ConnectError;

use crate::exit::Failure;
use crate::progress;

/// A client with credentials. A credential plugin that prompts has no time limit.
pub(super) async fn reach(config: kube::Config) -> Result<(kube::Client, ApiServer), Failure> {
    let (client, renewal) = reach_for_long(config).await?;
    Ok((client, renewal.api_server()))
}

/// The client, and the renewal of its credentials.
pub(super) async fn reach_for_long(
    config: kube::Config,
) -> Result<(kube::Client, Renewal), Failure> {
    let plugin = config.auth_info.exec.as_ref();
    let plugin = plugin.and_then(|exec| exec.command.as_deref());
    let what = match plugin {
        Some(plugin) => format!("the credential plugin {plugin}"),
        None => "the login".to_owned(),
    };
    let options = super::options();
    let (client, renewal) = build_renewable(config, &options).map_err(ApiError::from)?;
    progress::said(what, renewal.log_in()).await?;
    Ok((client, renewal))
}

/// The API server of this URL, in the text of a wait.
pub(super) fn server_named(url: &str) -> String {
    format!("the API server {url}")
}

/// Waits until the API server of this URL has answered.
pub(super) async fn answers(client: &kube::Client, server: &str) -> Result<(), ConnectError> {
    progress::shown(server_named(server), probe::check(client)).await
}
