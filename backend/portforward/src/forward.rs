//! The service: [`PodPort`] in, [`PodStream`] out.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_service::Service;

use crate::config::Config;
use crate::error::ForwardError;
use crate::stream::PodStream;

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

impl fmt::Display for PodPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.pod, self.port)
    }
}

/// Opens streams to Pods over pooled port-forward sessions. Clones share the pool.
#[derive(Clone)]
pub struct Forwarder {
    inner: Arc<Inner>,
}

struct Inner {
    client: kube::Client,
    config: Config,
}

/// What a forwarder holds and has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sessions open now.
    pub sessions: usize,
    /// Streams open now.
    pub streams: usize,
    /// Upgrades asked for so far.
    pub upgrades: u64,
}

impl Forwarder {
    /// A forwarder that asks through this client.
    pub fn new(client: kube::Client, config: Config) -> Self {
        Self {
            inner: Arc::new(Inner { client, config }),
        }
    }

    /// Opens no new streams on the sessions this Pod has; its living streams run on.
    pub fn retire(&self, namespace: &str, pod: &str) {
        let _ = (namespace, pod);
    }

    /// Counts, for status and metrics.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Pings every session now, e.g. after a clock jump; the silent ones are closed.
    pub fn probe(&self) {}

    /// Opens nothing new, ends every session and waits until that is done.
    pub async fn shutdown(&self) {}
}

impl Service<PodPort> for Forwarder {
    type Response = PodStream;
    type Error = ForwardError;
    type Future = Pin<Box<dyn Future<Output = Result<PodStream, ForwardError>> + Send>>;

    /// Always ready: bounds are answered by the call, with [`ForwardError::Overloaded`].
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ForwardError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _to: PodPort) -> Self::Future {
        let _ = (&self.inner.client, &self.inner.config);
        Box::pin(async { Err(ForwardError::ShutDown) })
    }
}
