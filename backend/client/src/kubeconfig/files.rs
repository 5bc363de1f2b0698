//! The kubeconfig files there are, merged.

use std::io;
use std::path::{Path, PathBuf};

use kube::config::Kubeconfig;

use super::env::Env;
use super::error::KubeconfigError;

/// Kubeconfigs with thousands of clusters, each with its certificate, stay below.
const MOST_BYTES: u64 = 32 << 20;

/// What the files hold together.
pub(super) struct Files {
    pub(super) merged: Kubeconfig,
    /// Those that were read.
    pub(super) read: Vec<PathBuf>,
    /// Those that are not there.
    missing: Vec<PathBuf>,
}

impl Files {
    /// `--kubeconfig` must exist; of all other files those that do are read.
    pub(super) fn read(flag: Option<&Path>, env: &Env) -> Result<Self, KubeconfigError> {
        let mut files = Self {
            merged: Kubeconfig::default(),
            read: Vec::new(),
            missing: Vec::new(),
        };
        if let Some(path) = flag {
            let path = env.expand(path);
            if !files.add(&path)? {
                return Err(KubeconfigError::Missing { path });
            }
            return Ok(files);
        }
        let listed: Vec<_> = match env.var_os("KUBECONFIG") {
            Some(list) => std::env::split_paths(list)
                .filter(|p| !p.as_os_str().is_empty())
                .collect(),
            None => Vec::new(),
        };
        let usual = env.home().map(|home| home.join(".kube").join("config"));
        let paths = match listed.is_empty() {
            true => usual.into_iter().collect(),
            false => listed,
        };
        for path in paths {
            files.add(&path)?;
        }
        Ok(files)
    }

    /// Nothing to choose a cluster from, as kubectl sees it.
    pub(super) fn is_empty(&self) -> bool {
        let Kubeconfig {
            clusters,
            contexts,
            auth_infos,
            current_context,
            ..
        } = &self.merged;
        clusters.is_empty()
            && contexts.is_empty()
            && auth_infos.is_empty()
            && current_context.is_none()
    }

    /// Why there is nothing to choose from.
    pub(super) fn none_found(self) -> KubeconfigError {
        match self.read.is_empty() {
            true => KubeconfigError::NoneFound {
                looked: self.missing,
            },
            false => KubeconfigError::Empty { files: self.read },
        }
    }

    /// Adds a file behind those before it: what they say stands. False if there is none.
    fn add(&mut self, path: &Path) -> Result<bool, KubeconfigError> {
        let unreadable = |e| KubeconfigError::unreadable("kubeconfig", path, e);
        // Paths in a kubeconfig are relative to it, and must outlive a change of directory.
        let path = &std::path::absolute(path).map_err(unreadable)?;
        let unreadable = |e| KubeconfigError::unreadable("kubeconfig", path, e);
        let bytes = match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                return Err(unreadable(io::ErrorKind::IsADirectory.into()));
            }
            Ok(found) => found.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                tracing::debug!(path = %path.display(), "no such kubeconfig");
                self.missing.push(path.clone());
                return Ok(false);
            }
            Err(e) => return Err(unreadable(e)),
        };
        if bytes > MOST_BYTES {
            let path = path.clone();
            return Err(KubeconfigError::TooLarge { path, bytes });
        }
        let mut next = Kubeconfig::read_from(path).map_err(|e| broken(path, e))?;
        // kubectl writes an empty one where there is none: the next file may name it.
        next.current_context = next.current_context.filter(|name| !name.is_empty());
        self.merged = std::mem::take(&mut self.merged).merge(next).map_err(|e| {
            KubeconfigError::Unmergeable {
                path: path.clone(),
                source: Box::new(e),
            }
        })?;
        self.read.push(path.clone());
        Ok(true)
    }
}

fn broken(path: &Path, error: kube::config::KubeconfigError) -> KubeconfigError {
    use kube::config::KubeconfigError as Kube;
    match error {
        Kube::ReadConfig(e, _) if e.kind() != io::ErrorKind::InvalidData => {
            KubeconfigError::unreadable("kubeconfig", path, e)
        }
        other => KubeconfigError::Broken {
            path: path.to_owned(),
            position: match &other {
                Kube::Parse(e) => e.location().map(|at| (at.line(), at.column())),
                _ => None,
            },
            source: Box::new(other),
        },
    }
}
