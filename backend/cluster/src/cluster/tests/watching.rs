//! Watches that end, break, fall behind or never work, and a server that is away. The clock is paused.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::sleep;

use super::keeping::{NEW, prove, questions, settle, slice};
use super::*;
use crate::fake::WatchFault;

/// Maximum age of the objects, in whatever way watches fail, from the start or after a while.
const OLDEST: Duration = Duration::from_secs(30);

const FAULTS: [WatchFault; 16] = [
    WatchFault::Status(400),
    WatchFault::Status(403),
    WatchFault::Status(404),
    WatchFault::Status(405),
    WatchFault::Status(410),
    WatchFault::Status(429),
    WatchFault::Status(500),
    WatchFault::Status(501),
    WatchFault::Status(503),
    WatchFault::Broken,
    WatchFault::NoHead,
    WatchFault::HeadAlone,
    WatchFault::HeadAndEnd(Duration::ZERO),
    WatchFault::HeadAndEnd(Duration::from_secs(3)),
    WatchFault::BookmarkAndEnd,
    WatchFault::Cut(Duration::from_secs(3)),
];

/// Looks up every second until a change is seen; returns how long that took.
async fn seen_after(cluster: &Cluster, api: &FakeApi, pod: &str) -> Duration {
    api.apply(&slice(pod));
    let changed = tokio::time::Instant::now();
    let wanted = format!("default/{pod}:80");
    while said(ask(cluster, "new:80").await) != wanted {
        sleep(Duration::from_secs(1)).await;
        assert!(changed.elapsed() < Duration::from_secs(600), "never seen");
    }
    changed.elapsed()
}

#[tokio::test(start_paused = true)]
async fn however_watches_fail_the_view_is_half_a_minute_old_at_most() {
    let mut late = Vec::new();
    for (fault, works_first) in FAULTS.iter().flat_map(|f| [(*f, false), (*f, true)]) {
        let api = api();
        let cluster = cluster(&api);
        api.apply(NEW).apply(&slice("a"));
        if !works_first {
            api.watches_meet(Some(fault));
        }
        assert_eq!(said(ask(&cluster, "new:80").await), "default/a:80");
        settle().await;
        if works_first {
            // One change is delivered, so that the watch is proven.
            api.apply(&slice("b"));
            settle().await;
            api.watches_meet(Some(fault));
        }
        // Whatever was tried in the meantime, and also later.
        for (pause, pod) in [(0, "c"), (3, "d"), (40, "e"), (200, "f")] {
            sleep(Duration::from_secs(pause)).await;
            let after = seen_after(&cluster, &api, pod).await;
            if after > OLDEST {
                late.push((fault, works_first, pod, after));
            }
        }
        // And watches are tried again.
        api.watches_meet(None);
        let again = tokio::time::Instant::now();
        while api.watching() < 2 {
            sleep(Duration::from_secs(1)).await;
            ask(&cluster, "new:80").await.unwrap();
            assert!(
                again.elapsed() < Duration::from_secs(320),
                "{fault:?} is never over"
            );
        }
    }
    assert!(late.is_empty(), "{late:#?}");
}

/// A server that does not answer for a while delays lookups only briefly.
#[tokio::test(start_paused = true)]
async fn a_hanging_server_delays_lookups_briefly() {
    let api = api();
    let cluster = cluster(&api);
    api.apply(NEW).apply(&slice("a"));
    assert_eq!(said(ask(&cluster, "new:80").await), "default/a:80");
    settle().await;
    api.answer_after(Duration::from_secs(3600));
    api.watches_meet(Some(WatchFault::NoHead));
    let mut longest = Duration::ZERO;
    for _ in 0..120 {
        let begun = tokio::time::Instant::now();
        assert_eq!(said(ask(&cluster, "new:80").await), "default/a:80");
        longest = longest.max(begun.elapsed());
        sleep(Duration::from_secs(1)).await;
    }
    assert!(longest <= Duration::from_secs(5), "{longest:?}");
}

