//! Pure lookups over Kubernetes objects: which ports, which endpoints, which Pod has an address.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, EndpointAddress, EndpointSubset, Endpoints};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointConditions};
use k8s_openapi::api::discovery::v1::{EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::name::undash;
use crate::{Endpoint, LookupError, PodRef, Readiness, Stray};

/// Limit on names listed in a sentence; the rest is counted.
const LISTED: usize = 12;

/// The requested port; `None` if only the host matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestedPort(pub(crate) Option<NonZeroU16>);

impl RequestedPort {
    pub(crate) const fn port(number: u16) -> Self {
        Self(NonZeroU16::new(number))
    }

    /// The port number, 0 for none.
    pub(crate) fn number(self) -> u16 {
        self.0.map_or(0, NonZeroU16::get)
    }

    pub(crate) fn may_be(self, number: u16) -> bool {
        self.0.is_none_or(|port| port.get() == number)
    }
}

/// The text after a name in a sentence: ` port 80`, or nothing.
impl fmt::Display for RequestedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |port| write!(f, " port {port}"))
    }
}

/// How connections to a Service find their endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServiceKind<'a> {
    /// Its ports map to the endpoints' ports.
    Mapped,
    /// DNS answers with the endpoints themselves: the requested port is the endpoint's.
    Headless,
    /// Another name.
    External(&'a str),
}

pub(crate) fn kind(service: &Service) -> ServiceKind<'_> {
    let Some(spec) = &service.spec else {
        return ServiceKind::Mapped;
    };
    match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
        (Some("ExternalName"), _) => {
            ServiceKind::External(spec.external_name.as_deref().unwrap_or(""))
        }
        (_, Some("None")) => ServiceKind::Headless,
        _ => ServiceKind::Mapped,
    }
}

/// Namespace and name.
pub(crate) fn object_name(meta: &ObjectMeta) -> (String, String) {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    (part(&meta.namespace), part(&meta.name))
}

/// `namespace/name`, for messages.
pub(crate) fn full_name(meta: &ObjectMeta) -> String {
    let (namespace, name) = object_name(meta);
    format!("{namespace}/{name}")
}

/// Every address a Service answers on: ClusterIPs, external IPs, the load balancer's.
pub(crate) fn service_addresses(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    let spec = service.spec.iter();
    let own = spec.flat_map(|spec| {
        let many = spec.cluster_ips.iter().flatten();
        let more = spec.external_ips.iter().flatten();
        many.chain(&spec.cluster_ip).chain(more)
    });
    let status = service.status.iter();
    let ingress = status
        .filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref())
        .flatten()
        .filter_map(|ingress| ingress.ip.as_ref());
    own.chain(ingress).filter_map(|text| address(text))
}

/// The addresses that DNS has for a Service: not the external ones.
pub(crate) fn cluster_ips(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    let spec = service.spec.iter();
    let all = spec.flat_map(|spec| {
        let many = spec.cluster_ips.iter().flatten();
        let one = spec
            .cluster_ip
            .iter()
            .filter(|_| spec.cluster_ips.is_none());
        many.chain(one)
    });
    all.filter_map(|text| text.parse().ok())
}

/// Whether the address is a ClusterIP of the Service. Other addresses may be shared with Services or nodes.
pub(crate) fn has_cluster_ip(service: &Service, ip: IpAddr) -> bool {
    cluster_ips(service).any(|own| own == ip)
}

