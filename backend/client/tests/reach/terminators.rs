//! Servers that check client certificates before HTTP: HAProxy, which refuses in TLS, and nginx, which refuses in HTML. A
//! plugin's certificates live for 20 s.
//!
//! A minute of requests; ten with `KUBEVPN_FULL` in the environment. Not one may fail.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::support::{Server, Setup, Speaks, nobody, upgrade};

/// How long a certificate lives.
const LIFE: Duration = Duration::from_secs(20);

/// Without resumption of TLS sessions, which sends no certificate: each connection checks one.
const HAPROXY: &str = "\
global
  tune.ssl.cachesize 0
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  timeout http-keep-alive 2s
frontend in
  bind ADDRESS ssl crt DIR/server.pem ca-file DIR/ca.crt verify required no-tls-tickets alpn h2,http/1.1
  default_backend out
backend out
  server api BACKEND
";

const NGINX: &str = "\
daemon off;
pid DIR/nginx.pid;
error_log stderr;
events {}
http {
  access_log off;
  client_body_temp_path DIR; proxy_temp_path DIR; fastcgi_temp_path DIR; uwsgi_temp_path DIR; scgi_temp_path DIR;
  keepalive_timeout 2s;
  server {
    listen ADDRESS ssl http2;
    ssl_certificate DIR/server.pem;
    ssl_certificate_key DIR/server.pem;
    ssl_client_certificate DIR/ca.crt;
    ssl_verify_client on;
    ssl_session_cache off;
    ssl_session_tickets off;
    location / { proxy_pass http://BACKEND; proxy_http_version 1.1; }
  }
}
";

/// The program with this configuration in front of the server; answers on the address it is given.
async fn terminator(
    program: &str,
    config: &str,
    setup: &Setup,
    backend: &Server,
) -> (Child, String) {
    // A port that is free is taken before another test looks for one.
    static STARTING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _starting = STARTING.lock().await;
    let address = nobody().await.to_string();
    let dir = setup.path("");
    let dir = dir.to_str().unwrap().trim_end_matches('/');
    let config = config
        .replace("ADDRESS", &address)
        .replace("BACKEND", &backend.address.to_string())
        .replace("DIR", dir);
    let file = setup.file("terminator", &config);
    let flag = if program == "nginx" { "-c" } else { "-f" };
    let mut command = Command::new(program);
    command
        .arg(flag)
        .arg(file)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
    let until = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(&address).await.is_err() {
        assert!(Instant::now() < until, "{program} does not listen");
        sleep(Duration::from_millis(20)).await;
    }
    (child, address)
}

/// Replaces the file atomically, because the plugin may read it at any time.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Sends requests for the given time; returns their number, and the number of runs of the plugin.
async fn requests(program: &'static str, config: &str, says_when: bool) {
    let backend = Server::speaking(Speaks::Plain).await;
    let setup = Setup::new("https://unused.test");
    let server = backend.ca.issue(&["127.0.0.1"], 4000);
    setup.file("server.pem", &format!("{}{}", server.pem, server.key_pem()));
    setup.file("ca.crt", backend.ca.pem());
    let (_running, address) = terminator(program, config, &setup, &backend).await;
    let answer = setup.path("answer");
    let runs = setup.path("runs");
    let script = format!(
        "#!/bin/sh\necho run >>'{}'\ncat '{}'\n",
        runs.display(),
        answer.display()
    );
    let plugin = setup.file("plugin", &script);
    std::fs::set_permissions(plugin, PermissionsExt::from_mode(0o700)).unwrap();
    let ca = &backend.ca;
    let issue = || {
        let (jane, until) = ca.issue_for(&["jane"], LIFE);
        let mut status =
            json!({"clientCertificateData": jane.pem, "clientKeyData": jane.key_pem()});
        if says_when {
            status["expirationTimestamp"] = json!(until.to_string());
        }
        let credential = json!({
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": status,
        });
        replace(&answer, &credential.to_string());
    };
    issue();
    // The same directory, with the address that is known now.
    let setup = setup
        .server(format!("https://{address}"))
        .trusting(ca)
        .user("exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, interactiveMode: Never}");
    let client = setup.client();
    let minutes = if std::env::var_os("KUBEVPN_FULL").is_some() {
        10
    } else {
        1
    };
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    let mut done = 0;
    while Instant::now() < until {
        if done % 10 == 0 {
            issue();
        }
        let called = client.apiserver_version().await;
        called.unwrap_or_else(|e| panic!("call {done}: {e:?}"));
        // Each of these has a connection of its own.
        let upgraded = client.send(upgrade("/echo")).await;
        upgraded.unwrap_or_else(|e| panic!("upgrade {done}: {e:?}"));
        done += 1;
        sleep(Duration::from_millis(100)).await;
    }
    let runs = std::fs::read_to_string(runs).unwrap().lines().count();
    say(&format!(
        "{program}: {done} calls and as many upgrades, none failed; the plugin ran {runs} times"
    ));
    let lives = (60 * minutes / LIFE.as_secs()) as usize;
    assert!(runs >= lives && runs <= 2 * lives + 2, "{runs}");
}

#[expect(clippy::print_stdout, reason = "figures")]
fn say(what: &str) {
    println!("{what}");
}

#[tokio::test]
#[ignore = "needs haproxy, and a minute"]
async fn haproxy_and_a_plugin_that_says_when() {
    requests("haproxy", HAPROXY, true).await;
}

#[tokio::test]
#[ignore = "needs haproxy, and a minute"]
async fn haproxy_and_a_plugin_that_does_not() {
    requests("haproxy", HAPROXY, false).await;
}

#[tokio::test]
#[ignore = "needs nginx, and a minute"]
async fn nginx_and_a_plugin_that_says_when() {
    requests("nginx", NGINX, true).await;
}

#[tokio::test]
#[ignore = "needs nginx, and a minute"]
async fn nginx_and_a_plugin_that_does_not() {
    requests("nginx", NGINX, false).await;
}
