//! One TCP connection to the API server, perhaps through a proxy, with TLS on top.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::rt::TokioIo;
use kubevpn_target::BoxError;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tower::Service;
use tower::util::{MapErr, MapResponse};

use crate::ahead::ReadAhead;
use crate::dialer::{DialedSocket, Dialer};
use crate::proxy::{ApiProxy, ProxyKind, ProxyLogin, default_port, with_port};

/// Idle time before TCP probes a connection, and between probes: shorter than the 4 minutes after which some NATs
/// drop a mapping. Four lost probes end the connection.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_RETRIES: u32 = 4;

/// Time after which a TCP connection is attempted a second time in parallel: the kernel repeats a lost SYN after 1, 3 and
/// 7 s, from the address that the machine had at first, and the line may be back earlier, with another address.
const ANOTHER_ATTEMPT: Duration = Duration::from_secs(1);

/// The transport below the API server's TLS; the inner TLS is that of an `https` proxy.
pub(crate) type RawTransport = MaybeHttpsStream<TokioIo<DialedSocket>>;

/// The same, read in large pieces.
type ReadAheadTransport = TokioIo<ReadAhead<TokioIo<RawTransport>>>;

type ReachAhead = MapResponse<Reach, fn(RawTransport) -> ReadAheadTransport>;

/// The connection that carries HTTP to the API server.
pub(crate) type Conn = MaybeHttpsStream<ReadAheadTransport>;

type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// Why no connection to the API server could be made.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// Name lookup, TCP, proxy and TLS together took longer than the connect timeout.
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    /// The host of the API server, or of the proxy, has no address.
    #[error("the host name cannot be resolved")]
    Lookup(#[source] io::Error),
    /// The proxy itself cannot be reached.
    #[error("the proxy {proxy} cannot be reached")]
    ProxyAway {
        /// The proxy's URL, without credentials.
        proxy: String,
        /// What failed.
        #[source]
        source: BoxError,
    },
    /// The proxy requires credentials, or rejects the given ones.
    #[error("the proxy {proxy} asks for a user and a password it accepts")]
    ProxyLogin {
        /// The proxy's URL, without credentials.
        proxy: String,
    },
    /// The proxy refuses to connect to the API server.
    #[error("the proxy {proxy} does not connect to the API server ({reason})")]
    ProxyRefused {
        /// The proxy's URL, without credentials.
        proxy: String,
        /// The proxy's answer.
        reason: String,
    },
}

/// Makes connections; cheap to clone. TLS sessions are resumed across all connectors with clones of one
/// [`ClientConfig`], because they share its session store.
#[derive(Clone)]
pub(crate) struct ApiConnector {
    https: HttpsConnector<ReachAhead>,
    within: Duration,
}

impl ApiConnector {
    /// For plain calls: HTTP/2 where the server speaks it (ALPN), else HTTP/1.1.
    pub(crate) fn negotiating(
        reach: Reach,
        tls: &ClientConfig,
        name: Option<&ServerName<'static>>,
    ) -> Self {
        Self::new(reach, tls, name, true)
    }

    /// For upgrades, which only HTTP/1.1 has (RFC 9113 section 8.6).
    pub(crate) fn http1(
        reach: Reach,
        tls: &ClientConfig,
        name: Option<&ServerName<'static>>,
    ) -> Self {
        Self::new(reach, tls, name, false)
    }

    fn new(
        reach: Reach,
        tls: &ClientConfig,
        name: Option<&ServerName<'static>>,
        http2: bool,
    ) -> Self {
        let within = reach.within;
        let read_ahead = |raw| TokioIo::new(ReadAhead::new(TokioIo::new(raw)));
        let reach: ReachAhead = MapResponse::new(reach, read_ahead);
        let mut builder = HttpsConnectorBuilder::new()
            .with_tls_config(tls.clone())
            .https_or_http();
        if let Some(name) = name {
            let fixed = hyper_rustls::FixedServerNameResolver::new(name.clone());
            builder = builder.with_server_name_resolver(fixed);
        }
        let https = if http2 {
            builder.enable_http1().enable_http2().wrap_connector(reach)
        } else {
            builder.enable_http1().wrap_connector(reach)
        };
        Self { https, within }
    }
}