/// Whether the Service receives traffic to this address and port. On a ClusterIP it receives all ports; on other
/// addresses kube-proxy takes the Service's own ports only.
pub(crate) fn answers_at(service: &Service, ip: IpAddr, port: RequestedPort) -> bool {
    has_cluster_ip(service, ip)
        || service_addresses(service).any(|a| a == ip) && service_port(service, port).is_ok()
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

fn is_tcp(protocol: &Option<String>) -> bool {
    protocol.as_deref().unwrap_or("TCP") == "TCP"
}

/// The Service's TCP port of that number, or the first.
pub(crate) fn service_port(
    service: &Service,
    port: RequestedPort,
) -> Result<&ServicePort, LookupError> {
    let ports = || service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let asked = |p: &&ServicePort| u16::try_from(p.port).is_ok_and(|p| port.may_be(p));
    ports()
        .find(|p| asked(p) && is_tcp(&p.protocol))
        .ok_or_else(|| LookupError::NoSuchPort {
            service: full_name(&service.metadata),
            port: port.0,
            ports: describe_ports(ports(), port.number()),
        })
}

/// Advice for a missing port: the TCP ports, why the requested one is none of them, and which port maps to it.
fn describe_ports<'a>(ports: impl Iterator<Item = &'a ServicePort>, asked: u16) -> String {
    let (tcp, other): (Vec<_>, Vec<_>) = ports.partition(|p| is_tcp(&p.protocol));
    let mut text = match tcp.len() {
        0 => "it has none".to_owned(),
        _ => format!("it has {}", list(tcp.iter().map(|p| titled(p)))),
    };
    if let Some(port) = other.iter().find(|p| p.port == i32::from(asked)) {
        let protocol = port.protocol.as_deref().unwrap_or_default();
        let _ = write!(
            text,
            "; {} is a {protocol} port, and port-forward carries TCP only",
            titled(port)
        );
    } else if tcp.is_empty() && !other.is_empty() {
        let protocol = other[0].protocol.as_deref().unwrap_or_default();
        let _ = write!(
            text,
            "; {} is {protocol}, and port-forward carries TCP only",
            list(other.iter().map(|p| titled(p)))
        );
    }
    let target = IntOrString::Int(asked.into());
    if let Some(port) = tcp.iter().find(|p| p.target_port.as_ref() == Some(&target)) {
        let _ = write!(text, "; {asked} is the pod's port behind {}", port.port);
    }
    text
}

/// `80 (http)`.
fn titled(port: &ServicePort) -> String {
    match port.name.as_deref() {
        None | Some("") => port.port.to_string(),
        Some(name) => format!("{} ({name})", port.port),
    }
}

/// `a, b and 3 more`, bounded.
pub(crate) fn list(items: impl ExactSizeIterator<Item = String>) -> String {
    let total = items.len();
    let mut text = String::new();
    for (i, item) in items.take(LISTED).enumerate() {
        let _ = write!(text, "{}{item}", if i == 0 { "" } else { ", " });
    }
    if total > LISTED {
        let _ = write!(text, " and {} more", total - LISTED);
    }
    text
}

/// Which port of an endpoint to dial.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PortOf<'a> {
    /// The TCP port of this name in the endpoint's own slice: it may differ from slice to slice.
    Named(&'a str),
    /// This port, whatever the slice says.
    Number(u16),
}

/// The endpoints in the slices of a Service.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceEndpoints {
    /// The Pods, each once, by namespace and name.
    pub(crate) pods: Vec<Endpoint>,
    /// Addresses without a `targetRef`; they may still be Pods.
    pub(crate) bare: Vec<Bare>,
    pub(crate) strays: Vec<Stray>,
    /// Endpoints in slices that do not have the port.
    pub(crate) portless: usize,
}

/// An address without a `targetRef`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bare {
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
    pub(crate) readiness: Readiness,
}

/// The endpoints in `slices`, all of one Service; with `hostname`, only those of that name.
pub(crate) fn endpoints<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    port: PortOf<'_>,
    hostname: Option<&str>,
) -> ServiceEndpoints {
    let mut found = ServiceEndpoints::default();
    let mut pods: BTreeMap<(String, String), Endpoint> = BTreeMap::new();
    for slice in slices {
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        let port = match port {
            PortOf::Number(number) => Some(number),
            PortOf::Named(name) => slice_port(slice, name),
        };
        let wanted = slice.endpoints.iter();
        for endpoint in wanted.filter(|e| hostname.is_none_or(|h| is_named(e, h))) {
            let Some(port) = port else {
                found.portless += 1;
                continue;
            };
            let readiness = readiness(endpoint.conditions.as_ref());
            match owner(endpoint.target_ref.as_ref(), namespace) {
                SliceTarget::Pod(pod) => {
                    let addresses = endpoint.addresses.iter().filter_map(|a| address(a));
                    let new = Endpoint {
                        pod,
                        port,
                        readiness,
                        addresses: addresses.collect(),
                    };
                    let key = (new.pod.namespace.clone(), new.pod.name.clone());
                    match pods.get_mut(&key) {
                        Some(known) => merge(known, new),
                        None => drop(pods.insert(key, new)),
                    }
                }
                SliceTarget::Nobody => {
                    for text in &endpoint.addresses {
                        match address(text) {
                            Some(ip) => found.bare.push(Bare {
                                ip,
                                port,
                                readiness,
                            }),
                            None => found.strays.push(Stray {
                                address: text.clone(),
                                port,
                                readiness,
                                reason: "it is a host name, and only pods can be forwarded to"
                                    .into(),
                            }),
                        }
                    }
                }
                SliceTarget::Other(what) => found.strays.push(Stray {
                    address: endpoint.addresses.first().cloned().unwrap_or_default(),
                    port,
                    readiness,
                    reason: format!("it is {what}, and only pods can be forwarded to"),
                }),
            }
        }
    }
    found.pods = pods.into_values().collect();
    found
}

