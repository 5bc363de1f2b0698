//! The ends of a stream: half-closed, lingering, dropped.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_answer_after_the_clients_end_arrives_whole() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, SLOW).await.unwrap();
    stream.write_all(b"ask").await.unwrap();
    let began = Instant::now();
    assert_eq!(close(stream).await, b"0123456789");
    // 3 s for the answer, 1 s until the runtime reports the Pod's end, and no linger after it.
    assert_eq!(began.elapsed(), 4 * S);
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_stream_keeps_its_session_exclusive() {
    let (node, pool) = TestNode::start(quick());
    let mut asking = dial(&pool, SLOW).await.unwrap();
    asking.write_all(b"ask").await.unwrap();
    let answer = tokio::spawn(close(asking));
    settle().await;
    drop(open(&pool).await);
    assert_eq!(node.upgrades(), 3, "another, and a spare");
    answer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_pod_has_ended_is_forgotten_at_once() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, CLOSE).await.unwrap();
    soon(stream.read(&mut [0; 1])).await.unwrap();
    let open = pool
        .state()
        .entries()
        .next()
        .unwrap()
        .handle
        .stats()
        .streams;
    assert_eq!(open, 0, "nothing queued for it is sent any more");
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn a_silent_pod_is_given_up_after_the_linger() {
    let (node, pool) = TestNode::start(quick());
    let stream = open(&pool).await;
    let began = Instant::now();
    close(stream).await;
    let (after, least) = (began.elapsed(), quick().linger + S);
    // An end alone is not sent at once.
    assert!(after >= least && after < least + S / 10, "{after:?}");
    assert_eq!((pool.stats().streams, node.forwards()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_clients_end_may_have_cut_is_not_taken_for_whole() {
    let soon_over = Config {
        linger: S,
        ..quick()
    };
    let (_node, pool) = TestNode::start(soon_over);
    // The Pod would answer after 3 s; the runtime closes 1 s after the client's end was passed on.
    let mut stream = dial(&pool, SLOW).await.unwrap();
    stream.write_all(b"ask").await.unwrap();
    let (mut read, mut write) = split(stream);
    let mut answer = Vec::new();
    let (shut, cut) =
        soon(async { tokio::join!(write.shutdown(), read.read_to_end(&mut answer)) }).await;
    shut.unwrap();
    let error = cut.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(error.to_string().contains("silent too long"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn half_closed_client_is_sent_all_while_hundreds_of_others_come_and_go() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, EVENTS).await.unwrap();
    stream.write_all(b"ask").await.unwrap();
    let (mut read, mut write) = split(stream);
    let reader = tokio::spawn(async move {
        let mut events = Vec::new();
        let (_, got) = tokio::join!(write.shutdown(), read.read_to_end(&mut events));
        got.map(|_| events)
    });
    // Each has its answer, ends, and sends nothing more, like clients that close where the system does not know.
    for _ in 0..4 * quick().lingering {
        let stream = open(&pool).await;
        tokio::spawn(close(stream));
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(soon(reader).await.unwrap().unwrap(), b"123456");
}

#[tokio::test(start_paused = true)]
async fn every_byte_of_the_pod_restarts_the_linger() {
    let (_node, pool) = TestNode::start(quick());
    let stream = dial(&pool, FLOOD).await.unwrap();
    let (mut read, mut write) = split(stream);
    let shut = tokio::spawn(async move { write.shutdown().await });
    for _ in 0..10 {
        sleep(quick().linger - S).await;
        read.read_exact(&mut [0; 4096]).await.unwrap();
    }
    assert!(!shut.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_vanished_clients_leave_nothing() {
    let (node, pool) = TestNode::start(quick());
    let mut tasks = JoinSet::new();
    for _ in 0..1000 {
        let stream = dial(&pool, SINK).await.unwrap();
        tasks.spawn(close(stream));
    }
    let held = quick().lingering;
    settle().await;
    assert!(pool.stats().lingering <= held);
    sleep(2 * S).await;
    assert!(
        node.forwards() <= held,
        "the runtime's part is bounded: {}",
        node.forwards()
    );
    tasks.join_all().await;
    settle().await;
    assert_eq!(
        (
            pool.stats().streams,
            pool.stats().lingering,
            node.forwards()
        ),
        (0, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stream_is_gone_at_once() {
    let (node, pool) = TestNode::start(quick());
    drop(open(&pool).await);
    assert_eq!(pool.stats().streams, 0);
    sleep(2 * S).await;
    assert_eq!(node.forwards(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_ends_in_time_and_is_read_late_is_whole() {
    let config = Config {
        linger: 5 * S / 2,
        ..quick()
    };
    let (_node, pool) = TestNode::start(config);
    // The Pod answers and ends after 3 s, within a second of the client's end that it was told of.
    let mut stream = dial(&pool, SLOW).await.unwrap();
    stream.write_all(b"ask").await.unwrap();
    stream.shutdown().await.unwrap();
    sleep(10 * S).await;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"0123456789");
}

#[tokio::test(start_paused = true)]
async fn a_client_known_to_have_closed_takes_no_place_among_those_that_linger() {
    let config = Config {
        lingering: 1,
        ..quick()
    };
    let (_node, pool) = TestNode::start(config);
    let mut waiting = dial(&pool, SLOW).await.unwrap();
    waiting.write_all(b"ask").await.unwrap();
    assert!(waiting.shutdown().now_or_never().is_none(), "it lingers");
    let mut closed = dial(&pool, SINK).await.unwrap();
    closed.no_reader();
    closed.shutdown().now_or_never().unwrap().unwrap();
    assert_eq!(pool.stats().lingering, 1);
    assert!(waiting.shutdown().now_or_never().is_none(), "it still does");
}

#[tokio::test(start_paused = true)]
async fn a_client_found_to_have_closed_gives_its_place_back() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, SINK).await.unwrap();
    assert!(stream.shutdown().now_or_never().is_none(), "it lingers");
    stream.no_reader();
    assert_eq!(pool.stats().lingering, 0);
}
