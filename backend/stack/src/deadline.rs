//! One time limit for everything between a target and its stream.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use kubevpn_target::{BoxError, ConnectError, Refusal, Target, classify};
use tower_layer::Layer;
use tower_service::Service;

/// Layer of [`Deadline`].
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer {
    limit: Duration,
}

impl DeadlineLayer {
    /// Limits each call to this time, from resolution to the open stream.
    pub fn new(limit: Duration) -> Self {
        Self { limit }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadline {
            inner,
            limit: self.limit,
        }
    }
}

/// Ends a call that takes too long with [`Refusal::TimedOut`], and drops its future.
///
/// Only the opening of a stream is limited, not its life.
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
    limit: Duration,
}

impl<S> Deadline<S> {
    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S> Service<Target> for Deadline<S>
where
    S: Service<Target>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.inner.poll_ready(cx).map_err(|e| classify(e.into()))
    }

    fn call(&mut self, target: Target) -> Self::Future {
        let limit = self.limit;
        let asked = target.to_string();
        let response = self.inner.call(target);
        Box::pin(async move {
            match tokio::time::timeout(limit, response).await {
                Ok(result) => result.map_err(|e| classify(e.into())),
                Err(_) => Err(ConnectError::new(
                    Refusal::TimedOut,
                    format!(
                        "{asked} was not reached within {} s: the cluster or the network to it is slow, try again",
                        limit.as_secs()
                    ),
                )),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use kubevpn_target::Origin;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_is_ended() {
        let hangs = service_fn(|_: Target| std::future::pending::<Result<(), BoxError>>());
        let limited = DeadlineLayer::new(Duration::from_secs(30)).layer(hangs);
        let target = Target::parse("web:80", Origin::default()).unwrap();
        let before = tokio::time::Instant::now();
        let error = limited.oneshot(target).await.unwrap_err();
        assert_eq!(error.refusal(), Refusal::TimedOut);
        assert!(
            error
                .to_string()
                .starts_with("web:80 was not reached within 30 s"),
            "{error}"
        );
        assert_eq!(before.elapsed(), Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_passes_through_classified() {
        let refuses = service_fn(|_: Target| async {
            Err::<(), BoxError>(ConnectError::new(Refusal::NotReady, "none ready").into())
        });
        let limited = DeadlineLayer::new(Duration::from_secs(30)).layer(refuses);
        let target = Target::parse("web:80", Origin::default()).unwrap();
        assert_eq!(
            limited.oneshot(target).await.unwrap_err().refusal(),
            Refusal::NotReady
        );
    }
}
