//! Clients that break, close or half-close.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_client_that_breaks_while_the_upload_is_blocked_is_noticed_within_a_second() {
    let (client, upstream, relayed) = mocks();
    upstream.room(0);
    client.give(pattern(1_000_000));
    settle().await;
    assert!(
        !client.all_read(),
        "the relay took it all: this test tests nothing"
    );
    assert!(!relayed.is_finished());

    client.break_quietly(ErrorKind::ConnectionReset);
    let broken_at = Instant::now();
    let relayed = relayed.await.unwrap();
    assert!(broken_at.elapsed() <= CHECK);
    assert_eq!(
        failed(&relayed.end),
        Some((Side::Client, ErrorKind::ConnectionReset))
    );
    assert!(upstream.dropped());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_breaks_after_its_end_of_file_is_noticed_within_a_second() {
    let (client, upstream, relayed) = mocks();
    client.end();
    settle().await;
    assert!(upstream.shutdown_asked());
    client.break_quietly(ErrorKind::ConnectionReset);
    let broken_at = Instant::now();
    assert_eq!(
        failed(&relayed.await.unwrap().end),
        Some((Side::Client, ErrorKind::ConnectionReset))
    );
    assert!(broken_at.elapsed() <= CHECK);
}

#[tokio::test(start_paused = true)]
async fn a_closed_client_ends_the_relay_at_once() {
    let (client, upstream, relayed) = mocks();
    upstream.hold_shutdown(true);
    client.give("question");
    settle().await;
    upstream.give("answer");
    settle().await;
    client.close(true);
    client.end();
    let started = Instant::now();
    let relayed = relayed.await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert!(matches!(relayed.end, End::Eof), "{:?}", relayed.end);
    assert!(upstream.has_no_reader() && upstream.shutdown_asked() && upstream.dropped());
}

/// An upstream that waits for clients that may still read does not make room for this one.
#[tokio::test(start_paused = true)]
async fn the_upstream_is_told_that_nobody_reads_before_it_is_shut_down() {
    let (client, upstream, relayed) = mocks();
    upstream.hold_shutdown(true);
    client.give("question");
    client.close(true);
    client.end();
    relayed.await.unwrap();
    assert_eq!(upstream.written(), b"question");
    assert!(upstream.shutdown_asked() && !upstream.shutdown_asked_for_a_reader());
}

/// A program ends its writing before it closes.
#[tokio::test(start_paused = true)]
async fn a_client_that_closes_after_its_end_is_noticed() {
    let (client, upstream, relayed) = mocks();
    client.close(false);
    client.end();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!relayed.is_finished() && !upstream.has_no_reader());
    client.close(true);
    let closed = Instant::now();
    assert!(matches!(relayed.await.unwrap().end, End::Eof));
    assert!(closed.elapsed() <= CHECK);
}

#[tokio::test(start_paused = true)]
async fn bytes_sent_before_the_close_arrive() {
    let (client, upstream, relayed) = mocks();
    upstream.room(3);
    client.give(pattern(1000));
    client.close(true);
    client.end();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!relayed.is_finished());
    upstream.room(1000);
    assert_eq!(relayed.await.unwrap().up, 1000);
    assert_eq!(upstream.written(), pattern(1000));
    assert_eq!(upstream.flushed(), 1000);
}

/// A client of which it is unknown whether it has closed returns its permit and does not delay the drain.
#[tokio::test(start_paused = true)]
async fn a_client_that_may_have_closed_after_its_answer_returns_its_permit() {
    let (client, upstream, relayed) = mocks();
    client.give("question");
    settle().await;
    client.end();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!client.was_released(), "it waits for its answer");
    upstream.give("half an answer");
    settle().await;
    assert!(!client.was_released(), "there may be more of it");
    tokio::time::sleep(2 * CHECK).await;
    assert!(client.was_released());
    upstream.give("the rest");
    tokio::time::sleep(5 * CHECK).await;
    assert!(!relayed.is_finished());
    client.drain().stop();
    let relayed = relayed.await.unwrap();
    assert!(matches!(relayed.end, End::Cut));
    assert!(
        client.was_reset(),
        "what was sent cannot pass for the whole"
    );
    assert_eq!(client.written(), b"half an answerthe rest");
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_client_keeps_its_permit() {
    let (client, upstream, relayed) = mocks();
    client.close(false);
    client.give("question");
    client.end();
    settle().await;
    upstream.give("half an answer");
    tokio::time::sleep(5 * CHECK).await;
    client.drain().stop();
    tokio::time::sleep(5 * CHECK).await;
    assert!(!client.was_released() && !relayed.is_finished());
    upstream.end();
    assert!(matches!(relayed.await.unwrap().end, End::Eof));
}

/// The wait of decision 4 is not the client's time.
#[tokio::test(start_paused = true)]
async fn the_time_is_that_of_the_last_byte() {
    let started = Instant::now();
    let (client, upstream, relayed) = mocks();
    client.give("question");
    tokio::time::sleep(Duration::from_secs(2)).await;
    upstream.give("answer");
    settle().await;
    client.end();
    tokio::time::sleep(Duration::from_secs(30)).await;
    upstream.end();
    let relayed = relayed.await.unwrap();
    assert_eq!((relayed.last - started).as_secs(), 2);
}
