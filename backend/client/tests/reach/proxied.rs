//! Through every kind of proxy, and around it.

use kubevpn_target::Refusal;

use crate::failures::failure;
use crate::support::{Asked, HttpProxy, NAME, Server, Setup, SocksProxy, Speaks};
use crate::upgrades::{check_socket, echoes, upgraded};

/// One call and two upgrades, all of which have to succeed.
async fn all_ways(setup: &Setup) {
    let client = setup.client();
    client.apiserver_version().await.unwrap();
    echoes(upgraded(&client).await).await;
    check_socket(upgraded(&client).await);
}

fn tunnelled(target: &str, login: Option<&str>) -> Asked {
    Asked {
        target: target.to_owned(),
        by_name: false,
        login: login.map(str::to_owned),
    }
}

#[tokio::test]
async fn http() {
    let server = Server::start().await;
    let proxy = HttpProxy::start(server.address, None).await;
    all_ways(&Setup::by_name(&server).proxy(format!("http://{}", proxy.address))).await;
    let target = format!("{NAME}:6443");
    assert_eq!(proxy.asked(), vec![tunnelled(&target, None); 3]);
}

#[tokio::test]
async fn http_with_a_password() {
    let server = Server::start().await;
    // "jane:pa@ss:word"
    let login = "Basic amFuZTpwYUBzczp3b3Jk";
    let proxy = HttpProxy::start(server.address, Some(login)).await;
    let url = format!("http://jane:pa%40ss%3Aword@{}", proxy.address);
    all_ways(&Setup::by_name(&server).proxy(url)).await;
    let target = format!("{NAME}:6443");
    assert_eq!(proxy.asked(), vec![tunnelled(&target, Some(login)); 3]);

    let wrong = format!("http://jane:guess@{}", proxy.address);
    let error = failure(&Setup::by_name(&server).proxy(wrong)).await;
    assert_eq!(error.refusal(), Refusal::ClusterAway);
    let said = error.to_string();
    let asks = format!("the proxy http://{} asks for a user", proxy.address);
    assert!(said.contains(&asks), "{said}");
    assert!(!said.contains("guess"), "{said}");
}

#[tokio::test]
async fn https() {
    let server = Server::start().await;
    // "jane:secret"
    let login = "Basic amFuZTpzZWNyZXQ=";
    let proxy = HttpProxy::over_tls(server.address, Some(login), &server.ca).await;
    let url = format!("https://jane:secret@{}", proxy.address);
    all_ways(&Setup::by_name(&server).proxy(url)).await;
    let target = format!("{NAME}:6443");
    assert_eq!(proxy.asked(), vec![tunnelled(&target, Some(login)); 3]);
}

#[tokio::test]
async fn https_proxy_with_an_untrusted_certificate() {
    let (server, other) = (Server::start().await, Server::start().await);
    let proxy = HttpProxy::over_tls(server.address, None, &other.ca).await;
    let url = format!("https://{}", proxy.address);
    let error = failure(&Setup::by_name(&server).proxy(url)).await;
    assert_eq!(error.refusal(), Refusal::ClusterAway);
    let said = error.to_string();
    let whose = format!("the certificate of the proxy https://{}", proxy.address);
    assert!(said.contains(&whose), "{said}");
}

#[tokio::test]
async fn socks5_and_socks5h_resolve_at_the_proxy() {
    let server = Server::start().await;
    for scheme in ["socks5", "socks5h"] {
        let proxy = SocksProxy::start(server.address, None).await;
        let url = format!("{scheme}://{}", proxy.address);
        all_ways(&Setup::by_name(&server).proxy(&url)).await;
        let asked = Asked {
            target: format!("{NAME}:6443"),
            by_name: true,
            login: None,
        };
        assert_eq!(proxy.asked(), vec![asked; 3], "{scheme}");

        Setup::of(&server)
            .proxy(&url)
            .client()
            .apiserver_version()
            .await
            .unwrap();
        let last = proxy.asked().pop().unwrap();
        assert_eq!(last.target, server.address.to_string());
        assert!(!last.by_name, "an address is sent as one");
    }
}

