//! A managed connection: one cluster, context and namespace, and its listeners.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kubevpn_conn::Addr;
use kubevpn_proxy::journal::AboutProxy;
use kubevpn_proxy::{ListenerSpec, Policy};
use kubevpn_target::{ConnectError, Refusal};

use crate::api::{self, ConnectionState};
use crate::engine::{Engine, EngineSession, ServedListener as _, SessionSettings, Stats};
use crate::error::ApiError;
use crate::log::{Log, LogLevel};
use crate::saved::{Saved, SavedListener};
use crate::state_dir::StateDir;

/// A managed connection. It is closed by [`ManagedConnection::end`].
pub(crate) struct ManagedConnection<S: EngineSession> {
    saved: Mutex<Saved>,
    pub(crate) session: S,
    listeners: Mutex<Vec<ListenerEntry<S::Listener>>>,
    /// Held while missing listeners are bound: two tasks would take the address from each other.
    restoring: tokio::sync::Mutex<()>,
    health: Mutex<ConnectionHealth>,
    /// Whether credentials come from a credential plugin.
    has_plugin: AtomicBool,
    pub(crate) log: Log,
}

/// A listener, or the reason why it is not open.
struct ListenerEntry<L> {
    saved: SavedListener,
    serving: Result<L, ApiError>,
}

impl<S: EngineSession> ManagedConnection<S> {
    /// Makes a connection, without any call or listener.
    pub(crate) fn new<E: Engine<Session = S>>(
        engine: &E,
        dir: &StateDir,
        saved: Saved,
        config: kube::Config,
    ) -> Result<Arc<Self>, ApiError> {
        let has_plugin = AtomicBool::new(config.auth_info.exec.is_some());
        let log = Log::to_file(&dir.log(Some(&saved.id)), saved.log_level);
        let session = engine.open(SessionSettings {
            policy: &saved.policy,
            namespace: &saved.cluster.namespace,
            config,
            log: log.dispatch.clone(),
            about: AboutProxy {
                version: crate::VERSION.to_owned(),
                pid: std::process::id(),
                started_at: saved.started_at.clone(),
                connection: saved.id.clone(),
                context: saved.cluster.context.clone().unwrap_or_default(),
                cluster: saved.cluster.name.clone().unwrap_or_default(),
                namespace: saved.cluster.namespace.clone(),
                server: saved.cluster.server.clone(),
            },
        })?;
        Ok(Arc::new(Self {
            log,
            saved: Mutex::new(saved),
            session,
            listeners: Mutex::default(),
            restoring: tokio::sync::Mutex::default(),
            health: Mutex::new(ConnectionHealth::new()),
            has_plugin,
        }))
    }

