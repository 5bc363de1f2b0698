//! The service: [`PodPort`] in, [`PodStream`] out.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_service::Service;

use crate::config::Config;
use crate::dial::dial;
use crate::error::ForwardError;
use crate::pod::PodPort;
use crate::pool::Pool;
use crate::stats::Stats;
use crate::stream::PodStream;
use crate::transport::Api;

/// Opens streams to Pods over pooled port-forward sessions. Clones share the pool.
///
/// Dropping a dial's future gives the dial up; an upgrade that it began is finished and kept for the next. Open
/// streams outlive the last clone, and the sessions end with the last of them.
#[derive(Clone)]
pub struct Forwarder {
    pool: Arc<Pool>,
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
        Box::pin(dial(self.pool.clone(), to))
    }
}
