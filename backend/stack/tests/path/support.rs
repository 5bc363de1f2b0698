//! A cluster in memory, and what every test does with it.

use std::net::SocketAddr;
use std::time::Duration;

use kubevpn_client::{ApiServer, Options};
use kubevpn_sim::Sim;
use kubevpn_stack::{
    Cluster, ClusterSettings, Egress, Forwarder, ForwarderConfig, FromHost, Outside,
};
use kubevpn_target::{Origin, Target};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(crate) async fn sim() -> Sim {
    Sim::builder().plain().sample().start().await.unwrap()
}

pub(crate) fn client(sim: &Sim) -> kube::Client {
    kube::Client::try_from(sim.config()).unwrap()
}

pub(crate) fn cluster(sim: &Sim, settings: ClusterSettings) -> Cluster {
    Cluster::new(client(sim), settings)
}

pub(crate) fn forwarder(sim: &Sim) -> Forwarder {
    Forwarder::new(client(sim), ForwarderConfig::default())
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

/// Returns when `happened` says so. What never happens ends the test by its own limit.
pub(crate) async fn until(mut happened: impl FnMut() -> bool) {
    let mut look = tokio::time::interval(Duration::from_millis(2));
    while !happened() {
        look.tick().await;
    }
}

/// What the sample's echo program answers to an HTTP request.
pub(crate) async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let request = b"GET / HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
