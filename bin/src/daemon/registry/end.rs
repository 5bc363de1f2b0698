//! The end of one connection, of all, and of the daemon.

use std::time::Duration;

use anyhow::Context as _;

use super::super::api::Fault;
use super::super::{fault, home};
use super::{Kept, Registry, failed, no_such_connection};

impl Registry {
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
            return Err(failed(
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
            .map_err(failed)?;
        let next = {
            let inner = self.inner();
            (inner.current == id)
                .then(|| inner.connections.keys().next().cloned().unwrap_or_default())
        };
        if let Some(next) = next
            && let Err(error) = self.set_current(&next).await
        {
            tracing::warn!(%error, "cannot note the current connection");
        }
        Ok(())
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
}

impl Kept {
    async fn end(&self, patience: Duration) {
        self.keeper.abort();
        self.connection.end(patience).await;
    }
}
