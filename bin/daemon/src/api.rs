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
//! A failure is an [`ApiError`] with a status of 4xx or 5xx. `GET /v1/daemon` and `POST /v1/quit` are the same in every
//! version, so that each program can end the daemon of another version.

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

/// Version of this API. A daemon with another version is not used.
pub const API: u32 = 2;

/// Identity of the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AboutDaemon {
    pub api: u32,
    pub version: String,
    pub pid: u32,
    pub started_at: String,
}

/// Request to open a connection, or to add these listeners to an open one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectRequest {
    /// ID of a new connection.
    pub id: String,
    pub cluster: ClusterRef,
    /// The selected entries of the kubeconfig.
    pub kubeconfig_selection: KubeconfigSelection,
    /// A kubeconfig with only the selected context. It contains secrets, and is stored only in a file of mode 0600.
    pub kubeconfig: serde_json::Value,
    /// `None` keeps the policy of an open connection.
    pub policy: Option<Policy>,
    pub listeners: Vec<ListenerSpec>,
    /// Level of its log; `None` keeps the level.
    #[serde(default)]
    pub log_level: Option<LogLevel>,
}

/// Query for the connection of this kubeconfig, context and namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionQuery {
    pub cluster: ClusterRef,
    pub kubeconfig_selection: KubeconfigSelection,
    /// `None` matches every policy.
    pub policy: Option<Policy>,
}

/// Names of the cluster of a connection, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    pub server: String,
    pub name: Option<String>,
    pub context: Option<String>,
    pub namespace: String,
}

impl ClusterRef {
    /// The cluster that this kubeconfig selects.
    pub fn new(loaded: &Loaded) -> Self {
        Self {
            server: loaded.server.clone(),
            name: loaded.cluster.clone(),
            context: loaded.context.clone(),
            namespace: loaded.namespace.clone(),
        }
    }
}

/// The files and entries of a kubeconfig, sufficient to select the same again when the files have changed. Equal selections
/// have equal credentials.
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
    /// Whether the environment named a proxy to the API server, which is only in the transient kubeconfig.
    pub proxy_of_env: bool,
    /// Hash of `--token`; the token itself is only in the transient kubeconfig.
    pub token_sha256: Option<String>,
    /// Whether a file could be read only once. Its contents are in the transient kubeconfig, and no file is read again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_once: bool,
}

impl KubeconfigSelection {
    /// The selection of these flags and files. It keeps the name of the selected context, so that a change of the current
    /// context has no effect.
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

    /// Flags for the same selection, without the token.
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

    /// Environment for the same selection: these files. A proxy is only in the transient kubeconfig.
    pub fn env(&self) -> Env {
        let files = std::env::join_paths(&self.files).unwrap_or_default();
        Env::of(own_env().chain([(std::ffi::OsString::from("KUBECONFIG"), files)]))
    }
}

/// The daemon's environment without variables that `connect` has evaluated.
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

/// An event of opening a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ConnectEvent {
    /// A step is complete.
    Step(String),
    Done(OpenedConnection),
    Failed(ApiError),
}

/// The opened connection and its listeners.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenedConnection {
    pub id: String,
    pub listeners: Vec<Attached>,
    /// Suffixes of names of the cluster, if a DNS listener was requested.
    #[serde(default)]
    pub endings: Vec<String>,
}

/// A requested listener.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    #[serde(flatten)]
    pub spec: ListenerSpec,
    /// Its address, with the actual port.
    #[serde(with = "text")]
    pub bound: Addr,
    /// Whether it was open before.
    pub already: bool,
}

/// The connections that were closed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndedConnections {
    pub ids: Vec<String>,
}

/// The status of the daemon and its connections. Keys are those of the Go kubevpn, if it has them; docs/status.schema.json
/// is their contract.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StatusReport {
    pub list: Vec<ConnectionInfo>,
    #[serde(rename = "CurrentConnectionID")]
    pub current: String,
    /// State files whose connection could not be restored.
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

/// A state file that cannot be used, and the reason.
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
    /// Address of the first open SOCKS listener.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub socks_listen_addr: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub socks_egress: bool,
    pub context: String,
    pub server: String,
    pub state: ConnectionState,
    /// Reason of the state; empty for `Connected`.
    pub reason: String,
    /// Command that logs in, if that is necessary and a credential plugin can do it. The program that shows the status
    /// makes it from `selection`; the daemon leaves it empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub login: String,
    /// Selection to connect to again, if that would log in.
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

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionState {
    /// The API server answers, and all listeners are open.
    Connected,
    /// The API server answers, but a listener or the kubeconfig has a problem.
    Degraded,
    /// The API server rejects the credentials.
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
    /// Address on which it listens, or waits to listen.
    pub address: String,
    pub listening: bool,
    /// Reason why it does not listen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Whether all targets are dialled from this machine.
    pub egress: bool,
    /// Whether it requires a password.
    pub auth: bool,
    /// Number of connected clients.
    pub open_clients: usize,
}

/// Counts of connections and bytes. A client without a request is not counted. A forwarded HTTP request counts as a
/// connection, with the bytes of bodies.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TrafficInfo {
    pub open_connections: u64,
    pub total_connections: u64,
    pub refused_connections: u64,
    /// Bytes to targets.
    pub bytes_up: u64,
    /// Bytes from targets.
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
