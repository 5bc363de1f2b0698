//! Credential plugins: run when needed, once, and what they do wrong.
#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;

use futures_util::future::join_all;
use kube::config::ExecInteractiveMode;
use kubevpn_target::Refusal;

use crate::failures::failure;
use crate::support::{Server, Setup, Speaks};

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
    // kube asks once for a token, and once more for the certificate.
    assert_eq!(runs(&setup), 2);
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
    assert_eq!(runs(&setup), 2);

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
    // Nothing it printed is passed on, at any depth.
    let chain = format!("{error:?}");
    assert!(!chain.contains("secret-on-stdout"), "{chain}");
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn it_answers_with_nothing_of_use() {
    let server = Server::start().await;
    for script in [
        "echo 'no json: ['",
        "echo '{}'",
        &credential(&serde_json::json!({})),
    ] {
        let error = failure(&with_plugin(&server, script)).await;
        assert_eq!(error.refusal(), Refusal::Unauthenticated, "{error}");
        assert!(
            error
                .to_string()
                .contains("gave neither a token nor a certificate"),
            "{error}"
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
async fn it_asks_questions_only_where_somebody_can_answer() {
    let server = Server::start().await;
    let setup = with_plugin(&server, "true");
    let exec = setup.load().config.auth_info.exec.unwrap();
    assert_eq!(exec.interactive_mode, Some(ExecInteractiveMode::Never));
}

#[tokio::test]
async fn a_token_that_runs_out_is_renewed() {
    let server = Server::start().await;
    // Out of date by the time it is made: every request asks for another.
    let script = credential(
        &serde_json::json!({"token": "sesame", "expirationTimestamp": "2020-01-01T00:00:00Z"}),
    );
    let setup = with_plugin(&server, &script);
    let client = setup.client();
    client.apiserver_version().await.unwrap();
    client.apiserver_version().await.unwrap();
    assert_eq!(runs(&setup), 3, "the first, and one renewal each");

    // It fails to be.
    setup.file("plugin", "#!/bin/sh\nexit 1\n");
    let error = client.apiserver_version().await.unwrap_err();
    let action = kubevpn_client::Action {
        verb: "get",
        resource: "pods",
        api_group: "",
        namespace: None,
        name: None,
    };
    let error = kubevpn_client::classify_api(error, &action);
    assert_eq!(error.refusal(), Refusal::Unauthenticated);
    assert!(
        error.to_string().contains("failed (exit status: 1)"),
        "{error}"
    );
}
