//! Resolution of addresses: of Services, of Pods, of neither.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};

use super::{PartialSearch, Walk};
use crate::candidates::Resolution;
use crate::fetch::is_forbidden;
use crate::objects::{
    Bare, RequestedPort, ServiceEndpoints, answers_at, has_cluster_ip, object_name,
    on_node_network, pod_addresses, pods_at, service_addresses,
};
use crate::select::{Objects, Select};
use crate::snapshot::{
    AddressOwner, Need, ObjectName, ResolveStep, Search, Second, Stop, fact, readable,
};
use crate::{Candidates, Endpoint, LookupError, OutsideHost, Readiness, Stray};

/// Limit on addresses without a `targetRef` that are looked up for one Service.
const BARE: usize = 16;

impl<'a> Walk<'a> {
    pub(super) fn by_address(
        &mut self,
        ip: IpAddr,
        port: RequestedPort,
    ) -> ResolveStep<Resolution<Candidates>> {
        let outside = || {
            Resolution::Outside(OutsideHost {
                host: ip.into(),
                learned_from: None,
            })
        };
        if is_local(ip) {
            self.notes.step(format!("{ip} is no address of a cluster"));
            return Ok(outside());
        }
        if let Some(service) = self.known_service_at(ip, port)? {
            return self.serve_or_follow(service, port);
        }
        let of_node = |pods: &Objects<Pod>| pods.iter().all(|pod| on_node_network(pod));
        let (of_node, own) = match self.known_pods_at(ip)? {
            Some(pods) if of_node(pods) => (Some(pods), None),
            own => (None, own),
        };
        if of_node.is_none()
            && let Some(answer) = self.by_own_address(ip, port, own)?
        {
            return Ok(answer);
        }
        // The remaining addresses may be shared by several Services, or by a Service and a node.
        let service = self.service_at(ip, port)?;
        let (answering, other) = match service.found {
            Some(found) if answers_at(found, ip, port) => (Some(found), None),
            other => (None, other),
        };
        if let Some(service) = answering {
            return self.serve_or_follow(service, port);
        }
        let pods = match of_node {
            Some(known) => PartialSearch {
                found: known.to_vec(),
                hidden: None,
            },
            None => self.pods_at(ip, None)?,
        };
        let second = |pod: &&Arc<Pod>| pod_addresses(pod).next() != Some(ip);
        if let Some(pod) = pods.found.first().filter(second) {
            self.notes.owner = Some(AddressOwner::Pod(object_name(&pod.metadata)));
        }
        let found = pods_at(pods.found.iter().map(|p| &**p), ip, port);
        match (found, other) {
            (Ok(found), _) if !found.is_empty() => {
                // The answer rests on no Service having the port, so the list stays watched.
                let all = |namespace| Need::Services(Select::All { namespace });
                let places = self.snapshot.settings.places(None);
                self.notes.pins.extend(places.into_iter().map(all));
                return Ok(at(ip, port, found));
            }
            // The Service's error lists its ports.
            (_, Some(service)) => return self.serve_or_follow(service, port),
            (found, None) => drop(found?),
        }
        // Either right may be the missing one: the owner of the address is unknown.
        let hidden: Vec<_> = service.hidden.into_iter().chain(pods.hidden).collect();
        let passed_over = self.snapshot.settings.unseen_is_outside && is_public(ip);
        if let Some(call) = hidden.last().filter(|_| !passed_over) {
            let namespace = &self.snapshot.settings.namespace;
            let missing: Vec<_> = hidden.iter().map(ToString::to_string).collect();
            return Err(Stop::Error(LookupError::Forbidden {
                sentence: format!(
                    "{ip} is no service or pod that may be seen from namespace {namespace}: it is another namespace's, or a host outside the cluster; {}",
                    missing.join("; ")
                ),
                call: call.clone(),
            }));
        }
        self.notes.step(format!("{ip} is no service and no pod"));
        Ok(outside())
    }

