//! A complete daemon in this process, called over its socket, with the real clock.

use std::sync::Arc;

use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::*;
use crate::DaemonClient;
use crate::api::ConnectionQuery;
use crate::fake::{Fake, ID, request};

struct Rig {
    tmp: tempfile::TempDir,
    engine: Fake,
    terminate: Arc<Notify>,
    daemon: JoinHandle<Result<(), ApiError>>,
}

impl Rig {
    async fn start(idle: Duration) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), idle).await
    }

    async fn start_in(tmp: tempfile::TempDir, idle: Duration) -> Self {
        let dir = StateDir::at(tmp.path());
        dir.prepare().unwrap();
        let engine = Fake::default();
        let terminate = Arc::new(Notify::new());
        let daemon = Daemon {
            lock: Lock::try_take(&dir.lock()).unwrap().unwrap(),
            log: Log::to_file(&dir.log(None), LogLevel::default()),
            dir,
            engine: engine.clone(),
            idle,
        };
        let (told, ready) = oneshot::channel();
        let daemon = tokio::spawn({
            let terminate = terminate.clone();
            async move {
                let ready = || {
                    let _ = told.send(());
                    Ok(())
                };
                daemon.live(ready, terminate.notified()).await
            }
        });
        ready.await.unwrap();
        Self {
            tmp,
            engine,
            terminate,
            daemon,
        }
    }

    fn dir(&self) -> StateDir {
        StateDir::at(self.tmp.path())
    }

    fn client(&self) -> DaemonClient {
        DaemonClient::new(self.dir())
    }

    fn left(&self) -> Vec<String> {
        let connections = std::fs::read_dir(self.dir().connections()).unwrap();
        let names = connections.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.extend(self.dir().socket().exists().then(|| "socket".to_owned()));
        names.sort();
        names
    }
}

#[tokio::test]
async fn commands_are_answered_until_quit() {
    let rig = Rig::start(IDLE).await;
    let client = rig.client();
    assert!(client.find().await.unwrap());
    let mut steps = Vec::new();
    let asked = request(ID, &["127.0.0.1:0"]);
    let opened = client.connect(&asked, |step| steps.push(step.to_owned()));
    assert_eq!(opened.await.unwrap().id, ID);
    assert!(
        steps.iter().any(|step| step.contains("socks answers on")),
        "{steps:?}"
    );
    client.use_current(ID).await.unwrap();
    let status = client.status().await.unwrap();
    assert_eq!(status.current, ID);
    assert_eq!(status.daemon.unwrap().pid, std::process::id());
    let refused = client
        .connect(&request("none", &[]), |_| {})
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::Internal);
    let unknown = client
        .disconnect(Some("ba9876543210"), true)
        .await
        .unwrap_err();
    assert_eq!(unknown.code, Code::NoSuchConnection);
    client.set_log_level(LogLevel::Debug).await.unwrap();
    let query = ConnectionQuery {
        cluster: asked.cluster.clone(),
        kubeconfig_selection: asked.kubeconfig_selection.clone(),
        policy: None,
    };
    let found = client.find_connection(&query).await.unwrap();
    assert_eq!(found.unwrap().id, ID);
    assert_eq!(client.disconnect(Some(ID), true).await.unwrap(), [ID]);
    assert_eq!(rig.engine.world().sessions, 0);
    client.connect(&request(ID, &[]), |_| {}).await.unwrap();
    client.quit(true).await.unwrap();
    rig.daemon.await.unwrap().unwrap();
    assert_eq!(
        std::fs::read_dir(StateDir::at(rig.tmp.path()).connections())
            .unwrap()
            .count(),
        0
    );
    assert!(!client.find().await.unwrap());
    // The second time, there is nothing to end.
    client.quit(true).await.unwrap();
}

#[tokio::test]
async fn terminated_daemon_leaves_what_brings_the_connections_back() {
    let rig = Rig::start(IDLE).await;
    let client = rig.client();
    client
        .connect(&request(ID, &["127.0.0.1:0"]), |_| {})
        .await
        .unwrap();
    rig.terminate.notify_one();
    while !rig.daemon.is_finished() {
        tokio::task::yield_now().await;
    }
    let state = [
        format!("{ID}.json"),
        format!("{ID}.kubeconfig"),
        "current".into(),
    ];
    assert_eq!(rig.left(), state);
    let rig = Rig::start_in(rig.tmp, IDLE).await;
    let status = rig.client().status().await.unwrap();
    assert_eq!(status.list[0].id, ID);
    rig.client().quit(true).await.unwrap();
    assert_eq!(rig.left(), [""; 0]);
}