    /// Uses these credentials for new requests.
    pub(crate) fn renew(&self, config: kube::Config) -> Result<(), ApiError> {
        let has_plugin = config.auth_info.exec.is_some();
        self.session.renew(config)?;
        self.has_plugin.store(has_plugin, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the API server rejects its credentials.
    pub(crate) fn is_unauthenticated(&self) -> bool {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.state().0 == ConnectionState::Unauthenticated
    }

    /// Contents of its state file.
    pub(crate) fn saved(&self) -> MutexGuard<'_, Saved> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn namespace(&self) -> String {
        self.saved().cluster.namespace.clone()
    }

    pub(crate) fn policy(&self) -> Policy {
        self.saved().policy.clone()
    }

    /// Sets the level of its log.
    pub(crate) fn set_log_level(&self, level: LogLevel) {
        self.saved().log_level = level;
        self.log.set_level(level);
    }

    /// Restores the list of listeners to `before`, and returns those that were added since.
    pub(crate) fn withdraw(&self, before: Vec<SavedListener>) -> Vec<S::Listener> {
        let mut listeners = self.listeners();
        let (stay, go) = std::mem::take(&mut *listeners)
            .into_iter()
            .partition(|entry| before.contains(&entry.saved));
        *listeners = stay;
        self.saved().listeners = before;
        let go: Vec<ListenerEntry<_>> = go;
        go.into_iter()
            .filter_map(|entry| entry.serving.ok())
            .collect()
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<ListenerEntry<S::Listener>>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Address of the listener with the same specification, or the reason why it is not open.
    pub(crate) fn listener(&self, spec: &ListenerSpec) -> Option<Result<Addr, ApiError>> {
        let listeners = self.listeners();
        let found = listeners
            .iter()
            .find(|entry| entry.saved.spec.is_same(spec));
        found.map(|entry| match &entry.serving {
            Ok(_) => Ok(entry.saved.bound.clone()),
            Err(why) => Err(why.clone()),
        })
    }

    /// Whether another specification has the same protocol and address.
    pub(crate) fn has_otherwise(&self, spec: &ListenerSpec) -> bool {
        let listeners = self.listeners();
        let mut saved = listeners.iter().map(|entry| &entry.saved);
        saved.any(|saved| saved.bound == spec.address && !saved.spec.is_same(spec))
    }

    /// Adds a listener to the connection.
    pub(crate) fn adopt(&self, spec: ListenerSpec, serving: S::Listener) -> SavedListener {
        let bound = serving.address().clone();
        let saved = SavedListener { spec, bound };
        self.place(saved.clone(), Ok(serving));
        saved
    }

    fn place(&self, saved: SavedListener, serving: Result<S::Listener, ApiError>) {
        let mut listeners = self.listeners();
        listeners.retain(|entry| entry.saved != saved);
        listeners.push(ListenerEntry { saved, serving });
    }

    /// Opens the listeners again at their last addresses, and records those that fail. Listeners that failed before are
    /// tried again.
    pub(crate) async fn restore(&self) {
        let _restoring = self.restoring.lock().await;
        let missing: Vec<_> = {
            let listeners = self.listeners();
            let listens = |saved: &SavedListener| {
                let mut same = listeners.iter().filter(|entry| entry.saved == *saved);
                same.any(|entry| entry.serving.is_ok())
            };
            let all = self.saved().listeners.clone();
            all.into_iter().filter(|saved| !listens(saved)).collect()
        };
        if !missing.is_empty() {
            self.tell_listening(false);
        }
        for saved in missing {
            let bound = self.session.bind(&saved.spec, &saved.bound).await;
            let serving = bound.and_then(|bound| self.session.serve(&saved.spec, bound));
            match &serving {
                Ok(_) => tracing::info!(listener = %saved.bound, "listening"),
                Err(why) => tracing::debug!(listener = %saved.bound, %why, "not listening"),
            }
            self.place(saved, serving);
        }
        let lost = self
            .listeners()
            .iter()
            .find_map(|entry| entry.serving.as_ref().err().map(ApiError::whole));
        self.tell_listening(lost.is_none());
        self.health(|health| health.listeners = lost);
    }

    /// Makes probes answer whether all listeners are open.
    fn tell_listening(&self, is_complete: bool) {
        if let Some(view) = self.session.view() {
            view.journal().set_all_listening(is_complete);
        }
    }

    /// Whether a listener waits for its address.
    pub(crate) fn waits_for_listeners(&self) -> bool {
        self.listeners().iter().any(|entry| entry.serving.is_err())
    }

    /// Changes the health.
    pub(crate) fn health(&self, change: impl FnOnce(&mut ConnectionHealth)) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let before = health.state();
        change(&mut health);
        let now = health.state();
        if before != now {
            health.since = Timestamp::now();
            tracing::info!(
                state = now.0.as_str(),
                reason = now.1,
                "the connection's state"
            );
        }
    }

    /// Stops listening, waits for clients up to `patience`, and closes the session.
    pub(crate) async fn end(&self, patience: Duration) {
        let entries = std::mem::take(&mut *self.listeners());
        let serving: Vec<_> = entries.into_iter().filter_map(|e| e.serving.ok()).collect();
        serving.iter().for_each(|listener| listener.stop());
        let mut ending = tokio::task::JoinSet::new();
        for serving in serving {
            ending.spawn(serving.end(patience));
        }
        ending.join_all().await;
        self.session.shutdown().await;
    }

    pub(crate) fn status(&self) -> api::ConnectionInfo {
        let saved = self.saved().clone();
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, reason) = health.state();
        let listeners: Vec<_> = self.listeners().iter().map(ListenerEntry::status).collect();
        let socks = listeners
            .iter()
            .find(|l| l.listening && matches!(l.protocol.as_str(), "socks" | "mixed"));
        let Stats {
            traffic,
            sessions,
            streams,
            last_refusals,
        } = self.session.stats();
        let files = saved
            .kubeconfig
            .files
            .iter()
            .map(|f| f.display().to_string());
        let files: Vec<_> = files.collect();
        let can_log_in =
            state == ConnectionState::Unauthenticated && self.has_plugin.load(Ordering::Relaxed);
        api::ConnectionInfo {
            id: saved.id,
            cluster: saved.cluster.name.unwrap_or_default(),
            kubeconfig: files.join(":"),
            namespace: saved.cluster.namespace,
            status: state.as_str().into(),
            socks_listen_addr: socks.map(|l| l.address.clone()).unwrap_or_default(),
            socks_egress: socks.is_some_and(|l| l.egress),
            context: saved.cluster.context.unwrap_or_default(),
            server: saved.cluster.server,
            state,
            reason,
            login: String::new(),
            selection: can_log_in.then_some(saved.kubeconfig),
            since: health.since.to_string(),
            started_at: saved.started_at,
            listeners,
            traffic,
            sessions,
            streams,
            last_refusals,
        }
    }
}