/// Whether a Service's Pods are endpoints even if they are not ready or terminating.
pub(crate) fn publishes_unready(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|s| s.publish_not_ready_addresses)
        .unwrap_or(false)
}

/// How long a Service keeps a client at one Pod. kube-proxy implements it, so a headless Service does not have it.
pub(crate) fn affinity(service: &Service) -> Option<Duration> {
    /// The default of the API (`ClientIPConfig.timeoutSeconds`): three hours.
    const DEFAULT: i32 = 10800;
    let spec = service.spec.as_ref()?;
    let kept = spec.session_affinity.as_deref() == Some("ClientIP")
        && kind(service) == ServiceKind::Mapped;
    let config = spec.session_affinity_config.as_ref();
    let seconds = config.and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
    let seconds = u64::try_from(seconds.unwrap_or(DEFAULT)).ok()?;
    kept.then(|| Duration::from_secs(seconds))
}

/// Why a Service has no endpoint for its port.
pub(crate) fn why_none(service: &Service, found: &ServiceEndpoints) -> String {
    if found.portless > 0 {
        let n = found.portless;
        return format!(
            "{n} endpoints exist, and none has the port that the service's port leads to"
        );
    }
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    match selector.filter(|s| !s.is_empty()) {
        Some(selector) => {
            let terms: Vec<_> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let terms = list(terms.into_iter());
            format!("no running pod matches its selector {terms}")
        }
        None => "it has no selector, and nobody wrote endpoints for it".into(),
    }
}

/// Merges one Pod from several slices: one per address family, or two during a change.
fn merge(known: &mut Endpoint, new: Endpoint) {
    if new.readiness < known.readiness {
        known.readiness = new.readiness;
        known.port = new.port;
    }
    known.pod.uid = known.pod.uid.take().or(new.pod.uid);
    for ip in new.addresses {
        if !known.addresses.contains(&ip) {
            known.addresses.push(ip);
        }
    }
}

/// The Pods' port behind a port of the Service, if they differ.
pub(crate) fn behind<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    port: RequestedPort,
) -> Option<u16> {
    let name = service_port(service, RequestedPort(Some(port.0?))).ok()?;
    let name = name.name.as_deref().unwrap_or_default();
    let ports = slices.into_iter();
    let behind = ports.filter_map(|slice| slice_port(slice, name)).next()?;
    (behind != port.number()).then_some(behind)
}

fn slice_port(slice: &EndpointSlice, name: &str) -> Option<u16> {
    let mut ports = slice.ports.iter().flatten();
    let port = ports.find(|p| p.name.as_deref().unwrap_or("") == name && is_tcp(&p.protocol))?;
    u16::try_from(port.port?).ok().filter(|port| *port != 0)
}

/// Whether the cluster's DNS knows the endpoint by this label: its hostname, otherwise its dashed address.
fn is_named(endpoint: &SliceEndpoint, label: &str) -> bool {
    match endpoint.hostname.as_deref() {
        Some(hostname) if !hostname.is_empty() => hostname.eq_ignore_ascii_case(label),
        _ => undash(label).is_some_and(|ip| {
            let mut addresses = endpoint.addresses.iter();
            addresses.any(|a| address(a) == Some(ip))
        }),
    }
}

/// Absent conditions mean ready (EndpointSlice API, `EndpointConditions.ready`).
fn readiness(conditions: Option<&EndpointConditions>) -> Readiness {
    let Some(conditions) = conditions else {
        return Readiness::Ready;
    };
    if conditions.ready.unwrap_or(true) {
        return Readiness::Ready;
    }
    match (conditions.terminating, conditions.serving) {
        (Some(true), Some(true)) => Readiness::ServingTerminating,
        (Some(true), _) => Readiness::Terminating,
        _ => Readiness::NotReady,
    }
}

