//! `kubevpn top` at a terminal of its own, which is afterwards as it was, however it ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kubevpn_scenarios::{Proxy, Socks};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::terminal::Terminal;
use crate::{Rig, kubevpn, run};

const PATIENCE: Duration = Duration::from_secs(60);

/// A proxy in the foreground, and kubevpn's directory.
struct Seat {
    rig: Rig,
    home: PathBuf,
    proxy: Proxy,
}

async fn proxy(rig: &Rig, home: &Path) -> Proxy {
    let mut command = Command::new(kubevpn());
    let words = ["proxy-out", "--listen-socks", "127.0.0.1:0", "--kubeconfig"];
    command.args(words).arg(&rig.kubeconfig);
    command.env("KUBEVPN_HOME", home).env_remove("RUST_LOG");
    let mut proxy = Proxy::spawn(command).await.unwrap();
    proxy.logged(&["Shell: "]).await.unwrap();
    let socket = format!("foreground/{}.sock", proxy.pid().unwrap());
    there(&home.join(socket)).await;
    proxy
}

/// Waits for a file.
async fn there(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < PATIENCE, "no {}", path.display());
        sleep(Duration::from_millis(5)).await;
    }
}

impl Seat {
    async fn take() -> Self {
        let rig = Rig::start().await;
        let home = rig.files.0.path().join("home");
        let proxy = proxy(&rig, &home).await;
        Self { rig, home, proxy }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.rig.files.0.path().join(name)
    }

    /// Starts it on a screen of 80 by 24, with this environment. It is there when its first screen is.
    async fn top(&self, environment: &str) -> Terminal {
        self.top_to(environment, "").await
    }

    /// The same, with a redirection.
    async fn top_to(&self, environment: &str, to: &str) -> Terminal {
        let [before, after, pid] = ["before", "after", "pid"].map(|name| self.file(name));
        let (before, after, pid) = (before.display(), after.display(), pid.display());
        let line = format!(
            "stty rows 24 cols 80; stty -a >'{before}'; {environment} KUBEVPN_HOME='{}' sh -c 'echo $$ >\"{pid}\"; exec \
             \"{}\" top {to}'; code=$?; stty -a >'{after}'; exit $code",
            self.home.display(),
            kubevpn().display()
        );
        let mut terminal = Terminal::start(&line);
        terminal.until("Connections").await;
        terminal
    }

    fn pid(&self) -> String {
        let pid = std::fs::read_to_string(self.file("pid")).unwrap();
        pid.trim().to_owned()
    }

    fn signal(&self, name: &str) {
        let words = ["-s", name, &self.pid()];
        let sent = std::process::Command::new("kill").args(words).status();
        assert!(sent.unwrap().success());
    }

    /// It ends with this code, and the terminal is as it was; everything that was written to it.
    async fn ended(&self, terminal: Terminal, code: i32) -> String {
        let (said, ended) = terminal.ended().await;
        assert_eq!(ended, Some(code), "{said:?}");
        let [before, after] =
            ["before", "after"].map(|name| std::fs::read_to_string(self.file(name)).unwrap());
        assert!(
            before.contains(" icanon") && before == after,
            "{before}{after}"
        );
        let last = |text: &str| {
            said.rfind(text)
                .unwrap_or_else(|| panic!("no {text:?}: {said:?}"))
        };
        // The other screen, and no cursor; both taken back.
        assert!(last("\x1b[?1049l") > last("\x1b[?1049h"), "{said:?}");
        assert!(last("\x1b[?25h") > last("\x1b[?25l"), "{said:?}");
        said
    }
}

