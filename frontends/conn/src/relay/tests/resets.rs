//! Resets, and truncated answers that must not pass for whole ones.

use super::*;

/// A process that is killed resets what it relays, and ends in order what was whole.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_client_socket_resets_on_close_until_the_answer_is_complete() {
    let (mut app, client) = tcp_pair().await;
    let (upstream, mut server) = tcp_pair().await;
    let same = client.into_std().unwrap();
    let socket = same.try_clone().unwrap();
    let client = TcpStream::from_std(same).unwrap();
    let linger = || socket2::SockRef::from(&socket).linger().unwrap();
    let relayed = tokio::spawn(relay(client, upstream, RelayOptions::default()));
    server.write_all(b"half").await.unwrap();
    app.read_exact(&mut [0; 4]).await.unwrap();
    assert_eq!(linger(), Some(Duration::ZERO));
    app.shutdown().await.unwrap();
    drop(server);
    assert!(matches!(relayed.await.unwrap().end, End::Eof));
    assert_eq!(linger(), None);
}

/// The same over sockets, where the kernel is asked.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn closed_and_half_closed_programs_are_distinguished_over_tcp() {
    let listener = crate::Listener::bind(&"127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = crate::Addr::Unix(dir.path().join("socket"));
    let unix = crate::Listener::bind(&path).await.unwrap();
    for listener in [listener, unix] {
        let addr = listener.addr().clone();
        let (gate, drain) = (crate::Gate::new(crate::Limits::default()), Drain::new());
        let (give, mut ended) = tokio::sync::mpsc::channel(1);
        let serving = listener.serve(gate.clone(), drain.clone(), move |client| {
            let (upstream, server) = duplex(64);
            let give = give.clone();
            async move {
                let relayed = relay(client, upstream, RelayOptions::default()).await;
                give.send((relayed, server)).await.unwrap();
            }
        });
        let serving = tokio::spawn(serving);
        for half in [true, false] {
            let mut app: Box<dyn ClientIo> = match &addr {
                crate::Addr::Tcp(addr) => Box::new(TcpStream::connect(addr).await.unwrap()),
                crate::Addr::Unix(path) => {
                    Box::new(tokio::net::UnixStream::connect(path).await.unwrap())
                }
            };
            app.write_all(b"question").await.unwrap();
            app.shutdown().await.unwrap();
            if half {
                // Longer than it takes to ask twice.
                let early = tokio::time::timeout(3 * CHECK, ended.recv()).await;
                assert!(early.is_err(), "{addr}: a half-closed client was let go");
            }
            drop(app);
            let (relayed, mut server) = ended.recv().await.unwrap();
            assert!(matches!(relayed.end, End::Eof), "{addr}: {:?}", relayed.end);
            let mut got = String::new();
            server.read_to_string(&mut got).await.unwrap();
            assert_eq!(got, "question");
        }
        drain.stop();
        serving.await.unwrap();
        drain.drain(Duration::from_secs(5)).await;
        assert_eq!(gate.open(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_being_read_is_not_asked() {
    let (client, _upstream, relayed) = mocks();
    client.give("x");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(client.asked_whether_broken(), 0);
    assert!(!relayed.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_reset_over_tcp_is_noticed_while_the_upload_is_blocked() {
    let (mut app, client) = tcp_pair().await;
    let (upstream, at_upstream) = mock();
    at_upstream.room(0);
    // More than the relay takes while it cannot write, less than the sockets hold.
    app.write_all(&[0; 64 * 1024]).await.unwrap();
    let relayed = tokio::spawn(relay(client, upstream, RelayOptions::default()));
    while at_upstream.writes_held() == 0 {
        settle().await;
    }
    app.reset_on_drop();
    drop(app);
    let relayed = relayed.await.unwrap();
    assert_eq!(
        failed(&relayed.end),
        Some((Side::Client, ErrorKind::ConnectionReset))
    );
}

#[tokio::test]
async fn a_truncated_answer_cannot_pass_for_a_whole_one() {
    // Cut by the upstream's reset, and by dropping the relay.
    for drop_relay in [false, true] {
        let ((mut app, client), (upstream, mut server)) = (tcp_pair().await, tcp_pair().await);
        let relayed = tokio::spawn(relay(client, upstream, RelayOptions::default()));
        server.write_all(b"half of").await.unwrap();
        let mut half = [0; 7];
        app.read_exact(&mut half).await.unwrap();
        if drop_relay {
            relayed.abort();
        } else {
            server.reset_on_drop();
            drop(server);
        }
        let error = app.read(&mut half).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}
