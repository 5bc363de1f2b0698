//! Pod checks: whether Pods still exist unchanged, read from the API server because a watch may be behind.
//!
//! A Pod is marked as deleted before its node is told to end it, and the API server reads a single object from its store,
//! not from a cache. So if a Pod refuses connections because it is ending, reading it at that time shows that. If the Pod is
//! unchanged, its refusal is the answer of its Service.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::task::JoinSet;

use crate::store::Store;
use crate::{Candidates, Endpoint, Readiness};

/// Upper bound on the Pods read for one check.
const ASKED: usize = 4;

/// Current state of Pods that failed a dial, ordered by precedence: for several Pods the greatest variant wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodCheck {
    /// The Pods are unchanged.
    Same,
    /// Reading is forbidden, the API server did not answer, or the answer is neither of the others.
    Unclear,
    /// A Pod is gone or terminating, which was not known.
    Ended,
}

/// Reads the usable Pods from the API server, in parallel and at most [`ASKED`] of them.
pub(crate) async fn check_pods(store: &Arc<Store>, candidates: &Candidates) -> PodCheck {
    let mut checks = JoinSet::new();
    let usable = candidates.usable().unwrap_or_default();
    for endpoint in usable.into_iter().take(ASKED) {
        let (store, endpoint) = (store.clone(), endpoint.clone());
        let published = candidates.publishes_unready;
        checks.spawn(async move {
            match store.pod_now(&endpoint.pod).await {
                Ok(pod) => check(pod.as_ref(), &endpoint, published),
                Err(failure) => {
                    tracing::debug!("{failure}");
                    PodCheck::Unclear
                }
            }
        });
    }
    let checks = checks.join_all().await;
    checks.into_iter().max().unwrap_or(PodCheck::Unclear)
}

fn check(pod: Option<&Pod>, known: &Endpoint, published: bool) -> PodCheck {
    let same = |pod: &&Pod| known.pod.uid.is_none() || known.pod.uid == pod.metadata.uid;
    let Some(pod) = pod.filter(same) else {
        return PodCheck::Ended;
    };
    let status = pod.status.as_ref();
    let phase = status.and_then(|s| s.phase.as_deref());
    if let Some("Succeeded" | "Failed") = phase {
        return PodCheck::Ended;
    }
    let mut conditions = status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
    match pod.metadata.deletion_timestamp.is_some() {
        // Endpoints of such a Service do not show readiness. A Pod that was not ready before says nothing new.
        true if published || known.readiness != Readiness::Ready => PodCheck::Unclear,
        true => PodCheck::Ended,
        false if ready || published => PodCheck::Same,
        false => PodCheck::Unclear,
    }
}
