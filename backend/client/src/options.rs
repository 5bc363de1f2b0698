//! How a client behaves towards the API server.

use std::time::Duration;

use crate::dialer::Dialer;

/// How to behave towards the API server.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `User-Agent` of every request.
    pub user_agent: String,
    /// How long one connection may take: name lookup, TCP, proxy and TLS together. 10 s.
    pub connect_timeout: Duration,
    /// How long a call may take until the head of its response is there; a watch's events and an
    /// upgraded stream have no limit, upgrades are timed by who asks for them. `--request-timeout`
    /// (kube's `Config::read_timeout`) goes before it. 30 s.
    pub answer_timeout: Duration,
    /// A shared connection that was silent for so long is probed with an HTTP/2 PING. 5 s.
    pub ping_interval: Duration,
    /// It is given up when the answer takes longer than this. 5 s.
    pub ping_timeout: Duration,
    /// How long a request waits for a credential plugin, which runs on. Less than callers wait for an answer, so that
    /// the plugin is told apart from a slow API server. 20 s.
    pub plugin_timeout: Duration,
    /// How often a call (never an upgrade) is tried again after a 429, 503 or 504. 3.
    pub retries: u32,
    /// Makes connections where TCP is not the way. `None`.
    pub dialer: Option<Dialer>,
}

impl Options {
    /// The defaults, under this name.
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
