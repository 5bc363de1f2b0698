//! Watches that end, break, fall behind or are never let live, and a server that is away. Time is paused.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::sleep;

use super::keeping::{NEW, questions, settle, slice};
use super::*;

#[tokio::test(start_paused = true)]
async fn broken_watches_miss_nothing() {
    for gone_as_event in [false, true] {
        let api = api();
        let cluster = cluster(&api);
        api.apply(NEW).apply(&slice("a"));
        let Ok(Answer::Pods(candidates)) = ask(&cluster, "new:80").await else {
            panic!("it has a pod");
        };
        settle().await;
        questions(&api);

        // Every second for a minute, with a change each time: only the watch is asked for again.
        for i in 0..60 {
            api.cut_watches();
            api.apply(&slice(&format!("p{i}")));
            sleep(Duration::from_secs(1)).await;
            let wanted = format!("default/p{i}:80");
            assert_eq!(said(ask(&cluster, "new:80").await), wanted);
        }
        assert_eq!(questions(&api), Vec::<String>::new());

        // What was missed is no longer known: list again, and say that it changed.
        api.cut_watches();
        api.apply(&slice("z"));
        api.forget_history(gone_as_event);
        assert!(candidates.changed().now_or_never().is_some());
        sleep(Duration::from_secs(1)).await;
        assert_eq!(said(ask(&cluster, "new:80").await), "default/z:80");
        assert!(questions(&api).iter().all(|call| call.starts_with("list")));
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_good_answer_stands() {
    let api = api();
    let cluster = cluster(&api);
    api.apply(NEW).apply(&slice("a"));
    assert_eq!(said(ask(&cluster, "new:80").await), "default/a:80");
    settle().await;
    api.away(true);
    api.cut_watches();
    for _ in 0..60 {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(said(ask(&cluster, "new:80").await), "default/a:80");
    }
    api.apply(&slice("b"));
    api.away(false);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(said(ask(&cluster, "new:80").await), "default/b:80");
}

#[tokio::test(start_paused = true)]
async fn a_failed_first_load_is_tried_again() {
    let api = api();
    let cluster = cluster(&api);
    api.away(true);
    assert!(said(ask(&cluster, "web:80").await).starts_with("cluster_away"));
    api.away(false);
    assert_eq!(
        said(ask(&cluster, "web:80").await),
        "default/web-1:8080 default/web-2:8080"
    );
}

/// The pause before the next watch must not grow with every one that lived and broke: what changes meanwhile would
/// be seen too late.
#[tokio::test(start_paused = true)]
async fn connections_cut_every_second_delay_nothing() {
    let api = api();
    let cluster = cluster(&api);
    api.apply(NEW).apply(&slice("a"));
    ask(&cluster, "new:80").await.unwrap();
    settle().await;
    questions(&api);
    for i in 0..60 {
        api.break_watches();
        settle().await;
        api.apply(&slice(&format!("p{i}")));
        sleep(Duration::from_millis(100)).await;
        let wanted = format!("default/p{i}:80");
        assert_eq!(said(ask(&cluster, "new:80").await), wanted);
        sleep(Duration::from_millis(900)).await;
    }
    assert_eq!(questions(&api), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_every_watch_is_not_hammered() {
    let api = api();
    let cluster = cluster(&api);
    api.apply(NEW).apply(&slice("a"));
    ask(&cluster, "new:80").await.unwrap();
    settle().await;
    api.end_watches();
    api.asked();
    sleep(Duration::from_secs(60)).await;
    let asked = api.asked().len();
    assert!(
        (40..=140).contains(&asked),
        "{asked} calls of two watches in a minute"
    );
    // It is late, and it is true.
    api.apply(&slice("b"));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(said(ask(&cluster, "new:80").await), "default/b:80");
}

#[tokio::test(start_paused = true)]
async fn a_bookmark_saves_the_list() {
    let api = api();
    let cluster = cluster(&api);
    api.apply(NEW).apply(&slice("a"));
    ask(&cluster, "new:80").await.unwrap();
    settle().await;
    questions(&api);
    for (bookmarked, lists) in [(true, 0), (false, 2)] {
        // Changes that are none of ours, and then nobody knows any more what they were.
        api.apply("{kind: Service, metadata: {name: other}, spec: {}}")
            .apply("{kind: Service, metadata: {name: another}, spec: {}}");
        if bookmarked {
            api.bookmark();
            settle().await;
        }
        api.forget_history(false);
        api.cut_watches();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(questions(&api).len(), lists, "bookmarked: {bookmarked}");
        assert_eq!(said(ask(&cluster, "new:80").await), "default/a:80");
    }
}

/// A first question has no good answer to fall back to.
#[tokio::test(start_paused = true)]
async fn a_question_whose_connection_breaks_is_asked_again() {
    for target in ["web:80", "10.96.0.10:80", "web-1.default.pod:8080"] {
        let api = api();
        let wanted = said(ask(&cluster(&api), target).await);
        let cluster = cluster(&api);
        api.break_requests(1);
        assert_eq!(said(ask(&cluster, target).await), wanted, "{target}");
    }
    let api = api();
    api.break_requests(100);
    let refused = said(ask(&cluster(&api), "web:80").await);
    assert!(refused.starts_with("cluster_away"), "{refused}");
}
