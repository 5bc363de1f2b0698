//! A TCP relay in front of the API server that can stop passing bytes: what a NAT that forgot a connection, or a
//! laptop that slept, looks like from inside. It can also close the connections that carry calls, watches among them,
//! and leave port-forwards alone.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use kube::config::Kubeconfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// `h2` as it stands in a list of protocols (RFC 7301 section 3.1).
const ALPN_H2: &[u8] = b"\x02h2";

/// A running relay; it ends when dropped.
pub(crate) struct TestRelay {
    kubeconfig: tempfile::NamedTempFile,
    generation: watch::Sender<u64>,
    calls: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl TestRelay {
    /// Listens on loopback, and writes a kubeconfig that goes through it.
    pub(crate) async fn start(kubeconfig: &Path) -> anyhow::Result<Self> {
        let mut config = Kubeconfig::read_from(kubeconfig)?;
        let cluster = config
            .clusters
            .first_mut()
            .and_then(|c| c.cluster.as_mut())
            .context("no cluster")?;
        let server = cluster.server.take().context("no server")?;
        let (scheme, address) = server.split_once("://").context("the server is no URL")?;
        let api: SocketAddr = address
            .trim_end_matches('/')
            .parse()
            .context("the server is no address")?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        cluster.server = Some(format!("{scheme}://{}", listener.local_addr()?));
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(&serde_json::to_vec(&config)?)?;
        let (generation, current) = watch::channel(0);
        let (calls, cut) = watch::channel(0);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut current, mut cut) = (current.clone(), cut.clone());
                current.mark_unchanged();
                cut.mark_unchanged();
                tokio::spawn(pass(client, api, current, cut));
            }
        });
        Ok(Self {
            kubeconfig: file,
            generation,
            calls,
            task,
        })
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        self.kubeconfig.path()
    }

    /// Closes the connections that carry calls and watches; new ones work.
    pub(crate) fn cut_calls(&self) {
        self.calls.send_modify(|calls| *calls += 1);
    }

    /// From now on no byte passes on the connections there are; new ones work.
    pub(crate) fn forget_connections(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

/// Passes bytes in both directions, until one of the two happens.
async fn pass(
    mut client: TcpStream,
    api: SocketAddr,
    mut forget: watch::Receiver<u64>,
    mut cut: watch::Receiver<u64>,
) -> anyhow::Result<()> {
    let hello = client_hello(&mut client).await?;
    let mut server = TcpStream::connect(api).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    server.write_all(&hello).await?;
    // Who offers HTTP/2 has calls to make: it knows no upgrades.
    let calls = hello.windows(ALPN_H2.len()).any(|bytes| bytes == ALPN_H2);
    tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut client, &mut server) => return Ok(copied.map(drop)?),
        _ = cut.changed(), if calls => return Ok(()),
        _ = forget.changed() => {}
    }
    // Nothing is passed on any more and nothing is closed, until the relay ends.
    while forget.changed().await.is_ok() {}
    Ok(())
}

/// The first TLS record, as it is (RFC 8446 section 5.1: five bytes of which the last two are the length).
async fn client_hello(client: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut record = vec![0; 5];
    client.read_exact(&mut record).await?;
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + length, 0);
    client.read_exact(&mut record[5..]).await?;
    Ok(record)
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}
