//! Resolves a target to the endpoints that could serve it.

use std::future::Future;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::poll;
use kubevpn_cluster::{Answer, Cluster, DnsQuestion, LookupError, Query, Subscription};
use kubevpn_portforward::PodSessionState;
use kubevpn_target::{BoxError, ConnectError, Frontend, Host, Refusal, Stream, Target, classify};
use tokio::time::Instant;
use tower::ServiceExt as _;
use tower_layer::Layer;
use tower_service::Service;
use tracing::instrument::WithSubscriber as _;

use crate::ahead::{Ahead, Ways};
use crate::dns::{self, RemoteDns, SearchNames};
use crate::egress::Elsewhere;
use crate::either::Either;
use crate::host::Outbound;

/// Limit on aliases that the cluster's DNS returns in a row.
const ALIASES: usize = 8;

/// Limit on addresses of a name that are looked up in the cluster.
const ADDRESSES: usize = 4;

/// Layer of [`Resolve`]; all its services use one [`Cluster`] and share the cached answers of its DNS.
#[derive(Clone)]
pub struct ResolveLayer<E> {
    cluster: Cluster,
    dns: RemoteDns,
    ways: Ways,
    elsewhere: E,
    told: Arc<OnceLock<LookupObserver>>,
}

/// Durations of a successful call.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// From the name or address to the Pods that may serve it.
    pub resolve: Duration,
    /// The whole call.
    pub total: Duration,
}

type LookupObserver = Arc<dyn Fn(Took) + Send + Sync>;

impl<E> ResolveLayer<E> {
    /// Resolves targets in `cluster`. Targets that no Pod serves go to `elsewhere`, normally an [`Egress`](crate::Egress).
    pub fn new(cluster: Cluster, elsewhere: E) -> Self {
        Self {
            cluster,
            dns: RemoteDns::default(),
            ways: Ways::default(),
            elsewhere,
            told: Arc::default(),
        }
    }

    /// Announces a likely connection to `ahead` while a target is looked up, and opens a session to a Pod of a Service that a
    /// DNS client asks for.
    #[must_use]
    pub fn ahead(mut self, ahead: impl Ahead) -> Self {
        self.ways = Ways::new(ahead);
        self
    }
}

impl<S, E: Clone> Layer<S> for ResolveLayer<E> {
    type Service = Resolve<S, E>;

    fn layer(&self, pods: S) -> Self::Service {
        Resolve {
            pods,
            elsewhere: self.elsewhere.clone(),
            dns: self.dns.clone(),
            ways: self.ways.clone(),
            cluster: self.cluster.clone(),
            told: self.told.clone(),
        }
    }
}

/// Resolves a target, and passes the Pods that could serve it to the inner service, or what else it means to the egress.
///
/// A name of the cluster that no object has is asked of the cluster's DNS, over streams of the inner service; no other name
/// is. The addresses in the answer are resolved in turn, so that those of Services and Pods are dialled like any other, and
/// only the rest are hosts outside.
///
/// Always ready; readiness of the inner services is awaited inside the call.
#[derive(Clone)]
pub struct Resolve<S, E> {
    pub(crate) pods: S,
    elsewhere: E,
    pub(crate) dns: RemoteDns,
    pub(crate) ways: Ways,
    pub(crate) cluster: Cluster,
    told: Arc<OnceLock<LookupObserver>>,
}

/// Meaning of a host and port.
#[derive(Clone, Debug)]
pub enum Resolved {
    /// Pods that could serve it, ready or not, and a way to follow them.
    Pods(Subscription),
    /// The API server itself.
    ApiServer,
    /// A host outside the cluster.
    Outside {
        /// A name, or addresses.
        to: Vec<Host>,
        /// The object that named the host; `None` if the client named it.
        learned_from: Option<String>,
    },
}

