//! Only what may be given a new connection.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use kubevpn_cluster::Candidates;
use kubevpn_target::{BoxError, ConnectError, classify};
use tower::ServiceExt as _;
use tower_layer::Layer;
use tower_service::Service;

/// Makes [`OnlyReady`]s.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnlyReadyLayer;

impl<S> Layer<S> for OnlyReadyLayer {
    type Service = OnlyReady<S>;

    fn layer(&self, inner: S) -> Self::Service {
        OnlyReady { inner }
    }
}

/// Keeps the endpoints that are ready or, when none is, those that still serve while they terminate.
///
/// Without this layer every endpoint there is may be dialled. Always ready; the inner service is waited for inside
/// the call. When nothing is usable the call is refused with how many endpoints exist and why they are not.
#[derive(Clone, Debug)]
pub struct OnlyReady<S> {
    inner: S,
}

impl<S> Service<Candidates> for OnlyReady<S>
where
    S: Service<Candidates> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut candidates: Candidates) -> Self::Future {
        let inner = self.inner.clone();
        Box::pin(async move {
            candidates.endpoints = candidates.usable()?.into_iter().cloned().collect();
            inner
                .oneshot(candidates)
                .await
                .map_err(|e| classify(e.into()))
        })
    }
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
        let inner = service_fn(|candidates: Candidates| async move {
            Ok::<_, BoxError>(
                candidates
                    .endpoints
                    .into_iter()
                    .map(|e| e.pod.name)
                    .collect(),
            )
        });
        OnlyReadyLayer
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
}
