//! `run`, `env` and `pac`: what other programs are told of the proxy.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use kubevpn_scenarios::{Proxy, run_to_end};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::{Ended, Rig, kubevpn, run};

impl Rig {
    async fn run(&self, words: &[&str]) -> Ended {
        let run_words = ["run", "--kubeconfig", &self.kubeconfig, "--"];
        run(&[&run_words[..], words].concat(), &[]).await
    }
}

#[tokio::test]
async fn the_exit_code_is_the_commands() {
    let rig = Rig::start().await;
    rig.run(&["true"]).await.with(0, &[]);
    let ended = rig.run(&["sh", "-c", "echo said; exit 7"]).await;
    assert!(!ended.said.contains("error"), "{}", ended.said);
    ended.with(7, &["said"]);
    rig.run(&["sh", "-c", "kill -KILL $$"]).await.with(137, &[]);
    rig.run(&["no-such-command"])
        .await
        .with(127, &["cannot run no-such-command"]);
    rig.run(&["/"]).await.with(126, &["cannot run /"]);
    run(&["run", "--kubeconfig", &rig.kubeconfig], &[])
        .await
        .with(2, &["COMMAND"]);
}

#[tokio::test]
async fn signals_reach_the_command() {
    let rig = Rig::start().await;
    for (signal, code) in [("TERM", 15), ("HUP", 1), ("USR1", 10), ("INT", 2)] {
        let script =
            format!("trap 'exit {code}' {signal}; echo ready; while :; do sleep 0.05; done");
        let mut command = Command::new(kubevpn());
        command
            .args([
                "run",
                "--kubeconfig",
                &rig.kubeconfig,
                "--",
                "bash",
                "-c",
                &script,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
        let pid = child.id().unwrap().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.await.unwrap().success());
        assert_eq!(child.wait().await.unwrap().code(), Some(code), "{signal}");
    }
}

/// The browser of `open` has no use for the credentials of the cluster and of the proxy.
#[tokio::test]
async fn browser_of_open_gets_no_credentials() {
    let rig = Rig::start().await;
    let dir = tempfile::tempdir().unwrap();
    let said = dir.path().join("environment");
    let browser = dir.path().join("chromium");
    let script = format!("#!/bin/sh\nSEEN=canary env >'{}'\n", said.display());
    std::fs::write(&browser, script).unwrap();
    std::fs::set_permissions(&browser, std::fs::Permissions::from_mode(0o700)).unwrap();
    let words = ["open", "--kubeconfig", &rig.kubeconfig, "productpage:9080"];
    // The cluster takes no other token.
    let kubeconfig = std::fs::read_to_string(&rig.kubeconfig).unwrap();
    let kubeconfig: serde_json::Value = serde_yaml_ng::from_str(&kubeconfig).unwrap();
    let token = kubeconfig["users"][0]["user"]["token"].as_str().unwrap();
    let environment = [
        ("BROWSER", browser.to_str().unwrap()),
        ("KUBEVPN_TOKEN", token),
        ("KUBEVPN_AUTH", "ann:canary-password"),
    ];
    run(&words, &environment).await.with(0, &[]);
    let said = std::fs::read_to_string(&said).unwrap();
    assert!(said.contains("SEEN=canary\n"), "{said}");
    for word in ["KUBEVPN_TOKEN", "KUBEVPN_AUTH", "canary-"] {
        assert!(!said.contains(word), "{word}: {said}");
    }
}

/// A proxy that runs already is used, and none is started.
#[tokio::test]
async fn a_proxy_that_runs_is_reused() {
    let rig = Rig::start().await;
    let kubeconfig = std::path::Path::new(&rig.kubeconfig);
    let mut proxy = Proxy::start(kubevpn(), kubeconfig, &["--listen-http", "127.0.0.1:0"])
        .await
        .unwrap();
    let http = proxy.http().await.unwrap().to_string();
    let words = [
        "run",
        "--kubeconfig",
        &rig.kubeconfig,
        "--use-http",
        &http,
        "--",
    ];
    let curl = [
        "sh",
        "-c",
        "echo $http_proxy $JAVA_TOOL_OPTIONS; curl -sS http://reviews/",
    ];
    let ended = run(&[&words[..], &curl].concat(), &[("NO_PROXY", "corp.test")]).await;
    let said = format!("http://{http} ");
    ended.with(
        0,
        &[
            &said,
            "-Dhttp.proxyHost=127.0.0.1",
            r#""service":"reviews""#,
        ],
    );
    proxy
        .logged(&["frontend=\"http\"", "reviews"])
        .await
        .unwrap();
}

#[tokio::test]
async fn env_prints_export_lines_only() {
    let rig = Rig::start().await;
    let words = [
        "env",
        "--kubeconfig",
        &rig.kubeconfig,
        "--http",
        "3128",
        "--socks",
        "1080",
    ];
    let env = async |more: &[&str]| {
        let environment = [("NO_PROXY", "corp.test"), ("SHELL", "/bin/bash")];
        let ended = run(&[&words[..], more].concat(), &environment).await;
        assert_eq!(ended.code, Some(0), "{}", ended.said);
        ended.said
    };
    let bash = env(&[]).await;
    assert!(
        bash.lines().all(|line| line.starts_with("export ")),
        "{bash}"
    );
    for line in [
        "export HTTP_PROXY='http://127.0.0.1:3128'",
        "export http_proxy='http://127.0.0.1:3128'",
        "export ALL_PROXY='http://127.0.0.1:3128'",
        "export no_proxy='corp.test,localhost,127.0.0.1,::1'",
    ] {
        assert!(bash.lines().any(|l| l == line), "{line} is missing: {bash}");
    }
    assert_eq!(env(&["--shell", "zsh"]).await, bash);
    let fish = env(&["--shell", "fish"]).await;
    assert!(
        fish.lines().all(|line| line.starts_with("set -gx ")),
        "{fish}"
    );
    let powershell = env(&["--shell", "powershell"]).await;
    assert!(
        powershell.lines().all(|line| line.starts_with("$env:")),
        "{powershell}"
    );
    run(&["env", "--kubeconfig", "/nonexistent"], &[])
        .await
        .with(20, &["/nonexistent"]);
    // A port of ours that nothing listens on, as the usual one.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let usual = free.local_addr().unwrap();
    drop(free);
    let text = format!("listen-socks = '{usual}'");
    let config = rig.files.write("config.toml", &text);
    let environment = [
        ("KUBEVPN_CONFIG", &*config),
        ("KUBEVPN_HOME", "/nonexistent/kubevpn"),
    ];
    let words = ["env", "--kubeconfig", &rig.kubeconfig];
    let output = run_to_end(kubevpn(), words, &environment).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let words = format!("nothing listens on {usual} yet: start kubevpn proxy-out");
    assert!(output.status.success() && said.contains(&words), "{said}");
}

/// A company's proxy, which programs would ask first, is not left beside SOCKS; what was set is taken back.
#[tokio::test]
async fn a_shell_is_set_and_set_back() {
    let rig = Rig::start().await;
    let program = kubevpn();
    let program = program.display();
    let script = format!(
        "eval \"$('{program}' env --use-socks 1080)\" && echo set $ALL_PROXY http=$HTTP_PROXY && \
         eval \"$('{program}' env --unset)\" && env | grep -i proxy || echo none"
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("KUBECONFIG", &rig.kubeconfig)
        .env("HTTP_PROXY", "http://proxy.corp.test:8080")
        .env("NO_PROXY", "corp.test")
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "set socks5h://127.0.0.1:1080 http=\nnone\n");
}

/// A token of the environment is for us, and for no command that we run.
#[tokio::test]
async fn a_token_is_not_passed_on() {
    let environment = [("KUBEVPN_TOKEN", "canary")];
    let script = "echo token-${KUBEVPN_TOKEN:-none}";
    let words = ["run", "--use-http", "127.0.0.1:3128", "sh", "-c", script];
    run(&words, &environment).await.with(0, &["token-none"]);
    // What a token may hold is judged, wherever it is from.
    let rig = Rig::start().await;
    let words = ["services", "--kubeconfig", &rig.kubeconfig];
    let environment = [("KUBEVPN_TOKEN", "two\nlines")];
    run(&words, &environment).await.with(20, &["KUBEVPN_TOKEN"]);
}

/// kubectl with another context, and the logins of all users, do without the proxy.
#[tokio::test]
async fn the_hosts_of_all_contexts_are_left_alone() {
    let rig = Rig::start().await;
    let dir = tempfile::tempdir().unwrap();
    let more = dir.path().join("more");
    let text = "{clusters: [{name: other, cluster: {server: 'https://api.other.test:6443'}}], \
                contexts: [{name: other, context: {cluster: other, user: other}}], \
                users: [{name: other, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: aws, \
                args: [--login-url, 'https://login.other.test/x']}}}]}";
    std::fs::write(&more, text).unwrap();
    let files = format!("{}:{}", rig.kubeconfig, more.display());
    let environment = [("KUBECONFIG", files.as_str()), ("SHELL", "/bin/bash")];
    let hosts = ["api.other.test", "login.other.test", ".amazonaws.com"];
    let env = run(&["env", "--use-http", "3128"], &environment).await;
    env.with(0, &hosts);
    let words = [
        "run",
        "--",
        "sh",
        "-c",
        "echo $NO_PROXY; echo own $KUBEVPN_PROXIES",
    ];
    let ran = run(&words, &environment).await;
    ran.with(0, &hosts);
}

/// The file of `pac` and the proxy's own say the same, and no browser of another site may have it.
#[tokio::test]
async fn pac_is_printed_written_and_served() {
    let rig = Rig::start().await;
    let kubeconfig = std::path::Path::new(&rig.kubeconfig);
    let listen = [
        "--listen-http",
        "127.0.0.1:0",
        "--pac-range",
        "10.244.0.0/16",
    ];
    let mut proxy = Proxy::start(kubevpn(), kubeconfig, &listen).await.unwrap();
    let (http, socks) = (proxy.http().await.unwrap(), proxy.socks);
    let url = format!("http://{http}/proxy.pac");
    let served = kubevpn_scenarios::Curl::run(&["--include", "--noproxy", "*", &url])
        .await
        .unwrap();
    assert_eq!(served.code, 0, "{}", served.message);
    let (head, body) = served.body.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    for field in [
        "content-type: application/x-ns-proxy-autoconfig",
        "x-content-type-options: nosniff",
        "cross-origin-resource-policy: same-origin",
    ] {
        assert!(head.contains(field), "{field} is missing: {head}");
    }
    for part in [
        format!("var CLUSTER = \"PROXY {http}; SOCKS5 {socks}\";"),
        "\"productpage\"".into(),
        "\"cluster.local\"".into(),
        "[[2804, 0], 16]".into(),
    ] {
        assert!(body.contains(&part), "{part} is missing: {body}");
    }
    let (http, socks) = (http.to_string(), socks.to_string());
    let words = [
        "pac",
        "--kubeconfig",
        &rig.kubeconfig,
        "--use-http",
        &http,
        "--socks",
        &socks,
    ];
    let words = [&words[..], &["--pac-range", "10.244.0.0/16"]].concat();
    let printed = run(&words, &[]).await;
    assert_eq!(printed.said, body);
    // A Service of another namespace.
    assert!(body.contains("\"api.team-a\""), "{body}");
    let file = rig.files.0.path().join("kubevpn.pac");
    let out = ["-o", file.to_str().unwrap()];
    run(&[&words[..], &out].concat(), &[]).await.with(0, &[]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), body);
    run(&["pac", "--pac-range", "10.0.0.0"], &[])
        .await
        .with(23, &["--pac-range"]);
    // The short name is that of a listener of their own for proxy-out and connect.
    for flag in ["--use-http", "--http"] {
        let ended = run(&["pac", flag, "x"], &[]).await;
        ended.with(23, &["--use-http: "]);
    }
}

