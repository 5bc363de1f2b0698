//! Bound listeners, served: the frontends over one backend, until it is over.

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

/// What is being served. Listeners can be added at any time; they share limits and backend.
pub struct Server<C> {
    frontends: Arc<Frontends<C>>,
    gate: Gate,
    drain: Drain,
    accepting: JoinSet<()>,
    /// Where SOCKS5 is spoken, for the PAC file.
    socks: Arc<OnceLock<SocketAddr>>,
    expect: Option<Expect>,
    /// Where clients are logged, if not with everything else.
    log: Option<Dispatch>,
    view: Option<ProxyView>,
    /// Its own place on the journal's list.
    listening: Vec<ListenerGuard>,
}

impl<C: Connect + Clone + Sync + 'static> Server<C> {
    /// Serves nothing yet. Credentials are asked of every client whose protocol has a place for them.
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
        // It would name the proxy as one without TLS.
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

    /// What becomes of the connections of listeners added from now on is told to its journal, and admin listeners show it.
    pub fn observed_by(&mut self, view: ProxyView) {
        self.view = Some(view);
    }

    /// What the clients of listeners added from now on do is logged there.
    pub fn log_to(&mut self, log: Dispatch) {
        self.log = Some(log);
    }

    /// How many clients are connected, without those that have their answer and may have left.
    pub fn open(&self) -> usize {
        self.gate.open()
    }

    /// Accepts no more.
    pub fn stop(&self) {
        self.drain.stop();
    }

    /// Accepts clients from now on; the way to where a forward leads is opened before the first of them.
    pub fn add(&mut self, bound: Bound) {
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
                // The admin listener says so itself, with its page.
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
            let state = admin::AdminState::new(listener.addr());
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

    /// Accepts no more, lets open connections finish for `patience` or until `cut`, and ends the rest.
    pub async fn end(self, patience: Duration, cut: impl Future<Output = ()>) {
        match self.drain.open() {
            0 => tracing::debug!("ending"),
            connections => tracing::info!(connections, "ending"),
        }
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

/// What a future does is logged there, its being dropped included: a connection that is cut says so then.
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

/// A client being served. In a box of its own size: that of the largest frontend is thrice the smallest one's.
type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Every frontend over one backend.
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
    /// One connection, what is spoken on it inside TLS.
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
                // It left, as a look at whether the port is open does, or was silent.
                Some(Err(_)) | None => recorder.start().unused(),
            }
        })
    }

    /// What is waited for before a client has asked for anything: no longer than for a handshake, and not when the drain
    /// begins.
    async fn before_the_end<T>(&self, waited: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = tokio::time::timeout(HANDSHAKE_TIMEOUT, waited) => done.ok(),
            () = self.drain.stopping() => None,
        }
    }

    /// One connection. How it ended is in the access record.
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
            // It is served by itself.
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

    /// A client that has asked for nothing is not waited for, whatever the patience, and has its record.
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
        // Well before the handshake's own limit would end it.
        let ended = tokio::time::timeout(HANDSHAKE_TIMEOUT / 2, ending).await;
        assert!(ended.is_ok(), "it waits for a client that has said nothing");
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        let mut logged = String::new();
        log.read_to_string(&mut logged).unwrap();
        assert!(logged.contains("end=\"unused\""), "{logged}");
    }

    #[tokio::test]
    async fn what_a_forward_leads_to_is_expected_when_it_is_served() {
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

    /// An open connection holds this for as long as it lives.
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
