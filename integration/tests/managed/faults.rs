//! Faults that lost data or hung a command: foreign files, signals, a lock that nobody identifiable holds.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use kubevpn_scenarios::managed::{id_of, listener};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::sync::mpsc;

use super::commands::Running;
use super::privacy::tree;
use crate::{Rig, ids, say, works};

/// `KUBEVPN_HOME=~/.kube`: a directory that holds other files is refused, and nothing in it changes.
#[tokio::test]
async fn foreign_directory_is_refused_and_left_alone() {
    let rig = Rig::start().await;
    let home = rig.make_home();
    for name in [
        "config",
        "prod.kubeconfig",
        ".unfinished-report",
        "daemon.lock",
    ] {
        std::fs::write(home.join(name), "theirs").unwrap();
    }
    std::os::unix::fs::symlink("releases/7", home.join("current")).unwrap();
    let before = tree(&home, Path::new(""));
    let words = ["--socks-listen", "127.0.0.1:0"];
    let connected = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
    assert_eq!(tree(&home, Path::new("")), before);
    connected.with(23, &["KUBEVPN_HOME", "it holds"]).unwrap();
    for words in [
        &["status"][..],
        &["quit", "--now"],
        &["disconnect", "--all"],
    ] {
        rig.managed.run(words).await.unwrap().with(23, &[]).unwrap();
    }
    assert_eq!(tree(&home, Path::new("")), before);
}

/// Files that somebody puts beside ours later: `disconnect`, `quit` and the tidying after a kill leave them.
#[tokio::test]
async fn foreign_files_among_ours_stay() {
    let rig = Rig::start().await;
    let (id, _) = rig.open().await;
    let foreign = [
        "prod.kubeconfig",
        ".unfinished-report",
        ".unfinished-abcdef",
        "connections/notes.txt",
        "connections/prod.kubeconfig",
        "connections/prod.json",
        "connections/.unfinished-report",
    ];
    for name in foreign {
        std::fs::write(rig.file(name), name).unwrap();
    }
    let all_stay = || {
        for name in foreign {
            let text = std::fs::read_to_string(rig.file(name));
            assert_eq!(text.ok().as_deref(), Some(name));
        }
    };
    rig.managed.kill().await.unwrap();
    // The next daemon tidies.
    rig.managed.status().await.unwrap();
    all_stay();
    let ended = rig.managed.run(&["disconnect", &id]).await.unwrap();
    ended.with(0, &[]).unwrap();
    all_stay();
    let (_, socks) = rig.open().await;
    works(socks).await;
    rig.managed
        .run(&["quit", "--now"])
        .await
        .unwrap()
        .with(0, &["Exited"])
        .unwrap();
    rig.managed.gone().await.unwrap();
    all_stay();
}

/// A closed terminal, Ctrl-\ and `kill` end the connection with its command.
#[tokio::test]
async fn foreground_connection_ends_with_its_command() {
    let rig = Rig::start().await;
    let kubeconfig = rig.kubeconfig.to_str().unwrap();
    for (signal, code) in [("-HUP", 0), ("-QUIT", 0), ("-TERM", 0), ("-INT", 130)] {
        let words = [
            "connect",
            "--foreground",
            "--kubeconfig",
            kubeconfig,
            "--socks-listen",
            "127.0.0.1:0",
        ];
        let mut command = Running::start(&rig, &words);
        command.says("Connection ID").await;
        command.ends(signal, code).await;
        assert_eq!(
            ids(&rig.managed.status().await.unwrap()),
            [""; 0],
            "{signal}"
        );
    }
    // A killed daemon is no orderly end: its connection comes back.
    let words = [
        "connect",
        "--foreground",
        "--socks",
        "127.0.0.1:0",
        "--kubeconfig",
        kubeconfig,
    ];
    for (orderly, code) in [(true, 0), (false, 80)] {
        let mut command = Running::start(&rig, &words);
        command.says("Connection ID").await;
        match orderly {
            true => rig.managed.quit().await.unwrap(),
            false => rig.managed.kill().await.unwrap(),
        }
        command.ended(code).await;
    }
    assert_eq!(ids(&rig.managed.status().await.unwrap()).len(), 1);
    rig.managed.quit().await.unwrap();
}

