//! What is others' stays others', and what is the user's stays theirs: files, descriptors, secrets, the socket.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kubevpn_scenarios::managed::id_of;
use serde_json::Value;
use tokio::process::Command;

use crate::{Rig, kubevpn, works};

/// The contents, the mode and the time of change of every file under a directory.
pub(super) fn tree(dir: &Path, but: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32, i64, i64)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path == but {
            continue;
        }
        let data = path.symlink_metadata().unwrap();
        let bytes = if data.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        if data.is_dir() {
            found.extend(tree(&path, but));
        }
        found.insert(path, (bytes, data.mode(), data.mtime(), data.mtime_nsec()));
    }
    found
}

/// The Go kubevpn owns ~/.kubevpn: all that is beside our directory stays as it is.
#[tokio::test]
async fn a_home_of_the_go_kubevpn() {
    let mut rig = Rig::start().await;
    let home = tempfile::tempdir().unwrap();
    let theirs = home.path().join(".kubevpn");
    for (file, mode) in [
        ("config.yaml", 0o644),
        ("client_id", 0o644),
        ("daemon/user_daemon.pid", 0o644),
        ("daemon/root_daemon.pid", 0o644),
        ("daemon/db", 0o644),
        ("daemon/proxy-out/03dc50feb8c3.json", 0o644),
        ("log/user_daemon.log", 0o644),
        ("log/proxy-out-03dc50feb8c3.log", 0o644),
        ("temp/proxy-out-03dc50feb8c3.kubeconfig", 0o600),
    ] {
        let path = theirs.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, file).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let socket = std::os::unix::net::UnixListener::bind(theirs.join("daemon/user_daemon.sock"));
    let _socket = socket.unwrap();
    let ours = theirs.join("proxy-out");
    let before = tree(home.path(), &ours);
    rig.managed.environment = vec![
        ("HOME".into(), home.path().to_str().unwrap().into()),
        ("KUBEVPN_HOME".into(), String::new()),
    ];
    let run = async |words: &[&str]| rig.managed.run(words).await.unwrap().with(0, &[]).unwrap();
    let words = ["--socks-listen", "127.0.0.1:0"];
    let said = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
    let id = id_of(&said.with(0, &[]).unwrap()).unwrap();
    assert!(ours.join(format!("connections/{id}.json")).is_file());
    run(&["status", "-o", "wide"]).await;
    run(&["disconnect", &id, "--now"]).await;
    run(&["quit"]).await;
    let mut after = tree(home.path(), &ours);
    // A directory's time changes with what is in it.
    let mut before = before;
    for tree in [&mut before, &mut after] {
        let dir = tree.get_mut(&theirs).unwrap();
        (dir.2, dir.3) = (0, 0);
    }
    assert_eq!(before, after);
}

/// No secret of the kubeconfig is in an argument, a log, a status or the state file.
#[tokio::test]
async fn secrets_stay_in_the_kubeconfig() {
    let rig = Rig::start().await;
    let (id, socks) = rig.open().await;
    works(socks).await;
    let transient = rig.file(&format!("connections/{id}.kubeconfig"));
    let text = std::fs::read_to_string(&transient).unwrap();
    assert_eq!(transient.metadata().unwrap().mode() & 0o777, 0o600);
    let user: Value = serde_json::from_str(&text).unwrap();
    let user = user["users"][0]["user"].as_object().unwrap().clone();
    let secrets = ["token", "client-key-data"]
        .iter()
        .filter_map(|key| user.get(*key)?.as_str());
    let secrets: Vec<_> = secrets.collect();
    assert!(!secrets.is_empty());
    let arguments = std::fs::read(format!("/proc/{}/cmdline", rig.managed.pid().unwrap())).unwrap();
    let mut texts = vec![String::from_utf8(arguments).unwrap()];
    texts.push(rig.managed.status().await.unwrap().to_string());
    texts.push(rig.managed.run(&["logs"]).await.unwrap().stdout);
    texts.push(rig.managed.run(&["logs", &id]).await.unwrap().stdout);
    texts.push(std::fs::read_to_string(rig.file(&format!("connections/{id}.json"))).unwrap());
    for secret in secrets {
        assert!(texts.iter().all(|text| !text.contains(secret)));
    }
    rig.managed.quit().await.unwrap();
}

/// Nothing of the terminal it was started from, and no descriptor of whoever started it.
#[tokio::test]
async fn it_is_on_its_own() {
    let rig = Rig::start().await;
    let mut command = Command::new("bash");
    command
        .args([
            "-c",
            r#"exec 7</etc/passwd; "$0" connect --kubeconfig "$1" --socks-listen 127.0.0.1:0"#,
        ])
        .arg(kubevpn())
        .arg(&rig.kubeconfig)
        .env("KUBEVPN_HOME", rig.managed.home());
    // Whoever reads the command's output sees its end, though the daemon lives on.
    let output = tokio::time::timeout(Duration::from_secs(60), command.output());
    let output = output.await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    let pid = rig.managed.pid().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session: u32 = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(3)
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(session, pid);
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap();
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        assert_ne!(target, Path::new("/etc/passwd"));
        assert!(
            !target.to_string_lossy().starts_with("pipe:"),
            "{entry:?} is {}",
            target.display()
        );
    }
    rig.managed.quit().await.unwrap();
}
