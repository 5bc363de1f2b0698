//! Second addresses of Pods, which no field selector finds.
//!
//! A sample of the Pods shows whether there are such addresses and in which networks; only an address in one of these costs
//! a list of all Pods. Loads run in tasks of their own, so that they survive a caller that gives up.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::time::Instant;

use super::load::cut_off;
use super::validity::lock;
use super::{Store, Validity};
use crate::fetch::{CallFailure, LimitedApi, first_page, is_forbidden, list};
use crate::objects::{on_node_network, pod_addresses};
use crate::select::Select;
use crate::settings::Settings;
use crate::snapshot::{Search, Second};

/// How long the list of all Pods is believed, which only second addresses need; and how long a sample without second
/// addresses is believed.
const SECOND_ADDRESSES: Duration = Duration::from_secs(30);
const ONE_FAMILY: Duration = Duration::from_secs(600);

/// Sizes of the sample: the larger one is used if the Pods of the smaller one have no addresses yet.
const SAMPLES: [u32; 2] = [20, 500];

/// Limit on remembered searches.
const SEARCHED: usize = 128;

/// Searches and their results with expiry; `None` while a search is running.
pub(super) type Searches = HashMap<Search, watch::Receiver<Option<Searched>>>;

type Searched = Result<(Arc<Second>, Instant), CallFailure>;

impl Store {
    /// Cancellation: the search continues for the next caller.
    pub(super) async fn search(
        &self,
        search: &Search,
        settings: &Settings,
        validity: &mut Validity,
    ) -> Result<Arc<Second>, CallFailure> {
        let found = self.searched(search, settings).await;
        validity.until(
            found
                .as_ref()
                .map_or_else(|_| Instant::now(), |(_, until)| *until),
        );
        found.map(|(second, _)| second)
    }

    async fn searched(&self, search: &Search, settings: &Settings) -> Searched {
        let mut done = {
            let mut searches = lock(&self.searches);
            let now = Instant::now();
            let current = |done: &watch::Receiver<Option<Searched>>| match &*done.borrow() {
                Some(Ok((_, until))) => now < *until,
                Some(Err(_)) => false,
                None => done.has_changed().is_ok(),
            };
            if !searches.get(search).is_some_and(current) {
                searches.retain(|_, done| current(done));
                if searches.len() >= SEARCHED {
                    searches.clear();
                }
                tracing::debug!("looking for pods with a second address");
                let (says, done) = watch::channel(None);
                searches.insert(search.clone(), done);
                let server = self.server().clone();
                let places = settings.places(search.within.as_deref());
                let (v4, all) = (search.v4, search.all);
                tokio::spawn(async move {
                    let found = second_addresses(&server, places, v4, all).await;
                    says.send_replace(Some(found));
                });
            }
            searches[search].clone()
        };
        let done = done.wait_for(Option::is_some).await;
        done.ok()
            .and_then(|done| done.clone())
            .unwrap_or_else(|| Err(cut_off()))
    }
}

async fn second_addresses(
    server: &LimitedApi,
    places: Vec<Option<String>>,
    v4: bool,
    all: bool,
) -> Searched {
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
        // Pods on the node's network, and Pods without an address yet, show nothing.
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
                return Ok::<_, CallFailure>(());
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
    let second = Second {
        networks: pods.keys().map(|ip| Second::network(*ip)).collect(),
        pods,
        hidden,
    };
    Ok((Arc::new(second), Instant::now() + believed))
}