fn started(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let ticks = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_ascii_whitespace()
        .nth(19)
        .unwrap()
        .to_owned();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    format!("{} {ticks}", boot.trim())
}

/// A lock that a process holds about which nothing is known: `quit` ends, says so, and ends nobody.
#[tokio::test]
async fn quit_is_bounded_when_the_holder_of_the_lock_is_unknown() {
    let rig = Rig::start().await;
    let home = rig.make_home();
    let lock = File::create(home.join("daemon.lock")).unwrap();
    lock.lock().unwrap();
    let mut bystander = Command::new("sleep")
        .arg("600")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let elsewhere =
        json!({"pid": bystander.id().unwrap(), "started": "another-boot 1"}).to_string();
    for text in ["", &elsewhere] {
        std::fs::write(home.join("daemon.lock"), text).unwrap();
        let quit = rig.managed.run(&["quit"]).await.unwrap();
        quit.with(80, &["daemon.lock", "not on this machine"])
            .unwrap();
    }
    assert!(bystander.try_wait().unwrap().is_none());
    drop(lock);
    rig.managed.quit().await.unwrap();
}

/// `quit` asks the daemon that was there when it began, and leaves the one alone that has started since.
#[tokio::test]
async fn quit_leaves_the_next_daemon_alone() {
    let rig = Rig::start().await;
    let home = rig.make_home();
    std::fs::create_dir(home.join("connections")).unwrap();
    let state = home.join("connections/0123456789ab.json");
    std::fs::write(&state, "of the next daemon").unwrap();
    let path = home.join("daemon.lock");
    let lock = File::create(&path).unwrap();
    lock.lock().unwrap();
    let sign = |pid: u32| {
        let text = json!({"pid": pid, "started": started(pid)}).to_string();
        std::fs::write(&path, text).unwrap();
    };
    // This process is both daemons; another process's name stands for the second.
    let mut next = Command::new("sleep")
        .arg("600")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    sign(std::process::id());
    let listener = UnixListener::bind(home.join("daemon.sock")).unwrap();
    let (told, mut quits) = mpsc::channel(8);
    let next_pid = next.id().unwrap();
    let serving = tokio::spawn({
        let path = path.clone();
        async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                let quit = head.starts_with(b"POST /v1/quit");
                let body = match quit {
                    true => json!({"ids": []}),
                    false => {
                        json!({"api": 1, "version": "0", "pid": std::process::id(), "startedAt": ""})
                    }
                };
                if quit {
                    let text = json!({"pid": next_pid, "started": started(next_pid)}).to_string();
                    std::fs::write(&path, text).unwrap();
                    told.try_send(()).unwrap();
                }
                let body = body.to_string();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    });
    let quit = rig.managed.run(&["quit", "--now"]).await.unwrap();
    quit.with(0, &["Exited"]).unwrap();
    assert!(quits.try_recv().is_ok());
    assert!(quits.try_recv().is_err(), "the next daemon was asked, too");
    assert!(
        next.try_wait().unwrap().is_none(),
        "the next daemon was ended"
    );
    assert!(state.exists(), "what the next daemon keeps was deleted");
    serving.abort();
    let _ = serving.await;
    drop(lock);
    rig.managed.quit().await.unwrap();
}

/// A daemon that has nothing to wait for is not started again and again.
#[tokio::test]
async fn an_idle_time_of_nothing_is_refused() {
    let mut rig = Rig::start().await;
    for (idle, word) in [
        ("0s", "KUBEVPN_DAEMON_IDLE"),
        ("soon", "KUBEVPN_DAEMON_IDLE"),
    ] {
        rig.managed.environment = vec![("KUBEVPN_DAEMON_IDLE".into(), idle.into())];
        let words = ["--socks-listen", "127.0.0.1:0"];
        let said = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
        said.with(80, &[word]).unwrap();
    }
}

