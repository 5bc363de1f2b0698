//! Killed daemons, full disks, files that are not what they were: each ends in a documented state, and nothing is left.

use std::net::TcpListener;

use kubevpn_scenarios::managed::{id_of, listener};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{Rig, ids, kubevpn, schema, works};

/// Killed at each step: the connection is there or it is not, and `quit` leaves nothing.
#[tokio::test]
async fn killed_at_each_step() {
    for (step, code, is_there) in [
        // Nothing has been promised yet: no connection, and no trace of it after the next command.
        ("connect:kubeconfig", 80, false),
        ("connect:bound", 80, false),
        ("connect:checked", 80, false),
        // The connection is there, though nobody was told.
        ("connect:saved", 80, true),
        // The command asks again, or does it by itself.
        ("disconnect:begun", 0, false),
        ("disconnect:forgotten", 0, false),
        ("disconnect:ended", 0, false),
    ] {
        let mut rig = Rig::start().await;
        rig.managed.environment = vec![("KUBEVPN_TEST_DIE_AT".into(), step.into())];
        let words = ["--socks-listen", "127.0.0.1:0"];
        let connected = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
        let ended = match step.starts_with("connect") {
            true => connected,
            false => {
                let id = id_of(&connected.with(0, &[]).unwrap()).unwrap();
                rig.managed.run(&["disconnect", &id]).await.unwrap()
            }
        };
        ended
            .with(code, &[])
            .unwrap_or_else(|e| panic!("{step}: {e}"));
        rig.managed.environment.clear();
        rig.managed.gone().await.unwrap();
        let status = rig.managed.status().await.unwrap();
        assert_eq!(
            ids(&status).len(),
            usize::from(is_there),
            "{step}: {status}"
        );
        match is_there {
            true => works(listener(&status, ids(&status)[0], "socks").unwrap()).await,
            // No secret waits for a next daemon.
            false => assert_eq!(rig.managed.files().unwrap(), [""; 0], "{step}"),
        }
        rig.managed
            .quit()
            .await
            .unwrap_or_else(|e| panic!("{step}: {e}"));
    }
}

/// Whatever two commands do at once: one daemon, a state that is one of theirs, and nothing left.
#[tokio::test]
async fn commands_that_race() {
    let rig = Rig::start().await;
    let connect = async |words: &[&str]| rig.managed.connect(&rig.kubeconfig, words).await.unwrap();
    for _ in 0..20 {
        let (a, b) = tokio::join!(
            connect(&["--socks-listen", "127.0.0.1:0"]),
            connect(&["--http-listen", "127.0.0.1:0"]),
        );
        let id = id_of(&a.with(0, &[]).unwrap()).unwrap();
        b.with(0, &[&id]).unwrap();
        assert_eq!(rig.managed.processes().unwrap().len(), 1);
        let status = rig.managed.status().await.unwrap();
        listener(&status, &id, "socks").unwrap();
        listener(&status, &id, "http").unwrap();
        // The connection ends or stays, and the daemon with it.
        let (c, d, e) = tokio::join!(
            rig.managed.run(&["disconnect", "--all", "--now"]),
            rig.managed.run(&["quit", "--now"]),
            connect(&["--socks-listen", "127.0.0.1:0"]),
        );
        c.unwrap().with(0, &[]).unwrap();
        d.unwrap().with(0, &[]).unwrap();
        e.with(0, &[&id]).unwrap();
        rig.managed.quit().await.unwrap();
    }
}

/// What a crash or a reboot can leave, and a process that has the number of the daemon that was.
#[tokio::test]
async fn stale_files() {
    let rig = Rig::start().await;
    let mut bystander = Command::new("sleep")
        .arg("600")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let lock = json!({"pid": bystander.id().unwrap(), "started": "in another life"});
    rig.make_home();
    let prepare = || {
        std::fs::write(rig.file("daemon.lock"), lock.to_string()).unwrap();
        // A socket nobody listens on.
        drop(std::os::unix::net::UnixListener::bind(rig.file("daemon.sock")).unwrap());
    };
    prepare();
    rig.managed.quit().await.unwrap();
    prepare();
    let (id, socks) = rig.open().await;
    works(socks).await;
    rig.managed
        .run(&["disconnect", &id, "--now"])
        .await
        .unwrap()
        .with(0, &[])
        .unwrap();
    rig.managed.quit().await.unwrap();
    assert!(
        bystander.try_wait().unwrap().is_none(),
        "the bystander was killed"
    );
}

/// A daemon that does not answer is told from none, and ended.
#[tokio::test]
async fn a_wedged_daemon() {
    let rig = Rig::start().await;
    let (id, _) = rig.open().await;
    let pid = rig.managed.pid().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-STOP", &pid])
            .status()
            .await
            .unwrap()
            .success()
    );
    let run = async |words: &[&str]| rig.managed.run(words).await.unwrap();
    run(&["status"])
        .await
        .with(80, &[&pid, "kubevpn quit"])
        .unwrap();
    run(&["disconnect", &id]).await.with(80, &[&pid]).unwrap();
    rig.managed.quit().await.unwrap();
}

