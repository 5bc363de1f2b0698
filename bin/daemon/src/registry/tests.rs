//! The registry with the fake engine and a paused clock.

use std::sync::Arc;
use std::time::Duration;

use kubevpn_conn::Addr;
use kubevpn_proxy::Policy;
use kubevpn_target::Refusal;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::{DRAIN, Registry};
use crate::api::{
    ConnectRequest, ConnectionQuery, ConnectionState, OpenedConnection, StatusReport,
};
use crate::engine::EngineSession as _;
use crate::error::{ApiError, Code};
use crate::fake::{Fake, ID, kubeconfig, request};
use crate::log::LogLevel;
use crate::state_dir::StateDir;

mod login;

const OTHER: &str = "ba9876543210";
const FREE: &str = "127.0.0.1:0";

struct Rig {
    tmp: tempfile::TempDir,
    engine: Fake,
    registry: Arc<Registry<Fake>>,
}

impl Rig {
    async fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap()).await
    }

    /// A new engine, with the files in `tmp`.
    async fn at(tmp: tempfile::TempDir) -> Self {
        let engine = Fake::default();
        let registry = start(&tmp, &engine).await;
        Self {
            tmp,
            engine,
            registry,
        }
    }

    fn dir(&self) -> StateDir {
        StateDir::at(self.tmp.path())
    }

    async fn connect(&self, request: ConnectRequest) -> Result<OpenedConnection, ApiError> {
        self.registry.connect(request, &|_| {}).await
    }

    async fn open(&self, id: &str, addresses: &[&str]) -> OpenedConnection {
        self.connect(request(id, addresses)).await.unwrap()
    }

    fn state(&self) -> (ConnectionState, String) {
        let status = self.registry.status();
        (status.list[0].state, status.list[0].reason.clone())
    }

    /// Whether probes are answered that the proxy is ready.
    fn is_ready(&self) -> bool {
        let connection = self.registry.get(ID).unwrap();
        connection
            .session
            .view()
            .unwrap()
            .journal()
            .is_all_listening()
    }

    fn bound(&self) -> Vec<String> {
        self.engine.world().bound.iter().cloned().collect()
    }

    /// Restarts after a kill: a new engine with the same files and addresses.
    async fn crash(self) -> Self {
        let Self { tmp, registry, .. } = self;
        registry
            .inner()
            .connections
            .values()
            .for_each(|entry| entry.monitor.abort());
        drop(registry);
        Self::at(tmp).await
    }
}

async fn start(tmp: &tempfile::TempDir, engine: &Fake) -> Arc<Registry<Fake>> {
    let dir = StateDir::at(tmp.path());
    dir.prepare().unwrap();
    Registry::bring_back(dir, engine.clone()).await.unwrap()
}

fn ids(status: &StatusReport) -> Vec<&str> {
    status.list.iter().map(|c| c.id.as_str()).collect()
}

fn addr(text: &str) -> Addr {
    text.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn listeners_are_attached_once() {
    let rig = Rig::new().await;
    let opened = rig.open(ID, &[FREE]).await;
    assert_eq!(opened.listeners[0].bound, addr("127.0.0.1:40001"));
    assert!(!opened.listeners[0].already);
    let again = rig.open(ID, &[FREE, "127.0.0.1:7"]).await;
    let found: Vec<_> = again.listeners.iter().map(|l| l.already).collect();
    assert_eq!(found, [true, false]);
    assert_eq!(rig.bound(), ["127.0.0.1:40001", "127.0.0.1:7"]);
    let status = rig.registry.status();
    assert_eq!((ids(&status), status.current.as_str()), (vec![ID], ID));
    assert_eq!(status.list[0].listeners.len(), 2);
    assert_eq!(rig.engine.world().sessions, 1);
}

#[tokio::test(start_paused = true)]
async fn failed_connect_changes_nothing() {
    let rig = Rig::new().await;
    rig.engine.world().bound.insert("127.0.0.1:9".into());
    let error = rig
        .connect(request(ID, &[FREE, "127.0.0.1:9"]))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::AddressInUse);
    assert_eq!(
        (rig.bound(), rig.engine.world().sessions),
        (vec!["127.0.0.1:9".into()], 0)
    );
    assert!(!rig.dir().has_connections() && !rig.dir().kubeconfig(ID).exists());
    rig.engine.world().api = Some(Refusal::Unauthenticated);
    let error = rig.connect(request(ID, &[FREE])).await.unwrap_err();
    assert_eq!(error.code, Code::Refused(Refusal::Unauthenticated));
    assert_eq!(rig.bound(), ["127.0.0.1:9"]);
    rig.engine.world().api = None;
    // The same with an open connection.
    rig.open(ID, &["127.0.0.1:7"]).await;
    let before = std::fs::read(rig.dir().state(ID)).unwrap();
    let error = rig
        .connect(request(ID, &[FREE, "127.0.0.1:9"]))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::AddressInUse);
    assert_eq!(rig.bound(), ["127.0.0.1:7", "127.0.0.1:9"]);
    assert_eq!(std::fs::read(rig.dir().state(ID)).unwrap(), before);
}

