//! Which Kubernetes and which containerd a cluster is made of.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::Lab;
use crate::daemon::ClusterDaemon;
use crate::settings::source;

/// Modules of Kubernetes other than the default, which has the `go.mod` of `cluster/hyperkube` itself: `1.37.2.mod`
/// and `1.37.2.sum`.
pub(crate) const MODULES: &str = "hyperkube/versions";

/// The containerd of a node.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum Containerd {
    /// Debian 12's package.
    #[default]
    #[value(name = "1.6.20")]
    #[serde(rename = "1.6.20")]
    Debian,
    /// Built from its Go module.
    #[value(name = "2.4.2")]
    #[serde(rename = "2.4.2")]
    Two,
}

/// What a cluster consists of.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Versions {
    /// Without the `v`; one of [`Lab::kubernetes_versions`].
    pub kubernetes: String,
    /// Its node's runtime.
    pub containerd: Containerd,
}

impl Containerd {
    /// All of them, oldest first.
    pub const ALL: [Self; 2] = [Self::Debian, Self::Two];

    /// Its version, without the `v`.
    pub fn version(self) -> &'static str {
        match self {
            Self::Debian => "1.6.20",
            Self::Two => "2.4.2",
        }
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kubernetes, containerd) = (&self.kubernetes, self.containerd.version());
        write!(f, "Kubernetes {kubernetes}, containerd {containerd}")
    }
}

impl Versions {
    /// The version that `hyperkube/go.mod` asks for, on Debian's containerd.
    pub(crate) fn default_of_repository() -> Result<Self> {
        let file = source("hyperkube/go.mod");
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let kubernetes = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"))
            .with_context(|| format!("{} names no version of k8s.io/kubernetes", file.display()))?;
        Ok(Self {
            kubernetes: kubernetes.to_owned(),
            containerd: Containerd::default(),
        })
    }

    /// Those of the cluster in this directory, if one was brought up in it.
    pub(crate) fn read(state: &Path) -> Result<Option<Self>> {
        let file = state.join("versions");
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", file.display()))?,
        };
        let parsed = text.trim().split_once(' ').and_then(|(kubernetes, name)| {
            let containerd = Containerd::ALL.into_iter().find(|c| c.version() == name)?;
            Some(Self {
                kubernetes: kubernetes.to_owned(),
                containerd,
            })
        });
        let parsed = parsed.with_context(|| format!("{} is not readable", file.display()))?;
        Ok(Some(parsed))
    }

    /// The order of a table: the oldest first.
    pub(crate) fn age(&self) -> (Vec<u32>, Containerd) {
        (numbers(&self.kubernetes), self.containerd)
    }

    pub(crate) fn write(&self, state: &Path) -> Result<()> {
        let (kubernetes, containerd) = (&self.kubernetes, self.containerd.version());
        Ok(fs::write(
            state.join("versions"),
            format!("{kubernetes} {containerd}\n"),
        )?)
    }
}

impl Lab {
    /// What the cluster consists of, or would if it were brought up.
    pub fn versions(&self) -> &Versions {
        &self.settings.versions
    }

    /// The same lab with other versions; `None` is what is up, or else the default.
    ///
    /// # Errors
    /// A version that the repository has no module for; a cluster of others that is up.
    pub fn with_versions(
        mut self,
        kubernetes: Option<String>,
        containerd: Option<Containerd>,
    ) -> Result<Self> {
        let up = ClusterDaemon::ALL
            .iter()
            .any(|daemon| self.is_alive(*daemon).unwrap_or(false));
        if !up {
            self.settings.versions = Versions::default_of_repository()?; // the record is of an earlier cluster
        }
        let now = self.settings.versions.clone();
        let wanted = Versions {
            kubernetes: kubernetes.unwrap_or_else(|| now.kubernetes.clone()),
            containerd: containerd.unwrap_or(now.containerd),
        };
        has_module(&wanted.kubernetes, &self.kubernetes_versions()?)?;
        ensure!(
            !up || wanted == now,
            "{now} is up in {}: run `lab down` first",
            self.dir().display()
        );
        self.settings.versions = wanted;
        Ok(self)
    }

    /// Versions of Kubernetes that can be brought up, oldest first.
    ///
    /// # Errors
    /// The sources cannot be read.
    pub fn kubernetes_versions(&self) -> Result<Vec<String>> {
        let dir = source(MODULES);
        let mut all = vec![Versions::default_of_repository()?.kubernetes];
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            all.extend(name.strip_suffix(".mod").map(str::to_owned));
        }
        all.sort_by_key(|version| numbers(version));
        Ok(all)
    }
}

/// Fails unless this Kubernetes is one of those that can be brought up.
pub(crate) fn has_module(kubernetes: &str, all: &[String]) -> Result<()> {
    ensure!(
        all.iter().any(|known| known == kubernetes),
        "no module for Kubernetes {kubernetes}; there are {}",
        all.join(", ")
    );
    Ok(())
}

/// `1.34.4` as numbers, for comparison.
fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map_while(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab() -> (tempfile::TempDir, Lab) {
        let dir = tempfile::tempdir().unwrap();
        let settings = crate::settings::Settings::in_dir(dir.path());
        (dir, Lab { settings })
    }

    #[test]
    fn versions_are_kept_beside_the_cluster() {
        let (dir, _) = lab();
        assert_eq!(Versions::read(dir.path()).unwrap(), None);
        let versions = Versions {
            kubernetes: "1.37.2".to_owned(),
            containerd: Containerd::Two,
        };
        versions.write(dir.path()).unwrap();
        assert_eq!(Versions::read(dir.path()).unwrap(), Some(versions));
        fs::write(dir.path().join("versions"), "1.37.2 0.9\n").unwrap();
        Versions::read(dir.path()).unwrap_err();
    }

    #[test]
    fn modules_in_the_repository_can_be_chosen_and_no_others() {
        let known = lab().1.kubernetes_versions().unwrap();
        assert_eq!(known, ["1.30.14", "1.34.4", "1.37.2"]);
        for version in known {
            let (_dir, lab) = lab();
            let lab = lab.with_versions(Some(version.clone()), None).unwrap();
            assert_eq!(lab.versions().kubernetes, version);
        }
        let message = lab()
            .1
            .with_versions(Some("1.33.0".to_owned()), None)
            .unwrap_err()
            .to_string();
        assert!(message.contains("1.30.14, 1.34.4, 1.37.2"), "{message}");
    }
}
