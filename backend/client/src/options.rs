//! Options of a client.

use std::time::Duration;

use crate::dialer::Dialer;

/// Options of a client: user agent, time limits, retries.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `User-Agent` of every request.
    pub user_agent: String,
    /// How long one connection may take: name lookup, TCP, proxy and TLS together. 10 s.
    pub connect_timeout: Duration,
    /// How long a call may take until the head of its response arrives. A watch's events and an upgraded stream have
    /// no limit; callers limit upgrades themselves. `--request-timeout` (kube's `Config::read_timeout`) takes precedence.
    /// 30 s.
    pub answer_timeout: Duration,
    /// Silence after which a shared connection is probed with an HTTP/2 PING. 5 s.
    pub ping_interval: Duration,
    /// How long the answer to the PING may take before the connection is given up. 5 s.
    pub ping_timeout: Duration,
    /// How long a request waits for a credential plugin, which keeps running. Less than callers wait for an answer, so
    /// that a slow plugin is distinguished from a slow API server. 20 s.
    pub plugin_timeout: Duration,
    /// How often a call (never an upgrade) is retried after a 429, 503 or 504. 3.
    pub retries: u32,
    /// Replaces TCP connections. `None`.
    pub dialer: Option<Dialer>,
}

impl Options {
    /// The defaults, with this user agent.
    pub fn new(user_agent: impl Into<String>) -> Self {
        Self {
            user_agent: user_agent.into(),
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(5),
            plugin_timeout: Duration::from_secs(20),
            retries: 3,
            dialer: None,
        }
    }
}
