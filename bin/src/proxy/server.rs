//! Bound listeners, served: the frontends over one backend, until it is over.

use std::sync::Arc;
use std::time::Duration;

use kubevpn_conn::{
    Client, ClientIo, Credentials, Drain, Gate, HANDSHAKE_TIMEOUT, Limits, Opening,
};
use kubevpn_target::Connect;
use tokio::task::JoinSet;

use super::{Bound, Protocol};

/// What is being served. Listeners can be added at any time; they share limits and backend.
pub(crate) struct Server<C> {
    frontends: Arc<Frontends<C>>,
    gate: Gate,
    drain: Drain,
    accepting: JoinSet<()>,
}

impl<C: Connect + Clone + Sync + 'static> Server<C> {
    /// Serves nothing yet. `credentials` are asked of every client whose protocol has a place for them.
    pub(crate) fn new(connect: C, credentials: Option<Credentials>, limits: Limits) -> Self {
        let drain = Drain::new();
        let frontends = Frontends {
            connect,
            socks: kubevpn_socks5::Settings {
                credentials: credentials.clone(),
                ..Default::default()
            },
            http: kubevpn_http_connect::Settings {
                credentials,
                drain: drain.clone(),
                ..Default::default()
            },
        };
        Self {
            frontends: Arc::new(frontends),
            gate: Gate::new(limits),
            drain,
            accepting: JoinSet::new(),
        }
    }

    /// Accepts clients from now on.
    pub(crate) fn add(&mut self, Bound { listener, protocol }: Bound) {
        let frontends = self.frontends.clone();
        let protocol = Arc::new(protocol);
        let serving = listener.serve(self.gate.clone(), self.drain.clone(), move |client| {
            let (frontends, protocol) = (frontends.clone(), protocol.clone());
            async move { frontends.serve(&protocol, client).await }
        });
        self.accepting.spawn(serving);
    }

    /// Accepts no more, lets open connections finish for `patience` or until `cut`, and ends the rest.
    pub(crate) async fn end(self, patience: Duration, cut: impl Future<Output = ()>) {
        tracing::info!(connections = self.drain.open(), "ending");
        tokio::select! {
            drained = self.drain.drain(patience) => {
                tracing::debug!(finished = drained.finished, cut = drained.cut, "ended");
            }
            () = cut => {}
        }
        // A Unix socket's file goes with its listener.
        self.accepting.join_all().await;
    }
}

/// Every frontend over one backend.
struct Frontends<C> {
    connect: C,
    socks: kubevpn_socks5::Settings,
    http: kubevpn_http_connect::Settings,
}

impl<C: Connect + Clone + Sync + 'static> Frontends<C> {
    /// One connection. How it ended is in the access record.
    async fn serve(&self, protocol: &Protocol, client: Client) {
        match protocol {
            Protocol::Socks => self.socks(client).await,
            Protocol::Http => self.http(client).await,
            Protocol::Mixed => self.mixed(client).await,
            Protocol::Forward(to) => {
                let connect = self.connect.clone();
                let _ended = kubevpn_forward::serve_connection(client, to, connect, None).await;
            }
        }
    }

    async fn socks<I: ClientIo>(&self, client: I) {
        let _ended =
            kubevpn_socks5::serve_connection(client, self.connect.clone(), &self.socks).await;
    }

    async fn http<I: ClientIo>(&self, client: I) {
        let _ended =
            kubevpn_http_connect::serve_connection(client, self.connect.clone(), &self.http).await;
    }

    async fn mixed(&self, client: Client) {
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, Opening::read(client)).await {
            Ok(Ok((Opening::Http, client))) => self.http(client).await,
            Ok(Ok((Opening::Socks, client))) => self.socks(client).await,
            Ok(Err(_)) | Err(_) => {}
        }
    }
}
