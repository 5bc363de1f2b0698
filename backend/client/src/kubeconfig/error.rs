//! What can be wrong with a kubeconfig.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::PluginError;
use crate::proxy::ProxyError;

/// Why there is no configuration. Each text says what to try next.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// The file of `--kubeconfig` does not exist.
    #[error("there is no kubeconfig {}: check --kubeconfig", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// No kubeconfig in any of the usual places, or nothing in it.
    #[error("no kubeconfig found{}: pass --kubeconfig, or set KUBECONFIG", Looked(.looked))]
    NoneFound {
        /// Where it could have been.
        looked: Vec<PathBuf>,
    },
    /// The files are there, and say nothing of any cluster.
    #[error("the kubeconfig {} names no cluster, context or user: pass another with --kubeconfig, or set KUBECONFIG", Paths(.files))]
    Empty {
        /// The files.
        files: Vec<PathBuf>,
    },
    /// A file exists and cannot be read.
    #[error("the {what} {} cannot be read: check that it exists and is yours to read", .path.display())]
    Unreadable {
        /// What the file is for.
        what: String,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Larger than any kubeconfig.
    #[error("the file {} has {bytes} bytes, too many for a kubeconfig: check --kubeconfig and KUBECONFIG", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Not YAML, or not a kubeconfig. No value of the file is in the text: it could be a secret.
    #[error("the kubeconfig {} is broken{}: {problem}; correct it, or pass another with --kubeconfig", .path.display(), At(.position))]
    Broken {
        /// The file.
        path: PathBuf,
        /// Line and column, from 1, where known.
        position: Option<(u64, u64)>,
        /// What is wrong there, with the path of the key.
        problem: String,
    },
    /// No current context, and none asked for.
    #[error("the kubeconfig has no current-context: pass --context, one of {contexts}")]
    NoContext {
        /// The contexts there are.
        contexts: Names,
    },
    /// There is no such context.
    #[error("the kubeconfig has no context {name:?}: pass --context, one of {known}")]
    UnknownContext {
        /// The one asked for.
        name: String,
        /// The ones there are.
        known: Names,
    },
    /// There is no such cluster.
    #[error("the kubeconfig has no cluster {name:?}: pass --cluster, one of {known}")]
    UnknownCluster {
        /// The one asked for.
        name: String,
        /// The ones there are.
        known: Names,
    },
    /// There is no such user.
    #[error("the kubeconfig has no user {name:?}: pass --user, one of {known}")]
    UnknownUser {
        /// The one asked for.
        name: String,
        /// The ones there are.
        known: Names,
    },
    /// The cluster has no server.
    #[error("cluster {cluster:?} of the kubeconfig has no server: add it, or pass --server")]
    NoServer {
        /// The cluster.
        cluster: String,
    },
    /// An entry has two things of which kubectl takes one only.
    #[error("{of} of the kubeconfig has both {first} and {second}: remove one of them")]
    TooMuch {
        /// The cluster or the user.
        of: String,
        /// The one.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// The server is no URL.
    #[error(
        "the server {server:?} is no http or https URL with a host, and with a port from 1 to 65535 if with any: correct it in the kubeconfig, or pass --server"
    )]
    BadServer {
        /// What stands there.
        server: String,
    },
    /// The namespace is none that can be.
    #[error(
        "{namespace:?} can be no namespace, whose name is of small letters, digits and hyphens: check --namespace, and the context of the kubeconfig"
    )]
    BadNamespace {
        /// What stands there.
        namespace: String,
    },
    /// Inline data is not base64.
    #[error("{what} in the kubeconfig is not base64: correct it")]
    NotBase64 {
        /// The field and whose it is.
        what: String,
    },
    /// No certificate in what should hold some.
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
    /// A credential plugin's entry that kubectl refuses, too.
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
        /// What is wrong with it; part of the text, which would say nothing without it.
        source: ProxyError,
    },
    /// The user's credential plugin is not there.
    #[error("user {user:?}: {source}")]
    Plugin {
        /// The user.
        user: String,
        /// Which plugin, and how to get it; part of the text, which would say nothing without it.
        source: PluginError,
    },
    /// `--as-group` without `--as`, or what the kubeconfig has for them.
    #[error("--as-group needs --as: pass the user to act as")]
    GroupsWithoutUser,
}

/// Names there are to choose from: the first ten are printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

impl fmt::Display for Names {
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
            paths => write!(f, " (looked at {})", Paths(paths)),
        }
    }
}

struct Paths<'a>(&'a [PathBuf]);

impl fmt::Display for Paths<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Names(self.0.iter().map(|p| p.display().to_string()).collect()).fmt(f)
    }
}

struct At<'a>(&'a Option<(u64, u64)>);

impl fmt::Display for At<'_> {
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
