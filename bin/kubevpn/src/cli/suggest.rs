//! Suggestions for a name that nothing has.

use kubevpn_proxy::suggestion;
use kubevpn_target::{ConnectError, Host, Refusal};

use super::service;
use crate::exit::Failure;

/// The failure, with what to try where something of nearly that name is there.
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
        // A Role of one namespace is what many have.
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
