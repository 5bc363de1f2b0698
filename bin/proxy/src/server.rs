//! The server: all frontends over one backend, from bound listeners to the end of the drain.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use kubevpn_conn::{
    Addr, Client, ClientIo, Drain, Gate, HANDSHAKE_TIMEOUT, Recorder, SniffedProtocol,
};
use kubevpn_target::{Connect, Frontend};
use tokio::task::JoinSet;
use tracing::Dispatch;
use tracing::dispatcher::with_default;

use crate::admin::{self, ProxyReadiness};
use crate::journal::{ListenerGuard, ProxyView};
use crate::pac_file::PacFile;
use crate::{Backend, Bound, Clients, Expect, ListenerTls, NameService, Protocol};

/// A server of listeners. Listeners can be added at any time; they share limits and backend.
pub struct Server<C> {
    frontends: Arc<Frontends<C>>,
    gate: Gate,
    drain: Drain,
    accepting: JoinSet<()>,
    /// Address of the SOCKS5 listener, for the PAC file.
    socks: Arc<OnceLock<SocketAddr>>,
    expect: Option<Expect>,
    /// Log of the clients, if it is a separate one.
    log: Option<Dispatch>,
    view: Option<ProxyView>,
    /// Entries of its listeners in the journal.
    listening: Vec<ListenerGuard>,
}

impl<C: Connect + Clone + Sync + 'static> Server<C> {
    /// A server without listeners. Clients have to send credentials if their protocol can carry them.
    pub fn new(backend: Backend<C>, clients: Clients) -> Self {
        let Clients {
            credentials,
            tls,
            reread,
            limits,
            dns,
            pac,
            http,
        } = clients;
        let drain = Drain::new();
        let socks = Arc::new(OnceLock::new());
        // The file would name a proxy without TLS.
        let cluster = backend.cluster.filter(|_| tls.is_none());
        let pac = cluster.map(|cluster| {
            PacFile::new(cluster, pac, socks.clone(), backend.expect.clone()).served()
        });
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
                names: http.names,
                keep_host: http.keep_host,
                drain: drain.clone(),
                ..Default::default()
            },
            dns,
            tls,
            drain: drain.clone(),
        };
        let mut accepting = JoinSet::new();
        for reread in reread {
            let drain = drain.clone();
            accepting.spawn(async move {
                tokio::select! {
                    () = reread.run() => {}
                    () = drain.stopping() => {}
                }
            });
        }
        Self {
            frontends: Arc::new(frontends),
            gate: Gate::new(limits),
            drain,
            accepting,
            socks,
            expect: backend.expect,
            log: None,
            view: None,
            listening: Vec::new(),
        }
    }

    /// Reports the connections of listeners that are added later to the journal of `view`, which admin listeners show.
    pub fn observed_by(&mut self, view: ProxyView) {
        self.view = Some(view);
    }

    /// Logs the clients of listeners that are added later to `log`.
    pub fn log_to(&mut self, log: Dispatch) {
        self.log = Some(log);
    }

    /// Number of connected clients, without those that have their complete answer and may have closed.
    pub fn open(&self) -> usize {
        self.gate.open()
    }

    /// Stops accepting.
    pub fn stop(&self) {
        self.drain.stop();
    }

    /// Accepts clients from now on. For a forward, a session to its target is opened before the first client.
    pub fn add(&mut self, bound: Bound) {
        let Bound {
            listener,
            udp,
            protocol,
        } = bound;
        let frontends = self.frontends.clone();
        if let (Protocol::Socks | Protocol::Mixed, Addr::Tcp(addr)) = (&protocol, listener.addr()) {
            // If there are several, the first is used.
            let _ = self.socks.set(*addr);
        }
        if let (Protocol::Forward(to), Some(expect)) = (&protocol, &self.expect) {
            expect(Some(&to.0.host));
        }
        if let (Some(udp), Some(names)) = (udp, &frontends.names) {
            let (names, settings) = (names.clone(), frontends.dns.clone());
            let serving = kubevpn_dns::serve_udp(udp, names, settings, self.drain.clone());
            self.accepting.spawn(serving);
        }
        let log = self.log.clone();
        let listener = match &self.view {
            Some(view) => {
                let journal = view.journal();
                // The admin listener adds its own entry, with its page.
                if protocol != Protocol::Admin {
                    let listening = journal.listening(listener.addr(), &protocol, None);
                    self.listening.push(listening);
                }
                listener.observed(journal.observer())
            }
            None => listener,
        };
        let listener = match frontends.socks.credentials.is_some() && protocol.asks_for_password() {
            true => listener.asks_for_password(),
            false => listener,
        };
        let admin = (protocol == Protocol::Admin).then(|| {
            let state = admin::AdminState::new(listener.addr(), false);
            state.set(ProxyReadiness::Ready);
            if let Some(view) = &self.view {
                state.show(view.clone());
            }
            state
        });
        let serving = listener.serve(self.gate.clone(), self.drain.clone(), move |client| {
            if let Some(admin) = &admin {
                return Box::pin(admin::serve(client, admin.clone())) as Serving;
            }
            let serving = match &frontends.tls {
                Some(tls) if protocol.asks_for_password() => {
                    frontends.clone().serve_inside(tls, &protocol, client)
                }
                _ => frontends.clone().serve(&protocol, client),
            };
            match &log {
                Some(log) => Box::pin(Logged::new(serving, log.clone())),
                None => serving,
            }
        });
        self.accepting.spawn(serving);
    }

    /// Stops accepting, waits for open connections up to `patience` or until `cut`, and cuts the rest.
    pub async fn end(self, patience: Duration, cut: impl Future<Output = ()>) {
        match self.drain.open() {
            0 => tracing::debug!("ending"),
            connections => tracing::info!(connections, "ending"),
        }
        tokio::select! {
            drained = self.drain.drain(patience) => {
                tracing::debug!(finished = drained.finished, cut = drained.cut, "ended");
            }
            () = cut => {
                self.drain.drain(Duration::ZERO).await;
            }
        }
        // The file of a Unix socket is deleted with its listener.
        self.accepting.join_all().await;
    }
}

