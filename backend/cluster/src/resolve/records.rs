//! DNS records of names and addresses.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Service};
use kubevpn_target::Name;

use super::{Notes, PartialSearch, Walk, domain};
use crate::fetch::is_forbidden;
use crate::name::undash;
use crate::objects::{
    self, RequestedPort, ServiceKind, full_name, has_cluster_ip, pod_addresses, pod_endpoint,
};
use crate::records::{Form, ServicePart, addresses, form, of_service, pointer};
use crate::select::Select;
use crate::snapshot::{Need, ResolveStep, Snapshot, Stop};
use crate::{Domain, KnownRecords, LookupError, NameRecord, RecordKind, Records};

/// The records of a name, which is read as fully qualified.
pub(crate) fn records(
    snapshot: &Snapshot<'_>,
    name: &Name,
    wanted: RecordKind,
    notes: &mut Notes,
) -> ResolveStep<KnownRecords> {
    let mut walk = Walk { snapshot, notes };
    let domain = domain(snapshot).map_err(|stop| stop.with_soon(soon(name, &snapshot.guess)))?;
    if !domain.contains(name) {
        return Ok(KnownRecords::Outside);
    }
    let Some(form) = form(name, &domain) else {
        return Ok(KnownRecords::Ask { otherwise: None });
    };
    // The zone may have records that no object has: its SOA, and an administrator's.
    if wanted == RecordKind::Other && form == Form::Branch {
        return Ok(KnownRecords::Ask { otherwise: None });
    }
    let found = walk.under_domain(form, wanted, &domain);
    if let (Ok(FoundRecords::Missing), false) = (&found, matches!(form, Form::Pod { .. })) {
        match snapshot.additions {
            Some(true) => {}
            Some(false) => return Ok(KnownRecords::Missing),
            None => return Err(Stop::needs(Need::Additions)),
        }
    }
    let missing = || LookupError::NameNotFound {
        name: name.to_string(),
        because: "no service, endpoint, pod or namespace has it".into(),
    };
    settle(found, missing)
}

/// The objects that a name usually needs, if the guessed domain is right.
fn soon(name: &Name, guess: &Domain) -> Vec<Need> {
    match form(name, guess) {
        Some(Form::Service {
            namespace, name, ..
        }) => vec![Need::Services(Select::named(namespace, name))],
        _ => Vec::new(),
    }
}

/// The names of an address.
pub(crate) fn pointers(
    snapshot: &Snapshot<'_>,
    ip: IpAddr,
    notes: &mut Notes,
) -> ResolveStep<KnownRecords> {
    let mut walk = Walk { snapshot, notes };
    let domain = domain(snapshot)?;
    let found = walk.at_address(ip, &domain);
    let missing = || LookupError::NameNotFound {
        name: ip.to_string(),
        because: "its pod has no name in DNS".into(),
    };
    settle(found, missing)
}

/// What was found for a name.
enum FoundRecords {
    Records(Records),
    /// An alias to a name outside the objects.
    Alias(Name),
    Missing,
    Outside,
}

impl From<Option<Records>> for FoundRecords {
    fn from(records: Option<Records>) -> Self {
        records.map_or(Self::Missing, Self::Records)
    }
}

fn settle(
    found: ResolveStep<FoundRecords>,
    missing: impl FnOnce() -> LookupError,
) -> ResolveStep<KnownRecords> {
    match found {
        Ok(FoundRecords::Records(records)) => Ok(KnownRecords::Records(records)),
        Ok(FoundRecords::Outside) => Ok(KnownRecords::Outside),
        Ok(FoundRecords::Alias(to)) => Ok(KnownRecords::ask(Ok(Records {
            answers: vec![NameRecord::Alias(to)],
            additional: Vec::new(),
        }))),
        Ok(FoundRecords::Missing) => Ok(KnownRecords::ask(Err(missing()))),
        Err(Stop::Failed(why)) if is_forbidden(&why) => {
            Ok(KnownRecords::ask(Err(LookupError::Api(why))))
        }
        Err(stop) => Err(stop),
    }
}