    /// Resolves an address with a single owner: a ClusterIP, or a Pod's own.
    fn by_own_address(
        &mut self,
        ip: IpAddr,
        port: RequestedPort,
        known: Option<&Objects<Pod>>,
    ) -> ResolveStep<Option<Resolution<Candidates>>> {
        if let Some(pods) = known {
            let found = pods_at(pods.iter().map(|p| &**p), ip, port)?;
            if !found.is_empty() {
                return Ok(Some(at(ip, port, found)));
            }
        }
        if let Some(endpoint) = self.seen_at(ip, port)? {
            return Ok(Some(at(ip, port, vec![endpoint])));
        }
        if let Some(service) = self.service_of_cluster_ip(ip, port)? {
            return Ok(Some(self.serve_or_follow(service, port)?));
        }
        // Pods come before the list of all Services: a Service never has a Pod's own address, but may have a node's.
        let pods = self.pods_with_first_address(ip, None)?.found;
        if pods.iter().any(|pod| !on_node_network(pod)) {
            let found = pods_at(pods.iter().map(|p| &**p), ip, port)?;
            if !found.is_empty() {
                return Ok(Some(at(ip, port, found)));
            }
        }
        Ok(None)
    }

    fn serve_or_follow(
        &mut self,
        service: &Service,
        port: RequestedPort,
    ) -> ResolveStep<Resolution<Candidates>> {
        let hit = self.serve(service, port)?;
        self.follow(hit, port)
    }

    /// A Pod known from a Service in use. If the Service does not have the port, the Pod is read first, because it may
    /// share the node's address with others.
    fn seen_at(&mut self, ip: IpAddr, port: RequestedPort) -> ResolveStep<Option<Endpoint>> {
        let Some((pod, serves)) = self.snapshot.hints.seen.clone() else {
            return Ok(None);
        };
        self.notes
            .step(format!("{ip} is of pod {pod}, known from a service in use"));
        if serves {
            return Ok(Some(Endpoint {
                pod,
                port: port.number(),
                readiness: Readiness::Ready,
                addresses: vec![ip],
            }));
        }
        let object = readable(self.pod(&pod.namespace, &pod.name))?.flatten();
        let object = object.filter(|object| !on_node_network(object));
        Ok(object.and_then(|object| pods_at([&**object], ip, port).ok()?.pop()))
    }

