//! A cluster in memory, and helpers of all tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::client::conn::http1::handshake;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper_util::rt::TokioIo;
use kubevpn_client::{ApiServer, Options, build};
use kubevpn_sim::Sim;
use kubevpn_stack::{
    Cluster, ClusterSettings, Egress, Forwarder, ForwarderConfig, FromHost, Outside,
};
use kubevpn_target::{Origin, Target};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tower::service_fn;

pub(crate) async fn sim() -> Sim {
    Sim::builder().plain().sample().start().await.unwrap()
}

/// The kubeconfig of the default user, or of the one with this token.
fn client(sim: &Sim, token: Option<&str>) -> kube::Client {
    let config = token.map_or_else(|| sim.config(), |token| sim.config_for(token));
    build(config, &Options::new("test")).unwrap()
}

pub(crate) fn cluster(sim: &Sim, settings: ClusterSettings) -> Cluster {
    cluster_as(sim, None, settings)
}

pub(crate) fn cluster_as(sim: &Sim, token: Option<&str>, settings: ClusterSettings) -> Cluster {
    Cluster::new(client(sim, token), settings)
}

/// The cluster for a client with connections in memory, so that the clock can be paused; the client has all rights.
pub(crate) fn cluster_in_memory(sim: &Arc<Sim>) -> Cluster {
    let sim = Arc::clone(sim);
    let ask = service_fn(move |mut request: Request<kube::client::Body>| {
        let io = sim.connect().expect("the API server is there");
        async move {
            let (mut send, connection) = handshake(TokioIo::new(io)).await?;
            tokio::spawn(connection);
            let admin = HeaderValue::from_static("Bearer admin");
            request.headers_mut().insert(AUTHORIZATION, admin);
            send.send_request(request).await
        }
    });
    let client = kube::Client::new(ask, "default");
    Cluster::new(client, ClusterSettings::default())
}

pub(crate) fn forwarder(sim: &Sim) -> Forwarder {
    forwarder_as(sim, None)
}

pub(crate) fn forwarder_as(sim: &Sim, token: Option<&str>) -> Forwarder {
    Forwarder::new(client(sim, token), ForwarderConfig::default())
}

pub(crate) fn egress(sim: &Sim, outside: Outside, own: &[SocketAddr]) -> Egress<ApiServer> {
    let api_server = ApiServer::new(sim.config(), &Options::new("test")).unwrap();
    let host = FromHost::new(own.iter().copied());
    Egress::new(api_server, outside, host)
}

pub(crate) fn deny(sim: &Sim) -> Egress<ApiServer> {
    egress(sim, Outside::Deny, &[])
}

pub(crate) fn target(text: &str) -> Target {
    Target::parse(text, Origin::default()).unwrap()
}

/// Returns when `happened` is true. The test's own time limit ends a wait without result.
pub(crate) async fn until(mut happened: impl FnMut() -> bool) {
    let mut look = tokio::time::interval(Duration::from_millis(2));
    while !happened() {
        look.tick().await;
    }
}

/// The answer of the sample's echo program to an HTTP request, up to its service's name. The connection ends a second
/// later, as with containerd.
pub(crate) async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let request = b"GET / HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let read = stream.read_buf(&mut answer).await.unwrap();
        let text = String::from_utf8_lossy(&answer);
        let named = text.split_once(r#""service":""#);
        if read == 0 || named.is_some_and(|(_, name)| name.contains('"')) {
            return text.into_owned();
        }
    }
}
