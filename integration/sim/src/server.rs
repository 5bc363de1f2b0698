//! From a connection to a request: TLS, HTTP/1.1 and HTTP/2.

use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use crate::api;
use crate::cluster::SimCluster;
use crate::link::{Link, Links, SimSocket};

/// Who has not shaken hands by then is gone.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Takes connections until the simulation ends.
pub(crate) async fn serve(cluster: Arc<SimCluster>, links: Arc<Links>, tls: Option<TlsAcceptor>) {
    while let Some(socket) = links.accept().await {
        cluster.spawn(connection(Arc::clone(&cluster), socket, tls.clone()));
    }
}

pub(crate) async fn connection(
    cluster: Arc<SimCluster>,
    socket: SimSocket,
    tls: Option<TlsAcceptor>,
) {
    let link = socket.link();
    let Some(tls) = tls else {
        return requests(cluster, link, socket).await;
    };
    match tokio::time::timeout(HANDSHAKE, tls.accept(socket)).await {
        Ok(Ok(stream)) => requests(cluster, link, stream).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn requests<T>(cluster: Arc<SimCluster>, link: Link, io: T)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tasks = SimTasks(Arc::clone(&cluster));
    let answer = service_fn(|request| api::answer(Arc::clone(&cluster), link.clone(), request));
    let mut builder = auto::Builder::new(tasks);
    // As Go writes them.
    builder.http1().title_case_headers(true);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), answer);
    if let Err(error) = connection.await {
        tracing::debug!(error, "a connection ended");
    }
}

/// Runs what an HTTP/2 connection spawns as tasks of the simulation.
#[derive(Clone)]
struct SimTasks(Arc<SimCluster>);

impl<F> Executor<F> for SimTasks
where
    F: Future + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(async move {
            task.await;
        });
    }
}