impl Walk<'_> {
    fn under_domain(
        &mut self,
        form: Form<'_>,
        wanted: RecordKind,
        domain: &Domain,
    ) -> ResolveStep<FoundRecords> {
        match form {
            Form::Branch => Ok(FoundRecords::Records(Records::default())),
            Form::Namespace(namespace) => {
                let exists = self.is_namespace(namespace)?;
                Ok(exists.then(Records::default).into())
            }
            Form::Service {
                namespace,
                name,
                part,
            } => {
                let Some(service) = self.service(namespace, name)? else {
                    return Ok(FoundRecords::Missing);
                };
                let kind = objects::kind(service);
                if let ServiceKind::External(to) = kind {
                    let to = Name::parse(&format!("{}.", to.trim_end_matches('.')));
                    return Ok(match (part, to) {
                        (ServicePart::Whole, Ok(to)) => FoundRecords::Alias(to),
                        _ => FoundRecords::Missing,
                    });
                }
                let by_endpoints =
                    kind == ServiceKind::Headless || matches!(part, ServicePart::Endpoint(_));
                let slices = match by_endpoints {
                    true => Some(self.slices(namespace, name)?),
                    false => None,
                };
                let slices = slices.iter().flat_map(|slices| slices.iter()).map(|s| &**s);
                Ok(of_service(service, slices, part, wanted, domain).into())
            }
            Form::Pod { namespace, label } => {
                let seen = match undash(label) {
                    Some(ip) => self.pods_at(ip, Some(namespace))?,
                    None => PartialSearch {
                        found: Vec::from_iter(self.pod(namespace, label)?.cloned()),
                        hidden: None,
                    },
                };
                let pod = match (seen.found.into_iter().next(), seen.hidden) {
                    (None, Some(why)) => return Err(why.into()),
                    (pod, _) => pod,
                };
                let pod = pod.filter(|pod| pod_endpoint(pod, 0).is_some());
                Ok(pod.map(|pod| of_pod(&pod, undash(label), wanted)).into())
            }
        }
    }

    fn at_address(&mut self, ip: IpAddr, domain: &Domain) -> ResolveStep<FoundRecords> {
        let port = RequestedPort(None);
        let pointing = |text: String| {
            let name = Name::parse(&text).ok()?;
            Some(Records {
                answers: vec![NameRecord::Pointer(name)],
                additional: Vec::new(),
            })
        };
        let named = |service: &Service| {
            let full_name = full_name(&service.metadata);
            let (namespace, name) = full_name.split_once('/').unwrap_or_default();
            pointing(format!("{name}.{namespace}.svc.{domain}")).into()
        };
        let mut service = self.known_service_at(ip, port)?;
        if service.is_none() {
            service = self.service_of_cluster_ip(ip, port)?;
        }
        if let Some(service) = service.filter(|s| has_cluster_ip(s, ip)) {
            return Ok(named(service));
        }
        // Pods come before the list of all Services: a Pod's address is not a ClusterIP.
        let mut pods = self.pods_with_first_address(ip, None)?;
        if pods.found.is_empty() {
            let service = self.service_at(ip, port)?;
            if let Some(service) = service.found.filter(|s| has_cluster_ip(s, ip)) {
                return Ok(named(service));
            }
            pods = self.pods_at(ip, None)?;
            pods.hidden = pods.hidden.or(service.hidden);
        }
        let Some(pod) = pods.found.first() else {
            return match pods.hidden {
                Some(why) => Err(why.into()),
                None => Ok(FoundRecords::Outside),
            };
        };
        // DNS names a Pod under the headless Service in its `subdomain`.
        let subdomain = pod.spec.as_ref().and_then(|s| s.subdomain.clone());
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let Some(service) = subdomain.filter(|name| !name.is_empty()) else {
            return Ok(FoundRecords::Missing);
        };
        let slices = self.slices(&namespace, &service)?;
        let hostname = pointer(slices.iter().map(|s| &**s), ip);
        let full = hostname.map(|host| format!("{host}.{service}.{namespace}.svc.{domain}"));
        Ok(full.and_then(pointing).into())
    }
}

fn of_pod(pod: &Pod, asked: Option<IpAddr>, wanted: RecordKind) -> Records {
    let all = pod_addresses(pod).filter(|ip| asked.is_none_or(|asked| asked == *ip));
    match wanted {
        RecordKind::A => addresses(all.filter(IpAddr::is_ipv4)),
        RecordKind::Aaaa => addresses(all.filter(IpAddr::is_ipv6)),
        RecordKind::Srv | RecordKind::Other => Records::default(),
    }
}
