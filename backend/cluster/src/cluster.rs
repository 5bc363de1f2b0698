//! One question at a time: host and port to an answer.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Client;
use kubevpn_target::{Host, Name};

use crate::candidates::Freshness;
use crate::fetch::{Failure, is_forbidden};
use crate::index::{self, Bare, Found, Kind, PortOf, full_name, pod_endpoint, pods_at};
use crate::name::{Reading, Unknown, readings, unknown};
use crate::trail::{Step, Trail};
use crate::view::View;
use crate::{Answer, Candidates, Domain, LookupError, Outside, Stray};

/// How many ExternalName Services are followed.
const ALIASES: usize = 8;

/// How many addresses without an owner are looked up for one Service.
const BARE: usize = 16;

/// How names are read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The active namespace: where short names are looked up.
    pub namespace: String,
    /// What belongs to the cluster.
    pub domain: Domain,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "default".into(),
            domain: Domain::default(),
        }
    }
}

/// What exists in one cluster. Clones share what they know.
#[derive(Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
}

struct Shared {
    view: View,
    settings: Settings,
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

/// Nothing was found, as far as it may be seen.
#[derive(Default)]
struct Nothing {
    /// What was looked for, in order.
    looked_for: Vec<Reading>,
    /// The first thing we were not allowed to see.
    hidden: Option<Hidden>,
}

struct Hidden {
    what: String,
    why: Failure,
}

impl Cluster {
    pub fn new(client: Client, settings: Settings) -> Self {
        let view = View::new(client, settings.namespace.clone());
        Self {
            shared: Arc::new(Shared { view, settings }),
        }
    }

    /// Finds what a host and port mean. Endpoints are told whether they are ready or not:
    /// [`Candidates::usable`] has the rule.
    ///
    /// Cancellation: dropping the future gives the question up.
    pub async fn lookup(&self, host: &Host, port: NonZeroU16) -> Result<Answer, LookupError> {
        self.shared
            .ask(host, port.get(), &mut Trail::silent())
            .await
    }

    /// The same lookup, and what was done for it.
    pub async fn explain(
        &self,
        host: &Host,
        port: NonZeroU16,
    ) -> (Vec<Step>, Result<Answer, LookupError>) {
        let mut trail = Trail::telling();
        let answer = self.shared.ask(host, port.get(), &mut trail).await;
        (trail.steps(), answer)
    }
}

impl Shared {
    async fn ask(&self, host: &Host, port: u16, trail: &mut Trail) -> Result<Answer, LookupError> {
        let mut answer = match host {
            Host::Name(name) => self.by_name(name, port, trail).await?,
            Host::Ip(ip) => self.by_address(*ip, port, trail).await?,
        };
        if let Answer::Pods(candidates) = &mut answer {
            candidates.freshness = Freshness {
                changes: None,
                stale_at: trail.stale_at,
            };
            trail.step(|| describe(candidates));
        }
        Ok(answer)
    }

    async fn by_name(
        &self,
        name: &Name,
        port: u16,
        trail: &mut Trail,
    ) -> Result<Answer, LookupError> {
        match self.read(name, port, trail).await? {
            Ok(hit) => self.follow(hit, port, trail).await,
            Err(nothing) => self.nothing(name, nothing, None, trail).await,
        }
    }

    /// Goes on while one ExternalName leads to the next.
    async fn follow(
        &self,
        mut hit: Hit,
        port: u16,
        trail: &mut Trail,
    ) -> Result<Answer, LookupError> {
        let mut passed: Vec<String> = Vec::new();
        loop {
            let (service, to) = match hit {
                Hit::Answer(answer) => return Ok(answer),
                Hit::Alias { service, to } => (service, to),
            };
            if passed.contains(&service) || passed.len() == ALIASES {
                return Err(LookupError::ExternalName {
                    reason: format!("it points to {to}, after {} others", passed.len()),
                    service,
                });
            }
            trail.step(|| format!("service {service} is another name for {to}"));
            hit = match self.read(&to, port, trail).await? {
                Ok(hit) => hit,
                Err(nothing) => return self.nothing(&to, nothing, Some(&service), trail).await,
            };
            passed.push(service);
        }
    }

