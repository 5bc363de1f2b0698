//! Bound listeners, served: the frontends over one backend, until it is over.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kubevpn_conn::{Addr, Client, ClientIo, Drain, Gate, HANDSHAKE_TIMEOUT, Opening};
use kubevpn_target::Connect;
use tokio::task::JoinSet;

use super::listen::Clients;
use super::pac::PacFile;
use super::{Backend, Bound, Names, Protocol};

/// What is being served. Listeners can be added at any time; they share limits and backend.
pub(crate) struct Server<C> {
    frontends: Arc<Frontends<C>>,
    gate: Gate,
    drain: Drain,
    accepting: JoinSet<()>,
    /// Where SOCKS5 is spoken, for the PAC file.
    socks: Arc<OnceLock<SocketAddr>>,
}

impl<C: Connect + Clone + Sync + 'static> Server<C> {
    /// Serves nothing yet. Credentials are asked of every client whose protocol has a place for them.
    pub(crate) fn new(backend: Backend<C>, clients: Clients) -> Self {
        let Clients {
            credentials,
            limits,
            dns,
            pac,
        } = clients;
        let drain = Drain::new();
        let socks = Arc::new(OnceLock::new());
        let pac = backend
            .cluster
            .map(|cluster| PacFile::new(cluster, pac, socks.clone()).served());
        let frontends = Frontends {
            connect: backend.connect,
            names: backend.names,
            socks: kubevpn_socks5::Settings {
                credentials: credentials.clone(),
                ..Default::default()
            },
            http: kubevpn_http_connect::Settings {
                credentials,
                pac,
                drain: drain.clone(),
                ..Default::default()
            },
            dns,
        };
        Self {
            frontends: Arc::new(frontends),
            gate: Gate::new(limits),
            drain,
            accepting: JoinSet::new(),
            socks,
        }
    }

    /// Accepts clients from now on.
    pub(crate) fn add(&mut self, bound: Bound) {
        let Bound {
            listener,
            udp,
            protocol,
        } = bound;
        let frontends = self.frontends.clone();
        if let (Protocol::Socks | Protocol::Mixed, Addr::Tcp(addr)) = (&protocol, listener.addr()) {
            // The first is as good as any.
            let _ = self.socks.set(*addr);
        }
        if let (Some(udp), Some(names)) = (udp, &frontends.names) {
            let (names, settings) = (names.clone(), frontends.dns.clone());
            let serving = kubevpn_dns::serve_udp(udp, names, settings, self.drain.clone());
            self.accepting.spawn(serving);
        }
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
    names: Option<Names>,
    socks: kubevpn_socks5::Settings,
    http: kubevpn_http_connect::Settings,
    dns: kubevpn_dns::Settings,
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
            Protocol::Dns => {
                if let Some(names) = self.names.clone() {
                    let _ended = kubevpn_dns::serve_stream(client, names, &self.dns).await;
                }
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
