//! What can go wrong on the way to the API server.

use std::io;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use kube::client::AuthError;
use kube::config::ExecConfig;
use kubevpn_target::{BoxError, Refusal};

use crate::proxy::ProxyError;

/// Why there is no client, or no answer to a request.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server of the kubeconfig is no URL of an API server.
    #[error(
        "the server {0:?} of the kubeconfig is no http or https URL with a host: correct it, or pass --server"
    )]
    Server(String),
    /// The user agent, or whom to act as, does not fit into a header.
    #[error("a header of every request cannot be made: check --as and --as-group")]
    Header(#[source] BoxError),
    /// The proxy cannot be used.
    #[error(
        "the proxy to the API server cannot be used: check proxy-url in the kubeconfig, and HTTPS_PROXY"
    )]
    Proxy(#[source] ProxyError),
    /// The name to check the server's certificate against is none.
    #[error("tls-server-name {0:?} is neither a DNS name nor an address")]
    ServerName(String),
    /// A certificate or key cannot be used.
    #[error(
        "a certificate or key of the kubeconfig cannot be used: check certificate-authority, client-certificate and client-key"
    )]
    Certificates(#[source] kube::Error),
    /// The token holds bytes that no header may.
    #[error("the token of the kubeconfig's user holds characters no token has: log in again")]
    Token,
    /// The credentials cannot be read.
    #[error("the credentials of the kubeconfig's user cannot be read: check the user's entry")]
    Credentials(#[source] AuthError),
    /// A credential plugin gave none.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A bug of ours: the task that runs the plugin panicked, or the runtime ended.
    #[error("logging in was cut off")]
    Login(#[source] tokio::task::JoinError),
    /// No connection, or it broke.
    #[error("no answer from the API server at {server}")]
    Transport {
        /// The API server's URL.
        server: Arc<str>,
        /// What failed.
        #[source]
        source: BoxError,
    },
    /// The connection stands, and no response came.
    #[error("the API server at {server} did not answer within {after:?}")]
    NoAnswer {
        /// The API server's URL.
        server: Arc<str>,
        /// How long we waited.
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
            Self::Certificates(_) | Self::Token | Self::Credentials(_) | Self::Plugin(_) => {
                Refusal::Unauthenticated
            }
            Self::NoAnswer { .. } => Refusal::TimedOut,
            Self::Header(_) | Self::Login(_) => Refusal::Internal,
        }
    }

    pub(crate) fn of_auth(error: AuthError, exec: Option<&ExecConfig>) -> Self {
        let error = match exec {
            Some(exec) => match PluginError::of(error, exec) {
                Ok(plugin) => return Self::Plugin(plugin),
                Err(other) => other,
            },
            None => error,
        };
        Self::Credentials(error)
    }

    /// Credentials that could not be renewed; every other error passes.
    pub(crate) fn of_signing(error: BoxError, exec: Option<&ExecConfig>) -> BoxError {
        match error.downcast::<AuthError>() {
            Ok(auth) => Self::of_auth(*auth, exec).into(),
            Err(other) => other,
        }
    }
}

/// Why a credential plugin gave no credentials.
#[derive(Debug)]
pub struct PluginError {
    /// The command, as the kubeconfig names it.
    pub command: String,
    /// What went wrong.
    pub failure: PluginFailure,
    /// The kubeconfig's advice on how to install it.
    pub hint: Option<String>,
}

/// What went wrong with a credential plugin.
#[derive(Debug)]
pub enum PluginFailure {
    /// There is no such program.
    Missing,
    /// It could not be started.
    NotStarted(io::Error),
    /// It ended with a failure; the last line it wrote to standard error, which kube leaves to the
    /// terminal when the plugin may ask questions there.
    Failed {
        /// How it ended.
        status: String,
        /// What it said, shortened.
        said: String,
    },
    /// What it printed is no `ExecCredential` of kind token or certificate.
    NoCredentials,
}

impl PluginError {
    pub(crate) fn new(exec: &ExecConfig, failure: PluginFailure) -> Self {
        Self {
            command: exec.command.clone().unwrap_or_default(),
            failure,
            hint: exec.install_hint.as_deref().map(clip),
        }
    }

    /// Gives the error back when it is not about a plugin.
    pub(crate) fn of(error: AuthError, exec: &ExecConfig) -> Result<Self, AuthError> {
        let failure = match error {
            AuthError::AuthExecStart(e) if e.kind() == io::ErrorKind::NotFound => {
                PluginFailure::Missing
            }
            AuthError::AuthExecStart(e) => PluginFailure::NotStarted(e),
            // Its text holds the plugin's arguments, environment and output: none of it goes on.
            AuthError::AuthExecRun { out, .. } => PluginFailure::of_output(&out),
            AuthError::ExecPluginFailed
            | AuthError::AuthExecParse(_)
            | AuthError::MalformedTokenExpirationDate(_)
            | AuthError::UnrefreshableTokenResponse
            | AuthError::MissingCommand => PluginFailure::NoCredentials,
            other => return Err(other),
        };
        Ok(Self::new(exec, failure))
    }
}

impl PluginFailure {
    fn of_output(out: &Output) -> Self {
        let said = String::from_utf8_lossy(&out.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty());
        Self::Failed {
            status: out.status.to_string(),
            said: clip(last.unwrap_or_default()),
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
            PluginFailure::NoCredentials => write!(
                f,
                "the credential plugin {command:?} gave neither a token nor a certificate"
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

/// One line of at most 300 characters: what others say goes into our sentences and logs.
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
