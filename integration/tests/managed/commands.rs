//! What people do with the commands: follow and watch, ask twice, press Ctrl-C in the middle.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use kubevpn_scenarios::Socks;
use kubevpn_scenarios::managed::{connection, id_of, listener};
use kubevpn_sim::Sim;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::sleep;

use crate::{Rig, eventually, ids, works};

/// How often is looked for what nothing tells us of.
const LOOK: Duration = Duration::from_millis(20);

/// A command that goes on, and what it prints.
pub(super) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    pub(super) fn start(rig: &Rig, words: &[&str]) -> Self {
        let mut command = rig.managed.command(words);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads on to the line with this in it.
    pub(super) async fn says(&mut self, word: &str) -> String {
        let reading = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if line.contains(word) {
                    return line;
                }
            }
            panic!("it ended before it said {word}");
        };
        eventually(word, reading).await
    }

    /// Sends a signal, and waits for the end it brings.
    pub(super) async fn ends(self, signal: &str, code: i32) {
        self.signal(signal).await;
        self.ended(code).await;
    }

    /// Waits for its end.
    pub(super) async fn ended(mut self, code: i32) {
        let status = eventually("its end", self.child.wait()).await.unwrap();
        assert_eq!(status.code(), Some(code));
    }

    async fn signal(&self, signal: &str) {
        let pid = self.child.id().unwrap().to_string();
        let mut kill = tokio::process::Command::new("kill");
        assert!(kill.args([signal, &pid]).status().await.unwrap().success());
    }
}

/// `disconnect` and `quit` do what they were asked even if whoever asked does not wait for it.
#[tokio::test]
async fn a_command_that_goes_away() {
    let rig = Rig::start().await;
    for words in [["disconnect"].as_slice(), &["quit"]] {
        let (id, socks) = rig.open().await;
        // A client that does not end by itself: it has five seconds.
        let mut client = Socks::connect(socks, "productpage", 9080).await.unwrap();
        let mut command = words.to_vec();
        if words == ["disconnect"] {
            command.push(&id);
        }
        let running = Running::start(&rig, &command);
        eventually("the listener closes", async {
            while tokio::net::TcpStream::connect(socks).await.is_ok() {
                sleep(LOOK).await;
            }
        })
        .await;
        running.signal("-KILL").await;
        let cut = client.read_u8();
        assert!(eventually("the client is cut", cut).await.is_err());
        eventually("nothing is left of it", async {
            let is_left = |file: &String| file.starts_with(&id);
            while rig.managed.files().unwrap().iter().any(is_left) {
                sleep(LOOK).await;
            }
        })
        .await;
        // The daemon goes with the last word of `quit`, and is of use after `disconnect`.
        if words == ["quit"] {
            rig.managed.gone().await.unwrap();
            assert_eq!(rig.managed.files().unwrap(), [""; 0]);
        }
        let status = rig.managed.status().await.unwrap();
        assert_eq!(ids(&status), [""; 0]);
    }
    rig.managed.quit().await.unwrap();
}

/// A daemon that hangs before it is ready, as on a file that cannot be read to its end: the command says so and ends.
#[tokio::test]
async fn a_daemon_that_does_not_start() {
    let rig = Rig::start().await;
    let home = rig.make_home();
    std::fs::create_dir(home.join("connections")).unwrap();
    let state = home.join("connections/0123456789ab.json");
    let mut make = tokio::process::Command::new("mkfifo");
    assert!(make.arg(&state).status().await.unwrap().success());
    let status = rig.managed.run(&["status"]).await.unwrap();
    status
        .with(80, &["does not start", "kubevpn quit"])
        .unwrap();
    rig.managed.quit().await.unwrap();
}

