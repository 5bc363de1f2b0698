//! Sessions opened before a connection asks for them.

use std::sync::Arc;

use tokio::time::Instant;

use crate::pod::{PodId, PodPort, PodSessionState};
use crate::pool::state::{PodSessions, SessionEntry};
use crate::pool::{Pool, spawn};
use crate::transport::BoxFuture;

impl Pool {
    /// Opens a session to the Pod if there is none and none is being opened, within the limits.
    ///
    /// The limit on all sessions is hard here: a session opened ahead closes no other.
    pub(crate) fn warm(self: &Arc<Self>, to: &PodPort) {
        let id = Arc::new(PodId::from(to));
        if !id.is_valid() || !self.opener().has_sessions() {
            return;
        }
        self.start_keeping();
        let upgrade = self.open_ahead(&id);
        upgrade.into_iter().for_each(spawn);
    }

    fn open_ahead(self: &Arc<Self>, id: &Arc<PodId>) -> Option<BoxFuture<()>> {
        let now = self.epoch.now();
        let mut state = self.state();
        let known = state.pods.get(id);
        let needless = known.is_some_and(|pod| {
            let is_full = pod.held() >= 2 * self.config.sessions_per_pod;
            !pod.opening.is_empty()
                || pod.is_cold(now)
                || is_full
                || pod.sessions.iter().any(is_fit)
        });
        let full = state.sessions >= self.config.sessions || state.ahead() >= self.config.ahead;
        if state.shut || needless || full {
            return None;
        }
        tracing::debug!(pod = %id, "opening a session ahead");
        Some(self.open(&mut state, id, true))
    }

    /// What a new connection to the Pod would find.
    pub(crate) fn way(&self, to: &PodPort) -> PodSessionState {
        let state = self.state();
        let is_in_time = |began: &&Instant| began.elapsed() < self.config.transport_stagger;
        let in_time = |pod: &PodSessions| pod.opening.iter().filter(is_in_time).count();
        match state.pods.get(&PodId::from(to)) {
            Some(pod) if pod.sessions.iter().any(is_fit) => PodSessionState::Open,
            Some(pod) if in_time(pod) > pod.waiting => PodSessionState::Opening,
            _ => PodSessionState::Closed,
        }
    }

    /// Whether upgrades take long, judged by the fastest of the last.
    pub(crate) fn is_far(&self) -> bool {
        !self.state().upgrades_take(self.config.share_after)
    }
}

fn is_fit(entry: &SessionEntry) -> bool {
    !entry.retired && entry.handle.is_open() && !entry.probe.is_suspect()
}
