//! Clients that go on connecting while something happens to the cluster.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Socks;
use crate::proxy::PATIENCE;

/// So many clients, each with one connection after another.
const CLIENTS: usize = 4;

/// How long a client waits after a failure; a refusal costs nothing, and would be asked for without end.
const PAUSE: Duration = Duration::from_millis(10);

/// Running clients; they end when dropped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicUsize>,
    answered: watch::Receiver<usize>,
    clients: JoinSet<()>,
}

impl Load {
    /// Each client asks for `/` on a new connection every time.
    pub(crate) fn start(socks: SocketAddr, host: &'static str, port: u16) -> Self {
        let (answered, seen) = watch::channel(0);
        let mut load = Self {
            stop: Arc::default(),
            failed: Arc::default(),
            answered: seen,
            clients: JoinSet::new(),
        };
        for _ in 0..CLIENTS {
            let (stop, failed, answered) =
                (load.stop.clone(), load.failed.clone(), answered.clone());
            load.clients.spawn(async move {
                while !stop.load(Relaxed) {
                    if request(socks, host, port).await.is_ok() {
                        answered.send_modify(|n| *n += 1);
                    } else {
                        failed.fetch_add(1, Relaxed);
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            });
        }
        load
    }

    /// Waits until so many more were answered.
    pub(crate) async fn more(&self, count: usize) -> anyhow::Result<()> {
        let mut answered = self.answered.clone();
        let until = *answered.borrow() + count;
        let waited = tokio::time::timeout(PATIENCE, answered.wait_for(|n| *n >= until)).await;
        let reached = waited.with_context(|| {
            let failed = self.failed.load(Relaxed);
            format!("clients get no answers any more; {failed} requests failed")
        })?;
        reached.context("the clients have ended").map(drop)
    }

    /// How many requests were answered, and how many failed.
    pub(crate) async fn end(mut self) -> (usize, usize) {
        self.stop.store(true, Relaxed);
        while self.clients.join_next().await.is_some() {}
        (*self.answered.borrow(), self.failed.load(Relaxed))
    }
}

async fn request(socks: SocketAddr, host: &str, port: u16) -> anyhow::Result<()> {
    let mut stream = Socks::connect(socks, host, port).await?;
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    // To the end of its one line of JSON: the end of a stream comes a second late.
    let mut answer = Vec::new();
    while !answer.ends_with(b"}\n") {
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await;
        anyhow::ensure!(read.context("no answer")?? > 0, "cut off");
    }
    anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "not served");
    Ok(())
}
