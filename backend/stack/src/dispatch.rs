//! Dials the endpoints that could serve a target until one answers.
//!
//! One call is one state machine, with all its timers in this file:
//!
//! ```text
//!                        an endpoint that may be dialled            all dials failed
//!   Wait (wait_ready) ─────────────────────────────────► Dial ─────────────────────────► Doubt (DOUBT, NEWS)
//!        │ time is up                                    ▲ │ a stream                     │         │
//!        ▼                                               │ ▼                              │         ▼
//!     refused                                            │ served       others came       │      refused
//!                                                        └────────────────────────────────┘
//! ```
//!
//! *Dial* begins with one endpoint. The next is dialled when the first fails, or in parallel: after [`BESIDE`] if the next is
//! known to answer at once, otherwise after the attempt's time. The first stream wins. A dial that is dropped after
//! [`SLOW`](health::SLOW), because of a faster one or the deadline, counts as failed for its Pod.

mod health;

use std::collections::HashSet;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kubevpn_cluster::{Candidates, Endpoint, LookupError, PodCheck, PodRef, Subscription};
use kubevpn_portforward::{ForwardError, PodPort};
use kubevpn_target::{ConnectError, Refusal, Stream};
use tokio::time::{Instant, sleep_until, timeout};
use tower::ServiceExt as _;
use tower_layer::Layer;
use tower_service::Service;

use self::health::EndpointHealth;
pub use self::health::PodLease;
use crate::ahead::{Ahead, Ways, pod_port};
use crate::held::Held;

/// How long a dial runs alone if another endpoint is known to answer at once.
const BESIDE: Duration = Duration::from_secs(1);

/// Limit on parallel dials of one call.
const AT_ONCE: usize = 3;

/// How long to wait until the store shows that a Pod is gone, if a dial found out first: a watch reports it within
/// milliseconds; without watches it is read at most 2 s later.
const NEWS: Duration = Duration::from_secs(3);

/// The same if a Service's Pods failed in another way and the API server does not say whether they are ending. Normally they
/// are not, and the client waits for its answer: long enough for a broken watch to be restored.
const DOUBT: Duration = Duration::from_millis(500);

/// How often a call dials Pods that have replaced failed ones.
const REPLACED: usize = 3;

/// What a failed dial shows about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The Pod no longer exists.
    Gone,
    /// The Pod, or the path to it, failed: another may succeed.
    Endpoint,
    /// A limit of this program was reached: another Pod may have room, and this one is healthy.
    Limit,
    /// Nothing: every endpoint would fail in the same way.
    Shared,
}

/// The error of a dial to one Pod.
pub trait DialError: Into<ConnectError> + Send {
    /// What the error shows about the endpoint.
    fn blame(&self) -> Blame;
}

impl DialError for ForwardError {
    fn blame(&self) -> Blame {
        match self {
            Self::PodNotFound { .. } => Blame::Gone,
            error if !error.retryable() => Blame::Shared,
            error if error.is_limit() => Blame::Limit,
            _ => Blame::Endpoint,
        }
    }
}

impl DialError for ConnectError {
    fn blame(&self) -> Blame {
        match self.refusal() {
            Refusal::NameNotFound
            | Refusal::NoSuchPort
            | Refusal::NotReady
            | Refusal::Refused
            | Refusal::Unreachable
            | Refusal::TimedOut
            | Refusal::Internal => Blame::Endpoint,
            Refusal::ClusterAway
            | Refusal::Forbidden
            | Refusal::Denied
            | Refusal::Overloaded
            | Refusal::Unauthenticated => Blame::Shared,
        }
    }
}

/// Layer of [`Dispatch`]; all its services share the endpoints' health.
#[derive(Clone, Debug)]
pub struct DispatchLayer {
    health: EndpointHealth,
    attempt: Duration,
    wait: Duration,
    only_ready: bool,
    ways: Ways,
}

impl DispatchLayer {
    /// Limits the time for which a dial runs alone while there are other endpoints.
    pub fn new(attempt: Duration) -> Self {
        Self {
            health: EndpointHealth::default(),
            attempt,
            wait: Duration::ZERO,
            only_ready: true,
            ways: Ways::default(),
        }
    }

