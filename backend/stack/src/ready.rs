//! Only what may be given a new connection; waiting for it, if told to.

use std::collections::HashSet;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use kubevpn_cluster::{Candidates, Fate, LookupError, PodRef};
use kubevpn_target::{BoxError, ConnectError, Refusal, classify};
use tokio::time::{Instant, timeout};
use tower::ServiceExt as _;
use tower_layer::Layer;
use tower_service::Service;

use crate::failover::another_may_do_better;

/// How long the news that a Pod is gone, which a dial had first, may take to be seen here: a watch tells it
/// within milliseconds; where nothing may be watched, it is read at most 2 s later.
const NEWS: Duration = Duration::from_secs(3);

/// The same where a Service's Pods failed in another way and the API server does not say whether they are ending. As a
/// rule they are not, and the client waits for its answer: long enough for a watch that broke to be back.
const DOUBT: Duration = Duration::from_millis(500);

/// How often a call takes Pods that have replaced those that failed.
const REPLACED: usize = 3;

/// Makes [`OnlyReady`]s.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnlyReadyLayer {
    wait: Duration,
}

impl OnlyReadyLayer {
    /// Without a ready endpoint, a call is held this long; zero refuses it at once.
    ///
    /// A [`Deadline`](crate::Deadline) outside has to allow for it.
    pub fn waiting(wait: Duration) -> Self {
        Self { wait }
    }
}

impl<S> Layer<S> for OnlyReadyLayer {
    type Service = OnlyReady<S>;

    fn layer(&self, inner: S) -> Self::Service {
        OnlyReady {
            inner,
            wait: self.wait,
        }
    }
}

/// Keeps the endpoints that are ready or, when none is, those that still serve while they terminate.
///
/// Without this layer every endpoint there is may be dialled. Always ready; the inner service is waited for inside
/// the call. When nothing is usable the call waits, if it may, for the moment something is; else it is refused with
/// how many endpoints exist and why they are not. When the inner service finds that what was ready is
/// gone ([`Refusal::NotReady`]), or no endpoint of a Service can be reached, Pods that the watches tell of in the
/// next moments are dialled too. Unreachable ones are asked for first ([`Candidates::fate`]): where they are what they
/// were, the failure stands at once.
///
/// Dropping a call's future gives the wait up.
#[derive(Clone, Debug)]
pub struct OnlyReady<S> {
    inner: S,
    wait: Duration,
}

impl<S> Service<Candidates> for OnlyReady<S>
where
    S: Service<Candidates> + Clone + Send + 'static,
    S::Response: Send,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, candidates: Candidates) -> Self::Future {
        let Self { inner, wait } = self.clone();
        Box::pin(async move {
            let mut candidates = ready(candidates, wait).await?;
            let mut dialled = HashSet::new();
            let mut usable = only_ready(&candidates, &dialled)?;
            let mut rounds = 0;
            loop {
                dialled.extend(usable.endpoints.iter().map(|e| e.pod.clone()));
                let answered = inner.clone().oneshot(usable).await;
                let error = match answered.map_err(|e| classify(e.into())) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => error,
                };
                rounds += 1;
                if rounds > REPLACED {
                    return Err(error);
                }
                let news = NEWS.max(wait);
                let others = replaced(&candidates, &dialled, wait);
                let others = match error.refusal() {
                    Refusal::NotReady => timeout(news, others).await.ok().flatten(),
                    _ if candidates.service.is_some() && another_may_do_better(&error) => {
                        in_doubt(&candidates, others, news).await
                    }
                    _ => return Err(error),
                };
                let Some(others) = others else {
                    return Err(error);
                };
                tracing::debug!("{error}: there are others now");
                (candidates, usable) = others;
            }
        })
    }
}

/// The candidates as soon as there is a usable one.
async fn ready(mut candidates: Candidates, wait: Duration) -> Result<Candidates, ConnectError> {
    let Err(mut unready) = candidates.usable().map(drop) else {
        return Ok(candidates);
    };
    if wait.is_zero() {
        return Err(unready.into());
    }
    let usable = async {
        loop {
            let LookupError::NotReady { .. } = unready else {
                return Err(unready.clone());
            };
            tracing::debug!("{unready}, waiting");
            candidates = candidates.refreshed().await?;
            match candidates.usable().map(drop) {
                Ok(()) => return Ok(()),
                Err(error) => unready = error,
            }
        }
    };
    match timeout(wait, usable).await {
        Ok(Ok(())) => Ok(candidates),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(ConnectError::new(
            Refusal::TimedOut,
            format!("{unready}, and that did not change within {wait:?}"),
        )),
    }
}

