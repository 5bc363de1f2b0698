//! From what was asked for to what could serve it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use kubevpn_cluster::{Answer, Candidates, Cluster, Outside};
use kubevpn_target::{BoxError, ConnectError, Refusal, Target, classify};
use tower::ServiceExt as _;
use tower_layer::Layer;
use tower_service::Service;

/// Makes [`Resolve`]s that ask one [`Cluster`].
#[derive(Clone)]
pub struct ResolveLayer {
    cluster: Cluster,
}

impl ResolveLayer {
    /// Targets are looked up here.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }
}

impl<S> Layer<S> for ResolveLayer {
    type Service = Resolve<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Resolve {
            inner,
            cluster: self.cluster.clone(),
        }
    }
}

/// Looks a target up in the cluster and hands the Pods that could serve it on.
///
/// Always ready; the inner service is waited for inside the call. What is no Pod's ends here: a host outside the
/// cluster is [`Refusal::Denied`].
#[derive(Clone)]
pub struct Resolve<S> {
    inner: S,
    cluster: Cluster,
}

impl<S> Service<Target> for Resolve<S>
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

    fn call(&mut self, target: Target) -> Self::Future {
        let Self { inner, cluster } = self.clone();
        Box::pin(async move {
            match cluster.lookup(&target.host, target.port).await? {
                Answer::Pods(candidates) => {
                    tracing::debug!(
                        %target,
                        asked = %candidates.asked,
                        endpoints = candidates.endpoints.len(),
                        "resolved"
                    );
                    let response = inner.oneshot(candidates).await;
                    response.map_err(|e| classify(e.into()))
                }
                Answer::ApiServer => Err(ConnectError::new(
                    Refusal::Unreachable,
                    format!(
                        "{target} is the API server itself, which no Pod serves: use the kubeconfig's server address"
                    ),
                )),
                Answer::Outside(outside) => Err(denied(&target, &outside)),
                Answer::Dns(question) => Err(question.otherwise.into()),
            }
        })
    }
}

fn denied(target: &Target, outside: &Outside) -> ConnectError {
    let host = &outside.host;
    let sentence = match &outside.learned_from {
        Some(learned_from) => format!(
            "{target} is {learned_from}, which points to {host}: a host outside the cluster, which this proxy does not dial"
        ),
        None => format!(
            "{host} is a host outside the cluster, which this proxy does not dial: ask for it without the proxy"
        ),
    };
    ConnectError::new(Refusal::Denied, sentence)
}
