//! Bare connections to the API server, through which clients speak their own TLS and HTTP.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use kube::Config;
use kubevpn_target::{ConnectError, Refusal, Stream, Target, Via};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower::Service;

use crate::classify::classify_connection;
use crate::connector::{RawTransport, ReachError};
use crate::error::ClientError;
use crate::login::Login;
use crate::options::Options;
use crate::recipe::Recipe;

/// Opens connections to the API server at the kubeconfig's address and through its proxy, with no protocol of ours on top.
///
/// Clients of `kubernetes.default.svc` speak TLS to it and find that name in its certificate. A server that is only
/// reachable through our own TLS or HTTP is [`Refusal::Unreachable`]: one under a path, or without TLS.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) login: Login,
}

impl ApiServer {
    /// Nothing is sent, and no credential is needed. Errors: those of [`build`](crate::build) about `config`. For a
    /// configuration that changes, use [`Renewal::api_server`](crate::Renewal::api_server).
    pub fn new(config: Config, options: &Options) -> Result<Self, ClientError> {
        let login = Login::new(Recipe::new(config, options)?);
        Ok(Self { login })
    }

    /// Announces an upgrade by the client with the same configuration ([`Renewal::api_server`](crate::Renewal::api_server)): a
    /// connection with completed TLS is kept ready for it from now until a minute after the last upgrade. Must be called
    /// within a tokio runtime.
    pub fn expect_upgrade(&self) {
        self.login.expect_upgrade();
    }

    /// Opens one connection.
    ///
    /// Errors: [`Refusal::Unreachable`] as above; `ClusterAway` if none can be made within the connect time-out.
    /// Cancellation: dropping the future gives the connection up.
    pub async fn connect_raw(&self) -> Result<RawStream, ConnectError> {
        let recipe = self.login.recipe();
        let (url, name) = (&recipe.config.cluster_url, &recipe.server);
        let within = recipe.options.connect_timeout;
        let unreachable = |why: &str| {
            let sentence = format!(
                "the API server of the kubeconfig is {name}, {why}: use that address instead"
            );
            Err(ConnectError::new(Refusal::Unreachable, sentence))
        };
        if !matches!(url.path(), "" | "/") {
            return unreachable("under a path, where only requests made for it find it");
        }
        if url.scheme_str() == Some("http") {
            return unreachable("which speaks no TLS, as whoever connects here expects");
        }
        let connecting = recipe.reach(&recipe.tls).call(url.clone());
        let connected = match tokio::time::timeout(within, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(ReachError::TimedOut(within).into()),
        };
        match connected {
            Ok(raw) => Ok(RawStream {
                raw: Box::new(TokioIo::new(raw)),
                name: name.clone(),
            }),
            Err(source) => Err(classify_connection(ClientError::Transport {
                server: name.clone(),
                source,
            })),
        }
    }
}

/// Every target leads to the API server.
impl Service<Target> for ApiServer {
    type Response = RawStream;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<RawStream, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Target) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.connect_raw().await })
    }
}

/// A connection of an [`ApiServer`].
#[derive(Debug)]
pub struct RawStream {
    /// Boxed: a stream to a Pod, which shares an enum with it, is a third of the size.
    raw: Box<TokioIo<RawTransport>>,
    name: Arc<str>,
}

impl Stream for RawStream {
    fn via(&self) -> Via {
        Via {
            to: self.name.as_ref().into(),
            transport: "tcp",
        }
    }
}

impl AsyncRead for RawStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.raw).poll_read(cx, buf)
    }
}

impl AsyncWrite for RawStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.raw).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.raw).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.raw.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.raw).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.raw).poll_shutdown(cx)
    }
}
