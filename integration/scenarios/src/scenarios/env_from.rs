//! `kubevpn run --env-from`: a command with the environment of a workload's container. Values are in what the command sees,
//! and in no message, log or file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::process::Command;

use super::scenario;
use crate::proxy::PATIENCE;
use crate::space::Space;
use crate::{AccountRight, Context, Scenario};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("env_from", a_workloads_variables, One),
        scenario!("env_from", a_pod_knows_more, One),
        scenario!("env_from", a_file_for_other_tools, One),
        scenario!("env_from", missing_objects_and_rights, One),
    ]
}

/// A part of every secret value, and nothing else.
pub(super) const CANARY: &str = "canary-f3b1";

/// What it takes to be a workload: to read in one namespace, and no `list`.
pub(super) const READER: &[AccountRight] = &[
    right("apps", &["deployments", "statefulsets"]),
    right("", &["pods", "configmaps", "secrets"]),
];
const NO_SECRETS: &[AccountRight] = &[right("apps", &["deployments"]), right("", &["configmaps"])];
const NO_WORKLOADS: &[AccountRight] = &[right("", &["configmaps", "secrets"])];

const fn right(group: &'static str, resources: &'static [&'static str]) -> AccountRight {
    AccountRight {
        verbs: &["get"],
        group,
        resources,
        everywhere: false,
    }
}

/// A ConfigMap, a Secret (`canary-f3b1-password` and two lines), and workloads of one container that takes all of it.
pub(super) const OBJECTS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {MODE: prod, level: "3"}
---
apiVersion: v1
kind: Secret
metadata: {name: db}
data: {password: Y2FuYXJ5LWYzYjEtcGFzc3dvcmQ=, lines: Y2FuYXJ5LWYzYjEKMg==}
"#;

const CONTAINER: &str = r#"
  name: app
  image: lab.local/echo:1
  imagePullPolicy: Never
  resources: {limits: {memory: 128Mi}, requests: {cpu: 10m}}
  envFrom:
  - configMapRef: {name: settings}
  - prefix: DB_
    secretRef: {name: db}
  - configMapRef: {name: none, optional: true}
  env:
  - {name: NAME, value: web}
  - {name: PORTS, value: "8080"}
  - {name: level, value: "4"}
  - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
  - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
  - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
  - {name: PASSWORD, valueFrom: {secretKeyRef: {name: db, key: password}}}
  - {name: NONE, valueFrom: {secretKeyRef: {name: db, key: none, optional: true}}}
  - {name: URL, value: "postgres://app:$(PASSWORD)@db.$(NAMESPACE)/$(MODE)?$$(MODE)"}
  - {name: ME, value: "$(POD).$(NAMESPACE)"}
  - {name: PATH, value: /image/bin}
"#;

fn spec(indent: usize) -> String {
    let lines = CONTAINER.trim_matches('\n').lines();
    let container: Vec<_> = lines
        .map(|line| format!("{:indent$}{line}\n", ""))
        .collect();
    let container = container.concat().replacen("  name:", "- name:", 1);
    let head = [
        "automountServiceAccountToken: false",
        "enableServiceLinks: false",
        "containers:",
    ];
    let head: Vec<_> = head.map(|line| format!("{:indent$}{line}\n", "")).into();
    head.concat() + &container
}

/// Without Pods.
pub(super) fn workload(kind: &str) -> String {
    let spec = spec(6);
    let more = match kind {
        "StatefulSet" => "  serviceName: web\n  replicas: 0\n",
        "Deployment" => "  replicas: 0\n",
        _ => "",
    };
    format!(
        "---\napiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: web}}\nspec:\n{more}  selector: {{matchLabels: {{app: web}}}}\n  \
         template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n{spec}"
    )
}

fn pod() -> String {
    let spec = spec(2);
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web-0, labels: {{app: web}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 1\n{spec}"
    )
}

/// Somebody with a kubeconfig, and empty directories of theirs.
struct Caller<'c> {
    cx: &'c Context,
    kubeconfig: PathBuf,
    home: TempDir,
}

