//! `kubevpn run --isolated`: programs that know no proxy, as this user and, where that is root, as another one.

mod processes;
mod traffic;

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};

use self::processes::*;
use self::traffic::*;
use super::{env_from, scenario};
use crate::cluster::{client, cluster_ips, pod_ips};
use crate::proxy::PATIENCE;
use crate::space::{Echo, Space, service, until};
use crate::{AccountRight, Context, Curl, Scenario};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("isolated", curl_by_name_and_address),
        scenario!("isolated", static_go_client, One, &["go", "version"]),
        scenario!(
            "isolated",
            half_closed_client_gets_the_whole_answer,
            One,
            PYTHON3
        ),
        scenario!("isolated", a_reset_is_passed_on, One, PYTHON3),
        scenario!(
            "isolated",
            clients_that_close_leave_nothing_open,
            One,
            PYTHON3
        ),
        scenario!("isolated", any_dns_server_is_ours, One),
        scenario!("isolated", what_is_not_tcp_is_refused, One, PYTHON3),
        scenario!("isolated", hosts_outside_are_denied, One),
        scenario!("isolated", rules_hold_whatever_is_asked_for, One),
        scenario!("isolated", loopback_is_its_own, One),
        scenario!("isolated", servers_inside_are_published, One, PYTHON3),
        scenario!("isolated", a_process_is_that_pod, One),
        scenario!("isolated", as_if_it_were_not, One),
        scenario!("isolated", exit_codes_are_the_commands, One),
        scenario!("isolated", signals_reach_the_command, One),
        scenario!("isolated", jobs_of_a_terminal, One),
        scenario!("isolated", it_stops_with_the_command, One),
        scenario!("isolated", nothing_is_left_behind, One),
        scenario!(
            "isolated",
            what_a_command_leaves_behind_keeps_its_network,
            One
        ),
        scenario!("isolated", the_way_out_is_closed, One, PYTHON3),
        scenario!("isolated", where_it_cannot_be_had, One),
    ]
}

/// Somebody who runs commands.
struct CommandUser {
    uid: u32,
    gid: u32,
    before: Vec<String>,
    kubevpn: PathBuf,
    /// A kubeconfig they can read, and a directory of theirs.
    files: TempDir,
}

/// The system's programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// No account has it.
const OTHER: u32 = 12_345;

impl CommandUser {
    /// The current user, and where that is root a user without any right.
    fn all(cx: &Context) -> anyhow::Result<Vec<Self>> {
        Self::all_with(cx, &cx.cluster.kubeconfig())
    }

    /// The same with a kubeconfig.
    fn all_with(cx: &Context, kubeconfig: &Path) -> anyhow::Result<Vec<Self>> {
        let own = std::fs::metadata("/proc/self")?;
        let mut all = vec![Self::new(cx, kubeconfig, own.uid(), own.gid(), &[])?];
        if own.uid() == 0 {
            let id = OTHER.to_string();
            let words = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"];
            all.push(Self::new(cx, kubeconfig, OTHER, OTHER, &words)?);
        }
        Ok(all)
    }

    fn new(
        cx: &Context,
        kubeconfig: &Path,
        uid: u32,
        gid: u32,
        before: &[&str],
    ) -> anyhow::Result<Self> {
        let files = tempfile::tempdir()?;
        let path = |name: &str| files.path().join(name);
        std::fs::copy(kubeconfig, path("kubeconfig"))?;
        let kubevpn = path("kubevpn");
        // Where it was built may be closed to others.
        if std::fs::hard_link(&cx.kubevpn, &kubevpn).is_err() {
            std::fs::copy(&cx.kubevpn, &kubevpn)?;
        }
        let kubeconfig = path("kubeconfig");
        for (of, mode) in [(files.path(), 0o777), (kubeconfig.as_path(), 0o644)] {
            std::fs::set_permissions(of, std::fs::Permissions::from_mode(mode))?;
        }
        Ok(Self {
            uid,
            gid,
            before: before.iter().map(|word| (*word).to_owned()).collect(),
            kubevpn,
            files,
        })
    }