/// A state file that is broken, of an older or of a newer version: said, kept until told, and in nobody's way.
#[tokio::test]
async fn state_files_that_cannot_be_read() {
    let rig = Rig::start().await;
    let (id, _) = rig.open().await;
    let state = rig.file(&format!("connections/{id}.json"));
    for (text, reason) in [
        ("{", "is broken"),
        (r#"{"version": 0}"#, "has version 0"),
        (r#"{"version": 3}"#, "has version 3"),
        (r#"{"id": "x"}"#, "does not say its version"),
    ] {
        rig.managed.kill().await.unwrap();
        std::fs::write(&state, text).unwrap();
        let status = rig.managed.status().await.unwrap();
        assert_eq!(ids(&status), [""; 0]);
        let problem = &status["Problems"][0];
        assert_eq!(problem["ConnectionID"], *id);
        assert!(
            problem["Reason"].as_str().unwrap().contains(reason),
            "{problem}"
        );
        assert!(schema().is_valid(&status), "{status}");
        let words = ["--socks-listen", "127.0.0.1:0"];
        let said = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
        said.with(53, &[&id, "disconnect"]).unwrap();
        assert_eq!(std::fs::read_to_string(&state).unwrap(), text);
    }
    rig.managed
        .run(&["disconnect", &id])
        .await
        .unwrap()
        .with(0, &[])
        .unwrap();
    let (again, socks) = rig.open().await;
    assert_eq!(again, id);
    works(socks).await;
    rig.managed.quit().await.unwrap();
}

/// A bind failure fails the command and leaves everything as it was; so do other credentials.
#[tokio::test]
async fn what_fails_changes_nothing() {
    let rig = Rig::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let connect = async |words: &[&str]| rig.managed.connect(&rig.kubeconfig, words).await.unwrap();
    connect(&["--socks-listen", &taken])
        .await
        .with(53, &[&taken, "SOCKS5 listener"])
        .unwrap();
    assert_eq!(ids(&rig.managed.status().await.unwrap()), [""; 0]);
    let files = rig.managed.files().unwrap();
    assert_eq!(files, ["daemon.sock"]);

    let (id, socks) = rig.open().await;
    let still = async || {
        let mut status = rig.managed.status().await.unwrap();
        // The check of the way to Pods may have opened another.
        status["List"][0]["Sessions"] = 0.into();
        (status, rig.managed.files().unwrap())
    };
    let before = still().await;
    // The first of these two could be had.
    connect(&["--http-listen", "127.0.0.1:0", "--listen", &taken])
        .await
        .with(53, &[&taken])
        .unwrap();
    let copy = rig.kubeconfig.with_extension("copy");
    std::fs::copy(&rig.kubeconfig, &copy).unwrap();
    let said = rig
        .managed
        .connect(&copy, &["--http-listen", "127.0.0.1:0"])
        .await
        .unwrap();
    said.with(53, &[&id, rig.kubeconfig.to_str().unwrap()])
        .unwrap();
    connect(&["--outside", "direct"])
        .await
        .with(53, &[&id])
        .unwrap();
    connect(&["--egress"]).await.with(23, &["--socks"]).unwrap();
    connect(&["--socks-listen", "0.0.0.0:0"])
        .await
        .with(23, &["--allow-unauthenticated"])
        .unwrap();
    assert_eq!(still().await, before);
    std::fs::remove_file(copy).unwrap();
    works(socks).await;
    rig.managed.quit().await.unwrap();
}

/// Run in a mount namespace of its own, in which the directory is a small disk that is full.
#[tokio::test]
async fn a_full_disk() {
    let rig = Rig::start().await;
    let home = rig.make_home();
    let script = r#"
set -eu
mount -t tmpfs -o size=64k,mode=700 tmpfs "$KUBEVPN_HOME"
connect() { "$0" connect --kubeconfig "$1" "${@:2}" 2>&1; }
connect "$1" --socks-listen 127.0.0.1:0 >/dev/null
head -c 100000 /dev/zero >"$KUBEVPN_HOME/fill" 2>/dev/null || true
for words in '--http-listen 127.0.0.1:0' '-n team-a --socks-listen 127.0.0.1:0'; do
  code=0; said=$(connect "$1" $words) || code=$?
  [ $code = 1 ] || { echo "$words ended with $code: $said"; exit 3; }
  case $said in *'No space left on device'*) ;; *) echo "$words said: $said"; exit 4 ;; esac
done
"$0" status -o json >"$2"
"$0" disconnect --all --now
"$0" quit --now
rm "$KUBEVPN_HOME/fill"
find "$KUBEVPN_HOME" ! -type d ! -path '*/log/*' ! -name daemon.lock
"#;
    let status = rig.kubeconfig.with_extension("status");
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "bash", "-c", script])
        .arg(kubevpn())
        .args([&rig.kubeconfig, &status])
        .env("KUBEVPN_HOME", &home)
        .kill_on_drop(true);
    let output = command.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}: {said}{complained}",
        output.status
    );
    assert!(said.ends_with("Exited\n"), "something is left: {said}");
    let status: Value = serde_json::from_slice(&std::fs::read(&status).unwrap()).unwrap();
    let listeners = status["List"][0]["Listeners"].as_array().unwrap();
    assert_eq!((ids(&status).len(), listeners.len()), (1, 1), "{status}");
    std::fs::remove_file(rig.kubeconfig.with_extension("status")).unwrap();
}
