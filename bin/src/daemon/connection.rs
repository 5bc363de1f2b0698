//! A connection: one cluster, context and namespace, and the listeners it has.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kubevpn_client::{ApiServer, Renewal, build_renewable};
use kubevpn_stack::{Deadline, DeadlineLayer, Forwarder, FromHost, OwnListeners};
use kubevpn_target::{ConnectError, Refusal};
use tower::Layer as _;
use tracing::Dispatch;

use super::api::{self, Fault, State};
use super::count::{Counted, Counts};
use super::listener::{Serving, Wanted};
use super::saved::{Saved, SavedListener};
use super::{home::Home, log};
use crate::cli::options;
use crate::cli::policy::PolicyArgs;
use crate::exit::Failure;
use crate::proxy::{self, Backend, Bound, ClusterStack};

/// One of the daemon's connections. It ends with [`Connection::end`].
pub(crate) struct Connection {
    saved: Mutex<Saved>,
    pub(crate) client: kube::Client,
    pub(crate) renewal: Renewal,
    pub(crate) counts: Arc<Counts>,
    cluster: Backend<Counted<ClusterStack>>,
    host: Backend<Counted<Deadline<FromHost>>>,
    forwarder: Forwarder,
    own: OwnListeners,
    listeners: Mutex<Vec<Entry>>,
    /// Who binds again what is missing: one at a time, or each would be in the other's way.
    restoring: tokio::sync::Mutex<()>,
    health: Mutex<Health>,
    pub(crate) log: Dispatch,
}

/// A listener, or why there is none.
struct Entry {
    saved: SavedListener,
    serving: Result<Serving, Fault>,
}

impl Connection {
    /// Nothing is sent, and nothing listens yet.
    pub(crate) fn new(
        home: &Home,
        saved: Saved,
        config: kube::Config,
        own: OwnListeners,
        verbose: u8,
    ) -> Result<Arc<Self>, Failure> {
        let of = |error: kubevpn_client::ClientError| Failure::Other(error.into());
        let api_server = ApiServer::new(config.clone(), &options()).map_err(of)?;
        let (client, renewal) = build_renewable(config, &options()).map_err(of)?;
        let mut path = saved.policy.path()?;
        path.cluster.namespace.clone_from(&saved.cluster.namespace);
        path.own = own.clone();
        let counts = Arc::new(Counts::default());
        let host =
            DeadlineLayer::new(path.settings.dial_timeout).layer(FromHost::sharing(own.clone()));
        let (cluster, forwarder) = proxy::chain(client.clone(), api_server, path);
        Ok(Arc::new(Self {
            log: log::to_file(&home.log(Some(&saved.id)), verbose),
            saved: Mutex::new(saved),
            client,
            renewal,
            cluster: Backend::of_cluster(cluster)
                .map(|connect| Counted::new(connect, counts.clone())),
            host: Backend::of_host(Counted::new(host, counts.clone())),
            counts,
            forwarder,
            own,
            listeners: Mutex::default(),
            restoring: tokio::sync::Mutex::default(),
            health: Mutex::new(Health::new()),
        }))
    }