/// If the state file cannot be written, the connection stays as it was, and nothing new is left.
#[tokio::test(start_paused = true)]
async fn full_disk_changes_nothing() {
    let rig = Rig::new().await;
    let state = rig.dir().state(ID);
    std::fs::create_dir_all(state.join("in the way")).unwrap();
    let error = rig.connect(request(ID, &[FREE])).await.unwrap_err();
    assert_eq!(error.code, Code::Other);
    assert_eq!((rig.bound(), rig.engine.world().sessions), (vec![], 0));
    assert!(!rig.dir().kubeconfig(ID).exists());
    std::fs::remove_dir_all(&state).unwrap();
    rig.open(ID, &["127.0.0.1:7"]).await;
    std::fs::rename(&state, state.with_extension("away")).unwrap();
    std::fs::create_dir_all(state.join("in the way")).unwrap();
    rig.connect(request(ID, &[FREE])).await.unwrap_err();
    assert_eq!(rig.bound(), ["127.0.0.1:7"]);
    assert_eq!(rig.registry.status().list[0].listeners.len(), 1);
}

/// The current connection does not change if it cannot be stored.
#[tokio::test(start_paused = true)]
async fn current_connection_changes_on_disk_first() {
    let rig = Rig::new().await;
    rig.open(ID, &[FREE]).await;
    rig.open(OTHER, &[FREE]).await;
    assert_eq!(rig.registry.status().current, OTHER);
    rig.registry.use_current(ID).await.unwrap();
    assert_eq!(rig.dir().read_current().unwrap(), ID);
    let path = rig.dir().current();
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir_all(path.join("in the way")).unwrap();
    rig.registry.use_current(OTHER).await.unwrap_err();
    assert_eq!(rig.registry.status().current, ID);
    let error = rig.registry.use_current("none").await.unwrap_err();
    assert_eq!(error.code, Code::NoSuchConnection);
}

#[tokio::test(start_paused = true)]
async fn other_credentials_or_settings_are_a_conflict() {
    let rig = Rig::new().await;
    rig.open(ID, &["127.0.0.1:7"]).await;
    let mut other = request(ID, &[FREE]);
    other.kubeconfig_selection.user = Some("other".into());
    assert_eq!(rig.connect(other).await.unwrap_err().code, Code::Conflict);
    let mut other = request(ID, &[FREE]);
    other.policy = Some(Policy {
        wait_ready: Some(Duration::from_secs(1)),
        ..Policy::default()
    });
    assert_eq!(rig.connect(other).await.unwrap_err().code, Code::Conflict);
    let mut other = request(ID, &["127.0.0.1:7"]);
    other.listeners[0].max_connections = 1;
    assert_eq!(rig.connect(other).await.unwrap_err().code, Code::Conflict);
    let error = rig
        .connect(request("../../etc", &[FREE]))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Internal);
    assert_eq!(rig.bound(), ["127.0.0.1:7"]);
}

/// The same kubeconfig, context and namespace are one connection, even if the namespace has a new UID.
#[tokio::test(start_paused = true)]
async fn connection_keeps_its_id() {
    let rig = Rig::new().await;
    rig.open(ID, &[FREE]).await;
    let mut again = request(ID, &["127.0.0.1:7"]);
    again.id = OTHER.into();
    assert_eq!(rig.connect(again).await.unwrap().id, ID);
    assert_eq!(ids(&rig.registry.status()), [ID]);
}