    /// Tries what a name can mean, in order. A reading that we may not see is passed over: only when no
    /// other exists does it matter.
    async fn read(
        &self,
        name: &Name,
        port: u16,
        trail: &mut Trail,
    ) -> Result<Result<Hit, Nothing>, LookupError> {
        let settings = &self.settings;
        let mut nothing = Nothing::default();
        for reading in readings(name, &settings.namespace, &settings.domain) {
            match self.try_reading(&reading, port, trail).await {
                Ok(Some(hit)) => return Ok(Ok(hit)),
                Ok(None) => trail.step(|| format!("{reading} does not exist")),
                Err(Stop::Answer(error)) => return Err(error),
                Err(Stop::Call(failure)) if is_forbidden(&failure) => {
                    trail.step(|| format!("{reading}: {failure}"));
                    nothing.hidden.get_or_insert_with(|| Hidden {
                        what: reading.to_string(),
                        why: failure,
                    });
                }
                Err(Stop::Call(failure)) => return Err(failure.into()),
            }
            nothing.looked_for.push(reading);
        }
        Ok(Err(nothing))
    }

    async fn try_reading(
        &self,
        reading: &Reading,
        port: u16,
        trail: &mut Trail,
    ) -> Result<Option<Hit>, Stop> {
        let view = &self.view;
        match reading {
            Reading::Service { namespace, name } => {
                let service = match view.service(namespace, name, trail).await {
                    Ok(Some(service)) => service,
                    Ok(None) => return Ok(None),
                    // Which Service stands for the API server is known without being allowed to read it.
                    Err(e) if is_forbidden(&e) && is_api_server(namespace, name) && port == 443 => {
                        return Ok(Some(Hit::Answer(Answer::ApiServer)));
                    }
                    Err(e) => return Err(e.into()),
                };
                Ok(Some(self.serve(&service, port, trail).await?))
            }
            Reading::Endpoint {
                namespace,
                service,
                hostname,
            } => {
                let Some(object) = view.service(namespace, service, trail).await? else {
                    return Ok(None);
                };
                if let Kind::External(_) = index::kind(&object) {
                    return Ok(None);
                }
                let slices = view.slices(namespace, service, trail).await?;
                let found = index::endpoints(&slices, PortOf::Number(port), Some(hostname));
                if found == Found::default() {
                    return Ok(None);
                }
                let asked = format!("{reading} port {port}");
                let candidates = self.candidates(asked, found, trail).await?;
                Ok(Some(Hit::pods(candidates)))
            }
            Reading::PodAddress { namespace, ip } => {
                let seen = view.pods_at(*ip, trail).await?;
                let here = |pod: &&Pod| pod.metadata.namespace.as_deref() == Some(namespace);
                let pods = pods_at(seen.found.iter().filter(here), *ip, port)?;
                match (pods.is_empty(), seen.hidden) {
                    (true, Some(why)) if *namespace != self.settings.namespace => Err(why.into()),
                    (true, _) => Ok(None),
                    (false, _) => {
                        let asked = format!("{reading} port {port}");
                        Ok(Some(Hit::pods(Candidates::new(asked, pods))))
                    }
                }
            }
            Reading::Pod { namespace, name } => {
                let Some(pod) = view.pod(namespace, name, trail).await? else {
                    return Ok(None);
                };
                let asked = format!("{reading} port {port}");
                let endpoint = pod_endpoint(&pod, port);
                let mut candidates = Candidates::new(asked, endpoint.into_iter().collect());
                candidates.none_because = Some("the pod has run to its end".into());
                Ok(Some(Hit::pods(candidates)))
            }
        }
    }

    /// A Service that exists.
    async fn serve(
        &self,
        service: &Service,
        port: u16,
        trail: &mut Trail,
    ) -> Result<Hit, LookupError> {
        let full_name = full_name(&service.metadata);
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let port_of = match index::kind(service) {
            Kind::External(to) => return alias(full_name, to),
            Kind::Headless => PortOf::Number(port),
            Kind::Mapped => {
                let matched = index::service_port(service, port)?;
                if is_api_server(namespace, name) {
                    return Ok(Hit::Answer(Answer::ApiServer));
                }
                let port_name = matched.name.as_deref().unwrap_or_default();
                trail.step(|| format!("service {full_name} has port {port} ({port_name})"));
                PortOf::Named(port_name)
            }
        };
        let slices = self.view.slices(namespace, name, trail).await?;
        let found = index::endpoints(&slices, port_of, None);
        let none_because = index::why_none(service, &found);
        let asked = format!("service {full_name} port {port}");
        let mut candidates = self.candidates(asked, found, trail).await?;
        candidates.none_because = Some(none_because);
        Ok(Hit::pods(candidates))
    }

