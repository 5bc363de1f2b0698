//! What the clients need: from Debian, PyPI, npm, Go and a JDK, kept in the lab's cache.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use crate::Lab;
use crate::command::{BUILD_LIMIT, command, output_within, require};
use crate::guests::Unpacked;

/// Where a client's program comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kit {
    /// A program that is on the machine, by its name; installed from Debian where it is not, see `PACKAGES`.
    Machine(&'static str),
    /// Debian packages, unpacked: see `DEBIAN`.
    Debian,
    /// The same: see `POSTGRES`.
    Postgres,
    /// `clients/python/requirements.txt`.
    Python,
    /// `clients/node/package-lock.json`.
    Node,
    /// `clients/go`.
    Go,
    /// `clients/java`.
    Java,
    /// Programs of Debian that know no cluster: see `PROGRAMS`.
    Programs,
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

/// PostgreSQL's server and psql.
const POSTGRES: [&str; 14] = [
    "postgresql-15",
    "postgresql-client-15",
    "libpq5",
    "libgssapi-krb5-2",
    "libicu72",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "libldap-2.5-0",
    "libreadline8",
    "libsasl2-2",
    "libssl3",
    "libxml2",
];

/// With the package of each.
const PROGRAMS: [(&str, &str); 21] = [
    ("ab", "apache2-utils"),
    ("aria2c", "aria2"),
    ("busybox", "busybox"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("drill", "ldnsutils"),
    ("git", "git"),
    ("hey", "hey"),
    ("host", "bind9-host"),
    ("http", "httpie"),
    ("lftp", "lftp"),
    ("links", "links"),
    ("lwp-request", "libwww-perl"),
    ("lynx", "lynx"),
    ("ncat", "ncat"),
    ("php", "php-cli"),
    ("ping", "iputils-ping"),
    ("ruby", "ruby"),
    ("socat", "socat"),
    ("tclsh", "tcl"),
    ("w3m", "w3m"),
];

/// A tool of the module in `clients/go`.
const GRPCURL: &str = "github.com/fullstorydev/grpcurl/cmd/grpcurl";

/// Debian's package of a program, where it is not called the same.
const PACKAGES: [(&str, &str); 5] = [
    ("chromedriver", "chromium-driver"),
    ("javac", "default-jdk-headless"),
    ("python3", "python3-venv"),
    ("script", "bsdutils"),
    ("ssh", "openssh-client"),
];

/// Their directory in the cache.
const NAME: &str = "clients";

pub(crate) struct Kits<'l> {
    lab: &'l Lab,
    dir: PathBuf,
    /// Each is installed once; what failed fails for all that need it.
    done: HashMap<Kit, Result<(), String>>,
}

impl<'l> Kits<'l> {
    pub(crate) fn new(lab: &'l Lab) -> Self {
        Self {
            lab,
            dir: lab.settings.cache().join(NAME),
            done: HashMap::new(),
        }
    }

    /// Where they are installed.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The same, within the lab's cache.
    pub(crate) fn name(&self) -> &'static str {
        NAME
    }

    /// The committed programs.
    pub(crate) fn sources(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
    }

    /// A home without anybody's settings in it.
    pub(crate) fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// What the proxy says, in a directory that is there.
    pub(crate) fn log(&self) -> Result<PathBuf> {
        fs::create_dir_all(self.home())?;
        Ok(self.dir.join("kubevpn.log"))
    }

    pub(crate) async fn need(&mut self, kit: Kit) -> Result<()> {
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
        match kit {
            Kit::Machine(program) => self.machine(program).await,
            Kit::Debian => {
                let unpacked = self.lab.debian("debian-clients", &DEBIAN).await?;
                // It looks where Debian would have put it, and beside itself.
                let library = unpacked.join("usr/bin/libproxychains.so.4");
                link("../lib/x86_64-linux-gnu/libproxychains.so.4", &library)?;
                // The package's scripts, which did not run, make a server of it.
                link("redis-check-rdb", &unpacked.join("usr/bin/redis-server"))?;
                link(beside(&unpacked), &self.dir.join("debian"))
            }
            Kit::Postgres => {
                let unpacked = self.lab.debian("debian-postgres", &POSTGRES).await?;
                link(beside(&unpacked), &self.dir.join("postgres"))
            }
            Kit::Programs => {
                let missing = PROGRAMS
                    .iter()
                    .filter(|(program, _)| require(&[*program]).is_err());
                let packages: Vec<_> = missing.map(|(_, package)| *package).collect();
                match packages.is_empty() {
                    true => Ok(()),
                    false => self.lab.install_packages(&packages).await,
                }
            }
            Kit::Guests => {
                Box::pin(self.install(Kit::Debian)).await?;
                Box::pin(self.install(Kit::Postgres)).await?;
                let unpacked = Unpacked {
                    redis: self.dir.join("debian"),
                    postgres: self.dir.join("postgres"),
                };
                self.lab.guests(&unpacked).await
            }
            Kit::Python => {
                self.machine("python3").await?;
                // One that other users may run, where there is more than one.
                let system = Path::new("/usr/bin/python3");
                let python = if system.exists() {
                    "/usr/bin/python3"
                } else {
                    "python3"
                };
                let venv = self.dir.join("python");
                let list = self.sources().join("python/requirements.txt");
                let pip = venv.join("bin/pip");
                if !pip.exists() {
                    self.run(python, &["-m", "venv", &venv.to_string_lossy()])
                        .await?;
                }
                let install = ["-q", "install", "-r", &list.to_string_lossy()];
                self.run(&pip.to_string_lossy(), &install).await
            }
            Kit::Node => {
                self.machine("npm").await?;
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
                let sources = sources.to_string_lossy();
                for (name, package) in [("go-clients", "."), ("grpcurl", GRPCURL)] {
                    let built = self.dir.join(name);
                    let build = [
                        "build",
                        "-C",
                        &sources,
                        // Without the C library: Go's own resolver, and static.
                        "-tags=netgo,osusergo",
                        "-o",
                        &built.to_string_lossy(),
                        package,
                    ];
                    self.run("go", &build).await?;
                }
                Ok(())
            }
            Kit::Java => {
                self.machine("javac").await?;
                let to = self.dir.join("java");
                let sources = self.sources().join("java");
                let programs = [
                    "Direct.java",
                    "ViaHttp.java",
                    "ViaSettings.java",
                    "ViaSocks.java",
                ];
                let programs = programs.map(|f| sources.join(f).to_string_lossy().into_owned());
                let to = to.to_string_lossy();
                let args = ["-d", &to].into_iter().chain(programs.iter().map(|f| &**f));
                self.run("javac", &args.collect::<Vec<_>>()).await
            }
        }
    }

    async fn machine(&self, program: &str) -> Result<()> {
        if !self.has(program).await {
            let renamed = PACKAGES.iter().find(|(name, _)| *name == program);
            let package = renamed.map_or(program, |(_, package)| *package);
            self.lab.install_packages(&[package]).await?;
        }
        require(&[program])
    }

    async fn has(&self, program: &str) -> bool {
        // Debian's Python lacks, on its own, what makes a venv.
        let whole =
            program != "python3" || self.run(program, &["-c", "import ensurepip"]).await.is_ok();
        whole && require(&[program]).is_ok()
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

/// A directory of the cache, seen from this one: it is shown at another place, too.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    Path::new("..").join(name)
}

/// If it is not there yet.
fn link(to: impl AsRef<Path>, at: &Path) -> Result<()> {
    if fs::read_link(at).is_ok_and(|old| old != to.as_ref()) {
        fs::remove_file(at)?;
    }
    match symlink(to, at) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => Ok(other?),
    }
}
