//! The registry of all connections: restored here, opened in `connect.rs`, closed in `end.rs`.
//!
//! The process may be killed at any point: a connection exists exactly as long as its state file. The transient kubeconfig
//! is written before that file and deleted after it; one without a state file is deleted at the next start.

mod connect;
mod end;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, watch};
use tokio::task::AbortHandle;
use tracing::instrument::WithSubscriber as _;

use crate::api::{StateFileProblem, StatusReport};
use crate::connection::ManagedConnection;
use crate::engine::Engine;
use crate::error::{ApiError, ErrorContext as _};
use crate::monitor;
use crate::saved::Saved;
use crate::state_dir::{self, StateDir};

/// Time limit for open connections to finish at the end.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// The connections of the daemon.
pub(crate) struct Registry<E: Engine> {
    dir: StateDir,
    engine: E,
    inner: Mutex<RegistryShared<E>>,
    /// Number of connections, including those being opened.
    busy: watch::Sender<usize>,
}

struct RegistryShared<E: Engine> {
    connections: BTreeMap<String, RegistryEntry<E>>,
    problems: Vec<StateFileProblem>,
    current: String,
    /// A lock for each connection, held while it is changed.
    locks: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
    /// Whether the daemon is ending, and opens no connections.
    ending: bool,
}

struct RegistryEntry<E: Engine> {
    connection: Arc<ManagedConnection<E::Session>>,
    monitor: AbortHandle,
    ended: watch::Sender<()>,
}

impl<E: Engine> Registry<E> {
    /// Restores the connections, as far as that needs no calls. The caller holds the daemon's lock.
    pub(crate) async fn bring_back(dir: StateDir, engine: E) -> Result<Arc<Self>, ApiError> {
        let what = format!("cannot look through {}", dir.connections().display());
        dir.tidy().context(&what)?;
        let current = dir.read_current()?;
        let ids = dir.saved().context(&what)?;
        let registry = Arc::new(Self {
            dir,
            engine,
            inner: Mutex::new(RegistryShared {
                connections: BTreeMap::new(),
                problems: Vec::new(),
                current,
                locks: HashMap::new(),
                ending: false,
            }),
            busy: watch::Sender::new(0),
        });
        for id in ids {
            match registry.bring_one_back(&id).await {
                Ok(()) => tracing::info!(id, "connection restored"),
                Err(reason) => {
                    tracing::warn!(id, reason, "connection not restored");
                    registry
                        .inner()
                        .problems
                        .push(StateFileProblem { id, reason });
                }
            }
        }
        Ok(registry)
    }

    async fn bring_one_back(&self, id: &str) -> Result<(), String> {
        let saved = Saved::read(&self.dir, id)?;
        let loaded = monitor::transient(&self.dir, id, &saved.kubeconfig)
            .map_err(|error| format!("its kubeconfig cannot be used: {}", error.whole()))?;
        let connection = ManagedConnection::new(&self.engine, &self.dir, saved, loaded.config)
            .map_err(|error| error.whole())?;
        connection.restore().await;
        self.insert(id, connection);
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, RegistryShared<E>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, id: &str, connection: Arc<ManagedConnection<E::Session>>) {
        let log = connection.log.dispatch.clone();
        let monitoring = monitor::monitor(self.dir.clone(), connection.clone());
        let monitor = tokio::spawn(monitoring.with_subscriber(log)).abort_handle();
        let entry = RegistryEntry {
            connection,
            monitor,
            ended: watch::Sender::new(()),
        };
        self.inner().connections.insert(id.to_owned(), entry);
        self.busy.send_modify(|n| *n += 1);
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<ManagedConnection<E::Session>>> {
        let inner = self.inner();
        Some(inner.connections.get(id)?.connection.clone())
    }

    async fn lock(&self, id: &str) -> OwnedMutexGuard<()> {
        let lock = self.inner().locks.entry(id.to_owned()).or_default().clone();
        lock.lock_owned().await
    }

    /// Makes a connection the current one, on disk before in memory, so that a full disk changes nothing.
    async fn set_current(&self, id: &str) -> Result<(), ApiError> {
        // This is not an ID, so no connection uses this lock.
        let _lock = self.lock("current").await;
        let path = self.dir.current();
        match id {
            "" => state_dir::remove(&path).context(format!("cannot delete {}", path.display()))?,
            id => state_dir::write(&path, id.as_bytes())?,
        }
        id.clone_into(&mut self.inner().current);
        Ok(())
    }

    pub(crate) async fn use_current(&self, id: &str) -> Result<(), ApiError> {
        if !self.inner().connections.contains_key(id) {
            return Err(ApiError::no_such_connection(id));
        }
        self.set_current(id).await
    }

    pub(crate) fn status(&self) -> StatusReport {
        let inner = self.inner();
        let list = inner.connections.values();
        let list: Vec<_> = list.map(|entry| entry.connection.status()).collect();
        let is_there = inner.connections.contains_key(&inner.current);
        let current = match is_there {
            true => inner.current.clone(),
            false => inner.connections.keys().next().cloned().unwrap_or_default(),
        };
        StatusReport {
            list,
            current,
            problems: inner.problems.clone(),
            daemon: None,
        }
    }
}

#[cfg(test)]
mod tests;
