//! Pod checks while the watches deliver nothing. The clock is paused.

use std::time::Duration;

use super::*;
use crate::PodCheck;

/// A Service with these endpoints, each in flow style.
fn service(spec: &str, endpoints: &[String]) -> String {
    let endpoints = endpoints.join(", ");
    format!(
        "
kind: Service
metadata: {{name: shop}}
spec: {{clusterIP: 10.96.0.77, selector: {{app: shop}}, ports: [{{port: 80}}], {spec}}}
---
kind: EndpointSlice
metadata: {{name: shop-x, labels: {{kubernetes.io/service-name: shop}}}}
addressType: IPv4
endpoints: [{endpoints}]
ports: [{{port: 80}}]
"
    )
}

fn endpoint(pod: &str, conditions: &str) -> String {
    format!(
        "{{addresses: [10.1.1.1], conditions: {{{conditions}}}, targetRef: {{kind: Pod, name: {pod}, uid: u-{pod}}}}}"
    )
}

fn pod(name: &str, meta: &str, status: &str) -> String {
    format!("{{kind: Pod, metadata: {{name: {name}, {meta}}}, status: {{{status}}}}}")
}

const READY: &str = "phase: Running, conditions: [{type: Ready, status: 'True'}]";
const UNREADY: &str = "phase: Running, conditions: [{type: Ready, status: 'False'}]";
const DELETED: &str = "uid: u-a, deletionTimestamp: '2026-01-01T00:00:00Z'";

async fn candidates(cluster: &Cluster) -> Subscription {
    match ask(cluster, "shop:80").await {
        Ok(Answer::Pods(candidates)) => candidates,
        other => panic!("{other:?}"),
    }
}

/// Counts the reads of Pods from now on.
fn asked_of_pods(api: &FakeApi) -> Vec<String> {
    let mut asked = api.asked();
    asked.retain(|call| call.contains(" pods "));
    asked
}

#[tokio::test(start_paused = true)]
async fn one_pod() {
    let ready = "ready: true";
    let serving = "ready: false, serving: true, terminating: true";
    let published = "publishNotReadyAddresses: true";
    for (why, spec, conditions, object, check) in [
        (
            "as it was",
            "",
            ready,
            pod("a", "uid: u-a", READY),
            PodCheck::Same,
        ),
        ("gone", "", ready, String::new(), PodCheck::Ended),
        (
            "its successor",
            "",
            ready,
            pod("a", "uid: u-b", READY),
            PodCheck::Ended,
        ),
        (
            "evicted",
            "",
            ready,
            pod("a", "uid: u-a", "phase: Failed"),
            PodCheck::Ended,
        ),
        (
            "ending",
            "",
            ready,
            pod("a", DELETED, READY),
            PodCheck::Ended,
        ),
        (
            "known to be ending",
            "",
            serving,
            pod("a", DELETED, READY),
            PodCheck::Unclear,
        ),
        (
            "unready",
            "",
            ready,
            pod("a", "uid: u-a", UNREADY),
            PodCheck::Unclear,
        ),
        (
            "published unready",
            published,
            ready,
            pod("a", "uid: u-a", UNREADY),
            PodCheck::Same,
        ),
        (
            "published to its end",
            published,
            ready,
            pod("a", DELETED, UNREADY),
            PodCheck::Unclear,
        ),
    ] {
        let api = FakeApi::default();
        api.apply(&service(spec, &[endpoint("a", conditions)]));
        if !object.is_empty() {
            api.apply(&object);
        }
        let candidates = candidates(&cluster(&api)).await;
        assert_eq!(candidates.check_pods().await, check, "{why}");
        assert_eq!(asked_of_pods(&api), ["get pods default a"], "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_ended_stands_out_and_few_are_asked_for() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let api = FakeApi::default();
    api.apply(&service("", &names.map(|name| endpoint(name, ""))));
    for name in names {
        api.apply(&pod(name, &format!("uid: u-{name}"), READY));
    }
    let candidates = candidates(&cluster(&api)).await;
    api.asked();
    assert_eq!(candidates.check_pods().await, PodCheck::Same);
    assert_eq!(asked_of_pods(&api).len(), 4);
    api.apply(&pod("b", "uid: u-b", UNREADY));
    assert_eq!(candidates.check_pods().await, PodCheck::Unclear);
    api.delete("pods", "default", "c");
    assert_eq!(candidates.check_pods().await, PodCheck::Ended);
}

#[tokio::test(start_paused = true)]
async fn a_forbidden_check_is_not_repeated() {
    let api = FakeApi::default();
    api.apply(&service("", &[endpoint("a", "")]));
    api.apply(&pod("a", "uid: u-a", READY));
    let rights = ["services default", "endpointslices default"];
    let verbs = ["list", "watch"];
    let rules = rights.map(|what| verbs.map(|verb| format!("{verb} {what}")));
    let mut rules: Vec<_> = rules.iter().flatten().map(String::as_str).collect();
    api.allow_only(&rules);
    let cluster = cluster(&api);
    let candidates = candidates(&cluster).await;
    for _ in 0..3 {
        assert_eq!(candidates.check_pods().await, PodCheck::Unclear);
    }
    assert_eq!(asked_of_pods(&api), ["get pods default a"]);
    rules.push("get pods default");
    api.allow_only(&rules);
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert_eq!(candidates.check_pods().await, PodCheck::Same);
}

#[tokio::test(start_paused = true)]
async fn no_answer_is_none() {
    let api = FakeApi::default();
    api.apply(&service("", &[endpoint("a", "")]));
    api.apply(&pod("a", "uid: u-a", READY));
    let candidates = candidates(&cluster(&api)).await;
    api.away(true);
    assert_eq!(candidates.check_pods().await, PodCheck::Unclear);
    api.away(false);
    // A connection that broke during the call is not an answer.
    api.break_requests(1);
    assert_eq!(candidates.check_pods().await, PodCheck::Same);
    assert_eq!(
        Subscription::from(Candidates::new("any", Vec::new()))
            .check_pods()
            .await,
        PodCheck::Unclear
    );
}
