//! A proxy from its listeners to the stack, and its life: start, serve, drain.

mod descriptors;
mod listen;
mod server;

use std::time::Duration;

use kubevpn_client::{Action, ApiServer, classify_api};
use kubevpn_conn::Addr;
use kubevpn_stack::{
    Cluster, ClusterSettings, Egress, Forwarder, ForwarderConfig, FromHost, Outside, OwnListeners,
    Settings, Stack, stack,
};
use kubevpn_target::{Connect, ConnectError, Refusal};
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use self::descriptors::allow_for;
pub(crate) use self::listen::{
    AUTH, Bound, DEFAULT_SOCKS, ListenArgs, Listening, Protocol, at_least_one, bind,
    credentials_in, forward_of,
};
pub(crate) use self::server::Server;
use crate::exit::Failure;

/// How long open connections may take to finish once the program is told to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the API server may take to answer at the start.
const CHECK: Duration = Duration::from_secs(10);

/// The chain from a target to its stream, for one cluster.
pub(crate) fn connect(client: kube::Client, api_server: ApiServer, path: Path) -> ClusterStack {
    chain(client, api_server, path).0
}

/// The same, and the part of it that holds the sessions.
pub(crate) fn chain(
    client: kube::Client,
    api_server: ApiServer,
    path: Path,
) -> (ClusterStack, Forwarder) {
    let cluster = Cluster::new(client.clone(), path.cluster);
    let forwarder = Forwarder::new(client, path.forwarder);
    let egress = Egress::new(api_server, path.outside, FromHost::sharing(path.own));
    let stack = stack(cluster, forwarder.clone(), egress, path.settings);
    (stack, forwarder)
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
    pub(crate) own: OwnListeners,
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
        let (socks, http) = match &listener.protocol {
            Protocol::Socks => {
                println!("SOCKS5 proxy listening on {addr}");
                (true, false)
            }
            Protocol::Http => {
                println!("HTTP proxy listening on {addr}");
                (false, true)
            }
            Protocol::Mixed => {
                println!("SOCKS5 and HTTP proxy listening on {addr}");
                (true, true)
            }
            Protocol::Forward(to) => {
                println!("Forwarding {addr} -> {to}");
                (false, false)
            }
        };
        say_hints(addr, socks, http);
    }
    say_scope();
}

/// Says what makes programs use a listener that speaks these.
#[expect(clippy::print_stdout, reason = "the lines people and scripts wait for")]
pub(crate) fn say_hints(addr: &Addr, socks: bool, http: bool) {
    let Addr::Tcp(addr) = addr else { return };
    if socks {
        println!("Proxy hint: export ALL_PROXY=socks5h://{addr} all_proxy=socks5h://{addr}");
    }
    if http {
        println!("Proxy hint: export HTTP_PROXY=http://{addr} http_proxy=http://{addr}");
        println!("Proxy hint: export HTTPS_PROXY=http://{addr} https_proxy=http://{addr}");
    }
}

/// Says what the proxy is for.
#[expect(clippy::print_stdout, reason = "the lines people and scripts wait for")]
pub(crate) fn say_scope() {
    println!(
        "Proxy scope: TCP traffic only. Use socks5h if you want proxy-side cluster DNS resolution."
    );
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
    allow_for(limits.total);
    say_listening(&bound);
    let mut server = Server::new(connect, credentials, limits);
    bound.into_iter().for_each(|bound| server.add(bound));
    let interrupted = tokio::select! {
        _ = interrupt.recv() => true,
        _ = terminate.recv() => false,
    };
    let again = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    server.end(DRAIN, again).await;
    if interrupted {
        Err(Failure::Interrupted)
    } else {
        Ok(())
    }
}