/// A new connection has the usual SOCKS5 listener; one that listens already keeps what it has.
#[tokio::test]
async fn connect_alone_opens_the_usual_listener() {
    let mut rig = Rig::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "listen-socks = '127.0.0.1:0'\n").unwrap();
    let config = config.to_str().unwrap().to_owned();
    rig.managed.environment = vec![("KUBEVPN_CONFIG".into(), config)];
    let connect = async |words: &[&str]| rig.managed.connect(&rig.kubeconfig, words).await.unwrap();
    let said = connect(&[]).await.with(0, &["Started", "SOCKS5"]).unwrap();
    let id = id_of(&said).unwrap();
    let status = rig.managed.status().await.unwrap();
    works(listener(&status, &id, "socks").unwrap()).await;
    connect(&[])
        .await
        .with(0, &["with its listeners", &id])
        .unwrap();
    // Another listener is that listener alone.
    rig.managed.quit().await.unwrap();
    connect(&["--http", "127.0.0.1:0"])
        .await
        .with(0, &["Started", "HTTP"])
        .unwrap();
    connect(&[]).await.with(0, &["with its listeners"]).unwrap();
    let status = rig.managed.status().await.unwrap();
    assert!(listener(&status, &id, "socks").is_err(), "{status}");
    rig.managed.quit().await.unwrap();
}

/// The usual listener was not asked for, and does not keep a second connection from being opened.
#[tokio::test]
async fn connect_alone_while_its_usual_port_is_taken() {
    let mut rig = Rig::start().await;
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, format!("listen-socks = '{address}'\n")).unwrap();
    let config = config.to_str().unwrap().to_owned();
    rig.managed.environment = vec![("KUBEVPN_CONFIG".into(), config)];
    let connect = async |words: &[&str]| rig.managed.connect(&rig.kubeconfig, words).await.unwrap();
    let said = connect(&[]).await.with(0, &["Started", &address]).unwrap();
    let first = id_of(&said).unwrap();
    let holder = format!("{address} is taken by connection {first}");
    let advice = "kubevpn connect --socks 127.0.0.1:0";
    let other = ["-n", "team-a"];
    let said = connect(&other).await.with(0, &[&holder, advice]).unwrap();
    let second = id_of(&said).unwrap();
    assert_ne!(first, second);
    // One that is asked for is missed.
    let asked = ["-n", "team-a", "--socks", &*address];
    connect(&asked).await.with(53, &["in use"]).unwrap();
    let asked = ["-n", "team-a", "--socks", "127.0.0.1:0"];
    connect(&asked)
        .await
        .with(0, &["Started", &second])
        .unwrap();
    rig.managed.quit().await.unwrap();
    let thief = TcpListener::bind(&address).unwrap();
    let holder = format!("{address} is taken by another program");
    connect(&[]).await.with(0, &[&holder, advice]).unwrap();
    drop(thief);
    rig.managed.quit().await.unwrap();
}

/// `connect --foreground` as a unit with `Type=notify`; its daemon, which does not get the socket, tells nothing.
#[tokio::test]
async fn a_service_manager_is_told() {
    let mut rig = Rig::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = tokio::net::UnixDatagram::bind(&path).unwrap();
    let told = async || {
        let mut bytes = [0; 4096];
        let length = eventually("a message", manager.recv(&mut bytes)).await;
        String::from_utf8_lossy(&bytes[..length.unwrap()]).into_owned()
    };
    rig.managed.environment = vec![("NOTIFY_SOCKET".into(), path.to_str().unwrap().into())];
    let words = [
        "connect",
        "--foreground",
        "--socks",
        "127.0.0.1:0",
        "--kubeconfig",
        rig.kubeconfig.to_str().unwrap(),
    ];
    let command = Running::start(&rig, &words);
    let ready = told().await;
    assert!(ready.starts_with("READY=1\nSTATUS=connection "), "{ready}");
    command.ends("-TERM", 0).await;
    let stopping = told().await;
    assert!(stopping.starts_with("STOPPING=1\n"), "{stopping}");
    rig.managed.quit().await.unwrap();
    let more = manager.try_recv(&mut [0; 64]).unwrap_err();
    assert_eq!(more.kind(), std::io::ErrorKind::WouldBlock);
}

