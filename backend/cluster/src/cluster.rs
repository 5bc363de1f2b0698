//! One question at a time: host and port to an answer.

mod addresses;
mod domain;
mod fate;
mod names;
mod records;

use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kubevpn_target::{Host, Name};

use crate::candidates::{Query, Source};
use crate::fetch::Server;
use crate::objects::{self, Asked, Kind, PortOf, full_name};
use crate::store::Validity;
use crate::store::{Stats, View};
use crate::survey::Listed;
use crate::{Answer, Candidates, Domain, LookupError, PodRef, Readiness};

use self::domain::Whose;

/// How names are read, and for how long what they led to is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The active namespace: where short names are looked up, and what is searched where the access rules
    /// do not let us search everywhere.
    pub namespace: String,
    /// The cluster's domain; `None` reads it from the configuration of CoreDNS (the ConfigMap
    /// `kube-system/coredns`) when a name first depends on it, and takes `cluster.local` where that cannot be.
    pub domain: Option<Name>,
    /// What belongs to the cluster beside its domain, though only its DNS knows it.
    pub suffixes: Vec<Name>,
    /// The Service of the cluster's DNS, by namespace and name. Where there is none, the Pods of that namespace
    /// with the label `k8s-app=kube-dns`.
    pub dns: (String, String),
    /// Takes a host for one outside the cluster where the access rules do not let us see whether it is one: a name
    /// that may be in a namespace other than the active one, and a public address. `false` refuses it, naming the right
    /// that is missing. For users with a Role in one namespace `github.com` may be the Service `github` in the
    /// namespace `com`.
    pub unseen_is_outside: bool,
    /// What nobody asked for in this time is no longer watched; a day at most.
    pub idle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "default".into(),
            domain: None,
            suffixes: Vec::new(),
            dns: ("kube-system".into(), "kube-dns".into()),
            unseen_is_outside: false,
            idle: Duration::from_secs(600),
        }
    }
}

/// What exists in one cluster. Clones share what they know; with the last one every watch ends.
#[derive(Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
}

struct Shared {
    view: View,
    whose: Whose,
    settings: Settings,
    /// The Services and the ranges that were last listed for a survey.
    surveyed: Mutex<(Listed, Listed)>,
}

/// What an object that exists leads to.
enum Hit {
    Answer(Answer),
    /// An ExternalName: ask again for this.
    Alias {
        service: String,
        to: Name,
    },
}

impl Cluster {
    /// Nothing is asked of the API server before the first lookup. Lookups need a tokio runtime.
    pub fn new(client: Client, settings: Settings) -> Self {
        let view = View::new(client, settings.namespace.clone(), settings.idle);
        Self {
            shared: Arc::new(Shared {
                view,
                whose: Whose::new(&settings),
                settings,
                surveyed: Mutex::default(),
            }),
        }
    }

    /// Finds what a host and port mean. Endpoints are told whether they are ready or not:
    /// [`Candidates::usable`] has the rule. Without a port a Service is taken by its first TCP port, and
    /// what has no ports of its own gets [`Endpoint::port`](crate::Endpoint::port) 0.
    ///
    /// Each step is an event at level `debug`.
    ///
    /// Cancellation: what was asked of the API server is still kept for the next lookup.
    pub async fn lookup(
        &self,
        host: &Host,
        port: impl Into<Option<NonZeroU16>>,
    ) -> Result<Answer, LookupError> {
        let query = Query::Target {
            host: host.clone(),
            port: Asked(port.into()),
        };
        self.ask(&query).await
    }

    /// The Pods of the cluster's DNS, by which a [`Question`](crate::Question) can be asked.
    pub async fn dns(&self) -> Result<Candidates, LookupError> {
        match self.ask(&Query::Dns).await? {
            Answer::Pods(candidates) => Ok(candidates),
            _ => Err(LookupError::NameNotFound {
                name: "as the cluster's DNS".into(),
                because: "its service is that of something else".into(),
            }),
        }
    }

    /// What belongs to the cluster.
    pub async fn domain(&self) -> Arc<Domain> {
        self.shared.domain().await
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.shared.settings.namespace
    }

    pub(crate) fn surveyed(&self) -> &Mutex<(Listed, Listed)> {
        &self.shared.surveyed
    }

    pub(crate) fn server(&self) -> &Server {
        self.shared.view.server()
    }

    /// How much is kept now.
    pub fn stats(&self) -> Stats {
        self.shared.view.stats()
    }
}

