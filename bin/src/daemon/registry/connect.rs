//! Opening a connection, and adding to one: all that was asked for, or nothing has changed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::super::api::{Ask, Attached, Fault, Opened};
use super::super::connection::Connection;
use super::super::listener::{Kind, Serving, Wanted};
use super::super::saved::{Saved, SavedListener};
use super::super::{fault, home, identity, keep, probe};
use super::{Registry, failed};
use crate::exit::Failure;

/// Told what was done.
pub(crate) type Tell<'a> = &'a (dyn Fn(String) + Sync);

impl Registry {
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
        // The connection is there, whether or not this can be noted.
        if let Err(error) = self.set_current(&opened.id).await {
            tracing::warn!(%error, "cannot note the current connection");
        }
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
            return Err(failed(error));
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
        let text = serde_json::to_vec(&ask.kubeconfig).map_err(|e| failed(e.into()))?;
        home::write(&kubeconfig, &text).map_err(failed)?;
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
            return Err(failed(error));
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