impl<S, E> Resolve<S, E>
where
    S: Service<Subscription> + Clone,
    S::Response: Stream,
    S::Error: Into<BoxError>,
{
    /// Resolves a host and port without dialling. For a missing port see [`Query::new`].
    ///
    /// Errors: the name does not exist, its object cannot serve, or neither the API server nor the cluster's DNS answered.
    ///
    /// Cancellation: calls to either that were started finish and are kept for the next call.
    pub async fn resolve(
        &self,
        host: &Host,
        port: Option<NonZeroU16>,
    ) -> Result<Resolved, ConnectError> {
        self.resolve_as(host, |host| Query::new(host, port)).await
    }

    async fn resolve_as(
        &self,
        host: &Host,
        query: impl Fn(&Host) -> Query,
    ) -> Result<Resolved, ConnectError> {
        let mut host = host.clone();
        let mut learned_from: Option<String> = None;
        for _ in 0..=ALIASES {
            let question = match subscribe(&self.cluster, &self.ways, query(&host)).await? {
                Answer::Pods(pods) => return Ok(Resolved::Pods(pods)),
                Answer::ApiServer => return Ok(Resolved::ApiServer),
                Answer::Outside(outside) => {
                    return Ok(Resolved::Outside {
                        to: vec![outside.host],
                        learned_from: outside.learned_from.or(learned_from),
                    });
                }
                Answer::Dns(question) => question,
            };
            let by_dns = learned_from.unwrap_or_else(|| match &question.learned_from {
                Some(service) => format!("{service} and the cluster's DNS"),
                None => "the cluster's DNS".into(),
            });
            match self.ask(question).await? {
                ClusterDnsAnswer::Addresses(ips) => {
                    return self.addresses(&host, &ips, query, by_dns).await;
                }
                ClusterDnsAnswer::Alias(alias) => host = alias,
            }
            learned_from = Some(by_dns);
        }
        Err(ConnectError::new(
            Refusal::Unreachable,
            format!(
                "the cluster's DNS leads from one name to the next, and {host} is not the last"
            ),
        ))
    }

    /// Announces that a connection to the cluster is likely soon, to an unknown target.
    pub fn expect(&self) {
        self.ways.expect();
    }

    /// Opens a session to one of the Pods that a host means, for a connection that is likely to come. Does not wait. Must be
    /// called within a tokio runtime.
    pub fn warm(&self, host: Host) {
        let Some(turn) = self.ways.turn() else {
            return;
        };
        let (cluster, ways) = (self.cluster.clone(), self.ways.clone());
        let warming = async move {
            let query = Query::new(&host, None::<NonZeroU16>);
            if let Ok(Answer::Pods(pods)) = subscribe(&cluster, &ways, query).await
                && let Ok(usable) = pods.usable()
                && let Some(first) = usable.first()
                && ways.to(&first.pod) == PodSessionState::Closed
            {
                ways.expect();
                ways.warm(&first.pod);
            }
            drop(turn);
        };
        tokio::spawn(warming.with_current_subscriber());
    }

    /// Reports the durations of successful calls of all clones to `told` from now on; only the first call has an effect.
    pub fn tell(&self, told: impl Fn(Took) + Send + Sync + 'static) {
        let _ = self.told.set(Arc::new(told));
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Asks the cluster's DNS for all of the names; the first that it knows is meant.
    async fn ask(&self, question: DnsQuestion) -> Result<ClusterDnsAnswer, ConnectError> {
        let names = SearchNames(question.names.clone());
        let fetch = dns::fetch(&names, &self.cluster, &self.pods);
        match self.dns.addresses.ask(&names, fetch).await {
            Ok(answered) if !answered.addresses.is_empty() => {
                Ok(ClusterDnsAnswer::Addresses(answered.addresses))
            }
            Ok(answered) => match answered.alias {
                Some(alias) => Ok(ClusterDnsAnswer::Alias(Host::Name(alias))),
                None => Err(unknown(question, None)),
            },
            Err(error) => Err(unknown(question, Some(error))),
        }
    }

    /// Resolves the addresses of a name.
    async fn addresses(
        &self,
        host: &Host,
        ips: &[IpAddr],
        query: impl Fn(&Host) -> Query,
        learned_from: String,
    ) -> Result<Resolved, ConnectError> {
        let mut pods: Option<Subscription> = None;
        let mut outside = Vec::new();
        let mut failed = None;
        for ip in ips.iter().take(ADDRESSES) {
            match self.cluster.subscribe(query(&Host::Ip(*ip))).await {
                Ok(Answer::ApiServer) => return Ok(Resolved::ApiServer),
                Ok(Answer::Pods(found)) if found.service.is_some() => {
                    return Ok(Resolved::Pods(found));
                }
                Ok(Answer::Pods(found)) => match &mut pods {
                    None => pods = Some(found),
                    Some(pods) => {
                        for endpoint in &found.endpoints {
                            if pods.endpoints.iter().all(|e| e.pod != endpoint.pod) {
                                pods.endpoints.push(endpoint.clone());
                            }
                        }
                    }
                },
                Ok(Answer::Outside(found)) => outside.push(found.host),
                // An address is not a name that can be unknown.
                Ok(Answer::Dns(question)) => failed = Some(question.otherwise),
                Err(error) => failed = Some(error),
            }
        }
        match (pods, failed) {
            (Some(pods), _) => Ok(Resolved::Pods(pods)),
            (None, Some(error)) if outside.is_empty() => {
                let sentence = format!("{host} is {} by {learned_from}: {error}", list(ips));
                Err(ConnectError::new(error.refusal(), sentence))
            }
            (None, _) => Ok(Resolved::Outside {
                to: outside,
                learned_from: Some(learned_from),
            }),
        }
    }
}

/// Subscribes to a query. A query that has to be read normally leads to a Pod, so a session is prepared meanwhile: to the
/// likely Pod if there is a guess, otherwise only the connection for it.
async fn subscribe(cluster: &Cluster, ways: &Ways, query: Query) -> Result<Answer, LookupError> {
    let mut asked = pin!(cluster.subscribe(query.clone()));
    match poll!(&mut asked) {
        Poll::Ready(answer) => answer,
        Poll::Pending => {
            ways.expect();
            if let Some(pod) = cluster.likely_pod(&query) {
                ways.warm(&pod);
            }
            asked.await
        }
    }
}

/// The answer of the cluster's DNS for a name.
enum ClusterDnsAnswer {
    Addresses(Vec<IpAddr>),
    Alias(Host),
}

/// The error if neither an object nor the DNS has the name, or if the DNS cannot be asked.
fn unknown(question: DnsQuestion, failed: Option<Arc<ConnectError>>) -> ConnectError {
    let DnsQuestion {
        names,
        otherwise,
        only_dns,
        ..
    } = question;
    let Some(failed) = failed else {
        return otherwise.into();
    };
    if only_dns {
        let names: Vec<_> = names.iter().map(|name| name.as_str()).collect();
        let sentence = format!(
            "only the cluster's DNS can know {}, and it cannot be asked: {failed}",
            names.join(", ")
        );
        return ConnectError::new(failed.refusal(), sentence);
    }
    match failed.refusal() {
        // The cluster has no DNS: that adds nothing about the name.
        Refusal::NameNotFound => otherwise.into(),
        _ => {
            let sentence = format!("{otherwise} (the cluster's DNS could not be asked: {failed})");
            ConnectError::new(otherwise.refusal(), sentence)
        }
    }
}

fn list(ips: &[IpAddr]) -> String {
    let ips: Vec<_> = ips.iter().map(IpAddr::to_string).collect();
    ips.join(", ")
}

impl<S, E> Service<Target> for Resolve<S, E>
where
    S: Service<Subscription> + Clone + Send + Sync + 'static,
    S::Response: Stream,
    S::Error: Into<BoxError>,
    S::Future: Send,
    E: Service<Elsewhere> + Clone + Send + Sync + 'static,
    E::Error: Into<BoxError>,
    E::Future: Send,
{
    type Response = Either<S::Response, E::Response>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Target) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            // A forward leads to a Service's port, as kubectl's does, and not to a DNS name.
            let is_mapped = target.origin.frontend == Frontend::Forward;
            let query = |host: &Host| match Query::new(host, target.port) {
                query if is_mapped => query.mapped(),
                query => query,
            };
            let asked = Instant::now();
            let elsewhere = match this.resolve_as(&target.host, query).await? {
                Resolved::Pods(pods) => {
                    let resolve = asked.elapsed();
                    let stream = this.pods.oneshot(pods.clone()).await;
                    if let (Ok(_), Some(told)) = (&stream, this.told.get()) {
                        let total = asked.elapsed();
                        told(Took { resolve, total });
                    }
                    if stream.is_ok() && this.ways.are_far() {
                        this.cluster.look_around(&pods);
                    }
                    return stream.map(Either::A).map_err(|e| classify(e.into()));
                }
                Resolved::ApiServer => Elsewhere::ApiServer(target),
                Resolved::Outside { to, learned_from } => Elsewhere::Outside(Outbound {
                    target,
                    to,
                    learned_from,
                }),
            };
            let stream = this.elsewhere.oneshot(elsewhere).await;
            stream.map(Either::B).map_err(|e| classify(e.into()))
        })
    }
}
