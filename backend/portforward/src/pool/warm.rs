//! Sessions opened before a connection asks for them.

use std::sync::Arc;

use crate::pod::{PodId, PodPort};
use crate::pool::Pool;
use crate::pool::state::Entry;

impl Pool {
    /// Opens a session to the Pod where there is none and none is being opened, within the bounds.
    ///
    /// The limit on all sessions is hard here: a session opened ahead closes no other.
    pub(crate) fn warm(self: &Arc<Self>, to: &PodPort) {
        let id = Arc::new(PodId::from(to));
        if !id.is_valid() || !self.opener().has_sessions() {
            return;
        }
        self.start_keeping();
        let now = self.epoch.now();
        let mut state = self.state();
        let known = state.pods.get(&id);
        let needless = known.is_some_and(|pod| {
            pod.opening > 0 || pod.is_cold(now) || pod.sessions.iter().any(is_fit)
        });
        let full = state.sessions >= self.config.sessions || state.ahead() >= self.config.ahead;
        if state.shut || needless || full {
            return;
        }
        tracing::debug!(pod = %id, "opening a session ahead");
        self.open(&mut state, &id, true);
    }

    /// Whether the Pod has a session that takes connections.
    pub(crate) fn is_warm(&self, to: &PodPort) -> bool {
        let state = self.state();
        let pod = state.pods.get(&PodId::from(to));
        pod.is_some_and(|pod| pod.sessions.iter().any(is_fit))
    }
}

fn is_fit(entry: &Entry) -> bool {
    !entry.retired && entry.handle.is_open() && !entry.probe.is_suspect()
}
