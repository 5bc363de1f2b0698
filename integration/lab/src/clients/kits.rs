//! What the clients need: from Debian, PyPI, npm, Go and a JDK, kept in the lab's cache.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use crate::Lab;
use crate::command::{BUILD_LIMIT, command, output_within, require};

/// Where a client's program comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kit {
    /// A program that is on the machine, by its name; Debian's package is called the same.
    Machine(&'static str),
    /// Debian packages, unpacked: see `DEBIAN`.
    Debian,
    /// `clients/python/requirements.txt`.
    Python,
    /// `clients/node/package-lock.json`.
    Node,
    /// `clients/go`.
    Go,
    /// `clients/java`.
    Java,
    /// What `Lab::guests` brings into the cluster.
    Guests,
}

/// Small clients that nothing else here needs; Redis's server is in `redis-tools` too. With the libraries that a
/// small Debian lacks.
const DEBIAN: [&str; 11] = [
    "netcat-openbsd",
    "proxychains4",
    "libproxychains4",
    "redis-tools",
    "libjemalloc2",
    "libhiredis0.14",
    "liblua5.1-0",
    "liblzf1",
    "libatomic1",
    "lua-cjson",
    "lua-bitop",
];

pub(super) struct Kits<'l> {
    lab: &'l Lab,
    dir: PathBuf,
    /// Each is installed once; what failed fails for all that need it.
    done: HashMap<Kit, Result<(), String>>,
}

impl<'l> Kits<'l> {
    pub(super) fn new(lab: &'l Lab) -> Self {
        Self {
            lab,
            dir: lab.settings.cache().join("clients"),
            done: HashMap::new(),
        }
    }

    /// Where they are installed.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The committed programs.
    pub(super) fn sources(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
    }

    /// A home without anybody's settings in it.
    pub(super) fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    pub(super) async fn need(&mut self, kit: Kit) -> Result<()> {
        if !self.done.contains_key(&kit) {
            let installed = self
                .install(kit)
                .await
                .map_err(|error| format!("{error:#}"));
            self.done.insert(kit, installed);
        }
        match &self.done[&kit] {
            Ok(()) => Ok(()),
            Err(error) => Err(anyhow!("{error}")),
        }
    }

    async fn install(&self, kit: Kit) -> Result<()> {
        fs::create_dir_all(self.home())?;
        match kit {
            Kit::Machine(program) => {
                if require(&[program]).is_err() {
                    self.run("apt-get", &["-qq", "update"]).await?;
                    let install = ["-qq", "install", "-y", "--no-install-recommends", program];
                    self.run("apt-get", &install).await?;
                }
                require(&[program])
            }
            Kit::Debian => {
                let unpacked = self.lab.debian("debian-clients", &DEBIAN).await?;
                // It looks where Debian would have put it, and beside itself.
                let library = unpacked.join("usr/bin/libproxychains.so.4");
                link("../lib/x86_64-linux-gnu/libproxychains.so.4", &library)?;
                // The package's scripts, which did not run, make a server of it.
                link("redis-check-rdb", &unpacked.join("usr/bin/redis-server"))?;
                link(unpacked, &self.dir.join("debian"))
            }
            Kit::Guests => {
                Box::pin(self.install(Kit::Debian)).await?;
                self.lab.guests(&self.dir.join("debian")).await
            }
            Kit::Python => {
                let venv = self.dir.join("python");
                let list = self.sources().join("python/requirements.txt");
                let pip = venv.join("bin/pip");
                if !pip.exists() {
                    self.run("python3", &["-m", "venv", &venv.to_string_lossy()])
                        .await?;
                }
                let install = ["-q", "install", "-r", &list.to_string_lossy()];
                self.run(&pip.to_string_lossy(), &install).await
            }
            Kit::Node => {
                let dir = self.dir.join("node");
                fs::create_dir_all(&dir)?;
                let sources = self.sources().join("node");
                for entry in fs::read_dir(sources)? {
                    let entry = entry?;
                    // Node looks for packages beside the program.
                    fs::copy(entry.path(), dir.join(entry.file_name()))?;
                }
                let prefix = dir.to_string_lossy();
                let install = ["ci", "--no-audit", "--no-fund", "--prefix", &prefix];
                self.run("npm", &install).await
            }
            Kit::Go => {
                let sources = self.sources().join("go");
                let built = self.dir.join("go-clients");
                let (sources, built) = (sources.to_string_lossy(), built.to_string_lossy());
                self.run("go", &["build", "-C", &sources, "-o", &built, "."])
                    .await
            }
            Kit::Java => {
                let to = self.dir.join("java");
                let sources = self.sources().join("java");
                let [http, socks] = ["ViaHttp.java", "ViaSocks.java"].map(|f| sources.join(f));
                let (to, http, socks) = (
                    to.to_string_lossy(),
                    http.to_string_lossy(),
                    socks.to_string_lossy(),
                );
                self.run("javac", &["-d", &to, &http, &socks]).await
            }
        }
    }

    async fn run(&self, program: &str, args: &[&str]) -> Result<()> {
        let mut command = if program.contains('/') {
            let mut command = tokio::process::Command::new(program);
            command.kill_on_drop(true);
            command
        } else {
            command(program)?
        };
        output_within(BUILD_LIMIT, command.args(args)).await?;
        Ok(())
    }
}

/// If there is nothing there yet.
fn link(to: impl AsRef<Path>, at: &Path) -> Result<()> {
    match symlink(to, at) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => Ok(other?),
    }
}
