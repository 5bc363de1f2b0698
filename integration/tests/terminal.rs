//! A terminal of `script`, for what is drawn on one.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// A command at a terminal of its own.
pub(crate) struct Terminal {
    script: Child,
    keys: ChildStdin,
    screen: ChildStdout,
    said: Vec<u8>,
}

impl Terminal {
    /// Starts the command of this line of a shell.
    pub(crate) fn start(line: &str) -> Self {
        let mut script = Command::new("script")
            .args(["-qefc", line, "/dev/null"])
            .env("TERM", "xterm")
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            keys: script.stdin.take().unwrap(),
            screen: script.stdout.take().unwrap(),
            script,
            said: Vec::new(),
        }
    }

    /// Presses Ctrl-C.
    pub(crate) async fn interrupt(&mut self) {
        self.press("\x03").await;
    }

    /// Presses keys.
    pub(crate) async fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).await.unwrap();
    }

    /// Everything that was written to the screen, once this was.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        loop {
            let said = String::from_utf8_lossy(&self.said).into_owned();
            if said.contains(text) {
                return said;
            }
            let read = timeout(PATIENCE, self.screen.read_buf(&mut self.said)).await;
            let read = read.unwrap_or_else(|_| panic!("no {text:?} in {said:?}"));
            assert!(read.unwrap() > 0, "no {text:?} in {said:?}");
        }
    }

    /// Everything that was written to it until the end, and the exit code.
    pub(crate) async fn ended(mut self) -> (String, Option<i32>) {
        let rest = timeout(PATIENCE, self.screen.read_to_end(&mut self.said)).await;
        let said = String::from_utf8_lossy(&self.said).into_owned();
        rest.unwrap_or_else(|_| panic!("it does not end: {said:?}"))
            .unwrap();
        (said, self.script.wait().await.unwrap().code())
    }
}