struct CommandEnd {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl<'c> Caller<'c> {
    fn new(cx: &'c Context, kubeconfig: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            cx,
            kubeconfig: kubeconfig.to_owned(),
            home: tempfile::tempdir()?,
        })
    }

    /// `kubevpn run` with these words, and all there is to be logged.
    async fn run(&self, words: &[&str]) -> anyhow::Result<CommandEnd> {
        let home = self.home.path();
        let mut command = Command::new(&self.cx.kubevpn);
        command
            .args(["run", "--kubeconfig"])
            .arg(&self.kubeconfig)
            .args(words)
            .env("RUST_LOG", "trace")
            .env_remove("KUBECONFIG")
            .envs(["HOME", "TMPDIR", "XDG_RUNTIME_DIR", "KUBEVPN_HOME"].map(|name| (name, home)))
            .current_dir(home)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .context("it does not end")??;
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        // In base64 too, as the API server sends it.
        for part in [CANARY, "Y2FuYXJ5"] {
            let line = err.lines().find(|line| line.contains(part));
            anyhow::ensure!(line.is_none(), "{words:?} says {line:?}");
        }
        Ok(CommandEnd {
            code: output.status.code(),
            out: output.stdout,
            err,
        })
    }

    /// The variables that a command sees.
    async fn variables(&self, of: &str) -> anyhow::Result<(BTreeMap<String, String>, String)> {
        let ended = self.run(&["--env-from", of, "--", "env", "-0"]).await?;
        anyhow::ensure!(ended.code == Some(0), "{of}: {}", ended.err);
        let text = String::from_utf8(ended.out)?;
        let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
        let owned = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ok((owned.collect(), ended.err))
    }

    /// Nothing that was written has a value.
    fn wrote_nothing(&self) -> anyhow::Result<()> {
        let mut found = vec![self.home.path().to_owned()];
        while let Some(path) = found.pop() {
            if path.is_dir() {
                for entry in fs::read_dir(&path)? {
                    found.push(entry?.path());
                }
            } else if path.is_file() {
                let bytes = fs::read(&path)?;
                let text = String::from_utf8_lossy(&bytes);
                anyhow::ensure!(!text.contains(CANARY), "{} has a value", path.display());
            }
        }
        Ok(())
    }
}

/// What a container of `spec` is to be given.
fn expected(namespace: &str) -> Vec<(&'static str, String)> {
    let of = |name, value: &str| (name, value.to_owned());
    vec![
        of("MODE", "prod"),
        of("level", "4"),
        of("DB_password", "canary-f3b1-password"),
        of("DB_lines", "canary-f3b1\n2"),
        of("NAME", "web"),
        of("NAMESPACE", namespace),
        of("APP", "web"),
        of("MEMORY", "128"),
        of("PASSWORD", "canary-f3b1-password"),
        of(
            "URL",
            &format!("postgres://app:canary-f3b1-password@db.{namespace}/prod?$(MODE)"),
        ),
    ]
}

fn has(variables: &BTreeMap<String, String>, wanted: &[(&str, String)]) -> anyhow::Result<()> {
    for (name, value) in wanted {
        anyhow::ensure!(
            variables.get(*name) == Some(value),
            "{name} is {:?}, not {value:?}",
            variables.get(*name)
        );
    }
    Ok(())
}

async fn a_workloads_variables(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let objects = format!(
        "{OBJECTS}{}{}",
        workload("Deployment"),
        workload("StatefulSet")
    );
    space.create(&objects).await?;
    let account = cx.cluster.account(&space.name, READER).await?;
    let caller = Caller::new(&cx, &account)?;
    for of in ["deploy/web", "deployment/web:app", "sts/web"] {
        let (variables, said) = caller.variables(of).await?;
        has(&variables, &expected(&space.name)).context(of)?;
        for (name, why) in [
            (
                "POD",
                "POD is not set: metadata.name is known of a Pod that runs",
            ),
            ("POD_IP", "POD_IP is not set: status.podIP"),
            ("ME", "ME is not set: POD, a part of it, is not"),
            ("NONE", ""),
        ] {
            anyhow::ensure!(!variables.contains_key(name), "{of}: {name} is set");
            anyhow::ensure!(said.contains(why), "{of}: no {why:?} in {said}");
        }
        // Where this machine's programs are.
        anyhow::ensure!(
            variables["PATH"] != "/image/bin",
            "{of}: it has the image's PATH"
        );
        anyhow::ensure!(said.contains("PATH is not set: it is about files of the image"));
    }
    caller.wrote_nothing()
}

async fn a_pod_knows_more(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    space.create(&format!("{OBJECTS}{}", pod())).await?;
    let ip = space.pod_ip("web-0").await?;
    let account = cx.cluster.account(&space.name, READER).await?;
    let caller = Caller::new(&cx, &account)?;
    let (variables, said) = caller.variables("pod/web-0").await?;
    let mut wanted = expected(&space.name);
    wanted.extend([
        ("POD", "web-0".to_owned()),
        ("POD_IP", ip),
        ("ME", format!("web-0.{}", space.name)),
    ]);
    has(&variables, &wanted)?;
    anyhow::ensure!(!said.contains("POD is not set"), "{said}");
    caller.wrote_nothing()
}