    /// Finds the Pods behind bare addresses: a Service without a selector is dialled where it points to one.
    async fn candidates(
        &self,
        asked: String,
        found: Found,
        trail: &mut Trail,
    ) -> Result<Candidates, Failure> {
        let mut candidates = Candidates::new(asked, found.pods);
        candidates.strays = found.strays;
        let mut seen = BTreeSet::new();
        for bare in found.bare {
            if !seen.insert((bare.ip, bare.port)) {
                continue;
            }
            let reason = if seen.len() > BARE {
                format!("it names no pod, and only the first {BARE} such addresses are looked up")
            } else {
                match self.owners(&bare, trail).await? {
                    Ok(mut owners) => {
                        for owner in &mut owners {
                            owner.readiness = owner.readiness.max(bare.readiness);
                        }
                        owners.retain(|o| candidates.endpoints.iter().all(|e| e.pod != o.pod));
                        candidates.endpoints.extend(owners);
                        continue;
                    }
                    Err(reason) => reason,
                }
            };
            candidates.strays.push(Stray {
                address: bare.ip.to_string(),
                port: bare.port,
                readiness: bare.readiness,
                reason,
            });
        }
        Ok(candidates)
    }

    /// The Pods at a bare address, or why there are none to dial.
    async fn owners(
        &self,
        bare: &Bare,
        trail: &mut Trail,
    ) -> Result<Result<Vec<crate::Endpoint>, String>, Failure> {
        let seen = self.view.pods_at(bare.ip, trail).await?;
        Ok(match pods_at(&seen.found, bare.ip, bare.port) {
            Err(ambiguous) => Err(ambiguous.to_string()),
            Ok(pods) if !pods.is_empty() => Ok(pods),
            Ok(_) => Err(match seen.hidden {
                Some(why) => format!("no pod that may be seen has this address ({why})"),
                None => "it is no pod's address, and only pods can be forwarded to".into(),
            }),
        })
    }

    async fn by_address(
        &self,
        ip: IpAddr,
        port: u16,
        trail: &mut Trail,
    ) -> Result<Answer, LookupError> {
        let outside = || {
            Answer::Outside(Outside {
                host: ip.into(),
                learned_from: None,
            })
        };
        if is_local(ip) {
            trail.step(|| format!("{ip} is no address of a cluster"));
            return Ok(outside());
        }
        let service = self.view.service_at(ip, trail).await?;
        if let Some(service) = service.found {
            let hit = self.serve(&service, port, trail).await?;
            return self.follow(hit, port, trail).await;
        }
        let pods = self.view.pods_at(ip, trail).await?;
        let found = pods_at(&pods.found, ip, port)?;
        if !found.is_empty() {
            let asked = match &found[..] {
                [one] => format!("pod {} ({ip}) port {port}", one.pod),
                _ => format!("the pods at {ip} port {port}"),
            };
            return Ok(Answer::Pods(Candidates::new(asked, found)));
        }
        if let Some(why) = pods.hidden.or(service.hidden) {
            let namespace = &self.settings.namespace;
            return Err(LookupError::Forbidden {
                sentence: format!(
                    "{ip} is no service or pod that may be seen from namespace {namespace}: it is another namespace's, or a host outside the cluster; {why}"
                ),
                call: why,
            });
        }
        trail.step(|| format!("{ip} is no service and no pod"));
        Ok(outside())
    }

