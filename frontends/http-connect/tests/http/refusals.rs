//! Every way a request is refused: status, `Proxy-Status`, text.

use kubevpn_http_connect::{Settings, status};
use kubevpn_target::Refusal;
use kubevpn_target::table::{REFUSALS, RefusalRow};

use crate::harness::{Answer, Rig, get};

/// Status, error type and sentence, in the body and in `Proxy-Status`.
fn assert_said(answer: &Answer, row: &RefusalRow) {
    assert_eq!(answer.assert_refused(row.status, row.error), row.sentence);
    let details = row.sentence.replace('"', "\\\"");
    let field = format!("kubevpn; error={}; details=\"{details}\"", row.error);
    assert_eq!(answer.field("proxy-status"), field);
}

#[test]
fn every_refusal_has_its_status() {
    for row in REFUSALS {
        let (status, error) = status(row.refusal);
        assert_eq!((status.as_u16(), error), (row.status, row.error), "{row:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_refusal_of_a_tunnel() {
    for row in REFUSALS {
        let rig = Rig::refusing(Settings::default(), row.refusal, row.sentence);
        let mut client = rig.client();
        client
            .send("CONNECT web:81 HTTP/1.1\r\nHost: web:81\r\n\r\n")
            .await;
        let answer = client.answer().await;
        assert_said(&answer, &row);
        assert!(answer.closes() && client.peer.has_ended().await);
    }
}

#[tokio::test(start_paused = true)]
async fn every_refusal_of_a_forwarded_request_and_the_connection_goes_on() {
    for row in REFUSALS {
        let rig = Rig::refusing(Settings::default(), row.refusal, row.sentence);
        let mut client = rig.client();
        for _ in 0..2 {
            client.send(get("web:81")).await;
            let answer = client.answer().await;
            assert_said(&answer, &row);
            assert!(!answer.closes());
        }
        client.served().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_upload_is_not_read_and_ends_the_connection() {
    let rig = Rig::refusing(Settings::default(), Refusal::NotReady, "not now");
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
        for field in ["Content-Length", "Transfer-Encoding"] {
            let twice = error == "http_protocol_error" && sent.contains(field);
            assert_eq!(sentence.contains(field), twice, "{sentence}");
        }
        assert_eq!(rig.dials(), 1, "a request with a body is sent once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_of_a_target_has_bounds() {
    let fields = "x: y\r\n".repeat(2000);
    let large = format!("x: {}\r\n", "y".repeat(64 * 1024));
    for fields in [fields, large] {
        let mut rig = Rig::new(Settings::default());
        let mut client = rig.client();
        client.send(get("web")).await;
        let (_, server) = rig.server().await;
        let serving = tokio::spawn(async move {
            let mut server = server;
            server.head().await;
            // It may close before it has read everything.
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
