//! Credential plugins: run once, when needed; and their failures.

use std::os::unix::fs::PermissionsExt;

use futures_util::future::join_all;
use kube::config::ExecInteractiveMode;
use kubevpn_target::Refusal;
use serde_json::json;

use crate::failures::failure;
use crate::support::{Server, Setup, Speaks, upgrade};

/// A setup whose user has this script for a plugin; each run adds a line to `runs`.
fn with_plugin(server: &Server, script: &str) -> Setup {
    let setup = Setup::of(server);
    let runs = setup.path("runs");
    let script = format!("#!/bin/sh\necho run >> '{}'\n{script}\n", runs.display());
    let path = setup.file("plugin", &script);
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o700)).unwrap();
    setup
        .user("exec:")
        .user("  apiVersion: client.authentication.k8s.io/v1")
        .user("  command: ./plugin")
        .user("  interactiveMode: IfAvailable")
}

fn runs(setup: &Setup) -> usize {
    let runs = std::fs::read_to_string(setup.path("runs"));
    runs.unwrap_or_default().lines().count()
}

fn credential(status: &serde_json::Value) -> String {
    let credential = serde_json::json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": status,
    });
    format!("cat <<'EOF'\n{credential}\nEOF")
}

#[tokio::test]
async fn it_runs_once_when_the_first_request_needs_it() {
    let server = Server::start().await;
    let script = credential(&serde_json::json!({"token": "sesame"}));
    let setup = with_plugin(&server, &script);
    let client = setup.client();
    assert_eq!(runs(&setup), 0);
    let calls = (0..20).map(|_| async { client.apiserver_version().await.unwrap() });
    join_all(calls).await;
    assert_eq!(runs(&setup), 1);
    let seen = server.seen();
    assert_eq!(seen.len(), 20);
    assert!(
        seen.iter()
            .all(|s| s.headers["authorization"] == "Bearer sesame")
    );
}

#[tokio::test]
async fn its_certificate_is_shown() {
    let server = Server::speaking(Speaks::MutualTls).await;
    let jane = server.ca.issue(&["jane"], 4000);
    let script = credential(&serde_json::json!({
        "clientCertificateData": jane.pem,
        "clientKeyData": jane.key_pem(),
    }));
    let setup = with_plugin(&server, &script);
    let client = setup.client();
    for _ in 0..3 {
        client.apiserver_version().await.unwrap();
    }
    assert!(server.last().certificate);
    assert_eq!(runs(&setup), 1);
}

