//! Clients that come and go leave no task behind: both frontends over the stack in this process, where tasks can be
//! counted, with the cluster on a runtime of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kubevpn_client::{ApiServer, Options, build};
use kubevpn_conn::{Addr, Drain, Gate, Limits, Listener};
use kubevpn_scenarios::{Curl, Socks, TunnelClient};
use kubevpn_sim::Sim;
use kubevpn_stack::{
    Cluster, ClusterSettings, Egress, Forwarder, ForwarderConfig, FromHost, Outside, Settings,
    stack,
};
use kubevpn_target::Connect;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

/// Set, the number of clients is the one that is claimed, and not the one for every run.
const FULL: &str = "KUBEVPN_FULL";
/// Sessions and watches may be a few more or less than they were; one client in a hundred that left a task would be
/// more than this even in a short run.
const SLACK: usize = 8;

#[test]
fn clients_that_vanish_leave_no_task() {
    let clients = match std::env::var_os(FULL) {
        Some(_) => 10_000,
        None => 1000,
    };
    let of_cluster = runtime();
    let sim = of_cluster
        .block_on(Sim::builder().sample().start())
        .unwrap();
    runtime().block_on(async {
        let served = Served::start(&sim).await;
        served.vanish(200, &[Vanish::Reset]).await;
        served.settle(usize::MAX).await;
        let before = alive();
        served.vanish(clients, &Vanish::ALL).await;
        served.settle(before + SLACK).await;
        let answer = Curl::get(served.socks, "http://reviews/").await.unwrap();
        assert_eq!(answer.json().unwrap()["service"], "reviews");
    });
}

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Tasks of the runtime that the frontends and the stack run on.
fn alive() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Both frontends, listening.
struct Served {
    socks: SocketAddr,
    http: SocketAddr,
    gate: Gate,
    drain: Drain,
}

impl Served {
    async fn start(sim: &Sim) -> Self {
        let options = Options::new("test");
        let client = build(sim.config(), &options).unwrap();
        let api_server = ApiServer::new(sim.config(), &options).unwrap();
        let connect = stack(
            Cluster::new(client.clone(), ClusterSettings::default()),
            Forwarder::new(client, ForwarderConfig::default()),
            Egress::new(api_server, Outside::Deny, FromHost::default()),
            Settings::default(),
        );
        let (gate, drain) = (Gate::new(Limits::default()), Drain::new());
        let socks = {
            let connect = connect.clone();
            let settings = Arc::<kubevpn_socks5::Settings>::default();
            listen(&gate, &drain, move |client| {
                let (connect, settings) = (connect.clone(), Arc::clone(&settings));
                async move {
                    let _ended = kubevpn_socks5::serve_connection(client, connect, &settings).await;
                }
            })
            .await
        };
        let http = {
            let settings = Arc::<kubevpn_http_connect::Settings>::default();
            listen(&gate, &drain, move |client| {
                http_connection(client, connect.clone(), Arc::clone(&settings))
            })
            .await
        };
        Self {
            socks,
            http,
            gate,
            drain,
        }
    }

    /// So many clients, fifty at a time, of each frontend in turn.
    async fn vanish(&self, clients: usize, ways: &[Vanish]) {
        for first in (0..clients).step_by(50) {
            let mut fifty = JoinSet::new();
            for n in first..first + 50 {
                let way = ways[n / 2 % ways.len()];
                match n % 2 {
                    0 => fifty.spawn(socks(self.socks, way)),
                    _ => fifty.spawn(http(self.http, way)),
                };
            }
            fifty.join_all().await;
        }
    }

    /// Until nobody is served and no more than so many tasks are alive.
    async fn settle(&self, tasks: usize) {
        let settled = async {
            while self.gate.open() > 0 || self.drain.open() > 0 || alive() > tasks {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        // Clients that only said their end are held for half a minute.
        let in_time = tokio::time::timeout(Duration::from_secs(120), settled).await;
        assert!(
            in_time.is_ok(),
            "{} connections, {} tasks, wanted at most {tasks}",
            self.drain.open(),
            alive()
        );
    }
}

async fn listen<F, Fut>(gate: &Gate, drain: &Drain, serve: F) -> SocketAddr
where
    F: Fn(kubevpn_conn::Client) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let free = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(&free).await.unwrap();
    let Addr::Tcp(addr) = *listener.addr() else {
        panic!("asked for TCP");
    };
    tokio::spawn(listener.serve(gate.clone(), drain.clone(), serve));
    addr
}

async fn http_connection(
    client: kubevpn_conn::Client,
    connect: impl Connect + Clone,
    settings: Arc<kubevpn_http_connect::Settings>,
) {
    let _ended = kubevpn_http_connect::serve_connection(client, connect, &settings).await;
}

/// How a client goes.
#[derive(Clone, Copy, Debug)]
enum Vanish {
    /// Without a byte.
    Unused,
    /// In the middle of its handshake.
    Halfway,
    /// Once it is through, by its end of file.
    Ended,
    /// Once it is through, by a reset.
    Reset,
}

impl Vanish {
    const ALL: [Self; 4] = [Self::Unused, Self::Halfway, Self::Ended, Self::Reset];

    async fn unserved(self, proxy: SocketAddr, half: &[u8]) {
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        if let Self::Halfway = self {
            stream.write_all(half).await.unwrap();
        }
    }

    fn served(self, stream: TcpStream) {
        if let Self::Reset = self {
            stream.set_zero_linger().unwrap();
        }
    }
}

async fn socks(proxy: SocketAddr, way: Vanish) {
    match way {
        Vanish::Unused | Vanish::Halfway => way.unserved(proxy, b"\x05\x02\x00").await,
        Vanish::Ended | Vanish::Reset => {
            way.served(Socks::connect(proxy, "multi", 7007).await.unwrap());
        }
    }
}

async fn http(proxy: SocketAddr, way: Vanish) {
    match way {
        Vanish::Unused | Vanish::Halfway => way.unserved(proxy, b"CONNECT multi:7007 HT").await,
        Vanish::Ended | Vanish::Reset => {
            way.served(TunnelClient::connect(proxy, "multi", 7007).await.unwrap());
        }
    }
}
