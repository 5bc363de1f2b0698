//! The command line: what it says, and the exit code it ends with, when it cannot do what was asked.

mod check;
mod craft;
mod first_minute;
mod help;
mod listeners;
mod programs;
#[cfg(target_os = "linux")]
mod terminal;
#[cfg(target_os = "linux")]
mod top;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Output;

use kubevpn_scenarios::{Proxy, run_to_end};
use kubevpn_sim::Sim;

fn kubevpn() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_kubevpn"))
}

struct Ended {
    code: Option<i32>,
    said: String,
}

async fn run(args: &[&str], environment: &[(&str, &str)]) -> Ended {
    let Output {
        status,
        stdout,
        stderr,
    } = run_to_end(kubevpn(), args, environment).await.unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr)
    );
    Ended {
        code: status.code(),
        said,
    }
}

impl Ended {
    /// This exit code, and all of these words.
    fn with(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.said);
        for word in words {
            assert!(
                self.said.contains(word),
                "{word:?} is missing from:\n{}",
                self.said
            );
        }
        assert!(!self.said.contains("panicked"), "{}", self.said);
    }
}

const FREE: [&str; 3] = ["proxy-out", "--listen-socks", "127.0.0.1:0"];

async fn proxy_out(args: &[&str], environment: &[(&str, &str)]) -> Ended {
    run(&[&FREE[..], args].concat(), environment).await
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// A cluster, and its kubeconfig.
struct Rig {
    _sim: Sim,
    files: Files,
    kubeconfig: String,
}

impl Rig {
    async fn start() -> Self {
        let sim = Sim::builder().sample().start().await.unwrap();
        let files = Files::new();
        let kubeconfig = sim.write_kubeconfig(files.0.path()).unwrap();
        Self {
            _sim: sim,
            files,
            kubeconfig: kubeconfig.to_str().unwrap().into(),
        }
    }
}

/// `| head`: who has read enough is no failure, and no reason for a proxy to end.
#[tokio::test]
async fn nobody_reads_the_output() {
    let files = Files::new();
    let kubeconfig = files.write(
        "config",
        "{current-context: a, contexts: [{name: a, context: {cluster: a}}], clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}]}",
    );
    for words in [
        &["env", "--kubeconfig", &*kubeconfig, "--http", "3128"][..],
        &["version"],
        &["completion", "bash"],
        &["status"],
        &["status", "--watch"],
        &["quit"],
        &["resolve", "web", "--kubeconfig", &kubeconfig],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = tokio::process::Command::new(kubevpn());
        command
            .args(words)
            .env("KUBEVPN_HOME", files.0.path().join("home"))
            .stdout(writer);
        let output = command
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(command);
        let output = tokio::time::timeout(
            std::time::Duration::from_secs(60),
            output.wait_with_output(),
        );
        let output = output.await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // That one has a failure of its own to tell.
        let code = if words[0] == "resolve" { 40 } else { 0 };
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        assert!(code != 0 || said.is_empty(), "{words:?}: {said}");
    }
    let home = files.0.path().join("home");
    std::fs::create_dir_all(home.join("log")).unwrap();
    std::fs::create_dir_all(home.join("connections")).unwrap();
    std::fs::write(home.join("log/daemon.log"), "a line\n").unwrap();
    let sim = Sim::builder().sample().start().await.unwrap();
    let of_sim = sim.write_kubeconfig(files.0.path()).unwrap();
    let of_sim = of_sim.to_str().unwrap();
    for words in [
        &["version"][..],
        &["--help"],
        &["connect", "--help"],
        &["--version"],
        &["logs"],
        &["status"],
        &["quit"],
        &["completion", "bash"],
        &["env", "--kubeconfig", &kubeconfig],
        &["pac", "--kubeconfig", of_sim],
        &["resolve", "reviews", "--kubeconfig", of_sim],
        &["resolve", "reviews:80", "--kubeconfig", of_sim],
        &[
            "resolve",
            "reviews:80",
            "--kubeconfig",
            of_sim,
            "-o",
            "json",
        ],
    ] {
        let Ok(full) = std::fs::File::options().write(true).open("/dev/full") else {
            break;
        };
        let mut command = tokio::process::Command::new(kubevpn());
        let output = command
            .args(words)
            .env("KUBEVPN_HOME", &home)
            .stdout(full)
            .stderr(std::process::Stdio::piped());
        let output = output.spawn().unwrap().wait_with_output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        assert!(said.contains("No space left"), "{words:?}: {said}");
    }
}

/// Who types a password, or logs in with a browser, is not the API server that does not answer: that has 10 s.
#[tokio::test]
async fn a_login_has_the_time_it_takes() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let files = Files::new();
    let whole = sim.kubeconfig_yaml();
    let mut config: serde_json::Value = serde_yaml_ng::from_str(&whole).unwrap();
    let token = config["users"][0]["user"]["token"].take();
    let credential = serde_json::json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": token},
    });
    config["users"][0]["user"] = serde_json::json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "sh",
        "args": ["-c", format!("sleep 11; echo '{credential}'")],
        "interactiveMode": "IfAvailable",
    }});
    let kubeconfig = files.write("config", &config.to_string());
    run(&["run", "--kubeconfig", &kubeconfig, "--", "true"], &[])
        .await
        .with(0, &[]);
}

