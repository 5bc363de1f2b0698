//! Suggestions for a name that nothing has.

use kubevpn_target::{ConnectError, Host, Name, Refusal};

use super::service;
use crate::exit::Failure;
use crate::near::nearest;

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
    match meant(name, namespace, &services) {
        Some(advice) => Failure::Advised {
            error: error.into(),
            advice,
        },
        None => error.into(),
    }
}

/// By the Services there are, as namespace and name.
fn meant(name: &Name, namespace: &str, services: &[(String, String)]) -> Option<String> {
    let mut labels = name.as_str().split('.');
    let (service, asked) = (labels.next()?, labels.next());
    let within = asked.unwrap_or(namespace);
    let of = |(namespace, _): &&(String, String)| namespace == within;
    let is_namespace = services.iter().any(|found| of(&found));
    if !is_namespace && let Some(asked) = asked {
        let with_it = services.iter().filter(|(_, name)| name == service);
        let found = nearest(asked, with_it.map(|(namespace, _)| namespace.as_str()))?;
        return Some(format!(
            "there is no Service in a namespace {asked}; did you mean {service}.{found}?"
        ));
    }
    let names = services.iter().filter(of).map(|(_, name)| name.as_str());
    let is_there = names.clone().any(|name| name == service);
    if let Some(found) = nearest(service, names).filter(|_| !is_there) {
        return Some(match asked {
            Some(asked) => format!("did you mean {found}.{asked}?"),
            None => format!("did you mean {found}?"),
        });
    }
    let elsewhere: Vec<_> = services
        .iter()
        .filter(|(_, name)| name == service)
        .map(|(namespace, _)| namespace.as_str())
        .take(3)
        .collect();
    let first = elsewhere.first()?;
    Some(format!(
        "a Service {service} is in {}: ask for {service}.{first}",
        elsewhere.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant() {
        let services = [
            ("default", "productpage"),
            ("default", "reviews"),
            ("team-a", "api"),
        ]
        .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        let said = |name: &str| {
            let name = Name::parse(name).unwrap();
            meant(&name, "default", &services).unwrap_or_default()
        };
        for (name, wanted) in [
            ("productpag", "did you mean productpage?"),
            ("reveiws.default", "did you mean reviews.default?"),
            ("api", "a Service api is in team-a: ask for api.team-a"),
            ("api.team-b", "did you mean api.team-a?"),
            ("www.example.com", ""),
            ("nosuch", ""),
        ] {
            let said = said(name);
            assert!(
                said.ends_with(wanted) && said.is_empty() == wanted.is_empty(),
                "{name}: {said}"
            );
        }
    }
}
