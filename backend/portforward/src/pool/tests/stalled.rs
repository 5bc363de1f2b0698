//! Clients that do not read.

use super::*;

/// Fills what the session may hold for a client that does not read.
async fn stall(pool: &Arc<Pool>) -> PodStream {
    let mut stream = dial(pool, FLOOD).await.unwrap();
    stream.read_exact(&mut [0; 1]).await.unwrap();
    settle().await;
    stream
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_alone_on_its_session_is_kept() {
    let (_node, pool) = TestNode::start(quick());
    let mut stalled = stall(&pool).await;
    sleep(3600 * S).await;
    for _ in 0..1000 {
        stalled.read_exact(&mut [0; 8192]).await.unwrap();
    }
    assert_eq!(pool.stats().evicted, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_is_reset_when_others_wait() {
    let (_node, pool) = TestNode::start(one_session());
    let mut other = open(&pool).await;
    let mut stalled = stall(&pool).await;
    let began = Instant::now();
    echo(&mut other, b"waits").await.unwrap();
    assert!(
        began.elapsed() <= quick().stall_wanted + 2 * S,
        "{:?}",
        began.elapsed()
    );
    assert_eq!(pool.stats().stalled, 1);
    let mut rest = Vec::new();
    let error = soon(stalled.read_to_end(&mut rest)).await.unwrap_err();
    assert!(error.to_string().contains("not read"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn two_stalled_readers_are_kept_until_one_reads() {
    let (_node, pool) = TestNode::start(one_session());
    let (one, two) = tokio::join!(dial(&pool, FLOOD), dial(&pool, FLOOD));
    let (mut one, two) = (one.unwrap(), two.unwrap());
    sleep(3600 * S).await;
    assert_eq!(pool.stats().stalled, 0);
    // The first client continues reading, as far as the other stalled client allows.
    let began = Instant::now();
    one.read_exact(&mut vec![0; 2 * quick().unread_per_stream])
        .await
        .unwrap();
    assert!(began.elapsed() <= 2 * S, "{:?}", began.elapsed());
    assert_eq!(pool.stats().stalled, 1);
    drop(two);
}

#[tokio::test(start_paused = true)]
async fn four_stalled_readers_disturb_nobody() {
    let (_node, pool) = TestNode::start(quick());
    let mut stalled = Vec::new();
    for _ in 0..4 {
        stalled.push(stall(&pool).await);
    }
    for _ in 0..100 {
        let began = Instant::now();
        let stream = open(&pool).await;
        assert!(began.elapsed() <= quick().fate_wait);
        drop(stream);
    }
    assert_eq!(pool.stats().stalled, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_session_is_not_shared_during_a_slow_upgrade() {
    let (node, pool) = TestNode::start(quick());
    let stalled = stall(&pool).await;
    node.upgrade_ms.store(1000, SeqCst);
    open(&pool).await;
    let state = pool.state();
    let sessions = state.pods.values().flat_map(|p| &p.sessions);
    let streams: Vec<_> = sessions.map(|s| s.request).collect();
    assert_eq!(streams, [1, 1], "one each");
    drop(state);
    drop(stalled);
}

#[tokio::test(start_paused = true)]
async fn unread_bytes_are_bounded_in_total() {
    let config = Config {
        unread: 8 << 20,
        ..quick()
    };
    let (_node, pool) = TestNode::start(config.clone());
    let mut stalled = Vec::new();
    for pod in 0..64 {
        let mut stream = dial::dial(pool.clone(), of(&format!("web-{pod}"), FLOOD))
            .await
            .unwrap();
        stream.read_exact(&mut [0; 1]).await.unwrap();
        settle().await;
        stalled.push(stream);
    }
    let unread = pool.stats().unread;
    // One read may exceed the limit.
    let most = config.unread + 64 * 128 * 1024;
    assert!(unread <= most, "{unread}");
    // Clients that read are not delayed.
    let mut buf = vec![0; 1 << 20];
    soon(stalled[63].read_exact(&mut buf)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn bulk_that_was_cut_off_takes_its_session_with_it() {
    let (node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, FLOOD).await.unwrap();
    stream.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
    drop(stream);
    settle().await;
    assert_eq!(pool.stats().sessions, [0, 0, 0]);
    open(&pool).await;
    assert_eq!(node.upgrades(), 2);
}