async fn a_file_for_other_tools(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    space
        .create(&format!("{OBJECTS}{}", workload("Deployment")))
        .await?;
    let account = cx.cluster.account(&space.name, READER).await?;
    let caller = Caller::new(&cx, &account)?;
    let printed = caller
        .run(&["--env-from", "deploy/web", "--env-file", "-"])
        .await?;
    let out = String::from_utf8(printed.out)?;
    anyhow::ensure!(printed.code == Some(0), "{}", printed.err);
    for (name, value) in expected(&space.name) {
        let line = format!("{name}={value}\n");
        let is_written = out.contains(&line);
        anyhow::ensure!(is_written != value.contains('\n'), "{line:?} in {out}");
    }
    let note = "DB_lines is not written: a line of NAME=VALUE cannot hold it";
    anyhow::ensure!(printed.err.contains(note), "{}", printed.err);
    caller.wrote_nothing()?;

    // With a command, too.
    let words = [
        "--env-from",
        "deploy/web",
        "--env-file",
        "web.env",
        "--",
        "sh",
        "-c",
        "echo $MODE",
    ];
    let both = caller.run(&words).await?;
    anyhow::ensure!(
        both.code == Some(0) && both.out == b"prod\n",
        "{}",
        both.err
    );
    let file = caller.home.path().join("web.env");
    anyhow::ensure!(fs::read_to_string(&file)? == out, "the file is another");
    let mode = fs::metadata(&file)?.permissions().mode() & 0o777;
    anyhow::ensure!(mode == 0o600, "its mode is {mode:o}");
    Ok(())
}

/// The command is not run, and it is said what to do.
async fn missing_objects_and_rights(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let web = workload("Deployment");
    let no_secret = web.replace("name: db}", "name: no-db}");
    let no_key = web.replace("key: password}", "key: no-key}");
    let named =
        |text: String, name: &str| text.replacen("name: web}", &format!("name: {name}}}"), 1);
    let objects = [
        OBJECTS,
        &web,
        &named(no_secret, "no-secret"),
        &named(no_key, "no-key"),
    ];
    space.create(&objects.concat()).await?;
    let reader = cx.cluster.account(&space.name, READER).await?;
    for (of, code, said) in [
        (
            "deploy/none",
            50,
            "there is no Deployment none in namespace",
        ),
        ("pod/none", 50, "there is no Pod none in namespace"),
        ("deploy/web:no", 50, "it has no container no: it has app"),
        (
            "deploy/no-secret",
            50,
            "container app refers to Secret no-db, which does not exist: create it, or mark",
        ),
        (
            "deploy/no-key",
            50,
            "container app refers to key no-key of Secret db, which has none: add it, or mark",
        ),
        ("svc/web", 2, "write KIND/NAME or KIND/NAME:CONTAINER"),
        ("deploy/../web", 2, "write KIND/NAME or KIND/NAME:CONTAINER"),
    ] {
        refused(&cx, &reader, of, code, &[said]).await?;
    }
    for (rights, said) in [
        (
            NO_SECRETS,
            [
                "cannot get secrets db in namespace",
                r#"ask for a Role with apiGroups [""], resources ["secrets"], verbs ["get"]"#,
            ],
        ),
        (
            NO_WORKLOADS,
            [
                "cannot get deployments.apps web in namespace",
                r#"ask for a Role with apiGroups ["apps"], resources ["deployments"], verbs ["get"]"#,
            ],
        ),
    ] {
        // There is one account in a namespace.
        let space = Space::new(&cx).await?;
        space.create(&[OBJECTS, &web].concat()).await?;
        let account = cx.cluster.account(&space.name, rights).await?;
        refused(&cx, &account, "deploy/web", 31, &said).await?;
    }
    Ok(())
}

async fn refused(
    cx: &Context,
    kubeconfig: &Path,
    of: &str,
    code: i32,
    said: &[&str],
) -> anyhow::Result<()> {
    let caller = Caller::new(cx, kubeconfig)?;
    let ended = caller.run(&["--env-from", of, "--", "echo", "ran"]).await?;
    let says = said.iter().all(|said| ended.err.contains(said));
    anyhow::ensure!(
        ended.code == Some(code) && says && ended.out.is_empty(),
        "{of} ended with {:?}, not {code} and {said:?}: {}",
        ended.code,
        ended.err
    );
    caller.wrote_nothing()
}
