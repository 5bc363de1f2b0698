//! Guesses which Pod serves a Service that was not requested before, so that a session to the Pod can be opened while the
//! Service is looked up.
//!
//! Once a Service of a namespace is in use, one page of the namespace's EndpointSlices is read. Its content is a guess: no
//! answer rests on it, and it is not kept up to date. A wrong guess costs an unused upgrade.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::time::Instant;

use crate::fetch::{LimitedApi, first_page};
use crate::objects::{PortOf, endpoints};
use crate::select::Select;
use crate::store::lock;
use crate::{PodRef, Readiness};

/// EndpointSlices per page, namespaces with a page, lifetime of a page, and pause after a page could not be read.
const SLICES: u32 = 64;
const NAMESPACES: usize = 16;
const KEPT: Duration = Duration::from_secs(2 * 60 * 60);
const RETRY: Duration = Duration::from_secs(5 * 60);

const OF_SERVICE: &str = "kubernetes.io/service-name";

/// The pages read, by namespace.
#[derive(Default)]
pub(crate) struct Neighbours {
    pages: Mutex<HashMap<String, SlicePage>>,
}

struct SlicePage {
    until: Instant,
    /// A Pod of each Service.
    pods: HashMap<String, PodRef>,
}

impl Neighbours {
    pub(crate) fn pod(&self, namespace: &str, service: &str) -> Option<PodRef> {
        let pages = lock(&self.pages);
        pages.get(namespace)?.pods.get(service).cloned()
    }

    /// Whether the caller has to read the namespace's page; true for one caller at a time.
    pub(crate) fn is_due(&self, namespace: &str) -> bool {
        let now = Instant::now();
        let mut pages = lock(&self.pages);
        if pages.get(namespace).is_some_and(|page| now < page.until) {
            return false;
        }
        pages.retain(|_, page| now < page.until);
        if pages.len() >= NAMESPACES {
            return false;
        }
        let page = SlicePage {
            until: now + KEPT,
            pods: HashMap::new(),
        };
        pages.insert(namespace.to_owned(), page);
        true
    }

    /// Reads the page with one call. Without the right to list there is no guess.
    pub(crate) async fn read(&self, server: &LimitedApi, namespace: &str) {
        let select = Select::All {
            namespace: Some(namespace.to_owned()),
        };
        let mut pods = HashMap::new();
        let keep = |slice: EndpointSlice| {
            let ready = |slice| {
                let found = endpoints([slice], PortOf::Number(0), None).pods;
                let ready = |e: &crate::Endpoint| e.readiness == Readiness::Ready;
                found.into_iter().find(ready)
            };
            let labels = slice.metadata.labels.as_ref();
            if let Some(service) = labels.and_then(|labels| labels.get(OF_SERVICE))
                && let Some(endpoint) = ready(&slice)
            {
                pods.entry(service.clone()).or_insert(endpoint.pod);
            }
        };
        let read = first_page(server, &select, SLICES, keep).await;
        if let Err(failure) = &read {
            tracing::debug!(namespace, error = %failure, "no pods to guess from");
        }
        if let Some(page) = lock(&self.pages).get_mut(namespace) {
            page.pods = pods;
            if read.is_err() {
                page.until = Instant::now() + RETRY;
            }
        }
    }
}