    /// The rule for what nothing answers.
    async fn nothing(
        &self,
        name: &Name,
        nothing: Nothing,
        alias: Option<&String>,
        trail: &mut Trail,
    ) -> Result<Answer, LookupError> {
        let pointed = match alias {
            Some(service) => format!(" (where service {service} points)"),
            None => String::new(),
        };
        match unknown(name, &self.settings.domain) {
            Unknown::Cluster => match nothing.hidden {
                Some(Hidden { what, why }) => Err(LookupError::Forbidden {
                    sentence: format!("cannot tell whether {what}{pointed} exists: {why}"),
                    call: why,
                }),
                None => Err(self
                    .not_found(name, &nothing.looked_for, &pointed, trail)
                    .await),
            },
            Unknown::LastLabel(last) => {
                if let Some(Hidden { what, why }) = nothing.hidden {
                    return Err(LookupError::Forbidden {
                        sentence: format!(
                            "{name}{pointed} is {what}, or a host outside the cluster, and we may not look which: {why}"
                        ),
                        call: why,
                    });
                }
                // A name with more labels than any object has is not the cluster's for all we may see.
                let meant = nothing.looked_for.iter().any(|r| r.namespace() == last);
                let exists = match self.has_namespace(last, trail).await {
                    Ok(exists) => exists,
                    Err(why) if is_forbidden(&why) && meant => {
                        return Err(LookupError::Forbidden {
                            sentence: format!(
                                "{name}{pointed} is of the namespace {last}, or a host outside the cluster, and we may not look which: {why}"
                            ),
                            call: why,
                        });
                    }
                    Err(why) if is_forbidden(&why) => false,
                    Err(failure) => return Err(LookupError::Api(failure)),
                };
                if exists {
                    return Err(self
                        .not_found(name, &nothing.looked_for, &pointed, trail)
                        .await);
                }
                trail.step(|| format!("{name} is a host outside the cluster"));
                Ok(Answer::Outside(Outside {
                    host: Host::Name(name.clone()),
                    learned_from: alias.map(|service| format!("service {service}")),
                }))
            }
        }
    }

    async fn not_found(
        &self,
        name: &Name,
        looked_for: &[Reading],
        pointed: &str,
        trail: &mut Trail,
    ) -> LookupError {
        let because = match looked_for.last() {
            None if name.is_absolute() && pointed.is_empty() => {
                "names with a trailing dot are not searched for: write it without the dot, or in full"
                    .to_owned()
            }
            None => "it has the form of no service, endpoint or pod".to_owned(),
            Some(meant) => {
                let namespace = meant.namespace();
                // What may not be seen is not worth another refusal here.
                match self.has_namespace(namespace, trail).await {
                    Ok(false) => format!("there is no namespace {namespace}"),
                    _ => format!(
                        "there is no {meant}; try kubectl get services,pods -n {namespace}"
                    ),
                }
            }
        };
        LookupError::NameNotFound {
            name: format!("{name}{pointed}"),
            because,
        }
    }

    /// The active namespace is taken to exist: whoever has rights there alone may not see that it does.
    async fn has_namespace(&self, name: &str, trail: &mut Trail) -> Result<bool, Failure> {
        if name == self.settings.namespace {
            return Ok(true);
        }
        let exists = self.view.has_namespace(name).await;
        trail.step(|| match &exists {
            Ok(true) => format!("there is a namespace {name}"),
            Ok(false) => format!("there is no namespace {name}"),
            Err(failure) => failure.to_string(),
        });
        exists
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

/// Addresses that mean this host, or nobody in particular.
fn is_local(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}

fn describe(candidates: &Candidates) -> String {
    let endpoints = candidates
        .endpoints
        .iter()
        .map(|e| format!("{}:{} {}", e.pod, e.port, e.readiness));
    let strays = candidates
        .strays
        .iter()
        .map(|s| format!("{}:{} not a pod", s.address, s.port));
    let all: Vec<_> = endpoints.chain(strays).collect();
    match all.len() {
        0 => format!("{} has no endpoint", candidates.asked),
        _ => format!("{} has {}", candidates.asked, index::list(all.into_iter())),
    }
}

/// Why one reading of a name ends the lookup, or may.
enum Stop {
    /// A call failed.
    Call(Failure),
    /// The object is there and cannot serve.
    Answer(LookupError),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Call(failure)
    }
}

impl From<LookupError> for Stop {
    fn from(error: LookupError) -> Self {
        Self::Answer(error)
    }
}

#[cfg(test)]
mod tests;
