//! End of stream in each direction.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_clients_end_is_passed_on_at_once_and_the_answer_still_comes() {
    let (client, upstream, relayed) = mocks();
    client.give("question");
    client.end();
    settle().await;
    assert_eq!(upstream.written(), b"question");
    assert!(upstream.shutdown_asked());
    assert!(!relayed.is_finished());

    upstream.give("answer");
    settle().await;
    assert_eq!(client.written(), b"answer");
    assert!(!client.shutdown_asked());

    upstream.end();
    let relayed = relayed.await.unwrap();
    assert!(client.shutdown_asked());
    assert_eq!((relayed.up, relayed.down), (8, 6));
    assert!(matches!(relayed.end, End::Eof));
    assert!(!client.was_reset());
    assert!(client.dropped() && upstream.dropped());
}

#[tokio::test(start_paused = true)]
async fn the_upstreams_end_is_passed_on_at_once_and_the_upload_goes_on() {
    let (client, upstream, relayed) = mocks();
    upstream.give("greeting");
    upstream.end();
    settle().await;
    assert_eq!(client.written(), b"greeting");
    assert!(client.shutdown_asked());
    assert!(!relayed.is_finished());

    client.give("upload");
    client.end();
    let relayed = relayed.await.unwrap();
    assert_eq!(upstream.written(), b"upload");
    assert!(upstream.shutdown_asked());
    assert!(matches!(relayed.end, End::Eof));
}

#[tokio::test(start_paused = true)]
async fn an_end_waits_for_the_bytes_before_it() {
    let (client, upstream, relayed) = mocks();
    upstream.room(3);
    client.give(pattern(1000));
    client.end();
    settle().await;
    assert!(!upstream.shutdown_asked());
    upstream.room(1_000_000);
    settle().await;
    assert_eq!(upstream.written(), pattern(1000));
    assert!(upstream.shutdown_asked());
    upstream.end();
    assert_eq!(relayed.await.unwrap().up, 1000);
}

#[tokio::test(start_paused = true)]
async fn a_slow_shutdown_of_the_upstream_delays_nothing() {
    let (client, upstream, relayed) = mocks();
    upstream.hold_shutdown(true);
    client.give("question");
    client.end();
    settle().await;
    assert!(upstream.shutdown_asked());

    // The other direction goes on meanwhile,
    upstream.give("answer");
    settle().await;
    assert_eq!(client.written(), b"answer");
    assert!(!relayed.is_finished());

    // and its end is the end.
    upstream.end();
    let relayed = relayed.await.unwrap();
    assert!(client.shutdown_asked());
    assert!(matches!(relayed.end, End::Eof));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_comes_through_late_does_not_end_the_other_direction() {
    let (client, upstream, relayed) = mocks();
    upstream.hold_shutdown(true);
    client.end();
    settle().await;
    upstream.hold_shutdown(false);
    settle().await;
    assert!(!relayed.is_finished());
    upstream.give("late");
    upstream.end();
    assert_eq!(relayed.await.unwrap().down, 4);
    assert_eq!(client.written(), b"late");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_delivered_yet_is_not_cut_by_both_ends() {
    let (client, upstream, relayed) = mocks();
    client.room(0);
    client.end();
    upstream.give("answer");
    upstream.end();
    settle().await;
    assert!(!relayed.is_finished());
    client.room(100);
    assert!(matches!(relayed.await.unwrap().end, End::Eof));
    assert_eq!(client.written(), b"answer");
}
