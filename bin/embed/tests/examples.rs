//! Runs the examples on the simulation, and with `KUBEVPN_LAB=1` on the real cluster.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use kubevpn_sim::Sim;
use tokio::process::Command;

/// Time limit of a run.
const LIMIT: Duration = Duration::from_secs(60);

/// Each example with its arguments, the beginning of its output, and a part of it.
const EXAMPLES: [(&str, &[&str], &str, &str); 6] = [
    ("embed-stream", &["productpage:9080"], OK, OF_THE_SERVICE),
    ("embed-forward", &["productpage:9080"], OK, OF_THE_SERVICE),
    (
        "embed-http",
        &["http://productpage:9080/"],
        "{",
        OF_THE_SERVICE,
    ),
    (
        "embed-reqwest",
        &["http://productpage:9080/"],
        "{",
        OF_THE_SERVICE,
    ),
    (
        "embed-layer",
        &["productpage:9080", "9080"],
        "productpage:9080 is default/productpage-",
        ":9080",
    ),
    (
        "embed-layer",
        &["productpage:9080", "443"],
        "productpage:9080: ",
        "another port",
    ),
];
const OK: &str = "HTTP/1.1 200 OK\r\n";
const OF_THE_SERVICE: &str = r#""service":"productpage""#;

#[tokio::test]
async fn examples_on_the_simulation() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = sim.write_kubeconfig(dir.path()).unwrap();
    every_example(&kubeconfig).await;
    let user_agent = concat!("kubevpn-embed/", env!("CARGO_PKG_VERSION"));
    let asked = sim.requests();
    assert!(!asked.is_empty());
    for request in asked {
        assert_eq!(request.user_agent, user_agent, "{}", request.uri);
    }
}

/// A missing cluster is a failure if it is requested.
#[tokio::test]
async fn examples_on_the_real_cluster() {
    if std::env::var_os("KUBEVPN_LAB").is_some() {
        let lab = lab::Lab::attach().await.unwrap();
        every_example(&lab.kubeconfig()).await;
    }
}

#[tokio::test]
async fn example_without_a_kubeconfig_fails_with_the_reason() {
    let ended = run("embed-stream", &["web:80"], Path::new("/nowhere/at/all")).await;
    assert!(!ended.status.success());
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("/nowhere/at/all"), "{said}");
}

async fn every_example(kubeconfig: &Path) {
    for (name, arguments, begins, contains) in EXAMPLES {
        let ended = run(name, arguments, kubeconfig).await;
        let said = String::from_utf8_lossy(&ended.stdout);
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{name}: {errors}");
        assert!(
            said.starts_with(begins) && said.contains(contains),
            "{name}: {said}"
        );
    }
}

async fn run(name: &str, arguments: &[&str], kubeconfig: &Path) -> Output {
    let program = example(name);
    let ended = Command::new(&program)
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .kill_on_drop(true)
        .output();
    let ended = tokio::time::timeout(LIMIT, ended).await.expect("it hangs");
    ended.unwrap_or_else(|e| {
        panic!(
            "cannot run {}: {e}; `cargo test -p kubevpn-embed` builds it, `--test examples` alone does not",
            program.display()
        )
    })
}

/// Cargo puts examples beside the directory of the tests.
fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.join("examples")
        .join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}
