//! Logging in: what the daemon cannot, `connect` does.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use kubevpn_scenarios::managed::{Managed, connection, id_of, listener};
use kubevpn_sim::Sim;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{Duration, sleep};

use crate::{eventually, kubevpn, works};

/// A cluster, and a directory with a kubeconfig whose user has a plugin: it gives the token for a moment only, and where
/// there is no file `session` it wants a person, which is who has `PERSON` in the environment.
struct Plugin {
    _sim: Sim,
    dir: tempfile::TempDir,
}

impl Plugin {
    async fn start() -> Self {
        let sim = Sim::builder().sample().tls().start().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut config: Value = serde_yaml_ng::from_str(&sim.kubeconfig_yaml()).unwrap();
        let token = config["users"][0]["user"]["token"].take();
        let soon = "$(date -u -d '+4 seconds' +%Y-%m-%dT%H:%M:%SZ)";
        let script = format!(
            "#!/bin/bash\ncd {dir}\nenv >environment\n[ -z \"$PERSON\" ] || touch session\n\
             [ -e session ] || {{ echo 'open https://login.test in a browser' >&2; exit 1; }}\n\
             echo '{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":\
             {{\"token\":{token},\"expirationTimestamp\":\"'{soon}'\"}}}}'\n",
            dir = dir.path().display(),
        );
        let plugin = dir.path().join("plugin");
        std::fs::write(&plugin, script).unwrap();
        std::fs::set_permissions(&plugin, PermissionsExt::from_mode(0o700)).unwrap();
        config["users"][0]["user"] = json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "./plugin",
            "interactiveMode": "IfAvailable",
        }});
        std::fs::write(dir.path().join("config"), config.to_string()).unwrap();
        Self { _sim: sim, dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Asks until the connection is in this state.
async fn becomes(managed: &Managed, id: &str, wanted: &str) -> Value {
    eventually(wanted, async {
        loop {
            let status = managed.status().await.unwrap();
            if connection(&status, id).unwrap()["State"] == wanted {
                return status;
            }
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_plugin_that_wants_a_person_has_one_when_connect_is_run_again() {
    let plugin = Plugin::start().await;
    let mut managed = Managed::new(kubevpn()).unwrap();
    std::fs::write(plugin.file("session"), "").unwrap();
    let config = plugin.file("config");
    let words = ["--socks-listen", "127.0.0.1:0"];
    let said = managed.connect(&config, &words).await.unwrap();
    let id = id_of(&said.with(0, &[]).unwrap()).unwrap();
    let socks = listener(&managed.status().await.unwrap(), &id, "socks").unwrap();
    works(socks).await;
    std::fs::remove_file(plugin.file("session")).unwrap();
    let status = becomes(&managed, &id, "unauthenticated").await;
    let login = connection(&status, &id).unwrap()["Login"].clone();
    let login = login.as_str().unwrap();
    let shown = managed.run(&["status"]).await.unwrap();
    shown
        .with(32, &["login needed", login, "open https://login.test"])
        .unwrap();
    // In its words, as a shell reads them, and no others.
    managed.environment = vec![("PERSON".into(), "jane".into())];
    let words: Vec<_> = login.split(' ').skip(1).collect();
    managed.run(&words).await.unwrap().with(0, &[&id]).unwrap();
    let status = becomes(&managed, &id, "connected").await;
    assert_eq!(connection(&status, &id).unwrap().get("Login"), None);
    assert_eq!(listener(&status, &id, "socks").unwrap(), socks);
    works(socks).await;
    managed.quit().await.unwrap();
}

/// Started from a shell that uses the proxy: neither the daemon nor a plugin is told of it.
#[tokio::test]
async fn our_own_proxies_are_not_the_daemons_nor_a_plugins() {
    let plugin = Plugin::start().await;
    std::fs::write(plugin.file("session"), "").unwrap();
    let config = plugin.file("config");
    let mut managed = Managed::new(kubevpn()).unwrap();
    let words = ["--http-listen", "127.0.0.1:0"];
    let said = managed.connect(&config, &words).await.unwrap();
    let id = id_of(&said.with(0, &[]).unwrap()).unwrap();
    let http = listener(&managed.status().await.unwrap(), &id, "http").unwrap();
    let env = [
        "env",
        "--shell",
        "bash",
        "--kubeconfig",
        config.to_str().unwrap(),
    ];
    let said = managed.run(&env).await.unwrap().with(0, &[]).unwrap();
    assert!(
        said.stdout
            .contains(&format!("HTTPS_PROXY='http://{http}'"))
    );
    // A daemon is started anew, and a command runs a plugin, in a shell with these and with a proxy that is not ours.
    managed
        .run(&["quit", "--now"])
        .await
        .unwrap()
        .with(0, &[])
        .unwrap();
    managed.gone().await.unwrap();
    let lines = said
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("export "));
    managed.environment = lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
        .collect();
    managed
        .environment
        .push(("ftp_proxy".into(), "http://proxy.corp.test".into()));
    let ours = http.to_string();
    let without_ours = |environment: &str| {
        let all: Vec<_> = environment.split(['\n', '\0']).collect();
        assert!(all.contains(&"ftp_proxy=http://proxy.corp.test"));
        for variable in all.iter().filter(|variable| variable.contains(&ours)) {
            assert!(variable.starts_with("KUBEVPN_PROXIES="), "{variable}");
        }
    };
    let resolve = [
        "resolve",
        "reviews",
        "--kubeconfig",
        config.to_str().unwrap(),
    ];
    managed.run(&resolve).await.unwrap().with(0, &[]).unwrap();
    without_ours(&std::fs::read_to_string(plugin.file("environment")).unwrap());
    managed
        .connect(&config, &words)
        .await
        .unwrap()
        .with(0, &[])
        .unwrap();
    let environment = format!("/proc/{}/environ", managed.pid().unwrap());
    without_ours(&std::fs::read_to_string(environment).unwrap());
    managed.quit().await.unwrap();
}

#[tokio::test]
async fn what_a_shell_hands_over_once_is_kept() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = sim.write_kubeconfig(dir.path()).unwrap();
    let managed = Managed::new(kubevpn()).unwrap();
    let connect = async || {
        let mut command = Command::new("bash");
        command
            .args([
                "-c",
                r#""$0" connect --kubeconfig <(cat "$1") --socks-listen 127.0.0.1:0"#,
            ])
            .arg(kubevpn())
            .arg(&config)
            .env("KUBEVPN_HOME", managed.home());
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.matches("can be read only once").count(), 1, "{said}");
    };
    connect().await;
    let status = managed.status().await.unwrap();
    let id = status["List"][0]["ConnectionID"].as_str().unwrap();
    let socks = listener(&status, id, "socks").unwrap();
    works(socks).await;
    // With what it says now.
    std::fs::write(&config, sim.kubeconfig_yaml() + "\n# the same\n").unwrap();
    connect().await;
    let status = managed.status().await.unwrap();
    assert_eq!(connection(&status, id).unwrap()["State"], "connected");
    works(socks).await;
    managed.quit().await.unwrap();
}