/// Failing watches are tried less and less often: after 5, 10, 20, then every 30 s.
#[tokio::test(start_paused = true)]
async fn broken_watches_back_off() {
    let api = api();
    let cluster = cluster(&api);
    api.apply(NEW).apply(&slice("a"));
    api.watches_meet(Some(WatchFault::Broken));
    api.asked();
    for _ in 0..600 {
        assert_eq!(said(ask(&cluster, "new:80").await), "default/a:80");
        sleep(Duration::from_secs(1)).await;
    }
    let mut asked = api.asked();
    asked.retain(|call| call.starts_with("watch"));
    // Two selections, a handful of attempts in each of twenty rounds.
    assert!((60..=320).contains(&asked.len()), "{} watches", asked.len());
}

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

        // Every second for a minute, with a change each time: only the watch is opened again.
        for i in 0..60 {
            api.cut_watches();
            api.apply(&slice(&format!("p{i}")));
            sleep(Duration::from_secs(1)).await;
            let wanted = format!("default/p{i}:80");
            assert_eq!(said(ask(&cluster, "new:80").await), wanted);
        }
        assert_checked(&api);

        // The missed changes are gone: list again, and report a change.
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
    assert_checked(&api);
}

/// In a minute nothing was listed but the Service, which no watch that lives for a second says anything of.
fn assert_checked(api: &FakeApi) {
    let asked = questions(api);
    let service = "list services default metadata.name=new";
    assert!(
        asked.len() <= 3 && asked.iter().all(|call| call == service),
        "{asked:?}"
    );
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
    assert!(asked <= 140, "{asked} calls of two watches in a minute");
    // The change is seen late, but it is seen.
    api.apply(&slice("b"));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(said(ask(&cluster, "new:80").await), "default/b:80");
}

/// Answers that take no time at all would keep the paused clock from going on.
#[tokio::test(start_paused = true)]
async fn a_gateway_that_ends_every_watch_after_a_bookmark_is_not_hammered() {
    let api = api();
    let cluster = cluster(&api);
    api.apply(NEW).apply(&slice("a"));
    ask(&cluster, "new:80").await.unwrap();
    settle().await;
    api.answer_after(Duration::from_millis(1));
    api.watches_meet(Some(WatchFault::BookmarkAndEnd));
    api.asked();
    sleep(Duration::from_secs(10)).await;
    let asked = api.asked().len();
    assert!(asked <= 80, "{asked} calls of two watches in ten seconds");
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
    prove(&api).await;
    questions(&api);
    for (bookmarked, lists) in [(true, 0), (false, 2)] {
        // Changes of other objects, and then their history is gone.
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

/// A first lookup has no earlier answer to fall back to.
#[tokio::test(start_paused = true)]
async fn a_call_whose_connection_breaks_is_repeated() {
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

#[tokio::test(start_paused = true)]
async fn calls_to_a_server_that_breaks_connections_are_not_doubled() {
    let api = api();
    api.away(true);
    let cluster = cluster(&api);
    let names: Vec<String> = (0..100).map(|n| format!("web-{n}.team:80")).collect();
    // All at once: what may be repeated grows with time.
    for refused in join_all(names.iter().map(|name| ask(&cluster, name))).await {
        let refused = said(refused);
        assert!(refused.starts_with("cluster_away"), "{refused}");
    }
    let asked = questions(&api);
    let mut calls = asked.clone();
    calls.sort();
    calls.dedup();
    let repeated = asked.len() - calls.len();
    assert!(calls.len() >= 100, "{} calls", calls.len());
    assert!(
        repeated <= 20,
        "{repeated} repetitions of {} calls",
        calls.len()
    );
}

/// The client retries within its budget; a second layer of retries would multiply them.
#[tokio::test(start_paused = true)]
async fn an_answer_with_a_status_is_not_asked_for_again() {
    let api = api();
    api.answer_status(503);
    let refused = said(ask(&cluster(&api), "web:80").await);
    assert!(refused.starts_with("cluster_away"), "{refused}");
    let mut asked = questions(&api);
    asked.sort();
    let all = asked.len();
    asked.dedup();
    assert_eq!(asked.len(), all, "{asked:?}");
    assert!(all > 0);
}
