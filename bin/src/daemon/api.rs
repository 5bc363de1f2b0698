//! What commands and the daemon say to each other: HTTP and JSON over the Unix socket.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/daemon` | [`About`] |
//! | `GET /v1/status` | [`Status`] |
//! | `POST /v1/connections`, an [`Ask`] | a line of JSON for each [`Event`], the last `done` or `failed` |
//! | `DELETE /v1/connections/ID`, `DELETE /v1/connections`; `?now` cuts open connections | [`Ended`] |
//! | `GET /v1/connections/ID/ended` | nothing, when the connection has ended |
//! | `PUT /v1/current/ID` | nothing |
//! | `POST /v1/quit`; `?now` | [`Ended`], before the daemon is gone |
//!
//! Any failure is a [`Fault`] with a status of 4xx or 5xx. `GET /v1/daemon` and `POST /v1/quit` stay as they are
//! whatever the version, so that one program can end the other's daemon.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kubevpn_client::{Env, KubeconfigArgs, Loaded};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::listener::Wanted;
use crate::cli::policy::PolicyArgs;
use crate::exit::Failure;

/// The version of this page. Other daemons are told apart by it, and not spoken to.
pub(crate) const API: u32 = 1;

/// Who answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct About {
    pub(crate) api: u32,
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) started_at: String,
}

/// Open a connection, or find it, and give it these listeners.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ask {
    /// What its ID is, if it is new.
    pub(crate) id: String,
    pub(crate) cluster: Cluster,
    pub(crate) source: Source,
    /// The selected context alone. Holds secrets: it goes into a file of mode 0600 and nowhere else.
    pub(crate) kubeconfig: serde_json::Value,
    /// `None` to take it as it is.
    pub(crate) policy: Option<PolicyArgs>,
    pub(crate) listeners: Vec<Wanted>,
}

/// What a connection leads to, in words for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cluster {
    pub(crate) server: String,
    pub(crate) name: Option<String>,
    pub(crate) context: Option<String>,
    pub(crate) namespace: String,
}

/// Which kubeconfig, and what of it: enough to select the same again when the files have changed. Two that are equal
/// are the same credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Source {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) context: Option<String>,
    pub(crate) cluster: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) server: Option<String>,
    pub(crate) impersonate: Option<String>,
    pub(crate) impersonate_groups: Vec<String>,
    pub(crate) certificate_authority: Option<PathBuf>,
    pub(crate) insecure_skip_tls_verify: bool,
    pub(crate) tls_server_name: Option<String>,
    pub(crate) request_timeout: Option<Duration>,
    /// A proxy to the API server that the environment named is in the transient kubeconfig alone.
    pub(crate) proxy_of_env: bool,
    /// Of `--token`: the token itself is in the transient kubeconfig alone.
    pub(crate) token_sha256: Option<String>,
}

impl Source {
    /// What these flags and files select. `--context` alone decides nothing that the current context may change: the
    /// context that was found is kept.
    pub(crate) fn new(args: &KubeconfigArgs, loaded: &Loaded) -> Self {
        use secrecy::ExposeSecret as _;
        let digest =
            |token: &secrecy::SecretString| hex(&Sha256::digest(token.expose_secret().as_bytes()));
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        Self {
            files: loaded.files.clone(),
            context: loaded.context.clone(),
            cluster: args.cluster.clone(),
            user: args.user.clone(),
            server: args.server.clone(),
            impersonate: args.impersonate.clone(),
            impersonate_groups: args.impersonate_groups.clone(),
            certificate_authority: args.certificate_authority.as_ref().map(absolute),
            insecure_skip_tls_verify: args.insecure_skip_tls_verify,
            tls_server_name: args.tls_server_name.clone(),
            request_timeout: args.request_timeout,
            proxy_of_env: loaded.proxy_of_env,
            token_sha256: args.token.as_ref().map(digest),
        }
    }

    /// The flags that select it again, but for a token.
    pub(crate) fn args(&self, namespace: &str) -> KubeconfigArgs {
        KubeconfigArgs {
            context: self.context.clone(),
            cluster: self.cluster.clone(),
            user: self.user.clone(),
            namespace: Some(namespace.to_owned()),
            server: self.server.clone(),
            impersonate: self.impersonate.clone(),
            impersonate_groups: self.impersonate_groups.clone(),
            certificate_authority: self.certificate_authority.clone(),
            insecure_skip_tls_verify: self.insecure_skip_tls_verify,
            tls_server_name: self.tls_server_name.clone(),
            request_timeout: self.request_timeout,
            ..KubeconfigArgs::default()
        }
    }

    /// The environment to select it in: these files. A proxy is named by the transient kubeconfig or not at all.
    pub(crate) fn env(&self) -> Env {
        let files = std::env::join_paths(&self.files).unwrap_or_default();
        Env::of(own_env().chain([(std::ffi::OsString::from("KUBECONFIG"), files)]))
    }
}

