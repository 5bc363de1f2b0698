//! The program under test, as a process.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// Long enough for any machine; reached only when something hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running `kubevpn proxy-out`; killed when dropped.
pub struct Proxy {
    /// Where SOCKS5 is spoken.
    pub socks: SocketAddr,
    child: Child,
    log: watch::Receiver<String>,
}

impl Proxy {
    /// Starts it with a kubeconfig on a free port, and waits until it says that it listens.
    pub async fn start(kubevpn: &Path, kubeconfig: &Path, more: &[&str]) -> anyhow::Result<Self> {
        Self::spawn(Self::command(kubevpn, kubeconfig, more)).await
    }

    pub(crate) fn command(kubevpn: &Path, kubeconfig: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(kubevpn);
        command
            .args(["proxy-out", "--listen-socks", "127.0.0.1:0", "--kubeconfig"])
            .arg(kubeconfig)
            .args(more);
        command
    }

    /// Starts any command that prints where its SOCKS5 listener is.
    pub async fn spawn(mut command: Command) -> anyhow::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("starting the program")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let (log, received) = watch::channel(String::new());
        let lines = log.clone();
        tokio::spawn(async move {
            let mut stderr = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = stderr.next_line().await {
                lines.send_modify(|log| {
                    log.push_str(&line);
                    log.push('\n');
                });
            }
        });
        let mut stdout = BufReader::new(stdout).lines();
        let found = tokio::time::timeout(PATIENCE, async {
            while let Some(line) = stdout.next_line().await? {
                log.send_modify(|log| {
                    log.push_str(&line);
                    log.push('\n');
                });
                let address = line.strip_prefix("SOCKS5 proxy ");
                let address = address.and_then(|rest| rest.split_once("listening on "));
                if let Some((_, address)) = address {
                    return Ok(Some(
                        address
                            .parse::<SocketAddr>()
                            .context("the printed address")?,
                    ));
                }
            }
            anyhow::Ok(None)
        })
        .await;
        let Ok(found) = found else {
            bail!(
                "nothing was printed about a listener; the log so far:\n{}",
                *received.borrow()
            );
        };
        let Some(socks) = found? else {
            let status = child.wait().await?;
            bail!(
                "ended with {status} before it listened; the log:\n{}",
                *received.borrow()
            );
        };
        tokio::spawn(async move {
            while let Ok(Some(line)) = stdout.next_line().await {
                log.send_modify(|log| {
                    log.push_str(&line);
                    log.push('\n');
                });
            }
        });
        Ok(Self {
            socks,
            child,
            log: received,
        })
    }

    /// All it has written so far, stdout and stderr.
    pub fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// Waits until what it has written holds all of these.
    pub async fn logged(&mut self, words: &[&str]) -> anyhow::Result<()> {
        let waited = tokio::time::timeout(
            PATIENCE,
            self.log.wait_for(|log| {
                log.lines()
                    .any(|line| words.iter().all(|word| line.contains(word)))
            }),
        )
        .await
        .is_ok_and(|r| r.is_ok());
        anyhow::ensure!(waited, "no line with {words:?} in the log:\n{}", self.log());
        Ok(())
    }

    /// Where HTTP is spoken; it must have been started with a listener for it.
    pub async fn http(&mut self) -> anyhow::Result<SocketAddr> {
        self.said("HTTP proxy listening on ", "").await
    }

    /// Where HTTP is spoken inside TLS; it must have been started with a certificate.
    pub async fn https(&mut self) -> anyhow::Result<SocketAddr> {
        self.said("HTTP proxy inside TLS listening on ", "").await
    }

    /// Where probes are answered; it must have been started with a listener for them.
    pub async fn admin(&mut self) -> anyhow::Result<SocketAddr> {
        self.said("Admin listening on ", " (/livez, /readyz, /metrics)")
            .await
    }

    /// Where it listens for a forward to this host and port; it must have been started with one.
    pub async fn forward(&mut self, to: &str) -> anyhow::Result<SocketAddr> {
        self.said("Forwarding ", &format!(" -> {to}")).await
    }

    /// Where DNS is answered; it must have been started with a listener for it.
    pub async fn dns(&mut self) -> anyhow::Result<SocketAddr> {
        self.said("DNS listening on ", " (UDP and TCP)").await
    }

    /// The address in a line it prints, between these words.
    async fn said(&mut self, before: &str, behind: &str) -> anyhow::Result<SocketAddr> {
        self.logged(&[before, behind]).await?;
        let log = self.log();
        let between = |line: &str| {
            let rest = line.strip_prefix(before)?;
            Some(rest.strip_suffix(behind)?.to_owned())
        };
        let address = log.lines().find_map(between);
        Ok(address.context("said in mid-line")?.parse()?)
    }

    /// Its process id.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("the process has ended")
    }

    /// How many file descriptors it has open.
    pub fn descriptors(&self) -> anyhow::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()?))?.count())
    }

    /// Its resident memory in bytes.
    pub fn memory(&self) -> anyhow::Result<usize> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib = line.and_then(|l| l.trim().strip_suffix(" kB"));
        let kib: usize = kib.context("no VmRSS in the process's status")?.parse()?;
        Ok(kib * 1024)
    }

    /// Sends a signal by name and waits for the end.
    pub async fn stop(self, signal: &str) -> anyhow::Result<ExitStatus> {
        self.signal(signal).await?;
        self.ended().await
    }

    /// Sends a signal by name.
    pub async fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let pid = self.pid()?.to_string();
        let sent = Command::new("kill")
            .args(["-s", signal, &pid])
            .status()
            .await?;
        anyhow::ensure!(sent.success(), "kill -s {signal} {pid} failed");
        Ok(())
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> anyhow::Result<ExitStatus> {
        Ok(tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .context("it does not end")??)
    }
}

/// Runs the program to its end, which must come soon, without input.
pub async fn run_to_end<I, S>(
    kubevpn: &Path,
    args: I,
    environment: &[(&str, &str)],
) -> anyhow::Result<Output>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(kubevpn);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    command
        .env_remove("KUBECONFIG")
        // A developer's own defaults are not the program's.
        .env("KUBEVPN_CONFIG", "")
        .envs(environment.iter().copied());
    tokio::time::timeout(PATIENCE, command.output())
        .await
        .context("it does not end")?
        .context("starting the program")
}
