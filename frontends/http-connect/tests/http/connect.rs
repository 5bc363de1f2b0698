//! CONNECT: tunnels from the first byte.

use tokio::io::AsyncWriteExt;

use crate::harness::{Peer, Rig};
use kubevpn_http_connect::{ServeError, Settings};

const CONNECT: &str = "CONNECT web.shop:443 HTTP/1.1\r\nHost: web.shop:443\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn a_tunnel_carries_bytes_both_ways_and_each_end_on_its_own() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(CONNECT).await;
    let (target, mut server) = rig.server().await;
    assert_eq!(target.to_string(), "web.shop:443");
    assert_eq!(client.peer.head().await, "HTTP/1.1 200 OK\r\n\r\n");

    client.send("ping").await;
    client.peer.end().await;
    assert_eq!(server.rest().await, b"ping");
    server.send("pong after the end").await;
    drop(server);
    assert_eq!(client.peer.rest().await, b"pong after the end");
    client.served().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn success_is_sent_once_the_stream_exists() {
    let rig = Rig::stalling(Settings::default());
    let mut client = rig.client();
    client.send(CONNECT).await;
    assert!(client.peer.is_silent().await);
    assert_eq!(rig.dials(), 1);
    drop(client.peer);
    // A client that closed looks like one that half-closed, so the dial continues; the backend ends the tunnel.
    assert!(!client.served.is_finished());
}

#[tokio::test(start_paused = true)]
async fn bytes_behind_the_head_arrive() {
    let early: Vec<u8> = (0..64 * 1024_u32).map(|i| (i % 251) as u8).collect();
    for end_too in [false, true] {
        let mut rig = Rig::new(Settings::default());
        let client = rig.client();
        let (mut read, mut write) = tokio::io::split(client.peer.io);
        let sent = tokio::spawn({
            let early = early.clone();
            async move {
                let mut all = CONNECT.as_bytes().to_vec();
                all.extend_from_slice(&early);
                write.write_all(&all).await.unwrap();
                if end_too {
                    write.shutdown().await.unwrap();
                }
                write
            }
        });
        let (_, mut server) = rig.server().await;
        assert_eq!(server.take(early.len()).await, early);
        let write = sent.await.unwrap();
        server.send("got it").await;
        drop(server);
        let mut answer = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut read, &mut answer)
            .await
            .unwrap();
        assert_eq!(answer, "HTTP/1.1 200 OK\r\n\r\ngot it");
        drop((read, write));
        client.served.await.unwrap().unwrap();
    }
}

/// Every position at which a head can be split.
#[tokio::test(start_paused = true)]
async fn a_head_in_two_pieces() {
    let mut rig = Rig::new(Settings::default());
    for cut in 1..CONNECT.len() {
        let mut client = rig.client();
        client.send(&CONNECT[..cut]).await;
        assert!(client.peer.is_silent().await);
        client.send(&CONNECT[cut..]).await;
        client.send("early").await;
        let (_, mut server) = rig.server().await;
        assert_eq!(server.take(5).await, b"early", "cut at {cut}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_after_requests_on_the_same_connection() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    // In one piece: the answer of the first must be out before the second takes the connection over.
    client
        .send(format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n{CONNECT}early"
        ))
        .await;
    assert_eq!(client.answer().await.status, 200);
    let (_, mut server) = rig.server().await;
    assert_eq!(client.peer.head().await, "HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(server.take(5).await, b"early");
}

/// The client reads the previous answer slowly: none of it is lost when the tunnel takes over.
#[tokio::test(start_paused = true)]
async fn a_tunnel_waits_for_the_answer_before_it() {
    let mut rig = Rig::new(Settings::default());
    let (near, far) = tokio::io::duplex(64);
    let served = tokio::spawn(rig.serve(far));
    let mut client = Peer::new(near);
    let page = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    client.send(format!("{page}{CONNECT}")).await;
    // The pipe is full now. This is read ahead, behind what hyper has.
    client.send("early").await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(rig.dials(), 0);
    let answer = client.answer(false).await;
    assert!(answer.text().contains("https_proxy="), "{answer:?}");
    let (_, mut server) = rig.server().await;
    assert_eq!(client.head().await, "HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(server.take(5).await, b"early");
    drop((client, server));
    served.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_of_http_1_0_gets_its_tunnel() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send("CONNECT [fd00::1]:22 HTTP/1.0\r\n\r\n").await;
    let (target, mut server) = rig.server().await;
    assert_eq!(target.to_string(), "[fd00::1]:22");
    assert_eq!(client.peer.head().await, "HTTP/1.1 200 OK\r\n\r\n");
    server.send("SSH-2.0-x\r\n").await;
    assert_eq!(client.peer.take(11).await, b"SSH-2.0-x\r\n");
}

/// Bytes after a refused CONNECT are meant for its target, and may look like a request to us.
#[tokio::test(start_paused = true)]
async fn bytes_after_a_refused_connect_are_not_a_request() {
    let early = "GET http://inside/ HTTP/1.1\r\nHost: inside\r\n\r\n";
    for head in [
        CONNECT,
        "CONNECT web HTTP/1.1\r\nHost: web\r\n\r\n",
        "CONNECT web:443 HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\n",
    ] {
        let sentence = "no such service";
        let rig = Rig::refusing(
            Settings::default(),
            kubevpn_target::Refusal::NameNotFound,
            sentence,
        );
        let mut client = rig.client();
        client.send(format!("{head}{early}{early}")).await;
        let answer = client.answer().await;
        assert!(answer.status >= 400 && answer.closes(), "{answer:?}");
        assert!(client.peer.has_ended().await);
        assert!(rig.dials() <= 1);
        let served = client.served().await;
        assert!(matches!(served, Err(ServeError::Refused)), "{served:?}");
    }
}
