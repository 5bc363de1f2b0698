//! From the endpoints that could serve a connection to the stream of the one that does.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use kubevpn_cluster::{Candidates, Endpoint};
use kubevpn_portforward::{ForwardError, PodPort};
use kubevpn_target::{BoxError, ConnectError, Refusal, Stream, classify};
use tower::ServiceExt as _;
use tower_layer::Layer;
use tower_service::Service;

use crate::held::Held;
use crate::pick::{Balance, Slot};

/// Makes [`Failover`]s that share one [`Balance`].
#[derive(Clone, Debug)]
pub struct FailoverLayer {
    balance: Balance,
    attempt: Duration,
}

impl FailoverLayer {
    /// While there are others to try, one attempt may take this long.
    pub fn new(attempt: Duration) -> Self {
        Self {
            balance: Balance::default(),
            attempt,
        }
    }
}

impl<S> Layer<S> for FailoverLayer {
    type Service = Failover<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Failover {
            inner,
            balance: self.balance.clone(),
            attempt: self.attempt,
        }
    }
}

/// Dials the least used endpoint, and the next when that fails before a byte was exchanged.
///
/// Always ready; the inner service is waited for inside the call. A failure that another Pod would share (the API
/// server is away, the rules forbid port-forwards) is passed on at once. How long all attempts may take together
/// is not decided here: put a [`Deadline`](crate::Deadline) outside.
#[derive(Clone, Debug)]
pub struct Failover<S> {
    inner: S,
    balance: Balance,
    attempt: Duration,
}

impl<S> Service<Candidates> for Failover<S>
where
    S: Service<PodPort> + Clone + Send + 'static,
    S::Response: Stream,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    type Response = Held<S::Response, Slot>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, candidates: Candidates) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.dial(candidates).await })
    }
}

impl<S> Failover<S>
where
    S: Service<PodPort> + Clone + Send + 'static,
    S::Response: Stream,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    async fn dial(self, candidates: Candidates) -> Result<Held<S::Response, Slot>, ConnectError> {
        let Candidates {
            asked,
            mut endpoints,
            service,
            behind,
            ..
        } = candidates;
        let mut failed = Failed::default();
        while let Some((endpoint, slot)) = self.balance.take(&mut endpoints) {
            let to = pod_port(&endpoint);
            tracing::debug!(%to, others = endpoints.len(), "dialing");
            let dial = self.inner.clone().oneshot(to.clone());
            let result = if endpoints.is_empty() {
                dial.await.map_err(|e| classify_dial(e.into()))
            } else {
                match tokio::time::timeout(self.attempt, dial).await {
                    Ok(result) => result.map_err(|e| classify_dial(e.into())),
                    Err(_) => Err(ConnectError::new(
                        Refusal::TimedOut,
                        format!(
                            "{to} did not answer within {} s, try again",
                            self.attempt.as_secs()
                        ),
                    )),
                }
            };
            match result {
                Ok(stream) => {
                    slot.succeeded();
                    return Ok(Held::new(stream, slot));
                }
                Err(error) => {
                    slot.failed();
                    let go_on = another_may_do_better(&error);
                    if go_on && !endpoints.is_empty() {
                        tracing::debug!(%to, %error, "dial failed, trying another endpoint");
                    }
                    failed.add(error);
                    if !go_on {
                        break;
                    }
                }
            }
        }
        let error = failed.summary(&asked, service.is_some());
        Err(match (service, behind) {
            (Some(service), Some(behind)) if error.refusal() == Refusal::Refused => {
                let sentence = format!(
                    "{error}; service {service} is headless, so that the port is its pods' own, which is {behind}: ask for that"
                );
                ConnectError::new(Refusal::Refused, sentence).with_source(error)
            }
            _ => error,
        })
    }
}

/// The dials that failed.
#[derive(Default)]
struct Failed {
    dials: usize,
    /// The last that met a Pod, or got nowhere.
    other: Option<ConnectError>,
    /// The last whose Pod does not exist any more.
    gone: Option<ConnectError>,
}

impl Failed {
    fn add(&mut self, error: ConnectError) {
        self.dials += 1;
        match forward_error(&error) {
            Some(ForwardError::PodNotFound { .. }) => self.gone = Some(error),
            _ => self.other = Some(error),
        }
    }

