//! Names: what they can mean, and what it means when nothing answers.

use kubevpn_target::{Host, Name};

use super::{Hit, Shared, is_api_server};
use crate::fetch::{Failure, is_forbidden};
use crate::name::{Reading, Unknown, in_full, questions, readings, spells_domain, unknown};
use crate::objects::{self, Asked, Found, Kind, PortOf, pod_endpoint, pods_at};
use crate::store::Validity;
use crate::{Answer, Candidates, Domain, LookupError, Outside, Question};

/// How many ExternalName Services are followed.
const ALIASES: usize = 8;

/// Nothing was found, as far as it may be seen.
#[derive(Default)]
struct Nothing {
    /// What was looked for, in order.
    looked_for: Vec<Reading>,
    /// The last thing we were not allowed to see: what comes last is meant most often.
    hidden: Option<Hidden>,
}

struct Hidden {
    what: String,
    why: Failure,
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

impl Shared {
    pub(super) async fn by_name(
        &self,
        name: &Name,
        port: Asked,
        trust: &mut Validity,
    ) -> Result<Answer, LookupError> {
        match self.read(name, port, trust).await? {
            Ok(hit) => self.follow(hit, port, trust).await,
            Err(nothing) => self.nothing(name, nothing, None, trust).await,
        }
    }

    /// Goes on while one ExternalName leads to the next.
    pub(super) async fn follow(
        &self,
        mut hit: Hit,
        port: Asked,
        trust: &mut Validity,
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
            tracing::debug!("service {service} is another name for {to}");
            hit = match self.read(&to, port, trust).await? {
                Ok(hit) => hit,
                Err(nothing) => return self.nothing(&to, nothing, Some(&service), trust).await,
            };
            passed.push(service);
        }
    }