/// A listener that is not bound is not said to be found.
#[tokio::test]
async fn a_listener_that_waits_for_its_address() {
    let rig = Rig::start().await;
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let words = ["--socks-listen", &*address];
    let connect = async || rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
    let id = id_of(&connect().await.with(0, &["Started"]).unwrap()).unwrap();
    connect().await.with(0, &["Found"]).unwrap();
    let other = ["--socks-listen", &*address, "--max-connections", "5"];
    let said = rig.managed.connect(&rig.kubeconfig, &other).await.unwrap();
    said.with(53, &[&id, "other settings"]).unwrap();
    rig.managed.kill().await.unwrap();
    let thief = TcpListener::bind(&address).unwrap();
    connect().await.with(53, &[&address, "in use"]).unwrap();
    // Nothing has changed by that: it is still one of the connection's listeners.
    drop(thief);
    connect().await.with(0, &["Found"]).unwrap();
    let status = rig.managed.status().await.unwrap();
    works(listener(&status, &id, "socks").unwrap()).await;
    rig.managed.quit().await.unwrap();
}

/// The second time there is nothing to end, with a daemon and without one.
#[tokio::test]
async fn a_connection_is_ended_twice() {
    let rig = Rig::start().await;
    let (id, _) = rig.open().await;
    let disconnect = async || rig.managed.run(&["disconnect", &id]).await.unwrap();
    disconnect()
        .await
        .with(0, &["Disconnect completed"])
        .unwrap();
    disconnect()
        .await
        .with(51, &[&id, "kubevpn status"])
        .unwrap();
    rig.managed.quit().await.unwrap();
    disconnect()
        .await
        .with(51, &[&id, "kubevpn status"])
        .unwrap();
    // Killed, and ended by two at once: one of them ends it.
    let (id, _) = rig.open().await;
    rig.managed.kill().await.unwrap();
    let disconnect = async || rig.managed.run(&["disconnect", &id]).await.unwrap();
    let (one, other) = tokio::join!(disconnect(), disconnect());
    let mut codes = [one.code, other.code];
    codes.sort();
    assert!(
        codes == [Some(0), Some(0)] || codes == [Some(0), Some(51)],
        "{one:?}, {other:?}"
    );
    rig.managed.quit().await.unwrap();
}

/// What is added to a log is printed as it comes, and goes on when the file was rotated away.
#[tokio::test]
async fn a_log_is_followed() {
    let rig = Rig::start().await;
    let (id, socks) = rig.open().await;
    works(socks).await;
    let mut logs = Running::start(&rig, &["logs", &id, "-f"]);
    logs.says("productpage:9080").await;
    assert!(Socks::connect(socks, "reviews", 81).await.is_err());
    logs.says("reviews:81").await;
    let log = rig.file(&format!("log/{id}.log"));
    std::fs::rename(&log, log.with_extension("log.1")).unwrap();
    std::fs::write(&log, "of the next file\n").unwrap();
    logs.says("of the next file").await;
    logs.ends("-INT", 130).await;
    // All there is, older files first, where nobody follows.
    let said = rig.managed.run(&["logs", &id]).await.unwrap();
    // The clients' side, and the session's.
    let said = said
        .with(0, &["productpage:9080", "session begins"])
        .unwrap();
    assert!(said.stdout.ends_with("of the next file\n"), "{said:?}");
    rig.managed.quit().await.unwrap();
}

/// The document is printed again when it has changed, and not otherwise.
#[tokio::test]
async fn a_status_is_watched() {
    let rig = Rig::start().await;
    let mut watch = Running::start(&rig, &["status", "--watch", "-o", "wide"]);
    watch.says("CURRENT").await;
    let (id, socks) = rig.open().await;
    let line = watch.says(&id).await;
    assert!(line.contains(&socks.to_string()), "{line}");
    assert!(Socks::connect(socks, "productpage", 81).await.is_err());
    watch.says(&id).await;
    let id_words = ["disconnect", &*id];
    let ended = rig.managed.run(&id_words).await.unwrap();
    ended.with(0, &[]).unwrap();
    let line = watch.says("CURRENT").await;
    assert!(line.starts_with("CURRENT"), "{line}");
    watch.ends("-INT", 130).await;
    rig.managed.quit().await.unwrap();
}

