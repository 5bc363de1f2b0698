//! Opens connections and adds listeners to them. A request succeeds completely or changes nothing.

use std::sync::Arc;
use std::time::Duration;

use kubevpn_proxy::{ListenerSpec, Protocol};
use tokio::sync::watch;

use super::Registry;
use crate::api::{
    self, Attached, ClusterRef, ConnectRequest, ConnectionQuery, KubeconfigSelection,
    OpenedConnection,
};
use crate::connection::ManagedConnection;
use crate::engine::{Engine, EngineSession, ServedListener as _};
use crate::error::{ApiError, Code, ErrorContext as _};
use crate::saved::Saved;
use crate::{failpoint, identity, monitor, state_dir};

/// Called with each completed step.
pub(crate) type Tell<'a> = &'a (dyn Fn(String) + Sync);

impl<E: Engine> Registry<E> {
    /// Opens a connection, or finds the open one, and adds the missing listeners: all of them, or none.
    pub(crate) async fn connect(
        &self,
        mut ask: ConnectRequest,
        tell: Tell<'_>,
    ) -> Result<OpenedConnection, ApiError> {
        self.busy.send_modify(|n| *n += 1);
        let _busy = BusyGuard(&self.busy);
        if !identity::is_id(&ask.id) {
            return Err(ApiError::new(Code::Internal, "the connection's ID is none"));
        }
        // A connection keeps its ID, even if its namespace was created again since.
        if let Some(connection) = self.same(&ask.cluster, &ask.kubeconfig_selection) {
            ask.id = connection.saved().id.clone();
        }
        let _lock = self.lock(&ask.id).await;
        if self.inner().ending {
            return Err(ApiError::new(
                Code::Ending,
                "the daemon is about to end: try again",
            ));
        }
        let mut opened = match self.get(&ask.id) {
            Some(connection) => self.attach_to(&connection, &ask, tell).await,
            None => self.open(&ask, tell).await,
        }?;
        // The connection is open even if this cannot be stored.
        if let Err(error) = self.set_current(&opened.id).await {
            tracing::warn!(%error, "cannot store the current connection");
        }
        if ask
            .listeners
            .iter()
            .any(|spec| spec.protocol == Protocol::Dns)
            && let Some(connection) = self.get(&opened.id)
        {
            opened.endings = connection.session.endings().await;
        }
        Ok(opened)
    }

    /// The connection of the same kubeconfig, context and namespace.
    fn same(
        &self,
        cluster: &ClusterRef,
        selection: &KubeconfigSelection,
    ) -> Option<Arc<ManagedConnection<E::Session>>> {
        let inner = self.inner();
        let mut connections = inner.connections.values().map(|entry| &entry.connection);
        let found = connections.find(|connection| {
            let saved = connection.saved();
            saved.kubeconfig == *selection && saved.cluster == *cluster
        });
        found.cloned()
    }

    /// The connection of a query.
    pub(crate) fn find(&self, query: &ConnectionQuery) -> Option<api::ConnectionInfo> {
        let found = self.same(&query.cluster, &query.kubeconfig_selection)?;
        let policy = query.policy.as_ref();
        let fits = policy.is_none_or(|policy| *policy == found.policy());
        fits.then(|| found.status())
    }

