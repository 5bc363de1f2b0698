//! Cargo tools for a release: built once, of a fixed version, and kept in the lab's cache.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tokio::process::Command;
use tracing::info;

use crate::Lab;
use crate::binaries::lock;
use crate::command::{BUILD_LIMIT, output, output_within};

/// Writes the list of libraries into the program.
const AUDITABLE: Tool = Tool {
    name: "auditable",
    version: "0.7.7",
};

/// Writes the list of libraries into a file beside the program.
const CYCLONEDX: Tool = Tool {
    name: "cyclonedx",
    version: "0.5.9",
};

/// A subcommand of cargo.
#[derive(Clone, Copy)]
struct Tool {
    name: &'static str,
    version: &'static str,
}

/// Location of the tools of a release.
#[derive(Clone, Debug)]
pub struct ReleaseTools {
    bin: PathBuf,
}

impl Lab {
    /// Builds the tools of a release that are not in the cache.
    ///
    /// # Errors
    /// A tool cannot be built; the error has cargo's output.
    pub async fn release_tools(&self) -> Result<ReleaseTools> {
        let root = self.settings.cache().join("tools");
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let _lock = lock(root.join("lock")).await?;
        let tools = ReleaseTools {
            bin: root.join("bin"),
        };
        for tool in [AUDITABLE, CYCLONEDX] {
            if tools.version(tool).await.as_deref() != Some(tool.version) {
                install(tool, &root).await?;
            }
        }
        Ok(tools)
    }
}

impl ReleaseTools {
    /// `cargo auditable`.
    pub(super) fn auditable(&self) -> Command {
        self.command(AUDITABLE)
    }

    /// `cargo cyclonedx`.
    pub(super) fn cyclonedx(&self) -> Command {
        self.command(CYCLONEDX)
    }

    /// A cargo subcommand gets its own name as the first argument.
    fn command(&self, tool: Tool) -> Command {
        let mut command = Command::new(self.bin.join(format!("cargo-{}", tool.name)));
        command.kill_on_drop(true).arg(tool.name);
        command
    }

    /// The installed version, as recorded by cargo: `cargo auditable` has no flag that prints it.
    async fn version(&self, tool: Tool) -> Option<String> {
        let root = self.bin.parent()?;
        let mut cargo = Command::new("cargo");
        cargo.args(["install", "--list", "--root"]).arg(root);
        let list = output(&mut cargo).await.ok()?;
        let name = format!("cargo-{} v", tool.name);
        let line = list.lines().find_map(|line| line.strip_prefix(&name))?;
        Some(line.trim_end_matches(':').to_owned())
    }
}

/// Installs a debug build, which takes half as long to build: each tool runs for seconds only.
async fn install(tool: Tool, root: &Path) -> Result<()> {
    let package = format!("cargo-{}@{}", tool.name, tool.version);
    info!("building {package}");
    let target = root.join("target");
    let mut cargo = Command::new("cargo");
    cargo
        .kill_on_drop(true)
        .args(["install", "--locked", "--debug", &package, "--root"])
        .arg(root)
        .arg("--target-dir")
        .arg(&target);
    output_within(BUILD_LIMIT, &mut cargo).await?;
    fs::remove_dir_all(target)?;
    Ok(())
}
