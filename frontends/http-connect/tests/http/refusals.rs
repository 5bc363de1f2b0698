//! Every way a request is refused: status, `Proxy-Status`, text.

use kubevpn_http_connect::{Settings, status};
use kubevpn_target::Refusal;

use crate::harness::{Rig, get};

/// The table of the design: refusal, HTTP status, error type of RFC 9209.
const TABLE: [(Refusal, u16, &str); 12] = [
    (Refusal::NameNotFound, 502, "dns_error"),
    (Refusal::NoSuchPort, 502, "connection_refused"),
    (Refusal::NotReady, 503, "destination_unavailable"),
    (Refusal::Refused, 502, "connection_refused"),
    (Refusal::Unreachable, 502, "destination_ip_unroutable"),
    (Refusal::ClusterAway, 502, "destination_unavailable"),
    (Refusal::Forbidden, 403, "http_request_denied"),
    (Refusal::Denied, 403, "http_request_denied"),
    (Refusal::TimedOut, 504, "connection_timeout"),
    (Refusal::Overloaded, 503, "connection_limit_reached"),
    (Refusal::Unauthenticated, 502, "proxy_configuration_error"),
    (Refusal::Internal, 500, "proxy_internal_error"),
];

#[test]
fn the_table_is_complete() {
    let listed = TABLE.map(|(refusal, _, _)| refusal);
    assert_eq!(listed, Refusal::ALL);
    for (refusal, code, error) in TABLE {
        let (status, name) = status(refusal);
        assert_eq!((status.as_u16(), name), (code, error), "{refusal}");
    }
}

const SENTENCE: &str = "service shop/web has no TCP port 81, it has 80 (http)";

#[tokio::test(start_paused = true)]
async fn every_refusal_of_a_tunnel() {
    for (refusal, status, error) in TABLE {
        let rig = Rig::refusing(Settings::default(), refusal, SENTENCE);
        let mut client = rig.client();
        client
            .send("CONNECT web:81 HTTP/1.1\r\nHost: web:81\r\n\r\n")
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.assert_refused(status, error), SENTENCE);
        assert!(answer.field("proxy-status").contains(SENTENCE));
        assert!(answer.closes() && client.peer.has_ended().await);
    }
}

#[tokio::test(start_paused = true)]
async fn every_refusal_of_a_forwarded_request_and_the_connection_goes_on() {
    for (refusal, status, error) in TABLE {
        let rig = Rig::refusing(Settings::default(), refusal, SENTENCE);
        let mut client = rig.client();
        for _ in 0..2 {
            client.send(get("web:81")).await;
            let answer = client.answer().await;
            assert_eq!(answer.assert_refused(status, error), SENTENCE);
            assert!(answer.field("proxy-status").contains(SENTENCE));
            assert!(!answer.closes());
        }
        client.served().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_upload_is_not_read_and_ends_the_connection() {
    let rig = Rig::refusing(Settings::default(), Refusal::NotReady, SENTENCE);
    let mut client = rig.client();
    client
        .send("POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000\r\n\r\nbegin")
        .await;
    let answer = client.answer().await;
    answer.assert_refused(503, "destination_unavailable");
    assert!(answer.closes() && client.peer.has_ended().await);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_ends_before_it_answers() {
    for (sent, error) in [
        ("", "connection_terminated"),
        ("HTTP/1.1 200 OK\r\nContent-Le", "connection_terminated"),
        ("SSH-2.0-OpenSSH\r\n\r\n", "http_protocol_error"),
        (
            "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
            "http_protocol_error",
        ),
        (
            "HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
            "http_protocol_error",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
            "http_protocol_error",
        ),
        (
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "http_protocol_error",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "http_response_transfer_coding",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
            "http_response_transfer_coding",
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            "http_upgrade_failed",
        ),
    ] {
        let mut rig = Rig::new(Settings::default());
        let mut client = rig.client();
        client
            .send("POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi")
            .await;
        let (_, mut server) = rig.server().await;
        server.head().await;
        server.take(2).await;
        server.send(sent).await;
        drop(server);
        let answer = client.answer().await;
        let sentence = answer.assert_refused(502, error);
        assert!(sentence.starts_with("web:80 "), "{sentence}");
        assert_eq!(rig.dials(), 1, "a request with a body is sent once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_of_a_target_has_bounds() {
    let fields = (0..101)
        .map(|i| format!("x-{i}: y\r\n"))
        .collect::<String>();
    let large = format!("x: {}\r\n", "y".repeat(64 * 1024));
    for fields in [fields, large] {
        let mut rig = Rig::new(Settings::default());
        let mut client = rig.client();
        client.send(get("web")).await;
        let (_, server) = rig.server().await;
        let serving = tokio::spawn(async move {
            let mut server = server;
            server.head().await;
            // It may hang up before it has read all.
            let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            let _ = tokio::io::AsyncWriteExt::write_all(&mut server.io, head.as_bytes()).await;
        });
        client
            .answer()
            .await
            .assert_refused(502, "http_response_header_section_size");
        serving.await.unwrap();
    }
}