#[tokio::test]
async fn socks5_with_a_password() {
    let server = Server::start().await;
    let proxy = SocksProxy::start(server.address, Some("jane:pa@ss")).await;
    let url = format!("socks5h://jane:pa%40ss@{}", proxy.address);
    all_ways(&Setup::by_name(&server).proxy(url)).await;
    let asked = proxy.asked();
    assert_eq!(asked.len(), 3);
    assert!(
        asked
            .iter()
            .all(|a| a.login.as_deref() == Some("jane:pa@ss"))
    );

    for (login, reason) in [("jane:guess@", "not accepted"), ("", "does not support")] {
        let url = format!("socks5h://{login}{}", proxy.address);
        let error = failure(&Setup::by_name(&server).proxy(url)).await;
        assert_eq!(error.refusal(), Refusal::ClusterAway);
        let said = error.to_string();
        let named = format!("the proxy socks5h://{} does not connect", proxy.address);
        assert!(said.contains(&named), "{said}");
        assert!(said.contains(reason), "{said}");
        assert!(!said.contains("guess"), "{said}");
    }
}

#[tokio::test]
async fn a_plain_server_is_tunnelled_to_as_well() {
    let server = Server::speaking(Speaks::Plain).await;
    let proxy = HttpProxy::start(server.address, None).await;
    let through = format!("http://{}", proxy.address);
    all_ways(&Setup::new(format!("http://{NAME}")).proxy(&through)).await;
    let target = format!("{NAME}:80");
    assert_eq!(proxy.asked(), vec![tunnelled(&target, None); 3]);
}

#[tokio::test]
async fn a_proxy_that_refuses() {
    let server = Server::start().await;
    let http = HttpProxy::start(server.address, None).await;
    let socks = SocksProxy::start(server.address, None).await;
    for url in [
        format!("http://{}", http.address),
        format!("socks5://{}", socks.address),
    ] {
        let setup = Setup::new("https://forbidden.kubevpn.test").proxy(&url);
        let error = failure(&setup).await;
        assert_eq!(error.refusal(), Refusal::ClusterAway);
        let said = error.to_string();
        let named = format!("the proxy {url} does not connect to the API server");
        assert!(said.contains(&named), "{said}");
        let server = "https://forbidden.kubevpn.test:443";
        assert!(said.contains(server), "{said}");
    }
}

#[tokio::test]
async fn a_proxy_that_is_away() {
    let nobody = crate::support::nobody().await;
    for scheme in ["http", "https", "socks5", "socks5h"] {
        let url = format!("{scheme}://{nobody}");
        let error = failure(&Setup::new("https://api.kubevpn.test:6443").proxy(&url)).await;
        assert_eq!(error.refusal(), Refusal::ClusterAway);
        let said = error.to_string();
        let named =
            format!("the proxy {url} before https://api.kubevpn.test:6443 cannot be reached");
        assert!(said.contains(&named), "{said}");
        assert!(said.contains("refused"), "{said}");
    }
}

#[tokio::test]
async fn the_environments_proxy_is_used_except_for_no_proxy() {
    let server = Server::start().await;
    let proxy = HttpProxy::start(server.address, None).await;
    let setup = || {
        let address = proxy.address.to_string();
        Setup::by_name(&server).env("HTTPS_PROXY", address)
    };
    all_ways(&setup()).await;
    assert_eq!(proxy.asked().len(), 3);

    // Without the proxy: only the proxy can resolve the name.
    let error = failure(&setup().env("NO_PROXY", "other, .kubevpn.test:6443")).await;
    assert!(error.to_string().contains("cannot be resolved"), "{error}");
    assert_eq!(proxy.asked().len(), 3);

    // NO_PROXY does not affect the kubeconfig's proxy.
    let other = HttpProxy::start(server.address, None).await;
    let url = format!("http://{}", other.address);
    all_ways(&setup().env("NO_PROXY", "*").proxy(url)).await;
    assert_eq!((proxy.asked().len(), other.asked().len()), (3, 3));

    // A server on this host is reached directly.
    let local = Setup::of(&server).env("HTTPS_PROXY", proxy.address.to_string());
    local.client().apiserver_version().await.unwrap();
    assert_eq!(proxy.asked().len(), 3);
}