/// A connection is seen and cut; `q` ends it.
#[tokio::test]
async fn a_connection_is_cut_by_key() {
    let seat = Seat::take().await;
    let mut held = Socks::connect(seat.proxy.socks, "multi", 7007)
        .await
        .unwrap();
    held.write_all(b"still here").await.unwrap();
    held.read_exact(&mut [0; 10]).await.unwrap();
    let mut terminal = seat.top("").await;
    terminal.until("multi:7007").await;
    terminal.press("x").await;
    terminal.until("y/n:").await;
    terminal.press("y").await;
    let mut rest = Vec::new();
    let read = tokio::time::timeout(PATIENCE, held.read_to_end(&mut rest)).await;
    let end = read.expect("it is not cut");
    assert!(end.is_err() || rest.is_empty(), "{rest:?}");
    terminal.press("q").await;
    let said = seat.ended(terminal, 0).await;
    assert!(
        said.contains("\x1b[38;5;") || said.contains("\x1b[36"),
        "{said:?}"
    );
}

#[tokio::test]
async fn the_terminal_is_as_it_was_after_a_signal() {
    let seat = Seat::take().await;
    for (signal, code) in [("TERM", 0), ("HUP", 0), ("QUIT", 0), ("INT", 130)] {
        let terminal = seat.top("NO_COLOR=1").await;
        seat.signal(signal);
        let said = seat.ended(terminal, code).await;
        let color = ["\x1b[38;", "\x1b[36m", "\x1b[33m"];
        assert!(!color.iter().any(|it| said.contains(it)), "{said:?}");
    }
}

/// As when the window is closed: nothing can be said any more, and that is no panic.
#[tokio::test]
async fn it_ends_with_its_terminal() {
    let seat = Seat::take().await;
    let errors = seat.file("errors");
    let to = format!("2>\"{}\"", errors.display());
    let terminal = seat.top_to("", &to).await;
    drop(terminal);
    let stat = format!("/proc/{}/stat", seat.pid());
    let begun = Instant::now();
    // Nobody may ask a zombie for its end.
    while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(begun.elapsed() < PATIENCE, "it does not end");
        sleep(Duration::from_millis(5)).await;
    }
    let said = std::fs::read_to_string(errors).unwrap();
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test]
async fn the_terminal_is_as_it_was_after_a_panic() {
    let seat = Seat::take().await;
    let terminal = seat.top("KUBEVPN_TEST_PANIC_AT=top").await;
    let said = seat.ended(terminal, 101).await;
    let (_, after) = said.rsplit_once("\x1b[?1049l").unwrap();
    assert!(after.contains("a test asked for it"), "{said:?}");
}

#[tokio::test]
async fn the_terminal_is_as_it_was_after_the_proxys_end() {
    let seat = Seat::take().await;
    let mut terminal = seat.top("").await;
    terminal.until("Connections").await;
    seat.proxy.signal("KILL").await.unwrap();
    let said = seat.ended(terminal, 80).await;
    let (_, after) = said.rsplit_once("\x1b[?1049l").unwrap();
    assert!(
        after.contains("error: the proxy ") && after.contains(" has ended"),
        "{said:?}"
    );
}

#[tokio::test]
async fn what_cannot_be_looked_at() {
    run(&["top"], &[]).await.with(23, &["top needs a terminal"]);
    let seat = Seat::take().await;
    let other = proxy(&seat.rig, &seat.home).await;
    let pids = [&seat.proxy, &other].map(|proxy| proxy.pid().unwrap().to_string());
    let home = seat.home.display();
    let ended = async |words: &str| {
        let line = format!(
            "KUBEVPN_HOME='{home}' '{}' top {words}",
            kubevpn().display()
        );
        Terminal::start(&line).ended().await
    };
    let (said, code) = ended("").await;
    assert_eq!(code, Some(23), "{said}");
    for pid in &pids {
        let named = format!("process {pid} (context sim, namespace default)");
        assert!(said.contains(&named), "{said}");
    }
    let (said, code) = ended("nosuch").await;
    assert!(said.contains("there is no proxy \"nosuch\""), "{said}");
    assert_eq!(code, Some(51));
    for proxy in [seat.proxy, other] {
        proxy.stop("TERM").await.unwrap();
    }
    let (said, code) = ended("").await;
    assert!(said.contains("no proxy runs"), "{said}");
    assert_eq!(code, Some(51));
}
