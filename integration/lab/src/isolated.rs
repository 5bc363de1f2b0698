//! Real programs in `kubevpn run`, by the environment's way and isolated, as root and as an ordinary user, against the cluster
//! that is up.
//!
//! `table.rs` lists them, `page.rs` writes `docs/isolated.md`. Every line is run; none is said to work that was not.

mod page;
mod table;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;
use tokio::time::timeout;

use self::table::{PROGRAMS, SHOWS};
use crate::Lab;
use crate::clients::kits::{Kit, Kits};
use crate::command::{last_lines, search_path};

pub use self::page::write as write_programs;
pub use self::table::IsolatedProgram;

/// What one program may take where it gets through, and where it finds no way.
const LIMITS: (Duration, Duration) = (Duration::from_secs(180), Duration::from_secs(20));

/// An account that every Debian has, without any right.
const USER: &str = "daemon";

/// A place that all users may read, for what is in directories of root's.
const MOUNTS: &str =
    r#"mount --bind "$1" "$3/cache"; mount --bind "$2" "$3/sources"; shift 3; exec "$@""#;

/// A program, and what became of it.
#[derive(Debug)]
pub struct ProgramOutcome {
    /// Which.
    pub program: &'static IsolatedProgram,
    /// Of the environment's way, where that was tried: what went wrong, if it did.
    pub environment: Option<Result<String, String>>,
    /// Isolated, as root: its last line, or what went wrong.
    pub root: Result<String, String>,
    /// Isolated, as an ordinary user.
    pub user: Result<String, String>,
}

impl ProgramOutcome {
    /// Whether the isolated runs went as they should.
    pub fn is_as_meant(&self) -> bool {
        let works = self.program.works;
        self.root.is_ok() == works && self.user.is_ok() == works
    }
}

impl Lab {
    /// Runs every program whose name begins with `only`, each way, one after the other.
    ///
    /// # Errors
    /// There is nothing to run them in. A program's failure is in its [`ProgramOutcome`].
    pub async fn isolated(
        &self,
        kubevpn: &Path,
        only: &str,
        mut report: impl FnMut(&ProgramOutcome),
    ) -> Result<Vec<ProgramOutcome>> {
        let mut kits = Kits::new(self);
        kits.log()?;
        let place = SharedDirectory::new(self, kubevpn)?;
        let service = |name: &'static str, field: &'static str| async move {
            let path = format!("jsonpath={{.spec.{field}}}");
            self.kubectl(&["get", "service", name, "-o", &path]).await
        };
        let addresses = [
            ("$IPV4", service("reviews", "clusterIP").await?),
            ("$IPV6", service("dual", "clusterIPs[1]").await?),
            ("$PORT", self.settings.published_port().to_string()),
        ];
        let mut outcomes = Vec::new();
        let all = PROGRAMS.iter().map(|program| (program, true));
        let all = all.chain(SHOWS.iter().map(|program| (program, false)));
        for (program, by_environment) in all.filter(|(p, _)| p.name.starts_with(only)) {
            let guests = program.guests.then_some(Kit::Guests);
            for kit in program.kits.iter().copied().chain(guests) {
                let installing = kits.need(kit).await;
                installing.with_context(|| format!("{}: not installed", program.name))?;
            }
            let with_addresses = |text: &str| {
                let replaced =
                    |text: String, (name, value): &(&str, String)| text.replace(name, value);
                addresses.iter().fold(text.to_owned(), replaced)
            };
            let (line, expect) = (with_addresses(program.line), with_addresses(program.expect));
            let flags: Vec<_> = program
                .flags
                .iter()
                .map(|flag| with_addresses(flag))
                .collect();
            let isolated = [&["--isolated".to_owned()][..], &flags].concat();
            let run = async |user, flags: &[String], limit| {
                let ran = place.run(&kits, user, flags, &line, &expect, limit).await;
                ran.map_err(|error| format!("{error:#}"))
            };
            let environment = match by_environment {
                true => Some(run(None, &[], LIMITS.1).await),
                false => None,
            };
            let limit = if program.works { LIMITS.0 } else { LIMITS.1 };
            let outcome = ProgramOutcome {
                program,
                environment,
                root: run(None, &isolated, limit).await,
                user: run(Some(USER), &isolated, limit).await,
            };
            report(&outcome);
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }
}

/// A directory for all users, with the program under test and a kubeconfig.
struct SharedDirectory {
    dir: PathBuf,
    path: String,
    /// What the kits are in, and what they link to.
    cache: PathBuf,
}

impl SharedDirectory {
    fn new(lab: &Lab, kubevpn: &Path) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("kubevpn-lab-programs-{}", std::process::id()));
        let path = |name: &str| dir.join(name);
        for (name, mode) in [
            ("", 0o755),
            ("cache", 0o755),
            ("sources", 0o755),
            ("bin", 0o755),
            ("home", 0o777),
        ] {
            fs::create_dir_all(path(name))?;
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode))?;
        }
        fs::copy(kubevpn, path("bin/kubevpn")).with_context(|| kubevpn.display().to_string())?;
        fs::copy(lab.settings.path("bin/kubectl"), path("bin/kubectl"))?;
        fs::copy(lab.kubeconfig(), path("kubeconfig"))?;
        fs::set_permissions(path("kubeconfig"), fs::Permissions::from_mode(0o644))?;
        let programs = format!("{}:{}", path("bin").display(), search_path());
        Ok(Self {
            dir,
            path: programs,
            cache: lab.settings.cache().to_owned(),
        })
    }

    /// The last line that it says, where it ends well and says what it should.
    async fn run(
        &self,
        kits: &Kits<'_>,
        user: Option<&str>,
        flags: &[String],
        line: &str,
        expect: &str,
        limit: Duration,
    ) -> Result<String> {
        let home = self.dir.join("home").join(user.unwrap_or("root"));
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-ec",
                MOUNTS,
                "sh",
            ])
            .args([self.cache.as_path(), &kits.sources(), &self.dir]);
        if let Some(user) = user {
            command.args([
                "setpriv",
                "--reuid",
                user,
                "--regid",
                user,
                "--clear-groups",
            ]);
        }
        let start = r#"mkdir -p "$HOME"; cd "$HOME"; exec "$@""#;
        command
            .args(["sh", "-ec", start, "sh"])
            .arg(self.dir.join("bin/kubevpn"))
            .arg("run")
            .args(flags)
            .args(["--", "sh", "-ec", line])
            // Nothing of the caller's environment: a proxy that is set there would be used instead.
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", home)
            .env("KUBECONFIG", self.dir.join("kubeconfig"))
            .env("KITS", self.dir.join("cache").join(kits.name()))
            .env("SOURCES", self.dir.join("sources"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let done = timeout(limit, command.output())
            .await
            .with_context(|| format!("no end within {limit:?}"))??;
        let said = String::from_utf8_lossy(&done.stdout);
        let complained = String::from_utf8_lossy(&done.stderr);
        if !done.status.success() {
            bail!("{}: {}", done.status, last_lines(&complained, 2));
        }
        if !said.contains(expect) {
            let said = last_lines(&said, 2);
            bail!(
                "no {expect:?} in its answer: {said} {}",
                last_lines(&complained, 2)
            );
        }
        Ok(last_lines(&said, 1))
    }
}

impl Drop for SharedDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!("{} is left: {error}", self.dir.display());
        }
    }
}