    /// Tries what a name can mean, in order. A reading that we may not see is passed over: only when no
    /// other exists does it matter.
    async fn read(
        &self,
        name: &Name,
        port: Asked,
        trust: &mut Validity,
    ) -> Result<Result<Hit, Nothing>, LookupError> {
        let namespace = &self.settings.namespace;
        let mut domain = self.whose.guess();
        let mut meanings = readings(name, namespace, &domain);
        self.warm(&meanings, unknown(name, &domain) == Unknown::Cluster);
        if spells_domain(name) {
            domain = self.domain().await;
            meanings = readings(name, namespace, &domain);
        }
        let mut nothing = Nothing::default();
        for reading in meanings {
            match self.try_reading(&reading, port, trust).await {
                Ok(Some(hit)) => {
                    nothing.looked_for.iter().for_each(|r| self.pin(r));
                    return Ok(Ok(hit));
                }
                Ok(None) => tracing::debug!("{reading} does not exist"),
                Err(Stop::Answer(error)) => return Err(error),
                Err(Stop::Call(failure)) if is_forbidden(&failure) => {
                    tracing::debug!("{reading}: {failure}");
                    nothing.hidden = Some(Hidden {
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

    /// Asks for everything the readings need at once, as far as it is likely to be needed: a host outside
    /// has no endpoints. Once the first reading is known the rest follows from it, one by one.
    fn warm(&self, readings: &[Reading], is_clusters: bool) {
        let services = readings.iter().filter_map(|reading| match reading {
            Reading::Service { namespace, name } => Some((namespace, name, is_clusters)),
            Reading::Endpoint {
                namespace, service, ..
            } => Some((namespace, service, false)),
            Reading::PodAddress { .. } | Reading::Pod { .. } => None,
        });
        for (i, (namespace, name, endpoints)) in services.enumerate() {
            if i == 0 && self.view.is_known(namespace, name) {
                return;
            }
            self.view.warm(namespace, name, endpoints);
        }
    }

    /// What comes first and does not exist is part of the answer, so it is kept like one.
    fn pin(&self, reading: &Reading) {
        match reading {
            Reading::Service { namespace, name } => self.view.pin(namespace, name),
            Reading::Endpoint {
                namespace, service, ..
            } => self.view.pin(namespace, service),
            Reading::PodAddress { namespace, ip } => {
                self.view.pin_address(*ip, Some(namespace));
            }
            Reading::Pod { .. } => {}
        }
    }

    async fn try_reading(
        &self,
        reading: &Reading,
        port: Asked,
        trust: &mut Validity,
    ) -> Result<Option<Hit>, Stop> {
        let view = &self.view;
        match reading {
            Reading::Service { namespace, name } => {
                let service = match view.service(namespace, name, trust).await {
                    Ok(Some(service)) => service,
                    Ok(None) => return Ok(None),
                    // Which Service stands for the API server is known without being allowed to read it.
                    Err(e)
                        if is_forbidden(&e)
                            && is_api_server(namespace, name)
                            && port.may_be(443) =>
                    {
                        return Ok(Some(Hit::Answer(Answer::ApiServer)));
                    }
                    Err(e) => return Err(e.into()),
                };
                Ok(Some(self.serve(&service, port, trust).await?))
            }
            Reading::Endpoint {
                namespace,
                service,
                hostname,
            } => {
                let Some(object) = view.service(namespace, service, trust).await? else {
                    return Ok(None);
                };
                if let Kind::External(_) = objects::kind(&object) {
                    return Ok(None);
                }
                let slices = view.slices(namespace, service, trust).await?;
                let found = objects::endpoints(
                    slices.iter().map(|s| &**s),
                    PortOf::Number(port.number()),
                    Some(hostname),
                );
                if found == Found::default() {
                    return Ok(None);
                }
                let asked = format!("{reading}{port}");
                let mut candidates = self.candidates(asked, found, trust).await?;
                candidates.service = Some(format!("{namespace}/{service}"));
                candidates.publishes_unready = objects::publishes_unready(&object);
                Ok(Some(Hit::pods(candidates)))
            }
            Reading::PodAddress { namespace, ip } => {
                let seen = view.pods_at(*ip, Some(namespace), trust).await?;
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
                let Some(pod) = view.pod(namespace, name, trust).await? else {
                    return Ok(None);
                };
                let asked = format!("{reading}{port}");
                let endpoint = pod_endpoint(&pod, port.number());
                let ended = endpoint.is_none();
                let mut candidates = Candidates::new(asked, endpoint.into_iter().collect());
                candidates.because = ended.then(|| "the pod has run to its end".into());
                Ok(Some(Hit::pods(candidates)))
            }
        }
    }

    /// The rule for what nothing answers.
    async fn nothing(
        &self,
        name: &Name,
        nothing: Nothing,
        alias: Option<&String>,
        trust: &mut Validity,
    ) -> Result<Answer, LookupError> {
        let pointed = match alias {
            Some(service) => format!(" (where service {service} points)"),
            None => String::new(),
        };
        let domain = self.domain().await;
        let meant = match domain.contains(name) {
            true => readings(&in_full(name), &self.settings.namespace, &domain),
            false => nothing.looked_for,
        };
        match unknown(name, &domain) {
            Unknown::Cluster => {
                let only_dns = domain.contains(name) && meant.is_empty();
                if let (false, Some(Hidden { what, why })) = (only_dns, nothing.hidden) {
                    // The DNS would answer with an address that we may look up no more than the name.
                    return Err(LookupError::Forbidden {
                        sentence: format!("cannot tell whether {what}{pointed} exists: {why}"),
                        call: why,
                    });
                }
                let otherwise = self.not_found(name, meant.last(), &pointed, trust).await;
                self.question(name, &domain, alias, otherwise, only_dns)
            }
            Unknown::LastLabel(last) => {
                let settings = &self.settings;
                let passed_over = settings.unseen_is_outside && last != settings.namespace;
                if let Some(Hidden { what, why }) = nothing.hidden.filter(|_| !passed_over) {
                    return Err(LookupError::Forbidden {
                        sentence: format!(
                            "{name}{pointed} is {what}, or a host outside the cluster, and we may not look which: {why}"
                        ),
                        call: why,
                    });
                }
                // A name with more labels than any object has is not the cluster's for all we may see.
                let may_be = meant.iter().any(|r| r.namespace() == last);
                let exists = match self.has_namespace(last, trust).await {
                    Ok(exists) => exists,
                    Err(why) if is_forbidden(&why) && may_be && !passed_over => {
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
                    let otherwise = self.not_found(name, meant.last(), &pointed, trust).await;
                    return self.question(name, &domain, alias, otherwise, false);
                }
                tracing::debug!("{name} is a host outside the cluster");
                Ok(Answer::Outside(Outside {
                    host: Host::Name(name.clone()),
                    learned_from: alias.map(|service| format!("service {service}")),
                }))
            }
        }
    }

    /// What the cluster's DNS may still know.
    fn question(
        &self,
        name: &Name,
        domain: &Domain,
        alias: Option<&String>,
        otherwise: LookupError,
        only_dns: bool,
    ) -> Result<Answer, LookupError> {
        let names = questions(name, &self.settings.namespace, domain);
        if names.is_empty() {
            return Err(otherwise);
        }
        Ok(Answer::Dns(Question {
            names,
            learned_from: alias.map(|service| format!("service {service}")),
            otherwise,
            only_dns,
        }))
    }

    async fn not_found(
        &self,
        name: &Name,
        meant: Option<&Reading>,
        pointed: &str,
        trust: &mut Validity,
    ) -> LookupError {
        let because = match meant {
            None if name.is_absolute() && pointed.is_empty() => {
                "names with a trailing dot are not searched for: write it without the dot, or in full"
                    .to_owned()
            }
            None => "it has the form of no service, endpoint or pod".to_owned(),
            Some(meant) => {
                let namespace = meant.namespace();
                // What may not be seen is not worth another refusal here.
                match self.has_namespace(namespace, trust).await {
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
    async fn has_namespace(&self, name: &str, trust: &mut Validity) -> Result<bool, Failure> {
        if name == self.settings.namespace {
            return Ok(true);
        }
        let exists = self.view.has_namespace(name, trust).await;
        match &exists {
            Ok(true) => tracing::debug!("there is a namespace {name}"),
            Ok(false) => tracing::debug!("there is no namespace {name}"),
            Err(failure) => tracing::debug!("{failure}"),
        }
        exists
    }
}
