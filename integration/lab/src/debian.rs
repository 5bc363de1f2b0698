//! Debian packages, unpacked and not installed: no service starts, and nothing of the machine changes.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tokio::process::Command;
use tracing::info;

use crate::Lab;
use crate::binaries::{lock, temporary};
use crate::command::{command, output};

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

    /// The same for who has locked the cache.
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
        if output(&mut fetch()?).await.is_err() {
            output(command("apt-get")?.args(["-qq", "update"])).await?; // no lists yet, or old ones
            output(&mut fetch()?).await?;
        }
        for package in fs::read_dir(&fetched)? {
            output(command("dpkg")?.arg("-x").arg(package?.path()).arg(&root)).await?;
        }
        fs::rename(&root, &unpacked)?;
        fs::remove_dir_all(&dir)?;
        Ok(unpacked)
    }
}
