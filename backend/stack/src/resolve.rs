//! From what was asked for to what could serve it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use kubevpn_cluster::{Answer, Candidates, Cluster};
use kubevpn_target::{BoxError, ConnectError, Target, classify};
use tower::ServiceExt as _;
use tower_layer::Layer;
use tower_service::Service;

use crate::egress::Elsewhere;
use crate::either::Either;
use crate::host::Outbound;

/// Makes [`Resolve`]s that ask one [`Cluster`].
#[derive(Clone)]
pub struct ResolveLayer<E> {
    cluster: Cluster,
    elsewhere: E,
}

impl<E> ResolveLayer<E> {
    /// Targets are looked up here; what is no Pod's goes to `elsewhere`, an [`Egress`](crate::Egress) as a rule.
    pub fn new(cluster: Cluster, elsewhere: E) -> Self {
        Self { cluster, elsewhere }
    }
}

impl<S, E: Clone> Layer<S> for ResolveLayer<E> {
    type Service = Resolve<S, E>;

    fn layer(&self, pods: S) -> Self::Service {
        Resolve {
            pods,
            elsewhere: self.elsewhere.clone(),
            cluster: self.cluster.clone(),
        }
    }
}

/// Looks a target up in the cluster and hands the Pods that could serve it on, or what else it means.
///
/// Always ready; the inner services are waited for inside the call.
#[derive(Clone)]
pub struct Resolve<S, E> {
    pods: S,
    elsewhere: E,
    cluster: Cluster,
}

impl<S, E> Service<Target> for Resolve<S, E>
where
    S: Service<Candidates> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    E: Service<Elsewhere> + Clone + Send + 'static,
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
        let Self {
            pods,
            elsewhere,
            cluster,
        } = self.clone();
        Box::pin(async move {
            let elsewhere_to = match cluster.lookup(&target.host, target.port).await? {
                Answer::Pods(candidates) => {
                    let stream = pods.oneshot(candidates).await;
                    return stream.map(Either::A).map_err(|e| classify(e.into()));
                }
                Answer::ApiServer => Elsewhere::ApiServer(target),
                Answer::Outside(outside) => Elsewhere::Outside(Outbound {
                    target,
                    to: vec![outside.host],
                    learned_from: outside.learned_from,
                }),
                Answer::Dns(question) => return Err(question.otherwise.into()),
            };
            let stream = elsewhere.oneshot(elsewhere_to).await;
            stream.map(Either::B).map_err(|e| classify(e.into()))
        })
    }
}
