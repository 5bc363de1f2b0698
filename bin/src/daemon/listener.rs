//! One listener of a connection.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use kubevpn_conn::{Addr, Credentials, Limits};
use kubevpn_stack::OwnListeners;
use kubevpn_target::{Connect, Origin, Target};
use serde::{Deserialize, Serialize};
use tracing::Dispatch;

use crate::exit::Failure;
use crate::proxy::{self, Backend, Bound, Clients, PacArgs, Protocol, Server, credentials_in};

/// A listener as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Wanted {
    pub(crate) kind: Kind,
    pub(crate) address: String,
    /// Where its user and password are.
    pub(crate) auth_file: Option<PathBuf>,
    pub(crate) allow_unauthenticated: bool,
    /// Whether it dials everything from this machine.
    pub(crate) egress: bool,
    pub(crate) max_connections: usize,
    pub(crate) max_connections_per_client: Option<usize>,
    /// Who is asked for names that are not the cluster's.
    #[serde(default)]
    pub(crate) dns_upstream: Option<String>,
    #[serde(default)]
    pub(crate) pac: PacArgs,
}

/// What is spoken on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Socks,
    Http,
    Mixed,
    /// What this `HOST:PORT` speaks.
    Forward(String),
    /// By TCP and by UDP.
    Dns,
}

impl Kind {
    pub(crate) fn flag(&self) -> &'static str {
        match self {
            Self::Socks => "--socks-listen",
            Self::Http => "--http-listen",
            Self::Mixed => "--listen",
            Self::Forward(_) => "--forward",
            Self::Dns => "--dns-listen",
        }
    }

    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Socks => "socks",
            Self::Http => "http",
            Self::Mixed => "mixed",
            Self::Forward(_) => "forward",
            Self::Dns => "dns",
        }
    }

    fn protocol(&self) -> Result<Protocol, Failure> {
        Ok(match self {
            Self::Socks => Protocol::Socks,
            Self::Http => Protocol::Http,
            Self::Mixed => Protocol::Mixed,
            Self::Forward(to) => Protocol::Forward(
                Target::parse(to, Origin::default())
                    .map_err(|error| Failure::Value(format!("--forward {to}: {error}")))?,
            ),
            Self::Dns => Protocol::Dns,
        })
    }
}

impl Wanted {
    /// With every flag as it is when it is left out.
    #[cfg(test)]
    pub(crate) fn of(kind: Kind, address: &str) -> Self {
        Self {
            kind,
            address: address.into(),
            auth_file: None,
            allow_unauthenticated: false,
            egress: false,
            max_connections: Limits::default().total,
            max_connections_per_client: None,
            dns_upstream: None,
            pac: PacArgs::default(),
        }
    }

    /// Who may use it; everybody where no file is named.
    fn credentials(&self) -> Result<Option<Credentials>, Failure> {
        self.auth_file.as_deref().map(credentials_in).transpose()
    }

    /// Binds it at `address`, which is where it was asked for or where it has been before.
    pub(crate) async fn bind(&self, address: &str) -> Result<Bound, Failure> {
        let flag = self.kind.flag();
        let addr = address
            .parse()
            .map_err(|error| Failure::Value(format!("{flag}: {error}")))?;
        let asks = self.auth_file.is_some();
        let protocol = self.kind.protocol()?;
        proxy::bind(flag, &addr, protocol, asks, self.allow_unauthenticated).await
    }

    /// Accepts clients from now on; what they do is logged by `log`.
    pub(crate) fn serve<C>(
        &self,
        bound: Bound,
        backend: Backend<C>,
        log: Dispatch,
        own: OwnListeners,
    ) -> Result<Serving, Failure>
    where
        C: Connect + Clone + Sync + 'static,
    {
        let limits = Limits {
            total: self.max_connections,
            per_client: self.max_connections_per_client,
        };
        proxy::allow_for(limits.total);
        let addr = bound.listener.addr().clone();
        let tcp = bound.address();
        let clients = Clients {
            credentials: self.credentials()?,
            limits,
            dns: proxy::dns_settings(self.dns_upstream.as_deref(), tcp.as_slice())?,
            pac: self.pac.flags()?,
        };
        let mut server = Server::new(backend, clients);
        server.log_to(log);
        server.add(bound);
        own.add(tcp);
        Ok(Serving {
            addr,
            server: Box::new(server),
            _own: Own(own, tcp),
        })
    }
}

/// A listener that is served.
pub(crate) struct Serving {
    pub(crate) addr: Addr,
    server: Box<dyn Served>,
    _own: Own,
}

/// An address on the list of those that are never dialled; off it when dropped.
struct Own(OwnListeners, Option<SocketAddr>);

impl Drop for Own {
    fn drop(&mut self) {
        self.0.remove(self.1);
    }
}

impl Serving {
    /// Clients connected now.
    pub(crate) fn open(&self) -> usize {
        self.server.open()
    }

    /// Stops listening, and tells connections between two requests to end.
    pub(crate) fn stop(&self) {
        self.server.stop();
    }

    /// Lets clients finish for a while, and cuts the rest.
    pub(crate) async fn end(self, patience: Duration) {
        self.server.end(patience).await;
        tracing::info!(listener = %self.addr, "no longer listening");
    }
}

/// A [`Server`], whatever it connects to.
trait Served: Send + Sync {
    fn open(&self) -> usize;
    fn stop(&self);
    fn end(self: Box<Self>, patience: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

impl<C: Connect + Clone + Sync + 'static> Served for Server<C> {
    fn open(&self) -> usize {
        self.open()
    }

    fn stop(&self) {
        self.stop();
    }

    fn end(self: Box<Self>, patience: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin((*self).end(patience, std::future::pending()))
    }
}
