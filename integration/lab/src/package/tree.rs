//! The tree of files that is packed.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use tokio::process::Command;

use super::{Words, licences};
use crate::command::{command, output};

/// Files below `root`, as they will lie below `/`.
pub(super) struct Tree {
    repository: PathBuf,
    root: PathBuf,
    epoch: u64,
}

impl Tree {
    /// Makes the tree of a program built for `target`, with the manual pages and completion scripts that the program prints.
    pub(super) async fn make(
        repository: &Path,
        built: &Path,
        root: &Path,
        target: &str,
        epoch: u64,
    ) -> Result<Self> {
        let tree = Self {
            repository: repository.to_owned(),
            root: root.to_owned(),
            epoch,
        };
        let (usr, share) = (root.join("usr"), root.join("usr/share"));
        let doc = share.join("doc/kubevpn");
        for dir in [&usr.join("bin"), &doc] {
            fs::create_dir_all(dir)?;
        }
        let program = tree.program();
        output(command("strip")?.arg("-o").arg(&program).arg(built)).await?;
        let man = share.join("man/man1");
        fs::create_dir_all(&man)?;
        output(Command::new(&program).arg("man").arg(&man)).await?;
        for page in fs::read_dir(&man)? {
            gzip(&page?.path()).await?;
        }
        for (shell, file) in [
            ("bash", "bash-completion/completions/kubevpn"),
            ("zsh", "zsh/site-functions/_kubevpn"),
            ("fish", "fish/vendor_completions.d/kubevpn.fish"),
        ] {
            let mut kubevpn = Command::new(&program);
            // The completion script calls the program by the name with which it was generated.
            kubevpn.arg0("kubevpn").args(["completion", shell]);
            put(&share.join(file), &output(&mut kubevpn).await?)?;
        }
        for (from, to) in [
            (
                "deploy/package/kubevpn.service",
                "lib/systemd/user/kubevpn.service",
            ),
            (
                "deploy/package/apparmor",
                "share/apparmor/extra-profiles/kubevpn",
            ),
            ("LICENSE", "share/doc/kubevpn/LICENSE"),
            ("README.md", "share/doc/kubevpn/README.md"),
            ("CHANGELOG.md", "share/doc/kubevpn/changelog"),
        ] {
            put(&usr.join(to), &fs::read_to_string(repository.join(from))?)?;
        }
        gzip(&doc.join("changelog")).await?;
        put(
            &doc.join("THIRD-PARTY.txt"),
            &licences::of(repository, target).await?,
        )?;
        gzip(&doc.join("THIRD-PARTY.txt")).await?;
        settle(root, epoch)?;
        Ok(tree)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn program(&self) -> PathBuf {
        self.root.join("usr/bin/kubevpn")
    }

    pub(super) fn kibibytes(&self) -> Result<u64> {
        let mut sum = 0;
        each(&self.root, &mut |path, is_dir| {
            if !is_dir {
                sum += fs::metadata(path)?.len().div_ceil(1024);
            }
            Ok(())
        })?;
        Ok(sum)
    }

    /// Packs `bin`, `lib` and `share` into a tarball, below `folder`.
    pub(super) async fn tar(&self, out: &Path, file: &str, folder: &str) -> Result<()> {
        let mut tar = command("tar")?;
        tar.arg("--create")
            .arg("--file")
            .arg(out.join(file))
            .args([
                "--use-compress-program=gzip -9n",
                "--sort=name",
                "--format=gnu",
            ])
            .args(["--owner=0", "--group=0", "--numeric-owner"])
            .arg(format!("--mtime=@{}", self.epoch))
            .arg(format!("--transform=s,^usr,{folder},"))
            .arg("-C")
            .arg(&self.root)
            .arg("usr");
        output(&mut tar).await?;
        Ok(())
    }

    pub(super) async fn deb(&self, words: &Words, out: &Path) -> Result<()> {
        let root = out.join("deb");
        output(command("cp")?.arg("-a").arg(&self.root).arg(&root)).await?;
        let share = root.join("usr/share");
        // Debian's folder for completion of packages in zsh, and its place for the licence.
        fs::rename(
            share.join("zsh/site-functions"),
            share.join("zsh/vendor-completions"),
        )?;
        fs::remove_file(share.join("doc/kubevpn/LICENSE"))?;
        fs::remove_file(share.join("doc/kubevpn/README.md"))?;
        for file in ["copyright", "changelog.Debian"] {
            let template = file.trim_end_matches(".Debian");
            put(
                &share.join("doc/kubevpn").join(file),
                &words.fill(&self.repository, template)?,
            )?;
        }
        gzip(&share.join("doc/kubevpn/changelog.Debian")).await?;
        let mut sums = Vec::new();
        each(&root, &mut |path, is_dir| {
            if !is_dir {
                sums.push(path.strip_prefix(&root)?.display().to_string());
            }
            Ok(())
        })?;
        sums.sort();
        let sums = output(command("md5sum")?.current_dir(&root).args(&sums)).await?;
        let control = root.join("DEBIAN");
        put(&control.join("md5sums"), &sums)?;
        put(
            &control.join("control"),
            &words.fill(&self.repository, "control")?,
        )?;
        settle(&root, self.epoch)?;
        for script in ["postinst", "postrm"] {
            let path = control.join(script);
            put(&path, &words.fill(&self.repository, script)?)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            touch(&path, self.epoch)?;
        }
        let mut dpkg = command("dpkg-deb")?;
        dpkg.args(["--build", "--root-owner-group", "-Zxz"])
            .arg(&root)
            .arg(out)
            .env("SOURCE_DATE_EPOCH", self.epoch.to_string());
        output(&mut dpkg).await?;
        fs::remove_dir_all(root)?;
        Ok(())
    }

    pub(super) async fn rpm(&self, words: &Words, out: &Path, architecture: &str) -> Result<()> {
        let work = out.join("rpm");
        let spec = work.join("kubevpn.spec");
        put(&spec, &words.fill(&self.repository, "kubevpn.spec")?)?;
        let mut rpmbuild = command("rpmbuild")?;
        rpmbuild
            .args(["-bb", "--target", architecture, "--define"])
            .arg(format!("_topdir {}", work.display()))
            .arg(&spec)
            .env("SOURCE_DATE_EPOCH", self.epoch.to_string());
        output(&mut rpmbuild).await?;
        for package in fs::read_dir(work.join("RPMS").join(architecture))? {
            let package = package?;
            fs::rename(package.path(), out.join(package.file_name()))?;
        }
        fs::remove_dir_all(work)?;
        Ok(())
    }
}

fn put(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// Compresses without the file's name and time, which would differ between builds.
async fn gzip(path: &Path) -> Result<()> {
    output(command("gzip")?.arg("-9n").arg(path)).await?;
    Ok(())
}

/// Sets modes and times that do not depend on the builder and the time of the build.
fn settle(root: &Path, epoch: u64) -> Result<()> {
    each(root, &mut |path, is_dir| {
        let is_program = path.parent().is_some_and(|dir| dir.ends_with("bin"));
        let mode = if is_dir || is_program { 0o755 } else { 0o644 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        touch(path, epoch)
    })
}

fn touch(path: &Path, epoch: u64) -> Result<()> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(epoch);
    File::open(path)?.set_times(FileTimes::new().set_modified(time).set_accessed(time))?;
    Ok(())
}

/// Visits everything below a folder and the folder itself, after its contents.
fn each(path: &Path, then: &mut dyn FnMut(&Path, bool) -> Result<()>) -> Result<()> {
    let is_dir = path.is_dir();
    if is_dir {
        for entry in fs::read_dir(path)? {
            each(&entry?.path(), then)?;
        }
    }
    then(path, is_dir)
}
