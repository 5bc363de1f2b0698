//! The service: [`PodPort`] in, [`PodStream`] out.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_service::Service;

use crate::config::Config;
use crate::dial::dial;
use crate::error::ForwardError;
use crate::news::{SessionNews, SessionState};
use crate::pod::{PodPort, PodSessionState};
use crate::pool::Pool;
use crate::stats::Stats;
use crate::stream::PodStream;
use crate::transport::PortForwardApi;

/// Opens streams to Pods over pooled port-forward sessions. Clones share the pool.
///
/// Cancellation: dropping a dial's future gives the dial up; an upgrade that it started is finished and kept for the next
/// dial. Open streams outlive the last clone, and the sessions end with the last stream.
#[derive(Clone)]
pub struct Forwarder {
    pool: Arc<Pool>,
    expect: Arc<dyn Fn() + Send + Sync>,
}

impl Forwarder {
    /// A forwarder that uses this client, which has to send upgrade requests over HTTP/1.1.
    pub fn new(client: kube::Client, config: Config) -> Self {
        let config = Arc::new(config);
        let api = PortForwardApi::new(client, config.clone());
        Self {
            pool: Pool::new(config, Box::new(api)),
            expect: Arc::new(|| {}),
        }
    }

    /// Calls `expect` when an upgrade is likely soon, so that its connection can be made ahead.
    #[must_use]
    pub fn expecting(self, expect: impl Fn() + Send + Sync + 'static) -> Self {
        let expect = Arc::new(expect);
        Self { expect, ..self }
    }

    /// Announces that a connection to some Pod is likely soon.
    pub fn expect(&self) {
        (self.expect)();
    }

    /// Opens a session to the Pod for connections that are likely to come, unless it has one. Nothing happens if
    /// [`Config::ahead`] sessions are unused already, if the limit on all sessions is reached, or for 5 s after a
    /// failure. Must be called within a tokio runtime.
    pub fn warm(&self, to: &PodPort) {
        self.pool.warm(to);
    }

    /// Whether a new connection to the Pod finds a session.
    pub fn way(&self, to: &PodPort) -> PodSessionState {
        self.pool.way(to)
    }

    /// Whether upgrades take so long that a connection shares a session instead of waiting for one
    /// ([`Config::share_after`]).
    pub fn is_far(&self) -> bool {
        self.pool.is_far()
    }

    /// Reports changes of sessions to `told` from now on; only the first call has an effect. `told` is called synchronously,
    /// sometimes under a lock: it must be quick, must not block, and must not call the forwarder.
    pub fn tell(&self, told: impl Fn(SessionNews<'_>) + Send + Sync + 'static) {
        self.pool.tell_to(Arc::new(told));
    }

    /// The open sessions, in no particular order.
    pub fn sessions(&self) -> Vec<SessionState> {
        self.pool.sessions()
    }

    /// Counters for status and metrics.
    pub fn stats(&self) -> Stats {
        self.pool.stats()
    }

    /// Pings every session now, e.g. after a clock jump. Sessions that stay silent are closed.
    ///
    /// A jump that shows as a difference between the system's two clocks is noticed without this call.
    pub fn probe(&self) {
        self.pool.probe_all();
    }

    /// Refuses new dials, ends every session and waits until all have ended. Open streams fail. Cancellation: dropping the
    /// future stops the waiting only.
    pub async fn shutdown(&self) {
        self.pool.shutdown().await;
    }
}

impl Service<PodPort> for Forwarder {
    type Response = PodStream;
    type Error = ForwardError;
    type Future = Pin<Box<dyn Future<Output = Result<PodStream, ForwardError>> + Send>>;

    /// Always ready: a limit that is reached is an error of the call, [`ForwardError::Overloaded`].
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ForwardError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: PodPort) -> Self::Future {
        Box::pin(dial(self.pool.clone(), to))
    }
}