    async fn attach_to(
        &self,
        connection: &ManagedConnection<E::Session>,
        ask: &ConnectRequest,
        tell: Tell<'_>,
    ) -> Result<OpenedConnection, ApiError> {
        let saved = connection.saved().clone();
        if saved.kubeconfig != ask.kubeconfig_selection
            || saved.cluster.server != ask.cluster.server
        {
            let files = saved
                .kubeconfig
                .files
                .iter()
                .map(|f| f.display().to_string());
            return Err(ApiError::new(
                Code::Conflict,
                format!(
                    "connection {} is open with other credentials (kubeconfig {}, context {}{}): use those, or end it \
                     with kubevpn disconnect {}",
                    saved.id,
                    files.collect::<Vec<_>>().join(":"),
                    saved.cluster.context.as_deref().unwrap_or("-"),
                    saved
                        .kubeconfig
                        .user
                        .map(|user| format!(", user {user}"))
                        .unwrap_or_default(),
                    saved.id
                ),
            ));
        }
        if ask
            .policy
            .as_ref()
            .is_some_and(|policy| *policy != connection.policy())
        {
            return Err(ApiError::new(
                Code::Conflict,
                format!(
                    "connection {0} is open with other settings about names: leave them out, or end it with kubevpn \
                     disconnect {0}",
                    saved.id
                ),
            ));
        }
        tell(format!("connection {} is open", saved.id));
        self.log_in(connection, ask)?;
        connection.restore().await;
        let started = self.attach(connection, &ask.listeners, tell).await?;
        if let Some(level) = ask.log_level {
            connection.set_log_level(level);
        }
        let before = saved.listeners.clone();
        let opened = commit(connection, started, &ask.listeners);
        if let Err(error) = self.save(connection) {
            connection.set_log_level(saved.log_level);
            let added = connection.withdraw(before);
            end_all(added).await;
            return Err(error);
        }
        Ok(opened)
    }

    /// Replaces rejected credentials by those of a new login, and a kubeconfig that could be read only once by its new
    /// contents.
    fn log_in(
        &self,
        connection: &ManagedConnection<E::Session>,
        ask: &ConnectRequest,
    ) -> Result<(), ApiError> {
        let path = self.dir.kubeconfig(&ask.id);
        let now = serde_json::to_vec(&ask.kubeconfig).context("cannot keep the kubeconfig")?;
        let is_new = ask.kubeconfig_selection.read_once
            && state_dir::read(&path)?.is_none_or(|before| before.as_bytes() != now);
        if !connection.is_unauthenticated() && !is_new {
            return Ok(());
        }
        state_dir::write(&path, &now)?;
        let loaded = monitor::transient(&self.dir, &ask.id, &ask.kubeconfig_selection)?;
        connection.renew(loaded.config)
    }

    async fn open(
        &self,
        ask: &ConnectRequest,
        tell: Tell<'_>,
    ) -> Result<OpenedConnection, ApiError> {
        // A state file that could not be restored must not be overwritten.
        if self.inner().problems.iter().any(|p| p.id == ask.id) {
            return Err(ApiError::new(
                Code::Conflict,
                format!(
                    "connection {0} is there and could not be brought back (kubevpn status says why): end it with \
                     kubevpn disconnect {0}",
                    ask.id
                ),
            ));
        }
        let kubeconfig = self.dir.kubeconfig(&ask.id);
        let text = serde_json::to_vec(&ask.kubeconfig).context("cannot keep the kubeconfig")?;
        state_dir::write(&kubeconfig, &text)?;
        failpoint::point("connect:kubeconfig");
        let opened = self.open_with_kubeconfig(ask, tell).await;
        if opened.is_err()
            && let Err(error) = state_dir::remove(&kubeconfig)
        {
            tracing::warn!(%error, "the transient kubeconfig stays");
        }
        opened
    }

    async fn open_with_kubeconfig(
        &self,
        ask: &ConnectRequest,
        tell: Tell<'_>,
    ) -> Result<OpenedConnection, ApiError> {
        let mut saved = Saved::new(
            ask.id.clone(),
            ask.cluster.clone(),
            ask.kubeconfig_selection.clone(),
            ask.policy.clone().unwrap_or_default(),
        );
        saved.log_level = ask.log_level.unwrap_or_default();
        let loaded = monitor::transient(&self.dir, &ask.id, &ask.kubeconfig_selection)?;
        let connection = ManagedConnection::new(&self.engine, &self.dir, saved, loaded.config)?;
        let started = match self.attach(&connection, &ask.listeners, tell).await {
            Ok(started) => started,
            Err(error) => {
                connection.end(Duration::ZERO).await;
                return Err(error);
            }
        };
        let opened = commit(&connection, started, &ask.listeners);
        if let Err(error) = self.save(&connection) {
            connection.end(Duration::ZERO).await;
            return Err(error);
        }
        self.insert(&ask.id, connection);
        Ok(opened)
    }

