//! Resolution of a query over known objects: pure, without I/O and without a clock.
//!
//! A rule reads facts of a [`Snapshot`] one after the other and stops at the first missing one. The caller reads it and
//! applies the rule again. So the result depends on the snapshot only, not on the order in which it was filled.

mod addresses;
mod names;
mod records;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kubevpn_target::{Host, Name};

use crate::candidates::{Query, Resolution};
use crate::fetch::CallFailure;
use crate::objects::{self, PortOf, RequestedPort, ServiceKind, dns_endpoint, full_name};
use crate::select::{Objects, Select};
use crate::snapshot::{AddressOwner, Need, ResolveStep, Snapshot, Stop, fact, readable};
use crate::{Candidates, Domain, LookupError, PodRef, Readiness};

pub(crate) use self::records::{pointers, records};

/// The port that DNS is spoken on (RFC 1035 section 4.2).
const DNS: RequestedPort = RequestedPort::port(53);

/// The label of the Pods of the cluster's DNS in nearly every cluster, with CoreDNS or another server.
const LABEL: &str = "k8s-app=kube-dns";

/// The subject of a resolution: a target, or the cluster's DNS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    Target(Query),
    /// The Pods of the cluster's DNS.
    Dns,
}

/// By-products of a resolution.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// Each step, in words for the log.
    pub(crate) steps: Vec<String>,
    /// Selections that decide the answer by being empty or forbidden.
    pub(crate) pins: Vec<Need>,
    /// The owner of the address.
    pub(crate) owner: Option<AddressOwner>,
}

impl Notes {
    fn step(&mut self, step: impl Into<String>) {
        self.steps.push(step.into());
    }
}

/// Resolves a subject, or returns what has to be read first.
pub(crate) fn resolve(
    snapshot: &Snapshot<'_>,
    subject: &Subject,
    notes: &mut Notes,
) -> ResolveStep<Resolution<Candidates>> {
    let mut walk = Walk { snapshot, notes };
    let mut found = match subject {
        Subject::Target(query) => {
            let port = RequestedPort(query.port);
            match &query.host {
                Host::Name(name) => walk.by_name(name, port)?,
                Host::Ip(ip) => walk.by_address(*ip, port)?,
            }
        }
        Subject::Dns => walk.dns()?,
    };
    if let Resolution::Pods(candidates) = &mut found {
        if let Err(LookupError::NotReady { .. }) = candidates.usable() {
            walk.explain_unready(candidates)?;
        }
        walk.notes.step(describe(candidates));
        if matches!(subject, Subject::Target(query) if query.is_mapped) {
            candidates.map_port();
        }
    }
    Ok(found)
}

/// The cluster's domain and suffixes.
pub(crate) fn domain(snapshot: &Snapshot<'_>) -> ResolveStep<Arc<Domain>> {
    let domain = snapshot.domain.clone();
    domain.ok_or_else(|| Stop::needs(Need::Domain))
}

/// State of one resolution.
struct Walk<'a> {
    snapshot: &'a Snapshot<'a>,
    notes: &'a mut Notes,
}

/// The result of an existing object.
enum Hit {
    Answer(Resolution<Candidates>),
    /// An ExternalName: resolve this name next.
    Alias {
        service: String,
        to: Name,
    },
}

impl Hit {
    fn pods(candidates: Candidates) -> Self {
        Self::Answer(Resolution::Pods(candidates))
    }
}

/// Result of a search in several places, some of which may be forbidden.
struct PartialSearch<T> {
    found: T,
    /// Why one of the places could not be searched.
    hidden: Option<CallFailure>,
}

