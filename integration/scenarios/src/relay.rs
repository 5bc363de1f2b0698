//! A TCP relay in front of the API server that can stop passing bytes: what a NAT that forgot a connection, or a
//! laptop that slept, looks like from inside.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use kube::config::Kubeconfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A running relay; it ends when dropped.
pub(crate) struct Relay {
    kubeconfig: tempfile::NamedTempFile,
    generation: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
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
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut current = current.clone();
                let mine = *current.borrow_and_update();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(api).await?;
                    client.set_nodelay(true)?;
                    server.set_nodelay(true)?;
                    let forgotten = async {
                        while *current.borrow_and_update() <= mine
                            && current.changed().await.is_ok()
                        {}
                    };
                    tokio::select! {
                        copied = tokio::io::copy_bidirectional(&mut client, &mut server) => return copied.map(drop),
                        () = forgotten => {}
                    }
                    // Nothing is passed on any more and nothing is closed, until the relay ends.
                    while current.changed().await.is_ok() {}
                    Ok(())
                });
            }
        });
        Ok(Self {
            kubeconfig: file,
            generation,
            task,
        })
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        self.kubeconfig.path()
    }

    /// From now on no byte passes on the connections there are; new ones work.
    pub(crate) fn forget_connections(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}