    /// A Pod that is gone is not a name that is not found, where the name was a Service's.
    fn summary(self, asked: &str, of_service: bool) -> ConnectError {
        let (error, gone) = match (self.other, self.gone) {
            (Some(error), _) => (error, false),
            (None, Some(error)) => (error, of_service),
            (None, None) => {
                let sentence = format!("{asked} has no endpoint to dial");
                return ConnectError::new(Refusal::NotReady, sentence);
            }
        };
        if gone {
            let sentence = format!(
                "{asked} has no ready endpoint: its pods were deleted and what replaces them is not ready yet, try again"
            );
            return ConnectError::new(Refusal::NotReady, sentence).with_source(error);
        }
        if self.dials == 1 {
            return error;
        }
        let dials = self.dials;
        let sentence =
            format!("{asked}: none of {dials} endpoints could be reached, the last one: {error}");
        ConnectError::new(error.refusal(), sentence).with_source(error)
    }
}

fn pod_port(endpoint: &Endpoint) -> PodPort {
    PodPort {
        namespace: endpoint.pod.namespace.clone(),
        pod: endpoint.pod.name.clone(),
        uid: endpoint.pod.uid.clone(),
        port: endpoint.port,
    }
}

fn classify_dial(error: BoxError) -> ConnectError {
    match error.downcast::<ForwardError>() {
        Ok(error) => ConnectError::from(*error),
        Err(error) => classify(error),
    }
}

fn forward_error(error: &ConnectError) -> Option<&ForwardError> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(error) = e.downcast_ref() {
            return Some(error);
        }
        cause = e.source();
    }
    None
}

