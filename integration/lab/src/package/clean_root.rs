//! Tests the packages in a minimal Debian: each is installed, used and removed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::command::{BUILD_LIMIT, command, output, output_within};

/// Paths that belong to no package and change by themselves.
const NOT_LOOKED_AT: &str = "-path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/cache \
                             -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/lib/rpm -o -path /var/log";

/// Steps with a package installed. They run in the new root with a process namespace of their own, so that programs left
/// running end with it.
const STEPS: [(&str, &str); 5] = [
    ("installed", "kubevpn version"),
    (
        "kubevpn demo, and the line it prints",
        ": >/tmp/demo; kubevpn demo --listen-socks 127.0.0.1:0 >/tmp/demo 2>&1 & \
         until grep -q '^Shell: ' /tmp/demo; do kill -0 $! || { cat /tmp/demo; exit 1; } >&2; sleep 0.1; done; \
         eval \"$(grep -m1 '^  curl ' /tmp/demo)\"; kill $!; wait",
    ),
    (
        "man kubevpn",
        "man kubevpn | col -b | grep -A1 '^NAME$' | grep kubevpn",
    ),
    (
        "man kubevpn-proxy-out",
        "man kubevpn-proxy-out | col -b | grep -A1 '^NAME$' | grep kubevpn",
    ),
    (
        "completion and the unit are there",
        "ls /usr/share/bash-completion/completions/kubevpn /usr/lib/systemd/user/kubevpn.service",
    ),
];

/// Installs the packages in `out`, one after the other, into a root made by debootstrap, uses and removes each, and reports
/// each claim.
///
/// # Errors
/// No root can be made, a step fails, or a file is left behind.
pub async fn try_packages(out: &Path, report: impl Fn(&str, &str)) -> Result<()> {
    let [deb, rpm] = [package(out, "deb")?, package(out, "rpm")?];
    let root = tempfile::Builder::new().prefix("root-").tempdir_in(out)?;
    let root = root.path();
    debootstrap(root).await?;
    let files = format!("find / \\( {NOT_LOOKED_AT} \\) -prune -o -print | sort");
    let before = inside(root, &files).await?;

    fs::copy(&deb, root.join("tmp/kubevpn.deb"))?;
    let install = "cd /tmp && apt-get -qq install -y --no-install-recommends ./kubevpn.deb 2>&1";
    inside(root, install).await.context("the Debian package")?;
    use_it(root, "deb", &report).await?;
    let remove = "apt-get -qq remove --purge -y kubevpn 2>&1; ! command -v kubevpn";
    inside(root, remove).await.context("apt remove --purge")?;
    nothing_left(root, &files, &before, "deb", &report).await?;

    let requires = requires(&rpm).await?;
    for library in &requires {
        let find = format!("find /usr/lib /usr/lib64 -name '{library}' | grep -q .");
        let found = inside(root, &find).await;
        found.with_context(|| format!("the RPM asks for {library}"))?;
    }
    report("rpm: requires", &requires.join(" "));
    output(rpm_in(root)?.arg("--initdb")).await?;
    // --nodeps, because this rpm does not see the libraries that dpkg has installed. The requirements were checked before.
    output(rpm_in(root)?.args(["--install", "--nodeps"]).arg(&rpm)).await?;
    use_it(root, "rpm", &report).await?;
    output(rpm_in(root)?.args(["--erase", "kubevpn"])).await?;
    nothing_left(root, &files, &before, "rpm", &report).await
}

/// The only package of a kind.
fn package(out: &Path, kind: &str) -> Result<PathBuf> {
    let mut packages = fs::read_dir(out)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == kind));
    packages
        .next()
        .with_context(|| format!("{} has no .{kind}", out.display()))
}

async fn debootstrap(root: &Path) -> Result<()> {
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
        .arg(root)
        .arg(mirrors.lines().next().context("apt has no archive")?);
    output_within(BUILD_LIMIT, &mut debootstrap).await?;
    Ok(())
}

async fn use_it(root: &Path, kind: &str, report: &impl Fn(&str, &str)) -> Result<()> {
    for (what, step) in STEPS {
        let said = inside(root, step).await;
        let said = said.with_context(|| format!("{kind}: {what}"))?;
        report(&format!("{kind}: {what}"), said.trim());
    }
    Ok(())
}

async fn nothing_left(
    root: &Path,
    files: &str,
    before: &str,
    kind: &str,
    report: &impl Fn(&str, &str),
) -> Result<()> {
    let after = inside(root, files).await?;
    let left: Vec<&str> = after
        .lines()
        .filter(|file| !before.lines().any(|it| it == *file))
        .collect();
    ensure!(left.is_empty(), "{kind}: left behind: {}", left.join(", "));
    let count = after.lines().count();
    report(
        &format!("{kind}: left behind"),
        &format!("nothing, of {count} files and folders"),
    );
    Ok(())
}

/// File names of the libraries that an RPM requires.
async fn requires(package: &Path) -> Result<Vec<String>> {
    let list = output(command("rpm")?.args(["-qp", "--requires"]).arg(package)).await?;
    let mut libraries: Vec<String> = list
        .lines()
        .filter(|line| line.contains(".so"))
        .map(|line| line.split('(').next().unwrap_or(line).to_owned())
        .collect();
    libraries.sort();
    libraries.dedup();
    ensure!(!libraries.is_empty(), "the RPM asks for no library");
    Ok(libraries)
}

/// The machine's rpm with a database in the new root.
fn rpm_in(root: &Path) -> Result<Command> {
    let mut rpm = command("rpm")?;
    rpm.arg("--root").arg(root);
    rpm.args(["--dbpath", "/var/lib/rpm"]);
    Ok(rpm)
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
        // Files in a home belong to the user, and no package removes them: the home is a folder that is not compared.
        .env("HOME", "/tmp")
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive");
    output(&mut unshare).await
}
