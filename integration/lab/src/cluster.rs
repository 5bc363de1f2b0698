//! One cluster: what starts it, ends it, and asks after it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::Command;
use tracing::info;

use crate::binaries::lock;
use crate::command::{FOR_UP, command, output, require};
use crate::daemon::ClusterDaemon;
use crate::interrupt::undone;
use crate::line::{Length, LineRelay};
use crate::process::{LabProcess, Signal};
use crate::settings::{NODE, Settings, source};

/// How much of a cluster to bring up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// etcd, API server and controller manager: objects, but no pod ever runs.
    ControlPlane,
    /// All of it, with the sample workload ready.
    Full,
}

/// A cluster of this machine, up or not. Cheap to make; two of one directory are the same cluster.
#[derive(Debug)]
pub struct Lab {
    pub(crate) settings: Settings,
}

impl Lab {
    /// The one that the environment names: `KUBEVPN_LAB_DIR`, `KUBEVPN_LAB_CACHE`, `KUBEVPN_LAB_INSTANCE`.
    ///
    /// # Errors
    /// A value that cannot be, by name.
    pub fn from_env() -> Result<Self> {
        Ok(Self {
            settings: Settings::from_env()?,
        })
    }

    /// The same, if it is up.
    ///
    /// # Errors
    /// The command that brings it up, if it is not.
    pub async fn attach() -> Result<Self> {
        let lab = Self::from_env()?;
        let up = lab.is_alive(ClusterDaemon::ApiServer)?
            && lab.kubectl(&["get", "--raw", "/readyz"]).await.is_ok();
        ensure!(
            up,
            "no cluster is up in {}: cargo run -p lab -- up",
            lab.dir().display()
        );
        Ok(lab)
    }

    /// Where its state is; `log/` in there outlives it.
    pub fn dir(&self) -> &Path {
        self.settings.state()
    }

    /// The administrator's.
    pub fn kubeconfig(&self) -> PathBuf {
        self.settings.path("kubeconfig").into()
    }

    /// That of the user `viewer` (group `viewers`), who has no rights until a test grants some.
    pub fn viewer_kubeconfig(&self) -> PathBuf {
        self.settings.path("pki/viewer.kubeconfig").into()
    }

    /// A kubeconfig for one more user without rights, in no group but `system:authenticated`. Asking again
    /// gives the same one.
    ///
    /// # Errors
    /// A name that is not a DNS label; a cluster that was never up.
    pub async fn user(&self, name: &str) -> Result<PathBuf> {
        let label = !name.is_empty()
            && name.len() <= 63
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        ensure!(
            label,
            "{name:?} is no user name: lower-case letters, digits and dashes, please"
        );
        output(&mut self.hyperkube(&[
            "user",
            &self.settings.path("pki"),
            name,
            &self.settings.api_url(),
        ]))
        .await?;
        Ok(self
            .settings
            .path(&format!("pki/users/{name}.kubeconfig"))
            .into())
    }