/// `connect --foreground` waits for the end after it has printed the ID, and another command may have closed it by then.
#[tokio::test]
async fn end_that_came_before_it_was_waited_for_is_an_end() {
    let rig = Rig::start(IDLE).await;
    let client = rig.client();
    client.connect(&request(ID, &[]), |_| {}).await.unwrap();
    client.disconnect(Some(ID), true).await.unwrap();
    client.ended(ID).await.unwrap();
    client.connect(&request(ID, &[]), |_| {}).await.unwrap();
    client.quit(true).await.unwrap();
    client.ended(ID).await.unwrap();
    // A daemon that ended and left the state file was killed, and the connection will be restored.
    std::fs::create_dir_all(rig.dir().connections()).unwrap();
    std::fs::write(rig.dir().state(ID), "").unwrap();
    let killed = client.ended(ID).await.unwrap_err();
    assert_eq!(killed.code, Code::NotRunning);
}

#[tokio::test]
async fn idle_daemon_ends_by_itself() {
    let rig = Rig::start(Duration::from_millis(1)).await;
    rig.daemon.await.unwrap().unwrap();
    let dir = StateDir::at(rig.tmp.path());
    assert!(!dir.socket().exists());
    assert!(Lock::try_take(&dir.lock()).unwrap().is_some());
}

/// Without a daemon, a command deletes the files of a connection, unless another process has the lock.
#[tokio::test]
async fn connection_is_forgotten_without_a_daemon() {
    let rig = Rig::start(IDLE).await;
    let client = rig.client();
    client.connect(&request(ID, &[]), |_| {}).await.unwrap();
    rig.terminate.notify_one();
    while !rig.daemon.is_finished() {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.disconnect(Some(ID), false).await.unwrap(), [ID]);
    assert_eq!(rig.left(), [""; 0]);
    let unknown = client.disconnect(Some(ID), false).await.unwrap_err();
    assert_eq!(unknown.code, Code::NoSuchConnection);
    assert_eq!(client.disconnect(None, false).await.unwrap(), [""; 0]);
    assert!(!client.ensure_if_needed().await.unwrap());
}

/// Another process, named in the daemon's lock.
struct Bystander {
    child: std::process::Child,
    process: Process,
}

impl Bystander {
    fn start() -> Self {
        let child = std::process::Command::new("sleep").arg("600").spawn();
        let child = child.unwrap();
        let process = Process::of(child.id()).unwrap();
        Self { child, process }
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A held lock, with a paused clock.
fn locked() -> (tempfile::TempDir, StateDir, Lock) {
    let tmp = tempfile::tempdir().unwrap();
    let dir = StateDir::at(tmp.path());
    dir.prepare().unwrap();
    let lock = Lock::try_take(&dir.lock()).unwrap().unwrap();
    (tmp, dir, lock)
}

/// If the holder of the lock cannot be identified, `quit` fails, names the file and signals no process.
#[tokio::test(start_paused = true)]
async fn quit_is_bounded_when_the_holder_of_the_lock_is_unknown() {
    let (_tmp, dir, lock) = locked();
    let client = DaemonClient::new(dir);
    let quit = tokio::time::timeout(Duration::from_secs(60), client.quit(true));
    let said = quit.await.expect("quit goes on and on").unwrap_err();
    assert_eq!(said.code, Code::NotRunning);
    assert!(said.message.contains("daemon.lock"), "{said}");
    drop(lock);
}

/// If another daemon has the lock by now, `quit` leaves it and its files alone.
#[tokio::test(start_paused = true)]
async fn quit_leaves_the_next_daemon_alone() {
    let (_tmp, dir, mut lock) = locked();
    std::fs::write(dir.state(ID), "of the next daemon").unwrap();
    let (first, mut next) = (Bystander::start(), Bystander::start());
    lock.sign(&first.process).unwrap();
    let successor = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(first);
        lock.sign(&next.process).unwrap();
    };
    let client = DaemonClient::new(dir.clone());
    let (quit, ()) = tokio::join!(client.quit(true), successor);
    quit.unwrap();
    assert!(next.child.try_wait().unwrap().is_none());
    assert!(dir.state(ID).exists());
}

#[test]
fn idle_times() {
    assert_eq!(idle_time("2m").unwrap(), Duration::from_secs(120));
    for text in ["0s", "soon", ""] {
        let error = idle_time(text).unwrap_err();
        assert_eq!(error.code, Code::InvalidValue);
        assert!(error.message.contains(IDLE_VARIABLE), "{error}");
    }
}
