//! From the Pods that could serve a target to the stream of the one that does.
//!
//! One call is one state machine, and all its timers are here:
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
//! *Dial* begins with one endpoint. The next is dialled when that fails; or beside it, after [`BESIDE`] where the next
//! is known to answer at once and after the attempt's time where it is not. The first stream wins; a dial that is
//! dropped after [`SLOW`](health::SLOW), by a faster one or by the deadline, counts as failed for its Pod.

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

use self::health::Health;
pub use self::health::Lease;
use crate::ahead::{Ahead, Ways, pod_port};
use crate::held::Held;

/// How long a dial goes on alone where another endpoint is known to answer at once.
const BESIDE: Duration = Duration::from_secs(1);

/// How many dials of one call go on beside each other.
const AT_ONCE: usize = 3;

/// How long the news that a Pod is gone, which a dial had first, may take to be seen here: a watch tells it
/// within milliseconds; where nothing may be watched, it is read at most 2 s later.
const NEWS: Duration = Duration::from_secs(3);

/// The same where a Service's Pods failed in another way and the API server does not say whether they are ending. As a
/// rule they are not, and the client waits for its answer: long enough for a watch that broke to be back.
const DOUBT: Duration = Duration::from_millis(500);

/// How often a call takes Pods that have replaced those that failed.
const REPLACED: usize = 3;

/// What a failed dial says of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The Pod does not exist any more.
    Gone,
    /// The Pod, or the way to it: another may do better.
    Endpoint,
    /// A limit of this program: another Pod may have room, and this one is well.
    Limit,
    /// Nothing: every endpoint would fail likewise.
    Shared,
}

/// Why a dial to one Pod failed, as far as it matters for the next.
pub trait DialError: Into<ConnectError> + Send {
    /// What it says of the endpoint.
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

/// Makes [`Dispatch`]es that share the endpoints' health.
#[derive(Clone, Debug)]
pub struct DispatchLayer {
    health: Health,
    attempt: Duration,
    wait: Duration,
    only_ready: bool,
    ways: Ways,
}

impl DispatchLayer {
    /// While there are other endpoints, a dial goes on alone for at most `attempt`.
    pub fn new(attempt: Duration) -> Self {
        Self {
            health: Health::default(),
            attempt,
            wait: Duration::ZERO,
            only_ready: true,
            ways: Ways::default(),
        }
    }

    /// While the way to the Pod whose turn it is has to be opened, and the way to another is open, that one gets the
    /// connection.
    #[must_use]
    pub fn ahead(mut self, ahead: impl Ahead) -> Self {
        self.ways = Ways::new(ahead);
        self
    }

    /// Without a ready endpoint, a call is held for this long; zero, the default, refuses it at once.
    ///
    /// A [`Deadline`](crate::Deadline) outside has to allow for it.
    #[must_use]
    pub fn waiting(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Dials every endpoint there is, whether it is ready or not.
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

/// Dials one of the Pods that may serve a target: of the ready ones or, when none is, of those that still serve while
/// they terminate, the one with the fewest open streams; and the next when that fails before a byte was exchanged.
///
/// A Pod whose dial failed gets no connection for 5 to 60 s while there are others, then one at a time. Where a Service
/// keeps a client's connections together (`sessionAffinity: ClientIP`), this machine is the client: one Pod serves it
/// while it is ready and reachable.
///
/// When no endpoint is usable the call waits, if it may, for the moment one is; else it is refused with how many exist
/// and why they are not. When all that were ready are gone, or none of a Service's can be reached, Pods that the
/// subscription tells of in the next moments are dialled too. Unreachable ones are asked for first
/// ([`Subscription::check_pods`]): where they are what they were, the failure stands at once. A failure that another Pod
/// would share (the API server is away, the rules forbid port-forwards) is passed on at once.
///
/// Always ready; the inner service is waited for inside the call. How long all of it may take together is not decided
/// here: put a [`Deadline`](crate::Deadline) outside. Cancellation: dropping a call's future gives its dials up.
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
    type Response = Held<S::Response, Lease>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, pods: Subscription) -> Self::Future {
        let call = Call {
            dispatch: self.clone(),
            pods,
            dialled: HashSet::new(),
        };
        Box::pin(call.run())
    }
}

/// One call.
struct Call<S> {
    dispatch: Dispatch<S>,
    /// Those that a dial may still be made to, or failed.
    pods: Subscription,
    /// The Pods that were dialled.
    dialled: HashSet<PodRef>,
}

/// Why a round of dials led to no stream.
struct Failed {
    error: ConnectError,
    blame: Blame,
}

impl<S> Call<S>
where
    S: Service<PodPort> + Clone + Send + Sync + 'static,
    S::Response: Stream,
    S::Error: DialError,
    S::Future: Send,
{
    async fn run(mut self) -> Result<Held<S::Response, Lease>, ConnectError> {
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
            tracing::debug!("{}: there are others now", failed.error);
        }
        unreachable!("the rounds end inside")
    }