    /// `kubevpn run --isolated` with these flags and words.
    fn command(&self, cx: &Context, flags: &[&str], words: &[&str]) -> Command {
        let mut before = self.before.iter();
        let mut command = match before.next() {
            Some(first) => Command::new(first),
            None => Command::new(&self.kubevpn),
        };
        command.args(before);
        if !self.before.is_empty() {
            command.arg(&self.kubevpn);
        }
        command
            .args(["run", "--isolated", "--kubeconfig"])
            .arg(self.files.path().join("kubeconfig"))
            .args(&cx.flags)
            .args(flags)
            .arg("--")
            .args(words)
            .env("HOME", self.files.path())
            // A directory that is closed to the user makes a program that is in none forbidden, not unknown.
            .env("PATH", PATH)
            // The records of what it asks for.
            .env("RUST_LOG", "info")
            .env_remove("KUBECONFIG")
            .current_dir(self.files.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn run(
        &self,
        cx: &Context,
        flags: &[&str],
        words: &[&str],
    ) -> anyhow::Result<IsolatedEnd> {
        let mut command = self.command(cx, flags, words);
        IsolatedEnd::of(command.output()).await
    }

    /// A shell's script that has to end well; its output.
    async fn script(&self, cx: &Context, script: &str) -> anyhow::Result<String> {
        let ended = self.run(cx, &[], &["bash", "-c", script]).await?;
        anyhow::ensure!(
            ended.code == Some(0),
            "as {}: {script} ended with {ended:?}",
            self.uid
        );
        Ok(ended.out)
    }

    /// Starts it and reads its first line.
    async fn start(
        &self,
        cx: &Context,
        flags: &[&str],
        script: &str,
    ) -> anyhow::Result<RunningCommand> {
        let mut command = self.command(cx, flags, &["bash", "-c", script]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut out = BufReader::new(child.stdout.take().context("stdout is piped")?);
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, out.read_line(&mut line))
            .await
            .context("it says nothing")??;
        Ok(RunningCommand {
            child,
            out,
            line: line.trim_end().to_owned(),
        })
    }
}

#[derive(Debug)]
struct IsolatedEnd {
    code: Option<i32>,
    out: String,
    err: String,
}

impl IsolatedEnd {
    async fn of(output: impl Future<Output = std::io::Result<Output>>) -> anyhow::Result<Self> {
        let output = tokio::time::timeout(PATIENCE, output).await;
        let output = output.context("it does not end")??;
        Ok(Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn with(&self, code: i32, said: &str) -> anyhow::Result<()> {
        let is = self.code == Some(code) && self.err.contains(said);
        anyhow::ensure!(is, "not {code} and {said:?}: {self:?}");
        Ok(())
    }
}

struct RunningCommand {
    child: Child,
    out: BufReader<ChildStdout>,
    line: String,
}

impl RunningCommand {
    async fn signal(&self, name: &str, pid: u32) -> anyhow::Result<()> {
        kill(name, pid).await
    }

    fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("it has ended")
    }

    async fn ended(self) -> anyhow::Result<IsolatedEnd> {
        let Self { child, mut out, .. } = self;
        let mut rest = String::new();
        let (ended, read) = tokio::join!(
            IsolatedEnd::of(child.wait_with_output()),
            tokio::time::timeout(PATIENCE, out.read_to_string(&mut rest))
        );
        read.context("somebody holds its standard output")??;
        Ok(IsolatedEnd {
            out: rest,
            ..ended?
        })
    }
}

async fn kill(signal: &str, pid: u32) -> anyhow::Result<()> {
    let pid = pid.to_string();
    let sent = Command::new("kill").args(["-s", signal, &pid]).status();
    anyhow::ensure!(sent.await?.success(), "kill -s {signal} {pid} failed");
    Ok(())
}

/// The system's, which other users may run too.
const PYTHON: &str = "/usr/bin/python3";

const PYTHON3: &[&str] = &[PYTHON, "--version"];

const CURL: &str = "curl --disable --silent --show-error --max-time 60";
