//! Errors on the way to the API server.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::config::ExecConfig;
use kubevpn_target::{BoxError, Refusal};

use crate::proxy::ProxyError;

/// Why there is no client, or no answer to a request.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server of the kubeconfig is not the URL of an API server.
    #[error(
        "the server {0:?} of the kubeconfig is no http or https URL with a host: correct it, or pass --server"
    )]
    Server(String),
    /// The user agent, or the user to impersonate, is not valid in a header.
    #[error("a header of every request cannot be made: check --as and --as-group")]
    Header(#[source] BoxError),
    /// The proxy cannot be used.
    #[error(
        "the proxy to the API server cannot be used: check proxy-url in the kubeconfig, and HTTPS_PROXY"
    )]
    Proxy(#[source] ProxyError),
    /// The name to check the server's certificate against is invalid.
    #[error("tls-server-name {0:?} is neither a DNS name nor an address")]
    ServerName(String),
    /// A certificate or key cannot be used.
    #[error(
        "a certificate or key of the kubeconfig cannot be used: check certificate-authority, client-certificate and client-key"
    )]
    Certificates(#[source] BoxError),
    /// The token contains bytes that are not valid in a header.
    #[error(
        "the user's token holds characters that no token has, such as a line break: log in again, or correct --token or KUBEVPN_TOKEN"
    )]
    Token,
    /// The file with the token cannot be read.
    #[error("the token file {} of the kubeconfig's user cannot be read: check that it exists and is yours to read", ShownPath(.path))]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An auth-provider that Kubernetes has removed.
    #[error(
        "the auth-provider {name:?} of the kubeconfig's user was removed from Kubernetes: use {instead}"
    )]
    Provider {
        /// The provider.
        name: String,
        /// What replaced it.
        instead: &'static str,
    },
    /// The identity token of OpenID Connect is missing or has expired.
    #[error(
        "the id-token of the kubeconfig's auth-provider has expired: run any kubectl command, which renews it in the file, or log in again"
    )]
    IdToken,
    /// A credential plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A credential plugin is still running.
    #[error(
        "the credential plugin {command:?} has not answered for {after:?}: it may wait for a person; run it by hand, or log in again"
    )]
    PluginRuns {
        /// The command, as the kubeconfig names it.
        command: String,
        /// How long it has been running.
        after: Duration,
    },
    /// A bug of ours: the task that runs the plugin panicked, or the runtime ended.
    #[error("logging in was cut off")]
    Login(#[source] tokio::task::JoinError),
    /// The connection could not be made, or broke.
    #[error("no answer from the API server at {server}")]
    Transport {
        /// The API server's URL.
        server: Arc<str>,
        /// What failed.
        #[source]
        source: BoxError,
    },
    /// The connection is open, and no response arrived in time.
    #[error("the API server at {server} did not answer within {after:?}")]
    NoAnswer {
        /// The API server's URL.
        server: Arc<str>,
        /// The time limit.
        after: Duration,
    },
}

impl ClientError {
    /// The class of the failure.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Server(_) | Self::Proxy(_) | Self::ServerName(_) | Self::Transport { .. } => {
                Refusal::ClusterAway
            }
            Self::Certificates(_)
            | Self::Token
            | Self::TokenFile { .. }
            | Self::Provider { .. }
            | Self::IdToken
            | Self::Plugin(_)
            | Self::PluginRuns { .. } => Refusal::Unauthenticated,
            Self::NoAnswer { .. } => Refusal::TimedOut,
            Self::Header(_) | Self::Login(_) => Refusal::Internal,
        }
    }
}

/// Failure of a credential plugin.
#[derive(Debug)]
pub struct PluginError {
    /// The command, as the kubeconfig names it.
    pub command: String,
    /// What went wrong.
    pub failure: PluginFailure,
    /// The kubeconfig's advice on how to install it.
    pub hint: Option<String>,
}

