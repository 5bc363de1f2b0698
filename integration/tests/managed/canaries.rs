//! Nothing secret is printed: a canary in every secret field of a kubeconfig that is broken in every way people break them, each
//! command at `-vv`, and none of them in what it says, logs or keeps.
//!
//! `KUBEVPN_CANARIES_OF` names another program to run than the one that was built.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::{StreamExt as _, stream};
use kubevpn_scenarios::managed::Managed;
use kubevpn_sim::{AccessRule, Sim, User};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::time::{Duration, sleep, timeout};

use crate::{eventually, kubevpn, say};

/// The secret fields, by the names that [`KUBECONFIG`], [`PLUGIN`] and [`BREAKAGES`] have for them.
#[rustfmt::skip]
const SECRETS: [&str; 18] = [
    "TOKEN", "PASSWORD", "KEYPEM", "CERTPEM", "ARGUMENT", "VARIABLE", "PLUGINTOKEN", "PLUGINKEY", "IDTOKEN", "REFRESH",
    "CLIENTSECRET", "PROXYPASS", "URLPASS", "FILETOKEN", "FLAGTOKEN", "AUTHPASS", "ENVPROXY", "ACCESS",
];

/// A context for each way to log in. In capitals is what stands for others, `<NAME>` a canary and `<DATA NAME>` the same in base64.
const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
current-context: token
contexts:
- {name: token, context: {cluster: sim, user: token, namespace: NAMESPACE}}
- {name: basic, context: {cluster: sim, user: basic, namespace: NAMESPACE}}
- {name: certificate, context: {cluster: sim, user: certificate, namespace: NAMESPACE}}
- {name: plugin, context: {cluster: sim, user: plugin, namespace: NAMESPACE}}
- {name: oidc, context: {cluster: sim, user: oidc, namespace: NAMESPACE}}
- {name: gcp, context: {cluster: sim, user: gcp, namespace: NAMESPACE}}
- {name: file, context: {cluster: sim, user: file, namespace: NAMESPACE}}
- {name: proxied, context: {cluster: proxied, user: token, namespace: NAMESPACE}}
- {name: url, context: {cluster: url, user: token, namespace: NAMESPACE}}
clusters:
- name: sim
  cluster:
    server: SERVER
    certificate-authority-data: AUTHORITY
- name: proxied
  cluster:
    server: https://api.kubevpn.test:6443
    proxy-url: http://ann:<PROXYPASS>@127.0.0.1:1
- name: url
  cluster:
    server: https://jane:<URLPASS>@ADDRESS
    certificate-authority-data: AUTHORITY
users:
- name: token
  user:
    token: <TOKEN>
- name: basic
  user:
    username: jane
    password: <PASSWORD>
- name: certificate
  user:
    client-certificate-data: <DATA CERTPEM>
    client-key-data: <DATA KEYPEM>
- name: plugin
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      command: ./plugin
      args: [--client-secret, <ARGUMENT>]
      env: [{name: SECRET, value: <VARIABLE>}]
      interactiveMode: Never
- name: oidc
  user:
    auth-provider:
      name: oidc
      config:
        client-id: kubevpn
        client-secret: <CLIENTSECRET>
        id-token: <IDTOKEN>
        refresh-token: <REFRESH>
        idp-issuer-url: https://issuer.kubevpn.test
- name: gcp
  user:
    auth-provider: {name: gcp, config: {access-token: <ACCESS>}}
- name: file
  user:
    tokenFile: token
";

/// What the plugin prints, which breaks by [`PLUGINS`].
const PLUGIN: &str = r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"<PLUGINTOKEN>","clientKeyData":"<PLUGINKEY>","clientCertificateData":"<PLUGINKEY>"}}"#;