    /// Opens sessions with `ahead`: if the next Pod has no session and another has one, the other gets the connection,
    /// and the missing session is opened in parallel.
    #[must_use]
    pub fn ahead(mut self, ahead: impl Ahead) -> Self {
        self.ways = Ways::new(ahead);
        self
    }

    /// Holds a call for this long while there is no ready endpoint. Zero, the default, refuses it at once.
    ///
    /// An outer [`Deadline`](crate::Deadline) has to allow for this time.
    #[must_use]
    pub fn waiting(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Dials every endpoint, whether it is ready or not.
    #[must_use]
    pub fn also_unready(mut self) -> Self {
        self.only_ready = false;
        self
    }
}

impl<S> Layer<S> for DispatchLayer {
    type Service = Dispatch<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Dispatch {
            inner,
            layer: self.clone(),
        }
    }
}

/// Dials one of the Pods that may serve a target: the one with the fewest open streams among the ready ones or, if none is
/// ready, among those that still serve while they terminate. Dials the next if that fails before a byte was exchanged.
///
/// A Pod whose dial failed gets no connection for 5 to 60 s while there are others, then one at a time. For a Service with
/// `sessionAffinity: ClientIP` this machine is the client: one Pod serves it while it is ready and reachable.
///
/// If no endpoint is usable, the call waits for one for the configured time, and is then refused with the number of endpoints
/// and the reasons. If all dialled Pods are gone, or none of a Service's is reachable, Pods that the subscription reports
/// shortly afterwards are dialled too. Unreachable Pods are read first ([`Subscription::check_pods`]): if they are unchanged,
/// the failure is final at once. A failure that all Pods share (the API server is away, the rules forbid port-forwards) is
/// final at once.
///
/// Always ready; readiness of the inner service is awaited inside the call. The total time is not limited here: put a
/// [`Deadline`](crate::Deadline) outside. Cancellation: dropping a call's future gives its dials up.
#[derive(Clone, Debug)]
pub struct Dispatch<S> {
    inner: S,
    layer: DispatchLayer,
}

impl<S> Service<Subscription> for Dispatch<S>
where
    S: Service<PodPort> + Clone + Send + Sync + 'static,
    S::Response: Stream,
    S::Error: DialError,
    S::Future: Send,
{
    type Response = Held<S::Response, PodLease>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, pods: Subscription) -> Self::Future {
        let call = DispatchCall {
            dispatch: self.clone(),
            pods,
            dialled: HashSet::new(),
        };
        Box::pin(call.run())
    }
}

/// State of one call.
struct DispatchCall<S> {
    dispatch: Dispatch<S>,
    /// The endpoints that may still be dialled, and those that failed.
    pods: Subscription,
    /// The Pods that were dialled.
    dialled: HashSet<PodRef>,
}

/// Why a round of dials failed.
struct FailedRound {
    error: ConnectError,
    blame: Blame,
}

