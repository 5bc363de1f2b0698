//! The examples, which compose the stack as users of the library do, against the simulation.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use kubevpn_sim::Sim;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A cluster, and its kubeconfig.
struct Rig {
    sim: Sim,
    dir: tempfile::TempDir,
}

impl Rig {
    async fn start() -> Self {
        let sim = Sim::builder().sample().start().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        sim.write_kubeconfig(dir.path()).unwrap();
        Self { sim, dir }
    }

    fn example(&self, name: &str, words: &[&str]) -> Child {
        let program = example(name);
        Command::new(&program)
            .args(words)
            .env("KUBECONFIG", self.sim.write_kubeconfig(self.dir.path()).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| {
                panic!(
                    "cannot run {}: {e}; `cargo test -p kubevpn-stack` builds it, `--test examples` alone does not",
                    program.display()
                )
            })
    }
}

/// Cargo puts examples beside the directory of the tests.
fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.join("examples")
        .join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// A program that answers each line with one.
struct Asked {
    _process: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Asked {
    fn new(mut process: Child) -> Self {
        Self {
            stdin: process.stdin.take().unwrap(),
            stdout: BufReader::new(process.stdout.take().unwrap()).lines(),
            _process: process,
        }
    }

    async fn ask(&mut self, line: &str) -> String {
        let asked = async {
            let line = format!("{line}\n");
            self.stdin.write_all(line.as_bytes()).await.unwrap();
            self.stdout.next_line().await.unwrap().expect("an answer")
        };
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, asked).await.expect("it hangs")
    }
}

#[tokio::test]
async fn layers_of_ones_own() {
    let rig = Rig::start().await;
    let mut asked = Asked::new(rig.example("own_layers", &["productpage", "multi"]));
    let refused = asked.ask("reviews:80").await;
    assert_eq!(refused, "denied: reviews is not on the list");
    for target in ["productpage:9080", "multi:7007"] {
        let open = asked.ask(target).await;
        assert!(open.starts_with("open default/"), "{target}: {open}");
    }
    // A permit is held while a stream is open, and not only during the dial.
    let full = asked.ask("multi:7007").await;
    assert_eq!(
        full,
        "overloaded: multi:7007 has to wait: 2 streams are open"
    );
    // A target that the list refuses takes no permit.
    assert!(asked.ask("reviews:80").await.starts_with("denied: "));
    assert_eq!(asked.ask("close").await, "closed");
    let open = asked.ask("multi:7007").await;
    assert!(open.starts_with("open default/multi-"), "{open}");
    // The layers below work: a failed dial returns its permit too.
    assert_eq!(asked.ask("close").await, "closed");
    let nothing = asked.ask("productpage:81").await;
    assert!(nothing.starts_with("no_such_port: "), "{nothing}");
    assert!(asked.ask("productpage:9080").await.starts_with("open "));
}

#[tokio::test]
async fn without_a_layer() {
    let rig = Rig::start().await;
    let mut process = rig.example("without_ready", &["notready:80"]);
    let mut stdin = process.stdin.take().unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: notready\r\nConnection: close\r\n\r\n";
    stdin.write_all(request).await.unwrap();
    drop(stdin);
    let ended = process.wait_with_output();
    let limit = Duration::from_secs(60);
    let ended = tokio::time::timeout(limit, ended).await.expect("it hangs");
    let Output { stdout, stderr, .. } = ended.unwrap();
    let said = String::from_utf8_lossy(&stdout);
    let errors = String::from_utf8_lossy(&stderr);
    assert!(said.contains(r#""service":"notready""#), "{said}{errors}");
}