/// A daemon that is gone again before it can be asked, each time: the command ends and names the setting.
#[tokio::test]
async fn a_daemon_that_is_idle_at_once_is_not_started_for_ever() {
    let mut rig = Rig::start().await;
    rig.managed.environment = vec![("KUBEVPN_DAEMON_IDLE".into(), "1ns".into())];
    let words = ["--socks-listen", "127.0.0.1:0"];
    let said = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
    // Either a daemon was fast enough once, or the command says why none was.
    match said.code {
        Some(0) => {}
        _ => drop(said.with(80, &["KUBEVPN_DAEMON_IDLE"]).unwrap()),
    }
}

/// What cannot be written is not said to be so: the current connection stays what it was.
#[tokio::test]
async fn current_connection_that_cannot_be_written_does_not_change() {
    let rig = Rig::start().await;
    let (first, _) = rig.open().await;
    let words = ["-n", "team-a", "--socks-listen", "127.0.0.1:0"];
    let said = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
    let second = id_of(&said.with(0, &[]).unwrap()).unwrap();
    for name in ["current", "connections/current"] {
        let path = rig.file(name);
        let _ = std::fs::remove_file(&path);
        std::fs::create_dir_all(path.join("in the way")).unwrap();
    }
    let used = rig
        .managed
        .run(&["connection", "use", &first])
        .await
        .unwrap();
    used.with(1, &["current"]).unwrap();
    let status = rig.managed.status().await.unwrap();
    assert_eq!(status["CurrentConnectionID"], *second);
    for name in ["current", "connections/current"] {
        std::fs::remove_dir_all(rig.file(name)).unwrap();
    }
    rig.managed.quit().await.unwrap();
}

/// A path that means another directory in each working directory is refused.
#[tokio::test]
async fn relative_home_is_refused() {
    let mut rig = Rig::start().await;
    rig.managed.environment = vec![("KUBEVPN_HOME".into(), "here".into())];
    let dir = tempfile::tempdir().unwrap();
    let mut command = rig.managed.command(&["status"]);
    let output = command.current_dir(dir.path()).output().await.unwrap();
    assert_eq!(output.status.code(), Some(23), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("KUBEVPN_HOME"),
        "{output:?}"
    );
    rig.managed.environment.clear();
}

/// The daemon ends as TERM ends it: clients are cut with a reset, and the next start brings the connection back.
#[tokio::test]
async fn a_daemon_ends_alike_on_each_signal() {
    let rig = Rig::start().await;
    let (id, socks) = rig.open().await;
    for signal in ["-QUIT", "-INT"] {
        let mut client = kubevpn_scenarios::Socks::connect(socks, "productpage", 9080)
            .await
            .unwrap();
        let pid = rig.managed.pid().unwrap().to_string();
        let sent = Command::new("kill")
            .args([signal, &pid])
            .status()
            .await
            .unwrap();
        assert!(sent.success());
        let cut = tokio::time::timeout(Duration::from_secs(60), client.read_u8())
            .await
            .unwrap();
        assert_eq!(
            cut.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionReset,
            "{signal}"
        );
        rig.managed.gone().await.unwrap();
        let status = rig.managed.status().await.unwrap();
        works(listener(&status, &id, "socks").unwrap()).await;
    }
    rig.managed.quit().await.unwrap();
}

/// The check of `connect` holds no place, and is no client: the first one gets the only place there is.
#[tokio::test]
async fn probe_of_connect_holds_no_place() {
    let rig = Rig::start().await;
    let words = [
        "--forward",
        "127.0.0.1:0:productpage:9080",
        "--max-connections",
        "1",
    ];
    let said = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
    let id = id_of(&said.with(0, &[]).unwrap()).unwrap();
    let status = rig.managed.status().await.unwrap();
    let found = kubevpn_scenarios::managed::connection(&status, &id).unwrap();
    assert_eq!(found["Traffic"]["TotalConnections"], 0, "{found}");
    assert_eq!(found["Listeners"][0]["OpenClients"], 0, "{found}");
    let forward = listener(&status, &id, "forward").unwrap();
    let url = format!("http://{forward}/");
    let words = ["--noproxy", "*", "--max-time", "20", &url];
    let answer = kubevpn_scenarios::Curl::run(&words).await.unwrap();
    assert_eq!(answer.json().unwrap()["service"], "productpage");
    rig.managed.quit().await.unwrap();
}

