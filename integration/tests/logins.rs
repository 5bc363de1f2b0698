//! kubectl and credential plugins log in under `kubevpn run`, and with the variables of `kubevpn env`: they go past a proxy
//! that refuses hosts outside the cluster.
//!
//! Addresses on loopback are never asked of a proxy. Here the API server has the node's address, and a token server this
//! machine's on the link to the node: only `NO_PROXY` makes kubectl and curl connect to them directly.

use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context as _, ensure};
use kubevpn_scenarios::{AccountRight, Proxy, run_to_end, service_account};
use lab::Lab;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::nginx::write;

const KUBEVPN: &str = env!("CARGO_BIN_EXE_kubevpn");

/// The curl shows that the proxy is in use.
const KUBECTL: &str = "curl -fsS http://productpage.default:9080/ >/dev/null; kubectl --context other get namespaces -o name";

pub(crate) async fn kubectl_with_another_context() -> anyhow::Result<()> {
    let lab = Lab::attach().await?;
    let mut config = kubeconfig(&lab).await?;
    let server = format!("https://{}", advertised(&lab).await?);
    add(&mut config, "other", json!({"server": server}), json!({}))?;
    let shells = Shells::new(&lab, &config).await?;
    shells.say(KUBECTL, 0, &["namespace/default"]).await?;
    // Only NO_PROXY makes the difference.
    let script = format!("NO_PROXY= no_proxy=; {KUBECTL}");
    shells.say(&script, 1, &["Forbidden"]).await
}

const fn everywhere(
    verbs: &'static [&'static str],
    group: &'static str,
    resources: &'static [&'static str],
) -> AccountRight {
    AccountRight {
        verbs,
        group,
        resources,
        everywhere: true,
    }
}

const RIGHTS: &[AccountRight] = &[
    everywhere(
        &["get", "list", "watch"],
        "",
        &["namespaces", "services", "pods"],
    ),
    everywhere(
        &["get", "list", "watch"],
        "discovery.k8s.io",
        &["endpointslices"],
    ),
    everywhere(&["create"], "", &["pods/portforward"]),
];

pub(crate) async fn a_plugin_that_fetches_its_token() -> anyhow::Result<()> {
    let lab = Lab::attach().await?;
    let namespace = format!("logins-{}", std::process::id());
    lab.kubectl(&["create", "namespace", &namespace]).await?;
    let shown = plugins(&lab, &namespace).await;
    lab.kubectl(&["delete", "namespace", &namespace, "--wait=false"])
        .await?;
    shown
}

async fn plugins(lab: &Lab, namespace: &str) -> anyhow::Result<()> {
    let account = service_account(&lab.kubeconfig(), namespace, RIGHTS).await?;
    let account: Value = serde_json::from_slice(&std::fs::read(&account)?)?;
    let token = account["users"][0]["user"]["token"].as_str();
    let token = token.context("the account has a token")?;
    let here = token_server("127.0.0.1".parse()?, token).await?;
    let link = token_server(this_machine(lab).await?, token).await?;
    let resolve = "kubevpn resolve productpage.default:9080";
    let (resolved, listed) = ("open, to default/productpage-", "namespace/default");
    let both = format!("{KUBECTL}; {resolve}");
    // The URL as the plugin knows it, and as its arguments in the kubeconfig have it.
    for (known, argument, script, code, words) in [
        (&*here, None, &*both, 0, &[listed, resolved][..]),
        (&link, Some(&*link), &both, 0, &[listed, resolved]),
        // kubevpn starts its plugins without its own proxies, whatever they are going to ask.
        (&link, None, resolve, 0, &[resolved]),
        // kubectl's have them, and nothing says that this one is to go past.
        (&link, None, KUBECTL, 1, &["curl: (22)", "403"]),
    ] {
        let mut config = kubeconfig(lab).await?;
        let dir = tempfile::tempdir()?;
        let user = json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": plugin(&dir, known)?,
            "args": argument.into_iter().collect::<Vec<_>>(),
            "interactiveMode": "Never",
        }});
        add(&mut config, "other", json!({}), user)?;
        config["current-context"] = "other".into();
        let shells = Shells::new(lab, &config).await?;
        let said = shells.say(script, code, words).await;
        said.with_context(|| format!("a plugin that asks {known}, with arguments {argument:?}"))?;
    }
    Ok(())
}

/// A program that gives the token which this URL gives.
fn plugin(dir: &TempDir, url: &str) -> anyhow::Result<String> {
    let answer = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "TOKEN"},
    });
    let answer = answer.to_string().replace("TOKEN", "'$token'");
    let script = format!("#!/bin/bash -e\ntoken=$(curl -fsS {url})\necho '{answer}'\n");
    let path = write(dir.path(), "plugin", &script)?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700))?;
    Ok(path)
}

