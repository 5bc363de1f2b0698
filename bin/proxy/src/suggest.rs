//! Suggestions of similar names, in refusals of names that do not exist.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use kubevpn_stack::Cluster;
use kubevpn_target::{Connect, ConnectError, Host, Name, Refusal, Target};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tower::Service;

/// Maximum number of edits between a name and a suggestion; fewer for a short name.
const EDITS: usize = 2;
/// Lifetime of the list of Services. A client that requests many wrong names causes two calls in that time.
const FRESH: Duration = Duration::from_secs(30);
/// Maximum delay of a refusal by its suggestion.
const PATIENCE: Duration = Duration::from_secs(1);

/// The most similar of the names, unless one is equal or none is similar.
pub fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = EDITS.min(typed.chars().count() / 2);
    let measured = names.map(|name| (strsim::osa_distance(typed, name), name));
    let (edits, name) = measured.min()?;
    (1..=most).contains(&edits).then_some(name)
}

/// The Service, as namespace and name, that may have been meant by a refused name.
pub fn suggestion(name: &Name, namespace: &str, services: &[(String, String)]) -> Option<String> {
    let mut labels = name.as_str().split('.');
    let (service, asked) = (labels.next()?, labels.next());
    let within = asked.unwrap_or(namespace);
    let of = |(namespace, _): &&(String, String)| namespace == within;
    let is_namespace = services.iter().any(|found| of(&found));
    if !is_namespace && let Some(asked) = asked {
        let with_it = services.iter().filter(|(_, name)| name == service);
        if let Some(found) = nearest(asked, with_it.map(|(namespace, _)| namespace.as_str())) {
            return Some(format!(
                "there is no Service in a namespace {asked}; did you mean {service}.{found}?"
            ));
        }
        // Longer names are more likely those of hosts outside.
        if labels.next().is_some() {
            return None;
        }
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
        .filter(|(namespace, name)| name == service && namespace != within)
        .map(|(namespace, _)| namespace.as_str())
        .take(3)
        .collect();
    let first = elsewhere.first()?;
    Some(format!(
        "a Service {service} is in {}: ask for {service}.{first}",
        elsewhere.join(", ")
    ))
}

/// Adds suggestions to refusals of `C`.
#[derive(Clone)]
pub struct Suggest<C> {
    inner: C,
    known: ServiceIndex,
}

impl<C> Suggest<C> {
    /// Suggests the Services of this cluster.
    pub fn new(inner: C, cluster: Cluster) -> Self {
        let known = ServiceIndex {
            cluster,
            listed: Arc::default(),
        };
        Self { inner, known }
    }
}

type ServiceNames = Arc<Vec<(String, String)>>;

#[derive(Clone)]
struct ServiceIndex {
    cluster: Cluster,
    listed: Arc<Mutex<Option<(Instant, ServiceNames)>>>,
}

impl ServiceIndex {
    /// The last list of Services; empty if they cannot be listed.
    async fn services(&self) -> ServiceNames {
        let mut listed = self.listed.lock().await;
        match &*listed {
            Some((at, services)) if at.elapsed() < FRESH => return services.clone(),
            _ => {}
        }
        let names = timeout(PATIENCE, self.cluster.service_names()).await;
        let services = Arc::new(names.ok().and_then(Result::ok).unwrap_or_default());
        *listed = Some((Instant::now(), services.clone()));
        services
    }

    async fn advised(&self, error: ConnectError, host: &Host) -> ConnectError {
        let Host::Name(name) = host else {
            return error;
        };
        let may_be_a_typo = match error.refusal() {
            Refusal::NameNotFound => true,
            // With a namespace that does not exist, the name is a host outside.
            Refusal::Denied => name.as_str().split('.').count() == 2,
            _ => false,
        };
        if !may_be_a_typo {
            return error;
        }
        let services = self.services().await;
        match suggestion(name, self.cluster.namespace(), &services) {
            Some(advice) => {
                let sentence = format!("{error}; {advice}");
                ConnectError::new(error.refusal(), sentence).with_source(error)
            }
            None => error,
        }
    }
}

impl<C: Connect + Clone + 'static> Service<Target> for Suggest<C> {
    type Response = C::Stream;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    /// `connect` waits for the inner service.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Target) -> Self::Future {
        let Self { inner, known } = self.clone();
        Box::pin(async move {
            let host = target.host.clone();
            match inner.connect(target).await {
                Ok(stream) => Ok(stream),
                Err(error) => Err(known.advised(error, &host).await),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_and_not() {
        let names = ["productpage", "reviews", "db"];
        let near = |typed: &str| nearest(typed, names.into_iter());
        assert_eq!(near("productpag"), Some("productpage"));
        assert_eq!(near("reveiws"), Some("reviews"));
        assert_eq!(near("dv"), Some("db"));
        for other in ["reviews", "ratings", "x", ""] {
            assert_eq!(near(other), None, "{other}");
        }
    }

    #[test]
    fn similar_services_are_suggested() {
        let services = [
            ("default", "productpage"),
            ("default", "reviews"),
            ("team-a", "api"),
        ]
        .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        let said = |name: &str| {
            let name = Name::parse(name).unwrap();
            suggestion(&name, "default", &services).unwrap_or_default()
        };
        for (name, wanted) in [
            ("productpag", "did you mean productpage?"),
            ("reveiws.default", "did you mean reviews.default?"),
            ("api", "a Service api is in team-a: ask for api.team-a"),
            ("api.team-b", "did you mean api.team-a?"),
            ("api.prod", "a Service api is in team-a: ask for api.team-a"),
            ("api.example.com", ""),
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