/// A kubeconfig with one context.
fn contexts_named(files: &Files, name: &str) -> String {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncontexts: [{{name: {name}, context: {{cluster: a, user: a}}}}]\n\
         clusters: [{{name: a, cluster: {{server: 'https://127.0.0.1:1'}}}}]\nusers: [{{name: a, user: {{}}}}]\n"
    );
    files.write("near", &text)
}

#[tokio::test]
async fn kubeconfigs_that_cannot_be_used() {
    let files = Files::new();
    let home = [("HOME", files.0.path().to_str().unwrap())];
    proxy_out(&["--kubeconfig", "/nonexistent/config"], &home)
        .await
        .with(20, &["/nonexistent/config"]);
    // What is wrong with a flag is said first.
    proxy_out(
        &["--kubeconfig", "/nonexistent/config", "--forward", "x"],
        &home,
    )
    .await
    .with(23, &["--forward x"]);
    let broken = files.write("broken", "apiVersion: v1\nclusters: [unclosed");
    proxy_out(&["--kubeconfig", &broken], &home)
        .await
        .with(20, &[&broken]);
    let empty = files.write("empty", "");
    proxy_out(&["--kubeconfig", &empty], &home)
        .await
        .with(20, &[&empty]);
    let contexts = files.write(
        "contexts",
        "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
         contexts: [{name: a, context: {cluster: a, user: a}}]\n\
         clusters: [{name: a, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: a, user: {}}]\n",
    );
    proxy_out(&["--kubeconfig", &contexts, "--context", "prod"], &home)
        .await
        .with(20, &["prod", "a"]);
    let near = contexts_named(&files, "production");
    proxy_out(&["--kubeconfig", &near, "--context", "prodution"], &home)
        .await
        .with(20, &["  try: did you mean \"production\"?"]);
    proxy_out(&["--kubeconfig", &contexts, "--cluster", "nope"], &home)
        .await
        .with(20, &["nope"]);
    proxy_out(&["--kubeconfig", &contexts, "--user", "nope"], &home)
        .await
        .with(20, &["nope"]);
    // A file that cannot be read may be mounted later: a service manager starts the proxy again after 32, and not after 20.
    for (user, code, said) in [
        ("token: \"a\\nb\"", 20, "token holds characters"),
        (
            "client-certificate-data: aGVsbG8K, client-key-data: aGVsbG8K",
            20,
            "certificate or key",
        ),
        (
            "client-certificate: /nonexistent/crt, client-key: /nonexistent/key",
            20,
            "/nonexistent/crt",
        ),
        ("tokenFile: /nonexistent/token", 20, "/nonexistent/token"),
        ("auth-provider: {name: gcp}", 20, "removed from Kubernetes"),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
             contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
             clusters: [{{name: a, cluster: {{server: 'https://127.0.0.1:1'}}}}]\nusers: [{{name: a, user: {{{user}}}}}]\n"
        );
        let path = files.write("user", &text);
        proxy_out(&["--kubeconfig", &path], &home)
            .await
            .with(code, &[said]);
    }
    proxy_out(&[], &home).await.with(20, &["kubeconfig"]);
    // The same by the environment.
    let list = format!("{contexts}:/nonexistent/other");
    proxy_out(&[], &[("KUBECONFIG", &*list)])
        .await
        .with(40, &["127.0.0.1:1"]);
}

#[tokio::test]
async fn api_servers_that_cannot_be_used() {
    let files = Files::new();
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let config = |server: &str, ca: &str| {
        files.write(
            "config",
            &format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
                 contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
                 clusters: [{{name: a, cluster: {{server: '{server}'{ca}}}}}]\nusers: [{{name: a, user: {{}}}}]\n"
            ),
        )
    };
    let away = config(&format!("https://{nobody}"), "");
    proxy_out(&["--kubeconfig", &away], &[])
        .await
        .with(40, &[&nobody.to_string()]);
    // A certificate of nobody we trust.
    let sim = Sim::builder().start().await.unwrap();
    let untrusted = config(sim.server_url(), "");
    proxy_out(&["--kubeconfig", &untrusted], &[])
        .await
        .with(40, &["certificate"]);
}

