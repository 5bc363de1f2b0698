//! One cluster, and the questions about it.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};

use kube::Client;
use kubevpn_target::{Host, Name};
use tracing::instrument::WithSubscriber as _;

use crate::candidates::Query;
use crate::fetch::Server;
use crate::resolve::{Notes, Subject, domain, pointers, records, resolve};
use crate::select::Select;
use crate::settings::Settings;
use crate::snapshot::{Hints, Need, Snapshot, Stop};
use crate::store::{Stats, Store, WatchNews, WatchState};
use crate::subscribe::{Answer, Resolver, Subscription};
use crate::survey::Listed;
use crate::{Domain, Known, LookupError, PodRef, RecordKind};

/// What exists in one cluster. Clones share what they know; with the last one every watch ends.
#[derive(Clone)]
pub struct Cluster {
    resolver: Arc<Resolver>,
    /// The Services, those of other namespaces, and the ranges that were last listed for a survey.
    surveyed: Arc<Mutex<[Listed; 3]>>,
}

impl Cluster {
    /// Nothing is asked of the API server before the first query. Queries need a tokio runtime.
    pub fn new(client: Client, settings: Settings) -> Self {
        let store = Store::new(client, &settings);
        Self {
            resolver: Arc::new(Resolver::new(store, settings)),
            surveyed: Arc::default(),
        }
    }

    /// Finds what a host and port mean. Endpoints are told whether they are ready or not:
    /// [`Candidates::usable`](crate::Candidates::usable) has the rule.
    ///
    /// Each step is an event at level `debug`.
    ///
    /// Errors: the name leads nowhere, its object cannot serve, or the API server does not say.
    ///
    /// Cancellation: what was asked of the API server is still kept for the next query.
    pub async fn subscribe(&self, query: Query) -> Result<Answer, LookupError> {
        self.resolver.subscribe(Subject::Target(query)).await
    }

    /// [`subscribe`](Self::subscribe) to a host and port as they are written.
    ///
    /// Errors and cancellation: as there.
    pub async fn lookup(
        &self,
        host: &Host,
        port: impl Into<Option<NonZeroU16>>,
    ) -> Result<Answer, LookupError> {
        self.subscribe(Query::new(host, port)).await
    }

    /// The Pods of the cluster's DNS, by which a [`Question`](crate::Question) can be asked.
    ///
    /// Errors and cancellation: as [`subscribe`](Self::subscribe).
    pub async fn dns(&self) -> Result<Subscription, LookupError> {
        match self.resolver.subscribe(Subject::Dns).await? {
            Answer::Pods(pods) => Ok(pods),
            _ => Err(LookupError::NameNotFound {
                name: "as the cluster's DNS".into(),
                because: "its service is that of something else".into(),
            }),
        }
    }

    /// The names that belong to the cluster; a guess while the configuration of its DNS cannot be read.
    ///
    /// Cancellation: the next caller asks again.
    pub async fn domain(&self) -> Arc<Domain> {
        let rule = |snapshot: &Snapshot<'_>, _: &mut Notes| domain(snapshot);
        let (found, _) = self.resolver.settle(None, rule).await;
        found.unwrap_or_else(|_| self.resolver.store.domain_guess())
    }

    /// The records of a name, which is taken to be in full. Nothing is chosen and no readiness waited for: a Service
    /// without a ready endpoint has what DNS has for it.
    ///
    /// Errors: the API server did not answer.
    ///
    /// Cancellation: what was asked of the API server is still kept for the next query.
    pub async fn records(&self, name: &Name, wanted: RecordKind) -> Result<Known, LookupError> {
        let rule =
            |snapshot: &Snapshot<'_>, notes: &mut Notes| records(snapshot, name, wanted, notes);
        self.resolver.settle(None, rule).await.0
    }

    /// The names of an address.
    ///
    /// Errors and cancellation: as [`records`](Self::records).
    pub async fn pointers(&self, ip: IpAddr) -> Result<Known, LookupError> {
        let ip = ip.to_canonical();
        let topic = Subject::Target(Query::new(&Host::Ip(ip), None));
        let topic = self.resolver.topic(topic);
        let rule = |snapshot: &Snapshot<'_>, notes: &mut Notes| pointers(snapshot, ip, notes);
        self.resolver.settle(Some(&topic), rule).await.0
    }

    /// A Pod that probably serves the query, by what [`look_around`](Self::look_around) saw; asks nothing. It may be gone,
    /// or never have served it: nothing but what is done ahead may rest on it.
    pub fn likely_pod(&self, query: &Query) -> Option<PodRef> {
        let Resolver {
            store, settings, ..
        } = &*self.resolver;
        let snapshot = Snapshot::new(settings, store.domain_guess(), Hints::default());
        let subject = Subject::Target(query.clone());
        let Err(Stop::Needs(needs)) = resolve(&snapshot, &subject, &mut Notes::default()) else {
            return None;
        };
        let mut needs = std::iter::once(&needs.first).chain(&needs.soon);
        needs.find_map(|need| match need {
            Need::Services(Select::Named { namespace, name }) => {
                store.neighbours.pod(namespace, name)
            }
            _ => None,
        })
    }

    /// Sees which Pods serve the other Services of the namespace that a Service in use is in, for
    /// [`likely_pod`](Self::likely_pod): one call of one page, every two hours, or five minutes after it failed, for 16
    /// namespaces at most. Nothing is waited for. Must be called within a tokio runtime.
    pub fn look_around(&self, pods: &Subscription) {
        let Some(endpoint) = pods.endpoints.first().filter(|_| pods.service.is_some()) else {
            return;
        };
        let namespace = &endpoint.pod.namespace;
        let store = &self.resolver.store;
        if store.neighbours.is_due(namespace) {
            let (store, namespace) = (store.clone(), namespace.clone());
            let looking = async move { store.neighbours.read(store.server(), &namespace).await };
            tokio::spawn(looking.with_current_subscriber());
        }
    }

    /// The namespace in which short names are looked up.
    pub fn namespace(&self) -> &str {
        &self.resolver.settings.namespace
    }

    pub(crate) fn surveyed(&self) -> &Mutex<[Listed; 3]> {
        &self.surveyed
    }

    pub(crate) fn server(&self) -> &Server {
        self.resolver.store.server()
    }

    /// Tells what becomes of watches from now on; the first to be told stays the only one. It must be quick, and not wait.
    pub fn tell(&self, told: impl Fn(WatchNews<'_>) + Send + Sync + 'static) {
        self.resolver.store.tell(Arc::new(told));
    }

    /// The selections of objects that are kept, each with its health, in no order.
    pub fn watches(&self) -> Vec<WatchState> {
        self.resolver.store.watches()
    }

    /// How much is kept now.
    pub fn stats(&self) -> Stats {
        self.resolver.store.stats()
    }
}

#[cfg(test)]
mod tests;
