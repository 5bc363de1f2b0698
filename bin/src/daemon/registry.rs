//! All connections, and what becomes of them: opened, brought back, ended.
//!
//! What survives a kill at any point: a connection is there once its state file is, and gone once that is gone. The
//! transient kubeconfig is written before and deleted after; one without a state file is deleted at the next start.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use kubevpn_stack::OwnListeners;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::task::AbortHandle;
use tracing::instrument::WithSubscriber as _;

use super::api::{Ask, Attached, Fault, Opened, Problem, Status};
use super::connection::Connection;
use super::fault;
use super::home::{self, Home};
use super::listener::{Kind, Serving, Wanted};
use super::saved::{Saved, SavedListener};
use super::{identity, keep, probe};
use crate::exit::Failure;

/// How long open connections may take to finish when they are told to.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// Everything the daemon owns.
pub(crate) struct Registry {
    home: Home,
    verbose: u8,
    own: OwnListeners,
    inner: Mutex<Inner>,
    /// How many connections there are, or are being made.
    busy: watch::Sender<usize>,
}

#[derive(Default)]
struct Inner {
    connections: BTreeMap<String, Kept>,
    problems: Vec<Problem>,
    current: String,
    /// Who changes a connection holds its lock.
    locks: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
    /// Nothing is opened any more.
    ending: bool,
}

struct Kept {
    connection: Arc<Connection>,
    keeper: AbortHandle,
    ended: watch::Sender<()>,
}

/// Told what was done.
pub(crate) type Tell<'a> = &'a (dyn Fn(String) + Sync);

impl Registry {
    /// Brings back what was there, as far as that can be done without asking anybody. For who holds the lock.
    pub(crate) async fn bring_back(home: Home, verbose: u8) -> anyhow::Result<Arc<Self>> {
        home.tidy()?;
        let current = home::read(&home.current())?.unwrap_or_default();
        let registry = Arc::new(Self {
            home,
            verbose,
            own: OwnListeners::default(),
            inner: Mutex::new(Inner {
                current,
                ..Inner::default()
            }),
            busy: watch::Sender::new(0),
        });
        for id in registry.home.saved()? {
            match registry.bring_one_back(&id).await {
                Ok(()) => tracing::info!(id, "brought back"),
                Err(reason) => {
                    tracing::warn!(id, reason, "not brought back");
                    registry.inner().problems.push(Problem { id, reason });
                }
            }
        }
        Ok(registry)
    }

    async fn bring_one_back(&self, id: &str) -> Result<(), String> {
        let saved = Saved::read(&self.home, id)?;
        let loaded = keep::transient(&self.home, id, &saved.source)
            .map_err(|failure| format!("its kubeconfig cannot be used: {failure}"))?;
        let connection = self
            .connection(saved, loaded.config)
            .map_err(|failure| failure.to_string())?;
        connection.restore().await;
        self.insert(id, connection);
        Ok(())
    }

    fn connection(&self, saved: Saved, config: kube::Config) -> Result<Arc<Connection>, Failure> {
        Connection::new(&self.home, saved, config, self.own.clone(), self.verbose)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, id: &str, connection: Arc<Connection>) {
        let log = connection.log.clone();
        let keeping = keep::keep(self.home.clone(), connection.clone()).with_subscriber(log);
        let keeper = tokio::spawn(keeping).abort_handle();
        let kept = Kept {
            connection,
            keeper,
            ended: watch::Sender::new(()),
        };
        self.inner().connections.insert(id.to_owned(), kept);
        self.busy.send_modify(|n| *n += 1);
    }

    fn get(&self, id: &str) -> Option<Arc<Connection>> {
        let inner = self.inner();
        Some(inner.connections.get(id)?.connection.clone())
    }

    async fn lock(&self, id: &str) -> OwnedMutexGuard<()> {
        let lock = self.inner().locks.entry(id.to_owned()).or_default().clone();
        lock.lock_owned().await
    }

    /// How many connections there are, for who waits for none.
    pub(crate) fn busy(&self) -> watch::Receiver<usize> {
        self.busy.subscribe()
    }

    // === connect ===

