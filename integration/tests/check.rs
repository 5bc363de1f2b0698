//! `kubevpn check`: against a cluster in memory, the exit code and the document of what is not as it should be.

use std::net::TcpListener;
use std::path::Path;

use kubevpn_scenarios::run_to_end;
use kubevpn_sim::{Rule, Sim, User};
use serde_json::Value;

use crate::{Files, kubevpn};

/// Another machine's proxies and daemon are not this test's.
const NEUTRAL: [(&str, &str); 7] = [
    ("HTTP_PROXY", ""),
    ("http_proxy", ""),
    ("HTTPS_PROXY", ""),
    ("https_proxy", ""),
    ("ALL_PROXY", ""),
    ("all_proxy", ""),
    ("KUBEVPN_HOME", "/nonexistent/kubevpn"),
];

/// The exit code and the document, which is what the schema says.
async fn check(kubeconfig: &str, more: &[&str]) -> (Option<i32>, Value) {
    let words = ["check", "-o", "json", "--kubeconfig", kubeconfig];
    let output = run_to_end(kubevpn(), [&words[..], more].concat(), &NEUTRAL);
    let output = output.await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let document: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/check.schema.json");
    let schema = serde_json::from_slice(&std::fs::read(schema).unwrap()).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = schema
        .iter_errors(&document)
        .map(|e| e.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?} in {document}");
    (output.status.code(), document)
}

/// A port that nobody has.
const FREE: [&str; 2] = ["--listen-socks", "127.0.0.1:0"];

/// Expects a finding of this level and topic with these words.
fn says(document: &Value, level: &str, topic: &str, words: &str) {
    let mut findings = document["findings"].as_array().unwrap().iter();
    let found = findings.any(|finding| {
        let text = finding["text"].as_str().unwrap();
        finding["level"] == level && finding["topic"] == topic && text.contains(words)
    });
    assert!(found, "no {level} of {topic} with {words:?}: {document:#}");
}

#[tokio::test]
async fn a_good_cluster() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let files = Files::new();
    let kubeconfig = files.write("config", &sim.kubeconfig_yaml());
    let (code, document) = check(&kubeconfig, &FREE).await;
    assert_eq!(
        (code, &document["problems"]),
        (Some(0), &0.into()),
        "{document:#}"
    );
    says(
        &document,
        "ok",
        "api-server",
        "runs v1.34.0; a round trip takes",
    );
    says(
        &document,
        "ok",
        "credentials",
        "accepts the token of user sim",
    );
    says(
        &document,
        "ok",
        "access",
        "you may forward ports of Pods in default",
    );
    for transport in ["spdy:", "spdy-ws:", "ws:"] {
        says(&document, "ok", "transport", transport);
    }
    says(&document, "ok", "listener", "is free");
    assert_eq!(document["role"], Value::Null);
    // On to a target.
    let words = ["reviews:80", FREE[0], FREE[1]];
    let (code, document) = check(&kubeconfig, &words).await;
    assert_eq!(code, Some(0), "{document:#}");
    assert_eq!(document["target"]["service"], "default/reviews");
    let words = ["nosuch:80", FREE[0], FREE[1]];
    let (code, document) = check(&kubeconfig, &words).await;
    assert_eq!(code, Some(50), "{document:#}");
    assert_eq!(document["target"]["refusal"]["class"], "name_not_found");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, document) = check(&kubeconfig, &["--listen-socks", &address]).await;
    drop(taken);
    assert_eq!(code, Some(53), "{document:#}");
    let process = format!("(process {})", std::process::id());
    says(&document, "problem", "listener", &process);
}

/// WebSocket asks to `get`, and since 1.35 for `create` too.
#[tokio::test]
async fn rights_that_are_missing() {
    let reader = || {
        Rule::new(
            &["get", "list", "watch"],
            &["*"],
            &["services", "endpointslices", "pods"],
        )
    };
    for (version, verbs, code, level, words) in [
        ("1.34", &["get"][..], 0, "warning", "WebSocket works until"),
        (
            "1.35",
            &["get"],
            31,
            "problem",
            "Kubernetes 1.35 asks for create",
        ),
        (
            "1.34",
            &["create"],
            0,
            "warning",
            "SPDY works, WebSocket does not",
        ),
        (
            "1.34",
            &[],
            31,
            "problem",
            "you may not forward ports of Pods",
        ),
    ] {
        let forward = Rule::new(verbs, &[""], &["pods/portforward"]);
        let jane = User::new("jane", "jane-token").may(reader()).may(forward);
        let sim = Sim::builder().sample().version(version).user(jane).start();
        let sim = sim.await.unwrap();
        let files = Files::new();
        let kubeconfig = files.write("config", &sim.kubeconfig_yaml_for("jane-token"));
        let (ended, document) = check(&kubeconfig, &FREE).await;
        assert_eq!(ended, Some(code), "{version} {verbs:?}: {document:#}");
        says(&document, level, "access", words);
        let role = document["role"].as_str().unwrap();
        assert!(role.contains("pods/portforward"), "{role}");
    }
}

#[tokio::test]
async fn clusters_that_cannot_be_used() {
    let files = Files::new();
    let (code, document) = check("/nonexistent/config", &FREE).await;
    assert_eq!(code, Some(20));
    says(&document, "problem", "kubeconfig", "/nonexistent/config");
    let sim = Sim::builder().sample().start().await.unwrap();
    // {"exp":1}
    let expired = files.write("expired", &sim.kubeconfig_yaml_for("e30.eyJleHAiOjF9.x"));
    let (code, document) = check(&expired, &FREE).await;
    assert_eq!(code, Some(32));
    says(
        &document,
        "problem",
        "credentials",
        "the token of user sim expired",
    );
    let other = Sim::builder().start().await.unwrap();
    let wrong = sim
        .kubeconfig_yaml()
        .replace(sim.server_url(), other.server_url());
    let wrong = files.write("wrong", &wrong);
    let (code, document) = check(&wrong, &FREE).await;
    assert_eq!(code, Some(40));
    says(&document, "problem", "api-server", "certificate");
    let away = files.write("away", &sim.kubeconfig_yaml());
    sim.faults().go_away();
    let (code, document) = check(&away, &FREE).await;
    assert_eq!(code, Some(40));
    says(&document, "problem", "api-server", "cannot be reached");
}

/// For people: the same as lines, and the steps to the target below.
#[tokio::test]
async fn lines_for_people() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let files = Files::new();
    let kubeconfig = files.write("config", &sim.kubeconfig_yaml());
    let words = ["check", "reviews:80", "--kubeconfig", &kubeconfig];
    let output = run_to_end(kubevpn(), [&words[..], &FREE].concat(), &NEUTRAL);
    let output = output.await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let (findings, steps) = said.split_once("\n\n").unwrap();
    assert!(
        findings.contains("ok       access       you may forward"),
        "{said}"
    );
    assert!(steps.contains(" ms  parse    the name reviews"), "{said}");
    assert!(
        steps.contains("stream   open, to default/reviews-"),
        "{said}"
    );
}
