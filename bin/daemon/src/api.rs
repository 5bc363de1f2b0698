//! The types of the daemon's API: HTTP and JSON over the Unix socket.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/daemon` | [`AboutDaemon`] |
//! | `GET /v1/status` | [`StatusReport`] |
//! | `POST /v1/connections`, an [`ConnectRequest`] | a line of JSON for each [`ConnectEvent`], the last `done` or `failed` |
//! | `POST /v1/connections/find`, a [`ConnectionQuery`] | the [`ConnectionInfo`], or `null` |
//! | `DELETE /v1/connections/ID`, `DELETE /v1/connections`; `?now` cuts open connections | [`EndedConnections`] |
//! | `GET /v1/connections/ID/ended` | nothing, when the connection has ended |
//! | `GET /v1/connections/ID/inside`, `GET /v1/connections/ID/events`, `POST /v1/connections/ID/cut/NUMBER` | see [`journal::api`] |
//! | `PUT /v1/current/ID` | nothing |
//! | `PUT /v1/log-level`, a [`LogLevel`] | nothing |
//! | `POST /v1/quit`; `?now` | [`EndedConnections`], before the daemon is gone |
//!
//! Any failure is a [`ApiError`] with a status of 4xx or 5xx. `GET /v1/daemon` and `POST /v1/quit` stay as they are
//! whatever the version, so that one program can end the other's daemon.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kubevpn_client::{Env, KubeconfigArgs, Loaded};
use kubevpn_conn::Addr;
use kubevpn_proxy::{ListenerSpec, Policy, journal, text};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::ApiError;
use crate::log::LogLevel;

/// The version of this page. Other daemons are told apart by it, and not spoken to.
pub const API: u32 = 2;

/// Who answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AboutDaemon {
    pub api: u32,
    pub version: String,
    pub pid: u32,
    pub started_at: String,
}

/// Open a connection, or find it, and give it these listeners.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectRequest {
    /// What its ID is, if it is new.
    pub id: String,
    pub cluster: ClusterRef,
    /// Which kubeconfig, and what of it.
    pub kubeconfig_selection: KubeconfigSelection,
    /// The selected context alone. Holds secrets: it goes into a file of mode 0600 and nowhere else.
    pub kubeconfig: serde_json::Value,
    /// `None` to take it as it is.
    pub policy: Option<Policy>,
    pub listeners: Vec<ListenerSpec>,
    /// How much its log says; `None` to leave it as it is.
    #[serde(default)]
    pub log_level: Option<LogLevel>,
}

/// Which connection is asked for: that of this kubeconfig, context and namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionQuery {
    pub cluster: ClusterRef,
    pub kubeconfig_selection: KubeconfigSelection,
    /// `None` for whatever its policy is.
    pub policy: Option<Policy>,
}

/// What a connection leads to, in words for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    pub server: String,
    pub name: Option<String>,
    pub context: Option<String>,
    pub namespace: String,
}

impl ClusterRef {
    /// What this kubeconfig leads to.
    pub fn new(loaded: &Loaded) -> Self {
        Self {
            server: loaded.server.clone(),
            name: loaded.cluster.clone(),
            context: loaded.context.clone(),
            namespace: loaded.namespace.clone(),
        }
    }
}

/// Which kubeconfig, and what of it: enough to select the same again when the files have changed. Two that are equal
/// are the same credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeconfigSelection {
    pub files: Vec<PathBuf>,
    pub context: Option<String>,
    pub cluster: Option<String>,
    pub user: Option<String>,
    pub server: Option<String>,
    pub impersonate: Option<String>,
    pub impersonate_groups: Vec<String>,
    pub certificate_authority: Option<PathBuf>,
    pub insecure_skip_tls_verify: bool,
    pub tls_server_name: Option<String>,
    pub request_timeout: Option<Duration>,
    /// A proxy to the API server that the environment named is in the transient kubeconfig alone.
    pub proxy_of_env: bool,
    /// Of `--token`: the token itself is in the transient kubeconfig alone.
    pub token_sha256: Option<String>,
    /// A file could be read only once: what it said is in the transient kubeconfig, and no file is looked at again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_once: bool,
}

impl KubeconfigSelection {
    /// What these flags and files select. `--context` alone decides nothing that the current context may change: the
    /// context that was found is kept.
    pub fn new(args: &KubeconfigArgs, loaded: &Loaded) -> Self {
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
            read_once: !loaded.once.is_empty(),
        }
    }

    /// The flags that select it again, but for a token.
    pub fn args(&self, namespace: &str) -> KubeconfigArgs {
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
    pub fn env(&self) -> Env {
        let files = std::env::join_paths(&self.files).unwrap_or_default();
        Env::of(own_env().chain([(std::ffi::OsString::from("KUBECONFIG"), files)]))
    }
}

