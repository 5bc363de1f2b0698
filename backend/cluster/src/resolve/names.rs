//! Resolution of names: their possible meanings, and the rule for names that no object has.

use kubevpn_target::{Host, Name};

use super::{Hit, Walk, domain, is_api_server};
use crate::candidates::Resolution;
use crate::fetch::{CallFailure, is_forbidden};
use crate::name::{Reading, Unknown, before, in_full, questions, readings, spells_domain, unknown};
use crate::objects::{
    self, PortOf, RequestedPort, ServiceEndpoints, ServiceKind, pod_endpoint, pods_at,
};
use crate::select::Select;
use crate::snapshot::{Need, ResolveStep, Stop, readable};
use crate::{Candidates, DnsQuestion, Domain, LookupError, OutsideHost};

/// Limit on ExternalName Services followed in a row.
const ALIASES: usize = 8;

/// No object was found, as far as the access rules show.
#[derive(Default)]
struct Nothing {
    /// The readings that were tried, in order.
    looked_for: Vec<Reading>,
    /// The last reading that is forbidden: the last one is meant most often.
    hidden: Option<Hidden>,
}

struct Hidden {
    what: String,
    why: CallFailure,
}

impl Walk<'_> {
    pub(super) fn by_name(
        &mut self,
        name: &Name,
        port: RequestedPort,
    ) -> ResolveStep<Resolution<Candidates>> {
        match self.read(name, port)? {
            Ok(hit) => self.follow(hit, port),
            Err(nothing) => self.nothing(name, nothing, None),
        }
    }

    /// Follows ExternalNames from one to the next.
    pub(super) fn follow(
        &mut self,
        mut hit: Hit,
        port: RequestedPort,
    ) -> ResolveStep<Resolution<Candidates>> {
        let mut passed: Vec<String> = Vec::new();
        loop {
            let (service, to) = match hit {
                Hit::Answer(answer) => return Ok(answer),
                Hit::Alias { service, to } => (service, to),
            };
            if passed.contains(&service) || passed.len() == ALIASES {
                return Err(Stop::Error(LookupError::ExternalName {
                    reason: format!("it points to {to}, after {} others", passed.len()),
                    service,
                }));
            }
            self.notes
                .step(format!("service {service} is another name for {to}"));
            hit = match self.read(&to, port)? {
                Ok(hit) => hit,
                Err(nothing) => return self.nothing(&to, nothing, Some(&service)),
            };
            passed.push(service);
        }
    }

    /// Tries the readings of a name in order. A forbidden reading is skipped: it matters only if no other reading
    /// exists.
    fn read(&mut self, name: &Name, port: RequestedPort) -> ResolveStep<Result<Hit, Nothing>> {
        let snapshot = self.snapshot;
        let namespace = &snapshot.settings.namespace;
        let guess = snapshot.domain.as_ref().unwrap_or(&snapshot.guess);
        let mut meanings = readings(name, namespace, guess);
        let soon = soon(&meanings, unknown(name, guess) == Unknown::Cluster);
        let with_soon = |stop: Stop| stop.with_soon(soon);
        if spells_domain(name) {
            match domain(snapshot) {
                Ok(domain) => meanings = readings(name, namespace, &domain),
                Err(stop) => return Err(with_soon(stop)),
            }
        }
        let mut nothing = Nothing::default();
        for reading in meanings {
            match self.try_reading(&reading, port) {
                Ok(Some(hit)) => {
                    nothing.looked_for.iter().for_each(|r| self.pin(r));
                    return Ok(Ok(hit));
                }
                Ok(None) => self.notes.step(format!("{reading} does not exist")),
                Err(Stop::Failed(failure)) if is_forbidden(&failure) => {
                    self.notes.step(format!("{reading}: {failure}"));
                    nothing.hidden = Some(Hidden {
                        what: reading.to_string(),
                        why: failure,
                    });
                }
                Err(stop) => return Err(with_soon(stop)),
            }
            nothing.looked_for.push(reading);
        }
        Ok(Err(nothing))
    }

    /// The answer rests on earlier readings not existing, so their selections stay watched.
    fn pin(&mut self, reading: &Reading) {
        let pins = &mut self.notes.pins;
        match reading {
            Reading::Service { namespace, name } => {
                pins.push(Need::Services(Select::named(namespace, name)));
                pins.push(Need::Slices(Select::of_service(namespace, name)));
            }
            Reading::Endpoint {
                namespace, service, ..
            } => {
                pins.push(Need::Services(Select::named(namespace, service)));
                pins.push(Need::Slices(Select::of_service(namespace, service)));
            }
            Reading::PodAddress { namespace, ip } => self.pin_address(*ip, Some(namespace)),
            Reading::Pod { .. } => {}
        }
    }

    fn try_reading(&mut self, reading: &Reading, port: RequestedPort) -> ResolveStep<Option<Hit>> {
        match reading {
            Reading::Service { namespace, name } => {
                let service = match self.service(namespace, name) {
                    Ok(Some(service)) => service,
                    Ok(None) => return Ok(None),
                    // The Service of the API server is known without the right to read it.
                    Err(Stop::Failed(e))
                        if is_forbidden(&e)
                            && is_api_server(namespace, name)
                            && port.may_be(443) =>
                    {
                        return Ok(Some(Hit::Answer(Resolution::ApiServer)));
                    }
                    Err(stop) => return Err(stop),
                };
                let hit = self.serve(service, port);
                Ok(Some(hit.map_err(Stop::for_good)?))
            }
            Reading::Endpoint {
                namespace,
                service,
                hostname,
            } => {
                let Some(object) = self.service(namespace, service)? else {
                    return Ok(None);
                };
                if let ServiceKind::External(_) = objects::kind(object) {
                    return Ok(None);
                }
                let slices = self.slices(namespace, service)?;
                let found = objects::endpoints(
                    slices.iter().map(|s| &**s),
                    PortOf::Number(port.number()),
                    Some(hostname),
                );
                if found == ServiceEndpoints::default() {
                    return Ok(None);
                }
                let asked = format!("{reading}{port}");
                let mut candidates = self.candidates(asked, found)?;
                candidates.service = Some(format!("{namespace}/{service}"));
                candidates.publishes_unready = objects::publishes_unready(object);
                Ok(Some(Hit::pods(candidates)))
            }
            Reading::PodAddress { namespace, ip } => {
                let seen = self.pods_at(*ip, Some(namespace))?;
                let pods = pods_at(seen.found.iter().map(|p| &**p), *ip, port)?;
                match (pods.is_empty(), seen.hidden) {
                    (true, Some(why)) => Err(why.into()),
                    (true, None) => Ok(None),
                    (false, _) => {
                        let asked = format!("{reading}{port}");
                        Ok(Some(Hit::pods(Candidates::new(asked, pods))))
                    }
                }
            }
            Reading::Pod { namespace, name } => {
                let Some(pod) = self.pod(namespace, name)? else {
                    return Ok(None);
                };
                let asked = format!("{reading}{port}");
                let endpoint = pod_endpoint(pod, port.number());
                let ended = endpoint.is_none();
                let mut candidates = Candidates::new(asked, endpoint.into_iter().collect());
                candidates.because = ended.then(|| "the pod has run to its end".into());
                Ok(Some(Hit::pods(candidates)))
            }
        }
    }

    /// The rule for names that no object has. All facts that it may need are read at once.
    fn nothing(
        &mut self,
        name: &Name,
        nothing: Nothing,
        alias: Option<&String>,
    ) -> ResolveStep<Resolution<Candidates>> {
        let soon = self.soon_of_nothing(name, &nothing);
        let decided = self.decide_nothing(name, nothing, alias);
        decided.map_err(|stop| stop.with_soon(soon))
    }

    fn soon_of_nothing(&self, name: &Name, nothing: &Nothing) -> Vec<Need> {
        let snapshot = self.snapshot;
        let domain = snapshot.domain.as_ref().unwrap_or(&snapshot.guess);
        let mut soon = vec![Need::Additions];
        let (namespace, is_clusters) = match unknown(name, domain) {
            Unknown::Cluster => (nothing.looked_for.last().map(Reading::namespace), true),
            Unknown::LastLabel(last) => (Some(last), false),
        };
        if let Some(namespace) = namespace.filter(|n| *n != snapshot.settings.namespace) {
            soon.push(Need::Namespaces(Select::named("", namespace)));
        }
        if is_clusters && snapshot.additions != Some(false) {
            let (namespace, name) = &snapshot.settings.dns;
            soon.push(Need::Services(Select::named(namespace, name)));
            soon.push(Need::Slices(Select::of_service(namespace, name)));
        }
        soon
    }

    fn decide_nothing(
        &mut self,
        name: &Name,
        nothing: Nothing,
        alias: Option<&String>,
    ) -> ResolveStep<Resolution<Candidates>> {
        let settings = self.snapshot.settings;
        let pointed = match alias {
            Some(service) => format!(" (where service {service} points)"),
            None => String::new(),
        };
        let domain = domain(self.snapshot)?;
        let meant = match domain.contains(name) {
            true => readings(&in_full(name), &settings.namespace, &domain),
            false => nothing.looked_for,
        };
        match unknown(name, &domain) {
            Unknown::Cluster => {
                let only_dns = domain.contains(name) && meant.is_empty();
                if let (false, Some(Hidden { what, why })) = (only_dns, nothing.hidden) {
                    // The DNS would answer with an address that we may not look up either.
                    return Err(Stop::Error(LookupError::Forbidden {
                        sentence: format!("cannot tell whether {what}{pointed} exists: {why}"),
                        call: why,
                    }));
                }
                let otherwise = self.not_found(name, meant.last(), &pointed)?;
                self.question(name, &domain, alias, otherwise, only_dns)
            }
            Unknown::LastLabel(last) => {
                let passed_over = settings.unseen_is_outside && last != settings.namespace;
                if let Some(Hidden { what, why }) = nothing.hidden.filter(|_| !passed_over) {
                    return Err(Stop::Error(LookupError::Forbidden {
                        sentence: format!(
                            "{name}{pointed} is {what}, or a host outside the cluster, and we may not look which: {why}"
                        ),
                        call: why,
                    }));
                }
                // A name with more labels than any object has is taken for one outside the cluster.
                let may_be = meant.iter().any(|r| r.namespace() == last);
                let exists = match self.has_namespace(last) {
                    Ok(exists) => exists,
                    Err(Stop::Failed(why)) if is_forbidden(&why) && may_be && !passed_over => {
                        return Err(Stop::Error(LookupError::Forbidden {
                            sentence: format!(
                                "{name}{pointed} is of the namespace {last}, or a host outside the cluster, and we may not look which: {why}"
                            ),
                            call: why,
                        }));
                    }
                    Err(Stop::Failed(why)) if is_forbidden(&why) => false,
                    Err(stop) => return Err(stop),
                };
                if exists {
                    let otherwise = self.not_found(name, meant.last(), &pointed)?;
                    return self.question(name, &domain, alias, otherwise, false);
                }
                self.notes
                    .step(format!("{name} is a host outside the cluster"));
                Ok(Resolution::Outside(OutsideHost {
                    host: Host::Name(name.clone()),
                    learned_from: alias.map(|service| format!("service {service}")),
                }))
            }
        }
    }

    /// The query for names that the cluster's DNS may still know.
    fn question(
        &self,
        name: &Name,
        domain: &Domain,
        alias: Option<&String>,
        otherwise: LookupError,
        only_dns: bool,
    ) -> ResolveStep<Resolution<Candidates>> {
        let names = questions(name, &self.snapshot.settings.namespace, domain);
        if names.is_empty() || self.is_missing(&names, domain)? {
            return Err(Stop::Error(otherwise));
        }
        Ok(Resolution::Dns(DnsQuestion {
            names,
            learned_from: alias.map(|service| format!("service {service}")),
            otherwise,
            only_dns,
        }))
    }

    /// Whether the cluster's DNS would give the same answer, because it has no other source for these names.
    ///
    /// CoreDNS makes up records for names that contain a Pod's address.
    fn is_missing(&self, names: &[Name], domain: &Domain) -> ResolveStep<bool> {
        let of_objects = |name: &Name| {
            let labels = before(name.as_str(), domain.cluster().as_str());
            labels.is_some_and(|labels| labels.rsplit('.').next() != Some("pod"))
        };
        if !names.iter().all(of_objects) {
            return Ok(false);
        }
        match self.snapshot.additions {
            Some(additions) => Ok(!additions),
            None => Err(Stop::needs(Need::Additions)),
        }
    }

    fn not_found(
        &mut self,
        name: &Name,
        meant: Option<&Reading>,
        pointed: &str,
    ) -> ResolveStep<LookupError> {
        let because = match meant {
            None if name.is_absolute() && pointed.is_empty() => {
                "names with a trailing dot are not searched for: write it without the dot, or in full"
                    .to_owned()
            }
            None => "it has the form of no service, endpoint or pod".to_owned(),
            Some(meant) => {
                let namespace = meant.namespace();
                // A forbidden namespace is not a reason to fail here.
                match readable(self.has_namespace(namespace))? {
                    Some(false) => format!("there is no namespace {namespace}"),
                    _ => format!(
                        "there is no {meant}; try kubectl get services,pods -n {namespace}"
                    ),
                }
            }
        };
        Ok(LookupError::NameNotFound {
            name: format!("{name}{pointed}"),
            because,
        })
    }

    /// The active namespace counts as existing: users with rights in it alone may not read it.
    fn has_namespace(&mut self, name: &str) -> ResolveStep<bool> {
        if name == self.snapshot.settings.namespace {
            return Ok(true);
        }
        let exists = self.is_namespace(name);
        match &exists {
            Ok(true) => self.notes.step(format!("there is a namespace {name}")),
            Ok(false) => self.notes.step(format!("there is no namespace {name}")),
            Err(Stop::Failed(failure)) => self.notes.step(failure.to_string()),
            Err(_) => {}
        }
        exists
    }
}

/// The facts that the readings are likely to need; for a host outside, no endpoints.
fn soon(readings: &[Reading], is_clusters: bool) -> Vec<Need> {
    let mut soon = Vec::new();
    for reading in readings {
        let (namespace, name, endpoints) = match reading {
            Reading::Service { namespace, name } => (namespace, name, is_clusters),
            Reading::Endpoint {
                namespace, service, ..
            } => (namespace, service, false),
            Reading::PodAddress { .. } | Reading::Pod { .. } => continue,
        };
        soon.push(Need::Services(Select::named(namespace, name)));
        if endpoints {
            soon.push(Need::Slices(Select::of_service(namespace, name)));
        }
    }
    soon
}