    /// Opens a connection or finds it, and attaches the listeners that it lacks: all of them, or nothing has changed.
    pub(crate) async fn connect(&self, mut ask: Ask, tell: Tell<'_>) -> Result<Opened, Fault> {
        self.busy.send_modify(|n| *n += 1);
        let _busy = Busy(&self.busy);
        if !identity::is_id(&ask.id) {
            return Err(Fault::new(90, "the connection's ID is none"));
        }
        // A connection keeps its ID, even if its namespace would have another one by now.
        if let Some(id) = self.same(&ask) {
            ask.id = id;
        }
        let _lock = self.lock(&ask.id).await;
        if self.inner().ending {
            return Err(Fault {
                ending: true,
                ..Fault::new(80, "the daemon is about to end: try again")
            });
        }
        let mut opened = match self.get(&ask.id) {
            Some(connection) => self.attach_to(&connection, &ask, tell).await,
            None => self.open(&ask, tell).await,
        }?;
        self.inner().current.clone_from(&opened.id);
        self.note_current(&opened.id);
        if ask.listeners.iter().any(|wanted| wanted.kind == Kind::Dns)
            && let Some(connection) = self.get(&opened.id)
        {
            opened.endings = connection.endings().await;
        }
        Ok(opened)
    }

    /// The connection of the same kubeconfig, context and namespace.
    fn same(&self, ask: &Ask) -> Option<String> {
        let inner = self.inner();
        let found = inner.connections.iter().find(|(_, kept)| {
            let saved = kept.connection.saved();
            saved.source == ask.source && saved.cluster == ask.cluster
        });
        found.map(|(id, _)| id.clone())
    }

