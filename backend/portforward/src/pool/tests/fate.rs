//! The fate of a forward: refused at once, refused late, or established.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_closed_port_is_refused_and_the_session_lives() {
    let (node, pool) = TestNode::start(quick());
    let mut other = open(&pool).await;
    let error = dial(&pool, CLOSED).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Refused);
    for _ in 0..20 {
        dial(&pool, CLOSED).await.unwrap_err();
    }
    assert_eq!(
        node.upgrades(),
        3,
        "one for the open stream, one for these, one spare"
    );
    assert_eq!(pool.stats().refused, 21);
    sleep(10 * S).await;
    echo(&mut other, b"untouched").await.unwrap();
    assert_eq!(pool.stats().sessions, [3, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn only_the_first_dial_to_a_port_waits_for_its_fate() {
    let (_node, pool) = TestNode::start(quick());
    let began = Instant::now();
    let first = dial(&pool, SINK).await.unwrap();
    assert_eq!(began.elapsed(), quick().fate_wait);
    let began = Instant::now();
    let second = dial(&pool, SINK).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "the port is known");
    // A Pod that speaks first needs no wait.
    let began = Instant::now();
    let mut greeted = dial(&pool, GREET).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    let mut line = [0; 11];
    soon(greeted.read_exact(&mut line)).await.unwrap();
    assert_eq!(&line, b"220 hello\r\n", "nothing of it is lost");
    drop((first, second));
    sleep(quick().good_for).await;
    let began = Instant::now();
    dial(&pool, SINK).await.unwrap();
    assert_eq!(began.elapsed(), quick().fate_wait, "it was forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_a_busy_machine_delays_is_waited_for() {
    let (node, pool) = TestNode::start(quick());
    close(open(&pool).await).await;
    sleep(2 * S).await;
    node.link(0).slow_down();
    node.refusal_ms.store(30, SeqCst);
    let began = Instant::now();
    let error = dial(&pool, CLOSED).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Refused, "{error}");
    assert!(began.elapsed() > 2 * quick().fate_wait, "it came late");
    // Without a refusal the wait is as long as the round trip.
    let began = Instant::now();
    drop(dial(&pool, SINK).await.unwrap());
    assert!(began.elapsed() < S, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_accepts_and_closes_was_there() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, CLOSE).await.unwrap();
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"");
}

#[tokio::test(start_paused = true)]
async fn a_late_refusal_is_an_error_of_the_stream_and_forgets_the_port() {
    let (node, pool) = TestNode::start(quick());
    drop(open(&pool).await);
    node.close_port(ECHO);
    let mut stream = dial(&pool, ECHO).await.unwrap();
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert!(error.to_string().contains("connection refused"), "{error}");
    let error = stream.write(b"x").await.unwrap_err();
    assert_eq!(
        error.kind(),
        io::ErrorKind::ConnectionRefused,
        "and stays one"
    );
    let error = dial(&pool, ECHO).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Refused);
}

#[tokio::test(start_paused = true)]
async fn the_port_of_a_pod_that_is_gone_is_good_no_longer() {
    let (node, pool) = TestNode::start(quick());
    drop(open(&pool).await);
    node.gone.store(true, SeqCst);
    let mut stream = dial(&pool, ECHO).await.unwrap();
    stream.read(&mut [0; 1]).await.unwrap_err();
    let error = dial(&pool, ECHO).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Unreachable, "{error}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_to_a_forward_that_has_ended() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, CLOSE).await.unwrap();
    sleep(2 * S).await;
    // The forward's end has arrived and was not read.
    let error = stream.write(b"x").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}
