//! Closes one connection, all, and the registry.

use std::time::Duration;

use super::{Registry, RegistryEntry};
use crate::engine::Engine;
use crate::error::{ApiError, Code, ErrorContext as _};
use crate::{failpoint, state_dir};

impl<E: Engine> Registry<E> {
    /// Closes a connection and deletes its files, except its log; broken files are deleted too.
    pub(crate) async fn disconnect(&self, id: &str, patience: Duration) -> Result<(), ApiError> {
        let _lock = self.lock(id).await;
        let (entry, broken) = {
            let mut inner = self.inner();
            let entry = inner.connections.remove(id);
            let broken = inner.problems.iter().any(|p| p.id == id);
            if entry.is_none() && !broken {
                return Err(ApiError::no_such_connection(id));
            }
            (entry, broken)
        };
        failpoint::point("disconnect:begun");
        let deleted = state_dir::remove(&self.dir.state(id));
        let deleted = deleted.and_then(|()| state_dir::sync(&self.dir.connections()));
        if let Err(error) = deleted {
            // Its state file still exists, and would restore it: so it stays open.
            if let Some(entry) = entry {
                self.inner().connections.insert(id.to_owned(), entry);
            }
            return Err(ApiError::caused_by(
                Code::Other,
                "cannot delete the state file",
                &error,
            ));
        }
        failpoint::point("disconnect:forgotten");
        if broken {
            self.inner().problems.retain(|p| p.id != id);
        }
        if let Some(entry) = entry {
            entry.end(patience).await;
            self.busy.send_modify(|n| *n -= 1);
        }
        failpoint::point("disconnect:ended");
        let kubeconfig = state_dir::remove(&self.dir.kubeconfig(id));
        kubeconfig.context("cannot delete the transient kubeconfig")?;
        let next = {
            let inner = self.inner();
            (inner.current == id)
                .then(|| inner.connections.keys().next().cloned().unwrap_or_default())
        };
        if let Some(next) = next
            && let Err(error) = self.set_current(&next).await
        {
            tracing::warn!(%error, "cannot store the current connection");
        }
        Ok(())
    }

    /// Closes all connections concurrently. All are tried, and the first error is returned.
    pub(crate) async fn disconnect_all(&self, patience: Duration) -> Result<Vec<String>, ApiError> {
        let ids = self.ids();
        let ended = ids.iter().map(|id| self.disconnect(id, patience));
        let ended = futures_util::future::join_all(ended).await;
        // Another command may have closed it.
        let failed = ended
            .into_iter()
            .filter_map(Result::err)
            .find(|error| error.code != Code::NoSuchConnection);
        failed.map_or(Ok(ids), Err)
    }

    fn ids(&self) -> Vec<String> {
        let inner = self.inner();
        let broken = inner.problems.iter().map(|p| p.id.clone());
        inner.connections.keys().cloned().chain(broken).collect()
    }

    /// Refuses to open connections from now on.
    pub(crate) fn refuse(&self) {
        self.inner().ending = true;
    }

    /// Returns once there has been no connection for `idle`. From then on, none is opened.
    pub(crate) async fn idle(&self, idle: Duration) {
        let mut busy = self.busy.subscribe();
        loop {
            // The sender is a field of this registry.
            let _ = busy.wait_for(|n| *n == 0).await;
            tokio::select! {
                biased;
                _ = busy.wait_for(|n| *n > 0) => {}
                () = tokio::time::sleep(idle) => {
                    if self.refuse_if_idle() {
                        return;
                    }
                }
            }
        }
    }

    /// A `connect` increments the count before it checks whether the daemon is ending, and both are checked under the lock
    /// here: so it is either counted or refused.
    fn refuse_if_idle(&self) -> bool {
        let mut inner = self.inner();
        inner.ending = *self.busy.borrow() == 0;
        inner.ending
    }

    /// Waits for tasks that open or close a connection. New ones have to be refused before.
    pub(crate) async fn settle(&self) {
        let locks: Vec<_> = self.inner().locks.values().cloned().collect();
        for lock in locks {
            drop(lock.lock().await);
        }
    }

    /// Closes every connection, and keeps the files that restore it.
    pub(crate) async fn suspend(&self, patience: Duration) {
        self.refuse();
        self.settle().await;
        let entries: Vec<_> = {
            let mut inner = self.inner();
            std::mem::take(&mut inner.connections)
                .into_values()
                .collect()
        };
        futures_util::future::join_all(entries.iter().map(|entry| entry.end(patience))).await;
    }

    /// Waits until the connection has ended.
    pub(crate) async fn ended(&self, id: &str) -> Result<(), ApiError> {
        let mut ended = {
            let inner = self.inner();
            let entry = inner.connections.get(id);
            entry
                .ok_or_else(|| ApiError::no_such_connection(id))?
                .ended
                .subscribe()
        };
        // The sender is dropped with the connection.
        while ended.changed().await.is_ok() {}
        Ok(())
    }
}

impl<E: Engine> RegistryEntry<E> {
    async fn end(&self, patience: Duration) {
        self.monitor.abort();
        self.connection.end(patience).await;
    }
}
