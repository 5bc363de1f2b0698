//! Upgrades: HTTP/1.1, a connection each, and what is under it.

use std::time::Duration;

use http::{StatusCode, Version};
use hyper::upgrade::Upgraded;
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use kube::Client;
use kubevpn_client::{DialedSocket, ReadAhead};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Server, Setup, Speaks, upgrade};

/// The connector's stream: TLS to the API server around TLS to a proxy around TCP.
type Raw = MaybeHttpsStream<TokioIo<DialedSocket>>;
type Conn = MaybeHttpsStream<TokioIo<ReadAhead<TokioIo<Raw>>>>;

pub(crate) async fn upgraded(client: &Client) -> Upgraded {
    let response = client.send(upgrade("/echo")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    hyper::upgrade::on(response).await.unwrap()
}

/// Sends through the server and back.
pub(crate) async fn echoes(upgraded: Upgraded) {
    let mut io = TokioIo::new(upgraded);
    io.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    io.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"hello");
    io.shutdown().await.unwrap();
    assert_eq!(io.read(&mut answer).await.unwrap(), 0);
}

/// Looks at the client's own socket under an upgraded stream.
pub(crate) fn check_socket(upgraded: Upgraded) {
    let conn = upgraded
        .downcast::<Conn>()
        .expect("the connector's type")
        .io;
    let raw = match &conn {
        MaybeHttpsStream::Http(raw) => raw,
        MaybeHttpsStream::Https(tls) => tls.inner().get_ref().0.inner(),
    };
    let tcp = match raw.inner().get_ref().inner() {
        MaybeHttpsStream::Http(tcp) => tcp.inner(),
        MaybeHttpsStream::Https(tls) => tls.inner().get_ref().0.inner().inner(),
    };
    let tcp = tcp.tcp().expect("TCP");
    assert!(tcp.nodelay().unwrap(), "TCP_NODELAY");
    assert!(SockRef::from(tcp).keepalive().unwrap(), "SO_KEEPALIVE");
}

#[tokio::test]
async fn an_upgrade_has_an_http1_connection_of_its_own() {
    for speaks in [Speaks::Tls(&["h2", "http/1.1"]), Speaks::Plain] {
        let server = Server::speaking(speaks).await;
        let client = Setup::of(&server).client();
        client.apiserver_version().await.unwrap();
        echoes(upgraded(&client).await).await;
        echoes(upgraded(&client).await).await;
        client.apiserver_version().await.unwrap();
        let seen = server.seen();
        let of = |n: usize| (seen[n].version, seen[n].connection);
        assert_eq!(of(1), (Version::HTTP_11, 1));
        assert_eq!(of(2), (Version::HTTP_11, 2));
        assert_eq!(of(3), of(0));
        assert_eq!(server.connections(), 3);
    }
}

/// Each connection is made before the upgrade that takes it, but only once an upgrade was announced.
#[tokio::test]
async fn the_next_connection_is_made_ahead_where_upgrades_are_expected() {
    let server = Server::start().await;
    let (client, renewal) = Setup::of(&server).renewable();
    client.apiserver_version().await.unwrap();
    echoes(upgraded(&client).await).await;
    assert_eq!(server.connections(), 2, "nothing is made ahead");
    for n in 2..5 {
        renewal.api_server().expect_upgrade();
        while server.connections() <= n {
            tokio::task::yield_now().await;
        }
        echoes(upgraded(&client).await).await;
        assert_eq!(server.last().connection, n);
    }
}

#[tokio::test]
async fn its_socket_does_not_wait_to_send() {
    let server = Server::start().await;
    let client = Setup::of(&server).client();
    check_socket(upgraded(&client).await);
}

#[tokio::test]
async fn its_tls_session_is_resumed() {
    let server = Server::start().await;
    let client = Setup::of(&server).client();
    client.apiserver_version().await.unwrap();
    for _ in 0..3 {
        echoes(upgraded(&client).await).await;
    }
    let resumed: Vec<_> = server.seen().iter().map(|s| s.resumed).collect();
    assert_eq!(resumed, [false, true, true, true]);
}

#[tokio::test]
async fn a_refused_upgrade_is_not_tried_again() {
    let server = Server::start().await;
    let client = Setup::of(&server).client();
    let refused = client.send(upgrade("/flaky")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn it_may_be_silent_for_as_long_as_it_likes() {
    let server = Server::start().await;
    let client = Setup::of(&server).client();
    let upgraded = upgraded(&client).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(12 * 60)).await;
    tokio::time::resume();
    echoes(upgraded).await;
}

#[tokio::test]
async fn it_is_known_by_its_header_alone() {
    let server = Server::start().await;
    let client = Setup::of(&server).client();
    let mut request = upgrade("/version");
    request.headers_mut().remove("connection");
    client.send(request).await.unwrap();
    assert_eq!(server.last().version, Version::HTTP_11);
}
