//! What the cluster is built of: Go programs from `cluster/`, Debian's containerd, and images of our own.
//! All of it is kept outside the repository, named by the hash of what it was built from.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;
use tracing::info;

use crate::Lab;
use crate::command::{BUILD_LIMIT, command, output, output_within};
use crate::settings::source;
use crate::versions::{Containerd, MODULES, Versions};

/// Modules under `cluster/`, each one program. Kubernetes and etcd are one file of 138 MB: linked apart
/// they would be six times that.
const PROGRAMS: [&str; 3] = ["hyperkube", "echo", "coredns"];

/// Debian packages, unpacked and not installed: no service starts.
const PACKAGES: [&str; 3] = ["containerd", "runc", "containernetworking-plugins"];

/// Name, entry point, and the files of each image: all that containerd ever runs here.
const IMAGES: [(&str, &[(&str, &str)]); 3] = [
    ("pause", &[("pause", "echo")]),
    ("echo", &[("echo", "echo")]),
    ("coredns", &[("coredns", "coredns")]),
];

const CONTAINERD: &str = "github.com/containerd/containerd/v2";
/// Of containerd 2.
const CONTAINERD_PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];

const KWOK: &str = "sigs.k8s.io/kwok";
const KWOK_VERSION: &str = "v0.8.0";

impl Lab {
    /// Builds what is not in the cache, and points the cluster's `bin` at it.
    ///
    /// # Errors
    /// What a build printed; a missing Go or Debian, by name.
    pub async fn build(&self) -> Result<()> {
        let cache = self.settings.cache();
        for dir in ["bin", "images"] {
            fs::create_dir_all(cache.join(dir))
                .with_context(|| format!("cannot make {}", cache.display()))?;
        }
        let _lock = lock(cache.join("lock")).await?;
        for program in PROGRAMS {
            self.program(program).await?;
        }
        self.link("kubectl", &self.built("hyperkube")?)?;
        self.unpack("debian", &PACKAGES).await?;
        if self.settings.versions.containerd == Containerd::Two {
            self.program("runc").await?;
            self.build_containerd().await?;
        }
        for (name, _) in IMAGES {
            self.image(name).await?;
        }
        Ok(())
    }

    async fn program(&self, program: &str) -> Result<()> {
        let built = self.built(program)?;
        if !built.exists() {
            info!("building {program} (minutes on an empty Go cache)");
            let mut go = self.go_build(program)?;
            publish(&built, async |to| {
                output_within(BUILD_LIMIT, go.arg("-o").arg(to).arg(".")).await
            })
            .await?;
            info!("built {program}");
        }
        self.link(program, &built)
    }

    async fn build_containerd(&self) -> Result<()> {
        let built = self.containerd_dir();
        if built.exists() {
            return Ok(());
        }
        let version = self.settings.versions.containerd.version();
        info!("building containerd {version}");
        let packages =
            CONTAINERD_PROGRAMS.map(|program| format!("{CONTAINERD}/cmd/{program}@v{version}"));
        publish(&built, async |to| {
            let mut go = go_install(to)?;
            // As its own builds say it, or it calls itself 2.4.2+unknown.
            go.arg(format!(
                "-ldflags=-s -w -X {CONTAINERD}/version.Version=v{version}"
            ));
            output_within(BUILD_LIMIT, go.args(&packages)).await
        })
        .await
    }

    /// The programs of containerd 2.
    pub(crate) fn containerd_dir(&self) -> PathBuf {
        let version = self.settings.versions.containerd.version();
        self.settings.cache().join(format!("containerd-{version}"))
    }

