//! Debian packages: unpacked, so that no service starts and nothing of the machine changes; or installed, where clients are.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tokio::process::Command;
use tracing::info;

use crate::Lab;
use crate::binaries::{lock, temporary};
use crate::command::{BUILD_LIMIT, command, output, output_within};

impl Lab {
    /// These packages' files, under one directory of the cache that is called `name`; unpacked once. What they
    /// depend on is not fetched, unless it is listed.
    ///
    /// # Errors
    /// What apt said: a package this Debian does not have, or no archive within reach.
    pub async fn debian(&self, name: &str, packages: &[&str]) -> Result<PathBuf> {
        let cache = self.settings.cache();
        if cache.join(name).exists() {
            return Ok(cache.join(name)); // without waiting for whoever builds there
        }
        fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
        let _lock = lock(cache.join("lock")).await?;
        self.unpack(name, packages).await
    }

    /// Installs these packages.
    ///
    /// # Errors
    /// A package that cannot be installed, with apt's message.
    pub(crate) async fn install_packages(&self, packages: &[&str]) -> Result<()> {
        let _lock = self.lock_apt().await?;
        output(command("apt-get")?.args(["-qq", "update"])).await?;
        let mut apt = command("apt-get")?;
        // A fresh Debian runs apt by itself.
        apt.args(["-qq", "-o", "DPkg::Lock::Timeout=300"])
            .args(["install", "-y", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive");
        output_within(BUILD_LIMIT, &mut apt).await.map(drop)
    }

    /// Waits for the apt of another `lab`: a second one fails at once.
    async fn lock_apt(&self) -> Result<File> {
        let cache = self.settings.cache();
        fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
        lock(cache.join("apt.lock")).await
    }

    /// As [`Lab::debian`], for a caller that holds the cache's lock.
    pub(crate) async fn unpack(&self, name: &str, packages: &[&str]) -> Result<PathBuf> {
        let unpacked = self.settings.cache().join(name);
        if unpacked.exists() {
            return Ok(unpacked);
        }
        info!("fetching {} (Debian packages)", packages.join(", "));
        let dir = temporary(&unpacked);
        let (fetched, root) = (dir.join("packages"), dir.join("root"));
        fs::create_dir_all(&fetched)?;
        fs::create_dir_all(&root)?;
        let fetch = || -> Result<Command> {
            let mut apt = command("apt-get")?;
            // As root: its own user cannot write here.
            apt.current_dir(&fetched)
                .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
                .args(packages);
            Ok(apt)
        };
        let locked = self.lock_apt().await?;
        if output(&mut fetch()?).await.is_err() {
            output(command("apt-get")?.args(["-qq", "update"])).await?; // no lists yet, or old ones
            output(&mut fetch()?).await?;
        }
        drop(locked);
        for package in fs::read_dir(&fetched)? {
            output(command("dpkg")?.arg("-x").arg(package?.path()).arg(&root)).await?;
        }
        fs::rename(&root, &unpacked)?;
        fs::remove_dir_all(&dir)?;
        Ok(unpacked)
    }
}