/// The connection stays with the cluster it was made to, and says so; the new one is another connection.
#[tokio::test]
async fn the_kubeconfig_comes_to_name_another_server() {
    let (here, there) = (Sim::builder().sample(), Sim::builder().sample());
    let (here, there) = (here.start().await.unwrap(), there.start().await.unwrap());
    let rig = Rig::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let names = |sim: &Sim| {
        let new = path.with_extension("new");
        std::fs::write(&new, sim.kubeconfig_yaml()).unwrap();
        std::fs::rename(new, &path).unwrap();
    };
    let open = async || {
        let words = ["--socks-listen", "127.0.0.1:0"];
        let said = rig.managed.connect(&path, &words).await.unwrap();
        id_of(&said.with(0, &[]).unwrap()).unwrap()
    };
    names(&here);
    let id = open().await;
    names(&there);
    let is = async |state: &str| -> Value {
        let waiting = async {
            loop {
                let status = rig.managed.status().await.unwrap();
                if connection(&status, &id).unwrap()["State"] == state {
                    return status;
                }
                sleep(LOOK).await;
            }
        };
        eventually(state, waiting).await
    };
    let status = is("degraded").await;
    let found = connection(&status, &id).unwrap();
    let reason = found["Reason"].as_str().unwrap();
    for word in [here.server_url(), there.server_url(), "disconnect"] {
        assert!(reason.contains(word), "{reason}");
    }
    works(listener(&status, &id, "socks").unwrap()).await;
    let other = open().await;
    assert_ne!(other, id);
    let status = rig.managed.status().await.unwrap();
    works(listener(&status, &other, "socks").unwrap()).await;
    names(&here);
    let status = is("connected").await;
    works(listener(&status, &id, "socks").unwrap()).await;
    rig.managed.quit().await.unwrap();
}

/// `env` and `pac` name the listeners of the current connection, where a daemon has one.
#[tokio::test]
async fn listeners_of_the_daemon_are_named() {
    let rig = Rig::start().await;
    let (_, socks) = rig.open().await;
    let kubeconfig = rig.kubeconfig.to_str().unwrap();
    let all = format!("ALL_PROXY='socks5h://{socks}'");
    for words in [&["env", "--kubeconfig", kubeconfig][..], &["env"]] {
        // The current connection is all that is wanted: no kubeconfig is.
        let mut command = rig.managed.command(words);
        let output = command.env("HOME", "/nonexistent").output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        assert!(said.contains(&all), "{words:?}: {said}");
    }
    // Another namespace would be another connection, and that is not there.
    let words = ["env", "--kubeconfig", kubeconfig, "-n", "team-a"];
    let said = rig.managed.run(&words).await.unwrap();
    said.with(0, &["127.0.0.1:1080"]).unwrap();
    let said = rig
        .managed
        .run(&["pac", "--kubeconfig", kubeconfig])
        .await
        .unwrap();
    said.with(0, &[&format!("SOCKS5 {socks}")]).unwrap();
    rig.managed.quit().await.unwrap();
    // No daemon is started for it.
    let said = rig
        .managed
        .run(&["env", "--kubeconfig", kubeconfig])
        .await
        .unwrap();
    said.with(0, &["127.0.0.1:1080"]).unwrap();
    assert_eq!(rig.managed.processes().unwrap(), [0; 0]);
}

