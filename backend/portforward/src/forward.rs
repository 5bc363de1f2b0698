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
use crate::pod::{PodPort, Way};
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
    expect: Arc<dyn Fn() + Send + Sync>,
}

impl Forwarder {
    /// A forwarder that asks through this client, whose `upgrade` requests must go over HTTP/1.1.
    pub fn new(client: kube::Client, config: Config) -> Self {
        let config = Arc::new(config);
        let api = Api::new(client, config.clone());
        Self {
            pool: Pool::new(config, Box::new(api)),
            expect: Arc::new(|| {}),
        }
    }

    /// The same, which tells `expect` when a session will likely be asked for soon: its connection can be made ahead.
    #[must_use]
    pub fn expecting(self, expect: impl Fn() + Send + Sync + 'static) -> Self {
        let expect = Arc::new(expect);
        Self { expect, ..self }
    }

    /// Says that a connection to some Pod is likely soon.
    pub fn expect(&self) {
        (self.expect)();
    }

    /// Opens a session to the Pod, for connections that are likely to come, where it has none. Nothing happens where
    /// [`Config::ahead`] sessions are unused already, where all sessions together are at their bound, and for some
    /// seconds after it failed. Must be called within a tokio runtime.
    pub fn warm(&self, to: &PodPort) {
        self.pool.warm(to);
    }

    /// Whether a connection to the Pod finds a session.
    pub fn way(&self, to: &PodPort) -> Way {
        self.pool.way(to)
    }

    /// Whether the API server is so far that no upgrade is waited for where a session can be shared
    /// ([`Config::share_after`]).
    pub fn is_far(&self) -> bool {
        self.pool.is_far()
    }

    /// Tells what becomes of sessions from now on; the first to be told stays the only one. Called at once, under a lock at
    /// times: it must be quick, not wait, and not ask the forwarder anything.
    pub fn tell(&self, told: impl Fn(SessionNews<'_>) + Send + Sync + 'static) {
        self.pool.tell_to(Arc::new(told));
    }

    /// The sessions that are open, in no order.
    pub fn sessions(&self) -> Vec<SessionState> {
        self.pool.sessions()
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
