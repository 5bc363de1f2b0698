//! Sessions that do not answer any more, and probes.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_found_while_something_is_awaited() {
    let (node, pool) = TestNode::start(quick());
    let mut stream = open(&pool).await;
    sleep(20 * S).await;
    node.link(0).black_hole();
    let began = Instant::now();
    stream.write_all(b"anyone?").await.unwrap();
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert!(began.elapsed() < 10 * S, "{:?}", began.elapsed());
    assert!(error.to_string().contains("stopped answering"), "{error}");
    assert_eq!(pool.stats().evicted, 1);
    open(&pool).await;
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_found_while_nothing_happens() {
    let (node, pool) = TestNode::start(quick());
    let mut stream = open(&pool).await;
    node.link(0).black_hole();
    let began = Instant::now();
    stream.read(&mut [0; 1]).await.unwrap_err();
    let found = quick().ping_every + quick().probe_timeout + 3 * S;
    assert!(began.elapsed() < found, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dial_into_a_black_hole_takes_another_session() {
    let (node, pool) = TestNode::start(quick());
    drop(open(&pool).await);
    sleep(20 * S).await;
    node.link(0).black_hole();
    let began = Instant::now();
    open(&pool).await;
    assert!(began.elapsed() <= 2 * S, "{:?}", began.elapsed());
    assert_eq!(node.upgrades(), 2);
}

/// Clients that give up after a second, one after another, as on a dead line.
#[tokio::test(start_paused = true)]
async fn a_session_whose_clients_gave_up_gets_no_more_of_them() {
    let (node, pool) = TestNode::start(quick());
    drop(open(&pool).await);
    sleep(S).await;
    node.link(0).black_hole();
    let mut stream = dial(&pool, ECHO).await.unwrap();
    stream.write_all(b"anyone?").await.unwrap();
    assert_eq!(node.upgrades(), 1, "nothing is known yet");
    sleep(S).await;
    stream.no_reader();
    stream.shutdown().await.unwrap();
    drop(stream);
    let began = Instant::now();
    open(&pool).await;
    assert!(began.elapsed() < S, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn idle_streams_live_for_days() {
    let (node, pool) = TestNode::start(quick());
    let mut stream = open(&pool).await;
    node.link(0).behind_nat();
    sleep(48 * 3600 * S).await;
    echo(&mut stream, b"good morning").await.unwrap();
    assert_eq!(node.upgrades(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_probe_finds_the_dead_at_once() {
    let (node, pool) = TestNode::start(quick());
    let mut living = open(&pool).await;
    node.link(0).black_hole();
    pool.probe_all();
    sleep(quick().probe_timeout + 2 * S).await;
    assert_eq!(pool.stats().evicted, 1);
    assert!(living.read(&mut [0; 1]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumped_probes_at_once() {
    // Only the jump gives a reason for a probe.
    let config = Config {
        ping_every: 24 * 3600 * S,
        ..quick()
    };
    let (node, pool) = TestNode::start(config);
    let mut stream = open(&pool).await;
    sleep(20 * S).await;
    node.link(0).black_hole();
    tokio::time::advance(3600 * S).await;
    let woken = Instant::now();
    stream.read(&mut [0; 1]).await.unwrap_err();
    assert!(woken.elapsed() < 10 * S, "{:?}", woken.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_mute_session_is_given_up() {
    let config = Config {
        dial_timeout: 60 * S,
        ..quick()
    };
    let (node, pool) = TestNode::start(config);
    let error = dial(&pool, MUTE).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::TimedOut);
    assert!(error.retryable());
    // Each attempt had a session of its own, which is not used again.
    assert_eq!(node.upgrades(), ATTEMPTS);
    settle().await;
    assert_eq!(pool.stats().sessions, [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_mute_stream_takes_none_of_its_siblings_with_it() {
    let (_node, pool) = TestNode::start(one_session());
    let mut stream = open(&pool).await;
    dial(&pool, MUTE).await.unwrap_err();
    sleep(60 * S).await;
    echo(&mut stream, b"untouched").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wedged_session_is_found_when_a_forward_ends_under_a_write() {
    let config = Config {
        sessions: 2,
        ..one_session()
    };
    let (node, pool) = TestNode::start(config);
    let mut idle = open(&pool).await;
    let mut writer = open(&pool).await;
    let mut ending = dial(&pool, SLOW).await.unwrap();
    ending.write_all(b"ask").await.unwrap();
    sleep(2 * S).await;
    ending.write_all(b"more").await.unwrap();
    node.link(0).wedge();
    let mut answer = Vec::new();
    // The Pod ends shortly after it was written to: the session is probed, and found wedged.
    soon(ending.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"0123456789");
    writer.write_all(b"lost?").await.unwrap();
    sleep(5 * S).await;
    assert_eq!(pool.stats().wedged, 1);
    // A connection that wrote meanwhile fails; one that did not may keep reading, but not write.
    let mut rest = Vec::new();
    soon(writer.read_to_end(&mut rest)).await.unwrap_err();
    let nothing = timeout(60 * S, idle.read(&mut [0; 1])).await;
    assert!(nothing.is_err(), "it still listens");
    let error = idle.write(b"x").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    drop((idle, writer));
    open(&pool).await;
    assert_eq!(node.upgrades(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_end_by_the_runtimes_clock_is_no_reason_for_doubt() {
    let soon_over = Config {
        linger: S / 2,
        ..quick()
    };
    let (_node, pool) = TestNode::start(soon_over);
    let proven = || {
        let state = pool.state();
        let mut sessions = state.pods.values().flat_map(|p| &p.sessions);
        sessions.next().map(|e| e.probe.proven())
    };
    let stream = open(&pool).await;
    let before = proven();
    // The client ends, the runtime's clock runs, the Pod's end comes: all within 3 s of a write.
    close(stream).await;
    settle().await;
    assert_eq!(proven(), before, "it was probed");
    // The Pod ends while the client has not: that is a reason.
    let mut stream = dial(&pool, SLOW).await.unwrap();
    stream.write_all(b"ask").await.unwrap();
    sleep(2 * S).await;
    stream.write_all(b"more").await.unwrap();
    soon(stream.read_to_end(&mut Vec::new())).await.unwrap();
    settle().await;
    assert!(proven() > before, "it was not probed");
}

#[tokio::test(start_paused = true)]
async fn a_wedged_session_is_still_probed() {
    let (node, pool) = TestNode::start(quick());
    let mut listener = open(&pool).await;
    node.link(0).wedge();
    pool.probe_all();
    sleep(quick().probe_timeout + 2 * S).await;
    assert_eq!(pool.stats().wedged, 1);
    sleep(3600 * S).await;
    assert_eq!(pool.stats().evicted, 0, "it is alive, in part");
    node.link(0).black_hole();
    let began = Instant::now();
    soon(listener.read(&mut [0; 1])).await.unwrap_err();
    let found = 200 * S + quick().probe_timeout + 3 * S;
    assert!(began.elapsed() <= found, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_read_is_waited_for() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, DEAF).await.unwrap();
    let filled = poll_fn(|cx| {
        loop {
            match std::pin::Pin::new(&mut stream).poll_write(cx, &[0; 8192]) {
                Poll::Ready(n) => drop(n.unwrap()),
                Poll::Pending => return Poll::Ready(()),
            }
        }
    });
    filled.await;
    sleep(120 * S).await;
    assert_eq!(pool.stats().evicted, 0);
    // Meanwhile other connections use another session.
    open(&pool).await;
}

#[test]
fn a_stream_dropped_outside_of_a_runtime_has_its_session_probed() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let (node, pool) = TestNode::start(quick());
    let stream = runtime.block_on(open(&pool));
    drop(stream);
    runtime.block_on(async {
        sleep(10 * S).await;
        open(&pool).await;
    });
    assert_eq!((pool.stats().evicted, node.upgrades()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_only_session_is_silent_gets_another_at_the_limit() {
    let config = Config {
        sessions: 0,
        ..quick()
    };
    let (node, pool) = TestNode::start(config);
    let _held = open(&pool).await;
    sleep(20 * S).await;
    node.link(0).black_hole();
    open(&pool).await;
    assert_eq!(node.upgrades(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_probe_without_a_keeper_is_made_up_for() {
    let (_node, pool) = TestNode::start(quick());
    let elsewhere = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let elsewhere = tokio::task::spawn_blocking({
        let pool = pool.clone();
        move || {
            elsewhere.block_on(async { pool.start_keeping() });
            elsewhere
        }
    });
    let elsewhere = elsewhere.await.unwrap();
    let stream = open(&pool).await;
    elsewhere.shutdown_background();
    pool.probe_all();
    pool.start_keeping();
    sleep(10 * S).await;
    assert_eq!(pool.stats().evicted, 0);
    let suspect = |entry: &mut SessionEntry| entry.probe.is_suspect();
    assert!(!pool.state().entries().any(suspect), "the PINGs were sent");
    drop(stream);
}