/// What is there now, and the usable of it that were not dialled.
async fn replaced(
    candidates: &Candidates,
    dialled: &HashSet<PodRef>,
    wait: Duration,
) -> Option<(Candidates, Candidates)> {
    let mut candidates = candidates.clone();
    loop {
        candidates = candidates.refreshed().await.ok()?;
        match only_ready(&candidates, dialled) {
            Ok(ready) if !ready.endpoints.is_empty() => return Some((candidates, ready)),
            // It is known by now that they are gone; what comes is worth waiting for if that is wanted.
            Err(LookupError::NotReady { .. }) if wait.is_zero() => return None,
            Ok(_) | Err(LookupError::NotReady { .. }) => {}
            Err(_) => return None,
        }
    }
}

/// What `others` finds while it is not known that the Pods that failed are what they were; for as long as `news` where
/// they are not.
async fn in_doubt<T>(
    failed: &Candidates,
    others: impl Future<Output = Option<T>>,
    news: Duration,
) -> Option<T> {
    let begun = Instant::now();
    let mut others = pin!(others);
    let fate = tokio::select! {
        found = &mut others => return found,
        fate = timeout(DOUBT, failed.fate()) => fate.unwrap_or(Fate::Unclear),
    };
    let (patience, said) = match fate {
        Fate::Same => (None, "are what they were"),
        Fate::Unclear => (Some(DOUBT), "may not be what they were"),
        Fate::Ended => (Some(news), "are not what they were"),
    };
    tracing::debug!("the pods that failed {said}");
    let left = patience?.saturating_sub(begun.elapsed());
    timeout(left, others).await.ok().flatten()
}

/// The candidates less what is not usable, and less what is known to be gone.
fn only_ready(candidates: &Candidates, gone: &HashSet<PodRef>) -> Result<Candidates, LookupError> {
    let usable = candidates.usable()?.into_iter();
    let usable = usable.filter(|e| !gone.contains(&e.pod)).cloned().collect();
    let mut ready = candidates.clone();
    ready.endpoints = usable;
    Ok(ready)
}

#[cfg(test)]
mod tests {
    use kubevpn_cluster::{Endpoint, PodRef, Readiness};
    use kubevpn_target::Refusal;
    use tower::service_fn;

    use super::*;

    fn endpoint(name: &str, readiness: Readiness) -> Endpoint {
        Endpoint {
            pod: PodRef {
                namespace: "shop".into(),
                name: name.into(),
                uid: None,
            },
            port: 80,
            readiness,
            addresses: Vec::new(),
        }
    }

    async fn passed_on(endpoints: Vec<Endpoint>) -> Result<Vec<String>, ConnectError> {
        waiting(Duration::ZERO, endpoints).await
    }

    async fn waiting(
        wait: Duration,
        endpoints: Vec<Endpoint>,
    ) -> Result<Vec<String>, ConnectError> {
        let inner = service_fn(|candidates: Candidates| async move {
            let names = candidates.endpoints.into_iter().map(|e| e.pod.name);
            Ok::<_, BoxError>(names.collect())
        });
        OnlyReadyLayer::waiting(wait)
            .layer(inner)
            .oneshot(Candidates::new("service shop/web port 80", endpoints))
            .await
    }

    #[tokio::test]
    async fn the_ready_ones_else_those_that_still_serve_else_none() {
        let ready = endpoint("a", Readiness::Ready);
        let serving = endpoint("b", Readiness::ServingTerminating);
        let not = endpoint("c", Readiness::NotReady);
        let all = vec![not.clone(), serving.clone(), ready];
        assert_eq!(passed_on(all).await.unwrap(), ["a"]);
        assert_eq!(passed_on(vec![not.clone(), serving]).await.unwrap(), ["b"]);
        let error = passed_on(vec![not]).await.unwrap_err();
        assert_eq!(error.refusal(), Refusal::NotReady);
        assert!(
            error.to_string().contains("service shop/web port 80"),
            "{error}"
        );
        assert_eq!(
            passed_on(vec![]).await.unwrap_err().refusal(),
            Refusal::NotReady
        );
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends() {
        let before = Instant::now();
        let minute = Duration::from_secs(60);
        let ready = waiting(minute, vec![endpoint("a", Readiness::Ready)]).await;
        assert_eq!(ready.unwrap(), ["a"]);
        assert!(before.elapsed().is_zero());
        let not = vec![endpoint("c", Readiness::NotReady)];
        let error = waiting(minute, not).await.unwrap_err();
        assert_eq!(error.refusal(), Refusal::TimedOut);
        assert_eq!(
            error.to_string(),
            "service shop/web port 80 has no ready endpoint: 1 exists: 1 not ready, \
             and that did not change within 60s"
        );
        assert_eq!(before.elapsed(), minute);
    }
}