/// The daemon's environment without what a `connect` has settled.
pub fn own_env() -> impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)> {
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
pub fn hex(bytes: &[u8]) -> String {
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
pub enum ConnectEvent {
    /// Something was done.
    Step(String),
    Done(OpenedConnection),
    Failed(ApiError),
}

/// The connection, and its listeners.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenedConnection {
    pub id: String,
    pub listeners: Vec<Attached>,
    /// What names of the cluster end in, where a DNS listener was asked for.
    #[serde(default)]
    pub endings: Vec<String>,
}

/// A listener that was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    #[serde(flatten)]
    pub spec: ListenerSpec,
    /// Where it is, with the real port.
    #[serde(with = "text")]
    pub bound: Addr,
    /// It was there before.
    pub already: bool,
}

/// What was ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndedConnections {
    pub ids: Vec<String>,
}

/// Everything there is to know. Keys in the words of the Go kubevpn where it has them; docs/status.schema.json is
/// their contract.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StatusReport {
    pub list: Vec<ConnectionInfo>,
    #[serde(rename = "CurrentConnectionID")]
    pub current: String,
    /// State files that could not be brought back.
    pub problems: Vec<StateFileProblem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daemon: Option<DaemonStatus>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DaemonStatus {
    pub version: String,
    #[serde(rename = "PID")]
    pub pid: u32,
    pub started_at: String,
}

/// A state file that is of no use, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StateFileProblem {
    #[serde(rename = "ConnectionID")]
    pub id: String,
    pub reason: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConnectionInfo {
    #[serde(rename = "ConnectionID")]
    pub id: String,
    pub cluster: String,
    pub kubeconfig: String,
    pub namespace: String,
    /// The same as `state`, under the Go kubevpn's key.
    pub status: String,
    /// The first SOCKS listener that listens.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub socks_listen_addr: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub socks_egress: bool,
    pub context: String,
    pub server: String,
    pub state: ConnectionState,
    /// Empty when all is well.
    pub reason: String,
    /// The command that logs in, where that is needed and a credential plugin can do it. It is for who shows the status to
    /// make, of `selection`, and left out by the daemon.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub login: String,
    /// What to connect to again, where that would log in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<KubeconfigSelection>,
    pub since: String,
    pub started_at: String,
    pub listeners: Vec<ListenerInfo>,
    pub traffic: TrafficInfo,
    pub sessions: usize,
    pub streams: usize,
    pub last_refusals: Vec<RefusalInfo>,
}

/// How a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionState {
    /// The API server answers, and everything listens.
    Connected,
    /// The API server answers, and something of ours is not as it should be.
    Degraded,
    /// The API server does not take our credentials.
    Unauthenticated,
    /// The API server does not answer.
    Unreachable,
}

impl ConnectionState {
    pub fn as_str(self) -> &'static str {
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
pub struct ListenerInfo {
    pub protocol: String,
    /// Where it listens, or should.
    pub address: String,
    pub listening: bool,
    /// Why it does not listen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Whether it dials everything from this machine.
    pub egress: bool,
    /// Whether it asks for a password.
    pub auth: bool,
    /// Clients connected now.
    pub open_clients: usize,
}

/// A client that asks for nothing is in none of these; a request that the HTTP frontend forwards is a connection, and its bytes
/// are those of bodies.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TrafficInfo {
    pub open_connections: u64,
    pub total_connections: u64,
    pub refused_connections: u64,
    /// To targets.
    pub bytes_up: u64,
    /// From targets.
    pub bytes_down: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RefusalInfo {
    pub time: String,
    pub target: String,
    pub class: String,
    pub sentence: String,
}

impl From<journal::TrafficTotals> for TrafficInfo {
    fn from(totals: journal::TrafficTotals) -> Self {
        Self {
            open_connections: totals.open,
            total_connections: totals.connected,
            refused_connections: totals.refused,
            bytes_up: totals.up,
            bytes_down: totals.down,
        }
    }
}

impl From<journal::RefusedConnection> for RefusalInfo {
    fn from(refused: journal::RefusedConnection) -> Self {
        Self {
            time: refused.at,
            target: refused.target,
            class: refused.refusal,
            sentence: refused.sentence,
        }
    }
}