/// Where a proxy is named, nothing else is wanted of a kubeconfig; flags that it would ignore are refused.
#[tokio::test]
async fn named_proxy_needs_no_kubeconfig() {
    let home = tempfile::tempdir().unwrap();
    let nowhere = home.path().to_str().unwrap();
    let environment = [("HOME", nowhere), ("KUBECONFIG", "/nonexistent/config")];
    let named = ["--use-http", "127.0.0.1:3128"];
    run(&[&["env"], &named[..]].concat(), &environment)
        .await
        .with(0, &["HTTP_PROXY='http://127.0.0.1:3128'", "localhost"]);
    let words = [
        &["run"],
        &named[..],
        &["--", "sh", "-c", "echo $http_proxy"],
    ]
    .concat();
    run(&words, &environment)
        .await
        .with(0, &["http://127.0.0.1:3128"]);
    let words = [&["run", "--outside", "direct"], &named[..], &["--", "true"]].concat();
    run(&words, &environment).await.with(23, &["--use-http"]);
    // Without one the API server is asked, and it is said that there is none.
    run(&["run", "--", "true"], &environment)
        .await
        .with(20, &[]);
}

/// The temporary proxy asks for the password, the command has it in the URLs, and not by itself.
#[tokio::test]
async fn run_asks_for_the_password_of_its_environment() {
    let rig = Rig::start().await;
    let script = "echo \"[$KUBEVPN_AUTH]\"; curl -sS http://reviews/; \
                  curl -s -o /dev/null -w ' %{http_code}' -x \"http://${http_proxy##*@}\" http://reviews/";
    let words = [
        "run",
        "--kubeconfig",
        &rig.kubeconfig,
        "--",
        "sh",
        "-c",
        script,
    ];
    let ended = run(&words, &[("KUBEVPN_AUTH", "ann:s3:cret/")]).await;
    ended.with(0, &["[]\n", r#""service":"reviews""#, " 407"]);
}