enum SliceTarget {
    Pod(PodRef),
    Nobody,
    Other(String),
}

/// A reference into another namespace is not followed: users who may write slices there must not use our rights
/// here. The address is looked up like one without a reference.
fn owner(reference: Option<&ObjectReference>, namespace: &str) -> SliceTarget {
    let Some(reference) = reference else {
        return SliceTarget::Nobody;
    };
    let name = reference.name.clone().unwrap_or_default();
    match reference.kind.as_deref() {
        Some("Pod") => match reference.namespace.as_deref() {
            Some(other) if other != namespace => SliceTarget::Nobody,
            _ if name.is_empty() => SliceTarget::Nobody,
            _ => SliceTarget::Pod(PodRef {
                namespace: namespace.into(),
                name,
                uid: reference.uid.clone(),
            }),
        },
        Some(kind) => SliceTarget::Other(format!("the {kind} {name}")),
        None => SliceTarget::Nobody,
    }
}

/// The Pod of a slice that has the address, and whether the slice has the port.
pub(crate) fn seen_pod(slice: &EndpointSlice, ip: IpAddr, port: u16) -> Option<(PodRef, bool)> {
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    let has = |e: &&SliceEndpoint| e.addresses.iter().any(|a| address(a) == Some(ip));
    let endpoint = slice.endpoints.iter().find(has)?;
    let SliceTarget::Pod(pod) = owner(endpoint.target_ref.as_ref(), namespace) else {
        return None;
    };
    let mut ports = slice.ports.iter().flatten();
    let declared = ports.any(|p| p.port == Some(port.into()) && is_tcp(&p.protocol));
    Some((pod, declared))
}

/// The v1 Endpoints object as slices, for users who may get it and may not list slices.
pub(crate) fn slices_of(endpoints: Endpoints) -> Vec<EndpointSlice> {
    let metadata = endpoints.metadata;
    let subsets = endpoints.subsets.into_iter().flatten();
    subsets.map(|subset| slice_of(&metadata, subset)).collect()
}

fn slice_of(metadata: &ObjectMeta, subset: EndpointSubset) -> EndpointSlice {
    let one = |address: EndpointAddress, ready| SliceEndpoint {
        addresses: vec![address.ip],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..Default::default()
        }),
        hostname: address.hostname,
        target_ref: address.target_ref,
        ..Default::default()
    };
    let ready = subset.addresses.into_iter().flatten();
    let unready = subset.not_ready_addresses.into_iter().flatten();
    EndpointSlice {
        metadata: metadata.clone(),
        endpoints: ready
            .map(|a| one(a, true))
            .chain(unready.map(|a| one(a, false)))
            .collect(),
        ports: subset.ports.map(|ports| {
            let ports = ports.into_iter().map(|port| EndpointPort {
                name: port.name,
                port: Some(port.port),
                protocol: port.protocol,
                ..Default::default()
            });
            ports.collect()
        }),
        ..Default::default()
    }
}

/// A Pod that was requested directly: the port is the Pod's, and its readiness is ignored, as it concerns Services only.
pub(crate) fn pod_endpoint(pod: &Pod, port: u16) -> Option<Endpoint> {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let readiness = match phase {
        // The address of a finished Pod may belong to another Pod by now.
        Some("Succeeded" | "Failed") => return None,
        Some("Running") => Readiness::Ready,
        _ => Readiness::NotReady,
    };
    Some(Endpoint {
        pod: PodRef {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone()?,
            uid: pod.metadata.uid.clone(),
        },
        port,
        readiness,
        addresses: pod_addresses(pod).collect(),
    })
}

/// A Pod that serves DNS; its port inside may differ from 53.
pub(crate) fn dns_endpoint(pod: &Pod) -> Option<Endpoint> {
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    let mut ports = containers.flat_map(|c| c.ports.iter().flatten());
    let named = ports.find(|p| p.name.as_deref() == Some("dns-tcp") && is_tcp(&p.protocol));
    let port = named.and_then(|p| u16::try_from(p.container_port).ok());
    pod_endpoint(pod, port.unwrap_or(53))
}

pub(crate) fn pod_addresses(pod: &Pod) -> impl Iterator<Item = IpAddr> + '_ {
    let status = pod.status.iter();
    let texts = status.flat_map(|status| {
        let many = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
        many.chain(&status.pod_ip)
    });
    texts.filter_map(|text| address(text))
}

