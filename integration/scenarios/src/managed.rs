//! `kubevpn connect` and what belongs to it, with a directory of its own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::Context as _;
use serde_json::Value;
use tokio::process::Command;

use crate::proxy::PATIENCE;

/// A user of managed mode. Their daemon is ended when this is dropped.
pub struct Managed {
    kubevpn: PathBuf,
    home: tempfile::TempDir,
    /// In the environment of every command.
    pub environment: Vec<(String, String)>,
}

/// How a command ended.
#[derive(Debug)]
pub struct CommandOutput {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl CommandOutput {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Expects this exit code and all of these words.
    pub fn with(self, code: i32, words: &[&str]) -> anyhow::Result<Self> {
        let all = format!("{}{}", self.stdout, self.stderr);
        let fits = self.code == Some(code) && words.iter().all(|word| all.contains(word));
        anyhow::ensure!(
            fits,
            "expected {code} and {words:?}, but it ended with {self:?}"
        );
        Ok(self)
    }
}

impl Managed {
    pub fn new(kubevpn: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            kubevpn: kubevpn.to_owned(),
            home: tempfile::Builder::new().prefix("managed").tempdir()?,
            environment: Vec::new(),
        })
    }

    /// The directory with everything.
    pub fn home(&self) -> PathBuf {
        self.home.path().join("kubevpn")
    }

    /// A command that is not started yet.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.kubevpn);
        command
            .args(words)
            .env_remove("KUBECONFIG")
            .env("KUBEVPN_HOME", self.home())
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    pub async fn run(&self, words: &[&str]) -> anyhow::Result<CommandOutput> {
        let output = tokio::time::timeout(PATIENCE, self.command(words).output());
        let output = output
            .await
            .with_context(|| format!("{words:?} does not end"))??;
        Ok(CommandOutput::of(output))
    }

    /// The same with `connect` and a kubeconfig.
    pub async fn connect(
        &self,
        kubeconfig: &Path,
        words: &[&str],
    ) -> anyhow::Result<CommandOutput> {
        let kubeconfig = kubeconfig.to_str().context("a path in UTF-8")?;
        self.run(&[&["connect", "--kubeconfig", kubeconfig], words].concat())
            .await
    }

    /// `status -o json`, whatever it says of the connections.
    pub async fn status(&self) -> anyhow::Result<Value> {
        let said = self.run(&["status", "-o", "json"]).await?;
        // Degraded, not authenticated, unreachable: shown all the same.
        let shown = matches!(said.code, Some(0 | 1 | 32 | 40));
        anyhow::ensure!(shown, "status ended with {said:?}");
        serde_json::from_str(&said.stdout).with_context(|| format!("no document in {said:?}"))
    }

    /// The files there are, without logs and directories, and without the lock, whose file stays.
    pub fn files(&self) -> anyhow::Result<Vec<String>> {
        let mut files = Vec::new();
        for dir in ["", "connections"] {
            let Ok(entries) = std::fs::read_dir(self.home().join(dir)) else {
                continue;
            };
            for entry in entries {
                let entry = entry?;
                if !entry.file_type()?.is_dir() && entry.file_name() != "daemon.lock" {
                    files.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// The daemon's process, as its lock says.
    pub fn pid(&self) -> anyhow::Result<u32> {
        let lock = std::fs::read(self.home().join("daemon.lock"))?;
        let lock: Value = serde_json::from_slice(&lock)?;
        let pid = lock["pid"].as_u64().context("no pid in the lock")?;
        Ok(u32::try_from(pid)?)
    }

    /// Every process that was started with this directory.
    pub fn processes(&self) -> anyhow::Result<Vec<u32>> {
        let ours = format!("KUBEVPN_HOME={}", self.home().display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment
                .split(|b| *b == 0)
                .any(|var| var == ours.as_bytes())
            {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// Ends the daemon as nothing can prevent, and waits until it is gone.
    pub async fn kill(&self) -> anyhow::Result<()> {
        let pid = self.pid()?.to_string();
        let sent = Command::new("kill").args(["-KILL", &pid]).status().await?;
        anyhow::ensure!(sent.success(), "kill -KILL {pid}");
        self.gone().await
    }

    /// Waits until no process of ours is left, nor a thread of one.
    pub async fn gone(&self) -> anyhow::Result<()> {
        // A process is seen as ended with its first thread, but sockets and locks go with the last.
        let mut seen: BTreeSet<u32> = self.pid().into_iter().collect();
        let waiting = async {
            loop {
                let running = self.processes()?;
                seen.extend(&running);
                if running.is_empty() && seen.iter().all(|pid| threads(*pid) == 0) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .context("a process does not end")?
    }

    /// `quit`, after which there is nothing but logs.
    pub async fn quit(&self) -> anyhow::Result<()> {
        self.run(&["quit", "--now"]).await?.with(0, &["Exited"])?;
        self.gone().await?;
        let left = self.files()?;
        anyhow::ensure!(left.is_empty(), "quit left {left:?}");
        Ok(())
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        let mut quit = std::process::Command::new(&self.kubevpn);
        quit.args(["quit", "--now"])
            .env("KUBEVPN_HOME", self.home());
        let _ = quit.stdin(Stdio::null()).output();
    }
}

/// The first listener of a protocol, of the connection with this ID.
pub fn listener(status: &Value, id: &str, protocol: &str) -> anyhow::Result<SocketAddr> {
    let connection = connection(status, id)?;
    let listeners = connection["Listeners"].as_array().context("no Listeners")?;
    let found = listeners
        .iter()
        .find(|l| l["Protocol"] == protocol && l["Listening"] == true)
        .with_context(|| format!("no {protocol} listener in {connection}"))?;
    Ok(found["Address"].as_str().context("no Address")?.parse()?)
}

/// The connection with this ID.
pub fn connection<'a>(status: &'a Value, id: &str) -> anyhow::Result<&'a Value> {
    let list = status["List"].as_array().context("no List")?;
    let found = list.iter().find(|c| c["ConnectionID"] == id);
    found.with_context(|| format!("no connection {id} in {status}"))
}

/// The ID that `connect` has printed.
pub fn id_of(said: &CommandOutput) -> anyhow::Result<String> {
    let mut lines = said.stdout.lines();
    let id = lines.find_map(|line| line.strip_prefix("Connection ID: "));
    Ok(id.with_context(|| format!("no ID in {said:?}"))?.to_owned())
}

/// How many threads of a process have not ended.
fn threads(pid: u32) -> usize {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    let runs = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let state = status.lines().find_map(|line| line.strip_prefix("State:"));
        state.is_some_and(|state| !state.trim_start().starts_with(['Z', 'X']))
    };
    tasks.flatten().map(runs).filter(|runs| *runs).count()
}
