//! Names and addresses as a DNS server sees them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Service};
use kubevpn_target::Name;

use super::{Cluster, Shared};
use crate::fetch::{Failure, is_forbidden};
use crate::name::undash;
use crate::objects::{self, Asked, Kind, full_name, has_cluster_ip, pod_addresses, pod_endpoint};
use crate::records::{Form, Part, addresses, form, of_service, pointer};
use crate::store::Seen;
use crate::store::Validity;
use crate::{Domain, Known, LookupError, Record, RecordKind, Records};

impl Cluster {
    /// The records of a name, which is taken to be in full. Nothing is chosen and no readiness waited for: a Service
    /// without a ready endpoint has what DNS has for it.
    ///
    /// Errors: the API server did not answer.
    ///
    /// Cancellation: what was asked of the API server is still kept for the next lookup.
    pub async fn records(&self, name: &Name, wanted: RecordKind) -> Result<Known, LookupError> {
        let domain = self.domain().await;
        if !domain.contains(name) {
            return Ok(Known::Outside);
        }
        let Some(form) = form(name, &domain) else {
            return Ok(Known::Ask { otherwise: None });
        };
        // What an object may not have, the zone may: its SOA, and what an administrator wrote.
        if wanted == RecordKind::Other && form == Form::Branch {
            return Ok(Known::Ask { otherwise: None });
        }
        let found = self.shared.under_domain(form, wanted, &domain).await;
        let missing = || LookupError::NameNotFound {
            name: name.to_string(),
            because: "no service, endpoint, pod or namespace has it".into(),
        };
        settle(found, missing)
    }

    /// The names of an address.
    ///
    /// Errors and cancellation: as [`records`](Self::records).
    pub async fn pointers(&self, ip: IpAddr) -> Result<Known, LookupError> {
        let domain = self.domain().await;
        let found = self.shared.at_address(ip.to_canonical(), &domain).await;
        let missing = || LookupError::NameNotFound {
            name: ip.to_string(),
            because: "its pod has no name in DNS".into(),
        };
        settle(found, missing)
    }
}

/// What was found of a name.
enum Found {
    Records(Records),
    /// The name of something that leads out of what objects know.
    Alias(Name),
    Missing,
    Outside,
}

impl From<Option<Records>> for Found {
    fn from(records: Option<Records>) -> Self {
        records.map_or(Self::Missing, Self::Records)
    }
}

fn settle(
    found: Result<Found, Failure>,
    missing: impl FnOnce() -> LookupError,
) -> Result<Known, LookupError> {
    match found {
        Ok(Found::Records(records)) => Ok(Known::Records(records)),
        Ok(Found::Outside) => Ok(Known::Outside),
        Ok(Found::Alias(to)) => Ok(Known::ask(Ok(Records {
            answers: vec![Record::Alias(to)],
            additional: Vec::new(),
        }))),
        Ok(Found::Missing) => Ok(Known::ask(Err(missing()))),
        Err(why) if is_forbidden(&why) => Ok(Known::ask(Err(LookupError::Api(why)))),
        Err(why) => Err(why.into()),
    }
}

impl Shared {
    async fn under_domain(
        &self,
        form: Form<'_>,
        wanted: RecordKind,
        domain: &Domain,
    ) -> Result<Found, Failure> {
        let trust = &mut Validity::default();
        match form {
            Form::Branch => Ok(Found::Records(Records::default())),
            Form::Namespace(namespace) => {
                let exists = self.view.has_namespace(namespace, trust).await?;
                Ok(exists.then(Records::default).into())
            }
            Form::Service {
                namespace,
                name,
                part,
            } => {
                let Some(service) = self.view.service(namespace, name, trust).await? else {
                    return Ok(Found::Missing);
                };
                let kind = objects::kind(&service);
                if let Kind::External(to) = kind {
                    let to = Name::parse(&format!("{}.", to.trim_end_matches('.')));
                    return Ok(match (part, to) {
                        (Part::Whole, Ok(to)) => Found::Alias(to),
                        _ => Found::Missing,
                    });
                }
                let by_endpoints = kind == Kind::Headless || matches!(part, Part::Endpoint(_));
                let slices = match by_endpoints {
                    true => Some(self.view.slices(namespace, name, trust).await?),
                    false => None,
                };
                let slices = slices.iter().flat_map(|slices| slices.iter()).map(|s| &**s);
                Ok(of_service(&service, slices, part, wanted, domain).into())
            }
            Form::Pod { namespace, label } => {
                let seen = match undash(label) {
                    Some(ip) => self.view.pods_at(ip, Some(namespace), trust).await?,
                    None => Seen {
                        found: Vec::from_iter(self.view.pod(namespace, label, trust).await?),
                        hidden: None,
                    },
                };
                let pod = match (seen.found.into_iter().next(), seen.hidden) {
                    (None, Some(why)) => return Err(why),
                    (pod, _) => pod,
                };
                let pod = pod.filter(|pod| pod_endpoint(pod, 0).is_some());
                Ok(pod.map(|pod| of_pod(&pod, undash(label), wanted)).into())
            }
        }
    }

    async fn at_address(&self, ip: IpAddr, domain: &Domain) -> Result<Found, Failure> {
        let trust = &mut Validity::default();
        let port = Asked(None);
        let pointing = |text: String| {
            let name = Name::parse(&text).ok()?;
            Some(Records {
                answers: vec![Record::Pointer(name)],
                additional: Vec::new(),
            })
        };
        let named = |service: &Service| {
            let full_name = full_name(&service.metadata);
            let (namespace, name) = full_name.split_once('/').unwrap_or_default();
            pointing(format!("{name}.{namespace}.svc.{domain}")).into()
        };
        let mut service = self.view.known_service_at(ip, port, trust).await?;
        if service.is_none() {
            service = self.view.service_of_cluster_ip(ip, port, trust).await?;
        }
        if let Some(service) = service.filter(|s| has_cluster_ip(s, ip)) {
            return Ok(named(&service));
        }
        // Before all Services are looked at: a Pod's address is no ClusterIP.
        let mut pods = self.view.pods_with_first_address(ip, None, trust).await?;
        if pods.found.is_empty() {
            let service = self.view.service_at(ip, port, trust).await?;
            if let Some(service) = service.found.filter(|s| has_cluster_ip(s, ip)) {
                return Ok(named(&service));
            }
            pods = self.view.pods_at(ip, None, trust).await?;
            pods.hidden = pods.hidden.or(service.hidden);
        }
        let Some(pod) = pods.found.first() else {
            return match pods.hidden {
                Some(why) => Err(why),
                None => Ok(Found::Outside),
            };
        };
        // DNS knows a Pod by the headless Service it names as its subdomain.
        let subdomain = pod.spec.as_ref().and_then(|s| s.subdomain.clone());
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let Some(service) = subdomain.filter(|name| !name.is_empty()) else {
            return Ok(Found::Missing);
        };
        let slices = self.view.slices(&namespace, &service, trust).await?;
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
