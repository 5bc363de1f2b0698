//! A proxy from its listeners to the stack, and its life: start, serve, drain.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kubevpn_client::{Action, classify_api};
use kubevpn_conn::{Addr, Drain, Gate, Limits, Listener};
use kubevpn_stack::{Cluster, ClusterSettings, Forwarder, ForwarderConfig, Settings, Stack, stack};
use kubevpn_target::{ConnectError, Refusal};
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;

/// How long open connections may take to finish once the program is told to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the API server may take to answer at the start.
const CHECK: Duration = Duration::from_secs(10);

/// The flags every command with listeners has.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Listeners")]
pub(crate) struct ListenArgs {
    /// Local SOCKS5 listen address: IP:PORT (port 0 takes a free one) or unix:PATH
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:1080")]
    pub(crate) listen_socks: String,
    /// Let clients on other machines in without a password, where a listener is not on loopback
    #[arg(long)]
    pub(crate) allow_unauthenticated: bool,
}

impl ListenArgs {
    /// Binds what was asked for.
    pub(crate) async fn bind(&self) -> Result<Listener, Failure> {
        const FLAG: &str = "--listen-socks";
        if self.listen_socks.is_empty() {
            return Err(Failure::Value(
                "nothing to listen on: give --listen-socks an address".into(),
            ));
        }
        let addr: Addr = self
            .listen_socks
            .parse()
            .map_err(|error| Failure::Value(format!("{FLAG}: {error}")))?;
        if !addr.is_loopback() && !self.allow_unauthenticated {
            return Err(Failure::Value(format!(
                "{FLAG}: {addr} can be reached from other machines, and whoever connects is in the cluster: \
                 listen on 127.0.0.1, or accept that with --allow-unauthenticated"
            )));
        }
        Listener::bind(&addr).await.map_err(|error| {
            let address = error.addr.to_string();
            match error.source.kind() {
                io::ErrorKind::AddrInUse => Failure::AddressInUse {
                    flag: FLAG,
                    address,
                },
                _ => Failure::Listen {
                    flag: FLAG,
                    address,
                    source: error.source,
                },
            }
        })
    }
}

/// The chain from a target to its stream, for one cluster.
pub(crate) fn connect(client: kube::Client, cluster: ClusterSettings) -> Stack {
    let cluster = Cluster::new(client.clone(), cluster);
    let forwarder = Forwarder::new(client, ForwarderConfig::default());
    stack(cluster, forwarder, Settings::default())
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
pub(crate) fn say_listening(listener: &Listener) {
    let addr = listener.addr();
    println!("SOCKS5 proxy listening on {addr}");
    if let Addr::Tcp(addr) = addr {
        println!("Proxy hint: export ALL_PROXY=socks5h://{addr}");
    }
    println!(
        "Proxy scope: TCP traffic only. Use socks5h if you want proxy-side cluster DNS resolution."
    );
}

/// Serves until told to end, then lets open connections finish for a while. A second signal cuts them.
pub(crate) async fn serve(listener: Listener, connect: Stack) -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::Other(error.into()));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    say_listening(&listener);

    let drain = Drain::new();
    let gate = Gate::new(Limits::default());
    let settings = Arc::new(kubevpn_socks5::Settings::default());
    let accepting = listener.serve(gate, drain.clone(), move |client| {
        let (connect, settings) = (connect.clone(), settings.clone());
        async move {
            // How it ended is in the access record.
            let _ended = kubevpn_socks5::serve_connection(client, connect, &settings).await;
        }
    });
    let interrupted = tokio::select! {
        () = accepting => false,
        _ = interrupt.recv() => true,
        _ = terminate.recv() => false,
    };
    tracing::info!(connections = drain.open(), "ending");
    tokio::select! {
        drained = drain.drain(DRAIN) => tracing::debug!(finished = drained.finished, cut = drained.cut, "ended"),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    if interrupted {
        Err(Failure::Interrupted)
    } else {
        Ok(())
    }
}
