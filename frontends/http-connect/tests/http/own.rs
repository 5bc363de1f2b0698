//! Requests to the proxy itself: never a target's answer, and nothing for a page of another name.

use kubevpn_conn::Credentials;
use kubevpn_http_connect::Settings;

use crate::harness::{Answer, Rig};

const PAC: &str = "function FindProxyForURL(url, host) { return \"DIRECT\"; }";

fn settings() -> Settings {
    Settings {
        pac: Some(PAC.into()),
        names: vec!["proxy.example".into()],
        ..Settings::default()
    }
}

async fn ask(settings: Settings, request: &str) -> Answer {
    let rig = Rig::refusing(settings, kubevpn_target::Refusal::Internal, "dialled");
    let mut client = rig.client();
    client.send(request).await;
    let answer = client.peer.answer(request.starts_with("HEAD")).await;
    assert_eq!(rig.dials(), 0);
    answer
}

#[tokio::test(start_paused = true)]
async fn a_browser_that_opens_the_proxy_is_told_what_it_is() {
    let answer = ask(settings(), "GET / HTTP/1.1\r\nHost: localhost:8118\r\n\r\n").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.field("content-type"), "text/plain; charset=utf-8");
    assert!(
        answer
            .text()
            .contains("http_proxy=http://localhost:8118 curl"),
        "{answer:?}"
    );
    let answer = ask(settings(), "HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(answer.status, 200);
    assert_ne!(answer.field("content-length"), "0");
    let answer = ask(settings(), "GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(answer.status, 200);
}

#[tokio::test(start_paused = true)]
async fn the_pac_file() {
    let answer = ask(
        settings(),
        "GET /proxy.pac HTTP/1.1\r\nHost: 127.0.0.1:8118\r\n\r\n",
    )
    .await;
    assert_eq!((answer.status, answer.text()), (200, PAC));
    assert_eq!(
        answer.field("content-type"),
        "application/x-ns-proxy-autoconfig"
    );
    assert_eq!(answer.field("x-content-type-options"), "nosniff");
    assert_eq!(answer.field("cross-origin-resource-policy"), "same-origin");
    let none = ask(
        Settings::default(),
        "GET /proxy.pac HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    .await;
    none.assert_refused(404, "http_request_error");
}

/// DNS rebinding: a page whose own name resolves to our address asks under that name.
#[tokio::test(start_paused = true)]
async fn only_under_a_name_that_is_ours() {
    for host in [
        "localhost",
        "LocalHost:8118",
        "a.localhost",
        "127.0.0.1",
        "127.9.9.9:1",
        "[::1]:8118",
        "192.168.1.5:8118",
        "proxy.example",
        "Proxy.Example:8118",
        "host.docker.internal:8118",
        "host.containers.internal",
    ] {
        let request = format!("GET /proxy.pac HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(ask(settings(), &request).await.status, 200, "{host}");
    }
    for host in [
        "evil.example",
        "localhost.evil.example",
        "evil-localhost",
        "xlocalhost",
        "127.0.0.1.evil.example",
        "proxy.example.evil",
        "web",
        "host.docker.internal.evil",
        "a.host.docker.internal",
        "metadata.google.internal",
        "host.internal",
    ] {
        for path in ["/", "/proxy.pac", "/other", "*"] {
            let method = if path == "*" { "OPTIONS" } else { "GET" };
            let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let answer = ask(settings(), &request).await;
            let sentence = answer.assert_refused(421, "http_request_denied");
            assert!(sentence.contains("HTTP proxy"), "{sentence}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_else_is_served() {
    for path in [
        "/index.html",
        "/proxy.pac/",
        "/PROXY.PAC",
        "//web/",
        "/http://web/",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        ask(settings(), &request)
            .await
            .assert_refused(404, "http_request_error");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = ask(settings(), &request).await;
        answer.assert_refused(405, "http_request_error");
        assert_eq!(answer.field("allow"), "GET, HEAD");
    }
}

#[tokio::test(start_paused = true)]
async fn options_and_trace_that_go_no_further() {
    for request in [
        "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "OPTIONS http://web/ HTTP/1.1\r\nHost: web\r\nMax-Forwards: 0\r\n\r\n",
    ] {
        let answer = ask(settings(), request).await;
        assert_eq!((answer.status, answer.text()), (200, ""));
        assert!(answer.field("allow").contains("CONNECT"));
    }
    let request =
        "TRACE http://web/x HTTP/1.1\r\nHost: web\r\nMax-Forwards: 0\r\nCookie: s3cret\r\n\r\n";
    let answer = ask(settings(), request).await;
    assert_eq!(answer.field("content-type"), "message/http");
    assert_eq!(
        answer.text(),
        "TRACE http://web/x HTTP/1.1\r\nhost: web\r\nmax-forwards: 0\r\n\r\n"
    );
}

// === Proxy-Authorization ===

fn locked() -> Settings {
    Settings {
        credentials: Some(Credentials::new("ann", "s3:cret").unwrap()),
        ..settings()
    }
}

#[tokio::test(start_paused = true)]
async fn a_password_is_asked_for() {
    for request in [
        "GET http://web/ HTTP/1.1\r\nHost: web\r\n",
        "CONNECT web:443 HTTP/1.1\r\nHost: web\r\n",
        "OPTIONS http://web/ HTTP/1.1\r\nHost: web\r\nMax-Forwards: 0\r\n",
    ] {
        for shown in [
            "",
            "Proxy-Authorization: Basic\r\n",
            "Proxy-Authorization: Basic \r\n",
            "Proxy-Authorization: Basic !!!\r\n",
            "Proxy-Authorization: Basic YW5u\r\n", // ann
            "Proxy-Authorization: Basic YW5uOnMzOmNyZQ==\r\n", // ann:s3:cre
            "Proxy-Authorization: Basic Ym9iOnMzOmNyZXQ=\r\n", // bob:s3:cret
            "Proxy-Authorization: Bearer YW5uOnMzOmNyZXQ=\r\n",
            "Authorization: Basic YW5uOnMzOmNyZXQ=\r\n",
            "Proxy-Authorization: Basic YW5uOnMzOmNyZXQ=\r\nProxy-Authorization: Basic YW5uOnMzOmNyZXQ=\r\n",
        ] {
            let answer = ask(locked(), &format!("{request}{shown}\r\n")).await;
            answer.assert_refused(407, "http_request_denied");
            assert_eq!(
                answer.field("proxy-authenticate"),
                "Basic realm=\"kubevpn\", charset=\"UTF-8\""
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_right_password_lets_in_and_goes_no_further() {
    for scheme in ["Basic", "basic"] {
        let shown = format!("Proxy-Authorization: {scheme} YW5uOnMzOmNyZXQ=\r\n\r\n");
        let mut rig = Rig::new(locked());
        let mut client = rig.client();
        client
            .send("GET http://web/ HTTP/1.1\r\nHost: web\r\n\r\n")
            .await;
        assert_eq!(client.answer().await.status, 407);
        // The client of a forwarded request may try again on the same connection.
        client
            .send(format!("GET http://web/ HTTP/1.1\r\nHost: web\r\n{shown}"))
            .await;
        let (_, mut server) = rig.server().await;
        assert!(!server.head().await.contains("uthoriz"));

        let mut client = rig.client();
        client
            .send(format!("CONNECT web:443 HTTP/1.1\r\nHost: web\r\n{shown}"))
            .await;
        rig.server().await;
        assert_eq!(client.peer.head().await, "HTTP/1.1 200 OK\r\n\r\n");
    }
}

#[tokio::test(start_paused = true)]
async fn the_proxys_own_pages_are_for_all() {
    let answer = ask(
        locked(),
        "GET /proxy.pac HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    .await;
    assert_eq!(answer.text(), PAC);
}