/// `run` uses the connection to its own cluster, context and namespace where that speaks HTTP, and makes a proxy of its own
/// otherwise.
#[tokio::test]
async fn run_uses_the_connection_to_its_cluster() {
    let rig = Rig::start().await;
    let kubeconfig = rig.kubeconfig.to_str().unwrap();
    let proxy_of = async |words: &[&str], environment: &[(&str, &str)]| {
        let run = ["run", "--kubeconfig", kubeconfig];
        let script = [
            "--",
            "sh",
            "-c",
            "echo $http_proxy; exec curl -sS http://productpage.default:9080/",
        ];
        let mut command = rig.managed.command(&[&run[..], words, &script].concat());
        let output = command.envs(environment.iter().copied()).output();
        let output = output.await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        let (proxy, answer) = said.split_once('\n').unwrap();
        assert!(answer.contains(r#""service":"productpage""#), "{said}");
        proxy.to_owned()
    };
    let (id, _) = rig.open().await;
    // SOCKS alone is not for Go, Java and Node.
    let own = proxy_of(&[], &[]).await;
    let words = ["--http-listen", "127.0.0.1:0"];
    let said = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
    said.with(0, &[&id]).unwrap();
    let status = rig.managed.status().await.unwrap();
    let http = format!("http://{}", listener(&status, &id, "http").unwrap());
    assert_ne!(own, http);
    assert_eq!(proxy_of(&[], &[]).await, http);
    let total = |status: &Value| {
        let found = connection(status, &id).unwrap();
        found["Traffic"]["TotalConnections"].as_u64().unwrap()
    };
    let before = rig.managed.status().await.unwrap();
    assert_eq!(total(&before), total(&status) + 1);
    for (words, environment) in [
        (&["-n", "team-a"][..], &[][..]),
        (&["--outside", "direct"], &[]),
        (&["--request-timeout", "29s"], &[]),
        (&[], &[("KUBEVPN_AUTH", "ann:s3cret")]),
    ] {
        let own = proxy_of(words, environment).await;
        assert!(!own.ends_with(&http["http://".len()..]), "{words:?}: {own}");
    }
    assert_eq!(total(&rig.managed.status().await.unwrap()), total(&before));
    rig.managed.quit().await.unwrap();
    assert_ne!(proxy_of(&[], &[]).await, http);
    assert_eq!(rig.managed.processes().unwrap(), [0; 0]);
}

/// `nc` goes through the connection to its cluster, and says itself why something is refused.
#[tokio::test]
async fn nc_uses_the_connection_to_its_cluster() {
    let rig = Rig::start().await;
    let kubeconfig = rig.kubeconfig.to_str().unwrap();
    let nc = async |port: &str| {
        let words = ["nc", "productpage", port, "--kubeconfig", kubeconfig];
        let mut command = rig.managed.command(&words);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        // A command that was refused reads nothing.
        let mut input = child.stdin.take().unwrap();
        let _ = input.write_all(b"GET / HTTP/1.0\r\n\r\n").await;
        drop(input);
        let output = eventually("its end", child.wait_with_output())
            .await
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let is_answered = |(code, said): (Option<i32>, String)| {
        let answered = code == Some(0) && said.contains(r#""service":"productpage""#);
        assert!(answered, "{code:?}: {said}");
    };
    is_answered(nc("9080").await);
    let words = ["--http-listen", "127.0.0.1:0"];
    let said = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
    let id = id_of(&said.with(0, &[]).unwrap()).unwrap();
    is_answered(nc("9080").await);
    let status = rig.managed.status().await.unwrap();
    let traffic = &connection(&status, &id).unwrap()["Traffic"];
    assert_eq!(traffic["TotalConnections"], 1, "{status}");
    let (code, said) = nc("81").await;
    assert_eq!(code, Some(50), "{said}");
    assert!(said.contains("no TCP port 81"), "{said}");
    rig.managed.quit().await.unwrap();
}

/// A log's level is its connection's own, and the daemon's is set where it runs; neither is that of the command which
/// happened to start it.
#[tokio::test]
async fn log_levels_are_set_where_they_belong() {
    let rig = Rig::start().await;
    let set = async |level| {
        rig.managed
            .run(&["daemon", "log-level", level])
            .await
            .unwrap()
    };
    set("debug").await.with(80, &["kubevpn connect"]).unwrap();
    let words = ["-v", "--socks-listen", "127.0.0.1:0"];
    let said = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
    let id = id_of(&said.with(0, &[]).unwrap()).unwrap();
    let log = rig.file(&format!("log/{id}.log"));
    let log = async || std::fs::read_to_string(&log).unwrap();
    eventually("a line of the connection at debug", async {
        while !log().await.contains("DEBUG") {
            sleep(LOOK).await;
        }
    })
    .await;
    let daemon = rig.file("log/daemon.log");
    assert!(!std::fs::read_to_string(&daemon).unwrap().contains("DEBUG"));
    set("debug").await.with(0, &["debug"]).unwrap();
    set("shout")
        .await
        .with(2, &["info", "debug", "trace"])
        .unwrap();
    // The level survives a kill.
    rig.managed.kill().await.unwrap();
    let before = log().await.matches("DEBUG").count();
    rig.managed.status().await.unwrap();
    eventually("another line at debug", async {
        while log().await.matches("DEBUG").count() == before {
            sleep(LOOK).await;
        }
    })
    .await;
    rig.managed.quit().await.unwrap();
}
