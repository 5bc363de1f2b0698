//! From what was asked for to what could serve it.

use std::future::Future;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::poll;
use kubevpn_cluster::{Answer, Cluster, LookupError, Query, Question, Subscription};
use kubevpn_portforward::Way;
use kubevpn_target::{BoxError, ConnectError, Frontend, Host, Refusal, Stream, Target, classify};
use tokio::time::Instant;
use tower::ServiceExt as _;
use tower_layer::Layer;
use tower_service::Service;
use tracing::instrument::WithSubscriber as _;

use crate::ahead::{Ahead, Ways};
use crate::dns::{self, Names, RemoteDns};
use crate::egress::Elsewhere;
use crate::either::Either;
use crate::host::Outbound;

/// How often the cluster's DNS may lead from one name to the next.
const ALIASES: usize = 8;

/// How many addresses of a name are looked up in the cluster.
const ADDRESSES: usize = 4;

/// Makes [`Resolve`]s that ask one [`Cluster`] and share what its DNS has said.
#[derive(Clone)]
pub struct ResolveLayer<E> {
    cluster: Cluster,
    dns: RemoteDns,
    ways: Ways,
    elsewhere: E,
    told: Arc<OnceLock<Told>>,
}

/// How long a target took that a stream was opened to.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// From the name or address to the Pods that may serve it.
    pub resolve: Duration,
    /// All of it.
    pub total: Duration,
}

type Told = Arc<dyn Fn(Took) + Send + Sync>;

impl<E> ResolveLayer<E> {
    /// Targets are looked up here; what is no Pod's goes to `elsewhere`, an [`Egress`](crate::Egress) as a rule.
    pub fn new(cluster: Cluster, elsewhere: E) -> Self {
        Self {
            cluster,
            dns: RemoteDns::default(),
            ways: Ways::default(),
            elsewhere,
            told: Arc::default(),
        }
    }

    /// Tells below that a connection is likely soon while a target is looked up, and opens the way to a Pod of a Service
    /// that a DNS client asks for.
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

/// Looks a target up in the cluster and hands the Pods that could serve it on, or what else it means.
///
/// A name of the cluster that no object answers is asked of the cluster's DNS, over streams of the inner service;
/// no other name ever is. Addresses it gives are looked up in turn, so that those of Services and Pods are dialled
/// like any other, and only the rest is a host outside.
///
/// Always ready; the inner services are waited for inside the call.
#[derive(Clone)]
pub struct Resolve<S, E> {
    pub(crate) pods: S,
    elsewhere: E,
    pub(crate) dns: RemoteDns,
    pub(crate) ways: Ways,
    pub(crate) cluster: Cluster,
    told: Arc<OnceLock<Told>>,
}

/// What a host and port mean.
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
        /// What in the cluster led there; `None` when the client named it.
        learned_from: Option<String>,
    },
}

impl<S, E> Resolve<S, E>
where
    S: Service<Subscription> + Clone,
    S::Response: Stream,
    S::Error: Into<BoxError>,
{
    /// Resolves without dialing what comes of it. Without a port, [`Query::new`] says how.
    ///
    /// Errors: the name leads nowhere, its object cannot serve, or neither the API server nor the cluster's DNS says.
    ///
    /// Cancellation: what was asked of either is still kept for the next call.
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
                Known::Addresses(ips) => return self.addresses(&host, &ips, query, by_dns).await,
                Known::Alias(alias) => host = alias,
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

    /// Some connection to the cluster is likely soon, and it is not known where to.
    pub fn expect(&self) {
        self.ways.expect();
    }

    /// Opens the way to one of the Pods that a host means, for a connection that is likely to come. Nothing is waited for.
    /// Must be called within a tokio runtime.
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
                && ways.to(&first.pod) == Way::Closed
            {
                ways.expect();
                ways.warm(&first.pod);
            }
            drop(turn);
        };
        tokio::spawn(warming.with_current_subscriber());
    }

    /// Tells how long targets take from now on, of all clones; the first to be told stays the only one.
    pub fn tell(&self, told: impl Fn(Took) + Send + Sync + 'static) {
        let _ = self.told.set(Arc::new(told));
    }

    /// The cluster whose names are resolved.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Asks the cluster's DNS for all of the names; the first that it knows counts.
    async fn ask(&self, question: Question) -> Result<Known, ConnectError> {
        let names = Names(question.names.clone());
        let fetch = dns::fetch(&names, &self.cluster, &self.pods);
        match self.dns.addresses.ask(&names, fetch).await {
            Ok(answered) if !answered.addresses.is_empty() => {
                Ok(Known::Addresses(answered.addresses))
            }
            Ok(answered) => match answered.alias {
                Some(alias) => Ok(Known::Alias(Host::Name(alias))),
                None => Err(unknown(question, None)),
            },
            Err(error) => Err(unknown(question, Some(error))),
        }
    }

    /// What the addresses of a name are.
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
                // An address is no name.
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

/// A target that is known is answered at once. One that has to be asked for leads to a Pod as a rule, so that the way is
/// prepared meanwhile: to that Pod where a guess can be made, else to any.
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

/// What the cluster's DNS knows of a name.
enum Known {
    Addresses(Vec<IpAddr>),
    Alias(Host),
}

/// No object and no DNS knows the name, or the DNS cannot be asked.
fn unknown(question: Question, failed: Option<Arc<ConnectError>>) -> ConnectError {
    let Question {
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
        // There is none: nothing more is known of the name for that.
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
            // A forward is to a Service's port, as kubectl's is, and not to a name of the DNS.
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
