//! Reuse of connections to targets.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kubevpn_http_connect::{PoolLimits, Settings, UpstreamPool};
use tokio::time::{Instant, sleep};

use crate::harness::{OK, Peer, Rig, get};

/// Serves every dial with `serve`, in tasks of their own.
fn serve_all<F>(mut rig: Rig, serve: impl Fn(Peer) -> F + Send + 'static) -> Arc<Rig>
where
    F: Future<Output = ()> + Send + 'static,
{
    // The test keeps the clients' side; dials are taken out of it here.
    let dials = rig.take_dials();
    let rig = Arc::new(rig);
    tokio::spawn(async move {
        let mut dials = dials;
        while let Some((_, stream)) = dials.recv().await {
            tokio::spawn(serve(Peer::new(stream)));
        }
    });
    rig
}

/// Answers requests without a body until the end.
async fn keep_alive(mut server: Peer) {
    while server.try_head().await.is_some() {
        server.send(OK).await;
    }
}

async fn ask(client: &mut crate::harness::Client, n: usize) {
    for i in 0..n {
        client.send(get("web")).await;
        assert_eq!(client.answer().await.text(), "ok", "request {i}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_requests_need_one_connection() {
    let rig = serve_all(Rig::new(Settings::default()), keep_alive);
    ask(&mut rig.client(), 1000).await;
    assert_eq!(rig.dials(), 1);
    // Another client's requests go on the same.
    ask(&mut rig.client(), 10).await;
    assert_eq!(rig.dials(), 1);
    assert_eq!(rig.settings.pool.idle(), 1);
}

#[tokio::test(start_paused = true)]
async fn many_clients_need_no_more_than_run_at_once() {
    let rig = serve_all(Rig::new(Settings::default()), keep_alive);
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let mut client = rig.client();
            tokio::spawn(async move { ask(&mut client, 100).await })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    assert!((1..=16).contains(&rig.dials()), "{} dials", rig.dials());
    assert_eq!(rig.settings.pool.idle(), rig.dials());
}

#[tokio::test(start_paused = true)]
async fn targets_do_not_share() {
    let rig = serve_all(Rig::new(Settings::default()), keep_alive);
    let mut client = rig.client();
    for host in ["a", "b:81", "b:82", "a:80", "A"] {
        client.send(get(host)).await;
        assert_eq!(client.answer().await.status, 200);
    }
    let dialled: Vec<_> = rig
        .dialled
        .lock()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(dialled, ["a:80", "b:81", "b:82"]);
}

#[tokio::test(start_paused = true)]
async fn no_more_are_kept_than_allowed_and_not_for_longer() {
    let limits = PoolLimits {
        per_target: 2,
        total: 3,
        idle: Duration::from_secs(15),
    };
    let settings = Settings {
        pool: UpstreamPool::new(limits),
        ..Settings::default()
    };
    let mut rig = Rig::new(settings);
    let mut servers = Vec::new();
    for (host, kept) in [("a", 1), ("a", 2), ("a", 2), ("b", 3), ("c", 3)] {
        // All at once: each needs its own.
        let mut client = rig.client();
        client.send(get(host)).await;
        let (_, mut server) = rig.server().await;
        server.head().await;
        servers.push((client, server, kept));
    }
    for (client, server, kept) in &mut servers {
        server.send(OK).await;
        client.answer().await;
        assert_eq!(rig.settings.pool.idle(), *kept);
    }
    // Connections beyond the limit are closed at once, the rest when they expire.
    let closed = |servers: Vec<_>| async move {
        let mut closed = Vec::new();
        for (_, mut server, _) in servers {
            let server: &mut Peer = &mut server;
            closed.push(!server.is_silent().await);
        }
        closed
    };
    sleep(Duration::from_secs(14)).await;
    assert_eq!(rig.settings.pool.idle(), 3);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.settings.pool.idle(), 0);
    assert_eq!(closed(servers).await, [true; 5]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_ends_or_speaks_is_not_used() {
    for last in ["", "HTTP/1.1 408 Request Timeout\r\n\r\n"] {
        let mut rig = Rig::new(Settings::default());
        let mut client = rig.client();
        client.send(get("web")).await;
        let (_, mut server) = rig.server().await;
        server.head().await;
        server.send(OK).await;
        assert_eq!(client.answer().await.text(), "ok");
        server.send(last).await;
        if last.is_empty() {
            drop(server);
        }
        client.send(get("web")).await;
        let (_, mut server) = rig.server().await;
        server.head().await;
        server.send(OK).await;
        assert_eq!(client.answer().await.text(), "ok");
    }
}

#[tokio::test(start_paused = true)]
async fn connection_close_is_respected() {
    let answers = [
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nok",
    ];
    for answer in answers {
        let mut rig = Rig::new(Settings::default());
        let mut client = rig.client();
        let mut servers = Vec::new();
        for _ in 0..3 {
            client.send(get("web")).await;
            let (_, mut server) = rig.server().await;
            server.head().await;
            server.send(answer).await;
            let got = client.answer().await;
            assert!(got.text() == "ok" && !got.closes());
            servers.push(server);
        }
        assert_eq!(rig.settings.pool.idle(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn keep_alive_timeout_is_respected() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    let mut servers = Vec::new();
    // A second less than the server's keep-alive time: a Pod's close takes a second to reach us.
    for (pause, dials) in [(0, 1), (3900, 1), (4100, 2)] {
        sleep(Duration::from_millis(pause)).await;
        client.send(get("web")).await;
        if rig.dials() < dials || servers.is_empty() {
            servers.push(rig.server().await.1);
        }
        let server: &mut Peer = servers.last_mut().unwrap();
        server.head().await;
        server
            .send("HTTP/1.1 200 OK\r\nKeep-Alive: max=9, timeout=5\r\nContent-Length: 2\r\n\r\nok")
            .await;
        assert_eq!(client.answer().await.text(), "ok");
        assert_eq!(rig.dials(), dials, "after {pause} ms");
    }
}

/// The Pod closes after each answer, and its close reaches us a second late: until then its connection
/// looks alive.
#[tokio::test(start_paused = true)]
async fn a_server_that_closes_after_each_answer_fails_no_request() {
    let rig = serve_all(Rig::new(Settings::default()), |mut server| async move {
        if server.try_head().await.is_some() {
            server.send(OK).await;
            sleep(Duration::from_secs(1)).await;
        }
    });
    let begun = Instant::now();
    ask(&mut rig.client(), 1000).await;
    assert_eq!(rig.dials(), 1000);
    // The first reuse costs the second in which the connection seemed alive, and is the last one.
    assert_eq!(begun.elapsed(), Duration::from_secs(1));
}

/// The same with eight clients, and with one that pauses.
#[tokio::test(start_paused = true)]
async fn nor_many_at_once_nor_after_a_pause() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let rig = serve_all(Rig::new(Settings::default()), move |mut server| {
        let count = Arc::clone(&count);
        async move {
            if server.try_head().await.is_some() {
                count.fetch_add(1, Ordering::Relaxed);
                server.send(OK).await;
                sleep(Duration::from_secs(1)).await;
            }
        }
    });
    let clients: Vec<_> = (0..8)
        .map(|i| {
            let mut client = rig.client();
            tokio::spawn(async move {
                for _ in 0..100 {
                    ask(&mut client, 1).await;
                    sleep(Duration::from_millis(i * 150)).await;
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(served.load(Ordering::Relaxed), 800);
}

#[tokio::test(start_paused = true)]
async fn how_long_a_server_keeps_is_learned() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut first) = rig.server().await;
    first.head().await;
    first.send(OK).await;
    client.answer().await;

    sleep(Duration::from_secs(8)).await;
    client.send(get("web")).await;
    first.head().await;
    drop(first);
    let (_, mut second) = rig.server().await;
    second.head().await;
    second.send(OK).await;
    assert_eq!(client.answer().await.text(), "ok");

    // Half of what was too long is used, more is not.
    sleep(Duration::from_millis(3900)).await;
    client.send(get("web")).await;
    second.head().await;
    second.send(OK).await;
    client.answer().await;
    sleep(Duration::from_millis(4100)).await;
    client.send(get("web")).await;
    let (_, mut third) = rig.server().await;
    third.head().await;
    assert_eq!(rig.dials(), 3);
}

/// The server may have processed the first request before it closed.
#[tokio::test(start_paused = true)]
async fn requests_that_cannot_be_repeated_use_new_connections() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut kept) = rig.server().await;
    kept.head().await;
    kept.send(OK).await;
    client.answer().await;
    for (i, request) in [
        "POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n",
        "PATCH http://web/ HTTP/1.1\r\nHost: web\r\n\r\n",
        "BREW http://web/ HTTP/1.1\r\nHost: web\r\n\r\n",
        "PUT http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\n\r\nx",
        "GET http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\n\r\nx",
        "GET http://web/ HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ]
    .iter()
    .enumerate()
    {
        client.send(request).await;
        let (_, mut server) = rig.server().await;
        server.head().await;
        server
            .send(OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"))
            .await;
        assert_eq!(client.answer().await.text(), "ok");
        assert_eq!(rig.dials(), i + 2, "{request}");
        assert!(kept.is_silent().await, "{request}");
    }
    for request in ["DELETE", "HEAD", "OPTIONS", "PUT"] {
        client
            .send(format!(
                "{request} http://web/ HTTP/1.1\r\nHost: web\r\n\r\n"
            ))
            .await;
        kept.head().await;
        kept.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await;
        client.answer().await;
    }
    assert_eq!(rig.dials(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_repeated_once_and_no_more() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut first) = rig.server().await;
    first.head().await;
    first.send(OK).await;
    client.answer().await;

    client.send(get("web")).await;
    first.head().await;
    drop(first);
    let (_, mut second) = rig.server().await;
    second.head().await;
    drop(second);
    client
        .answer()
        .await
        .assert_refused(502, "connection_terminated");
    assert_eq!(rig.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_pool_of_zero_connections() {
    let settings = Settings {
        pool: UpstreamPool::new(PoolLimits {
            total: 0,
            ..PoolLimits::default()
        }),
        ..Settings::default()
    };
    let rig = serve_all(Rig::new(settings), keep_alive);
    ask(&mut rig.client(), 3).await;
    assert_eq!(rig.dials(), 3);
}

/// It closes a little after each answer: no pause is short enough to use it again.
#[tokio::test(start_paused = true)]
async fn a_server_that_keeps_none_is_not_tried_again() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut first) = rig.server().await;
    first.head().await;
    first.send(OK).await;
    client.answer().await;
    sleep(Duration::from_millis(500)).await;
    client.send(get("web")).await;
    first.head().await;
    drop(first);
    for dials in 2..5 {
        let (_, mut next) = rig.server().await;
        next.head().await;
        next.send(OK).await;
        client.answer().await;
        assert!(!next.is_silent().await, "kept though it would be dead");
        assert_eq!(rig.dials(), dials);
        sleep(Duration::from_millis(1)).await;
        client.send(get("web")).await;
    }
}

/// When one was dead the others are as old, or older.
#[tokio::test(start_paused = true)]
async fn a_dead_connection_takes_its_likes_along() {
    let mut rig = Rig::new(Settings::default());
    let (mut one, mut other) = (rig.client(), rig.client());
    one.send(get("web")).await;
    let (_, mut first) = rig.server().await;
    other.send(get("web")).await;
    let (_, mut second) = rig.server().await;
    for (client, server) in [(&mut one, &mut first), (&mut other, &mut second)] {
        server.head().await;
        server.send(OK).await;
        client.answer().await;
    }
    assert_eq!(rig.settings.pool.idle(), 2);
    sleep(Duration::from_secs(10)).await;
    one.send(get("web")).await;
    second.head().await;
    drop(second);
    let (_, mut third) = rig.server().await;
    third.head().await;
    assert!(!first.is_silent().await, "still kept");
}

#[tokio::test(start_paused = true)]
async fn nonsense_on_a_kept_connection_is_an_answer() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    server.send(OK).await;
    client.answer().await;
    client.send(get("web")).await;
    server.head().await;
    server.send("nonsense\r\n\r\n").await;
    client
        .answer()
        .await
        .assert_refused(502, "http_protocol_error");
    assert_eq!(rig.dials(), 1);
}

/// NTLM and Negotiate authenticate a connection: another client's request on it would run as this client.
#[tokio::test(start_paused = true)]
async fn a_connection_that_knows_its_client_is_that_clients_alone() {
    let asks = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n";
    let shown = "POST http://web/ HTTP/1.1\r\nHost: web\r\nAuthorization: Negotiate YQ==\r\nContent-Length: 2\r\n\r\nhi";
    let mut rig = Rig::new(Settings::default());
    let (mut ann, mut bob) = (rig.client(), rig.client());
    ann.send(get("web")).await;
    let (_, mut for_ann) = rig.server().await;
    for_ann.head().await;
    for_ann.send(asks).await;
    assert_eq!(ann.answer().await.status, 401);

    bob.send(get("web")).await;
    let (_, mut for_bob) = rig.server().await;
    for_bob.head().await;
    for_bob.send(OK).await;
    bob.answer().await;

    // The rest of the handshake, in a request that must not use any other connection.
    for _ in 0..2 {
        ann.send(shown).await;
        for_ann.head().await;
        assert_eq!(for_ann.take(2).await, b"hi");
        for_ann.send(OK).await;
        assert_eq!(ann.answer().await.text(), "ok");
    }
    assert_eq!((rig.dials(), rig.settings.pool.idle()), (2, 1));
    // When its client is gone, so is the connection.
    ann.served().await.unwrap();
    assert!(for_ann.has_ended().await);
}
