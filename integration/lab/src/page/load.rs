//! Connections through the proxy that stay open, each with a request now and then.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{self, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::metrics::load::socks_stream;

/// Targets of the sample workload that speak HTTP. A long name shows how the page cuts it.
const TARGETS: [(&str, u16); 6] = [
    ("productpage.default.svc.cluster.local", 9080),
    ("productpage", 9080),
    ("reviews.default", 80),
    ("multi", 80),
    ("db-0.db", 9080),
    ("db-1.db.default.svc.cluster.local", 9080),
];
/// Targets that are refused, each by a sentence of its own.
const REFUSED: [(&str, u16); 4] = [
    ("productpage", 81),
    ("no-such-service.default.svc.cluster.local", 80),
    ("notready", 80),
    ("productpage.no-such-namespace", 9080),
];
/// Number of connections that are refused.
const REFUSALS: usize = 12;
/// Handshakes at the same time.
const CONCURRENT: usize = 16;
/// Interval of the requests of a connection.
const PAUSE: Duration = Duration::from_secs(5);

/// Open connections; they are closed when this is dropped.
pub(super) struct HeldConnections {
    resting: watch::Sender<bool>,
    _clients: JoinSet<io::Result<()>>,
}

impl HeldConnections {
    /// Opens this many, after some that are refused.
    pub(super) async fn open(proxy: SocketAddr, connections: usize) -> Result<Self> {
        for (host, port) in REFUSED.into_iter().cycle().take(REFUSALS) {
            let stream = socks_stream(proxy, host, port).await?;
            ensure!(stream.is_none(), "{host}:{port} was not refused");
        }
        let (resting, is_resting) = watch::channel(false);
        let mut clients = JoinSet::new();
        let mut dials = JoinSet::new();
        for n in 0..connections {
            let (host, port) = TARGETS[n % TARGETS.len()];
            if n >= CONCURRENT {
                let dialled = dials.join_next().await.context("a dial")?;
                clients.spawn(dialled??);
            }
            let is_resting = is_resting.clone();
            dials.spawn(async move {
                let stream = socks_stream(proxy, host, port).await?;
                let stream = stream.with_context(|| format!("{host}:{port} was refused"))?;
                anyhow::Ok(ask(stream, host, n, is_resting))
            });
        }
        while let Some(dialled) = dials.join_next().await {
            clients.spawn(dialled??);
        }
        Ok(Self {
            resting,
            _clients: clients,
        })
    }

    /// No request begins from now on.
    pub(super) fn rest(&self) {
        let _ = self.resting.send(true);
    }
}

/// Sends a request at each interval, each connection at another time, and reads whatever comes.
async fn ask(
    mut stream: TcpStream,
    host: &'static str,
    n: usize,
    mut is_resting: watch::Receiver<bool>,
) -> io::Result<()> {
    let (mut from, mut to) = stream.split();
    let bytes = 1000 * (n % 9 + 1);
    let request = format!("GET /bytes?n={bytes} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let asking = async {
        sleep(PAUSE.mul_f64(n as f64 / 100.0 % 1.0)).await;
        while !*is_resting.borrow_and_update() {
            to.write_all(request.as_bytes()).await?;
            let _ = timeout(PAUSE, is_resting.changed()).await;
        }
        // The connection stays open.
        std::future::pending::<io::Result<()>>().await
    };
    let reading = async {
        io::copy(&mut from, &mut io::sink()).await?;
        Ok(())
    };
    tokio::try_join!(asking, reading).map(drop)
}