    /// What its state file says.
    pub(crate) fn saved(&self) -> MutexGuard<'_, Saved> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn namespace(&self) -> String {
        self.saved().cluster.namespace.clone()
    }

    pub(crate) fn policy(&self) -> PolicyArgs {
        self.saved().policy.clone()
    }

    /// The way to the cluster for ourselves: in no count.
    pub(crate) fn uncounted(&self) -> ClusterStack {
        self.cluster.connect.inner().clone()
    }

    /// What names of its cluster end in.
    pub(crate) async fn endings(&self) -> Vec<String> {
        match &self.cluster.cluster {
            Some(cluster) => proxy::endings(cluster).await,
            None => Vec::new(),
        }
    }

    /// Goes back to these listeners; gives those that were added since.
    pub(crate) fn withdraw(&self, before: Vec<SavedListener>) -> Vec<Serving> {
        let mut listeners = self.listeners();
        let (stay, go) = std::mem::take(&mut *listeners)
            .into_iter()
            .partition(|entry| before.contains(&entry.saved));
        *listeners = stay;
        self.saved().listeners = before;
        let go: Vec<Entry> = go;
        go.into_iter()
            .filter_map(|entry| entry.serving.ok())
            .collect()
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a listener is that was asked for in the same words, or why it is not there.
    pub(crate) fn listener(&self, wanted: &Wanted) -> Option<Result<String, Fault>> {
        let listeners = self.listeners();
        let found = listeners.iter().find(|entry| entry.saved.wanted == *wanted);
        found.map(|entry| match &entry.serving {
            Ok(_) => Ok(entry.saved.bound.clone()),
            Err(why) => Err(why.clone()),
        })
    }

    /// Whether a listener has this one's place, and was asked for in other words.
    pub(crate) fn has_otherwise(&self, wanted: &Wanted) -> bool {
        let listeners = self.listeners();
        let mut saved = listeners.iter().map(|entry| &entry.saved);
        saved.any(|saved| saved.bound == wanted.address && saved.wanted != *wanted)
    }

    /// Serves what is bound.
    pub(crate) fn serve(&self, wanted: &Wanted, bound: Bound) -> Result<Serving, Failure> {
        let (log, own) = (self.log.clone(), self.own.clone());
        match wanted.egress {
            true => wanted.serve(bound, self.host.clone(), log, own),
            false => wanted.serve(bound, self.cluster.clone(), log, own),
        }
    }

    /// It is one of the connection's listeners from now on.
    pub(crate) fn adopt(&self, wanted: Wanted, serving: Serving) {
        let bound = serving.addr.to_string();
        self.place(SavedListener { wanted, bound }, Ok(serving));
    }

    fn place(&self, saved: SavedListener, serving: Result<Serving, Fault>) {
        let mut listeners = self.listeners();
        listeners.retain(|entry| entry.saved != saved);
        listeners.push(Entry { saved, serving });
    }

    /// Listens again where it did, and says what it could not have; what failed before is tried again.
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
        for saved in missing {
            let serving = match saved.wanted.bind(&saved.bound).await {
                Ok(bound) => self.serve(&saved.wanted, bound),
                Err(failure) => Err(failure),
            };
            match &serving {
                Ok(_) => tracing::info!(listener = saved.bound, "listening"),
                Err(why) => tracing::debug!(listener = saved.bound, %why, "not listening"),
            }
            self.place(saved, serving.map_err(|failure| Fault::from(&failure)));
        }
        let lost = self
            .listeners()
            .iter()
            .find_map(|entry| entry.serving.as_ref().err().map(Fault::whole));
        self.health(|health| health.listeners = lost);
    }

    /// Whether a listener is waiting for its address.
    pub(crate) fn waits_for_listeners(&self) -> bool {
        self.listeners().iter().any(|entry| entry.serving.is_err())
    }

    /// What was found out about it.
    pub(crate) fn health(&self, change: impl FnOnce(&mut Health)) {
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

    /// Stops listening, lets clients finish for `patience`, and lets go of the cluster.
    pub(crate) async fn end(&self, patience: Duration) {
        let entries = std::mem::take(&mut *self.listeners());
        let serving: Vec<_> = entries.into_iter().filter_map(|e| e.serving.ok()).collect();
        serving.iter().for_each(Serving::stop);
        let mut ending = tokio::task::JoinSet::new();
        for serving in serving {
            ending.spawn(serving.end(patience));
        }
        ending.join_all().await;
        self.forwarder.shutdown().await;
    }

    pub(crate) fn status(&self) -> api::Connection {
        let saved = self.saved().clone();
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, reason) = health.state();
        let listeners: Vec<_> = self.listeners().iter().map(Entry::status).collect();
        let socks = listeners
            .iter()
            .find(|l| l.listening && matches!(l.protocol.as_str(), "socks" | "mixed"));
        let stats = self.forwarder.stats();
        let files = saved.source.files.iter().map(|f| f.display().to_string());
        let files: Vec<_> = files.collect();
        api::Connection {
            id: saved.id,
            cluster: saved.cluster.name.unwrap_or_default(),
            kubeconfig: files.join(":"),
            namespace: saved.cluster.namespace,
            status: match state {
                State::Connected => "connected",
                State::Degraded | State::Unauthenticated | State::Unreachable => "unhealthy",
            }
            .into(),
            socks_listen_addr: socks.map(|l| l.address.clone()).unwrap_or_default(),
            socks_egress: socks.is_some_and(|l| l.egress),
            context: saved.cluster.context.unwrap_or_default(),
            server: saved.cluster.server,
            state,
            reason,
            since: health.since.to_string(),
            started_at: saved.started_at,
            listeners,
            traffic: self.counts.traffic(),
            sessions: stats.sessions.iter().sum(),
            streams: stats.streams,
            last_refusals: self.counts.refusals(),
        }
    }
}

