//! Whether Pods are still what they were, by the API server's own word: a watch may be behind.
//!
//! A Pod is marked as deleted before its node is told to end it, and the API server reads one object from its store,
//! not from a cache: a Pod that refuses because it ends is known to end by whoever asks then. One that is what it was has
//! answered for its Service, whether or not others have come since.

use k8s_openapi::api::core::v1::Pod;
use tokio::task::JoinSet;

use super::Cluster;
use crate::{Candidates, Endpoint, Fate, Readiness};

/// How many Pods are asked for.
const ASKED: usize = 4;

impl Cluster {
    pub(crate) async fn fate(&self, candidates: &Candidates) -> Fate {
        let mut fates = JoinSet::new();
        let usable = candidates.usable().unwrap_or_default();
        for endpoint in usable.into_iter().take(ASKED) {
            let (cluster, endpoint) = (self.clone(), endpoint.clone());
            let published = candidates.publishes_unready;
            fates.spawn(async move {
                match cluster.shared.view.pod_now(&endpoint.pod).await {
                    Ok(pod) => fate(pod.as_ref(), &endpoint, published),
                    Err(failure) => {
                        tracing::debug!("{failure}");
                        Fate::Unclear
                    }
                }
            });
        }
        let fates = fates.join_all().await;
        fates.into_iter().max().unwrap_or(Fate::Unclear)
    }
}

fn fate(pod: Option<&Pod>, known: &Endpoint, published: bool) -> Fate {
    let same = |pod: &&Pod| known.pod.uid.is_none() || known.pod.uid == pod.metadata.uid;
    let Some(pod) = pod.filter(same) else {
        return Fate::Ended;
    };
    let status = pod.status.as_ref();
    let phase = status.and_then(|s| s.phase.as_deref());
    if let Some("Succeeded" | "Failed") = phase {
        return Fate::Ended;
    }
    let mut conditions = status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
    match pod.metadata.deletion_timestamp.is_some() {
        // Endpoints of such a Service do not tell; of others this one did. What replaces it may be there.
        true if published || known.readiness != Readiness::Ready => Fate::Unclear,
        true => Fate::Ended,
        false if ready || published => Fate::Same,
        false => Fate::Unclear,
    }
}
