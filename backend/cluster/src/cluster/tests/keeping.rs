//! Kept objects: which they are, how they stay up to date, and the calls for that. The clock is paused: a sleep lets every task run until it
//! is idle, and takes no time.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;

use super::*;

/// Every name and address that leads somewhere in the cluster.
const TARGETS: [&str; 21] = [
    "web:80",
    "web.default:80",
    "web.default.svc:80",
    "web.default.svc.cluster.local:80",
    "api.team:80",
    "10.96.0.10:80",
    "[fd00:10:96::a]:80",
    "203.0.113.7:80",
    "10.96.0.40:80",
    "db:5432",
    "db-0.db:5432",
    "10-244-0-12.web.default.svc:1",
    "web-1.default.pod:8080",
    "10-244-0-40.team.pod.cluster.local:1",
    "10.244.0.40:1",
    "10.244.0.11:8080",
    "10.245.0.2:9100",
    "alias:80",
    "manual:80",
    "kubernetes:443",
    "outside:443",
];

pub(super) async fn settle() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Delivers something on every watch, so that all are proven.
pub(super) async fn prove(api: &FakeApi) {
    settle().await;
    api.bookmark();
    settle().await;
}

/// The calls that are not watches.
pub(super) fn questions(api: &FakeApi) -> Vec<String> {
    let mut asked = api.asked();
    asked.retain(|call| !call.starts_with("watch"));
    asked
}

pub(super) fn slice(pods: &str) -> String {
    let pods = pods.split(' ').filter(|p| !p.is_empty());
    let endpoint = |p| format!("{{addresses: [10.1.1.1], targetRef: {{kind: Pod, name: {p}}}}}");
    let endpoints: Vec<_> = pods.map(endpoint).collect();
    format!(
        "
kind: EndpointSlice
metadata: {{name: new-x, labels: {{kubernetes.io/service-name: new}}}}
addressType: IPv4
endpoints: [{}]
ports: [{{port: 80}}]
",
        endpoints.join(", ")
    )
}

pub(super) const NEW: &str = "
kind: Service
metadata: {name: new}
spec: {clusterIP: 10.96.0.99, selector: {app: new}, ports: [{port: 80}]}
";

