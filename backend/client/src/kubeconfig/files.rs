//! The existing kubeconfig files, merged.

use std::io;
use std::path::{Path, PathBuf};

use kube::config::{AuthInfo, Cluster, Context};

use super::document::{Entries, YamlNode, YamlValue, broken};
use super::env::Env;
use super::error::KubeconfigError;
use crate::error::is_content;

/// Limit on the size of a file: kubeconfigs with thousands of clusters and their certificates are smaller.
const MOST_BYTES: u64 = 32 << 20;

/// The merged contents of the files.
#[derive(Default)]
pub(super) struct Files {
    pub(super) contexts: Entries,
    pub(super) clusters: Entries,
    pub(super) users: Entries,
    pub(super) current_context: Option<String>,
    /// The files that were read.
    pub(super) read: Vec<PathBuf>,
    /// The files that can be read only once: pipes, such as the shell's `<(…)`.
    pub(super) once: Vec<PathBuf>,
    /// The files that do not exist.
    missing: Vec<PathBuf>,
    notes: Vec<String>,
}

impl Files {
    /// `--kubeconfig` must exist; other files are read if they exist.
    pub(super) fn read(flag: Option<&Path>, env: &Env) -> Result<Self, KubeconfigError> {
        let mut files = Self::default();
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
        let paths: Vec<_> = match listed.is_empty() {
            true => usual.into_iter().collect(),
            false => listed,
        };
        if paths.iter().any(|path| is_content(path)) {
            files.missing = paths;
            return Ok(files);
        }
        for path in paths {
            files.add(&path)?;
        }
        Ok(files)
    }

    /// Whether the files define nothing, by kubectl's rule.
    pub(super) fn is_empty(&self) -> bool {
        let lists = [&self.clusters, &self.contexts, &self.users];
        lists.iter().all(|list| list.0.is_empty()) && self.current_context.is_none()
    }

    /// The error if the files define nothing.
    pub(super) fn none_found(self) -> KubeconfigError {
        match self.read.is_empty() {
            true => KubeconfigError::NoneFound {
                looked: self.missing,
            },
            false => KubeconfigError::Empty { files: self.read },
        }
    }

    /// Faults of entries that were not selected, a sentence each.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        notes.extend(self.contexts.problems::<Context>());
        notes.extend(self.clusters.problems::<Cluster>());
        notes.extend(self.users.problems::<AuthInfo>());
        notes
    }

    /// Merges a file, over which earlier files have precedence. False if it does not exist.
    fn add(&mut self, path: &Path) -> Result<bool, KubeconfigError> {
        let unreadable = |e| KubeconfigError::unreadable("kubeconfig", path, e);
        // Paths in a kubeconfig are relative to its file. They are made absolute, to survive a change of directory.
        let path = &std::path::absolute(path).map_err(unreadable)?;
        if self.read.contains(path) {
            return Ok(true);
        }
        let unreadable = |e| KubeconfigError::unreadable("kubeconfig", path, e);
        let found = match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                return Err(unreadable(io::ErrorKind::IsADirectory.into()));
            }
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                tracing::debug!(path = %path.display(), "no such kubeconfig");
                self.missing.push(path.clone());
                return Ok(false);
            }
            Err(e) => return Err(unreadable(e)),
        };
        let too_large = |bytes| KubeconfigError::TooLarge {
            path: path.clone(),
            bytes,
        };
        if found.len() > MOST_BYTES {
            return Err(too_large(found.len()));
        }
        // The limit holds for a pipe too, which has no length.
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MOST_BYTES + 1), &mut bytes)
            .map_err(unreadable)?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(too_large(bytes.len() as u64));
        }
        let text = text(bytes).ok_or_else(|| broken(path, None, "it is no text".to_owned()))?;
        let document = YamlNode::parse(&text)
            .map_err(|at| broken(path, at, "it cannot be read as YAML there".to_owned()))?;
        if let Some(document) = document {
            self.add_document(document, path)?;
        }
        if !found.is_file() {
            self.once.push(path.clone());
        }
        self.read.push(path.clone());
        Ok(true)
    }

    fn add_document(&mut self, mut document: YamlNode, path: &Path) -> Result<(), KubeconfigError> {
        match document.value {
            YamlValue::Null => return Ok(()),
            YamlValue::Map(_) => {}
            other => {
                let problem = format!("a kubeconfig cannot be {other}");
                return Err(broken(path, Some(document.at), problem));
            }
        }
        for (key, expected) in [("kind", "Config"), ("apiVersion", "v1")] {
            if let Some(node) = document.take(key)
                && !matches!(&node.value, YamlValue::Text(text) if text == expected || text.is_empty())
            {
                let problem = format!("its {key} is not {expected:?}");
                return Err(broken(path, Some(node.at), problem));
            }
        }
        let notes = &mut self.notes;
        for (keys, entries) in [
            (("contexts", "context"), &mut self.contexts),
            (("clusters", "cluster"), &mut self.clusters),
            (("users", "user"), &mut self.users),
        ] {
            entries.add(keys, &mut document, path, notes)?;
        }
        let Some(node) = document.take("current-context") else {
            return Ok(());
        };
        let YamlValue::Text(name) = node.value else {
            let problem = format!("current-context cannot be {}", node.value);
            return Err(broken(path, Some(node.at), problem));
        };
        // kubectl writes an empty current context if there is none: the next file may define it.
        if self.current_context.is_none() && !name.is_empty() {
            self.current_context = Some(name);
        }
        Ok(())
    }
}

/// Decodes UTF-8, or UTF-16 with a byte order mark, which PowerShell's `>` writes.
fn text(bytes: Vec<u8>) -> Option<String> {
    let wide = |unit: fn([u8; 2]) -> u16| {
        let (units, rest) = bytes[2..].as_chunks();
        let units: Vec<u16> = units.iter().map(|pair| unit(*pair)).collect();
        String::from_utf16(&units).ok().filter(|_| rest.is_empty())
    };
    match bytes.as_slice() {
        [0xFF, 0xFE, ..] => wide(u16::from_le_bytes),
        [0xFE, 0xFF, ..] => wide(u16::from_be_bytes),
        [0xEF, 0xBB, 0xBF, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        _ => String::from_utf8(bytes).ok(),
    }
}
