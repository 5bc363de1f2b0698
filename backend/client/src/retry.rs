//! Retries of calls, and their budget.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use kube::client::Body;
use kube::client::retry::RetryPolicy;
use kubevpn_target::BoxError;
use tokio::time::Sleep;
use tower::retry::Policy;
use tower::retry::budget::{Budget, TpsBudget};

/// Retries a second that need no deposit, averaged over [`WINDOW`].
const RESERVE: u32 = 1;
const WINDOW: Duration = Duration::from_secs(10);
/// Answered calls that pay for one retry.
const SHARE: f32 = 0.2;

/// Retries a call after a 429, 503 or 504, as kube does. All calls of a client draw on one budget: a server that is down gets
/// one retry a second and not a multiple of every call. A watch is never retried here: its loop has a back-off of its own.
#[derive(Clone)]
pub(crate) struct Retries {
    policy: RetryPolicy,
    budget: Arc<TpsBudget>,
}

impl Retries {
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        Self {
            policy,
            budget: Arc::new(TpsBudget::new(WINDOW, RESERVE, SHARE)),
        }
    }
}

impl<B> Policy<Request<Body>, Response<B>, BoxError> for Retries {
    type Future = Sleep;

    fn retry(
        &mut self,
        request: &mut Request<Body>,
        result: &mut Result<Response<B>, BoxError>,
    ) -> Option<Sleep> {
        let wait = self.policy.retry(request, result);
        if wait.is_none() && result.is_ok() {
            self.budget.deposit();
        }
        wait.filter(|_| !is_watch(request) && self.budget.withdraw())
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        if is_watch(request) {
            return None;
        }
        Policy::<_, Response<B>, BoxError>::clone_request(&mut self.policy, request)
    }
}

fn is_watch(request: &Request<Body>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query
        .split('&')
        .any(|pair| matches!(pair, "watch=1" | "watch=true"))
}