/// A command finds only the connection of its own kubeconfig, context and namespace.
#[tokio::test(start_paused = true)]
async fn connection_is_found_by_kubeconfig_context_and_namespace() {
    let rig = Rig::new().await;
    let asked = request(ID, &["127.0.0.1:7"]);
    let query = ConnectionQuery {
        cluster: asked.cluster.clone(),
        kubeconfig_selection: asked.kubeconfig_selection.clone(),
        policy: None,
    };
    assert!(rig.registry.find(&query).is_none());
    rig.connect(asked).await.unwrap();
    let found = rig.registry.find(&query).unwrap();
    assert_eq!((found.id.as_str(), found.listeners.len()), (ID, 1));
    let same = ConnectionQuery {
        policy: Some(Policy::default()),
        ..query.clone()
    };
    assert!(rig.registry.find(&same).is_some());
    let mut others = [query.clone(), query.clone(), query];
    others[0].cluster.namespace = "other".into();
    others[1].kubeconfig_selection.user = Some("other".into());
    others[2].policy = Some(Policy {
        wait_ready: Some(Duration::from_secs(1)),
        ..Policy::default()
    });
    for other in others {
        assert!(rig.registry.find(&other).is_none(), "{other:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn disconnect_leaves_nothing_but_the_log() {
    let rig = Rig::new().await;
    rig.open(OTHER, &[FREE]).await;
    rig.open(ID, &[FREE]).await;
    let ended = {
        let registry = rig.registry.clone();
        tokio::spawn(async move { registry.ended(ID).await })
    };
    tokio::task::yield_now().await;
    rig.registry.disconnect(ID, DRAIN).await.unwrap();
    ended.await.unwrap().unwrap();
    assert_eq!(rig.engine.world().ended, [DRAIN]);
    let dir = rig.dir();
    assert!(!dir.state(ID).exists() && !dir.kubeconfig(ID).exists() && dir.log(Some(ID)).exists());
    let status = rig.registry.status();
    assert_eq!(
        (ids(&status), status.current.as_str()),
        (vec![OTHER], OTHER)
    );
    assert_eq!(dir.read_current().unwrap(), OTHER);
    let error = rig.registry.disconnect(ID, DRAIN).await.unwrap_err();
    assert_eq!(error.code, Code::NoSuchConnection);
    assert_eq!(
        rig.registry.ended(ID).await.unwrap_err().code,
        Code::NoSuchConnection
    );
    assert_eq!(
        rig.registry.disconnect_all(Duration::ZERO).await.unwrap(),
        [OTHER]
    );
    assert_eq!((rig.bound(), rig.engine.world().sessions), (vec![], 0));
    assert_eq!(dir.read_current().unwrap(), "");
}

/// A connection whose state file cannot be deleted stays open, with an error: it would be restored otherwise.
#[tokio::test(start_paused = true)]
async fn connection_stays_when_its_state_file_does() {
    let rig = Rig::new().await;
    rig.open(ID, &[FREE]).await;
    let state = rig.dir().state(ID);
    std::fs::remove_file(&state).unwrap();
    std::fs::create_dir_all(state.join("in the way")).unwrap();
    rig.registry.disconnect(ID, DRAIN).await.unwrap_err();
    assert_eq!(ids(&rig.registry.status()), [ID]);
    assert_eq!(rig.bound().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn crash_is_recovered_from() {
    let rig = Rig::new().await;
    let mut verbose = request(ID, &[FREE]);
    verbose.log_level = Some(LogLevel::Debug);
    rig.connect(verbose).await.unwrap();
    rig.open(OTHER, &["127.0.0.1:7"]).await;
    std::fs::write(rig.dir().kubeconfig("00000000000a"), "an orphan").unwrap();
    let rig = rig.crash().await;
    let status = rig.registry.status();
    assert_eq!(
        (ids(&status), status.current.as_str()),
        (vec![ID, OTHER], OTHER)
    );
    assert_eq!(rig.bound(), ["127.0.0.1:40001", "127.0.0.1:7"]);
    assert!(!rig.dir().kubeconfig("00000000000a").exists());
    let level = rig.registry.get(ID).unwrap().saved().log_level;
    assert_eq!(level, LogLevel::Debug);
}

/// If the address is in use at the restart, the connection is degraded until the monitor finds it free.
#[tokio::test(start_paused = true)]
async fn listener_waits_for_an_address_in_use() {
    let rig = Rig::new().await;
    rig.open(ID, &["127.0.0.1:7"]).await;
    let Rig { tmp, registry, .. } = rig;
    drop(registry);
    let engine = Fake::default();
    engine.world().bound.insert("127.0.0.1:7".into());
    let registry = start(&tmp, &engine).await;
    let rig = Rig {
        tmp,
        engine,
        registry,
    };
    assert_eq!(rig.state().0, ConnectionState::Degraded);
    assert!(rig.state().1.contains("127.0.0.1:7"), "{:?}", rig.state());
    assert!(!rig.is_ready());
    let error = rig
        .connect(request(ID, &["127.0.0.1:7"]))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::AddressInUse);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.state().0, ConnectionState::Degraded);
    assert!(!rig.is_ready());
    rig.engine.world().bound.clear();
    sleep(Duration::from_secs(3)).await;
    assert!(rig.is_ready());
    assert_eq!(rig.state(), (ConnectionState::Connected, String::new()));
    assert_eq!(rig.bound(), ["127.0.0.1:7"]);
}

/// A command and the monitor may both find that a listener is missing.
#[tokio::test(start_paused = true)]
async fn one_restores_at_a_time() {
    let rig = Rig::new().await;
    rig.open(ID, &["127.0.0.1:7"]).await;
    let rig = rig.crash().await;
    let connection = rig.registry.get(ID).unwrap();
    drop(connection.withdraw(Vec::new()));
    connection.saved().listeners = {
        let saved = crate::saved::Saved::read(&rig.dir(), ID).unwrap();
        saved.listeners
    };
    tokio::join!(connection.restore(), connection.restore());
    assert!(!connection.waits_for_listeners());
}

#[tokio::test(start_paused = true)]
async fn broken_state_file_is_kept_until_it_is_disconnected() {
    let rig = Rig::new().await;
    rig.open(ID, &[FREE]).await;
    std::fs::write(rig.dir().state(ID), "{").unwrap();
    let rig = rig.crash().await;
    let status = rig.registry.status();
    assert_eq!(status.problems[0].id, ID);
    assert!(
        status.problems[0].reason.contains("broken"),
        "{:?}",
        status.problems
    );
    let error = rig.connect(request(ID, &[FREE])).await.unwrap_err();
    assert_eq!(error.code, Code::Conflict);
    assert_eq!(std::fs::read_to_string(rig.dir().state(ID)).unwrap(), "{");
    rig.registry.disconnect(ID, DRAIN).await.unwrap();
    assert!(rig.registry.status().problems.is_empty());
    rig.open(ID, &[FREE]).await;
}

#[tokio::test(start_paused = true)]
async fn monitor_reports_the_answer_of_the_api_server() {
    let rig = Rig::new().await;
    rig.open(ID, &[FREE]).await;
    assert_eq!(rig.state().0, ConnectionState::Connected);
    // The monitor calls every ten seconds.
    rig.engine.world().api = Some(Refusal::ClusterAway);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(
        rig.state(),
        (
            ConnectionState::Unreachable,
            "the API server says no".into()
        )
    );
    rig.engine.world().api = None;
    sleep(Duration::from_secs(11)).await;
    assert_eq!(rig.state().0, ConnectionState::Connected);
    // Refusals of clients cause an earlier call; many at once cause one.
    rig.engine.world().api = Some(Refusal::Unauthenticated);
    let asked = rig.engine.world().asked;
    for _ in 0..100 {
        rig.engine.trouble();
    }
    sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.state().0, ConnectionState::Unauthenticated);
    assert_eq!(rig.engine.world().asked, asked + 1);
}

#[tokio::test(start_paused = true)]
async fn changed_kubeconfig_is_used_and_another_server_is_not() {
    let rig = Rig::new().await;
    let source = rig.tmp.path().join("kubeconfig");
    let write = |text: &str| std::fs::write(&source, text).unwrap();
    // Without TLS no token would be used.
    let server = "https://127.0.0.1:1/";
    let named = |token: &str, server: &str| {
        let mut config = kubeconfig(server);
        config["users"][0]["user"]["token"] = token.into();
        config.to_string()
    };
    write(&named("first", server));
    let mut asked = request(ID, &[FREE]);
    asked.kubeconfig_selection.files = vec![source.clone()];
    asked.kubeconfig_selection.context = Some("c".into());
    asked.cluster.server = {
        let selection = &asked.kubeconfig_selection;
        kubevpn_client::load(&selection.args("shop"), &selection.env())
            .unwrap()
            .server
    };
    rig.connect(asked).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    rig.engine.world().renewed.clear();
    write(&named("a second token", server));
    sleep(Duration::from_secs(3)).await;
    assert_eq!(rig.engine.world().renewed.len(), 1);
    let transient = std::fs::read_to_string(rig.dir().kubeconfig(ID)).unwrap();
    assert!(transient.contains("a second token"), "{transient}");
    for (text, reason) in [
        (named("x", "http://127.0.0.1:22/"), "names"),
        ("{".into(), "kubeconfig"),
    ] {
        write(&text);
        sleep(Duration::from_secs(3)).await;
        assert_eq!(rig.state().0, ConnectionState::Degraded);
        assert!(rig.state().1.contains(reason), "{:?}", rig.state());
    }
    assert_eq!(rig.engine.world().renewed.len(), 1);
    write(&named("a second token", server));
    sleep(Duration::from_secs(3)).await;
    assert_eq!(rig.state().0, ConnectionState::Connected);
}

const IDLE: Duration = Duration::from_secs(300);

#[tokio::test(start_paused = true)]
async fn idle_time_begins_with_the_last_connection_s_end() {
    let rig = Rig::new().await;
    let begun = Instant::now();
    rig.registry.idle(IDLE).await;
    assert_eq!(begun.elapsed(), IDLE);
    let rig = Rig::new().await;
    rig.open(ID, &[FREE]).await;
    timeout(100 * IDLE, rig.registry.idle(IDLE))
        .await
        .unwrap_err();
    let registry = rig.registry.clone();
    let idle = tokio::spawn(async move { registry.idle(IDLE).await });
    sleep(IDLE / 2).await;
    rig.registry.disconnect(ID, DRAIN).await.unwrap();
    sleep(IDLE / 2).await;
    // The idle time begins again with each command that opens a connection, even if that fails.
    rig.engine.world().api = Some(Refusal::ClusterAway);
    rig.connect(request(ID, &[FREE])).await.unwrap_err();
    let begun = Instant::now();
    idle.await.unwrap();
    assert_eq!(begun.elapsed(), IDLE);
    let error = rig.connect(request(ID, &[FREE])).await.unwrap_err();
    assert_eq!(error.code, Code::Ending);
}

/// A `connect` at the moment of the idle limit is either refused with that reason, or keeps the daemon. It never succeeds
/// while the daemon ends.
#[tokio::test(start_paused = true)]
async fn idle_exit_does_not_race_with_a_connect() {
    let (mut stayed, mut refused) = (0, 0);
    for connect_first in [true, false] {
        for (early, before) in (0..2).flat_map(|early| (0..20).map(move |before| (early, before))) {
            let rig = Rig::new().await;
            let gate = Arc::new(Semaphore::new(0));
            rig.engine.world().gate = Some(gate.clone());
            let connect = async {
                sleep(IDLE - Duration::from_millis(early)).await;
                for _ in 0..before {
                    tokio::task::yield_now().await;
                }
                rig.connect(request(ID, &[FREE])).await
            };
            let idle = timeout(IDLE + IDLE / 2, rig.registry.idle(IDLE));
            // The API server answers after the idle limit.
            let answer = async {
                sleep(IDLE + Duration::from_secs(1)).await;
                gate.add_permits(1000);
            };
            let (idle, connected) = match connect_first {
                true => {
                    let (connected, idle, ()) = tokio::join!(connect, idle, answer);
                    (idle, connected)
                }
                false => {
                    let (idle, connected, ()) = tokio::join!(idle, connect, answer);
                    (idle, connected)
                }
            };
            match (idle, connected) {
                (Ok(()), Err(error)) => {
                    assert_eq!(error.code, Code::Ending);
                    assert_eq!(rig.bound(), [""; 0]);
                    refused += 1;
                }
                (Err(_), Ok(_)) => stayed += 1,
                (Ok(()), Ok(_)) => panic!("told that it is there, and the daemon goes"),
                (Err(_), Err(error)) => panic!("refused by a daemon that stays: {error}"),
            }
        }
    }
    assert!(
        stayed > 0 && refused > 0,
        "both happen: {stayed}, {refused}"
    );
}

/// After SIGTERM, all connections are restored at the next start.
#[tokio::test(start_paused = true)]
async fn suspended_connections_come_back() {
    let rig = Rig::new().await;
    rig.open(ID, &[FREE]).await;
    rig.registry.suspend(DRAIN).await;
    assert_eq!((rig.bound(), rig.engine.world().sessions), (vec![], 0));
    let error = rig.connect(request(ID, &[FREE])).await.unwrap_err();
    assert_eq!(error.code, Code::Ending);
    let rig = rig.crash().await;
    assert_eq!(rig.bound(), ["127.0.0.1:40001"]);
}

/// The end waits for a command that opens a connection, and closes that connection.
#[tokio::test(start_paused = true)]
async fn end_waits_for_a_connect() {
    let rig = Rig::new().await;
    let gate = Arc::new(Semaphore::new(0));
    rig.engine.world().gate = Some(gate.clone());
    let connecting = {
        let registry = rig.registry.clone();
        tokio::spawn(async move { registry.connect(request(ID, &[FREE]), &|_| {}).await })
    };
    tokio::task::yield_now().await;
    rig.registry.refuse();
    timeout(Duration::from_secs(60), rig.registry.settle())
        .await
        .unwrap_err();
    gate.add_permits(1000);
    rig.registry.settle().await;
    connecting.await.unwrap().unwrap();
    assert_eq!(rig.registry.disconnect_all(DRAIN).await.unwrap(), [ID]);
    assert_eq!((rig.bound(), rig.engine.world().sessions), (vec![], 0));
}