/// Whether what failed is one Pod's.
pub(crate) fn another_may_do_better(error: &ConnectError) -> bool {
    if let Some(error) = forward_error(error) {
        return error.retryable();
    }
    match error.refusal() {
        Refusal::NameNotFound
        | Refusal::NoSuchPort
        | Refusal::NotReady
        | Refusal::Refused
        | Refusal::Unreachable
        | Refusal::TimedOut
        | Refusal::Internal => true,
        Refusal::ClusterAway
        | Refusal::Forbidden
        | Refusal::Denied
        | Refusal::Overloaded
        | Refusal::Unauthenticated => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use kubevpn_cluster::{PodRef, Readiness};
    use tokio::io::DuplexStream;
    use tower::service_fn;

    use super::*;

    fn candidates(pods: &[&str]) -> Candidates {
        let endpoint = |name: &&str| Endpoint {
            pod: PodRef {
                namespace: "shop".into(),
                name: (*name).into(),
                uid: None,
            },
            port: 80,
            readiness: Readiness::Ready,
            addresses: Vec::new(),
        };
        Candidates::new(
            "service shop/web port 80",
            pods.iter().map(endpoint).collect(),
        )
    }

    /// A leaf that answers each Pod's dials as told, and counts them.
    #[derive(Clone, Default)]
    struct Leaf {
        dials: Arc<Mutex<HashMap<String, usize>>>,
        refuses: Arc<Mutex<HashMap<String, Refusal>>>,
        hangs: Arc<Mutex<Vec<String>>>,
    }

    impl Leaf {
        fn service(
            &self,
        ) -> impl Service<PodPort, Response = DuplexStream, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static
        + use<> {
            let leaf = self.clone();
            service_fn(move |to: PodPort| {
                let leaf = leaf.clone();
                async move {
                    *leaf
                        .dials
                        .lock()
                        .unwrap()
                        .entry(to.pod.clone())
                        .or_default() += 1;
                    if leaf.hangs.lock().unwrap().contains(&to.pod) {
                        std::future::pending::<()>().await;
                    }
                    match leaf.refuses.lock().unwrap().get(&to.pod) {
                        Some(refusal) => {
                            Err(ConnectError::new(*refusal, format!("{to} said no")).into())
                        }
                        None => Ok(tokio::io::duplex(1).0),
                    }
                }
            })
        }

        fn dials(&self, pod: &str) -> usize {
            self.dials.lock().unwrap().get(pod).copied().unwrap_or(0)
        }
    }

    #[tokio::test]
    async fn a_headless_services_port_is_told() {
        let leaf = Leaf::default();
        let refused = ("web-0".to_owned(), Refusal::Refused);
        leaf.refuses.lock().unwrap().extend([refused]);
        let mut candidates = candidates(&["web-0"]);
        candidates.service = Some("shop/web".into());
        candidates.behind = Some(8080);
        let error = layer().layer(leaf.service()).oneshot(candidates).await;
        let error = error.map(drop).unwrap_err();
        assert_eq!(error.refusal(), Refusal::Refused);
        let said = error.to_string();
        assert!(said.contains("said no") && said.contains("8080"), "{said}");
    }

    fn layer() -> FailoverLayer {
        FailoverLayer::new(Duration::from_secs(10))
    }

    #[tokio::test]
    async fn replicas_are_used_evenly_under_uneven_lifetimes() {
        let leaf = Leaf::default();
        let dial = layer().layer(leaf.service());
        let pods = ["a", "b", "c"];
        let mut long = Vec::new();
        for n in 0..30 {
            let stream = dial.clone().oneshot(candidates(&pods)).await.unwrap();
            // Every third lives on, the others end at once.
            if n % 3 == 0 {
                long.push(stream);
            }
        }
        let open = |pod: &str| leaf.dials(pod);
        assert_eq!(pods.iter().map(|p| open(p)).sum::<usize>(), 30);
        assert!(
            pods.iter().all(|p| open(p) >= 8),
            "{:?}",
            leaf.dials.lock().unwrap()
        );
    }

    #[tokio::test]
    async fn a_failed_dial_takes_the_next_and_avoids_the_first_for_a_while() {
        let leaf = Leaf::default();
        leaf.refuses
            .lock()
            .unwrap()
            .insert("a".into(), Refusal::Refused);
        let dial = layer().layer(leaf.service());
        for _ in 0..4 {
            dial.clone().oneshot(candidates(&["a", "b"])).await.unwrap();
        }
        assert_eq!((leaf.dials("a"), leaf.dials("b")), (1, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_hangs_gives_way() {
        let leaf = Leaf::default();
        leaf.hangs.lock().unwrap().push("a".into());
        let dial = layer().layer(leaf.service());
        for _ in 0..2 {
            dial.clone().oneshot(candidates(&["a", "b"])).await.unwrap();
        }
        assert_eq!((leaf.dials("a"), leaf.dials("b")), (1, 2));
    }

    #[tokio::test]
    async fn what_another_pod_would_share_is_said_at_once() {
        for refusal in Refusal::ALL {
            let leaf = Leaf::default();
            for pod in ["a", "b"] {
                leaf.refuses.lock().unwrap().insert(pod.into(), refusal);
            }
            let error = layer()
                .layer(leaf.service())
                .oneshot(candidates(&["a", "b"]))
                .await
                .unwrap_err();
            assert_eq!(error.refusal(), refusal);
            let dials = leaf.dials("a") + leaf.dials("b");
            let shared = [
                Refusal::ClusterAway,
                Refusal::Forbidden,
                Refusal::Denied,
                Refusal::Overloaded,
                Refusal::Unauthenticated,
            ];
            assert_eq!(
                dials,
                if shared.contains(&refusal) { 1 } else { 2 },
                "{refusal}"
            );
            assert!(
                dials == 1 || error.to_string().contains("none of 2 endpoints"),
                "{error}"
            );
        }
    }

    /// Every Pod's dial ends with one of these errors, in turn.
    async fn all_fail(errors: Vec<ForwardError>, service: Option<&str>) -> ConnectError {
        let pods: Vec<_> = (0..errors.len()).map(|i| format!("web-{i}")).collect();
        let errors = Arc::new(Mutex::new(errors));
        let leaf = service_fn(move |_: PodPort| {
            let error = errors.lock().unwrap().pop().unwrap();
            async move { Err::<DuplexStream, BoxError>(error.into()) }
        });
        let pods: Vec<_> = pods.iter().map(String::as_str).collect();
        let mut candidates = candidates(&pods);
        candidates.service = service.map(str::to_owned);
        let dial = layer().layer(leaf);
        dial.oneshot(candidates).await.unwrap_err()
    }

    #[tokio::test]
    async fn pods_that_are_gone_are_a_service_that_is_not_ready() {
        let gone = || ForwardError::PodNotFound {
            pod: "shop/web-0".into(),
        };
        let refused = || ForwardError::Refused {
            to: "shop/web-0:80".into(),
            said: String::new(),
        };
        for n in 1..3 {
            let gone = (0..n).map(|_| gone()).collect();
            let error = all_fail(gone, Some("shop/web")).await;
            assert_eq!(error.refusal(), Refusal::NotReady);
            assert!(
                error
                    .to_string()
                    .starts_with("service shop/web port 80 has no ready endpoint"),
                "{error}"
            );
        }
        // A Pod that was asked for by itself.
        let error = all_fail(vec![gone()], None).await;
        assert_eq!(error.refusal(), Refusal::NameNotFound);
        // One that was met says more than those that are gone.
        for errors in [vec![gone(), refused()], vec![refused(), gone()]] {
            let error = all_fail(errors, Some("shop/web")).await;
            assert_eq!(error.refusal(), Refusal::Refused);
            assert!(error.to_string().contains("none of 2 endpoints"), "{error}");
        }
    }

    #[tokio::test]
    async fn no_endpoint_is_a_refusal_and_not_a_panic() {
        let error = layer()
            .layer(Leaf::default().service())
            .oneshot(candidates(&[]))
            .await
            .unwrap_err();
        assert_eq!(error.refusal(), Refusal::NotReady);
    }
}
