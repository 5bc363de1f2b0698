//! The node: namespaces of its own, containerd and the kubelet in them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::process::Command;
use tracing::info;

use crate::Lab;
use crate::command::{command, output, search_path};
use crate::daemon::ClusterDaemon;
use crate::process::{LabProcess, Signal, until, write};
use crate::settings::{NODE, Settings};
use crate::versions::Containerd;

/// Run once in the new namespaces. Shared again inside, as the kubelet wants it; a /run of its own, since
/// containerd 1.6 puts its shims' sockets in /run/containerd whatever it is told.
const FURNISH: &str = r#"
mount --make-rshared /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
echo "$1" >/proc/sys/kernel/hostname
echo 1 >/proc/sys/net/ipv4/ip_forward
ip link set lo up
ip addr add "$2/30" dev node0
ip link set node0 up
"#;

/// A directory of our own, the root of the node's cgroup namespace. The host's other trees are not touched.
pub(crate) fn cgroup(s: &Settings) -> Result<PathBuf> {
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let root = cgroup2(&mounts)
        .context("no cgroup2 file system is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup")?;
    Ok(Path::new(root).join(format!("kubevpn-lab-{}", s.link())))
}

/// Alone at /sys/fs/cgroup, or beside the older trees at /sys/fs/cgroup/unified.
fn cgroup2(mountinfo: &str) -> Option<&str> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ")
            .then(|| mount.split(' ').nth(4))?
    })
}

impl Lab {
    /// The init of the node, if the node is whole and alive.
    pub(crate) fn node(&self) -> Result<Option<LabProcess>> {
        let written = self.written(ClusterDaemon::Node)?;
        // The second line is added once the node is furnished.
        Ok(written
            .first()
            .copied()
            .filter(|init| written.len() == 2 && init.is_alive()))
    }

    /// Brings up the node: kubelet and containerd answer, but no pod need be ready yet.
    pub(crate) async fn start_node(&self) -> Result<()> {
        if self.node()?.is_none() {
            self.make_node().await?;
        }
        let s = &self.settings;
        for dir in ["node/cni", "node/kubelet", "node/containerd"] {
            fs::create_dir_all(s.path(dir))?;
        }
        fs::write(
            s.path("node/containerd.toml"),
            self.render(match s.versions.containerd {
                Containerd::Debian => "config/containerd.toml",
                Containerd::Two => "config/containerd-2.toml",
            })?,
        )?;
        fs::write(
            s.path("node/kubelet.yaml"),
            self.render("config/kubelet.yaml")?,
        )?;
        fs::write(
            s.path("node/cni/10-lab.conflist"),
            self.render("config/cni.conflist")?,
        )?;
        fs::write(s.path("node/resolv.conf"), "search cluster.local\n")?;
        self.ensure_started(ClusterDaemon::Relay).await?;
        self.ensure_started(ClusterDaemon::Containerd).await?;
        for image in self.images()? {
            output(
                self.enter(["ctr", "--namespace", "k8s.io", "images", "import"])?
                    .arg(image),
            )
            .await?;
        }
        info!("containerd ready, images in");
        self.ensure_started(ClusterDaemon::Kubelet).await
    }