/// Answers every request with the token; the URL. It ends with the test's runtime.
async fn token_server(address: IpAddr, token: &str) -> anyhow::Result<String> {
    let listener = TcpListener::bind((address, 0)).await?;
    let url = format!("http://{}/token", listener.local_addr()?);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{token}",
        token.len()
    );
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move { give(connection, &answer).await });
        }
    });
    Ok(url)
}

async fn give(mut connection: TcpStream, answer: &str) -> std::io::Result<()> {
    let mut head = BufReader::new(&mut connection).lines();
    while head.next_line().await?.is_some_and(|line| !line.is_empty()) {}
    connection.write_all(answer.as_bytes()).await
}

/// Where the API server says that it is: the node's address, which is not on loopback.
async fn advertised(lab: &Lab) -> anyhow::Result<String> {
    let path = "jsonpath={.endpoints[0].addresses[0]}:{.ports[0].port}";
    lab.kubectl(&["get", "endpointslice", "kubernetes", "-o", path])
        .await
}

/// This machine's address on the link to the node.
async fn this_machine(lab: &Lab) -> anyhow::Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(advertised(lab).await?)?;
    Ok(socket.local_addr()?.ip())
}

/// The administrator's.
async fn kubeconfig(lab: &Lab) -> anyhow::Result<Value> {
    let config = lab.kubectl(&["config", "view", "--raw", "-o", "json"]);
    Ok(serde_json::from_str(&config.await?)?)
}

/// Adds a context like the first, but for these fields of its cluster, and this user if it is not empty.
fn add(config: &mut Value, name: &str, cluster: Value, user: Value) -> anyhow::Result<()> {
    for (list, entry, change) in [("clusters", "cluster", cluster), ("users", "user", user)] {
        let list = config[list].as_array_mut().context("a list")?;
        let mut new = list.first().context("an entry")?.clone();
        new["name"] = name.into();
        let change = change.as_object().context("an object")?;
        if entry == "user" && !change.is_empty() {
            new[entry] = json!({});
        }
        for (field, value) in change {
            new[entry][field] = value.clone();
        }
        list.push(new);
    }
    let contexts = config["contexts"].as_array_mut().context("a list")?;
    contexts.push(json!({"name": name, "context": {"cluster": name, "user": name}}));
    Ok(())
}

/// A shell under `kubevpn run`, and one with the variables of `kubevpn env`.
struct Shells {
    dir: TempDir,
    kubeconfig: String,
    path: String,
    http: String,
    _proxy: Proxy,
}

impl Shells {
    async fn new(lab: &Lab, config: &Value) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let kubeconfig = write(dir.path(), "kubeconfig", &config.to_string())?;
        let words = ["--listen-http", "127.0.0.1:0", "--outside", "deny"];
        let proxy = Proxy::start(Path::new(KUBEVPN), Path::new(&kubeconfig), &words);
        let mut proxy = proxy.await?;
        let ours = Path::new(KUBEVPN)
            .parent()
            .context("it is in a directory")?;
        let path = std::env::var("PATH")?;
        Ok(Self {
            kubeconfig,
            path: format!("{}:{}/bin:{path}", ours.display(), lab.dir().display()),
            http: proxy.http().await?.to_string(),
            _proxy: proxy,
            dir,
        })
    }

    /// The script ends so in both, and says these words.
    async fn say(&self, script: &str, code: i32, words: &[&str]) -> anyhow::Result<()> {
        let script = format!("set -e; {script}");
        let run = ["run", "--outside", "deny", "--", "bash", "-c", &script];
        let env = format!(
            r#"lines=$(kubevpn env --shell bash --http {}) && eval "$lines" && {script}"#,
            self.http
        );
        let env = ["-c", &env];
        let ended = tokio::try_join!(
            self.run(Path::new(KUBEVPN), &run, code, words),
            self.run(Path::new("bash"), &env, code, words),
        );
        ended.map(drop)
    }

    async fn run(
        &self,
        program: &Path,
        args: &[&str],
        code: i32,
        words: &[&str],
    ) -> anyhow::Result<()> {
        let home = self.dir.path().to_str().context("a path in UTF-8")?;
        let environment = [
            ("KUBECONFIG", &*self.kubeconfig),
            ("PATH", &self.path),
            ("HOME", home),
            ("KUBEVPN_HOME", &format!("{home}/kubevpn")),
        ];
        let output = run_to_end(program, args, &environment).await?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        ensure!(
            output.status.code() == Some(code) && words.iter().all(|word| said.contains(word)),
            "expected {code} and {words:?}, but {args:?} ended with {}: {said}",
            output.status
        );
        Ok(())
    }
}