/// Why a credential plugin failed.
#[derive(Debug)]
pub enum PluginFailure {
    /// The program does not exist.
    Missing,
    /// The program could not be started.
    NotStarted(io::Error),
    /// The program failed; with its last line of standard error, unless that is the terminal because the plugin may ask
    /// questions there.
    Failed {
        /// Its exit status.
        status: String,
        /// Its last line, shortened.
        said: String,
    },
    /// The program ran for this long and was killed.
    TimedOut(Duration),
    /// Its output is an `ExecCredential` without a token or certificate.
    NoCredentials,
    /// Its output cannot be used, for this reason.
    Unusable(&'static str),
}

impl PluginError {
    pub(crate) fn new(exec: &ExecConfig, failure: PluginFailure) -> Self {
        Self {
            command: exec.command.clone().unwrap_or_default(),
            failure,
            hint: exec.install_hint.as_deref().map(clip),
        }
    }
}

impl std::fmt::Display for PluginError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let command = &self.command;
        match &self.failure {
            PluginFailure::Missing => {
                write!(
                    f,
                    "the credential plugin {command:?} of the kubeconfig is not installed or not on PATH"
                )?;
                return match &self.hint {
                    Some(hint) => write!(f, ": {hint}"),
                    None => f.write_str(": install it, or pass another --user"),
                };
            }
            PluginFailure::NotStarted(_) => {
                write!(f, "the credential plugin {command:?} cannot be started")?;
            }
            PluginFailure::Failed { status, said } => {
                write!(f, "the credential plugin {command:?} failed ({status}")?;
                if !said.is_empty() {
                    write!(f, "; it said: {said}")?;
                }
                f.write_str(")")?;
            }
            PluginFailure::TimedOut(after) => write!(
                f,
                "the credential plugin {command:?} has not answered for {after:?} and was ended"
            )?,
            PluginFailure::NoCredentials => write!(
                f,
                "the credential plugin {command:?} gave neither a token nor a certificate"
            )?,
            PluginFailure::Unusable(why) => write!(
                f,
                "the answer of the credential plugin {command:?} cannot be used ({why})"
            )?,
        }
        f.write_str(": run it by hand, or log in again")
    }
}

impl std::error::Error for PluginError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.failure {
            PluginFailure::NotStarted(e) => Some(e),
            _ => None,
        }
    }
}

/// A path of the kubeconfig in a message. Contents in its place are not shown: they are a token, a key or a kubeconfig.
pub(crate) struct ShownPath<'a>(pub(crate) &'a Path);

impl std::fmt::Display for ShownPath<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match is_content(self.0) {
            true => f.write_str("(not shown: contents in place of a path)"),
            false => self.0.display().fmt(f),
        }
    }
}

/// Whether the text is a PEM block, a JSON Web Token, several lines, or longer than the name of a file can be.
pub(crate) fn is_content(path: &Path) -> bool {
    // NAME_MAX of Linux and macOS.
    const LONGEST_NAME: usize = 255;
    // "-----BEGIN" in base64, as the fields that end in `-data` have it.
    const PEM_IN_BASE64: &str = "LS0tLS1CRUdJTi";
    let text = path.to_string_lossy();
    let is_long = |name: &str| name.len() > LONGEST_NAME;
    let is_jwt = |name: &str| name.starts_with("eyJ") && name.matches('.').count() == 2;
    text.contains("-----BEGIN")
        || text.contains(PEM_IN_BASE64)
        || text.chars().any(char::is_control)
        || text
            .split(std::path::is_separator)
            .any(|name| is_long(name) || is_jwt(name))
}

/// One line of at most 300 characters, for foreign text in our errors and logs.
pub(crate) fn clip(text: &str) -> String {
    const MOST: usize = 300;
    let mut line = String::new();
    for (n, c) in text.trim().chars().enumerate() {
        if n == MOST {
            line.push('…');
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
    line
}