    /// The Service that had an address and a port at the last lookup, if it still does.
    pub(super) fn known_service_at(
        &mut self,
        ip: IpAddr,
        port: RequestedPort,
    ) -> ResolveStep<Option<&'a Arc<Service>>> {
        match &self.snapshot.hints.owner {
            Some(AddressOwner::Service(name)) => self.answering(name, ip, port),
            _ => Ok(None),
        }
    }

    fn answering(
        &mut self,
        name: &ObjectName,
        ip: IpAddr,
        port: RequestedPort,
    ) -> ResolveStep<Option<&'a Arc<Service>>> {
        let found = self.service(&name.0, &name.1)?;
        let found = found.filter(|service| answers_at(service, ip, port));
        if found.is_some() {
            self.notes.owner = Some(AddressOwner::Service(name.clone()));
        }
        Ok(found)
    }

    /// The known Pods with an address.
    fn known_pods_at(&mut self, ip: IpAddr) -> ResolveStep<Option<&'a Objects<Pod>>> {
        let hints = &self.snapshot.hints;
        for select in &hints.pods {
            let pods = readable(self.pods(select.clone()))?;
            if let Some(pods) = pods.filter(|pods| !pods.is_empty()) {
                return Ok(Some(pods));
            }
        }
        let Some(AddressOwner::Pod(name)) = &hints.owner else {
            return Ok(None);
        };
        let pods = readable(self.pods(Select::named(&name.0, &name.1)))?;
        let pods = pods.filter(|pods| pods.iter().any(|p| pod_addresses(p).any(|a| a == ip)));
        if pods.is_some() {
            self.notes.owner = hints.owner.clone();
        }
        Ok(pods)
    }

    /// The Service that the IPAddress object of a ClusterIP names.
    pub(super) fn service_of_cluster_ip(
        &mut self,
        ip: IpAddr,
        port: RequestedPort,
    ) -> ResolveStep<Option<&'a Arc<Service>>> {
        let select = Select::named("", &ip.to_string());
        let found = match fact(&self.snapshot.addresses, select, Need::Addresses) {
            Ok(found) => found.first(),
            Err(Stop::Failed(failure)) if is_forbidden(&failure) => {
                self.notes.step(failure.to_string());
                None
            }
            Err(stop) => return Err(stop),
        };
        let parent = found.and_then(|object| Some(&object.spec.as_ref()?.parent_ref));
        let parent = parent.filter(|parent| parent.resource == "services");
        let name = parent.and_then(|p| Some((p.namespace.clone()?, p.name.clone())));
        let Some(name) = name else {
            return Ok(None);
        };
        self.notes
            .step(format!("{ip} is of service {}/{}", name.0, name.1));
        self.answering(&name, ip, port)
    }

    /// The Pods with an address, in one namespace or anywhere.
    pub(super) fn pods_at(
        &mut self,
        ip: IpAddr,
        within: Option<&str>,
    ) -> ResolveStep<PartialSearch<Vec<Arc<Pod>>>> {
        let first = self.pods_with_first_address(ip, within)?;
        if !first.found.is_empty() {
            return Ok(first);
        }
        let second = self.pod_with_second_address(ip, within)?;
        let pod = match &second.found {
            Some((namespace, name)) => self.pod(namespace, name)?.cloned(),
            None => None,
        };
        Ok(PartialSearch {
            found: Vec::from_iter(pod),
            hidden: first.hidden.or(second.hidden),
        })
    }

    /// The Pods whose first address it is, which costs one question however many Pods there are.
    pub(super) fn pods_with_first_address(
        &mut self,
        ip: IpAddr,
        within: Option<&str>,
    ) -> ResolveStep<PartialSearch<Vec<Arc<Pod>>>> {
        let with = |namespace| Select::WithAddress { namespace, ip };
        let seen = self.where_seen(within, |walk, namespace| walk.pods(with(namespace)))?;
        Ok(PartialSearch {
            found: seen.found.map(|pods| pods.to_vec()).unwrap_or_default(),
            hidden: seen.hidden,
        })
    }

    /// The result from the first namespace that may be read.
    fn where_seen<T>(
        &mut self,
        within: Option<&str>,
        look: impl Fn(&Self, Option<String>) -> ResolveStep<T>,
    ) -> ResolveStep<PartialSearch<Option<T>>> {
        let mut hidden = None;
        for namespace in self.snapshot.settings.places(within) {
            match look(self, namespace) {
                Ok(found) => {
                    let found = Some(found);
                    return Ok(PartialSearch { found, hidden });
                }
                Err(Stop::Failed(failure)) if is_forbidden(&failure) => {
                    self.notes.step(failure.to_string());
                    hidden = Some(failure);
                }
                Err(stop) => return Err(stop),
            }
        }
        let found = None;
        Ok(PartialSearch { found, hidden })
    }

    /// The Pod with an address that is not its first, which no field selector finds. A sample of the Pods shows whether
    /// there are such addresses and in which networks; only an address in one of these costs a list of all Pods.
    fn pod_with_second_address(
        &self,
        ip: IpAddr,
        within: Option<&str>,
    ) -> ResolveStep<PartialSearch<Option<ObjectName>>> {
        let search = |all| {
            let search = Search {
                within: within.map(str::to_owned),
                v4: ip.is_ipv4(),
                all,
            };
            fact(&self.snapshot.second, search, Need::Second)
        };
        let mut second = search(false)?;
        if !second.pods.contains_key(&ip) && second.networks.contains(&Second::network(ip)) {
            second = search(true)?;
        }
        Ok(PartialSearch {
            found: second.pods.get(&ip).cloned(),
            hidden: second.hidden.clone(),
        })
    }

    /// The Service with an address and a port, otherwise one with the address, among all that may be read. The Services are
    /// listed, and watched from then on.
    pub(super) fn service_at(
        &mut self,
        ip: IpAddr,
        port: RequestedPort,
    ) -> ResolveStep<PartialSearch<Option<&'a Arc<Service>>>> {
        let snapshot = self.snapshot;
        let seen = self.where_seen(None, |_, namespace| {
            fact(
                &snapshot.services,
                Select::All { namespace },
                Need::Services,
            )
        })?;
        let services = seen.found.into_iter().flat_map(|services| services.iter());
        let having = services.filter(|s| service_addresses(s).any(|a| a == ip));
        let found = having.min_by_key(|s| (!has_cluster_ip(s, ip), !answers_at(s, ip, port)));
        if let Some(found) = found.filter(|s| answers_at(s, ip, port)) {
            self.notes.owner = Some(AddressOwner::Service(object_name(&found.metadata)));
        }
        Ok(PartialSearch {
            found,
            hidden: seen.hidden,
        })
    }

    /// Finds the Pods behind bare addresses: a Service without a selector can be dialled if it points to a Pod.
    pub(super) fn candidates(
        &mut self,
        asked: String,
        found: ServiceEndpoints,
    ) -> ResolveStep<Candidates> {
        let mut candidates = Candidates::new(asked, found.pods);
        candidates.strays = found.strays;
        let mut seen = BTreeSet::new();
        for bare in found.bare {
            if !seen.insert((bare.ip, bare.port)) {
                continue;
            }
            let owners = match seen.len() > BARE {
                true => Err(format!(
                    "it names no pod, and only the first {BARE} such addresses are looked up"
                )),
                false => self.owners(&bare)?,
            };
            match owners {
                Ok(mut owners) => {
                    owners.retain(|o| candidates.endpoints.iter().all(|e| e.pod != o.pod));
                    for owner in &mut owners {
                        owner.readiness = owner.readiness.max(bare.readiness);
                    }
                    candidates.endpoints.extend(owners);
                }
                Err(reason) => candidates.strays.push(Stray {
                    address: bare.ip.to_string(),
                    port: bare.port,
                    readiness: bare.readiness,
                    reason,
                }),
            }
        }
        Ok(candidates)
    }

    /// The Pods at a bare address, or why none can be dialled.
    fn owners(&mut self, bare: &Bare) -> ResolveStep<Result<Vec<Endpoint>, String>> {
        let seen = self.pods_at(bare.ip, None)?;
        // The answer rests on no Pod having the address, so the selection stays watched.
        self.pin_address(bare.ip, None);
        let pods = seen.found.iter().map(|p| &**p);
        Ok(
            match pods_at(pods, bare.ip, RequestedPort::port(bare.port)) {
                Err(ambiguous) => Err(ambiguous.to_string()),
                Ok(pods) if !pods.is_empty() => Ok(pods),
                Ok(_) => Err(match seen.hidden {
                    Some(why) => format!("no pod that may be seen has this address ({why})"),
                    None => "it is no pod's address, and only pods can be forwarded to".into(),
                }),
            },
        )
    }

    /// Keeps watching for a Pod with an address that no Pod has.
    pub(super) fn pin_address(&mut self, ip: IpAddr, within: Option<&str>) {
        let with = |namespace| Need::Pods(Select::WithAddress { namespace, ip });
        let places = self.snapshot.settings.places(within);
        self.notes.pins.extend(places.into_iter().map(with));
    }
}

fn at(ip: IpAddr, port: RequestedPort, found: Vec<Endpoint>) -> Resolution<Candidates> {
    let asked = match &found[..] {
        [one] => format!("pod {} ({ip}){port}", one.pod),
        _ => format!("the pods at {ip}{port}"),
    };
    Resolution::Pods(Candidates::new(asked, found))
}

/// Whether an address can belong to a host on the internet and normally not to a Pod or Service.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            // RFC 6598 addresses, which clusters use too.
            let shared = a == 100 && (64..128).contains(&b);
            !ip.is_private() && !shared
        }
        IpAddr::V6(ip) => !ip.is_unique_local(),
    }
}

/// Whether an address means this host or is unspecified, multicast or the like.
fn is_local(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}