/// Directories that cannot be used: what is said, the code, and that nothing is made in them.
#[tokio::test]
async fn directories_that_cannot_be_used() {
    let mut rig = Rig::start().await;
    let tmp = tempfile::tempdir().unwrap();
    let long = tmp.path().join("x".repeat(120));
    let file = tmp.path().join("file");
    std::fs::write(&file, "theirs").unwrap();
    let linked = tmp.path().join("linked");
    std::fs::create_dir_all(linked.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(linked.join("elsewhere"), linked.join("connections")).unwrap();
    let others = tmp.path().join("others");
    std::fs::create_dir(&others).unwrap();
    let mut rows = vec![
        (long, 23, "has room for"),
        (file, 23, "is no directory"),
        (linked, 23, "connections is a symbolic link"),
    ];
    // Only root can give a directory away.
    match std::os::unix::fs::chown(&others, Some(12345), None) {
        Ok(()) => rows.push((others, 23, "is owned by uid 12345, not by you")),
        Err(error) => say(&format!("no directory of another user: {error}")),
    }
    let before = tree(tmp.path(), Path::new(""));
    for (home, code, text) in rows {
        let home = home.to_str().unwrap().to_owned();
        rig.managed.environment = vec![("KUBEVPN_HOME".into(), home.clone())];
        for words in [
            &["status"][..],
            &["quit"],
            &["logs"],
            &["disconnect", "--all"],
        ] {
            let said = rig.managed.run(words).await.unwrap();
            said.with(code, &[text, "KUBEVPN_HOME"]).unwrap();
        }
        let words = ["--socks-listen", "127.0.0.1:0"];
        let said = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
        said.with(code, &[text]).unwrap();
    }
    assert_eq!(tree(tmp.path(), Path::new("")), before);
    rig.managed.environment.clear();
    // A link in place of the directory itself leads to where there is room, and works.
    let room = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(room.path(), rig.managed.home()).unwrap();
    let (_, socks) = rig.open().await;
    works(socks).await;
    rig.managed.quit().await.unwrap();
    assert!(room.path().join("log/daemon.log").exists());
}

/// In a mount namespace of its own, in which the directory is on a disk that cannot be written.
#[tokio::test]
async fn a_read_only_disk() {
    let rig = Rig::start().await;
    let home = rig.make_home();
    let script = r#"
set -eu
mount -t tmpfs -o ro,mode=700 tmpfs "$KUBEVPN_HOME"
code=0; said=$("$0" connect --kubeconfig "$1" --socks-listen 127.0.0.1:0 2>&1) || code=$?
[ $code = 1 ] || { echo "connect ended with $code: $said"; exit 3; }
case $said in *'Read-only file system'*) ;; *) echo "connect said: $said"; exit 4 ;; esac
"$0" status
"#;
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "bash", "-c", script])
        .arg(crate::kubevpn())
        .arg(&rig.kubeconfig)
        .env("KUBEVPN_HOME", &home)
        .kill_on_drop(true);
    let output = command.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A umask that takes the owner's own rights, or none at all, changes nothing for what is kept.
#[tokio::test]
async fn umask_of_the_command_does_not_matter() {
    for umask in ["0277", "0777", "0000"] {
        let rig = Rig::start().await;
        let script = format!(
            r#"umask {umask}; "$0" quit; exec "$0" connect --kubeconfig "$1" --listen-socks 127.0.0.1:0"#
        );
        let mut command = Command::new("bash");
        command
            .args(["-c", &script])
            .arg(crate::kubevpn())
            .arg(&rig.kubeconfig)
            .env("KUBEVPN_HOME", rig.managed.home());
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{umask}: {output:?}");
        for (path, (_, mode, ..)) in tree(rig.managed.home().parent().unwrap(), Path::new("")) {
            let wanted = if path.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode & 0o777, wanted, "{umask}: {}", path.display());
        }
        rig.managed.quit().await.unwrap();
    }
}