/// What is broken, in which context it is found, what is there, and what instead.
#[rustfmt::skip]
const BREAKAGES: [(&str, &str, &str, &str); 47] = [
    ("nothing: token", "token", "", ""),
    ("nothing: basic", "basic", "", ""),
    ("nothing: certificate", "certificate", "", ""),
    ("nothing: plugin", "plugin", "", ""),
    ("nothing: oidc", "oidc", "", ""),
    ("nothing: gcp", "gcp", "", ""),
    ("nothing: file", "file", "", ""),
    ("nothing: proxied", "proxied", "", ""),
    ("nothing: url", "url", "", ""),
    ("quote is not closed", "token", "token: <TOKEN>", "token: \"<TOKEN>"),
    ("single quote is not closed", "token", "token: <TOKEN>", "token: '<TOKEN>"),
    ("list is not closed", "token", "token: <TOKEN>", "token: [<TOKEN>"),
    ("map is not closed", "token", "token: <TOKEN>", "token: {<TOKEN>"),
    ("token is a list", "token", "token: <TOKEN>", "token: [<TOKEN>]"),
    ("token is a map", "token", "token: <TOKEN>", "token: {<TOKEN>: x}"),
    ("token is an alias", "token", "token: <TOKEN>", "token: *<TOKEN>"),
    ("token is a tag", "token", "token: <TOKEN>", "token: !<TOKEN> x"),
    ("token is an anchor", "token", "token: <TOKEN>", "token: &<TOKEN> [x]"),
    ("token is a directive", "token", "token: <TOKEN>", "%<TOKEN> x"),
    ("token begins with a percent sign", "token", "token: <TOKEN>", "token: %<TOKEN>"),
    ("token begins with an at sign", "token", "token: <TOKEN>", "token: @<TOKEN>"),
    ("colon is missing", "token", "token: <TOKEN>", "token <TOKEN>"),
    ("space is missing", "token", "token: <TOKEN>", "token:<TOKEN>"),
    ("two colons", "token", "token: <TOKEN>", "token: bearer: <TOKEN>"),
    ("a tab", "token", "    token: <TOKEN>", "\ttoken: <TOKEN>"),
    ("a space too few", "token", "    token: <TOKEN>", "   x: y\n  token: <TOKEN>"),
    ("a key of the entry's own depth", "token", "    token: <TOKEN>", "    token: <TOKEN>\n   x: <TOKEN>"),
    ("a control character", "token", "token: <TOKEN>", "token: <TOKEN>\u{1}"),
    ("a line break in the token", "token", "token: <TOKEN>", "token: \"<TOKEN>\\n<TOKEN>\""),
    ("a bad escape", "token", "token: <TOKEN>", "token: \"<TOKEN>\\q\""),
    ("two credentials", "token", "token: <TOKEN>", "token: <TOKEN>\n    username: jane\n    password: <PASSWORD>"),
    ("user is the token", "token", "  user:\n    token: <TOKEN>", "  user: <TOKEN>"),
    ("users is a map", "token", "users:\n- name: token\n", "users:\n  <TOKEN>:\n"),
    ("cut off", "token", "    password: <PASSWORD>", "    password: \"<PASSWORD>CUT"),
    ("cut off in the middle", "token", "    password: <PASSWORD>", "    password: <PASSWORD>\n    clientCUT"),
    ("kind is the token", "token", "kind: Config", "kind: <TOKEN>"),
    ("apiVersion is the token", "token", "apiVersion: v1\n", "apiVersion: <TOKEN>\n"),
    ("the whole is a text", "token", "apiVersion: v1\n", "<TOKEN>\n---\n"),
    ("token in place of the authority", "token", "certificate-authority-data: AUTHORITY", "certificate-authority-data: <TOKEN>%"),
    ("key is no base64", "certificate", "<DATA KEYPEM>", "%<KEYPEM>"),
    ("certificate is no base64", "certificate", "<DATA CERTPEM>", "%<CERTPEM>"),
    ("insecure is the token", "token", "certificate-authority-data: AUTHORITY", "insecure-skip-tls-verify: <TOKEN>"),
    ("arguments are a text", "plugin", "args: [--client-secret, <ARGUMENT>]", "args: <ARGUMENT>"),
    ("variables are a map", "plugin", "env: [{name: SECRET, value: <VARIABLE>}]", "env: {SECRET: <VARIABLE>}"),
    ("proxy has no host", "proxied", "http://ann:<PROXYPASS>@127.0.0.1:1", "http://ann:<PROXYPASS>@"),
    ("proxy has another scheme", "proxied", "http://ann:<PROXYPASS>@127.0.0.1:1", "ftp://ann:<PROXYPASS>@127.0.0.1:1"),
    ("server is no url", "url", "https://jane:<URLPASS>@ADDRESS", "https://jane:<URLPASS>@ADDRESS:99999/ x"),
];

