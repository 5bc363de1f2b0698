//! The addresses of Pods that no selector finds: those that are not a Pod's first.
//!
//! A sample of the Pods says whether there are such addresses, and in which networks; only an address in one of these
//! costs a list of all Pods. Loads run in tasks of their own: a caller that gives up does not take the work along.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::time::Instant;

use super::load::cut_off;
use super::validity::lock;
use super::{Name, Seen, View};
use crate::fetch::{Failure, Server, first_page, is_forbidden, list};
use crate::objects::{on_node_network, pod_addresses};
use crate::select::Select;

/// How long the list of all Pods is believed, which only second addresses need; and how long it is believed
/// that there are none, after Pods showed none that would have one.
const SECOND_ADDRESSES: Duration = Duration::from_secs(30);
const ONE_FAMILY: Duration = Duration::from_secs(600);

/// How many Pods are looked at for that: more, where the first say nothing.
const SAMPLES: [u32; 2] = [20, 500];

/// How many searches are remembered.
const SEARCHED: usize = 128;

/// Which Pods are looked at: in which namespace (`None` for as many as may be seen), which family, and whether all.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Search {
    within: Option<String>,
    v4: bool,
    all: bool,
}

/// Searches, and what they came to; `None` while they go on.
pub(super) type Searches = HashMap<Search, watch::Receiver<Option<Result<Arc<Second>, Failure>>>>;

/// The Pods by those of their addresses that no selector knows.
pub(super) struct Second {
    pods: HashMap<IpAddr, Name>,
    networks: HashSet<u32>,
    hidden: Option<Failure>,
    until: Instant,
}

impl View {
    /// The Pod with an address that is not its first, which no selector finds.
    ///
    /// Cancellation: the search goes on for the next caller.
    pub(super) async fn pod_with_second_address(
        &self,
        ip: IpAddr,
        within: Option<&str>,
    ) -> Result<Seen<Option<Name>>, Failure> {
        for all in [false, true] {
            let search = Search {
                within: within.map(str::to_owned),
                v4: ip.is_ipv4(),
                all,
            };
            let second = self.search(search).await?;
            let found = second.pods.get(&ip).cloned();
            if all || found.is_some() || !second.networks.contains(&network(ip)) {
                let hidden = second.hidden.clone();
                return Ok(Seen { found, hidden });
            }
        }
        unreachable!("the second search returns")
    }

    async fn search(&self, search: Search) -> Result<Arc<Second>, Failure> {
        let mut done = {
            let mut searches = lock(&self.searches);
            let now = Instant::now();
            let current = |done: &watch::Receiver<Option<Result<Arc<Second>, Failure>>>| {
                match &*done.borrow() {
                    Some(Ok(second)) => now < second.until,
                    Some(Err(_)) => false,
                    None => done.has_changed().is_ok(),
                }
            };
            if !searches.get(&search).is_some_and(current) {
                searches.retain(|_, done| current(done));
                if searches.len() >= SEARCHED {
                    searches.clear();
                }
                tracing::debug!("looking for pods with a second address");
                let (says, done) = watch::channel(None);
                searches.insert(search.clone(), done);
                let (server, places) =
                    (self.server().clone(), self.places(search.within.as_deref()));
                let (v4, all) = (search.v4, search.all);
                tokio::spawn(async move {
                    let found = second_addresses(&server, places, v4, all).await;
                    says.send_replace(Some(found.map(Arc::new)));
                });
            }
            searches[&search].clone()
        };
        let done = done.wait_for(Option::is_some).await;
        done.ok()
            .and_then(|done| done.clone())
            .unwrap_or_else(|| Err(cut_off()))
    }
}

/// The first 8 bits of an IPv4 address, 32 of an IPv6 address: no cluster gives its Pods addresses of more than a few.
fn network(ip: IpAddr) -> u32 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip) >> 24,
        IpAddr::V6(ip) => (ip.to_bits() >> 96) as u32,
    }
}

async fn second_addresses(
    server: &Server,
    places: Vec<Option<String>>,
    v4: bool,
    all: bool,
) -> Result<Second, Failure> {
    let mut pods = HashMap::new();
    let mut telling = false;
    let mut add = |pod: &Pod| {
        let first = pod.status.as_ref().and_then(|s| s.pod_ip.clone());
        if let (Some(namespace), Some(name)) = (&pod.metadata.namespace, &pod.metadata.name) {
            let others = pod_addresses(pod)
                .filter(|a| a.is_ipv4() == v4 && Some(a.to_string()) != first)
                .map(|a| (a, (namespace.clone(), name.clone())));
            pods.extend(others);
        }
        // A node has the addresses that it has, and some Pods none yet.
        telling |= !on_node_network(pod) && pod_addresses(pod).next().is_some();
        telling
    };
    let mut hidden = None;
    for namespace in places {
        let select = Select::All { namespace };
        let searched = async {
            if all {
                let keep = |pod| {
                    add(&pod);
                };
                list(server, &select, keep).await?;
                return Ok::<_, Failure>(());
            }
            for size in SAMPLES {
                let mut told = false;
                first_page(server, &select, size, |pod| told |= add(&pod)).await?;
                if told {
                    break;
                }
            }
            Ok(())
        };
        match searched.await {
            Ok(()) => break,
            Err(failure) if is_forbidden(&failure) => hidden = Some(failure),
            Err(failure) => return Err(failure),
        }
    }
    let believed = match telling && pods.is_empty() {
        true => ONE_FAMILY,
        false => SECOND_ADDRESSES,
    };
    Ok(Second {
        networks: pods.keys().map(|ip| network(*ip)).collect(),
        pods,
        hidden,
        until: Instant::now() + believed,
    })
}
