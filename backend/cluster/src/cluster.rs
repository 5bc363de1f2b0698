//! One cluster and its queries.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};

use kube::Client;
use kubevpn_target::{Host, Name};
use tracing::instrument::WithSubscriber as _;

use crate::candidates::Query;
use crate::fetch::LimitedApi;
use crate::resolve::{Notes, Subject, domain, pointers, records, resolve};
use crate::select::Select;
use crate::settings::Settings;
use crate::snapshot::{Hints, Need, Snapshot, Stop};
use crate::store::{Stats, Store, WatchNews, WatchState};
use crate::subscribe::{Answer, Resolver, Subscription};
use crate::survey::SurveyedList;
use crate::{Domain, KnownRecords, LookupError, PodRef, RecordKind};

/// The objects of one cluster. Clones share the store; every watch ends with the last clone.
#[derive(Clone)]
pub struct Cluster {
    resolver: Arc<Resolver>,
    /// The last lists of a survey: Services, Services of other namespaces, ranges.
    surveyed: Arc<Mutex<[SurveyedList; 3]>>,
}

impl Cluster {
    /// Sends nothing to the API server before the first query. Queries need a tokio runtime.
    pub fn new(client: Client, settings: Settings) -> Self {
        let store = Store::new(client, &settings);
        Self {
            resolver: Arc::new(Resolver::new(store, settings)),
            surveyed: Arc::default(),
        }
    }

    /// Resolves a host and port. The answer contains endpoints that are not ready too:
    /// [`Candidates::usable`](crate::Candidates::usable) selects those to use.
    ///
    /// Each step is a log event at level `debug`.
    ///
    /// Errors: the name does not exist, its object cannot serve, or the API server did not answer.
    ///
    /// Cancellation: reads that were started finish and are kept for the next query.
    pub async fn subscribe(&self, query: Query) -> Result<Answer, LookupError> {
        self.resolver.subscribe(Subject::Target(query)).await
    }

    /// [`subscribe`](Self::subscribe) for a host and port as they are written.
    ///
    /// Errors and cancellation: as [`subscribe`](Self::subscribe).
    pub async fn lookup(
        &self,
        host: &Host,
        port: impl Into<Option<NonZeroU16>>,
    ) -> Result<Answer, LookupError> {
        self.subscribe(Query::new(host, port)).await
    }

    /// The Pods of the cluster's DNS, which answer a [`DnsQuestion`](crate::DnsQuestion).
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

    /// The domain and suffixes of the cluster; a guess while the configuration of its DNS cannot be read.
    ///
    /// Cancellation: the next caller asks again.
    pub async fn domain(&self) -> Arc<Domain> {
        let rule = |snapshot: &Snapshot<'_>, _: &mut Notes| domain(snapshot);
        let (found, _) = self.resolver.settle(None, rule).await;
        found.unwrap_or_else(|_| self.resolver.store.domain_guess())
    }

    /// The DNS records of a name, which is read as fully qualified. No endpoint is chosen and readiness is not awaited: a
    /// Service without a ready endpoint has the records that DNS has for it.
    ///
    /// Errors: the API server did not answer.
    ///
    /// Cancellation: reads that were started finish and are kept for the next query.
    pub async fn records(
        &self,
        name: &Name,
        wanted: RecordKind,
    ) -> Result<KnownRecords, LookupError> {
        let rule =
            |snapshot: &Snapshot<'_>, notes: &mut Notes| records(snapshot, name, wanted, notes);
        self.resolver.settle(None, rule).await.0
    }

    /// The names of an address.
    ///
    /// Errors and cancellation: as [`records`](Self::records).
    pub async fn pointers(&self, ip: IpAddr) -> Result<KnownRecords, LookupError> {
        let ip = ip.to_canonical();
        let topic = Subject::Target(Query::new(&Host::Ip(ip), None));
        let topic = self.resolver.topic(topic);
        let rule = |snapshot: &Snapshot<'_>, notes: &mut Notes| pointers(snapshot, ip, notes);
        self.resolver.settle(Some(&topic), rule).await.0
    }

    /// A Pod that probably serves the query, from the last [`look_around`](Self::look_around), without a call. The Pod may be
    /// gone, or may never have served the query: use it for work done ahead only.
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

    /// Reads which Pods serve the other Services in the namespace of a Service in use, for
    /// [`likely_pod`](Self::likely_pod): one call for one page every two hours, or five minutes after a failure, for at most 16
    /// namespaces. Does not wait. Must be called within a tokio runtime.
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

    pub(crate) fn surveyed(&self) -> &Mutex<[SurveyedList; 3]> {
        &self.surveyed
    }

    pub(crate) fn server(&self) -> &LimitedApi {
        self.resolver.store.server()
    }

    /// Reports changes of watches to `told` from now on; only the first call has an effect. `told` must be quick and must not
    /// block.
    pub fn tell(&self, told: impl Fn(WatchNews<'_>) + Send + Sync + 'static) {
        self.resolver.store.tell(Arc::new(told));
    }

    /// The selections in the store with their health, in no particular order.
    pub fn watches(&self) -> Vec<WatchState> {
        self.resolver.store.watches()
    }

    /// Counters of the store.
    pub fn stats(&self) -> Stats {
        self.resolver.store.stats()
    }
}

#[cfg(test)]
mod tests;