    /// kubectl as administrator; its standard output.
    ///
    /// # Errors
    /// What kubectl said, if it fails or takes more than five minutes.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        output(&mut self.kubectl_command(args)).await
    }

    /// The same, to be run some other way: a port-forward that goes on until the handle is dropped.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.settings.path("bin/kubectl"));
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(args);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// A command whose `KUBECONFIG` leads to the API server over a line on which a round trip takes so long, and the line.
    ///
    /// # Errors
    /// No cluster; no port for the line.
    pub async fn over_line(
        &self,
        trip: Duration,
        command: &[&str],
    ) -> Result<(LineRelay, Command)> {
        let [program, args @ ..] = command else {
            bail!("no command");
        };
        let api = SocketAddr::from(([127, 0, 0, 1], self.settings.api_port()));
        let length = Length {
            each_way: trip / 2,
            bandwidth: None,
        };
        let line = LineRelay::start(api, length).await?;
        let text = fs::read_to_string(self.kubeconfig()).context("the cluster is not up")?;
        let server = self.settings.api_url();
        ensure!(text.contains(&server), "the kubeconfig has another server");
        let own = line.address();
        let kubeconfig = self.dir().join(format!("line-{}.kubeconfig", own.port()));
        fs::write(
            &kubeconfig,
            text.replace(&server, &format!("https://{own}")),
        )?;
        let mut command = Command::new(program);
        command.args(args).env("KUBECONFIG", kubeconfig);
        Ok((line, command))
    }

    /// A command in the node's namespaces, and its standard output: containerd's descriptors and threads,
    /// a pod's connections, whatever can be counted from inside.
    ///
    /// # Errors
    /// No node; what the command said, if it fails or takes more than five minutes.
    pub async fn node_sh(&self, args: &[&str]) -> Result<String> {
        output(&mut self.node_command(args)?).await
    }

    /// The same, to be run some other way.
    ///
    /// # Errors
    /// No node.
    pub fn node_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.enter([])?;
        command.args(args);
        Ok(command)
    }

    /// Brings it up, or the part of it that is not. Everything is ready when this returns.
    ///
    /// # Errors
    /// What is missing on the machine; the last words of the daemon that did not come up.
    pub async fn up(&self, extent: Extent) -> Result<()> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "only root can make namespaces, links and routes: run this as root"
        );
        require(&FOR_UP)?;
        let _lock = self.lock().await?;
        if ClusterDaemon::ALL
            .iter()
            .all(|daemon| !self.is_alive(*daemon).unwrap_or(false))
        {
            // A machine that went down with its cluster left state of no use; and these are the logs of this one.
            self.forget(&["log"])?;
        }
        for dir in ["bin", "log", "run"] {
            fs::create_dir_all(self.settings.path(dir))?;
        }
        self.settings.versions.write(self.dir())?;
        self.build().await?;
        self.control_plane().await?;
        if extent == Extent::Full {
            self.ensure_started(ClusterDaemon::Scheduler).await?;
            self.start_node().await?;
            self.workload().await?;
        }
        Ok(())
    }

    /// Ends all of it and forgets its state, but for `log/`. Only processes that were written down are
    /// ended, and of those only the ones with the start times that were written down.
    ///
    /// # Errors
    /// A process that does not end.
    pub async fn down(&self) -> Result<()> {
        let _lock = self.lock().await?;
        for daemon in [ClusterDaemon::Kwok, ClusterDaemon::KwokEcho] {
            self.end(daemon, Signal::Kill).await?;
        }
        self.remove_node().await?;
        for daemon in [
            ClusterDaemon::Scheduler,
            ClusterDaemon::ControllerManager,
            ClusterDaemon::ApiServer,
            ClusterDaemon::Etcd,
        ] {
            self.end(daemon, Signal::Kill).await?;
        }
        let (nets, metric) = self.settings.fence();
        for net in nets {
            // Not there, if `up` never came that far.
            let _ = output(command("ip")?.args([
                "route",
                "del",
                "unreachable",
                &net,
                "metric",
                &metric,
            ]))
            .await;
        }
        self.forget(&[])
    }

    /// Every daemon, with its pid if it lives.
    ///
    /// # Errors
    /// A record of processes that cannot be read.
    pub fn status(&self) -> Result<Vec<(ClusterDaemon, Option<u32>)>> {
        ClusterDaemon::ALL
            .iter()
            .map(|daemon| {
                let first = self.written(*daemon)?.first().copied();
                Ok((
                    *daemon,
                    first
                        .filter(LabProcess::is_alive)
                        .map(|process| process.pid()),
                ))
            })
            .collect()
    }

    /// Ends one daemon and waits until it is gone; what ignores the signal is killed after 6 seconds.
    ///
    /// # Errors
    /// One that does not end.
    pub async fn stop(&self, daemon: ClusterDaemon, signal: Signal) -> Result<()> {
        let _lock = self.lock().await?;
        self.end(daemon, signal).await
    }

    /// Starts one daemon, unless it runs, and waits until it is ready.
    ///
    /// # Errors
    /// Its last words, if it ends at once.
    pub async fn resume(&self, daemon: ClusterDaemon) -> Result<()> {
        let _lock = self.lock().await?;
        self.start_again(daemon).await
    }

    async fn start_again(&self, daemon: ClusterDaemon) -> Result<()> {
        match daemon {
            ClusterDaemon::Node | ClusterDaemon::Containerd | ClusterDaemon::Kubelet => {
                self.start_node().await
            }
            ClusterDaemon::Etcd if self.is_alive(ClusterDaemon::ApiServer)? => {
                self.ensure_started(daemon).await?;
                self.api_ready().await // it takes a moment to find its store again
            }
            ClusterDaemon::ApiServer => {
                self.ensure_started(daemon).await?;
                self.controllers_again().await
            }
            daemon => self.ensure_started(daemon).await,
        }
    }

    /// Left alone after the API server was away these come back too, but their watches back off for up to a minute.
    async fn controllers_again(&self) -> Result<()> {
        for daemon in [ClusterDaemon::ControllerManager, ClusterDaemon::Scheduler] {
            if self.is_alive(daemon)? {
                self.end(daemon, Signal::Kill).await?;
                self.ensure_started(daemon).await?;
            }
        }
        Ok(())
    }

    /// Sends a signal and waits for nothing: [`Signal::Stop`] makes a black hole of a daemon.
    ///
    /// # Errors
    /// A daemon that is not running.
    pub fn signal(&self, daemon: ClusterDaemon, signal: Signal) -> Result<()> {
        let written = self.written(daemon)?;
        let (first, waiting) = written
            .split_first()
            .with_context(|| format!("{} was never started", daemon.name()))?;
        first.signal(signal).with_context(|| daemon.name())?;
        if signal == Signal::Cont {
            for process in waiting {
                process.signal(signal)?; // it stopped with the daemon it waits for
            }
        }
        Ok(())
    }

    /// Ends the API server, leaves it down for a while, and starts it again. With [`Signal::Term`] it
    /// refuses new connections at once but serves those it has until it is killed after 6 seconds.
    ///
    /// # Errors
    /// An API server that does not come back.
    pub async fn restart_apiserver(&self, down_for: Duration, signal: Signal) -> Result<()> {
        let meanwhile = async {
            tokio::time::sleep(down_for).await;
            Ok(())
        };
        self.without(ClusterDaemon::ApiServer, signal, meanwhile)
            .await
    }

    /// Does `meanwhile` without this daemon, which is ended before and started again afterwards: also if `meanwhile` fails, and
    /// on SIGINT and SIGTERM in a program that is [`interruptible`](crate::interruptible).
    ///
    /// # Errors
    /// `meanwhile` fails; the daemon does not end, or does not come back.
    pub async fn without<T>(
        &self,
        daemon: ClusterDaemon,
        signal: Signal,
        meanwhile: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let _lock = self.lock().await?;
        let away = async {
            self.end(daemon, signal).await?;
            info!("{} down", daemon.name());
            meanwhile.await
        };
        let back = async {
            self.start_again(daemon).await?;
            info!("{} back", daemon.name());
            Ok(())
        };
        undone(away, back).await
    }

    async fn control_plane(&self) -> Result<()> {
        let s = &self.settings;
        let (nets, metric) = s.fence();
        for net in nets {
            output(command("ip")?.args([
                "route",
                "replace",
                "unreachable",
                &net,
                "metric",
                &metric,
            ]))
            .await?;
        }
        let (pki, node_ip) = (s.path("pki"), s.node_ip());
        let node_url = format!("https://{node_ip}:{}", s.api_port());
        output(&mut self.hyperkube(&[
            "pki",
            &pki,
            &s.api_url(),
            &node_url,
            NODE,
            &node_ip,
            &s.host_ip(),
            &s.api_service_ip(),
        ]))
        .await?;
        fs::copy(s.path("pki/admin.kubeconfig"), self.kubeconfig())?;
        fs::write(s.path("audit.yaml"), self.render("config/audit.yaml")?)?;
        self.ensure_started(ClusterDaemon::Etcd).await?;
        self.ensure_started(ClusterDaemon::ApiServer).await?;
        info!("API server ready");
        self.ensure_started(ClusterDaemon::ControllerManager).await // ends at once if it starts before the API server is ready
    }

    /// A file of `cluster/`, with this cluster's addresses and directories in it.
    pub(crate) fn render(&self, relative: &str) -> Result<String> {
        let s = &self.settings;
        let file = source(relative);
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let packages = self.packages();
        let values = [
            ("@STATE@", s.state().display().to_string()),
            ("@PACKAGES@", packages.display().to_string()),
            ("@NODE_IP@", s.node_ip()),
            ("@API_PORT@", s.api_port().to_string()),
            ("@DNS_IP@", s.dns_ip()),
            ("@POD_NET@", s.pod_net()),
            ("@ECHO_PORT@", (s.kwok_port() + 1).to_string()),
        ];
        Ok(values
            .into_iter()
            .fold(text, |text, (name, value)| text.replace(name, &value)))
    }

    /// One `up`, `down` or restart at a time, whoever asks.
    async fn lock(&self) -> Result<File> {
        fs::create_dir_all(self.dir())
            .with_context(|| format!("cannot make {}", self.dir().display()))?;
        lock(self.settings.path("lock").into()).await
    }

    fn forget(&self, also: &[&str]) -> Result<()> {
        for name in ["bin", "etcd", "node", "pki", "run"].iter().chain(also) {
            match fs::remove_dir_all(self.settings.path(name)) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("cannot remove {}", self.settings.path(name)));
                }
                _ => {}
            }
        }
        for name in [
            "kubeconfig",
            "audit.yaml",
            "kwok.yaml",
            "kwok-stages.yaml",
            "versions",
        ] {
            match fs::remove_file(self.settings.path(name)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}
