//! The addresses of Pods that no selector finds: those that are not a Pod's first.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::{Name, Seen, View};
use crate::fetch::{Failure, Select, first_page, is_forbidden, list};
use crate::index::{on_node_network, pod_addresses};

/// How long the list of all Pods is believed, which only second addresses need; and how long it is believed
/// that there are none, after Pods showed none that would have one.
const SECOND_ADDRESSES: Duration = Duration::from_secs(30);
const ONE_FAMILY: Duration = Duration::from_secs(600);

/// How many Pods are looked at for that: more, where the first say nothing.
const SAMPLES: [u32; 2] = [20, 500];

/// For how many namespaces it is remembered which second addresses there are.
const SEARCHED: usize = 64;

/// By the namespace that was searched; `None` for as much as may be seen.
pub(super) type Seconds = HashMap<Option<String>, Second>;

/// The Pods by those of their addresses that no selector knows.
pub(super) struct Second {
    pods: HashMap<IpAddr, Name>,
    hidden: Option<Failure>,
    until: Instant,
}

impl View {
    /// The Pod with an address that is not its first, which no selector finds: from a list of all Pods.
    pub(super) async fn pod_with_second_address(
        &self,
        ip: IpAddr,
        within: Option<&str>,
    ) -> Result<Seen<Option<Name>>, Failure> {
        let seconds = match ip {
            IpAddr::V4(_) => &self.second_v4,
            IpAddr::V6(_) => &self.second_v6,
        };
        let mut seconds = seconds.lock().await;
        let now = Instant::now();
        let within = within.map(str::to_owned);
        if seconds.get(&within).is_none_or(|s| s.until <= now) {
            tracing::debug!("looking for pods with a second address");
            let found = self.second_addresses(ip.is_ipv4(), within.as_deref());
            let found = found.await?;
            seconds.retain(|_, second| now < second.until);
            if seconds.len() >= SEARCHED {
                seconds.clear();
            }
            seconds.insert(within.clone(), found);
        }
        let second = seconds.get(&within);
        Ok(Seen {
            found: second.and_then(|s| s.pods.get(&ip).cloned()),
            hidden: second.and_then(|s| s.hidden.clone()),
        })
    }

    async fn second_addresses(&self, v4: bool, within: Option<&str>) -> Result<Second, Failure> {
        let mut pods = HashMap::new();
        let mut telling = false;
        let add = |pods: &mut HashMap<_, _>, pod: &Pod| {
            let first = pod.status.as_ref().and_then(|s| s.pod_ip.clone());
            if let (Some(namespace), Some(name)) = (&pod.metadata.namespace, &pod.metadata.name) {
                let others = pod_addresses(pod)
                    .filter(|a| a.is_ipv4() == v4 && Some(a.to_string()) != first)
                    .map(|a| (a, (namespace.clone(), name.clone())));
                pods.extend(others);
            }
        };
        let mut hidden = None;
        let server = self.server();
        for namespace in self.places(within) {
            let select = Select::All { namespace };
            let searched = async {
                for size in SAMPLES {
                    let sample = first_page(server, &select, size, |pod| {
                        add(&mut pods, &pod);
                        // A node has the addresses that it has, and some Pods none yet.
                        telling |= !on_node_network(&pod) && pod_addresses(&pod).next().is_some();
                    });
                    sample.await?;
                    if telling || !pods.is_empty() {
                        break;
                    }
                }
                if !pods.is_empty() {
                    list(server, &select, |pod| add(&mut pods, &pod)).await?;
                }
                Ok::<_, Failure>(())
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
        let until = Instant::now() + believed;
        Ok(Second {
            pods,
            hidden,
            until,
        })
    }
}
