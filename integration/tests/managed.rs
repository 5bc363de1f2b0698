//! Managed mode where things go wrong: killed daemons, full disks, other users, files that are not what they were.
//!
//! On the cluster in memory; with `KUBEVPN_LAB` in the environment on the real one.
#![cfg(target_os = "linux")]

mod managed {
    mod commands;
    mod credentials;
}

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kubevpn_scenarios::managed::{Managed, connection, id_of, listener};
use kubevpn_scenarios::{Curl, Socks};
use kubevpn_sim::Sim;
use serde_json::{Value, json};
use tokio::process::Command;

fn kubevpn() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_kubevpn"))
}

#[expect(clippy::print_stdout, reason = "figures, and why nothing runs")]
fn say(what: &str) {
    println!("{what}");
}

/// A cluster, and a user of it.
struct Rig {
    managed: Managed,
    kubeconfig: PathBuf,
    _sim: Option<(Sim, tempfile::TempDir)>,
}

impl Rig {
    async fn start() -> Self {
        let (kubeconfig, sim) = match std::env::var_os("KUBEVPN_LAB") {
            Some(_) => (lab::Lab::attach().await.unwrap().kubeconfig(), None),
            None => {
                let sim = Sim::builder().sample().start().await.unwrap();
                let dir = tempfile::tempdir().unwrap();
                let kubeconfig = sim.write_kubeconfig(dir.path()).unwrap();
                (kubeconfig, Some((sim, dir)))
            }
        };
        Self {
            managed: Managed::new(kubevpn()).unwrap(),
            kubeconfig,
            _sim: sim,
        }
    }

    /// Opens the connection, with a SOCKS listener on a free port.
    async fn open(&self) -> (String, SocketAddr) {
        let words = ["--socks-listen", "127.0.0.1:0"];
        let said = self
            .managed
            .connect(&self.kubeconfig, &words)
            .await
            .unwrap();
        let id = id_of(&said.with(0, &[]).unwrap()).unwrap();
        let status = self.managed.status().await.unwrap();
        let socks = listener(&status, &id, "socks").unwrap();
        (id, socks)
    }

    fn make_home(&self) -> PathBuf {
        let home = self.managed.home();
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&home)
            .unwrap();
        home
    }

    fn file(&self, name: &str) -> PathBuf {
        self.managed.home().join(name)
    }
}

fn ids(status: &Value) -> Vec<&str> {
    let list = status["List"].as_array().unwrap();
    list.iter()
        .map(|c| c["ConnectionID"].as_str().unwrap())
        .collect()
}

async fn works(socks: SocketAddr) {
    let answer = Curl::get(socks, "http://productpage:9080/").await.unwrap();
    assert_eq!(answer.json().unwrap()["service"], "productpage");
}