    /// kwok, for fake nodes and pods, and how those live: its own defaults.
    pub(crate) async fn build_kwok(&self) -> Result<()> {
        let cache = self.settings.cache();
        let _lock = lock(cache.join("lock")).await?;
        let built = cache.join(format!("bin/kwok-{KWOK_VERSION}"));
        if !built.exists() {
            info!("building kwok {KWOK_VERSION}");
            let dir = temporary(&built);
            let mut go = go_install(&dir)?;
            go.arg("-ldflags=-s -w");
            go.arg(format!("{KWOK}/cmd/kwok@{KWOK_VERSION}"));
            output_within(BUILD_LIMIT, &mut go).await?;
            fs::rename(dir.join("kwok"), &built)?;
            fs::remove_dir(&dir)?;
        }
        self.link("kwok", &built)?;
        let mut go = command("go")?;
        // Outside every module: its own version is what is asked for.
        go.current_dir(cache).args([
            "mod",
            "download",
            "-json",
            &format!("{KWOK}@{KWOK_VERSION}"),
        ]);
        let module: serde_json::Value = serde_json::from_str(&output(&mut go).await?)?;
        let stages = Path::new(module["Dir"].as_str().context("no Dir")?).join("kustomize/stage");
        let mut all = String::new();
        for stage in [
            "node/fast/node-initialize",
            "node/heartbeat-with-lease/node-heartbeat-with-lease",
            "pod/fast/pod-ready",
            "pod/fast/pod-complete",
            "pod/fast/pod-delete",
        ] {
            all += &fs::read_to_string(stages.join(stage).with_extension("yaml")).context(stage)?;
            all += "\n---\n";
        }
        fs::write(self.settings.path("kwok-stages.yaml"), all)?;
        Ok(())
    }

    /// Where containerd, runc and the CNI plugins are.
    pub(crate) fn packages(&self) -> PathBuf {
        self.settings.cache().join("debian")
    }

    /// An image for `ctr images import`, by what is in it.
    pub(crate) fn images(&self) -> Result<Vec<PathBuf>> {
        IMAGES
            .iter()
            .map(|(name, _)| self.image_file(name))
            .collect()
    }

    fn image_file(&self, name: &str) -> Result<PathBuf> {
        let (_, files) = IMAGES
            .iter()
            .find(|(image, _)| *image == name)
            .context("no such image")?;
        let mut hash = Sha256::new();
        for program in files
            .iter()
            .map(|(_, program)| *program)
            .chain(["hyperkube"])
        {
            hash.update(self.hash(program)?);
        }
        Ok(self
            .settings
            .cache()
            .join(format!("images/{name}-{}.tar", short(&hash.finalize()))))
    }

    async fn image(&self, name: &str) -> Result<()> {
        let file = self.image_file(name)?;
        if file.exists() {
            return Ok(());
        }
        let (_, files) = IMAGES
            .iter()
            .find(|(image, _)| *image == name)
            .context("no such image")?;
        let mut tool = self.hyperkube(&["image"]);
        publish(&file, async |to| {
            tool.arg(to)
                .arg(format!("lab.local/{name}:1"))
                .arg(format!("/{name}"));
            for (file, program) in *files {
                tool.arg(format!("{file}={}", self.built(program)?.display()));
            }
            if name == "echo" {
                tool.arg("cat=@echo"); // something for `kubectl exec` to run
            }
            output(&mut tool).await
        })
        .await
    }

