//! `kubevpn check`: against a cluster in memory, the exit code and the document of what is not as it should be.

use std::net::TcpListener;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kubevpn_scenarios::{Proxy, run_to_end};
use kubevpn_sim::{AccessRule, Sim, User};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{Files, Rig, kubevpn};

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
    check_in(kubeconfig, more, &[]).await
}

/// The same with this in the environment.
async fn check_in(
    kubeconfig: &str,
    more: &[&str],
    environment: &[(&str, &str)],
) -> (Option<i32>, Value) {
    let words = ["check", "-o", "json", "--kubeconfig", kubeconfig];
    let environment = [&NEUTRAL[..], environment].concat();
    let output = run_to_end(kubevpn(), [&words[..], more].concat(), &environment);
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
        AccessRule::new(
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
        let forward = AccessRule::new(verbs, &[""], &["pods/portforward"]);
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

/// It has ended before it is shown, and so says the first line about it.
#[tokio::test]
async fn an_expired_certificate() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    let sim = Sim::builder().sample().start().await.unwrap();
    let mut config: Value = serde_yaml_ng::from_str(&sim.kubeconfig_yaml()).unwrap();
    config["users"][0]["user"] = serde_json::json!({
        "client-certificate-data": BASE64_STANDARD.encode(certificate.pem()),
        "client-key-data": BASE64_STANDARD.encode(key.serialize_pem()),
    });
    let files = Files::new();
    let kubeconfig = files.write("config", &config.to_string());
    let (code, document) = check(&kubeconfig, &FREE).await;
    assert_eq!(code, Some(32), "{document:#}");
    let words = "the client certificate of user sim expired ";
    says(&document, "problem", "credentials", words);
}

/// `ALL_PROXY` that was pasted, and not set by `kubevpn env`.
#[tokio::test]
async fn a_proxy_at_ourselves() {
    let rig = Rig::start().await;
    let proxy = Proxy::start(kubevpn(), Path::new(&rig.kubeconfig), &[]);
    let proxy = proxy.await.unwrap();
    let all = format!("socks5h://{}", proxy.socks);
    let environment = [("ALL_PROXY", &*all)];
    let (code, document) = check_in(&rig.kubeconfig, &FREE, &environment).await;
    assert_eq!(code, Some(0), "{document:#}");
    let words = format!("ALL_PROXY={all} is kubevpn's own");
    says(&document, "warning", "environment", &words);
}

/// An API server in whose answers it is 2020.
#[tokio::test]
async fn a_skewed_clock() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let body = r#"{"major":"1","minor":"34","gitVersion":"v1.34.0"}"#;
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nDate: Wed, 01 Jan 2020 00:00:00 GMT\r\nContent-Type: application/json\r\n\
                     Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                let mut request = Vec::new();
                while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                    if stream.read_buf(&mut request).await.unwrap() == 0 {
                        return;
                    }
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
                // A body that nobody reads would make it a reset.
                let _ = stream.read_to_end(&mut request).await;
            });
        }
    });
    let files = Files::new();
    let config = format!(
        "{{current-context: a, contexts: [{{name: a, context: {{cluster: a}}}}], clusters: [{{name: a, cluster: {{server: 'http://{server}'}}}}]}}"
    );
    let (_, document) = check(&files.write("config", &config), &FREE).await;
    let words = "ahead of the API server's";
    says(&document, "warning", "clock", words);
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