/// Waits for what is to come soon.
async fn eventually<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    waited.unwrap_or_else(|_| panic!("not within a minute: {what}"))
}

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
        (r#"{"version": 2}"#, "has version 2"),
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
        .with(53, &[&taken, "--socks-listen"])
        .unwrap();
    assert_eq!(ids(&rig.managed.status().await.unwrap()), [""; 0]);
    let files = rig.managed.files().unwrap();
    assert_eq!(files, ["daemon.lock", "daemon.sock"]);

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
find "$KUBEVPN_HOME" ! -type d ! -path '*/log/*'
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

/// As a second user, who may even open every file: the peer's uid is what counts.
#[tokio::test]
async fn another_user_is_not_answered() {
    let rig = Rig::start().await;
    let (id, socks) = rig.open().await;
    let socket = rig.file("daemon.sock");
    let ask = async |prefix: &[&str]| {
        let words = [
            prefix,
            &["curl", "--silent", "--max-time", "20", "--unix-socket"],
        ]
        .concat();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .arg(&socket)
            .arg("http://x/v1/status");
        command.output().await.unwrap()
    };
    let own = ask(&["env"]).await;
    assert!(String::from_utf8_lossy(&own.stdout).contains(&id));
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        say("not run as root: no second user to be");
        return rig.managed.quit().await.unwrap();
    }
    let other = [
        "setpriv",
        "--reuid",
        "12345",
        "--regid",
        "12345",
        "--clear-groups",
    ];
    assert!(!ask(&other).await.status.success());
    let all = |mode| {
        let home = rig.managed.home();
        for path in [home.parent().unwrap(), &home, &socket] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    all(0o777);
    let refused = ask(&other).await;
    assert!(!refused.status.success());
    assert_eq!(refused.stdout, b"");
    // Nor does a command of ours trust a directory that others can write to.
    rig.managed
        .run(&["status"])
        .await
        .unwrap()
        .with(23, &["chmod go-w"])
        .unwrap();
    all(0o700);
    works(socks).await;
    let log = rig.managed.run(&["logs"]).await.unwrap();
    log.with(0, &["another user's process is not answered", "uid=12345"])
        .unwrap();
    rig.managed.quit().await.unwrap();
}

/// The contents, the mode and the time of change of every file under a directory.
fn tree(dir: &Path, but: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32, i64, i64)> {
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

fn schema() -> jsonschema::Validator {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/status.schema.json");
    let schema = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

/// `status -o json` is what the schema says, from no daemon at all to refusals and failed listeners.
#[tokio::test]
async fn status_is_what_the_schema_says() {
    let rig = Rig::start().await;
    let schema = schema();
    let check = |status: &Value| {
        let errors: Vec<_> = schema.iter_errors(status).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?} in {status}");
    };
    check(&rig.managed.status().await.unwrap());
    let (id, socks) = rig.open().await;
    works(socks).await;
    assert!(Socks::connect(socks, "productpage", 81).await.is_err());
    let words = [
        "--http-listen",
        "127.0.0.1:0",
        "--forward",
        "127.0.0.1:0:productpage:9080",
    ];
    rig.managed
        .connect(&rig.kubeconfig, &words)
        .await
        .unwrap()
        .with(0, &[])
        .unwrap();
    let status = rig.managed.status().await.unwrap();
    check(&status);
    let forward = listener(&status, &id, "forward").unwrap();
    let answer = Curl::run(&["--noproxy", "*", &format!("http://{forward}/")])
        .await
        .unwrap();
    assert_eq!(answer.json().unwrap()["service"], "productpage");
    // Killed, and somebody else takes the port meanwhile: it says so, and has it when it can.
    rig.managed.kill().await.unwrap();
    let thief = TcpListener::bind(socks).unwrap();
    let status = rig.managed.status().await.unwrap();
    check(&status);
    let found = connection(&status, &id).unwrap();
    assert_eq!(found["State"], "degraded", "{found}");
    assert!(
        found["Reason"]
            .as_str()
            .unwrap()
            .contains(&socks.to_string()),
        "{found}"
    );
    assert!(listener(&status, &id, "socks").is_err());
    drop(thief);
    let back = async {
        while listener(&rig.managed.status().await.unwrap(), &id, "socks").is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), back)
        .await
        .unwrap();
    works(socks).await;
    check(&rig.managed.status().await.unwrap());
    rig.managed.quit().await.unwrap();
    check(&rig.managed.status().await.unwrap());
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

/// Without a connection it goes by itself.
#[tokio::test]
async fn it_ends_when_idle() {
    let mut rig = Rig::start().await;
    rig.managed.environment = vec![("KUBEVPN_DAEMON_IDLE".into(), "300ms".into())];
    let (id, socks) = rig.open().await;
    works(socks).await;
    assert_eq!(rig.managed.processes().unwrap().len(), 1);
    rig.managed
        .run(&["disconnect", &id, "--now"])
        .await
        .unwrap()
        .with(0, &[])
        .unwrap();
    rig.managed.gone().await.unwrap();
    assert_eq!(rig.managed.files().unwrap(), [""; 0]);
}
