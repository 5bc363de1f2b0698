//! Bare connections to the API server: at the kubeconfig's address, with no protocol of ours.

use std::sync::Arc;

use kubevpn_client::{ApiServer, build_renewable};
use kubevpn_target::{Connect, Origin, Refusal, Stream, Target};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::support::{HttpProxy, NAME, Server, Setup, SocksProxy, nobody};

fn raw(setup: &Setup) -> ApiServer {
    ApiServer::new(setup.load().config, &setup.options).unwrap()
}

/// TLS and HTTP of our own over such a connection.
async fn asks(setup: &Setup, server: &Server) {
    let target = Target::parse("kubernetes.default.svc:443", Origin::default()).unwrap();
    let stream = raw(setup).connect(target).await.unwrap();
    assert_eq!(stream.via().to, setup.load().server);
    speaks(stream, server).await;
}

async fn speaks(stream: impl AsyncRead + AsyncWrite + Unpin, server: &Server) {
    let connector = tokio_rustls::TlsConnector::from(Arc::new(server.ca.trusted()));
    let name = ServerName::try_from(NAME).unwrap();
    let mut tls = connector.connect(name, stream).await.unwrap();
    let request = format!("GET /version HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn directly() {
    let server = Server::start().await;
    asks(&Setup::of(&server), &server).await;
}

#[tokio::test]
async fn connections_follow_a_changed_configuration() {
    let server = Server::start().await;
    let before = Setup::by_name(&server).proxy(format!("http://{}", nobody().await));
    let (_client, renewal) = build_renewable(before.load().config, &before.options).unwrap();
    let api_server = renewal.api_server();
    api_server.connect_raw().await.unwrap_err();
    let proxy = HttpProxy::start(server.address, None).await;
    let url = format!("http://{}", proxy.address);
    let after = Setup::by_name(&server).proxy(url);
    renewal.replace(after.load().config).unwrap();
    speaks(api_server.connect_raw().await.unwrap(), &server).await;
    assert_eq!(proxy.asked()[0].target, format!("{NAME}:6443"));
}

#[tokio::test]
async fn through_the_proxies_of_the_kubeconfig() {
    let server = Server::start().await;
    let proxy = HttpProxy::start(server.address, None).await;
    let url = format!("http://{}", proxy.address);
    asks(&Setup::by_name(&server).proxy(url), &server).await;
    assert_eq!(proxy.asked()[0].target, format!("{NAME}:6443"));
    let proxy = HttpProxy::over_tls(server.address, None, &server.ca).await;
    let url = format!("https://{}", proxy.address);
    asks(&Setup::by_name(&server).proxy(url), &server).await;
    let proxy = SocksProxy::start(server.address, None).await;
    let url = format!("socks5h://{}", proxy.address);
    asks(&Setup::by_name(&server).proxy(url), &server).await;
}

#[tokio::test]
async fn unreachable_servers() {
    let server = Server::start().await;
    for (setup, refusal, said) in [
        (
            Setup::new(format!("{}/k8s/clusters/c-1", server.url())),
            Refusal::Unreachable,
            "under a path, where only requests made for it find it",
        ),
        (
            Setup::new(server.url().replace("https", "http")),
            Refusal::Unreachable,
            "which speaks no TLS",
        ),
        (
            Setup::new(format!("https://{}", nobody().await)),
            Refusal::ClusterAway,
            "the connection was refused",
        ),
        (
            Setup::by_name(&server).proxy(format!("http://{}", nobody().await)),
            Refusal::ClusterAway,
            "the proxy",
        ),
    ] {
        let Err(error) = raw(&setup).connect_raw().await else {
            panic!("{said}");
        };
        assert_eq!(error.refusal(), refusal, "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
}