impl Cluster {
    pub(crate) async fn ask(&self, query: &Query) -> Result<Answer, LookupError> {
        let shared = &self.shared;
        let trust = &mut Validity::default();
        let mut answer = match query {
            Query::Target { host, port } => match host {
                Host::Name(name) => shared.by_name(name, *port, trust).await?,
                Host::Ip(ip) => shared.by_address(*ip, *port, trust).await?,
            },
            Query::Dns => shared.dns(trust).await?,
        };
        if let Answer::Pods(candidates) = &mut answer {
            if let Err(LookupError::NotReady { .. }) = candidates.usable() {
                shared.explain_unready(candidates, trust).await;
            }
            candidates.source = Some(Source {
                cluster: self.clone(),
                query: query.clone(),
                validity: trust.clone(),
            });
            tracing::debug!("{}", describe(candidates));
        }
        Ok(answer)
    }
}

impl Shared {
    /// A Service that exists.
    async fn serve(
        &self,
        service: &Service,
        port: Asked,
        trust: &mut Validity,
    ) -> Result<Hit, LookupError> {
        let full_name = full_name(&service.metadata);
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let port_of = match objects::kind(service) {
            Kind::External(to) => return alias(full_name, to),
            Kind::Headless => PortOf::Number(port.number()),
            Kind::Mapped => {
                let matched = objects::service_port(service, port)?;
                if is_api_server(namespace, name) {
                    return Ok(Hit::Answer(Answer::ApiServer));
                }
                let port_name = matched.name.as_deref().unwrap_or_default();
                tracing::debug!(
                    "service {full_name} has port {} ({port_name})",
                    matched.port
                );
                PortOf::Named(port_name)
            }
        };
        let slices = self.view.slices(namespace, name, trust).await?;
        let found = objects::endpoints(slices.iter().map(|s| &**s), port_of, None);
        let behind = match &port_of {
            PortOf::Number(_) => objects::behind(service, slices.iter().map(|s| &**s), port),
            PortOf::Named(_) => None,
        };
        let asked = format!("service {full_name}{port}");
        let none = objects::why_none(service, &found);
        let mut candidates = self.candidates(asked, found, trust).await?;
        candidates.service = Some(full_name);
        candidates.behind = behind;
        candidates.affinity = objects::affinity(service);
        candidates.publishes_unready = objects::publishes_unready(service);
        if candidates.endpoints.is_empty() && candidates.strays.is_empty() {
            candidates.because = Some(none);
        }
        Ok(Hit::pods(candidates))
    }
}

impl Shared {
    /// Looks at the first Pod that is not ready, if it may be seen: what ails one ails the others as a rule.
    async fn explain_unready(&self, candidates: &mut Candidates, trust: &mut Validity) {
        let mut unready = candidates.endpoints.iter();
        let Some(endpoint) = unready.find(|e| e.readiness == Readiness::NotReady) else {
            return;
        };
        let PodRef {
            namespace, name, ..
        } = &endpoint.pod;
        if let Ok(Some(pod)) = self.view.pod(namespace, name, trust).await
            && let Some(why) = objects::why_not_ready(&pod)
        {
            candidates.because = Some(format!("pod {}: {why}", endpoint.pod));
        }
    }
}

impl Hit {
    fn pods(candidates: Candidates) -> Self {
        Self::Answer(Answer::Pods(candidates))
    }
}

/// An ExternalName is a name of the DNS: no search list applies to it.
fn alias(service: String, to: &str) -> Result<Hit, LookupError> {
    let absolute = format!("{}.", to.trim_end_matches('.'));
    match Name::parse(&absolute) {
        Ok(to) => Ok(Hit::Alias { service, to }),
        Err(error) => Err(LookupError::ExternalName {
            service,
            reason: format!("it points to {to:?}, and {error}"),
        }),
    }
}

fn is_api_server(namespace: &str, name: &str) -> bool {
    (namespace, name) == ("default", "kubernetes")
}

fn describe(candidates: &Candidates) -> String {
    let endpoints = candidates.endpoints.iter().map(|e| match e.port {
        0 => format!("{} {}", e.pod, e.readiness),
        port => format!("{}:{port} {}", e.pod, e.readiness),
    });
    let strays = candidates
        .strays
        .iter()
        .map(|s| format!("{}:{} not a pod", s.address, s.port));
    let all: Vec<_> = endpoints.chain(strays).collect();
    match all.len() {
        0 => format!("{} has no endpoint", candidates.asked),
        _ => format!(
            "{} has {}",
            candidates.asked,
            objects::list(all.into_iter())
        ),
    }
}

#[cfg(test)]
mod tests;
