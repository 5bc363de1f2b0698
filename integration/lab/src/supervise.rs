//! Daemons as this machine sees them: started once, written down, waited for, ended.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::net::TcpStream;

use crate::Lab;
use crate::command::{command, last_lines, output, search_path};
use crate::daemon::ClusterDaemon;
use crate::node::enter_flags;
use crate::process::{self, LabProcess, Signal, until};

impl Lab {
    /// Starts a daemon, unless it runs, and waits until it answers, if it is one that must.
    pub(crate) async fn ensure_started(&self, daemon: ClusterDaemon) -> Result<()> {
        if self.is_alive(daemon)? {
            return Ok(());
        }
        let node = self.node()?;
        let mut line = daemon.command_line(&self.settings, node)?;
        if daemon.in_node() {
            let init = node.context("the node is not up: cargo run -p lab -- up")?;
            line.splice(
                0..0,
                std::iter::once("nsenter".to_owned()).chain(enter_flags(init)),
            );
        }
        let started = self.spawn(daemon, line)?;
        if daemon.in_node() {
            // nsenter only waits for it: a pid namespace is entered by a child.
            let inner =
                self.alive_until(daemon, Duration::from_secs(10), "its start", async || {
                    Ok(LabProcess::child(started.pid()))
                });
            process::write(&self.pid_file(daemon), &[inner.await?, started])?;
        }
        match daemon {
            ClusterDaemon::ApiServer => {
                self.alive_until(daemon, Duration::from_secs(90), "its port", async || {
                    Ok(TcpStream::connect(("127.0.0.1", self.settings.api_port()))
                        .await
                        .ok())
                })
                .await?;
                self.api_ready().await?;
            }
            ClusterDaemon::Containerd => {
                self.alive_until(daemon, Duration::from_secs(30), "its answer", async || {
                    Ok(output(&mut self.enter(["ctr", "version"])?).await.ok())
                })
                .await?;
            }
            _ => {}
        }
        Ok(())
    }

    pub(crate) async fn api_ready(&self) -> Result<()> {
        let ask = async || Ok(self.kubectl(&["get", "--raw", "/readyz"]).await.ok());
        self.alive_until(
            ClusterDaemon::ApiServer,
            Duration::from_secs(90),
            "/readyz",
            ask,
        )
        .await?;
        Ok(())
    }

    /// Runs a command line as a daemon: its own session, its own log, nothing of our environment.
    pub(crate) fn spawn(&self, daemon: ClusterDaemon, line: Vec<String>) -> Result<LabProcess> {
        let log = self.log_file(daemon);
        let open = || File::options().create(true).append(true).open(&log);
        // It becomes the program without a fork: the pid stays the same.
        let mut command = command("setsid")?;
        command
            .args(&line)
            .kill_on_drop(false)
            .current_dir("/")
            .env_clear();
        command.env(
            "PATH",
            if daemon.in_node() {
                self.node_path()
            } else {
                search_path()
            },
        );
        command.stdin(Stdio::null()).stdout(open()?).stderr(open()?);
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {}", line.join(" ")))?;
        let started = child.id().and_then(LabProcess::find);
        let started = started
            .with_context(|| format!("{} ended at once; see {}", daemon.name(), log.display()))?;
        process::write(&self.pid_file(daemon), &[started])?;
        Ok(started)
    }

    pub(crate) async fn end(&self, daemon: ClusterDaemon, signal: Signal) -> Result<()> {
        process::end(&self.pid_file(daemon), signal).await
    }

    /// Asks until the answer is `Some`, or the daemon is dead: then its last words are the error.
    pub(crate) async fn alive_until<T>(
        &self,
        daemon: ClusterDaemon,
        limit: Duration,
        what: &str,
        mut ask: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let what = format!(
            "{} ({what}); see {}",
            daemon.name(),
            self.log_file(daemon).display()
        );
        until(limit, &what, async || {
            let answer = ask().await?;
            let started = self.written(daemon)?;
            ensure!(
                answer.is_some() || !started.is_empty(),
                "no cluster is up in {}: cargo run -p lab -- up",
                self.dir().display()
            );
            if answer.is_none() && !started.iter().any(LabProcess::is_alive) {
                let log = fs::read(self.log_file(daemon)).unwrap_or_default();
                bail!(
                    "{} ended:\n{}",
                    daemon.name(),
                    last_lines(&String::from_utf8_lossy(&log), 10)
                );
            }
            Ok(answer)
        })
        .await
    }

    pub(crate) fn is_alive(&self, daemon: ClusterDaemon) -> Result<bool> {
        match daemon {
            ClusterDaemon::Node => Ok(self.node()?.is_some()),
            daemon => Ok(self
                .written(daemon)?
                .first()
                .is_some_and(LabProcess::is_alive)),
        }
    }

    /// The daemon, and what only waits for it.
    pub(crate) fn written(&self, daemon: ClusterDaemon) -> Result<Vec<LabProcess>> {
        process::read(&self.pid_file(daemon))
    }

    pub(crate) fn pid_file(&self, daemon: ClusterDaemon) -> PathBuf {
        self.settings
            .path(&format!("run/{}.pid", daemon.name()))
            .into()
    }

    fn log_file(&self, daemon: ClusterDaemon) -> PathBuf {
        self.settings
            .path(&format!("log/{}.log", daemon.name()))
            .into()
    }
}