/// The daemon's environment without what a `connect` has settled.
pub(crate) fn own_env() -> impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)> {
    const SETTLED: [&str; 7] = [
        "KUBECONFIG",
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "NO_PROXY",
        "no_proxy",
    ];
    std::env::vars_os().filter(|(name, _)| !SETTLED.iter().any(|settled| name == settled))
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What happens while a connection is opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Event {
    /// Something was done.
    Step(String),
    Done(Opened),
    Failed(Fault),
}

/// The connection, and its listeners.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Opened {
    pub(crate) id: String,
    pub(crate) listeners: Vec<Attached>,
    /// What names of the cluster end in, where a DNS listener was asked for.
    #[serde(default)]
    pub(crate) endings: Vec<String>,
}

/// A listener that was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Attached {
    #[serde(flatten)]
    pub(crate) wanted: Wanted,
    /// Where it is, with the real port.
    pub(crate) bound: String,
    /// It was there before.
    pub(crate) already: bool,
}

/// What was ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ended {
    pub(crate) ids: Vec<String>,
}

/// A failure, with its exit code and its causes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Fault {
    pub(crate) exit: u8,
    pub(crate) message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) because: Option<Box<Self>>,
    /// The daemon is about to end: ask its successor.
    #[serde(default)]
    pub(crate) ending: bool,
}

impl Fault {
    pub(crate) fn new(exit: u8, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            because: None,
            ending: false,
        }
    }

    /// The message with its causes, in one line.
    pub(crate) fn whole(&self) -> String {
        match &self.because {
            Some(cause) => format!("{self}: {}", cause.whole()),
            None => self.to_string(),
        }
    }
}

impl From<&Failure> for Fault {
    fn from(failure: &Failure) -> Self {
        fn because(exit: u8, error: &(dyn std::error::Error + 'static)) -> Fault {
            Fault {
                because: error.source().map(|cause| because(exit, cause).into()),
                ..Fault::new(exit, error.to_string())
            }
        }
        because(failure.code(), failure)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.because.as_deref().map(|fault| fault as _)
    }
}

/// Everything there is to know. Keys in the words of the Go kubevpn where it has them; docs/status.schema.json is
/// their contract.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Status {
    pub(crate) list: Vec<Connection>,
    #[serde(rename = "CurrentConnectionID")]
    pub(crate) current: String,
    /// State files that could not be brought back.
    pub(crate) problems: Vec<Problem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) daemon: Option<DaemonStatus>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DaemonStatus {
    pub(crate) version: String,
    #[serde(rename = "PID")]
    pub(crate) pid: u32,
    pub(crate) started_at: String,
}

/// A state file that is of no use, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Problem {
    #[serde(rename = "ConnectionID")]
    pub(crate) id: String,
    pub(crate) reason: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Connection {
    #[serde(rename = "ConnectionID")]
    pub(crate) id: String,
    pub(crate) cluster: String,
    pub(crate) kubeconfig: String,
    pub(crate) namespace: String,
    /// `connected` or `unhealthy`, as the Go kubevpn says it.
    pub(crate) status: String,
    /// The first SOCKS listener that listens.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) socks_listen_addr: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) socks_egress: bool,
    pub(crate) context: String,
    pub(crate) server: String,
    pub(crate) state: State,
    /// Empty when all is well.
    pub(crate) reason: String,
    pub(crate) since: String,
    pub(crate) started_at: String,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) traffic: Traffic,
    pub(crate) sessions: usize,
    pub(crate) streams: usize,
    pub(crate) last_refusals: Vec<Refused>,
}

/// How a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// The API server answers, and everything listens.
    Connected,
    /// The API server answers, and something of ours is not as it should be.
    Degraded,
    /// The API server does not take our credentials.
    Unauthenticated,
    /// The API server does not answer.
    Unreachable,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Degraded => "degraded",
            Self::Unauthenticated => "unauthenticated",
            Self::Unreachable => "unreachable",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Listener {
    pub(crate) protocol: String,
    /// Where it listens, or should.
    pub(crate) address: String,
    pub(crate) listening: bool,
    /// Why it does not listen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    /// Whether it dials everything from this machine.
    pub(crate) egress: bool,
    /// Whether it asks for a password.
    pub(crate) auth: bool,
    /// Clients connected now.
    pub(crate) open_clients: usize,
}

/// Counted where targets are dialled: a client that asks for nothing is in none of these.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Traffic {
    pub(crate) open_connections: u64,
    pub(crate) total_connections: u64,
    pub(crate) refused_connections: u64,
    /// To targets.
    pub(crate) bytes_up: u64,
    /// From targets.
    pub(crate) bytes_down: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Refused {
    pub(crate) time: String,
    pub(crate) target: String,
    pub(crate) class: String,
    pub(crate) sentence: String,
}