    async fn make_node(&self) -> Result<()> {
        self.end_node().await?; // an earlier one, or half of one
        let s = &self.settings;
        // Its pods are gone, which nobody else would notice for minutes: new ones take their place.
        self.kubectl(&[
            "delete",
            "pods",
            "-A",
            "--all",
            "--force",
            "--grace-period=0",
            "--wait=false",
        ])
        .await?;
        match fs::remove_dir_all(s.path("node")) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let dir = cgroup(s)?;
        if let Err(error) = fs::create_dir(&dir)
            && error.kind() != ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| format!("cannot make the cgroup {}", dir.display()));
        }
        let outer = self.spawn(
            ClusterDaemon::Node,
            ClusterDaemon::Node.command_line(s, None)?,
        )?;
        let init = self
            .alive_until(
                ClusterDaemon::Node,
                Duration::from_secs(10),
                "the node's namespaces",
                async || {
                    Ok(LabProcess::child(outer.pid()).filter(|child| {
                        fs::read(format!("/proc/{}/cmdline", child.pid()))
                            .is_ok_and(|line| line.ends_with(b"\0pause\0"))
                    }))
                },
            )
            .await?;
        let link = s.link();
        let _ = output(command("ip")?.args(["link", "del", &link])).await; // of a node that was not taken down
        let peer = init.pid().to_string();
        let address = format!("{}/30", s.host_ip());
        output(command("ip")?.args([
            "link", "add", &link, "type", "veth", "peer", "name", "node0", "netns", &peer,
        ]))
        .await?;
        output(command("ip")?.args(["addr", "add", &address, "dev", &link])).await?;
        output(command("ip")?.args(["link", "set", &link, "up"])).await?;
        output(
            self.enter_as(init, ["sh", "-euc", FURNISH, "-", NODE])?
                .arg(s.node_ip()),
        )
        .await?;
        write(&self.pid_file(ClusterDaemon::Node), &[init, outer])?;
        Ok(())
    }

    /// Ends the node with all that is in it, and takes its link and cgroup away.
    pub(crate) async fn remove_node(&self) -> Result<()> {
        self.end_node().await?;
        // It goes with the node's network namespace, but in the kernel's own time.
        let link = self.settings.link();
        let _ = output(command("ip")?.args(["link", "del", &link])).await;
        let there = Path::new("/sys/class/net").join(&link);
        until(
            Duration::from_secs(10),
            "the node's link to go",
            async || Ok((!there.exists()).then_some(())),
        )
        .await?;
        let Ok(dir) = cgroup(&self.settings) else {
            return Ok(());
        };
        // A process leaves its cgroup a moment after it is gone.
        until(
            Duration::from_secs(10),
            "the node's cgroup to empty",
            async || Ok(remove_cgroup(&dir).then_some(())),
        )
        .await
    }

    /// The init last: it is gone only when somebody outside has reaped those who came in from there.
    async fn end_node(&self) -> Result<()> {
        for daemon in [
            ClusterDaemon::Kubelet,
            ClusterDaemon::Containerd,
            ClusterDaemon::Relay,
            ClusterDaemon::Node,
        ] {
            self.end(daemon, Signal::Kill).await?;
        }
        Ok(())
    }

    /// A command in the node's namespaces, where its containerd and Debian's runc are on the PATH.
    pub(crate) fn enter<const N: usize>(&self, args: [&str; N]) -> Result<Command> {
        let init = self
            .node()?
            .context("the node is not up: cargo run -p lab -- up")?;
        self.enter_as(init, args)
    }

    fn enter_as<const N: usize>(&self, init: LabProcess, args: [&str; N]) -> Result<Command> {
        let mut command = command("nsenter")?;
        command
            .env("PATH", self.node_path())
            .args(enter_flags(init))
            .args(args);
        Ok(command)
    }

    pub(crate) fn node_path(&self) -> String {
        let packages = format!(
            "{0}/usr/bin:{0}/usr/sbin:{1}",
            self.packages().display(),
            search_path()
        );
        match self.settings.versions.containerd {
            Containerd::Debian => packages,
            Containerd::Two => format!("{}:{packages}", self.containerd_dir().display()),
        }
    }
}

pub(crate) fn enter_flags(init: LabProcess) -> Vec<String> {
    let mut flags = vec!["--target".to_owned(), init.pid().to_string()];
    flags.extend(
        [
            "--mount", "--net", "--pid", "--cgroup", "--uts", "--ipc", "--",
        ]
        .map(str::to_owned),
    );
    flags
}

/// Whether it is gone, with all below it. Only empty ones go.
fn remove_cgroup(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else {
        return !dir.exists();
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    fs::remove_dir(dir).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_where_it_is_mounted() {
        let old = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        let beside =
            "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let alone =
            "31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            cgroup2(&format!("{old}{beside}")),
            Some("/sys/fs/cgroup/unified")
        );
        assert_eq!(cgroup2(alone), Some("/sys/fs/cgroup"));
        assert_eq!(cgroup2(old), None);
    }
}
