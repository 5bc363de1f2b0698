//! A proxy from its listeners to the stack, and its life: start, serve, drain.

mod descriptors;
mod listen;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kubevpn_client::{Action, ApiServer, classify_api};
use kubevpn_conn::{Addr, Client, ClientIo, Drain, Gate, HANDSHAKE_TIMEOUT, Rewind};
use kubevpn_stack::{
    Cluster, ClusterSettings, Egress, Forwarder, ForwarderConfig, FromHost, Outside, Settings,
    Stack, stack,
};
use kubevpn_target::{Connect, ConnectError, Refusal};
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

pub(crate) use self::listen::{Bound, ListenArgs, Listening, Protocol};
use crate::exit::Failure;

/// How long open connections may take to finish once the program is told to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the API server may take to answer at the start.
const CHECK: Duration = Duration::from_secs(10);

/// The chain from a target to its stream, for one cluster.
pub(crate) fn connect(client: kube::Client, api_server: ApiServer, path: Path) -> ClusterStack {
    let cluster = Cluster::new(client.clone(), path.cluster);
    let forwarder = Forwarder::new(client, path.forwarder);
    let egress = Egress::new(api_server, path.outside, FromHost::new(path.own));
    stack(cluster, forwarder, egress, path.settings)
}

/// What [`connect`] makes.
pub(crate) type ClusterStack = Stack<Egress<ApiServer>>;

/// The settings of the chain.
#[derive(Debug, Default)]
pub(crate) struct Path {
    pub(crate) cluster: ClusterSettings,
    pub(crate) forwarder: ForwarderConfig,
    pub(crate) outside: Outside,
    /// Where this program listens, and must not connect to.
    pub(crate) own: Vec<SocketAddr>,
    pub(crate) settings: Settings,
}

/// Asks the API server for something everybody may read, so that a wrong address or stale credentials are
/// said now and not to the first client.
pub(crate) async fn check(client: &kube::Client) -> Result<(), Failure> {
    let asked = Action {
        verb: "get",
        resource: "/version",
        api_group: "",
        namespace: None,
        name: None,
    };
    let error = match tokio::time::timeout(CHECK, client.apiserver_version()).await {
        Ok(Ok(version)) => {
            tracing::debug!(version = %version.git_version, "the API server answers");
            return Ok(());
        }
        Ok(Err(error)) => classify_api(error, &asked),
        Err(_) => ConnectError::new(
            Refusal::ClusterAway,
            format!("the API server did not answer within {} s", CHECK.as_secs()),
        ),
    };
    match error.refusal() {
        // Whoever may not even read the version may still be allowed to forward ports.
        Refusal::Forbidden => Ok(()),
        _ => Err(error.into()),
    }
}

/// Says where the proxy listens and how to use it. Only what is bound is said.
#[expect(clippy::print_stdout, reason = "the lines people and scripts wait for")]
fn say_listening(bound: &[Bound]) {
    for listener in bound {
        let addr = listener.listener.addr();
        match listener.protocol {
            Protocol::Socks => println!("SOCKS5 proxy listening on {addr}"),
            Protocol::Http => println!("HTTP proxy listening on {addr}"),
            Protocol::Mixed => println!("SOCKS5 and HTTP proxy listening on {addr}"),
        }
        let Addr::Tcp(addr) = addr else { continue };
        if listener.protocol != Protocol::Http {
            println!("Proxy hint: export ALL_PROXY=socks5h://{addr} all_proxy=socks5h://{addr}");
        }
        if listener.protocol != Protocol::Socks {
            println!("Proxy hint: export HTTP_PROXY=http://{addr} http_proxy=http://{addr}");
            println!("Proxy hint: export HTTPS_PROXY=http://{addr} https_proxy=http://{addr}");
        }
    }
    println!(
        "Proxy scope: TCP traffic only. Use socks5h if you want proxy-side cluster DNS resolution."
    );
}

/// Both frontends over one backend.
struct Frontends<C> {
    connect: C,
    socks: kubevpn_socks5::Settings,
    http: kubevpn_http_connect::Settings,
}

impl<C: Connect + Clone + Sync + 'static> Frontends<C> {
    /// One connection. How it ended is in the access record.
    async fn serve(&self, protocol: Protocol, client: Client) {
        match protocol {
            Protocol::Socks => self.socks(client).await,
            Protocol::Http => self.http(client).await,
            Protocol::Mixed => self.mixed(client).await,
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

    /// A SOCKS greeting begins with its version, an HTTP request with a letter.
    async fn mixed(&self, mut client: Client) {
        let Ok(Ok(first)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, client.read_u8()).await else {
            return;
        };
        let client = Rewind::new(client, vec![first]);
        if first.is_ascii_alphabetic() {
            self.http(client).await
        } else {
            self.socks(client).await
        }
    }
}

/// Serves until told to end, then lets open connections finish for a while. A second signal cuts them.
pub(crate) async fn serve<C>(listening: Listening, connect: C) -> Result<(), Failure>
where
    C: Connect + Clone + Sync + 'static,
{
    let listen = |kind| signal(kind).map_err(|error| Failure::Other(error.into()));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let Listening {
        bound,
        credentials,
        limits,
    } = listening;
    descriptors::allow_for(limits.total);
    say_listening(&bound);

    let drain = Drain::new();
    let gate = Gate::new(limits);
    let frontends = Arc::new(Frontends {
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
    });
    let mut accepting = JoinSet::new();
    for Bound { listener, protocol } in bound {
        let frontends = frontends.clone();
        accepting.spawn(listener.serve(gate.clone(), drain.clone(), move |client| {
            let frontends = frontends.clone();
            async move { frontends.serve(protocol, client).await }
        }));
    }
    let interrupted = tokio::select! {
        _ = interrupt.recv() => true,
        _ = terminate.recv() => false,
    };
    tracing::info!(connections = drain.open(), "ending");
    tokio::select! {
        drained = drain.drain(DRAIN) => tracing::debug!(finished = drained.finished, cut = drained.cut, "ended"),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    // A Unix socket's file goes with its listener.
    accepting.join_all().await;
    if interrupted {
        Err(Failure::Interrupted)
    } else {
        Ok(())
    }
}