#[tokio::test(start_paused = true)]
async fn a_second_lookup_makes_no_call() {
    for target in TARGETS {
        let api = api();
        let cluster = cluster(&api);
        let first = said(ask(&cluster, target).await);
        assert!(!questions(&api).is_empty(), "{target}: the first asks");
        prove(&api).await;
        questions(&api);
        // Longer than a watch lasts, and than any expiry except that of a missing namespace.
        for _ in 0..80 {
            tokio::time::sleep(Duration::from_secs(7)).await;
            assert_eq!(said(ask(&cluster, target).await), first, "{target}");
        }
        assert_eq!(questions(&api), Vec::<String>::new(), "{target}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_lookup_asks_little() {
    for (target, most) in [
        ("web:80", 2),
        // One of them, once: the cluster's domain.
        ("web.default.svc.cluster.local:80", 3),
        // The IPAddress, the Service, its endpoints.
        ("10.96.0.10:80", 3),
        // No IPAddress, and then a Pod: the Services are not listed.
        ("10.244.0.40:1", 2),
        ("api.team:80", 3),
    ] {
        let api = api();
        ask(&cluster(&api), target).await.unwrap();
        let asked = questions(&api);
        assert!(asked.len() <= most, "{target}: {asked:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn many_first_lookups_are_one() {
    for target in ["web:80", "10.96.0.40:80", "10.244.0.40:1", "nosuch:80"] {
        let api = api();
        let cluster = cluster(&api);
        said(ask(&self::cluster(&api), target).await);
        let alone = questions(&api);
        let many = join_all((0..50).map(|_| ask(&cluster, target))).await;
        assert_eq!(questions(&api), alone, "{target}");
        let said: std::collections::BTreeSet<_> = many.into_iter().map(said).collect();
        assert_eq!(said.len(), 1, "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_lookup_does_not_cancel_the_others() {
    let api = api();
    let cluster = cluster(&api);
    assert!(ask(&cluster, "web:80").now_or_never().is_none());
    settle().await;
    let asked = questions(&api);
    assert!(asked.contains(&"list services default metadata.name=web".to_owned()));
    assert_eq!(
        said(ask(&cluster, "web:80").await),
        "default/web-1:8080 default/web-2:8080"
    );
    assert!(questions(&api).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_change_is_reported_to_followers() {
    let api = api();
    let cluster = cluster(&api);
    api.apply(NEW).apply(&slice("a"));
    cluster.domain().await;
    let Ok(Answer::Pods(candidates)) = ask(&cluster, "new:80").await else {
        panic!("it has a pod");
    };
    settle().await;
    questions(&api);
    assert!(candidates.changed().now_or_never().is_none());
    api.apply(&slice("b"));
    candidates.changed().await;
    assert_eq!(said(ask(&cluster, "new:80").await), "default/b:80");
    // A change before the wait is not missed.
    candidates.changed().now_or_never().expect("told at once");
    api.delete("services", "default", "new");
    settle().await;
    assert!(said(ask(&cluster, "new:80").await).starts_with("name_not_found"));
    assert_eq!(questions(&api), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_change_of_unread_fields_is_not_reported() {
    let api = api();
    let cluster = cluster(&api);
    api.apply(NEW).apply(&slice("a"));
    cluster.domain().await;
    let Ok(Answer::Pods(candidates)) = ask(&cluster, "new:80").await else {
        panic!("it has a pod");
    };
    settle().await;
    api.apply(&NEW.replace("name: new", "name: new, annotations: {a: b}"));
    settle().await;
    assert!(candidates.changed().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_first_endpoint_is_waited_for() {
    let api = api();
    let cluster = cluster(&api);
    api.apply(NEW);
    let Ok(Answer::Pods(candidates)) = ask(&cluster, "new:80").await else {
        panic!("it exists");
    };
    assert!(candidates.usable().is_err());
    settle().await;
    let begun = tokio::time::Instant::now();
    api.apply(&slice("a"));
    candidates.changed().await;
    assert_eq!(said(ask(&cluster, "new:80").await), "default/a:80");
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn absence_is_believed_briefly() {
    let api = api();
    let cluster = cluster(&api);
    assert!(said(ask(&cluster, "new:80").await).starts_with("name_not_found"));
    questions(&api);
    api.apply(NEW).apply(&slice("a"));
    assert!(said(ask(&cluster, "new:80").await).starts_with("name_not_found"));
    assert_eq!(questions(&api), Vec::<String>::new());
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(said(ask(&cluster, "new:80").await), "default/a:80");
}

#[tokio::test(start_paused = true)]
async fn absence_that_decides_is_watched() {
    let api = api();
    let cluster = cluster(&api);
    let target = "new.team:80";
    api.apply(&NEW.replace("name: new", "name: new, namespace: team"))
        .apply(&slice("a").replace("name: new-x", "name: new-x, namespace: team"));
    assert_eq!(said(ask(&cluster, target).await), "team/a:80");
    settle().await;
    questions(&api);
    // Now the name means an object earlier in the search order.
    api.apply(
        "
kind: Service
metadata: {name: team}
spec: {clusterIP: None}
---
kind: EndpointSlice
metadata: {name: team-x, labels: {kubernetes.io/service-name: team}}
addressType: IPv4
endpoints: [{addresses: [10.1.1.2], hostname: new, targetRef: {kind: Pod, name: nearer}}]
",
    );
    settle().await;
    assert_eq!(said(ask(&cluster, target).await), "default/nearer:80");
    assert_eq!(
        questions(&api),
        ["list endpointslices default kubernetes.io/service-name=team"]
    );
}

#[tokio::test(start_paused = true)]
async fn an_unused_selection_is_dropped() {
    let api = api();
    let cluster = cluster(&api);
    ask(&cluster, "web:80").await.unwrap();
    ask(&cluster, "db:80").await.unwrap();
    settle().await;
    assert_eq!((api.watching(), cluster.stats().watches), (4, 4));
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        ask(&cluster, "web:80").await.unwrap();
    }
    assert_eq!((api.watching(), cluster.stats().watches), (2, 2));
    assert_eq!(cluster.stats().kept, 2);
    drop(cluster);
    settle().await;
    assert_eq!(api.watching(), 0);
}

/// A waiter that outlasts the idle time looks up again, and so keeps the selection.
#[tokio::test(start_paused = true)]
async fn a_waiting_follower_learns_that_the_watch_ended() {
    let api = api();
    let cluster = cluster(&api);
    ask(&cluster, "empty:80").await.unwrap();
    prove(&api).await;
    // The first answer has an expiry: it was listed before the watch was proven.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let Ok(Answer::Pods(mut candidates)) = ask(&cluster, "empty:80").await else {
        panic!("it exists");
    };
    let changed = tokio::time::timeout(Duration::from_secs(3600), candidates.changed());
    changed.await.expect("told that watching has ended");
    assert_eq!(cluster.stats().watches, 0);
    candidates.next().await.unwrap();
    settle().await;
    assert_eq!(cluster.stats().watches, 2);
}

/// The watch is refused a round trip after the list was answered, when the lookup has its answer and thinks that it is
/// watched.
#[tokio::test(start_paused = true)]
async fn a_waiting_follower_learns_that_watching_is_forbidden() {
    let api = api();
    api.allow_only(&["list services default", "list endpointslices default"]);
    let cluster = cluster(&api);
    api.apply(NEW).apply(&slice("a"));
    cluster.domain().await;
    api.answer_after(Duration::from_millis(20));
    let Ok(Answer::Pods(candidates)) = ask(&cluster, "new:80").await else {
        panic!("it has a pod");
    };
    api.apply(&slice("b"));
    let told = async {
        let mut candidates = candidates;
        while candidates.endpoints[0].pod.name != "b" {
            candidates.next().await.unwrap();
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(5), told).await;
    told.expect("told that there is another pod");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_follower_learns_that_the_limit_on_watches_is_reached() {
    let api = api();
    let cluster = cluster(&api);
    let Ok(Answer::Pods(candidates)) = ask(&cluster, "empty:80").await else {
        panic!("it exists");
    };
    settle().await;
    // More than the limit, all of them in use.
    for i in 0..4096 {
        ask(&cluster, &format!("no-such-{i}:80")).await.unwrap();
    }
    let changed = candidates.changed();
    changed.now_or_never().expect("told that it is not watched");
}

#[tokio::test(start_paused = true)]
async fn hosts_outside_are_not_watched_for() {
    let api = api();
    let cluster = cluster(&api);
    for i in 0..100 {
        let target = format!("www.example{i}.com:443");
        assert!(said(ask(&cluster, &target).await).starts_with("outside"));
    }
    settle().await;
    assert_eq!(cluster.stats().watches, 0);
    tokio::time::sleep(Duration::from_secs(60)).await;
    ask(&cluster, "web:80").await.unwrap();
    assert!(cluster.stats().kept < 10, "{:?}", cluster.stats());
}

#[tokio::test(start_paused = true)]
async fn watches_are_bounded() {
    let api = api();
    let cluster = cluster(&api);
    let name = |i: usize| format!("new{i}");
    for i in 0..400 {
        let renamed = |yaml: &str| yaml.replace("new", &name(i));
        api.apply(&renamed(NEW)).apply(&renamed(&slice("pod")));
    }
    for i in 0..400 {
        let target = format!("{}:80", name(i));
        assert_eq!(
            said(ask(&cluster, &target).await),
            "default/pod:80",
            "{target}"
        );
    }
    settle().await;
    assert_eq!((api.watching(), cluster.stats().watches), (512, 512));
    // The others are read again, at most every two seconds.
    questions(&api);
    for _ in 0..5 {
        ask(&cluster, "new399:80").await.unwrap();
    }
    assert_eq!(questions(&api), Vec::<String>::new());
    tokio::time::sleep(Duration::from_secs(2)).await;
    ask(&cluster, "new399:80").await.unwrap();
    assert_eq!(questions(&api).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_the_right_to_watch() {
    let api = api();
    api.allow_only(&["list services default", "list endpointslices default"]);
    let cluster = cluster(&api);
    api.apply(NEW).apply(&slice("a"));
    cluster.domain().await;
    assert_eq!(said(ask(&cluster, "new:80").await), "default/a:80");
    settle().await;
    questions(&api);
    let Ok(Answer::Pods(candidates)) = ask(&cluster, "new:80").await else {
        panic!("it has a pod");
    };
    assert_eq!(said(Ok(Answer::Pods(candidates.clone()))), "default/a:80");
    assert_eq!(questions(&api), Vec::<String>::new());
    api.apply(&slice("b"));
    // No watch reports it; the wait ends when the answer expires.
    candidates.changed().await;
    assert_eq!(said(ask(&cluster, "new:80").await), "default/b:80");
    // The last good answer stands here too.
    api.away(true);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(said(ask(&cluster, "new:80").await), "default/b:80");
}

#[tokio::test(start_paused = true)]
async fn with_the_right_to_get_alone() {
    let api = api();
    api.allow_only(&["get services default", "get endpoints default"]);
    let cluster = cluster(&api);
    let endpoints = |pod: &str| {
        format!(
            "
kind: Endpoints
metadata: {{name: web}}
subsets:
- addresses: [{{ip: 10.244.0.11, targetRef: {{kind: Pod, namespace: default, name: {pod}}}}}]
  ports: [{{name: http, port: 8080}}]
"
        )
    };
    api.apply(&endpoints("a"));
    assert_eq!(said(ask(&cluster, "web:80").await), "default/a:8080");
    questions(&api);
    api.apply(&endpoints("b"));
    assert_eq!(said(ask(&cluster, "web:80").await), "default/a:8080");
    assert_eq!(questions(&api), Vec::<String>::new());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(said(ask(&cluster, "web:80").await), "default/b:8080");
    // Missing rights are not tried each time.
    let mut asked = questions(&api);
    asked.sort();
    assert_eq!(
        asked,
        ["get endpoints default web", "get services default web"]
    );
}

/// A right that is taken away is refused for a while before that is believed.
#[tokio::test(start_paused = true)]
async fn rights_that_are_taken_or_given() {
    // With `api.team` that `default/team` is nothing is part of the answer, so it is kept longer than others.
    for (target, wanted) in [("web:80", "default/"), ("api.team:80", "team/")] {
        let api = api();
        let cluster = cluster(&api);
        assert!(said(ask(&cluster, target).await).starts_with(wanted));
        settle().await;
        api.allow_only(&[]);
        api.cut_watches();
        tokio::time::sleep(Duration::from_secs(13)).await;
        assert!(said(ask(&cluster, target).await).starts_with("forbidden"));
        api.allow_only(&["get services *", "get endpoints *", "list endpointslices *"]);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert!(said(ask(&cluster, target).await).starts_with(wanted));
    }
}

/// For each right that existed before: watch, list, get; and for an absence on which another answer rests.
#[tokio::test(start_paused = true)]
async fn a_server_that_has_not_read_its_rules_yet() {
    for rules in ["get list watch", "list watch", "list", "get"] {
        let api = api();
        let mut rights = Vec::new();
        for verb in rules.split(' ') {
            for resource in ["services", "endpointslices", "endpoints"] {
                rights.push(format!("{verb} {resource} *"));
            }
        }
        let rights: Vec<_> = rights.iter().map(String::as_str).collect();
        api.apply(
            "
kind: Endpoints
metadata: {name: api, namespace: team}
subsets:
- addresses: [{ip: 10.244.0.40, targetRef: {kind: Pod, namespace: team, name: api-1}}]
  ports: [{name: http, port: 8080}]
",
        );
        api.allow_only(&rights);
        let cluster = cluster(&api);
        // `team` might be a Service here.
        let target = "api.team:80";
        assert_eq!(said(ask(&cluster, target).await), "team/api-1:8080");
        settle().await;
        let watching = cluster.stats().watches;
        assert_eq!(watching > 0, rules.contains("watch"));
        for _ in 0..3 {
            api.allow_only(&[]);
            api.break_watches();
            for _ in 0..14 {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let known = said(ask(&cluster, target).await);
                assert_eq!(known, "team/api-1:8080", "{rules}");
            }
            api.allow_only(&rights);
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let known = said(ask(&cluster, target).await);
                assert_eq!(known, "team/api-1:8080", "{rules}");
            }
        }
        assert_eq!(cluster.stats().watches, watching, "{rules}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_moves_to_another_address() {
    let api = api();
    let cluster = cluster(&api);
    api.apply(NEW).apply(&slice("a"));
    assert_eq!(said(ask(&cluster, "10.96.0.99:80").await), "default/a:80");
    settle().await;
    api.apply(&NEW.replace("10.96.0.99", "10.96.0.98"));
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(
        said(ask(&cluster, "10.96.0.99:80").await),
        "outside: 10.96.0.99"
    );
    assert_eq!(said(ask(&cluster, "10.96.0.98:80").await), "default/a:80");
}

#[tokio::test(start_paused = true)]
async fn pods_are_known_from_services_in_use() {
    let api = api();
    let cluster = cluster(&api);
    ask(&cluster, "web:80").await.unwrap();
    settle().await;
    questions(&api);
    // The first address or the second, no matter; and its own port needs no look at the Pod.
    assert_eq!(
        said(ask(&cluster, "10.244.0.11:8080").await),
        "default/web-1:8080"
    );
    let second = "[fd00:10:244::11]:8080";
    assert_eq!(said(ask(&cluster, second).await), "default/web-1:8080");
    assert_eq!(questions(&api), Vec::<String>::new());
    assert_eq!(
        said(ask(&cluster, "10.244.0.11:1").await),
        "default/web-1:1"
    );
    assert_eq!(questions(&api), ["list pods default metadata.name=web-1"]);
}

#[tokio::test(start_paused = true)]
async fn second_addresses_cost_a_list_only_where_there_are_any() {
    let api = FakeApi::default();
    let cluster = cluster(&api);
    api.apply(
        "
kind: Pod
metadata: {name: one}
spec: {containers: []}
status: {phase: Running, podIP: 10.1.1.1, podIPs: [{ip: 10.1.1.1}]}
",
    );
    let unknown = "[fd00::9]:80";
    for _ in 0..5 {
        assert_eq!(said(ask(&cluster, unknown).await), "outside: fd00::9");
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let samples = questions(&api)
        .into_iter()
        .filter(|call| call == "list pods");
    assert_eq!(samples.count(), 1);
}

/// The list of all Pods takes longer than any caller waits; each begins where the last gave up.
#[tokio::test(start_paused = true)]
async fn a_list_of_all_pods_outlives_the_callers_that_wait_for_it() {
    let api = FakeApi::default();
    let cluster = cluster(&api);
    for i in 0..1200 {
        api.apply(&format!(
            "
kind: Pod
metadata: {{name: pod-{i}}}
spec: {{containers: []}}
status: {{phase: Running, podIP: 10.1.0.1, podIPs: [{{ip: 10.1.0.1}}, {{ip: 'fd00:1::{i}'}}]}}
"
        ));
    }
    api.answer_slowly("list pods", Duration::from_secs(15));
    let caller =
        || tokio::time::timeout(Duration::from_secs(30), ask(&cluster, "[fd00:1::1199]:80"));
    assert!(caller().await.is_err());
    let _ = caller().await;
    assert_eq!(said(caller().await.unwrap()), "default/pod-1199:80");
    // An address outside the Pods' networks causes no such list.
    questions(&api);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        said(ask(&cluster, "[2001:db8::1]:80").await),
        "outside: 2001:db8::1"
    );
    let asked = questions(&api);
    assert_eq!(
        asked.iter().filter(|call| *call == "list pods").count(),
        1,
        "the sample"
    );
}

/// Pods without an address, and those with a node's, show nothing about the addresses of others.
#[tokio::test(start_paused = true)]
async fn second_addresses_behind_pods_that_have_none_to_tell() {
    let api = FakeApi::default();
    let cluster = cluster(&api);
    for i in 0..15 {
        api.apply(&format!(
            "
kind: Pod
metadata: {{name: agent-{i}}}
spec: {{hostNetwork: true, containers: []}}
status: {{phase: Running, podIP: 10.2.2.{i}, podIPs: [{{ip: 10.2.2.{i}}}]}}
---
kind: Pod
metadata: {{name: new-{i}}}
spec: {{containers: []}}
status: {{phase: Pending}}
"
        ));
    }
    let target = "[fd00::9]:80";
    assert_eq!(said(ask(&cluster, target).await), "outside: fd00::9");
    api.apply(
        "
kind: Pod
metadata: {name: web}
spec: {containers: []}
status: {phase: Running, podIP: 10.1.1.1, podIPs: [{ip: 10.1.1.1}, {ip: fd00::9}]}
",
    );
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(said(ask(&cluster, target).await), "default/web:80");
}
