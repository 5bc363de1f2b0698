//! Managed mode, and where it goes wrong.
//!
//! On the cluster in memory; with `KUBEVPN_LAB` in the environment on the real one.
#![cfg(target_os = "linux")]

mod managed {
    mod canaries;
    mod commands;
    mod crashes;
    mod credentials;
    mod faults;
    mod inside;
    mod login;
    mod privacy;
    mod tap;
}

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kubevpn_scenarios::managed::{Managed, connection, id_of, listener};
use kubevpn_scenarios::{Curl, Socks};
use kubevpn_sim::Sim;
use serde_json::Value;

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

fn schema() -> jsonschema::Validator {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/status.schema.json");
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
