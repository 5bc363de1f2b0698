//! Errors of a kubeconfig.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{PluginError, ShownPath, is_content};
use crate::proxy::ProxyError;

/// Why there is no configuration. Each text ends with what to try.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// The file of `--kubeconfig` does not exist.
    #[error("there is no kubeconfig {}: check --kubeconfig", ShownPath(.path))]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// No kubeconfig in any of the usual places, or nothing in it.
    #[error("no kubeconfig found{}: pass --kubeconfig, or set KUBECONFIG", Looked(.looked))]
    NoneFound {
        /// The usual places.
        looked: Vec<PathBuf>,
    },
    /// The files exist and define no cluster.
    #[error("the kubeconfig {} names no cluster, context or user: pass another with --kubeconfig, or set KUBECONFIG", Paths(.files))]
    Empty {
        /// The files.
        files: Vec<PathBuf>,
    },
    /// A file exists and cannot be read.
    #[error("the {what} {} cannot be read: check that it exists and is yours to read", ShownPath(.path))]
    Unreadable {
        /// What the file is for.
        what: String,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is larger than any kubeconfig.
    #[error("the file {} has {bytes} bytes, too many for a kubeconfig: check --kubeconfig and KUBECONFIG", ShownPath(.path))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file is not YAML, or not a kubeconfig. The text contains no value of the file, which could be a secret.
    #[error("the kubeconfig {} is broken{}: {problem}; correct it, or pass another with --kubeconfig", ShownPath(.path), Position(.position))]
    Broken {
        /// The file.
        path: PathBuf,
        /// Line and column, from 1, if known.
        position: Option<(u64, u64)>,
        /// The fault, with the path of the key.
        problem: String,
    },
    /// No current context, and none requested.
    #[error("the kubeconfig has no current-context: pass --context, one of {contexts}")]
    NoContext {
        /// The existing contexts.
        contexts: NameList,
    },
    /// There is no such context.
    #[error("the kubeconfig has no context {name:?}: pass --context, one of {known}")]
    UnknownContext {
        /// The requested name.
        name: String,
        /// The existing names.
        known: NameList,
    },
    /// There is no such cluster.
    #[error("the kubeconfig has no cluster {name:?}: pass --cluster, one of {known}")]
    UnknownCluster {
        /// The requested name.
        name: String,
        /// The existing names.
        known: NameList,
    },
    /// There is no such user.
    #[error("the kubeconfig has no user {name:?}: pass --user, one of {known}")]
    UnknownUser {
        /// The requested name.
        name: String,
        /// The existing names.
        known: NameList,
    },
    /// The cluster has no server.
    #[error("cluster {cluster:?} of the kubeconfig has no server: add it, or pass --server")]
    NoServer {
        /// The cluster.
        cluster: String,
    },
    /// An entry has two fields of which kubectl accepts only one.
    #[error("{of} of the kubeconfig has both {first} and {second}: remove one of them")]
    TooMuch {
        /// The cluster or the user.
        of: String,
        /// The first field.
        first: &'static str,
        /// The second field.
        second: &'static str,
    },
    /// The server is not a URL.
    #[error(
        "the server {server:?} is no http or https URL with a host, and with a port from 1 to 65535 if with any: correct it in the kubeconfig, or pass --server"
    )]
    BadServer {
        /// The text.
        server: String,
    },
    /// The namespace is not a valid name.
    #[error(
        "{namespace:?} can be no namespace, whose name is of small letters, digits and hyphens: check --namespace, and the context of the kubeconfig"
    )]
    BadNamespace {
        /// The text.
        namespace: String,
    },
    /// Inline data is not base64.
    #[error("{what} in the kubeconfig is not base64: correct it")]
    NotBase64 {
        /// The field and its entry.
        what: String,
    },
    /// A field or file for certificates contains none.
    #[error("{what} holds no PEM certificate: check it")]
    NoCertificate {
        /// The field or file.
        what: String,
    },
    /// A client certificate without its key.
    #[error("user {user:?} of the kubeconfig has no client-key: add it, or pass another --user")]
    NoKey {
        /// The user.
        user: String,
    },
    /// A credential plugin's entry that kubectl refuses too.
    #[error("the credential plugin of user {user:?} of the kubeconfig {problem}")]
    PluginEntry {
        /// The user.
        user: String,
        /// The reason, and what to do.
        problem: &'static str,
    },
    /// The proxy cannot be used.
    #[error("the proxy of {from} cannot be used: {source}")]
    Proxy {
        /// `HTTPS_PROXY`, or the cluster's `proxy-url`.
        from: String,
        /// The cause; it is part of the text, which would be useless without it.
        source: ProxyError,
    },
    /// The user's credential plugin does not exist.
    #[error("user {user:?}: {source}")]
    Plugin {
        /// The user.
        user: String,
        /// The plugin and how to install it; it is part of the text, which would be useless without it.
        source: PluginError,
    },
    /// `--as-group` without `--as`, or the corresponding fields of the kubeconfig.
    #[error("--as-group needs --as: pass the user to act as")]
    GroupsWithoutUser,
}

/// Existing names to choose from, of which the first ten are printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameList(pub Vec<String>);

impl fmt::Display for NameList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 10;
        if self.0.is_empty() {
            return f.write_str("none (there are none)");
        }
        let shown: Vec<_> = self
            .0
            .iter()
            .take(MOST)
            .map(|n| crate::error::clip(n))
            .collect();
        f.write_str(&shown.join(", "))?;
        match self.0.len().saturating_sub(MOST) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

struct Looked<'a>(&'a [PathBuf]);

impl fmt::Display for Looked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str(" (no home directory either)"),
            // A kubeconfig's text, cut at its colons.
            paths if paths.iter().any(|path| is_content(path)) => {
                f.write_str(" (KUBECONFIG holds contents, and not paths)")
            }
            paths => write!(f, " (looked at {})", Paths(paths)),
        }
    }
}

struct Paths<'a>(&'a [PathBuf]);

impl fmt::Display for Paths<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        NameList(self.0.iter().map(|p| p.display().to_string()).collect()).fmt(f)
    }
}

struct Position<'a>(&'a Option<(u64, u64)>);

impl fmt::Display for Position<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((line, column)) => write!(f, " at line {line}, column {column}"),
            None => Ok(()),
        }
    }
}

impl KubeconfigError {
    pub(super) fn unreadable(what: &str, path: &Path, source: io::Error) -> Self {
        Self::Unreadable {
            what: what.to_owned(),
            path: path.to_owned(),
            source,
        }
    }
}
