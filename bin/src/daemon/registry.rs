//! All connections: brought back here, opened in `connect.rs`, ended in `end.rs`.
//!
//! What survives a kill at any point: a connection is there once its state file is, and gone once that is gone. The
//! transient kubeconfig is written before and deleted after; one without a state file is deleted at the next start.

mod connect;
mod end;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kubevpn_stack::OwnListeners;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::task::AbortHandle;
use tracing::instrument::WithSubscriber as _;

use super::api::{Fault, Problem, Status};
use super::connection::Connection;
use super::home::{self, Home};
use super::keep;
use super::saved::Saved;
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

impl Registry {
    /// Brings back what was there, as far as that can be done without asking anybody. For who holds the lock.
    pub(crate) async fn bring_back(home: Home, verbose: u8) -> anyhow::Result<Arc<Self>> {
        home.tidy()?;
        let current = home.read_current()?;
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

    /// Makes a connection the current one, on disk and then in memory: a full disk changes nothing.
    async fn set_current(&self, id: &str) -> anyhow::Result<()> {
        // No ID: nobody else takes this lock.
        let _lock = self.lock("current").await;
        let path = self.home.current();
        match id {
            "" => home::remove(&path)?,
            id => home::write(&path, id.as_bytes())?,
        }
        id.clone_into(&mut self.inner().current);
        Ok(())
    }

    pub(crate) async fn use_current(&self, id: &str) -> Result<(), Fault> {
        if !self.inner().connections.contains_key(id) {
            return Err(no_such_connection(id));
        }
        self.set_current(id).await.map_err(failed)
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

fn no_such_connection(id: &str) -> Fault {
    Fault::new(
        51,
        format!("there is no connection {id}: kubevpn status lists those there are"),
    )
}

fn failed(error: anyhow::Error) -> Fault {
    Fault::from(&Failure::Other(error))
}
