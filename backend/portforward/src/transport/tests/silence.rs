//! Upgrades without an answer, sessions on which nothing is received, and lines that went away.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_middlebox_that_swallows_upgrades_is_avoided_within_a_dial() {
    let Config {
        transport_stagger: stagger,
        channel_after,
        upgrade_timeout,
        ..
    } = Config::default();
    let (ok, hang) = (Answer::Upgrade, Answer::Hang);
    for (script, first) in [
        ([hang, hang, ok, ok], stagger),
        ([UNKNOWN, UNKNOWN, hang, ok], channel_after),
        ([hang, hang, hang, ok], channel_after),
        ([hang, hang, UNKNOWN, ok], channel_after),
    ] {
        let server = Server::new(script);
        let forwarder = server.forwarder(AUTO);
        let slack = Duration::from_millis(100);
        let took = timed(&forwarder).await;
        assert!(took >= first && took < first + slack, "{took:?}");
        // A transport known to be swallowed is not waited for, even when it is tried again.
        sleep(stagger + upgrade_timeout).await;
        for _ in 0..3 {
            let took = timed(&forwarder).await;
            assert!(took < slack, "{took:?}");
            advance(Duration::from_secs(601)).await;
        }
        // Upgrades pass again.
        server.change([ok; 4]);
        advance(Duration::from_secs(601)).await;
        timed(&forwarder).await;
        sleep(Duration::from_secs(1)).await;
        server.asked();
        timed(&forwarder).await;
        assert_eq!(server.asked(), ["POST spdy"]);
    }
    // All transports are swallowed: an error within the dial's time limit.
    let server = Server::new([hang; 4]);
    let began = Instant::now();
    let error = dial_anew(&server.forwarder(AUTO)).await.unwrap_err();
    assert!(began.elapsed() < Config::default().dial_timeout + Duration::from_millis(100));
    assert_eq!(
        error.to_string(),
        "no port-forward to pod shop/web-0 (spdy, spdy-ws: no answer within 10 s): check the pod's node, and proxies before the API \
         server"
    );
}