    async fn attach_to(
        &self,
        connection: &Arc<Connection>,
        ask: &Ask,
        tell: Tell<'_>,
    ) -> Result<Opened, Fault> {
        let saved = connection.saved().clone();
        if saved.source != ask.source || saved.cluster.server != ask.cluster.server {
            let files = saved.source.files.iter().map(|f| f.display().to_string());
            return Err(Fault::new(
                53,
                format!(
                    "connection {} is open with other credentials (kubeconfig {}, context {}{}): use those, or end it \
                     with kubevpn disconnect {}",
                    saved.id,
                    files.collect::<Vec<_>>().join(":"),
                    saved.cluster.context.as_deref().unwrap_or("-"),
                    saved
                        .source
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
            return Err(Fault::new(
                53,
                format!(
                    "connection {0} is open with other flags about names: leave them out, or end it with kubevpn \
                     disconnect {0}",
                    saved.id
                ),
            ));
        }
        tell(format!("connection {} is open", saved.id));
        connection.restore().await;
        let started = self.attach(connection, &ask.listeners, tell).await?;
        let before = saved.listeners.clone();
        let opened = commit(connection, started, &ask.listeners);
        if let Err(error) = self.save(connection) {
            let added = connection.withdraw(before);
            end_all(added).await;
            return Err(fault(error));
        }
        Ok(opened)
    }

    async fn open(&self, ask: &Ask, tell: Tell<'_>) -> Result<Opened, Fault> {
        // A state file that could not be brought back is not to be lost by accident.
        if self.inner().problems.iter().any(|p| p.id == ask.id) {
            return Err(Fault::new(
                53,
                format!(
                    "connection {0} is there and could not be brought back (kubevpn status says why): end it with \
                     kubevpn disconnect {0}",
                    ask.id
                ),
            ));
        }
        let kubeconfig = self.home.kubeconfig(&ask.id);
        let text = serde_json::to_vec(&ask.kubeconfig).map_err(|e| fault(e.into()))?;
        home::write(&kubeconfig, &text).map_err(fault)?;
        fault::point("connect:kubeconfig");
        let opened = self.open_with_kubeconfig(ask, tell).await;
        if opened.is_err()
            && let Err(error) = home::remove(&kubeconfig)
        {
            tracing::warn!(%error, "the transient kubeconfig stays");
        }
        opened
    }

    async fn open_with_kubeconfig(&self, ask: &Ask, tell: Tell<'_>) -> Result<Opened, Fault> {
        let saved = Saved::new(
            ask.id.clone(),
            ask.cluster.clone(),
            ask.source.clone(),
            ask.policy.clone().unwrap_or_default(),
        );
        let loaded = keep::transient(&self.home, &ask.id, &ask.source);
        let connection = loaded.and_then(|loaded| self.connection(saved, loaded.config));
        let connection = connection.map_err(|failure| Fault::from(&failure))?;
        let started = match self.attach(&connection, &ask.listeners, tell).await {
            Ok(started) => started,
            Err(fault) => {
                connection.end(Duration::ZERO).await;
                return Err(fault);
            }
        };
        let opened = commit(&connection, started, &ask.listeners);
        if let Err(error) = self.save(&connection) {
            connection.end(Duration::ZERO).await;
            return Err(fault(error));
        }
        self.insert(&ask.id, connection);
        Ok(opened)
    }

    fn save(&self, connection: &Connection) -> anyhow::Result<()> {
        fault::point("connect:checked");
        connection.saved().write(&self.home)?;
        fault::point("connect:saved");
        Ok(())
    }

    /// Starts the listeners that are missing, and checks that all works. After an error none of them is left.
    async fn attach(
        &self,
        connection: &Arc<Connection>,
        wanted: &[Wanted],
        tell: Tell<'_>,
    ) -> Result<Vec<(Wanted, Serving)>, Fault> {
        let mut started = Vec::new();
        match self
            .try_attach(connection, wanted, &mut started, tell)
            .await
        {
            Ok(()) => Ok(started),
            Err(fault) => {
                end_all(started.into_iter().map(|(_, serving)| serving)).await;
                Err(fault)
            }
        }
    }

    async fn try_attach(
        &self,
        connection: &Arc<Connection>,
        wanted: &[Wanted],
        started: &mut Vec<(Wanted, Serving)>,
        tell: Tell<'_>,
    ) -> Result<(), Fault> {
        let of = |failure: Failure| Fault::from(&failure);
        // All are bound before one is served: a client is not to be let in and thrown out.
        let mut bound = Vec::new();
        for wanted in wanted {
            match connection.listener(wanted) {
                Some(Ok(_)) => {}
                // It was tried again just now.
                Some(Err(why)) => return Err(why),
                None if connection.has_otherwise(wanted) => {
                    return Err(other_flags(connection, wanted));
                }
                None => bound.push((wanted, wanted.bind(&wanted.address).await.map_err(of)?)),
            }
        }
        fault::point("connect:bound");
        for (wanted, bound) in bound {
            let serving = connection.serve(wanted, bound).map_err(of)?;
            started.push((wanted.clone(), serving));
        }
        let namespace = connection.namespace();
        let refused = |error| of(Failure::Refused(error));
        let answered = probe::api(&connection.client, &namespace).await;
        connection.health(|health| health.api(answered.as_ref().map(drop)));
        answered.map_err(refused)?;
        tell("the API server answers, and knows us".into());
        for (wanted, serving) in started.iter() {
            let spoken = probe::handshake(&serving.addr, &wanted.kind).await;
            spoken.map_err(|why| Fault::new(1, why))?;
            tell(format!(
                "{} answers on {}",
                wanted.kind.as_str(),
                serving.addr
            ));
        }
        let client = &connection.client;
        match probe::data_path(client, &namespace, connection.uncounted()).await {
            Ok(Some(pod)) => tell(format!("the way to Pods is open: {pod}")),
            Ok(None) => tell("no ready Pod is known to try the way with".into()),
            Err(error) => return Err(refused(error)),
        }
        Ok(())
    }

    // === the end ===

    /// Ends a connection and deletes what there is of it but its log; what is broken is deleted too.
    pub(crate) async fn disconnect(&self, id: &str, patience: Duration) -> Result<(), Fault> {
        let _lock = self.lock(id).await;
        let (kept, broken) = {
            let mut inner = self.inner();
            let kept = inner.connections.remove(id);
            let broken = inner.problems.iter().any(|p| p.id == id);
            if kept.is_none() && !broken {
                return Err(no_such_connection(id));
            }
            (kept, broken)
        };
        fault::point("disconnect:begun");
        let deleted = home::remove(&self.home.state(id));
        let deleted = deleted.and_then(|()| home::sync(&self.home.connections()));
        if let Err(error) = deleted {
            // It is still there, and would come back: so it stays.
            if let Some(kept) = kept {
                self.inner().connections.insert(id.to_owned(), kept);
            }
            return Err(fault(
                anyhow::Error::new(error).context("cannot delete the state file"),
            ));
        }
        fault::point("disconnect:forgotten");
        if broken {
            self.inner().problems.retain(|p| p.id != id);
        }
        if let Some(kept) = kept {
            kept.end(patience).await;
            self.busy.send_modify(|n| *n -= 1);
        }
        fault::point("disconnect:ended");
        let kubeconfig = home::remove(&self.home.kubeconfig(id));
        kubeconfig
            .context("cannot delete the transient kubeconfig")
            .map_err(fault)?;
        let current = {
            let mut inner = self.inner();
            if inner.current == id {
                inner.current = inner.connections.keys().next().cloned().unwrap_or_default();
            }
            inner.current.clone()
        };
        self.note_current(&current);
        Ok(())
    }

    /// Which connection is the current one, for the next start. Nothing is undone for want of it.
    fn note_current(&self, id: &str) {
        let path = self.home.current();
        let noted = match id {
            "" => home::remove(&path).map_err(anyhow::Error::from),
            id => home::write(&path, id.as_bytes()),
        };
        if let Err(error) = noted {
            tracing::warn!(%error, "cannot note the current connection");
        }
    }

    /// The same with every connection, all at once. All are tried; the first failure is said.
    pub(crate) async fn disconnect_all(&self, patience: Duration) -> Result<Vec<String>, Fault> {
        let ids = self.ids();
        let ended = ids.iter().map(|id| self.disconnect(id, patience));
        let ended = futures_util::future::join_all(ended).await;
        // Somebody else may have been faster.
        let failed = ended
            .into_iter()
            .filter_map(Result::err)
            .find(|f| f.exit != 51);
        failed.map_or(Ok(ids), Err)
    }

    fn ids(&self) -> Vec<String> {
        let inner = self.inner();
        let broken = inner.problems.iter().map(|p| p.id.clone());
        inner.connections.keys().cloned().chain(broken).collect()
    }

    /// Opens nothing from now on.
    pub(crate) fn refuse(&self) {
        self.inner().ending = true;
    }

    /// Waits for whoever is opening or ending a connection; for who refuses any more.
    pub(crate) async fn settle(&self) {
        let locks: Vec<_> = self.inner().locks.values().cloned().collect();
        for lock in locks {
            drop(lock.lock().await);
        }
    }

    /// Ends every connection, and keeps all that is needed to bring it back.
    pub(crate) async fn suspend(&self, patience: Duration) {
        self.refuse();
        self.settle().await;
        let kept: Vec<_> = {
            let mut inner = self.inner();
            std::mem::take(&mut inner.connections)
                .into_values()
                .collect()
        };
        futures_util::future::join_all(kept.iter().map(|kept| kept.end(patience))).await;
    }

    /// Returns when the connection has ended.
    pub(crate) async fn ended(&self, id: &str) -> Result<(), Fault> {
        let mut ended = {
            let inner = self.inner();
            let kept = inner.connections.get(id);
            kept.ok_or_else(|| no_such_connection(id))?
                .ended
                .subscribe()
        };
        // The sender goes with the connection.
        while ended.changed().await.is_ok() {}
        Ok(())
    }

    // === what there is ===

    pub(crate) fn use_current(&self, id: &str) -> Result<(), Fault> {
        let mut inner = self.inner();
        if !inner.connections.contains_key(id) {
            return Err(no_such_connection(id));
        }
        id.clone_into(&mut inner.current);
        home::write(&self.home.current(), id.as_bytes()).map_err(fault)
    }

    pub(crate) fn status(&self) -> Status {
        let inner = self.inner();
        let list = inner.connections.values();
        let list: Vec<_> = list.map(|kept| kept.connection.status()).collect();
        let is_there = inner.connections.contains_key(&inner.current);
        let current = match is_there {
            true => inner.current.clone(),
            false => inner.connections.keys().next().cloned().unwrap_or_default(),
        };
        Status {
            list,
            current,
            problems: inner.problems.clone(),
            daemon: None,
        }
    }
}

impl Kept {
    async fn end(&self, patience: Duration) {
        self.keeper.abort();
        self.connection.end(patience).await;
    }
}

/// One less when dropped.
struct Busy<'a>(&'a watch::Sender<usize>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

/// Makes listeners the connection's own.
fn commit(connection: &Connection, started: Vec<(Wanted, Serving)>, asked: &[Wanted]) -> Opened {
    let new: Vec<_> = started.iter().map(|(wanted, _)| wanted.clone()).collect();
    for (wanted, serving) in started {
        let bound = serving.addr.to_string();
        connection.adopt(wanted.clone(), serving);
        connection
            .saved()
            .listeners
            .push(SavedListener { wanted, bound });
    }
    let attached = asked.iter().map(|wanted| Attached {
        wanted: wanted.clone(),
        bound: connection
            .listener(wanted)
            .and_then(Result::ok)
            .unwrap_or_default(),
        already: !new.contains(wanted),
    });
    Opened {
        id: connection.saved().id.clone(),
        listeners: attached.collect(),
        endings: Vec::new(),
    }
}

async fn end_all(serving: impl IntoIterator<Item = Serving>) {
    for serving in serving {
        serving.end(Duration::ZERO).await;
    }
}

fn other_flags(connection: &Connection, wanted: &Wanted) -> Fault {
    let (id, flag) = (connection.saved().id.clone(), wanted.kind.flag());
    Fault::new(
        53,
        format!(
            "connection {id} has a listener on {} with other flags: leave them as they were, pick another address with \
             {flag}, or end it with kubevpn disconnect {id}",
            wanted.address
        ),
    )
}

fn no_such_connection(id: &str) -> Fault {
    Fault::new(
        51,
        format!("there is no connection {id}: kubevpn status lists those there are"),
    )
}

fn fault(error: anyhow::Error) -> Fault {
    Fault::from(&Failure::Other(error))
}
