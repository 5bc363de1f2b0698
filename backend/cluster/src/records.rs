//! DNS records of the cluster's objects: pure, over objects that were found.
//!
//! Source: github.com/kubernetes/dns/blob/master/docs/specification.md, and CoreDNS's kubernetes plugin where that
//! leaves a choice (weights, which types exist for which name).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kubevpn_target::Name;

use crate::name::{before, is_object_label};
use crate::objects::{self, ServiceKind, cluster_ips};
use crate::{Domain, LookupError};

/// The requested record type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
    /// A port and its host (RFC 2782).
    Srv,
    /// Any other type: no object has one, but whether the name exists matters.
    Other,
}

/// One record of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameRecord {
    /// A or AAAA.
    Address(IpAddr),
    /// SRV, with priority 0.
    Service {
        /// Its share of the connections.
        weight: u16,
        /// The port.
        port: u16,
        /// The host.
        target: Name,
    },
    /// CNAME.
    Alias(Name),
    /// PTR.
    Pointer(Name),
}

/// The records of an existing name; no answers if it has none of the requested type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// The records asked for.
    pub answers: Vec<NameRecord>,
    /// The addresses of the names in the answers.
    pub additional: Vec<(Name, IpAddr)>,
}

/// Facts about a name that the objects determine.
#[derive(Clone, Debug)]
pub enum KnownRecords {
    /// It exists.
    Records(Records),
    /// The cluster's DNS may know more, and has to be asked.
    Ask {
        /// The answer if the DNS cannot be asked: `None` if nothing is known without it.
        otherwise: Option<Result<Records, LookupError>>,
    },
    /// No object has the name, and the cluster's DNS has no names of its own.
    Missing,
    /// The name does not belong to the cluster.
    Outside,
}

impl KnownRecords {
    pub(crate) fn ask(otherwise: Result<Records, LookupError>) -> Self {
        let otherwise = Some(otherwise);
        Self::Ask { otherwise }
    }
}

/// Kinds of names in the cluster's domain, by their form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form<'a> {
    /// The domain, or its `svc` or `pod`: they exist and have no address.
    Branch,
    /// Exists as the namespace does.
    Namespace(&'a str),
    Service {
        namespace: &'a str,
        name: &'a str,
        part: ServicePart<'a>,
    },
    Pod {
        namespace: &'a str,
        /// A dashed address, or the name of a Pod; no DNS server has the latter, it is an addition of ours.
        label: &'a str,
    },
}

/// Which part of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServicePart<'a> {
    Whole,
    Port {
        name: &'a str,
        protocol: &'a str,
    },
    /// An endpoint, by its hostname or dashed address.
    Endpoint(&'a str),
}

/// The form of a name under the cluster's own domain; `None` for names that only the cluster's DNS could know.
pub(crate) fn form<'a>(name: &'a Name, domain: &Domain) -> Option<Form<'a>> {
    let text = before(name.as_str(), domain.cluster().as_str())?;
    let labels: Vec<_> = text.split('.').collect();
    let found = match labels[..] {
        [""] | ["svc"] | ["pod"] => return Some(Form::Branch),
        [namespace, "svc" | "pod"] => Form::Namespace(namespace),
        [name, namespace, "svc"] => Form::Service {
            namespace,
            name,
            part: ServicePart::Whole,
        },
        [endpoint, name, namespace, "svc"] => Form::Service {
            namespace,
            name,
            part: ServicePart::Endpoint(endpoint),
        },
        [port, protocol, name, namespace, "svc"] => Form::Service {
            namespace,
            name,
            part: ServicePart::Port {
                name: port.strip_prefix('_')?,
                protocol: protocol.strip_prefix('_')?,
            },
        },
        [.., namespace, "pod"] => Form::Pod {
            namespace,
            label: text
                .strip_suffix(".pod")?
                .strip_suffix(namespace)?
                .strip_suffix('.')?,
        },
        _ => return None,
    };
    let named: &[&str] = match &found {
        Form::Branch => &[],
        Form::Namespace(namespace) | Form::Pod { namespace, .. } => &[*namespace],
        Form::Service {
            namespace, name, ..
        } => &[*namespace, *name],
    };
    named
        .iter()
        .all(|label| is_object_label(label))
        .then_some(found)
}

/// One address of a Service's name.
struct Member {
    ip: IpAddr,
    /// `None` where the endpoints declare none.
    port: Option<u16>,
    /// The endpoint's own label.
    label: Option<String>,
}

