//! The service: [`PodPort`] in, [`PodStream`] out.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_service::Service;

use crate::config::{Config, Transport};
use crate::error::ForwardError;
use crate::pool::Pool;
use crate::stream::PodStream;
use crate::transport::Api;

/// A port of one Pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodPort {
    /// The Pod's namespace.
    pub namespace: String,
    /// The Pod's name.
    pub pod: String,
    /// The Pod's UID where it is known: a Pod of the same name that came later is another one.
    pub uid: Option<String>,
    /// The TCP port inside the Pod.
    pub port: u16,
}

/// `namespace/pod:port`
impl fmt::Display for PodPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.pod, self.port)
    }
}

impl PodPort {
    /// `namespace/pod`
    pub(crate) fn pod_name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }
}

/// A Pod: whose sessions are whose.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodId {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) uid: Option<String>,
}

impl PodId {
    /// Whether the names are such that a Pod can have them; they become part of a URL.
    pub(crate) fn is_valid(&self) -> bool {
        [&self.namespace, &self.pod].into_iter().all(|name| {
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
            !name.is_empty() && !name.starts_with('.') && name.bytes().all(fits)
        })
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

impl From<&PodPort> for PodId {
    fn from(to: &PodPort) -> Self {
        Self {
            namespace: to.namespace.clone(),
            pod: to.pod.clone(),
            uid: to.uid.clone(),
        }
    }
}

/// Opens streams to Pods over pooled port-forward sessions. Clones share the pool.
///
/// Dropping a dial's future gives the dial up; an upgrade that it began is finished and kept for the next. Open
/// streams outlive the last clone, and the sessions end with the last of them.
#[derive(Clone)]
pub struct Forwarder {
    pool: Arc<Pool>,
}

/// What a forwarder holds and has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Sessions open now, by transport in the order of [`Transport::ALL`].
    pub sessions: [usize; Transport::ALL.len()],
    /// Connections open now, the lingering ones among them.
    pub streams: usize,
    /// Connections whose client has ended and whose Pod is still listened to.
    pub lingering: usize,
    /// Bytes received on sessions that their clients have not read.
    pub unread: usize,
    /// Upgrades asked for so far, refused ones among them.
    pub upgrades: u64,
    /// Connections opened so far.
    pub opened: u64,
    /// Dials that the Pod's side refused.
    pub refused: u64,
    /// Sessions closed because they had stopped answering.
    pub evicted: u64,
    /// Sessions that were found to have stopped carrying some of their connections.
    pub wedged: u64,
    /// Connections reset because their client did not read while others waited.
    pub stalled: u64,
}

impl Forwarder {
    /// A forwarder that asks through this client, whose `upgrade` requests must go over HTTP/1.1.
    pub fn new(client: kube::Client, config: Config) -> Self {
        let config = Arc::new(config);
        let api = Api::new(client, config.clone());
        Self {
            pool: Pool::new(config, Box::new(api)),
        }
    }

    /// Opens no new streams on the sessions this Pod has; its living streams run on.
    ///
    /// For a Pod that is deleted or turns unready. A later dial to it opens a new session.
    pub fn retire(&self, namespace: &str, pod: &str) {
        self.pool.retire(namespace, pod);
    }

    /// Counts, for status and metrics.
    pub fn stats(&self) -> Stats {
        self.pool.stats()
    }

    /// Pings every session now, e.g. after a clock jump; the silent ones are closed.
    ///
    /// Clock jumps that the system's two clocks disagree on are noticed without it.
    pub fn probe(&self) {
        self.pool.probe_all();
    }

    /// Opens nothing new, ends every session and waits until that is done. Open streams fail.
    pub async fn shutdown(&self) {
        self.pool.shutdown().await;
    }
}

impl Service<PodPort> for Forwarder {
    type Response = PodStream;
    type Error = ForwardError;
    type Future = Pin<Box<dyn Future<Output = Result<PodStream, ForwardError>> + Send>>;

    /// Always ready: bounds are answered by the call, with [`ForwardError::Overloaded`].
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ForwardError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: PodPort) -> Self::Future {
        Box::pin(self.pool.clone().dial(to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_pod_has_stay_out_of_urls() {
        let valid = |namespace: &str, pod: &str| {
            let (namespace, pod) = (namespace.into(), pod.into());
            let uid = None;
            PodId {
                namespace,
                pod,
                uid,
            }
            .is_valid()
        };
        assert!(valid("shop", "web-0.x"));
        for bad in ["", ".", "..", "a/b", "a?b", "a%2fb", "a b", "A", "a\n"] {
            assert!(!valid("shop", bad), "{bad:?}");
            assert!(!valid(bad, "web-0"), "{bad:?}");
        }
    }
}
