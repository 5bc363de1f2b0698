//! The Debian package in a Debian that has nothing else: installed, used, removed.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::command::{BUILD_LIMIT, command, output, output_within};

/// What is in no package, and changes by itself.
const NOT_LOOKED_AT: &str = "-path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/cache \
                             -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/log";

/// In the new root, with a process table of its own: what is left running ends with it.
const STEPS: [(&str, &str); 6] = [
    (
        "installed",
        "cd /tmp && apt-get -qq install -y --no-install-recommends ./kubevpn.deb >/dev/null 2>&1; kubevpn version",
    ),
    (
        "kubevpn demo, and the line it prints",
        ": >/tmp/demo; kubevpn demo --listen-socks 127.0.0.1:0 >/tmp/demo 2>&1 & \
         until grep -q '^Shell: ' /tmp/demo; do kill -0 $! || { cat /tmp/demo; exit 1; } >&2; sleep 0.1; done; \
         eval \"$(grep -m1 '^  curl ' /tmp/demo)\"; kill $!; wait",
    ),
    (
        "man kubevpn",
        "man kubevpn | col -b | grep -A1 '^NAME$' | tail -n 1",
    ),
    (
        "man kubevpn-proxy-out",
        "man kubevpn-proxy-out | col -b | grep -A1 '^NAME$' | tail -n 1",
    ),
    (
        "completion and the unit are there",
        "ls /usr/share/bash-completion/completions/kubevpn /usr/lib/systemd/user/kubevpn.service",
    ),
    (
        "removed",
        "apt-get -qq remove --purge -y kubevpn 2>&1 | tail -n 1; ! command -v kubevpn",
    ),
];

/// Installs a package into a root made by debootstrap below `work`, uses it and removes it again; each claim is reported.
///
/// # Errors
/// No root can be made, a step fails, or something is left behind.
pub async fn try_package(package: &Path, work: &Path, report: impl Fn(&str, &str)) -> Result<()> {
    ensure!(
        package.is_file(),
        "there is no {}: make the packages first",
        package.display()
    );
    let root = tempfile::Builder::new().prefix("root-").tempdir_in(work)?;
    let system = fs::read_to_string("/etc/os-release")?;
    let suite = system
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let mut mirrors = command("apt-get")?;
    mirrors.args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]);
    let mirrors = output(&mut mirrors).await?;
    let mut debootstrap = command("debootstrap")?;
    debootstrap
        .args(["--variant=minbase", "--include=man-db,bsdextrautils,curl"])
        .arg(suite.context("this system has no VERSION_CODENAME: it needs Debian")?)
        .arg(root.path())
        .arg(mirrors.lines().next().context("apt has no archive")?);
    output_within(BUILD_LIMIT, &mut debootstrap).await?;
    fs::copy(package, root.path().join("tmp/kubevpn.deb"))?;
    let files = format!("find / \\( {NOT_LOOKED_AT} \\) -prune -o -print | sort");
    let before = inside(root.path(), &files).await?;
    for (what, step) in STEPS {
        let said = inside(root.path(), step)
            .await
            .with_context(|| what.to_owned())?;
        report(what, said.trim());
    }
    let after = inside(root.path(), &files).await?;
    let left: Vec<&str> = after
        .lines()
        .filter(|file| !before.lines().any(|it| it == *file))
        .collect();
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    report(
        "left behind",
        &format!("nothing, of {} files and folders", after.lines().count()),
    );
    Ok(())
}

async fn inside(root: &Path, line: &str) -> Result<String> {
    let mut unshare: Command = command("unshare")?;
    unshare
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-euc"])
        .arg("mount -t proc proc \"$0/proc\"; exec chroot \"$0\" sh -euc \"$1\"")
        .arg(root)
        .arg(line)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive");
    output(&mut unshare).await
}