impl<L: crate::ServedListener> ListenerEntry<L> {
    fn status(&self) -> api::ListenerInfo {
        let SavedListener { spec, bound } = &self.saved;
        api::ListenerInfo {
            protocol: spec.protocol.as_str().into(),
            address: bound.to_string(),
            listening: self.serving.is_ok(),
            reason: self
                .serving
                .as_ref()
                .err()
                .map(ApiError::whole)
                .unwrap_or_default(),
            egress: spec.egress,
            auth: spec.auth_file.is_some(),
            open_clients: self.serving.as_ref().map_or(0, L::open_clients),
        }
    }
}

/// Health of a connection: for each part, the reason why it is not healthy.
pub(crate) struct ConnectionHealth {
    api: Option<(ConnectionState, String)>,
    /// Problem of the kubeconfig.
    pub(crate) source: Option<String>,
    listeners: Option<String>,
    since: Timestamp,
}

impl ConnectionHealth {
    fn new() -> Self {
        Self {
            api: None,
            source: None,
            listeners: None,
            since: Timestamp::now(),
        }
    }

    /// Records the answer of the API server.
    pub(crate) fn api(&mut self, answer: Result<(), &ConnectError>) {
        self.api = answer.err().map(|error| {
            let state = match error.refusal() {
                Refusal::Unauthenticated => ConnectionState::Unauthenticated,
                Refusal::ClusterAway | Refusal::TimedOut => ConnectionState::Unreachable,
                _ => ConnectionState::Degraded,
            };
            let mut reason = error.to_string();
            if let Some(cause) = std::error::Error::source(error) {
                reason = format!("{reason}: {cause}");
            }
            (state, reason)
        });
    }

    fn state(&self) -> (ConnectionState, String) {
        if let Some((state, reason)) = &self.api {
            return (*state, reason.clone());
        }
        match self.listeners.as_ref().or(self.source.as_ref()) {
            Some(reason) => (ConnectionState::Degraded, reason.clone()),
            None => (ConnectionState::Connected, String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_problem_is_the_state() {
        let mut health = ConnectionHealth::new();
        assert_eq!(health.state(), (ConnectionState::Connected, String::new()));
        health.source = Some("gone".into());
        assert_eq!(health.state(), (ConnectionState::Degraded, "gone".into()));
        health.listeners = Some("taken".into());
        assert_eq!(health.state().1, "taken");
        for (refusal, state) in [
            (Refusal::Unauthenticated, ConnectionState::Unauthenticated),
            (Refusal::ClusterAway, ConnectionState::Unreachable),
            (Refusal::NameNotFound, ConnectionState::Degraded),
        ] {
            health.api(Err(&ConnectError::new(refusal, "why")));
            assert_eq!(health.state(), (state, "why".into()));
        }
        health.api(Ok(()));
        assert_eq!(health.state().1, "taken");
    }
}
