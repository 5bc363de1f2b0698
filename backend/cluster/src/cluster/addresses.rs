//! Addresses: of Services, of Pods, of neither.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Service};

use super::Shared;
use crate::fetch::Failure;
use crate::objects::{Asked, Bare, Found, answers_at, on_node_network, pods_at};
use crate::select::Objects;
use crate::store::Seen;
use crate::store::Validity;
use crate::{Answer, Candidates, Endpoint, LookupError, Outside, Readiness, Stray};

/// How many addresses without an owner are looked up for one Service.
const BARE: usize = 16;

impl Shared {
    pub(super) async fn by_address(
        &self,
        ip: IpAddr,
        port: Asked,
        trust: &mut Validity,
    ) -> Result<Answer, LookupError> {
        let outside = || {
            Answer::Outside(Outside {
                host: ip.into(),
                learned_from: None,
            })
        };
        if is_local(ip) {
            tracing::debug!("{ip} is no address of a cluster");
            return Ok(outside());
        }
        if let Some(service) = self.view.known_service_at(ip, port, trust).await? {
            return self.serve_or_follow(&service, port, trust).await;
        }
        let known = self.view.known_pods_at(ip, trust).await;
        let of_node = |pods: &Objects<Pod>| pods.iter().all(|pod| on_node_network(pod));
        let (of_node, own) = match known {
            Some(pods) if of_node(&pods) => (Some(pods), None),
            own => (None, own),
        };
        if of_node.is_none()
            && let Some(answer) = self.by_own_address(ip, port, own, trust).await?
        {
            return Ok(answer);
        }
        // Several may share what is left: Services each other's, or a node's.
        let service = self.view.service_at(ip, port, trust).await?;
        let (answering, other) = match service.found {
            Some(found) if answers_at(&found, ip, port) => (Some(found), None),
            other => (None, other),
        };
        if let Some(service) = answering {
            return self.serve_or_follow(&service, port, trust).await;
        }
        let pods = match of_node {
            Some(known) => Seen {
                found: known.to_vec(),
                hidden: None,
            },
            None => self.view.pods_at(ip, None, trust).await?,
        };
        let found = pods_at(pods.found.iter().map(|p| &**p), ip, port);
        match (found, other) {
            (Ok(found), _) if !found.is_empty() => {
                // That no Service has the port is part of the answer, so it is kept like one.
                self.view.pin_all_services();
                return Ok(at(ip, port, found));
            }
            // It says which ports it has.
            (_, Some(service)) => return self.serve_or_follow(&service, port, trust).await,
            (found, None) => drop(found?),
        }
        // Either may be what is missing: we cannot know whose the address is.
        let hidden: Vec<_> = service.hidden.into_iter().chain(pods.hidden).collect();
        let passed_over = self.settings.unseen_is_outside && is_public(ip);
        if let Some(call) = hidden.last().filter(|_| !passed_over) {
            let namespace = &self.settings.namespace;
            let missing: Vec<_> = hidden.iter().map(ToString::to_string).collect();
            return Err(LookupError::Forbidden {
                sentence: format!(
                    "{ip} is no service or pod that may be seen from namespace {namespace}: it is another namespace's, or a host outside the cluster; {}",
                    missing.join("; ")
                ),
                call: call.clone(),
            });
        }
        tracing::debug!("{ip} is no service and no pod");
        Ok(outside())
    }

    /// By an address that can be one's alone: a ClusterIP, a Pod's own.
    async fn by_own_address(
        &self,
        ip: IpAddr,
        port: Asked,
        known: Option<Objects<Pod>>,
        trust: &mut Validity,
    ) -> Result<Option<Answer>, LookupError> {
        if let Some(pods) = known {
            let found = pods_at(pods.iter().map(|p| &**p), ip, port)?;
            if !found.is_empty() {
                return Ok(Some(at(ip, port, found)));
            }
        }
        if let Some(endpoint) = self.seen_at(ip, port, trust).await {
            return Ok(Some(at(ip, port, vec![endpoint])));
        }
        if let Some(service) = self.view.service_of_cluster_ip(ip, port, trust).await? {
            return Ok(Some(self.serve_or_follow(&service, port, trust).await?));
        }
        // Before all Services are looked at: a Pod's own address is none of theirs. A node's may be.
        let pods = self
            .view
            .pods_with_first_address(ip, None, trust)
            .await?
            .found;
        if pods.iter().any(|pod| !on_node_network(pod)) {
            let found = pods_at(pods.iter().map(|p| &**p), ip, port)?;
            if !found.is_empty() {
                return Ok(Some(at(ip, port, found)));
            }
        }
        Ok(None)
    }

    async fn serve_or_follow(
        &self,
        service: &Service,
        port: Asked,
        trust: &mut Validity,
    ) -> Result<Answer, LookupError> {
        let hit = self.serve(service, port, trust).await?;
        self.follow(hit, port, trust).await
    }

    /// A Pod known from a Service in use. One that does not serve on the port there is looked at first: it
    /// may have its address together with others, from the node.
    async fn seen_at(&self, ip: IpAddr, port: Asked, trust: &mut Validity) -> Option<Endpoint> {
        let (pod, serves) = self.view.seen_pod(ip, port.number())?;
        tracing::debug!("{ip} is of pod {pod}, known from a service in use");
        if serves {
            return Some(Endpoint {
                pod,
                port: port.number(),
                readiness: Readiness::Ready,
                addresses: vec![ip],
            });
        }
        let object = self.view.pod(&pod.namespace, &pod.name, trust).await;
        let object = object.ok()?.filter(|object| !on_node_network(object))?;
        pods_at([&*object], ip, port).ok()?.pop()
    }

    /// Finds the Pods behind bare addresses: a Service without a selector is dialled where it points to one.
    pub(super) async fn candidates(
        &self,
        asked: String,
        found: Found,
        trust: &mut Validity,
    ) -> Result<Candidates, Failure> {
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
                false => self.owners(&bare, trust).await?,
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

    /// The Pods at a bare address, or why there are none to dial.
    async fn owners(
        &self,
        bare: &Bare,
        trust: &mut Validity,
    ) -> Result<Result<Vec<Endpoint>, String>, Failure> {
        let seen = self.view.pods_at(bare.ip, None, trust).await?;
        // That it is no Pod's is part of the answer, so it is kept like one.
        self.view.pin_address(bare.ip, None);
        let pods = seen.found.iter().map(|p| &**p);
        Ok(match pods_at(pods, bare.ip, Asked::port(bare.port)) {
            Err(ambiguous) => Err(ambiguous.to_string()),
            Ok(pods) if !pods.is_empty() => Ok(pods),
            Ok(_) => Err(match seen.hidden {
                Some(why) => format!("no pod that may be seen has this address ({why})"),
                None => "it is no pod's address, and only pods can be forwarded to".into(),
            }),
        })
    }
}

fn at(ip: IpAddr, port: Asked, found: Vec<Endpoint>) -> Answer {
    let asked = match &found[..] {
        [one] => format!("pod {} ({ip}){port}", one.pod),
        _ => format!("the pods at {ip}{port}"),
    };
    Answer::Pods(Candidates::new(asked, found))
}

/// Whether an address can be a host's on the internet, and is no Pod's or Service's as a rule.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            // RFC 6598, which clusters use too.
            let shared = a == 100 && (64..128).contains(&b);
            !ip.is_private() && !shared
        }
        IpAddr::V6(ip) => !ip.is_unique_local(),
    }
}

/// Addresses that mean this host, or nobody in particular.
fn is_local(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}