#[tokio::test]
async fn forwards_that_cannot_be_had() {
    let forward = async |text: &str, more: &[&str]| {
        proxy_out(&[&["--egress", "--forward", text], more].concat(), &[]).await
    };
    for (text, words) in [
        ("5432", "[ADDR:]PORT:HOST:PORT"),
        ("db:5432", "[ADDR:]PORT:HOST:PORT"),
        ("x:db:5432", "where to listen"),
        ("0:db:0", "port 0"),
        ("0:fd00::1:80", "IPv6 addresses in brackets"),
    ] {
        forward(text, &[])
            .await
            .with(23, &["--forward", text, words]);
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    forward(&format!("{addr}:db:5432"), &[])
        .await
        .with(53, &[&addr, "already in use", "forward to db:5432"]);
    // A password would not help: there is nobody to ask for it.
    let files = Files::new();
    let password = files.write("password", "user:pass");
    forward("0.0.0.0:0:db:5432", &["--auth-file", &password])
        .await
        .with(23, &["forward to db:5432", "--allow-unauthenticated"]);
}

/// Each says what failed, on what, and what to try.
#[tokio::test]
async fn wrong_words_are_answered() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let files = Files::new();
    let kubeconfig = files.write("config", &sim.kubeconfig_yaml());
    let home = files.0.path().join("kubevpn");
    let environment = [
        ("KUBECONFIG", &*kubeconfig),
        ("KUBEVPN_HOME", home.to_str().unwrap()),
    ];
    let no_namespace = ["there is no namespace defaul", "did you mean -n default?"];
    let unknown = ["there is no namespace nosuch", "kubectl get namespaces"];
    let rows: [(&[&str], i32, &[&str]); 9] = [
        (&["services", "-n", "defaul"], 50, &no_namespace),
        (&["services", "-n", "nosuch", "-o", "json"], 50, &unknown),
        (&["connect", "-n", "defaul"], 50, &no_namespace),
        (&["nc", "-n", "defaul", "web", "80"], 50, &no_namespace),
        (&["resolve", "-n", "nosuch", "web:80"], 50, &unknown),
        (
            &["nc", "reviews.nosuch", "80"],
            31,
            &["a Service reviews is in default: ask for reviews.default"],
        ),
        (
            &["proxy-out", "--socks", "here"],
            23,
            &["error: --socks: \"here\" has no port"],
        ),
        (
            &["proxy-out", "--wait-ready", "soon"],
            2,
            &["--wait-ready", "write e.g. 30s"],
        ),
        (
            &["nc", "multi", "9999"],
            1,
            &["nothing listens on localhost:9999"],
        ),
    ];
    for (words, code, said) in rows {
        let ended = run(words, &environment).await;
        let lines: Vec<_> = ended.said.lines().map(str::trim).collect();
        let cause = |line: &&str| line.strip_prefix("caused by: ").map(str::to_owned);
        let repeats = lines.iter().filter_map(cause).any(|cause| {
            let with_it = lines.iter().filter(|line| line.contains(&cause));
            with_it.count() > 1
        });
        assert!(!repeats, "{words:?}: {}", ended.said);
        ended.with(code, said);
    }
}

#[tokio::test]
async fn words_it_does_not_know() {
    run(&["proxy-out", "--listen-sock", "x"], &[])
        .await
        .with(2, &["--listen-socks"]);
    run(&["proxyout"], &[]).await.with(2, &["proxy-out"]);
    run(&[], &[]).await.with(2, &["proxy-out", "demo"]);
}

#[tokio::test]
async fn what_it_prints_when_asked() {
    run(&["version"], &[]).await.with(0, &["kubevpn 0."]);
    run(&["--version"], &[]).await.with(0, &["kubevpn 0."]);
    run(&["--help"], &[])
        .await
        .with(0, &["proxy-out", "demo", "completion"]);
    run(&["proxy-out", "--help"], &[])
        .await
        .with(0, &["--listen-socks", "--context", "Examples:"]);
    run(&["connect", "--help"], &[]).await.with(
        0,
        &[
            "--socks-listen",
            "--http-listen",
            "--egress",
            "--foreground",
            "--context",
            "Examples:",
        ],
    );
    run(&["status", "--help"], &[])
        .await
        .with(0, &["table", "wide", "json", "yaml", "--watch"]);
    for shell in ["bash", "zsh", "fish", "powershell"] {
        run(&["completion", shell], &[])
            .await
            .with(0, &["kubevpn", "KUBEVPN_COMPLETE"]);
    }
}

/// Requests to the API server say who asks.
#[tokio::test]
async fn requests_carry_the_user_agent() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let files = Files::new();
    let kubeconfig = sim.write_kubeconfig(files.0.path()).unwrap();
    let proxy = Proxy::start(kubevpn(), &kubeconfig, &[]).await.unwrap();
    let answer = kubevpn_scenarios::Curl::get(proxy.socks, "http://reviews/")
        .await
        .unwrap();
    assert_eq!(answer.json().unwrap()["service"], "reviews");
    let requests = sim.requests();
    assert!(
        requests.iter().any(|r| r.subresource == "portforward"),
        "{requests:?}"
    );
    for request in requests {
        assert_eq!(
            request.user_agent,
            format!("kubevpn/{}", env!("CARGO_PKG_VERSION")),
            "{request:?}"
        );
    }
}
