//! Suggestions of similar names for one that does not exist.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::ListParams;
use kubevpn_daemon::{ApiError, Code};
use kubevpn_proxy::{nearest, suggestion};
use kubevpn_target::{ConnectError, Host, Refusal};
use tokio::time::{Instant, timeout_at};

use super::service;
use crate::exit::Failure;

/// Time limit of a look at namespaces, by which the failure is told later.
const GLANCE: Duration = Duration::from_secs(2);
/// Upper bound on the namespaces among which the nearest name is looked for.
const MOST: u32 = 500;

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
    let mut advice = suggestion(name, namespace, &services);
    let is_of_namespace = !name.as_str().contains('.');
    if advice.is_none()
        && is_of_namespace
        && services.iter().all(|(found, _)| found != namespace)
        && let Some(MissingNamespace {
            sentence,
            advice: what,
        }) = missing_namespace(client, namespace).await
    {
        advice = Some(format!("{sentence}: {what}"));
    }
    match advice {
        Some(advice) => Failure::Advised {
            error: error.into(),
            advice,
        },
        None => error.into(),
    }
}

/// A namespace that does not exist.
pub(super) struct MissingNamespace {
    pub(super) sentence: String,
    pub(super) advice: String,
}

impl From<MissingNamespace> for Failure {
    fn from(MissingNamespace { sentence, advice }: MissingNamespace) -> Self {
        Self::Advised {
            error: ApiError::new(Code::Refused(Refusal::NameNotFound), sentence),
            advice,
        }
    }
}

/// The message for a namespace that does not exist. `None` if it exists, or if the API server does not tell.
pub(super) async fn missing_namespace(
    client: &kube::Client,
    namespace: &str,
) -> Option<MissingNamespace> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let until = Instant::now() + GLANCE;
    let found = timeout_at(until, namespaces.get_opt(namespace))
        .await
        .ok()?;
    if found.ok()?.is_some() {
        return None;
    }
    let most = ListParams::default().limit(MOST);
    let advice = match timeout_at(until, namespaces.list(&most)).await {
        Ok(Ok(list)) => {
            let names: Vec<_> = list
                .items
                .into_iter()
                .filter_map(|it| it.metadata.name)
                .collect();
            match nearest(namespace, names.iter().map(String::as_str)) {
                Some(near) => format!("did you mean -n {near}?"),
                None => "kubectl get namespaces, which lists those there are".to_owned(),
            }
        }
        // kubectl may not list them either.
        _ => "-n NAMESPACE, with one that exists".to_owned(),
    };
    Some(MissingNamespace {
        sentence: format!("there is no namespace {namespace}"),
        advice,
    })
}