impl Entry {
    fn status(&self) -> api::Listener {
        let SavedListener { wanted, bound } = &self.saved;
        api::Listener {
            protocol: wanted.kind.as_str().into(),
            address: bound.clone(),
            listening: self.serving.is_ok(),
            reason: self
                .serving
                .as_ref()
                .err()
                .map(Fault::whole)
                .unwrap_or_default(),
            egress: wanted.egress,
            auth: wanted.auth_file.is_some(),
            open_clients: self.serving.as_ref().map(Serving::open).unwrap_or_default(),
        }
    }
}

/// What is known of a connection's health; `None` is well.
pub(crate) struct Health {
    api: Option<(State, String)>,
    /// The kubeconfig it was made from.
    pub(crate) source: Option<String>,
    listeners: Option<String>,
    since: Timestamp,
}

impl Health {
    fn new() -> Self {
        Self {
            api: None,
            source: None,
            listeners: None,
            since: Timestamp::now(),
        }
    }

    /// How the API server answered.
    pub(crate) fn api(&mut self, answer: Result<(), &ConnectError>) {
        self.api = answer.err().map(|error| {
            let state = match error.refusal() {
                Refusal::Unauthenticated => State::Unauthenticated,
                Refusal::ClusterAway | Refusal::TimedOut => State::Unreachable,
                _ => State::Degraded,
            };
            let mut reason = error.to_string();
            if let Some(cause) = std::error::Error::source(error) {
                reason = format!("{reason}: {cause}");
            }
            (state, reason)
        });
    }

    fn state(&self) -> (State, String) {
        if let Some((state, reason)) = &self.api {
            return (*state, reason.clone());
        }
        match self.listeners.as_ref().or(self.source.as_ref()) {
            Some(reason) => (State::Degraded, reason.clone()),
            None => (State::Connected, String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use kubevpn_conn::Listener;

    use super::*;
    use crate::daemon::api::{Cluster, Source};
    use crate::daemon::listener::Kind;

    /// A command and the keeper may both find that a listener is missing.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_restores_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        home.prepare().unwrap();
        let cluster = Cluster {
            server: "http://127.0.0.1:1".into(),
            name: None,
            context: None,
            namespace: "shop".into(),
        };
        let id = "0123456789ab".to_owned();
        for _ in 0..50 {
            let free = Listener::bind(&"127.0.0.1:0".parse().unwrap())
                .await
                .unwrap();
            let bound = free.addr().to_string();
            drop(free);
            let mut saved = Saved::new(
                id.clone(),
                cluster.clone(),
                Source::default(),
                PolicyArgs::default(),
            );
            let wanted = Wanted::of(Kind::Socks, &bound);
            saved.listeners.push(SavedListener { wanted, bound });
            let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
            let connection = Connection::new(&home, saved, config, OwnListeners::default(), 0);
            let connection = connection.unwrap();
            let restore = || {
                let connection = connection.clone();
                tokio::spawn(async move { connection.restore().await })
            };
            let (one, other) = tokio::join!(restore(), restore());
            one.and(other).unwrap();
            assert!(!connection.waits_for_listeners());
            connection.end(Duration::ZERO).await;
        }
    }

    #[test]
    fn the_worst_is_said() {
        let mut health = Health::new();
        assert_eq!(health.state(), (State::Connected, String::new()));
        health.source = Some("gone".into());
        assert_eq!(health.state(), (State::Degraded, "gone".into()));
        health.listeners = Some("taken".into());
        assert_eq!(health.state().1, "taken");
        for (refusal, state) in [
            (Refusal::Unauthenticated, State::Unauthenticated),
            (Refusal::ClusterAway, State::Unreachable),
            (Refusal::NameNotFound, State::Degraded),
        ] {
            health.api(Err(&ConnectError::new(refusal, "why")));
            assert_eq!(health.state(), (state, "why".into()));
        }
        health.api(Ok(()));
        assert_eq!(health.state().1, "taken");
    }
}