/// What the plugin does with what it is to print, in `$1`.
#[rustfmt::skip]
const PLUGINS: [(&str, &str); 8] = [
    ("prints a token alone", r#"echo "$1" | sed 's/,"clientKeyData.*}}/}}/'"#),
    ("prints it cut off", r#"printf '%.150s' "$1""#),
    ("prints it twice", r#"echo "$1$1""#),
    ("prints it to stderr too", r#"echo "$1"; echo "$1" >&2; exit 1"#),
    ("is a script under -x", r#"set -x; echo "$1" | sed s/v1/v2/; exit 3"#),
    ("prints another kind", r#"echo "$1" | sed s/ExecCredential/Status/"#),
    ("prints a token that no header can have", r#"echo "$1" | sed 's/\("token":"[^"]*\)/\1\\n/'"#),
    ("prints no time", r#"echo "$1" | sed 's/"token"/"expirationTimestamp":"<PLUGINTOKEN>","token"/'"#),
];

/// A kubeconfig in a directory of its own.
struct Broken {
    name: String,
    context: &'static str,
    dir: PathBuf,
}

struct Rig {
    sim: Sim,
    dir: tempfile::TempDir,
    managed: Managed,
    canaries: BTreeMap<&'static str, String>,
}

impl Rig {
    async fn start() -> Self {
        let canaries: BTreeMap<_, _> = SECRETS
            .iter()
            .map(|name| {
                (
                    *name,
                    format!("q7{}x{:x}", name.to_lowercase(), fastrand::u64(..)),
                )
            })
            .collect();
        let admin = |name: &str| User::new(name, &canaries[name]).may(AccessRule::everything());
        let sim = Sim::builder().sample().tls();
        let sim = ["TOKEN", "PLUGINTOKEN", "IDTOKEN", "FILETOKEN"]
            .iter()
            .fold(sim, |sim, name| sim.user(admin(name)))
            .start()
            .await
            .unwrap();
        let of = std::env::var_os("KUBEVPN_CANARIES_OF");
        let of = of.map_or_else(|| kubevpn().to_owned(), PathBuf::from);
        Self {
            sim,
            dir: tempfile::tempdir().unwrap(),
            managed: Managed::new(&of).unwrap(),
            canaries,
        }
    }

    /// With canaries in place of their names. In base64 the whole is one.
    fn with_canaries(&self, text: &str, namespace: &str) -> String {
        // A connection is known by its namespace.
        let metadata = format!("metadata: {{name: {namespace}}}");
        let object = format!("{{kind: Namespace, apiVersion: v1, {metadata}}}");
        self.sim.apply(&object).unwrap();
        let config: serde_json::Value =
            serde_yaml_ng::from_str(&self.sim.kubeconfig_yaml()).unwrap();
        let cluster = &config["clusters"][0]["cluster"];
        let authority = cluster["certificate-authority-data"].as_str().unwrap();
        let server = cluster["server"].as_str().unwrap();
        let mut text = text
            .replace("NAMESPACE", namespace)
            .replace("ADDRESS", server.trim_start_matches("https://"))
            .replace("SERVER", server);
        for (name, canary) in &self.canaries {
            text = text.replace(&format!("<DATA {name}>"), &base64(canary));
            text = text.replace(&format!("<{name}>"), canary);
        }
        text.replace("AUTHORITY", authority)
    }

    fn write(&self, name: &str, context: &'static str, text: &str, plugin: &str) -> Broken {
        let dir = self.dir.path().join(name.replace([' ', ':'], "-"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config"), text).unwrap();
        std::fs::write(dir.join("token"), &self.canaries["FILETOKEN"]).unwrap();
        let plugin = self.with_canaries(plugin, "default");
        let script = format!(
            "#!/bin/sh\nset -- '{}'\n{plugin}\n",
            self.with_canaries(PLUGIN, "default")
        );
        std::fs::write(dir.join("plugin"), script).unwrap();
        let mode = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(dir.join("plugin"), mode).unwrap();
        Broken {
            name: name.to_owned(),
            context,
            dir,
        }
    }

    fn broken(
        &self,
        name: &str,
        context: &'static str,
        from: &str,
        to: &str,
        namespace: &str,
    ) -> Broken {
        let text = match from {
            "" => KUBECONFIG.to_owned(),
            from => {
                assert!(KUBECONFIG.contains(from), "{name}");
                KUBECONFIG.replacen(from, to, 1)
            }
        };
        // Where it is cut off nothing follows.
        let text = text.split("CUT").next().unwrap_or_default();
        let text = self.with_canaries(text, namespace);
        self.write(name, context, &text, r#"echo "$1""#)
    }

    /// The names of the secrets that are in the text.
    fn found(&self, text: &str) -> Vec<&'static str> {
        let is_in = |canary: &str| text.contains(canary) || text.contains(&base64(canary)[..16]);
        let canaries = self.canaries.iter();
        let found = canaries.filter(|(_, canary)| is_in(canary));
        found.map(|(name, _)| *name).collect()
    }

    /// Runs the command until it ends or says that it listens; what it said.
    async fn said(&self, words: &[&str], of: &Broken) -> String {
        let config = of.dir.join("config");
        let mut words = words.to_vec();
        let flags = [
            "--kubeconfig",
            config.to_str().unwrap(),
            "--context",
            of.context,
            "-vv",
        ];
        let at = words.iter().position(|word| *word == "--");
        let at = at.unwrap_or(words.len());
        words.splice(at..at, flags);
        let mut command = self.managed.command(&words);
        command
            .env("KUBEVPN_AUTH", format!("ann:{}", self.canaries["AUTHPASS"]))
            .env(
                "HTTPS_PROXY",
                format!("http://ann:{}@127.0.0.1:1", self.canaries["ENVPROXY"]),
            )
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if words[0] == "connect" {
            // It is not for a daemon.
            command.env_remove("KUBEVPN_AUTH");
        }
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let mut said = String::new();
        let mut first = String::new();
        let reading = async {
            let mut rest = String::new();
            tokio::join!(
                async { stderr.read_to_string(&mut said).await.unwrap() },
                async {
                    stdout.read_line(&mut first).await.unwrap();
                    if words[0] == "proxy-out" && !first.is_empty() {
                        let pid = child.id().unwrap().to_string();
                        let end = tokio::process::Command::new("kill").arg(pid).status();
                        end.await.unwrap();
                    }
                    stdout.read_to_string(&mut rest).await.unwrap();
                }
            );
            rest
        };
        let rest = timeout(Duration::from_secs(60), reading).await;
        let rest = rest.unwrap_or_else(|_| panic!("{words:?} does not end"));
        let code = child.wait().await.unwrap().code();
        assert_ne!(code, Some(90), "{words:?} is a bug of ours: {said}");
        first + &rest + &said
    }
}

fn base64(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

#[rustfmt::skip]
const COMMANDS: [&[&str]; 9] = [
    &["proxy-out", "--listen-socks", "127.0.0.1:0"],
    &["run", "--", "true"],
    &["env"],
    &["pac"],
    &["resolve", "reviews.default:80"],
    &["resolve", "reviews.default", "-o", "json"],
    &["connect", "--socks-listen", "127.0.0.1:0"],
    &["check", "--listen-socks", "127.0.0.1:0", "-o", "json"],
    &["bugreport", "-o", "/dev/stdout"],
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_canary_is_seen() {
    let rig = Rig::start().await;
    let mut all = Vec::new();
    for (n, (name, context, from, to)) in BREAKAGES.into_iter().enumerate() {
        all.push(rig.broken(name, context, from, to, &format!("canary-{n}")));
    }
    let good = rig.with_canaries(KUBECONFIG, "default");
    for (name, script) in PLUGINS {
        all.push(rig.write(name, "plugin", &good, script));
    }
    let runs = all
        .iter()
        .flat_map(|broken| COMMANDS.iter().map(move |words| (broken, *words)));
    let seen: Vec<_> = stream::iter(runs)
        .map(async |(broken, words)| {
            let said = rig.said(words, broken).await;
            rig.found(&said)
                .into_iter()
                .map(|secret| format!("{} of {:?}: {secret}", words[0], broken.name))
                .collect::<Vec<_>>()
        })
        .buffer_unordered(4)
        .collect()
        .await;
    let reached = rig.said(COMMANDS[5], &all[0]).await;
    assert!(reached.contains("\"endpoints\""), "{reached}");
    let runs = seen.len();
    let printed = seen.iter().filter(|seen| !seen.is_empty()).count();
    say(&format!("{printed} of {runs} commands printed a secret"));
    let mut seen: Vec<_> = seen.into_iter().flatten().collect();
    seen.extend(flags(&rig, &all[0]).await);
    seen.extend(breaking_under_the_daemon(&rig).await);
    assert!(seen.is_empty(), "{} secrets: {seen:#?}", seen.len());
    rig.managed.quit().await.unwrap();
}

/// The token of the command line, which is not the API server's.
async fn flags(rig: &Rig, of: &Broken) -> Vec<String> {
    let mut seen = Vec::new();
    for words in COMMANDS {
        let mut words = words.to_vec();
        words.splice(1..1, ["--token", &rig.canaries["FLAGTOKEN"]]);
        let found = rig.found(&rig.said(&words, of).await);
        seen.extend(
            found
                .iter()
                .map(|secret| format!("{} --token: {secret}", words[0])),
        );
    }
    seen
}

/// Each file breaks while a connection is open that was made of it.
async fn breaking_under_the_daemon(rig: &Rig) -> Vec<String> {
    let mut opened = Vec::new();
    let breaks = BREAKAGES
        .iter()
        .enumerate()
        .filter(|(_, row)| !row.2.is_empty());
    for (n, (name, _, from, to)) in breaks {
        let namespace = format!("open-{n}");
        let good = rig.with_canaries(KUBECONFIG, &namespace);
        let open = rig.write(&format!("open-{name}"), "token", &good, r#"echo "$1""#);
        let free = ["connect", "--socks", "127.0.0.1:0"];
        let said = rig.said(&free, &open).await;
        assert!(said.contains("Connection ID: "), "{name}: {said}");
        opened.push((open, rig.broken(name, "token", from, to, &namespace)));
    }
    let mut unusable = 0;
    for (open, broken) in &opened {
        let text = std::fs::read(broken.dir.join("config")).unwrap();
        std::fs::write(open.dir.join("config"), text).unwrap();
        unusable += usize::from(!is_usable(rig, &open.dir.join("config")).await);
    }
    eventually("all that is broken is noticed", async {
        loop {
            let status = rig.managed.status().await.unwrap();
            let list = status["List"].as_array().unwrap();
            if list.iter().filter(|c| c["State"] == "degraded").count() >= unusable {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let mut seen = Vec::new();
    for words in [
        &["status", "-o", "json"][..],
        &["status", "-o", "wide"],
        &["logs"],
    ] {
        let said = rig.managed.run(words).await.unwrap();
        let found = rig.found(&format!("{}{}", said.stdout, said.stderr));
        seen.extend(found.iter().map(|secret| format!("{words:?}: {secret}")));
    }
    let mut files = Vec::new();
    every_file(&rig.managed.home(), &mut files);
    for path in files {
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        let found = rig.found(&text);
        seen.extend(
            found
                .iter()
                .map(|secret| format!("{}: {secret}", path.display())),
        );
    }
    seen
}

async fn is_usable(rig: &Rig, config: &Path) -> bool {
    let words = [
        "pac",
        "--kubeconfig",
        config.to_str().unwrap(),
        "--context",
        "token",
    ];
    let said = rig.managed.run(&words).await.unwrap();
    !said.stderr.contains("kubeconfig")
}

/// But for the transient kubeconfigs, which hold secrets.
fn every_file(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            every_file(&path, files);
        } else if path.is_file() && path.extension().is_none_or(|end| end != "kubeconfig") {
            files.push(path);
        }
    }
}