#[tokio::test]
async fn it_fails_and_is_asked_again() {
    let server = Server::start().await;
    let setup = with_plugin(
        &server,
        "echo secret-on-stdout; echo first >&2; echo 'please log in' >&2; exit 3",
    );
    let client = setup.client();
    let failures = join_all((0..5).map(|_| client.apiserver_version())).await;
    assert!(failures.iter().all(Result::is_err));
    assert_eq!(runs(&setup), 1, "all five have the one outcome");
    client.apiserver_version().await.unwrap_err();
    assert_eq!(runs(&setup), 1, "nor is it run for every request");

    let error = failure(&setup).await;
    assert_eq!(error.refusal(), Refusal::Unauthenticated);
    let said = error.to_string();
    let plugin = setup.path("./plugin");
    assert_eq!(
        said,
        format!(
            "cannot list services in namespace shop: the credential plugin {:?} failed (exit status: 3; it said: please log in): run it by hand, or log in again",
            plugin.to_str().unwrap()
        )
    );
    // Nothing that it printed is in the error or its causes.
    let chain = format!("{error:?}");
    assert!(!chain.contains("secret-on-stdout"), "{chain}");
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn invalid_output_of_a_plugin() {
    let server = Server::start().await;
    let identity = server.ca.issue(&["jane"], 4000);
    let other = server.ca.issue(&["jane"], 4000);
    let status = |status: serde_json::Value| credential(&status);
    let foreign = "is no ExecCredential of the apiVersion that the kubeconfig names";
    for (script, reason) in [
        ("echo 'secret: ['".to_owned(), foreign),
        ("echo '{}'".to_owned(), foreign),
        (
            "head -c 3000000 /dev/zero | tr '\\0' s; true".to_owned(),
            foreign,
        ),
        (
            status(json!({"token": "secret"})).replace("k8s.io/v1", "k8s.io/v1beta1"),
            foreign,
        ),
        (status(json!({})), "gave neither a token nor a certificate"),
        (
            status(json!({"token": ""})),
            "gave neither a token nor a certificate",
        ),
        (
            status(json!({"token": "secret\n"})),
            "its token holds characters that no HTTP header can",
        ),
        (
            status(json!({"token": "secret", "expirationTimestamp": "secret"})),
            "is no time as RFC 3339 has it",
        ),
        (
            status(json!({"clientKeyData": "secret"})),
            "a key without its certificate",
        ),
        (
            status(json!({"clientKeyData": "secret", "clientCertificateData": identity.pem})),
            "the client key holds no unencrypted PEM private key",
        ),
        (
            status(
                json!({"clientKeyData": other.key_pem(), "clientCertificateData": identity.pem}),
            ),
            "the client key is not the certificate's",
        ),
    ] {
        let error = failure(&with_plugin(&server, &script)).await;
        assert_eq!(error.refusal(), Refusal::Unauthenticated, "{error}");
        assert!(error.to_string().contains(reason), "{reason}: {error}");
        let whole = format!("{error:?}");
        assert!(
            !whole.contains("secret") && !whole.contains("BEGIN"),
            "{whole}"
        );
    }
    assert_eq!(server.connections(), 0, "nobody is not who we are");
}

#[tokio::test]
async fn it_is_gone_by_the_time_it_is_needed() {
    let server = Server::start().await;
    let setup = with_plugin(&server, "true").user("  installHint: brew install plugin");
    let client = setup.client();
    std::fs::remove_file(setup.path("plugin")).unwrap();
    let error = client.apiserver_version().await.unwrap_err();
    let error = kubevpn_client::classify_api(
        error,
        &kubevpn_client::Action {
            verb: "get",
            resource: "pods",
            api_group: "",
            namespace: None,
            name: None,
        },
    );
    assert_eq!(error.refusal(), Refusal::Unauthenticated);
    let said = error.to_string();
    assert!(
        said.contains("is not installed or not on PATH: brew install plugin"),
        "{said}"
    );
}

#[tokio::test]
async fn a_plugin_prompts_only_on_a_terminal() {
    let server = Server::start().await;
    let setup = with_plugin(&server, "true");
    let exec = setup.load().config.auth_info.exec.unwrap();
    assert_eq!(exec.interactive_mode, Some(ExecInteractiveMode::Never));
}

/// The time in this many seconds, in a plugin's format.
fn in_seconds(seconds: i64) -> String {
    let now = jiff::Timestamp::now();
    (now + jiff::SignedDuration::from_secs(seconds)).to_string()
}

#[tokio::test]
async fn a_token_is_used_until_its_end() {
    let server = Server::start().await;
    // Less than a minute to live.
    let script = credential(&json!({"token": "sesame", "expirationTimestamp": in_seconds(40)}));
    let setup = with_plugin(&server, &script);
    let client = setup.client();
    for _ in 0..6 {
        client.apiserver_version().await.unwrap();
    }
    assert_eq!(runs(&setup), 1);

    // A credential that has expired on arrival does not make it run for every request either.
    let script = credential(&json!({"token": "sesame", "expirationTimestamp": in_seconds(-40)}));
    let setup = with_plugin(&server, &script);
    let client = setup.client();
    for _ in 0..6 {
        client.apiserver_version().await.unwrap();
    }
    assert_eq!(runs(&setup), 1);
}

#[tokio::test]
async fn a_certificate_that_runs_out_is_replaced_with_its_connections() {
    let server = Server::speaking(Speaks::MutualTls).await;
    let (jane, joe) = (
        server.ca.issue(&["jane"], 4000),
        server.ca.issue(&["joe"], 4000),
    );
    let status = |identity: &crate::support::Identity, seconds| {
        credential(&json!({
            "clientCertificateData": identity.pem,
            "clientKeyData": identity.key_pem(),
            "expirationTimestamp": in_seconds(seconds),
        }))
    };
    let setup = with_plugin(&server, &status(&jane, -1));
    let client = setup.client();
    client.apiserver_version().await.unwrap();
    setup.file("plugin", &format!("#!/bin/sh\n{}\n", status(&joe, 4000)));
    let before = server.connections();
    // The credential has expired, and the minimum time between two runs has passed.
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while server.connections() == before {
        assert!(tokio::time::Instant::now() < until, "it is never run again");
        client.apiserver_version().await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(server.last().certificate);
}

/// TLS 1.3 reports it after the handshake, when hyper keeps only its text.
#[tokio::test]
async fn a_certificate_that_is_refused_in_tls_is_made_again() {
    let server = Server::speaking(Speaks::MutualTls).await;
    let status = |identity: &crate::support::Identity| {
        credential(
            &json!({"clientCertificateData": identity.pem, "clientKeyData": identity.key_pem()}),
        )
    };
    let stale = server.ca.issue(&["jane"], 2001);
    let good = server.ca.issue(&["jane"], 4000);
    for upgraded in [false, true] {
        let setup = with_plugin(&server, &status(&stale));
        let script = format!("{}\ncp \"$0.next\" \"$0\"", status(&stale));
        let setup_runs = setup.path("runs");
        let first = format!(
            "#!/bin/sh\necho run >> '{}'\n{script}\n",
            setup_runs.display()
        );
        setup.file("plugin", &first);
        let next = format!(
            "#!/bin/sh\necho run >> '{}'\n{}\n",
            setup_runs.display(),
            status(&good)
        );
        setup.file("plugin.next", &next);
        let client = setup.client();
        match upgraded {
            false => drop(client.apiserver_version().await.unwrap()),
            true => drop(client.send(upgrade("/echo")).await.unwrap()),
        }
        assert_eq!(runs(&setup), 2);
    }
}

#[tokio::test]
async fn token_and_certificate_are_both_shown() {
    let server = Server::speaking(Speaks::MutualTls).await;
    let jane = server.ca.issue(&["jane"], 4000);
    let script = credential(&json!({
        "token": "sesame",
        "clientCertificateData": jane.pem,
        "clientKeyData": jane.key_pem(),
    }));
    let setup = with_plugin(&server, &script);
    setup.client().apiserver_version().await.unwrap();
    assert!(server.last().certificate);
    assert_eq!(server.last().headers["authorization"], "Bearer sesame");
    assert_eq!(runs(&setup), 1);
}

/// A slow plugin is distinguished from a slow API server, and keeps running: the next request may get its credential.
#[tokio::test]
async fn a_plugin_that_waits_for_a_person() {
    let server = Server::start().await;
    let go = tempfile::tempdir().unwrap();
    let fifo = go.path().join("go");
    fifo_at(&fifo);
    let script = format!(
        "cat '{}' >/dev/null\n{}",
        fifo.display(),
        credential(&json!({"token": "sesame"}))
    );
    let mut setup = with_plugin(&server, &script);
    setup.options.plugin_timeout = std::time::Duration::from_millis(50);
    let client = setup.client();
    let error = client.apiserver_version().await.unwrap_err();
    let error = kubevpn_client::classify_api(error, &crate::failures::LIST);
    assert_eq!(error.refusal(), Refusal::Unauthenticated);
    let said = error.to_string();
    assert!(
        said.contains("has not answered for 0ns: it may wait for a person"),
        "{said}"
    );
    // Its user is there.
    let answered = tokio::task::spawn_blocking(move || std::fs::write(fifo, "go"));
    answered.await.unwrap().unwrap();
    while client.apiserver_version().await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(runs(&setup), 1);
}

/// A pipe that a script can wait on.
fn fifo_at(path: &std::path::Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

#[tokio::test]
async fn a_plugin_that_fails_later() {
    let server = Server::start().await;
    let script = credential(&json!({"token": "sesame", "expirationTimestamp": in_seconds(-40)}));
    let setup = with_plugin(&server, &script);
    let (client, renewal) = setup.renewable();
    client.apiserver_version().await.unwrap();
    assert!(renewal.trouble().is_none());
    setup.file("plugin", "#!/bin/sh\nexit 1\n");
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    let error = loop {
        assert!(tokio::time::Instant::now() < until, "it is never run again");
        match client.apiserver_version().await {
            Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            Err(error) => break error,
        }
    };
    let error = kubevpn_client::classify_api(error, &crate::failures::LIST);
    assert_eq!(error.refusal(), Refusal::Unauthenticated);
    assert!(
        error.to_string().contains("failed (exit status: 1)"),
        "{error}"
    );
    let trouble = renewal.trouble().unwrap();
    assert_eq!(trouble.refusal(), Refusal::Unauthenticated);
    assert!(
        trouble
            .to_string()
            .contains("run it by hand, or log in again"),
        "{trouble}"
    );
    // An explicit login does not wait for the minimum time between runs.
    setup.file(
        "plugin",
        &format!("#!/bin/sh\n{}\n", credential(&json!({"token": "anew"}))),
    );
    renewal.log_in().await.unwrap();
    assert!(renewal.trouble().is_none());
    client.apiserver_version().await.unwrap();
    assert_eq!(server.last().headers["authorization"], "Bearer anew");
}
