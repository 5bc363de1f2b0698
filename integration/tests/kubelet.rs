//! `run --env-from` beside the kubelet: the environment of the container's process on the node, which is this machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use lab::Lab;
use tokio::process::Command;

const OBJECTS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {MODE: prod, level: "3", "dotted.name-x": d, multi: "a\nb"}
---
apiVersion: v1
kind: Secret
metadata: {name: db}
stringData: {password: "p $(MODE) w"}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: {a/b: c}}
    spec:
      terminationGracePeriodSeconds: 1
      automountServiceAccountToken: false
      enableServiceLinks: false
      containers:
      - name: app
        image: lab.local/echo:1
        imagePullPolicy: Never
        resources: {limits: {memory: 130Mi, cpu: 1500m}}
        envFrom:
        - prefix: C_
          configMapRef: {name: settings}
        - configMapRef: {name: settings}
        - secretRef: {name: db}
        - secretRef: {name: none, optional: true}
        env:
        - {name: MARK, value: "@MARK@"}
        - {name: NAME, value: web}
        - {name: PORTS, value: "8080"}
        - {name: EMPTY}
        - {name: level, value: "$(level)4"}
        - {name: NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: UID_OF, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
        - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
        - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
        - {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
        - {name: HOST_IPS, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}
        - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
        - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['a/b']"}}}
        - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1M}}}
        - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
        - {name: CPU_M, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
        - {name: DISK, valueFrom: {resourceFieldRef: {resource: requests.ephemeral-storage}}}
        - {name: PASSWORD, valueFrom: {secretKeyRef: {name: db, key: password}}}
        - {name: NONE, valueFrom: {configMapKeyRef: {name: settings, key: none, optional: true}}}
        - {name: ALL, value: "$(PASSWORD)|$(MODE)|$$(MODE)|$$$(MODE)|$(no)|$(MODE|$x|$"}
"#;

/// Of the Pod itself, which no template has.
const OF_THE_POD: [&str; 7] = ["POD", "UID_OF", "NODE", "IP", "IPS", "HOST_IP", "HOST_IPS"];

type Variables = BTreeMap<String, String>;

pub(crate) async fn environment_of_a_container() -> anyhow::Result<()> {
    let lab = Lab::attach().await?;
    let namespace = format!("kubelet-{}", std::process::id());
    lab.kubectl(&["create", "namespace", &namespace]).await?;
    let compared = compared(&lab, &namespace).await;
    lab.kubectl(&["delete", "namespace", &namespace, "--wait=false"])
        .await?;
    compared
}

async fn compared(lab: &Lab, namespace: &str) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("objects.yaml");
    std::fs::write(&file, OBJECTS.replace("@MARK@", namespace))?;
    let here = async |words: &[&str]| lab.kubectl(&[&["-n", namespace][..], words].concat()).await;
    here(&["apply", "-f", &file.to_string_lossy()]).await?;
    here(&["rollout", "status", "daemonset/web", "--timeout=60s"]).await?;
    let pod = here(&["get", "pods", "-o", "name"]).await?;
    let theirs = of_the_process(namespace)?;
    ensure!(
        theirs.len() > 30,
        "the container has {} variables",
        theirs.len()
    );
    for (of, unknown) in [(pod.trim(), &[][..]), ("ds/web", &OF_THE_POD[..])] {
        let ours = ours(lab, namespace, of, dir.path()).await?;
        for (name, value) in &theirs {
            // Those of the image and of the container runtime, and of the API server's Service.
            let is_elsewhere = ["PATH", "HOME", "HOSTNAME"].contains(&name.as_str());
            if is_elsewhere || name.starts_with("KUBERNETES_") {
                continue;
            }
            let wanted = (!unknown.contains(&name.as_str())).then_some(value);
            ensure!(
                ours.get(name) == wanted,
                "{of}: {name} is {:?}, and in the container {value:?}",
                ours.get(name)
            );
        }
        let of_run = ["PATH", "HOME", "KUBECONFIG", "PWD", "SHLVL", "_"];
        let is_more =
            |name: &&String| !theirs.contains_key(*name) && !of_run.contains(&name.as_str());
        // What `run` sets for every command.
        let is_proxy = |name: &&String| name.to_lowercase().ends_with("proxy");
        let is_ours = |name: &&String| name.starts_with("KUBEVPN_") || *name == "JAVA_TOOL_OPTIONS";
        let more: Vec<_> = ours.keys().filter(is_more).collect();
        let more: Vec<_> = more
            .into_iter()
            .filter(|n| !is_proxy(n) && !is_ours(n))
            .collect();
        ensure!(more.is_empty(), "{of}: the container has no {more:?}");
    }
    Ok(())
}

/// Of the process with this mark.
fn of_the_process(mark: &str) -> anyhow::Result<Variables> {
    let mark = format!("MARK={mark}");
    for entry in std::fs::read_dir("/proc")? {
        // Most are no process, or have ended.
        let Ok(bytes) = std::fs::read(entry?.path().join("environ")) else {
            continue;
        };
        let text = String::from_utf8_lossy(&bytes);
        if text.split('\0').any(|pair| pair == mark) {
            return Ok(pairs(&text));
        }
    }
    anyhow::bail!("no process of this machine is the container's")
}

async fn ours(lab: &Lab, namespace: &str, of: &str, home: &Path) -> anyhow::Result<Variables> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubevpn"));
    command
        .args(["run", "-n", namespace, "--env-from", of, "--", "env", "-0"])
        .env_clear()
        .env("KUBECONFIG", lab.kubeconfig())
        .env("HOME", home)
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null());
    let output = command.output().await.context("kubevpn")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{of}: {said}");
    Ok(pairs(&String::from_utf8(output.stdout)?))
}

fn pairs(text: &str) -> Variables {
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