/// A future whose events are logged to `log`, including those of its drop: the access record of a connection that is cut is
/// written then.
struct Logged {
    future: Option<Serving>,
    log: Dispatch,
}

impl Logged {
    fn new(future: Serving, log: Dispatch) -> Self {
        let future = Some(future);
        Self { future, log }
    }
}

impl Future for Logged {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { future, log } = &mut *self;
        let future = future.as_mut().expect("it is there until it is dropped");
        with_default(log, || future.as_mut().poll(cx))
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        with_default(&self.log, || drop(self.future.take()));
    }
}

/// The future that serves a client. It is boxed because that of the largest frontend is three times the size of the
/// smallest.
type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// All frontends over one backend.
struct Frontends<C> {
    connect: C,
    names: Option<NameService>,
    socks: kubevpn_socks5::Settings,
    http: kubevpn_http_connect::Settings,
    dns: kubevpn_dns::Settings,
    tls: Option<ListenerTls>,
    drain: Drain,
}

impl<C: Connect + Clone + Sync + 'static> Frontends<C> {
    /// Serves a connection whose protocol is inside TLS.
    fn serve_inside(
        self: Arc<Self>,
        tls: &ListenerTls,
        protocol: &Protocol,
        client: Client,
    ) -> Serving {
        let (tls, protocol) = (tls.clone(), protocol.clone());
        Box::pin(async move {
            let recorder = Recorder::new(Frontend::Other, &client);
            let accepted = self.before_the_end(tls.accept(client)).await;
            match accepted {
                Some(Ok(client)) => self.serve(&protocol, client).await,
                Some(Err(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
                    recorder.start().rejected(&error);
                }
                // The client closed the connection, like a port scan does, or was silent.
                Some(Err(_)) | None => recorder.start().unused(),
            }
        })
    }

    /// Waits for a client that has not sent a request, at most as long as for a handshake, and until the drain begins.
    async fn before_the_end<T>(&self, waited: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = tokio::time::timeout(HANDSHAKE_TIMEOUT, waited) => done.ok(),
            () = self.drain.stopping() => None,
        }
    }

    /// Serves a connection. Its result is in the access record.
    fn serve<I: ClientIo + 'static>(self: Arc<Self>, protocol: &Protocol, client: I) -> Serving {
        match protocol {
            Protocol::Socks => self.socks(client),
            Protocol::Http => self.http(client),
            Protocol::Mixed => Box::pin(async move {
                let recorder = Recorder::new(Frontend::Other, &client);
                let opening = self.before_the_end(SniffedProtocol::read(client)).await;
                match opening {
                    Some(Ok((SniffedProtocol::Http, client))) => self.http(client).await,
                    Some(Ok((SniffedProtocol::Socks, client))) => self.socks(client).await,
                    Some(Err(_)) | None => recorder.start().unused(),
                }
            }),
            Protocol::Forward(to) => {
                let to = to.clone();
                Box::pin(async move {
                    let connect = self.connect.clone();
                    let _ended =
                        kubevpn_forward::serve_connection(client, &to.0, connect, None).await;
                })
            }
            // The admin listener has a server of its own.
            Protocol::Admin => Box::pin(async {}),
            Protocol::Dns => Box::pin(async move {
                if let Some(names) = self.names.clone() {
                    let _ended = kubevpn_dns::serve_stream(client, names, &self.dns).await;
                }
            }),
        }
    }

    fn socks<I: ClientIo + 'static>(self: Arc<Self>, client: I) -> Serving {
        Box::pin(async move {
            let connect = self.connect.clone();
            let _ended = kubevpn_socks5::serve_connection(client, connect, &self.socks).await;
        })
    }

    fn http<I: ClientIo + 'static>(self: Arc<Self>, client: I) -> Serving {
        Box::pin(async move {
            let connect = self.connect.clone();
            let _ended = kubevpn_http_connect::serve_connection(client, connect, &self.http).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::Mutex;

    use kubevpn_target::{BoxError, Host, Origin, Target};
    use tokio::io::AsyncReadExt as _;
    use tower::service_fn;

    use super::*;
    use crate::{ForwardTo, ListenerSpec};

    /// The drain does not wait for a client without a request, and its access record is written.
    #[tokio::test]
    async fn drain_does_not_wait_for_a_client_before_its_first_byte() {
        let spec = ListenerSpec::new(Protocol::Mixed, "127.0.0.1:0".parse().unwrap());
        let mut bound = spec.bind(&spec.address, false).await.unwrap();
        let bound = bound.remove(0);
        let connect = service_fn(async |_: Target| Ok::<_, BoxError>(tokio::io::duplex(1).0));
        let mut server = Server::new(Backend::of_host(connect), spec.clients(&[]).unwrap());
        let address = bound.address().unwrap();
        let (mut log, writer) = io::pipe().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG);
        server.log_to(Dispatch::new(
            subscriber.with_writer(Arc::new(writer)).finish(),
        ));
        server.add(bound);
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        while server.open() == 0 {
            tokio::task::yield_now().await;
        }
        let ending = server.end(Duration::from_secs(3600), std::future::pending());
        // This is well before the time limit of the handshake.
        let ended = tokio::time::timeout(HANDSHAKE_TIMEOUT / 2, ending).await;
        assert!(ended.is_ok(), "it waits for a client that has said nothing");
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        let mut logged = String::new();
        log.read_to_string(&mut logged).unwrap();
        assert!(logged.contains("end=\"unused\""), "{logged}");
    }

    #[tokio::test]
    async fn a_session_is_opened_ahead_for_a_forward() {
        let to = Target::parse("db.shop:5432", Origin::default()).unwrap();
        let protocol = Protocol::Forward(ForwardTo(to.clone()));
        let spec = ListenerSpec::new(protocol, "127.0.0.1:0".parse().unwrap());
        let bound = spec.bind(&spec.address, false).await.unwrap().remove(0);
        let connect = service_fn(async |_: Target| Ok::<_, BoxError>(tokio::io::duplex(1).0));
        let expected = Arc::new(Mutex::new(Vec::new()));
        let told = expected.clone();
        let mut backend = Backend::of_host(connect);
        backend.expect = Some(Arc::new(move |host: Option<&Host>| {
            told.lock().unwrap().push(host.cloned());
        }));
        let mut server = Server::new(backend, spec.clients(&[]).unwrap());
        assert!(expected.lock().unwrap().is_empty());
        server.add(bound);
        assert_eq!(*expected.lock().unwrap(), [Some(to.host)]);
    }

    /// Every open connection has one of these futures.
    #[test]
    fn a_served_client_is_small() {
        let connect = service_fn(async |_: Target| {
            let big = [0_u8; 4096];
            tokio::task::yield_now().await;
            tracing::trace!(?big);
            Ok::<_, BoxError>(tokio::io::duplex(1).0)
        });
        let frontends = Arc::new(Frontends {
            connect,
            names: None,
            socks: kubevpn_socks5::Settings::default(),
            http: kubevpn_http_connect::Settings::default(),
            dns: kubevpn_dns::Settings::default(),
            tls: None,
            drain: Drain::new(),
        });
        let client = || tokio::io::duplex(1).0;
        let socks = frontends.clone().socks(client());
        assert!(size_of_val(&*socks) < 3 * 1024, "{}", size_of_val(&*socks));
        let http = frontends.http(client());
        assert!(size_of_val(&*http) < 6 * 1024, "{}", size_of_val(&*http));
    }
}