/// An upgrade that was sent as the line went away is not answered for 10 s.
#[tokio::test(start_paused = true)]
async fn a_dial_after_an_outage_does_not_wait_for_an_upgrade_from_before_it() {
    let server = Server::new([Answer::Hang; 4]);
    let forwarder = server.forwarder(AUTO);
    forwarder.warm(&to(ECHO));
    sleep(Duration::from_secs(3)).await;
    server.change([Answer::Upgrade; 4]);
    let began = Instant::now();
    let mut stream = dial(&forwarder, ECHO).await.unwrap();
    echo(&mut stream, b"hello").await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_from_before_an_outage_fails_only_its_own_dials() {
    const SLOW: Answer = Answer::Late(1, &Answer::Upgrade);
    let spdy = TransportChoice::Only(Transport::Spdy);
    for (transport, ends) in [(spdy, 10), (AUTO, 12)] {
        let server = Server::new([Answer::Hang; 4]);
        let forwarder = server.forwarder(transport);
        forwarder.warm(&to(ECHO));
        // The old upgrade fails while the new one is under way.
        sleep(Duration::from_millis(ends * 1000 - 500)).await;
        server.change([SLOW; 4]);
        server.asked();
        let began = Instant::now();
        let mut stream = dial(&forwarder, ECHO).await.unwrap();
        echo(&mut stream, b"hello").await.unwrap();
        assert_eq!(server.asked(), ["POST spdy"]);
        assert!(began.elapsed() < Duration::from_millis(1100));
    }
    // A failure of its own ends the dial at once.
    let server = Server::new([Answer::Hang; 4]);
    let forwarder = server.forwarder(AUTO);
    forwarder.warm(&to(ECHO));
    sleep(Duration::from_secs(3)).await;
    server.change([GONE; 4]);
    let began = Instant::now();
    let error = dial(&forwarder, ECHO).await.unwrap_err();
    assert!(matches!(error, ForwardError::PodNotFound { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_middlebox_that_swallows_sessions_is_avoided_within_a_dial() {
    let (ok, swallow) = (Answer::Upgrade, Answer::Swallow);
    let server = Server::new([swallow, swallow, ok, ok]);
    let forwarder = server.forwarder(AUTO);
    let took = timed(&forwarder).await;
    assert!(took <= Config::default().reply_timeout, "{took:?}");
    server.asked();
    for _ in 0..3 {
        let took = timed(&forwarder).await;
        assert!(took < Duration::from_millis(100), "{took:?}");
    }
    assert_eq!(server.asked(), ["GET spdy-ws"; 3]);
    // Nothing passes at all: each dial tries both transports once.
    let server = Server::new([swallow; 4]);
    let forwarder = server.forwarder(AUTO);
    let limit = 2 * Config::default().reply_timeout;
    for _ in 0..2 {
        let began = Instant::now();
        let error = dial_anew(&forwarder).await.unwrap_err();
        assert!(began.elapsed() < limit + Duration::from_millis(100));
        assert_eq!(server.asked(), ["POST spdy", "GET spdy-ws"]);
        assert_eq!(error.refusal(), Refusal::TimedOut);
        assert!(!error.retryable(), "another Pod is behind the same gateway");
        assert_eq!(
            error.to_string(),
            "pod shop/web-0: upgrades were granted (spdy, spdy-ws), but nothing was received after them: have proxies before the \
             API server pass on the bytes that follow a 101 answer, and check the pod's node"
        );
    }
    // Silence after a session that was heard has another cause: other Pods are tried, and the order stays.
    let only_ws = [swallow, swallow, ok, ok];
    let server = Server::new(only_ws);
    let forwarder = server.forwarder(AUTO);
    timed(&forwarder).await;
    server.change([swallow; 4]);
    assert!(dial_anew(&forwarder).await.unwrap_err().retryable());
    server.change(only_ws);
    assert!(timed(&forwarder).await < Duration::from_millis(100));
    // A transport that was chosen is the only one that can be named.
    let server = Server::new([swallow; 4]);
    let spdy = TransportChoice::Only(Transport::Spdy);
    let error = dial_anew(&server.forwarder(spdy)).await.unwrap_err();
    assert!(error.retryable(), "it may be this Pod");
    assert!(error.to_string().contains("granted (spdy), but"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_second_dial_does_not_wait_for_a_silent_transport() {
    let server = Server::new([Answer::Hang, Answer::Hang, Answer::Upgrade, Answer::Upgrade]);
    let forwarder = server.forwarder(AUTO);
    timed(&forwarder).await;
    assert!(timed(&forwarder).await < Duration::from_millis(100));
}

/// A session that was opened ahead, and whose line is dead when it is first used.
async fn dial_on_a_dead_line(server: &Server, forwarder: &Forwarder, uid: &str) {
    let uid = Some(uid.to_owned());
    let to = PodPort { uid, ..to(ECHO) };
    let (swallow, ok) = (Answer::Swallow, Answer::Upgrade);
    server.change([swallow, swallow, swallow, ok]);
    forwarder.warm(&to);
    settle().await;
    server.change([ok; 4]);
    server.asked();
    let mut stream = forwarder.clone().oneshot(to).await.unwrap();
    echo(&mut stream, b"hello").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_session_without_an_answer_is_not_held_against_its_transport() {
    let server = Server::new([Answer::Upgrade; 4]);
    let forwarder = server.forwarder(AUTO);
    dial_on_a_dead_line(&server, &forwarder, "first").await;
    assert_eq!(server.asked(), ["POST spdy"]);
    // A new one is, for good: an upgrade that succeeds proves nothing.
    let (swallow, ok) = (Answer::Swallow, Answer::Upgrade);
    server.change([swallow, swallow, ok, ok]);
    dial_anew(&forwarder).await.unwrap();
    assert_eq!(server.asked(), ["POST spdy", "GET spdy-ws"]);
    advance(Duration::from_secs(601)).await;
    for _ in 0..2 {
        dial_anew(&forwarder).await.unwrap();
        settle().await;
        assert_eq!(server.asked(), ["GET spdy-ws"]);
    }
}