    /// What may be dialled and was not.
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

    /// The endpoints as soon as there is a usable one.
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

    /// The next endpoint, and the count of it.
    fn next(&self, left: &mut Vec<Endpoint>, first: bool) -> Option<(Endpoint, Lease)> {
        let DispatchLayer { health, ways, .. } = &self.dispatch.layer;
        let again = self.pods.affinity.filter(|_| first);
        again
            .and_then(|lasts| health.take_again(&self.pods.asked, lasts, left))
            .or_else(|| health.take(left, !first, ways))
    }

    /// Dials one endpoint after the other, or beside it.
    async fn dial(&mut self, mut left: Vec<Endpoint>) -> Result<Held<S::Response, Lease>, Failed> {
        let Dispatch { inner, layer } = self.dispatch.clone();
        let mut dials = FuturesUnordered::new();
        let mut last = Instant::now();
        let mut failures = Failures::default();
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

    /// What may be dialled instead of the Pods that failed, as soon as that is known.
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

    /// The usable endpoints that were not dialled, when there are any, and all that were found with them.
    async fn replaced(&self) -> Option<(Vec<Endpoint>, Subscription)> {
        let mut pods = self.pods.clone();
        loop {
            pods.next().await.ok()?;
            match self.usable(&pods) {
                Ok(usable) if !usable.is_empty() => return Some((usable, pods)),
                // It is known by now that they are gone; what comes is worth waiting for if that is wanted.
                Err(LookupError::NotReady { .. }) if self.dispatch.layer.wait.is_zero() => {
                    return None;
                }
                Ok(_) | Err(LookupError::NotReady { .. }) => {}
                Err(_) => return None,
            }
        }
    }

    /// The same while it is not known that the Pods that failed are what they were; for as long as `news` where they
    /// are not.
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

/// The dials of a round that failed.
#[derive(Default)]
struct Failures {
    dials: usize,
    /// The last that met a Pod, or got nowhere.
    other: Option<(ConnectError, Blame)>,
    /// The last whose Pod does not exist any more.
    gone: Option<ConnectError>,
}

impl Failures {
    fn add(&mut self, error: ConnectError, blame: Blame) {
        self.dials += 1;
        match blame {
            Blame::Gone => self.gone = Some(error),
            _ => self.other = Some((error, blame)),
        }
    }

    /// A Pod that is gone is not a name that is not found, where the name was a Service's.
    fn summary(self, candidates: &Candidates) -> Failed {
        let asked = &candidates.asked;
        let of_service = candidates.service.is_some();
        let (error, blame) = match (self.other, self.gone) {
            (Some((error, blame)), _) => (error, blame),
            (None, Some(error)) if of_service => {
                let sentence = format!(
                    "{asked} has no ready endpoint: its pods were deleted and what replaces them is not ready yet, try again"
                );
                return Failed {
                    error: ConnectError::new(Refusal::NotReady, sentence).with_source(error),
                    blame: Blame::Gone,
                };
            }
            (None, Some(error)) => (error, Blame::Endpoint),
            (None, None) => {
                let sentence = format!("{asked} has no endpoint to dial");
                return Failed {
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
        Failed { error, blame }
    }
}

#[cfg(test)]
mod tests;