    /// One of the tools in the `hyperkube` program, or one of its components.
    pub(crate) fn hyperkube(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.settings.path("bin/hyperkube"));
        command.args(args).kill_on_drop(true);
        command
    }

    fn link(&self, name: &str, to: &Path) -> Result<()> {
        let link = PathBuf::from(self.settings.path("bin")).join(name);
        let new = temporary(&link);
        fs::create_dir_all(self.settings.path("bin"))?;
        symlink(to, &new)?;
        Ok(fs::rename(&new, &link)?)
    }

    pub(crate) fn built(&self, program: &str) -> Result<PathBuf> {
        Ok(self
            .settings
            .cache()
            .join(format!("bin/{program}-{}", short(&self.hash(program)?))))
    }

    /// Of every file of the program's module and the flags it is built with.
    fn hash(&self, program: &str) -> Result<Vec<u8>> {
        let dir = source(program);
        let read = || -> Result<Vec<u8>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                // Modules of other versions are in directories.
                if entry.file_type()?.is_file() {
                    names.push(entry.file_name());
                }
            }
            names.sort();
            if let Some(module) = self.other_module(program)? {
                names.extend([module.clone().into(), module.replace(".mod", ".sum").into()]);
            }
            let mut hash = Sha256::new();
            hash.update(self.linker_flags(program)?);
            for name in names {
                let content = fs::read(dir.join(&name))?;
                hash.update(name.as_encoded_bytes());
                hash.update(content.len().to_be_bytes());
                hash.update(content);
            }
            Ok(hash.finalize().to_vec())
        };
        read().with_context(|| format!("cannot read the sources in {}", dir.display()))
    }

    pub(crate) fn go_build(&self, program: &str) -> Result<Command> {
        let mut go = command("go")?;
        go.current_dir(source(program));
        go.env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .env("GOFLAGS", "");
        go.args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly"]);
        if let Some(module) = self.other_module(program)? {
            go.arg(format!("-modfile={module}"));
        }
        go.arg(format!("-ldflags={}", self.linker_flags(program)?));
        Ok(go)
    }

    /// Beside the program's sources, where it is not its `go.mod`.
    fn other_module(&self, program: &str) -> Result<Option<String>> {
        let version = &self.settings.versions.kubernetes;
        let other =
            program == "hyperkube" && *version != Versions::default_of_repository()?.kubernetes;
        let dir = MODULES.trim_start_matches("hyperkube/");
        Ok(other.then(|| format!("{dir}/{version}.mod")))
    }

    /// Kubernetes takes its version from the linker, and a client acts on it.
    fn linker_flags(&self, program: &str) -> Result<String> {
        let mut flags = String::from("-s -w");
        if program == "runc" {
            let real = self.packages().join("usr/sbin/runc");
            flags += &format!(" -X main.real={}", real.display());
        }
        if program == "hyperkube" {
            let version = &self.settings.versions.kubernetes;
            let mut numbers = version.split('.');
            let (major, minor) = (
                numbers.next().unwrap_or_default(),
                numbers.next().unwrap_or_default(),
            );
            for package in [
                "k8s.io/component-base/version",
                "k8s.io/client-go/pkg/version",
            ] {
                for (name, value) in [
                    ("gitVersion", format!("v{version}").as_str()),
                    ("gitMajor", major),
                    ("gitMinor", minor),
                ] {
                    flags += &format!(" -X {package}.{name}={value}");
                }
                flags += &format!(" -X {package}.gitTreeState=clean");
            }
        }
        Ok(flags)
    }
}

/// Programs at a version of their own, outside every module, into this directory.
pub(crate) fn go_install(to: &Path) -> Result<Command> {
    let mut go = command("go")?;
    go.env("GOBIN", to).env("CGO_ENABLED", "0");
    go.args(["install", "-trimpath"]);
    Ok(go)
}

/// Waits for the process that holds it, and says so; released when dropped, or when this process ends.
pub(crate) async fn lock(file: PathBuf) -> Result<File> {
    let locked = tokio::task::spawn_blocking(move || -> Result<File> {
        let lock =
            File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                info!("waiting for the lock {}", file.display());
                lock.lock()?;
            }
            locked => locked?,
        }
        Ok(lock)
    });
    locked.await?
}

/// Makes a file under another name first, so that it is whole or not there.
pub(crate) async fn publish(
    file: &Path,
    make: impl AsyncFnOnce(&Path) -> Result<String>,
) -> Result<()> {
    let new = temporary(file);
    make(&new).await?;
    Ok(fs::rename(&new, file)?)
}

/// A name beside `file`, free of what an interrupted run left there.
pub(crate) fn temporary(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = file.with_file_name(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() == ErrorKind::IsADirectory => drop(fs::remove_dir_all(&new)),
        _ => {}
    }
    new
}

fn short(hash: &[u8]) -> String {
    hash.iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