impl<S> DispatchCall<S>
where
    S: Service<PodPort> + Clone + Send + Sync + 'static,
    S::Response: Stream,
    S::Error: DialError,
    S::Future: Send,
{
    async fn run(mut self) -> Result<Held<S::Response, PodLease>, ConnectError> {
        let mut left = self.ready().await?;
        for round in 0.. {
            let failed = match self.dial(left).await {
                Ok(stream) => return Ok(stream),
                Err(failed) => failed,
            };
            if round == REPLACED {
                return Err(failed.error);
            }
            match self.others(failed.blame).await {
                Some(others) => left = others,
                None => return Err(failed.error),
            }
            tracing::debug!("{}: there are other endpoints now", failed.error);
        }
        unreachable!("the rounds end inside")
    }

    /// The usable endpoints that were not dialled.
    fn usable(&self, candidates: &Candidates) -> Result<Vec<Endpoint>, LookupError> {
        let usable = match self.dispatch.layer.only_ready {
            true => candidates.usable()?,
            false => candidates.endpoints.iter().collect(),
        };
        let new = usable
            .into_iter()
            .filter(|e| !self.dialled.contains(&e.pod));
        Ok(new.cloned().collect())
    }

    /// Waits for the first usable endpoint.
    async fn ready(&mut self) -> Result<Vec<Endpoint>, ConnectError> {
        let wait = self.dispatch.layer.wait;
        let mut unready = match self.usable(&self.pods) {
            Ok(usable) => return Ok(usable),
            Err(error) if wait.is_zero() => return Err(error.into()),
            Err(error) => error,
        };
        let deadline = Instant::now() + wait;
        loop {
            let LookupError::NotReady { .. } = unready else {
                return Err(unready.into());
            };
            tracing::debug!("{unready}, waiting");
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, self.pods.next()).await {
                Ok(next) => next?,
                Err(_) => {
                    let sentence = format!("{unready}, and that did not change within {wait:?}");
                    return Err(ConnectError::new(Refusal::TimedOut, sentence));
                }
            }
            match self.usable(&self.pods) {
                Ok(usable) => return Ok(usable),
                Err(error) => unready = error,
            }
        }
    }

    /// Takes the next endpoint, with its lease.
    fn next(&self, left: &mut Vec<Endpoint>, first: bool) -> Option<(Endpoint, PodLease)> {
        let DispatchLayer { health, ways, .. } = &self.dispatch.layer;
        let again = self.pods.affinity.filter(|_| first);
        again
            .and_then(|lasts| health.take_again(&self.pods.asked, lasts, left))
            .or_else(|| health.take(left, !first, ways))
    }

    /// Dials the endpoints one after the other, or in parallel.
    async fn dial(
        &mut self,
        mut left: Vec<Endpoint>,
    ) -> Result<Held<S::Response, PodLease>, FailedRound> {
        let Dispatch { inner, layer } = self.dispatch.clone();
        let mut dials = FuturesUnordered::new();
        let mut last = Instant::now();
        let mut failures = RoundFailures::default();
        let mut first = true;
        loop {
            if let Some((endpoint, mut lease)) = self.next(&mut left, first) {
                let to = pod_port(&endpoint);
                tracing::debug!(%to, others = left.len(), "dialing");
                self.dialled.insert(endpoint.pod.clone());
                last = Instant::now();
                let dial = inner.clone().oneshot(to.clone());
                dials.push(async move {
                    match dial.await {
                        Ok(stream) => {
                            lease.succeeded();
                            Ok((endpoint.pod, Held::new(stream, lease)))
                        }
                        Err(error) => Err((to, error, lease)),
                    }
                });
            }
            first = false;
            let alone = match layer.health.any_warm(&left) {
                true => BESIDE.min(layer.attempt),
                false => layer.attempt,
            };
            let more = !left.is_empty() && dials.len() < AT_ONCE;
            tokio::select! {
                biased;
                done = dials.next() => match done {
                    Some(Ok((pod, stream))) => {
                        if self.pods.affinity.is_some() {
                            layer.health.stick(&self.pods.asked, &pod);
                        }
                        return Ok(stream);
                    }
                    Some(Err((to, error, lease))) => {
                        let blame = error.blame();
                        let error: ConnectError = error.into();
                        match blame {
                            Blame::Gone | Blame::Endpoint => lease.failed(),
                            Blame::Limit | Blame::Shared => lease.no_fault(),
                        }
                        if blame != Blame::Shared && !left.is_empty() {
                            tracing::debug!(%to, %error, "dial failed, trying another endpoint");
                        }
                        failures.add(error, blame);
                        if blame == Blame::Shared {
                            break;
                        }
                    }
                    None => break,
                },
                () = sleep_until(last + alone), if more && !dials.is_empty() => {}
            }
        }
        Err(failures.summary(&self.pods))
    }

    /// Waits for endpoints that replace the failed Pods.
    async fn others(&mut self, blame: Blame) -> Option<Vec<Endpoint>> {
        let news = NEWS.max(self.dispatch.layer.wait);
        let (found, pods) = match blame {
            Blame::Shared | Blame::Limit => return None,
            Blame::Gone => timeout(news, self.replaced()).await.ok().flatten()?,
            Blame::Endpoint if self.pods.service.is_none() => return None,
            Blame::Endpoint => self.in_doubt(news).await?,
        };
        self.pods = pods;
        Some(found)
    }

    /// Waits for usable endpoints that were not dialled.
    async fn replaced(&self) -> Option<(Vec<Endpoint>, Subscription)> {
        let mut pods = self.pods.clone();
        loop {
            pods.next().await.ok()?;
            match self.usable(&pods) {
                Ok(usable) if !usable.is_empty() => return Some((usable, pods)),
                // The Pods are known to be gone: wait for their successors if the settings allow it.
                Err(LookupError::NotReady { .. }) if self.dispatch.layer.wait.is_zero() => {
                    return None;
                }
                Ok(_) | Err(LookupError::NotReady { .. }) => {}
                Err(_) => return None,
            }
        }
    }

    /// Waits for replacement endpoints, unless the API server confirms that the failed Pods are unchanged: for `news` if
    /// they ended, for [`DOUBT`] if that is unknown.
    async fn in_doubt(&self, news: Duration) -> Option<(Vec<Endpoint>, Subscription)> {
        let begun = Instant::now();
        let mut others = pin!(self.replaced());
        let check = tokio::select! {
            found = &mut others => return found,
            check = timeout(DOUBT, self.pods.check_pods()) => check.unwrap_or(PodCheck::Unclear),
        };
        let (patience, said) = match check {
            PodCheck::Same => (None, "are what they were"),
            PodCheck::Unclear => (Some(DOUBT), "may not be what they were"),
            PodCheck::Ended => (Some(news), "are not what they were"),
        };
        tracing::debug!("the pods that failed {said}");
        let left = patience?.saturating_sub(begun.elapsed());
        timeout(left, others).await.ok().flatten()
    }
}

