//! Suggestions of similar names for one that does not exist.

use kubevpn_proxy::suggestion;
use kubevpn_target::{ConnectError, Host, Refusal};

use super::service;
use crate::exit::Failure;

/// Adds a similar name to the failure, if there is one.
pub(super) async fn advised(
    error: ConnectError,
    client: &kube::Client,
    namespace: &str,
    host: &Host,
) -> Failure {
    let Host::Name(name) = host else {
        return error.into();
    };
    if !matches!(error.refusal(), Refusal::NameNotFound | Refusal::Denied) {
        return error.into();
    }
    let found = match service::list(client, None).await {
        Ok(found) => found,
        // Many users have a Role in one namespace only.
        Err(_) => service::list(client, Some(namespace))
            .await
            .unwrap_or_default(),
    };
    let services: Vec<_> = found.services.iter().map(service::name).collect();
    match suggestion(name, namespace, &services) {
        Some(advice) => Failure::Advised {
            error: error.into(),
            advice,
        },
        None => error.into(),
    }
}
