//! Targets that no Pod serves: the API server itself, and hosts outside the cluster.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use kubevpn_target::{BoxError, ConnectError, Host, Refusal, Target, classify};
use tokio::net::TcpStream;
use tower::ServiceExt as _;
use tower_service::Service;

use crate::either::Either;
use crate::host::{FromHost, Outbound};

/// A target that does not lead to Pods.
#[derive(Clone, Debug)]
pub enum Elsewhere {
    /// The API server itself.
    ApiServer(Target),
    /// A host outside the cluster.
    Outside(Outbound),
}

/// Whether hosts outside the cluster are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outside {
    /// No.
    #[default]
    Deny,
    /// From this host.
    Direct,
}

/// Dials the API server with the given service, and hosts outside the cluster as the policy allows.
///
/// Always ready; readiness of the inner services is awaited inside the call.
#[derive(Clone, Debug)]
pub struct Egress<A> {
    api_server: A,
    outside: Outside,
    host: FromHost,
}

impl<A> Egress<A> {
    /// `api_server` has to answer every [`Target`] with a stream to the API server, because its address and proxy are in
    /// the kubeconfig.
    pub fn new(api_server: A, outside: Outside, host: FromHost) -> Self {
        Self {
            api_server,
            outside,
            host,
        }
    }
}

impl<A> Service<Elsewhere> for Egress<A>
where
    A: Service<Target> + Clone + Send + 'static,
    A::Error: Into<BoxError>,
    A::Future: Send,
{
    type Response = Either<A::Response, TcpStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, elsewhere: Elsewhere) -> Self::Future {
        match (elsewhere, self.outside) {
            (Elsewhere::ApiServer(target), _) => {
                tracing::debug!(%target, "dialing the API server");
                let stream = self.api_server.clone().oneshot(target);
                Box::pin(async { stream.await.map(Either::A).map_err(|e| classify(e.into())) })
            }
            (Elsewhere::Outside(outbound), Outside::Direct) => {
                let stream = self.host.call(outbound);
                Box::pin(async { stream.await.map(Either::B) })
            }
            (Elsewhere::Outside(outbound), Outside::Deny) => {
                // A host that is never dialled gets that error, whatever the policy.
                let why = self.host.never(&outbound);
                let sentence = why.unwrap_or_else(|| denied(&outbound));
                Box::pin(async move { Err(ConnectError::new(Refusal::Denied, sentence)) })
            }
        }
    }
}

fn denied(outbound: &Outbound) -> String {
    let Outbound {
        target,
        to,
        learned_from,
    } = outbound;
    let is_fake = learned_from.is_none() && to.iter().any(Host::is_fake_ip);
    let to: Vec<_> = to.iter().map(Host::to_string).collect();
    let to = to.join(", ");
    if is_fake {
        return format!(
            "{to} is nothing in the cluster, and most likely an address that the DNS of a VPN program made up for a \
             name (fake-ip of sing-box, Clash, Surge): let the proxy resolve names, with socks5h:// or as an HTTP proxy"
        );
    }
    match learned_from {
        Some(learned_from) => format!(
            "{target} leads to {to} by {learned_from}: a host outside the cluster, which this proxy does not dial without --outside direct"
        ),
        None => format!(
            "{to} is a host outside the cluster, which this proxy does not dial: ask for it without the proxy, or start that with --outside direct"
        ),
    }
}

#[cfg(test)]
mod tests {
    use kubevpn_target::{Origin, Stream};
    use tokio::io::DuplexStream;
    use tokio::net::TcpListener;
    use tower::service_fn;

    use super::*;

    async fn call(outside: Outside, elsewhere: Elsewhere) -> Result<String, ConnectError> {
        let api_server = service_fn(|target: Target| async move {
            match target.port.get() {
                443 => Ok(tokio::io::duplex(1).0),
                _ => Err::<DuplexStream, BoxError>("no".into()),
            }
        });
        let egress = Egress::new(api_server, outside, FromHost::default());
        let stream = egress.oneshot(elsewhere).await?;
        Ok(match &stream {
            Either::A(_) => "the API server".into(),
            Either::B(_) => stream.via().to,
        })
    }

    fn target(text: &str) -> Target {
        Target::parse(text, Origin::default()).unwrap()
    }

    #[tokio::test]
    async fn each_goes_its_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        for outside in [Outside::Deny, Outside::Direct] {
            let api = Elsewhere::ApiServer(target("kubernetes:443"));
            assert_eq!(call(outside, api).await.unwrap(), "the API server");
            let api = Elsewhere::ApiServer(target("kubernetes:1"));
            let error = call(outside, api).await.unwrap_err();
            assert_eq!(error.refusal(), Refusal::Internal, "classified");
        }
        let out = || Elsewhere::Outside(target(&address).into());
        assert_eq!(call(Outside::Direct, out()).await.unwrap(), address);
        let error = call(Outside::Deny, out()).await.unwrap_err();
        assert_eq!(error.refusal(), Refusal::Denied);
        assert!(error.to_string().contains("--outside direct"), "{error}");
    }

    /// An address that the cluster's DNS returned.
    #[tokio::test]
    async fn a_fake_ip_address_is_named_in_the_refusal() {
        for to in ["198.18.0.7:80", "[fc00::2]:9080"] {
            let error = call(Outside::Deny, Elsewhere::Outside(target(to).into())).await;
            let said = error.unwrap_err().to_string();
            assert!(
                said.contains("fake-ip") && said.contains("socks5h://"),
                "{said}"
            );
        }
    }

    #[tokio::test]
    async fn the_refusal_has_the_clusters_answer() {
        let outbound = Outbound {
            to: vec![Host::parse("outside.example.test").unwrap()],
            learned_from: Some("service default/external".into()),
            target: target("external:443"),
        };
        let error = call(Outside::Deny, Elsewhere::Outside(outbound)).await;
        assert_eq!(
            error.unwrap_err().to_string(),
            "external:443 leads to outside.example.test by service default/external: a host outside the \
             cluster, which this proxy does not dial without --outside direct"
        );
    }
}