impl Service<Uri> for ApiConnector {
    type Response = Conn;
    type Error = BoxError;
    type Future = Connecting<Conn>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let within = self.within;
        let connecting = self.https.call(server);
        Box::pin(async move {
            match timeout(within, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(ReachError::TimedOut(within).into()),
            }
        })
    }
}

/// Connects to the API server below its TLS.
#[derive(Clone)]
pub(crate) struct Reach {
    way: ProxyHop,
    within: Duration,
    /// The proxy for errors, without credentials; empty if there is none.
    proxy: Arc<str>,
}

type Proxied = HttpsConnector<Tcp>;

#[derive(Clone)]
enum ProxyHop {
    Direct(Tcp),
    Tunnel(Tunnel<Proxied>),
    Socks(SocksV5<Tcp>),
}

impl Reach {
    /// `tls` is used for an `https` proxy too: as with kubectl, the CAs of the API server also verify its
    /// proxy. `within` limits a connection from name lookup to the end of the TLS handshake.
    pub(crate) fn new(
        proxy: Option<&ApiProxy>,
        tls: &ClientConfig,
        dialer: Option<&Dialer>,
        within: Duration,
    ) -> Self {
        let tcp = match dialer {
            Some(dialer) => Tcp::Given(dialer.clone()),
            None => Tcp::System(tcp(within)),
        };
        let way = match proxy {
            None => ProxyHop::Direct(tcp),
            Some(proxy) => match proxy.kind {
                ProxyKind::Tunnel => ProxyHop::Tunnel(tunnel(proxy, tls, tcp)),
                ProxyKind::Socks5 => ProxyHop::Socks(socks(proxy, tcp)),
            },
        };
        Self {
            way,
            within,
            proxy: proxy.map(ApiProxy::to_string).unwrap_or_default().into(),
        }
    }
}

fn tunnel(proxy: &ApiProxy, tls: &ClientConfig, tcp: Tcp) -> Tunnel<Proxied> {
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls.clone())
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    let tunnel = Tunnel::new(proxy.uri.clone(), https);
    match &proxy.login {
        ProxyLogin::Basic(value) => tunnel.with_auth(value.clone()),
        _ => tunnel,
    }
}

fn socks(proxy: &ApiProxy, tcp: Tcp) -> SocksV5<Tcp> {
    let socks = SocksV5::new(proxy.uri.clone(), tcp);
    match &proxy.login {
        ProxyLogin::Password(user, password) => socks.with_auth(user.clone(), password.clone()),
        _ => socks,
    }
}

impl Service<Uri> for Reach {
    type Response = RawTransport;
    type Error = BoxError;
    type Future = Connecting<RawTransport>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // The services below are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let proxy = self.proxy.clone();
        // hyper-util's proxies read a missing port as 443, whatever the scheme.
        let server = with_port(&server, default_port(&server)).unwrap_or(server);
        match &mut self.way {
            ProxyHop::Direct(tcp) => {
                let connecting = tcp.call(server);
                Box::pin(async { Ok(MaybeHttpsStream::Http(connecting.await?)) })
            }
            ProxyHop::Tunnel(tunnel) => {
                let connecting = tunnel.call(server);
                Box::pin(async move { connecting.await.map_err(|e| tunnel_failed(e, &proxy)) })
            }
            ProxyHop::Socks(socks) => {
                let connecting = socks.call(server);
                Box::pin(async move {
                    match connecting.await {
                        Ok(tcp) => Ok(MaybeHttpsStream::Http(tcp)),
                        Err(e) => Err(socks_failed(e, &proxy)),
                    }
                })
            }
        }
    }
}

// hyper-util does not export the error types of its proxies; they are reachable through the services'
// associated types.
type HttpProxyError = <Tunnel<Proxied> as Service<Uri>>::Error;
type SocksError = <SocksV5<Tcp> as Service<Uri>>::Error;