impl<'a> Walk<'a> {
    fn service(&self, namespace: &str, name: &str) -> ResolveStep<Option<&'a Arc<Service>>> {
        let select = Select::named(namespace, name);
        let found = fact(&self.snapshot.services, select, Need::Services)?;
        Ok(found.first())
    }

    /// The endpoints of a Service.
    fn slices(
        &mut self,
        namespace: &str,
        service: &str,
    ) -> ResolveStep<&'a Objects<EndpointSlice>> {
        let select = Select::of_service(namespace, service);
        let slices = fact(&self.snapshot.slices, select.clone(), Need::Slices)?;
        if slices.is_empty() {
            // The Service is new, or has no selector: watch it, so that its first endpoint is seen at once.
            self.notes.pins.push(Need::Slices(select));
        }
        Ok(slices)
    }

    fn pods(&self, select: Select) -> ResolveStep<&'a Objects<Pod>> {
        fact(&self.snapshot.pods, select, Need::Pods)
    }

    fn pod(&self, namespace: &str, name: &str) -> ResolveStep<Option<&'a Arc<Pod>>> {
        Ok(self.pods(Select::named(namespace, name))?.first())
    }

    fn is_namespace(&self, name: &str) -> ResolveStep<bool> {
        let select = Select::named("", name);
        let found = fact(&self.snapshot.namespaces, select, Need::Namespaces)?;
        Ok(!found.is_empty())
    }

    /// Resolves an existing Service.
    fn serve(&mut self, service: &Service, port: RequestedPort) -> ResolveStep<Hit> {
        let full_name = full_name(&service.metadata);
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let port_of = match objects::kind(service) {
            ServiceKind::External(to) => return Ok(alias(full_name, to)?),
            ServiceKind::Headless => PortOf::Number(port.number()),
            ServiceKind::Mapped => {
                let matched = objects::service_port(service, port)?;
                if is_api_server(namespace, name) {
                    return Ok(Hit::Answer(Resolution::ApiServer));
                }
                let port_name = matched.name.as_deref().unwrap_or_default();
                self.notes.step(format!(
                    "service {full_name} has port {} ({port_name})",
                    matched.port
                ));
                PortOf::Named(port_name)
            }
        };
        let slices = self.slices(namespace, name)?;
        let found = objects::endpoints(slices.iter().map(|s| &**s), port_of, None);
        let behind = match &port_of {
            PortOf::Number(_) => objects::behind(service, slices.iter().map(|s| &**s), port),
            PortOf::Named(_) => None,
        };
        let asked = format!("service {full_name}{port}");
        let none = objects::why_none(service, &found);
        let mut candidates = self.candidates(asked, found)?;
        candidates.service = Some(full_name);
        candidates.behind = behind;
        candidates.affinity = objects::affinity(service);
        candidates.publishes_unready = objects::publishes_unready(service);
        if candidates.endpoints.is_empty() && candidates.strays.is_empty() {
            candidates.because = Some(none);
        }
        Ok(Hit::pods(candidates))
    }

    /// Reads the first Pod that is not ready, if that is allowed: the others normally have the same problem.
    fn explain_unready(&self, candidates: &mut Candidates) -> ResolveStep<()> {
        let mut unready = candidates.endpoints.iter();
        let Some(endpoint) = unready.find(|e| e.readiness == Readiness::NotReady) else {
            return Ok(());
        };
        let PodRef {
            namespace, name, ..
        } = &endpoint.pod;
        if let Some(Some(pod)) = readable(self.pod(namespace, name))?
            && let Some(why) = objects::why_not_ready(pod)
        {
            candidates.because = Some(format!("pod {}: {why}", endpoint.pod));
        }
        Ok(())
    }

    /// The Pods of the cluster's DNS: those of its Service, otherwise those with its label.
    fn dns(&mut self) -> ResolveStep<Resolution<Candidates>> {
        let (namespace, name) = &self.snapshot.settings.dns;
        let Some(service) = self.service(namespace, name)? else {
            let namespace = namespace.clone();
            let label = LABEL;
            let pods = self.pods(Select::WithLabel { namespace, label })?;
            return Ok(Resolution::Pods(self.labelled_dns(pods)?));
        };
        match self.serve(service, DNS)? {
            Hit::Answer(answer) => Ok(answer),
            Hit::Alias { service, to } => Err(Stop::Error(LookupError::ExternalName {
                reason: format!("it points to {to}, and the cluster's DNS is asked in its pods"),
                service,
            })),
        }
    }

    fn labelled_dns(&self, pods: &Objects<Pod>) -> Result<Candidates, LookupError> {
        let (namespace, name) = &self.snapshot.settings.dns;
        let endpoints: Vec<_> = pods.iter().filter_map(|pod| dns_endpoint(pod)).collect();
        if endpoints.is_empty() {
            return Err(LookupError::NameNotFound {
                name: format!("service {namespace}/{name}"),
                because: format!("and no pod in {namespace} has the label {LABEL}"),
            });
        }
        let asked = format!("the pods in {namespace} with the label {LABEL}");
        Ok(Candidates::new(asked, endpoints))
    }
}

/// An ExternalName is a DNS name: no search list applies to it.
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
pub(crate) mod tests;
