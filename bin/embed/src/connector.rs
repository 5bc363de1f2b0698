//! The connector: tower services that open streams.

use std::future::{Future, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use kubevpn_target::{ConnectError, Host, Origin, Refusal, Target, TargetError};
use tower_service::Service;

use crate::{Cluster, ClusterStream};

type ConnectorFuture<T> = Pin<Box<dyn Future<Output = Result<T, ConnectError>> + Send>>;

/// Opens streams for other libraries.
///
/// As a `Service<Uri>` it is a connector for hyper-util's client, or for a TLS connector around it, which does the TLS. The
/// default port is 80 for `http` and `ws`, 443 for `https` and `wss`.
///
/// ```no_run
/// # async fn run(cluster: kubevpn_embed::Cluster) -> Result<(), Box<dyn std::error::Error>> {
/// use http_body_util::Empty;
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
///
/// let client = Client::builder(TokioExecutor::new()).build(cluster.connector());
/// let body: Empty<&[u8]> = Empty::new();
/// let request = http::Request::get("http://web.shop/").body(body)?;
/// let answer = client.request(request).await?;
/// # Ok(())
/// # }
/// ```
///
/// As a `Service<Target>` it can be wrapped in custom layers, and served by every frontend (`kubevpn-socks5`,
/// `kubevpn-http-connect`).
///
/// The connector is always ready. Dropping the future of a call ends the attempt.
#[derive(Clone, Debug)]
pub struct Connector(Cluster);

impl Connector {
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self(cluster)
    }
}

impl Service<Target> for Connector {
    type Response = ClusterStream;
    type Error = ConnectError;
    type Future = ConnectorFuture<ClusterStream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Target) -> Self::Future {
        let cluster = self.0.clone();
        Box::pin(async move { cluster.dial(target).await })
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<ClusterStream>;
    type Error = ConnectError;
    type Future = ConnectorFuture<TokioIo<ClusterStream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let target = target_of(&uri).map_err(|error| {
            // The text omits path and query, which may be secret.
            let authority = uri.authority().map_or("", |authority| authority.as_str());
            let sentence = format!("{authority:?} names no target: {error}");
            ConnectError::new(Refusal::NameNotFound, sentence)
        });
        let cluster = self.0.clone();
        match target {
            Ok(target) => Box::pin(async move { cluster.dial(target).await.map(TokioIo::new) }),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }
}

fn target_of(uri: &Uri) -> Result<Target, TargetError> {
    let port = match (uri.port_u16(), uri.scheme_str()) {
        (Some(port), _) => port,
        (None, Some("http" | "ws")) => 80,
        (None, Some("https" | "wss")) => 443,
        (None, _) => return Err(TargetError::NoPort),
    };
    let host = Host::parse(uri.host().unwrap_or_default())?;
    Target::new(host, port, Origin::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_uris() {
        for (uri, target) in [
            ("http://web.shop/x?y", Ok("web.shop:80")),
            ("https://web.shop", Ok("web.shop:443")),
            ("ws://web:8080/", Ok("web:8080")),
            ("http://[fd00::5]:81/", Ok("[fd00::5]:81")),
            ("http://10.0.0.5/", Ok("10.0.0.5:80")),
            ("ftp://web/", Err(TargetError::NoPort)),
            ("/path", Err(TargetError::NoPort)),
            ("http://web:0/", Err(TargetError::PortZero)),
            ("http://1.2.3/", Err(TargetError::NumericName)),
        ] {
            let got = target_of(&uri.parse().unwrap()).map(|target| target.to_string());
            assert_eq!(got, target.map(ToOwned::to_owned), "{uri}");
        }
    }
}