fn tunnel_failed(error: HttpProxyError, proxy: &str) -> BoxError {
    let proxy = proxy.to_owned();
    let reached = match error {
        HttpProxyError::ConnectFailed(source) => ReachError::ProxyAway { proxy, source },
        HttpProxyError::Io(source) => ReachError::ProxyAway {
            proxy,
            source: source.into(),
        },
        HttpProxyError::ProxyAuthRequired => ReachError::ProxyLogin { proxy },
        other => ReachError::ProxyRefused {
            proxy,
            reason: other.to_string(),
        },
    };
    reached.into()
}

fn socks_failed(error: SocksError, proxy: &str) -> BoxError {
    let proxy = proxy.to_owned();
    let reached = match error {
        SocksError::Inner(source) => ReachError::ProxyAway { proxy, source },
        SocksError::Io(source) => ReachError::ProxyAway {
            proxy,
            source: source.into(),
        },
        other => ReachError::ProxyRefused {
            proxy,
            reason: other.to_string(),
        },
    };
    reached.into()
}

/// TCP with happy eyeballs.
type System = HttpConnector<MapErr<GaiResolver, fn(io::Error) -> ReachError>>;

/// Makes connections below all protocols.
#[derive(Clone)]
enum Tcp {
    System(System),
    Given(Dialer),
}

impl Service<Uri> for Tcp {
    type Response = TokioIo<DialedSocket>;
    type Error = BoxError;
    type Future = Connecting<TokioIo<DialedSocket>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Always ready, like hyper-util's.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        match self {
            Self::System(tcp) => {
                let mut tcp = tcp.clone();
                Box::pin(async move {
                    let tcp = first_of(|| tcp.call(to.clone())).await?;
                    Ok(TokioIo::new(DialedSocket::from(tcp.into_inner())))
                })
            }
            Self::Given(dialer) => {
                let dialing = dialer.dial(to);
                Box::pin(async move { Ok(TokioIo::new(dialing.await?)) })
            }
        }
    }
}

/// The first result of attempts that begin [`ANOTHER_ATTEMPT`] apart; each of them ends by itself.
async fn first_of<F: Future>(mut attempt: impl FnMut() -> F) -> F::Output {
    let mut attempts = FuturesUnordered::new();
    loop {
        attempts.push(attempt());
        if let Ok(Some(ended)) = timeout(ANOTHER_ATTEMPT, attempts.next()).await {
            return ended;
        }
    }
}

fn tcp(within: Duration) -> System {
    let mut tcp = HttpConnector::new_with_resolver(MapErr::new(
        GaiResolver::new(),
        ReachError::Lookup as fn(io::Error) -> ReachError,
    ));
    tcp.enforce_http(false);
    // An upgrade is many small writes: with Nagle's algorithm each new connection waits 40 ms for the
    // other side's delayed acknowledgement.
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    // The time limit is divided among the addresses of a name, so that a dead one leaves time for the next.
    tcp.set_connect_timeout(Some(within));
    tcp
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_is_lost_does_not_hold_up_the_next() {
        let began = Instant::now();
        // The line is back after 2.5 s, for attempts that begin then.
        let lost = || async move {
            let at = began.elapsed();
            match at < Duration::from_millis(2500) {
                true => sleep(Duration::from_secs(10)).await,
                false => sleep(Duration::from_millis(20)).await,
            }
            at
        };
        assert_eq!(first_of(lost).await, Duration::from_secs(3));
        assert_eq!(began.elapsed(), Duration::from_millis(3020));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final_and_a_slow_answer_is_taken() {
        let mut attempts = 0;
        let refused = first_of(|| {
            attempts += 1;
            std::future::ready("refused")
        });
        assert_eq!((refused.await, attempts), ("refused", 1));
        let began = Instant::now();
        first_of(|| sleep(Duration::from_millis(1500))).await;
        assert_eq!(began.elapsed(), Duration::from_millis(1500));
    }
}