/// The failed dials of a round.
#[derive(Default)]
struct RoundFailures {
    dials: usize,
    /// The last failure that does not mean a missing Pod.
    other: Option<(ConnectError, Blame)>,
    /// The last failure whose Pod no longer exists.
    gone: Option<ConnectError>,
}

impl RoundFailures {
    fn add(&mut self, error: ConnectError, blame: Blame) {
        self.dials += 1;
        match blame {
            Blame::Gone => self.gone = Some(error),
            _ => self.other = Some((error, blame)),
        }
    }

    /// For a Service, a Pod that is gone is `NotReady` and not `NameNotFound`.
    fn summary(self, candidates: &Candidates) -> FailedRound {
        let asked = &candidates.asked;
        let of_service = candidates.service.is_some();
        let (error, blame) = match (self.other, self.gone) {
            (Some((error, blame)), _) => (error, blame),
            (None, Some(error)) if of_service => {
                let sentence = format!(
                    "{asked} has no ready endpoint: its pods were deleted and what replaces them is not ready yet, try again"
                );
                return FailedRound {
                    error: ConnectError::new(Refusal::NotReady, sentence).with_source(error),
                    blame: Blame::Gone,
                };
            }
            (None, Some(error)) => (error, Blame::Endpoint),
            (None, None) => {
                let sentence = format!("{asked} has no endpoint to dial");
                return FailedRound {
                    error: ConnectError::new(Refusal::NotReady, sentence),
                    blame: Blame::Shared,
                };
            }
        };
        let again = |sentence, error: ConnectError| {
            ConnectError::new(error.refusal(), sentence).with_source(error)
        };
        let mut error = error;
        if self.dials > 1 {
            let dials = self.dials;
            let sentence = format!(
                "{asked}: none of {dials} endpoints could be reached, the last one: {error}"
            );
            error = again(sentence, error);
        }
        if error.refusal() == Refusal::Refused
            && let (Some(service), Some(behind)) = (&candidates.service, candidates.behind)
        {
            let sentence = format!(
                "{error}; service {service} is headless, so that the port is its pods' own, which is {behind}: ask for that"
            );
            error = again(sentence, error);
        }
        FailedRound { error, blame }
    }
}

#[cfg(test)]
mod tests;