/// The Pods that an address and a port can mean.
///
/// Pods on the node's network share the node's address and its ports: a Pod that declares the port is meant. If several
/// declare it, they lead to the same socket, so any of them serves.
pub(crate) fn pods_at<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    ip: IpAddr,
    port: RequestedPort,
) -> Result<Vec<Endpoint>, LookupError> {
    let here = |pod: &&Pod| pod_addresses(pod).any(|a| a == ip);
    let alive: Vec<_> = pods
        .into_iter()
        .filter(here)
        .filter_map(|pod| Some((pod, pod_endpoint(pod, port.number())?)))
        .collect();
    if alive.len() > 1 && alive.iter().all(|(pod, _)| on_node_network(pod)) {
        let Some(port) = port.0.map(NonZeroU16::get) else {
            return Ok(alive.into_iter().map(|(_, endpoint)| endpoint).collect());
        };
        let declaring: Vec<_> = alive
            .iter()
            .filter(|(pod, _)| declares(pod, port))
            .map(|(_, endpoint)| endpoint.clone())
            .collect();
        if declaring.is_empty() {
            return Err(LookupError::AmbiguousAddress {
                ip,
                port,
                pods: alive.into_iter().map(|(_, e)| e.pod).collect(),
            });
        }
        return Ok(declaring);
    }
    // Any other address belongs to one Pod; during a handover it belongs to the running one.
    let best = alive.iter().map(|(_, e)| e.readiness).min();
    let mut best = alive.iter().filter(|(_, e)| Some(e.readiness) == best);
    Ok(best.next().map(|(_, e)| e.clone()).into_iter().collect())
}

/// Why a Pod that exists is not ready, as far as its status says.
pub(crate) fn why_not_ready(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let condition = |kind: &str, value: &str| {
        let mut all = status.conditions.iter().flatten();
        all.find(|c| c.type_ == kind && c.status == value)
    };
    if let Some(unscheduled) = condition("PodScheduled", "False") {
        let why = unscheduled.message.as_deref().unwrap_or("no reason given");
        return Some(format!("it is not scheduled, {}", clip(why)));
    }
    let init = status.init_container_statuses.iter().flatten();
    let main = status.container_statuses.iter().flatten();
    // A container that completed is not a problem.
    let done = |c: &ContainerStatus| {
        let ended = c.state.as_ref().and_then(|s| s.terminated.as_ref());
        ended.is_some_and(|t| t.exit_code == 0)
    };
    let ailing = init.chain(main).find(|c| !c.ready && !done(c));
    let Some(container) = ailing else {
        let ready = condition("Ready", "False")?;
        let why = ready.message.as_deref().or(ready.reason.as_deref());
        return why.map(clip);
    };
    let name = &container.name;
    let state = container.state.as_ref();
    if let Some(waiting) = state.and_then(|s| s.waiting.as_ref()) {
        let why = waiting.reason.as_deref().unwrap_or("no reason given");
        return Some(format!("container {name} waits, {}", clip(why)));
    }
    if let Some(ended) = state.and_then(|s| s.terminated.as_ref()) {
        let why = ended.reason.as_deref().unwrap_or("no reason given");
        return Some(format!("container {name} ended, {}", clip(why)));
    }
    Some(match container.started {
        Some(false) => format!("container {name} has not finished starting"),
        _ => format!("container {name} runs, and its readiness probe does not succeed"),
    })
}

/// One line of bounded length, for foreign text in our errors.
fn clip(text: &str) -> String {
    const MOST: usize = 200;
    let line: String = text.trim().chars().take(MOST).collect();
    let ended = if line.len() < text.trim().len() {
        "…"
    } else {
        ""
    };
    line.replace(char::is_control, " ") + ended
}

pub(crate) fn on_node_network(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.and_then(|s| s.host_network).unwrap_or(false)
}

fn declares(pod: &Pod, port: u16) -> bool {
    let spec = pod.spec.iter();
    // Init containers with a restart policy are sidecars: they keep running.
    spec.flat_map(|s| {
        s.containers
            .iter()
            .chain(s.init_containers.iter().flatten())
    })
    .flat_map(|c| c.ports.iter().flatten())
    .any(|p| p.container_port == i32::from(port) && is_tcp(&p.protocol))
}

#[cfg(test)]
mod tests;