/// The records of a Service, or of a part of it, of type `wanted`; `None` if there is no such part, or no endpoint to
/// answer with. Not for an ExternalName.
pub(crate) fn of_service<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    part: ServicePart<'_>,
    wanted: RecordKind,
    domain: &Domain,
) -> Option<Records> {
    let members = match (objects::kind(service), part) {
        (ServiceKind::External(_), _) => return None,
        (ServiceKind::Mapped, ServicePart::Whole | ServicePart::Port { .. }) => {
            mapped(service, part)
        }
        _ => endpoints(slices, part),
    };
    if members.is_empty() {
        return None;
    }
    let meta = &service.metadata;
    let base = format!(
        "{}.{}.svc.{domain}",
        meta.name.as_deref()?,
        meta.namespace.as_deref()?
    );
    Some(match wanted {
        RecordKind::A => addresses(members.iter().map(|m| m.ip).filter(IpAddr::is_ipv4)),
        RecordKind::Aaaa => addresses(members.iter().map(|m| m.ip).filter(IpAddr::is_ipv6)),
        RecordKind::Srv => services(&members, &base),
        RecordKind::Other => Records::default(),
    })
}

/// The records of a name that has these addresses.
pub(crate) fn addresses(all: impl Iterator<Item = IpAddr>) -> Records {
    let mut answers = Vec::new();
    for ip in all {
        let record = NameRecord::Address(ip);
        if !answers.contains(&record) {
            answers.push(record);
        }
    }
    Records {
        answers,
        additional: Vec::new(),
    }
}

fn services(members: &[Member], base: &str) -> Records {
    let mut records = Records::default();
    // Equal weights, as in CoreDNS: each address of a port counts once.
    let weight = u16::try_from(100 / members.len()).unwrap_or(1).max(1);
    for member in members {
        let Some(port) = member.port else { continue };
        let target = match &member.label {
            Some(label) => Name::parse(&format!("{label}.{base}")),
            None => Name::parse(base),
        };
        let Ok(target) = target else { continue };
        let additional = (target.clone(), member.ip);
        if !records.additional.contains(&additional) {
            records.additional.push(additional);
        }
        let record = NameRecord::Service {
            weight,
            port,
            target,
        };
        if !records.answers.contains(&record) {
            records.answers.push(record);
        }
    }
    records
}

fn is_port(part: ServicePart<'_>, name: Option<&str>, protocol: Option<&str>) -> bool {
    match part {
        ServicePart::Port {
            name: wanted,
            protocol: over,
        } => {
            wanted.eq_ignore_ascii_case(name.unwrap_or_default())
                && over.eq_ignore_ascii_case(protocol.unwrap_or("TCP"))
        }
        ServicePart::Whole | ServicePart::Endpoint(_) => true,
    }
}

fn mapped(service: &Service, part: ServicePart<'_>) -> Vec<Member> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let ports = ports.filter(|p| is_port(part, p.name.as_deref(), p.protocol.as_deref()));
    let member = |port: i32, ip| Member {
        ip,
        port: u16::try_from(port).ok(),
        label: None,
    };
    ports
        .flat_map(|port| cluster_ips(service).map(move |ip| member(port.port, ip)))
        .collect()
}

fn endpoints<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    part: ServicePart<'_>,
) -> Vec<Member> {
    let mut found = Vec::new();
    for slice in slices {
        let declared = slice.ports.iter().flatten();
        let declared = declared.filter(|p| is_port(part, p.name.as_deref(), p.protocol.as_deref()));
        let mut ports: Vec<_> = declared
            .map(|p| p.port.and_then(|p| u16::try_from(p).ok()))
            .collect();
        if slice.ports.as_ref().is_none_or(Vec::is_empty)
            && !matches!(part, ServicePart::Port { .. })
        {
            ports.push(None);
        }
        for endpoint in slice.endpoints.iter().filter(|e| is_ready(e)) {
            for ip in endpoint.addresses.iter().filter_map(|a| a.parse().ok()) {
                let label = label_of(endpoint, ip);
                if let ServicePart::Endpoint(wanted) = part
                    && !wanted.eq_ignore_ascii_case(&label)
                {
                    continue;
                }
                found.extend(ports.iter().map(|port| Member {
                    ip,
                    port: *port,
                    label: Some(label.clone()),
                }));
            }
        }
    }
    found
}

fn is_ready(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.and_then(|c| c.ready).unwrap_or(true)
}

/// The label of an endpoint under its Service: its hostname, otherwise its dashed address.
fn label_of(endpoint: &Endpoint, ip: IpAddr) -> String {
    match endpoint.hostname.as_deref() {
        Some(hostname) if !hostname.is_empty() => hostname.into(),
        _ => ip.to_string().replace(['.', ':'], "-"),
    }
}

/// The name of an endpoint with a hostname, for its address.
pub(crate) fn pointer<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ip: IpAddr,
) -> Option<String> {
    let mut endpoints = slices.into_iter().flat_map(|slice| &slice.endpoints);
    let endpoint = endpoints.find(|e| {
        let mut addresses = e.addresses.iter();
        is_ready(e) && addresses.any(|a| a.parse() == Ok(ip))
    })?;
    endpoint.hostname.clone().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests;