    fn save(&self, connection: &ManagedConnection<E::Session>) -> Result<(), ApiError> {
        failpoint::point("connect:checked");
        connection.saved().write(&self.dir)?;
        failpoint::point("connect:saved");
        Ok(())
    }

    /// Starts the missing listeners and checks them. After an error, none of them is left.
    async fn attach(
        &self,
        connection: &ManagedConnection<E::Session>,
        specs: &[ListenerSpec],
        tell: Tell<'_>,
    ) -> Result<StartedListeners<E::Session>, ApiError> {
        let mut started = Vec::new();
        match self.try_attach(connection, specs, &mut started, tell).await {
            Ok(()) => Ok(started),
            Err(error) => {
                end_all(started.into_iter().map(|(_, serving)| serving)).await;
                Err(error)
            }
        }
    }

    async fn try_attach(
        &self,
        connection: &ManagedConnection<E::Session>,
        specs: &[ListenerSpec],
        started: &mut StartedListeners<E::Session>,
        tell: Tell<'_>,
    ) -> Result<(), ApiError> {
        let session = &connection.session;
        // All are bound before one is served, so that no client is accepted and then cut.
        let mut bound = Vec::new();
        for spec in specs {
            match connection.listener(spec) {
                Some(Ok(_)) => {}
                // Binding has just been tried again.
                Some(Err(why)) => return Err(why),
                None if connection.has_otherwise(spec) => {
                    return Err(other_settings(connection, spec));
                }
                None => bound.push((spec, session.bind(spec, &spec.address).await?)),
            }
        }
        failpoint::point("connect:bound");
        for (spec, bound) in bound {
            started.push((spec.clone(), session.serve(spec, bound)?));
        }
        let namespace = connection.namespace();
        let answered = session.ask_api(&namespace).await;
        connection.health(|health| health.api(answered.as_ref().map(drop)));
        answered?;
        tell("the API server accepts the credentials".into());
        for (spec, serving) in started.iter() {
            let spoken = serving.handshake().await;
            spoken.map_err(|why| ApiError::new(Code::Other, why))?;
            // A forward has no handshake.
            let done = match spec.protocol {
                Protocol::Forward(_) => "listens",
                _ => "answers",
            };
            let protocol = spec.protocol.as_str();
            tell(format!("{protocol} {done} on {}", serving.address()));
        }
        tell(session.try_pods(&namespace).await?.to_string());
        Ok(())
    }
}

/// Decrements the count when dropped.
struct BusyGuard<'a>(&'a watch::Sender<usize>);

impl Drop for BusyGuard<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

/// Served listeners that are not yet part of the connection.
type StartedListeners<S> = Vec<(ListenerSpec, <S as EngineSession>::Listener)>;

/// Adds the started listeners to the connection.
fn commit<S: EngineSession>(
    connection: &ManagedConnection<S>,
    started: StartedListeners<S>,
    asked: &[ListenerSpec],
) -> OpenedConnection {
    let new: Vec<_> = started.iter().map(|(spec, _)| spec.clone()).collect();
    for (spec, serving) in started {
        let saved = connection.adopt(spec, serving);
        connection.saved().listeners.push(saved);
    }
    let attached = asked.iter().map(|spec| Attached {
        spec: spec.clone(),
        bound: match connection.listener(spec) {
            Some(Ok(bound)) => bound,
            _ => spec.address.clone(),
        },
        already: !new.contains(spec),
    });
    OpenedConnection {
        id: connection.saved().id.clone(),
        listeners: attached.collect(),
        endings: Vec::new(),
    }
}

async fn end_all<L: crate::ServedListener>(serving: impl IntoIterator<Item = L>) {
    for serving in serving {
        serving.end(Duration::ZERO).await;
    }
}

fn other_settings<S: EngineSession>(
    connection: &ManagedConnection<S>,
    spec: &ListenerSpec,
) -> ApiError {
    let id = connection.saved().id.clone();
    ApiError::new(
        Code::Conflict,
        format!(
            "connection {id} has a listener on {} with other settings: leave them as they were, pick another address, or end \
             it with kubevpn disconnect {id}",
            spec.address
        ),
    )
}
