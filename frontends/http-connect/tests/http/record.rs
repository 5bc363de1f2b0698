//! The access record: one line for each request to a target.

use std::cell::RefCell;
use std::io;
use std::sync::Once;

use kubevpn_http_connect::Settings;
use kubevpn_target::Refusal;

use crate::harness::{OK, Rig, get};

thread_local! {
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes to the log of the thread: every test has one.
struct ThreadLog;

impl io::Write for ThreadLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One subscriber for the process: several would race for what tracing caches about who is interested.
fn subscribe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .without_time()
            .with_writer(|| ThreadLog)
            .init();
    });
}

/// The access records of this thread since the last call.
fn records() -> Vec<String> {
    let log = String::from_utf8(LOG.take()).unwrap();
    let access = log.lines().filter(|line| line.contains(" access: "));
    access.map(Into::into).collect()
}

#[track_caller]
fn assert_one(parts: &[&str]) {
    let records = records();
    assert_eq!(records.len(), 1, "{records:#?}");
    for part in parts {
        assert!(records[0].contains(part), "{part} in {}", records[0]);
    }
}

#[tokio::test(start_paused = true)]
async fn one_for_each_request() {
    subscribe();
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    records();
    server.send(OK).await;
    client.answer().await;
    assert_one(&[
        " INFO ",
        "frontend=\"http\"",
        "target=web:80",
        "up=0 down=2",
        "end=\"eof\"",
    ]);

    client.send(get("web")).await;
    server.head().await;
    server.send(OK).await;
    client.answer().await;
    assert_one(&["end=\"eof\""]);

    client.send(get("web")).await;
    server.head().await;
    server
        .send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhal")
        .await;
    drop(server);
    client.peer.rest().await;
    assert_one(&["target=web:80", "end=\"upstream\"", "error="]);
}

#[tokio::test(start_paused = true)]
async fn refusals_say_why() {
    subscribe();
    for request in [
        get("web"),
        "CONNECT web:80 HTTP/1.1\r\nHost: web\r\n\r\n".into(),
    ] {
        let rig = Rig::refusing(Settings::default(), Refusal::NotReady, "nothing is ready");
        let mut client = rig.client();
        records();
        client.send(&request).await;
        client.answer().await;
        assert_one(&[
            " WARN ",
            "target=web:80",
            "end=\"refused\"",
            "refusal=\"not_ready\"",
            "error=\"nothing is ready\"",
        ]);
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_cannot_be_served_are_rejected() {
    subscribe();
    for (request, words) in [
        (
            "GET http://web:0/ HTTP/1.1\r\nHost: web\r\n\r\n",
            "port 0 cannot be connected to",
        ),
        (
            "CONNECT web HTTP/1.1\r\nHost: web\r\n\r\n",
            "the port is missing",
        ),
        ("GET \x01\r\n\r\n", "no well-formed HTTP/1.1 request"),
        ("\x16\x03\x01", "does not speak TLS"),
        ("GET http", "within 10s"),
    ] {
        let rig = Rig::refusing(Settings::default(), Refusal::Internal, "dialled");
        let mut client = rig.client();
        records();
        client.send(request).await;
        client.answer().await;
        assert_one(&[" INFO ", "end=\"rejected\"", words]);
        drop(client);
    }
}

#[tokio::test(start_paused = true)]
async fn records_of_silent_and_cancelled_clients() {
    subscribe();
    let mut rig = Rig::new(Settings::default());
    records();
    let client = rig.client();
    let _ = client.served().await;
    assert_one(&["DEBUG ", "end=\"unused\""]);

    // The proxy's own pages have no access record.
    let mut client = rig.client();
    client
        .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    client.answer().await;
    let _ = client.served().await;
    assert_eq!(records(), [""; 0]);

    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    client.served.abort();
    let _ = client.served.await;
    assert_one(&["target=web:80", "end=\"cut\""]);
}

#[tokio::test(start_paused = true)]
async fn records_of_truncated_answers() {
    subscribe();
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\n\r\nhalf").await;
    client.peer.head().await;
    records();
    drop(client.peer);
    server.send("more").await;
    client.served.await.unwrap().unwrap_err();
    assert_one(&["target=web:80", "end=\"client\"", "error="]);
}

#[tokio::test(start_paused = true)]
async fn tunnels_and_upgrades_count_their_bytes() {
    subscribe();
    let mut rig = Rig::new(Settings::default());
    for (request, switch) in [
        ("CONNECT web:80 HTTP/1.1\r\nHost: web\r\n\r\n", ""),
        (
            "GET http://web/ HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        ),
    ] {
        let mut client = rig.client();
        client.send(request).await;
        let (_, mut server) = rig.server().await;
        if !switch.is_empty() {
            server.head().await;
            server.send(switch).await;
        }
        client.peer.head().await;
        records();
        client.send("12345").await;
        client.peer.end().await;
        assert_eq!(server.rest().await, b"12345");
        server.send("123").await;
        drop(server);
        client.peer.rest().await;
        client.served().await.unwrap();
        assert_one(&["target=web:80", "end=\"eof\"", "up=5", "down=3"]);
    }
}
