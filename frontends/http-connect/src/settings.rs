//! What a user of the frontend can choose.

use std::time::Duration;

use kubevpn_conn::{Credentials, Drain, HANDSHAKE_TIMEOUT};

use crate::{Pac, Pool};

/// What a user of the frontend can choose. One value serves all connections to one backend.
///
/// ```
/// use kubevpn_http_connect::Settings;
/// let settings = Settings {
///     pac: Some("function FindProxyForURL(url, host) { return \"PROXY 127.0.0.1:8118\"; }".into()),
///     ..Settings::default()
/// };
/// assert_eq!(settings.head_timeout.as_secs(), 10);
/// ```
#[derive(Clone, Debug)]
pub struct Settings {
    /// Asked of every request that is to go anywhere (`Proxy-Authorization: Basic`); `None` lets everybody
    /// in. The help page and the PAC file are for all on this machine; a client on another one is asked for the
    /// same (`Authorization: Basic`).
    pub credentials: Option<Credentials>,
    /// From the accepted connection, or from the first byte of a later request, to the end of its head.
    pub head_timeout: Duration,
    /// How long a connection is kept that has nothing asked for.
    pub keep_alive: Duration,
    /// Ends a connection on which no byte moved for this long though a request or a tunnel is open on it;
    /// `None` for never.
    pub idle_timeout: Option<Duration>,
    /// The text served as `/proxy.pac`; `None` for no such page.
    pub pac: Option<Pac>,
    /// Names that are the proxy's own besides `localhost` and `host.docker.internal` (or any `host.*.internal`).
    /// The help page and the PAC file are served only to a `Host` that is one of them or an address: a page in a
    /// browser that has its own name resolve to our address (DNS rebinding) reads nothing.
    pub names: Vec<String>,
    /// Leaves the `Host` of a request that is forwarded as the client wrote it, where RFC 9112 section 3.2.2 has the
    /// proxy write that of the request-target: for those who ask an ingress for a name it is not reached by.
    pub keep_host: bool,
    /// Connections to targets, kept for requests to come. Not to be shared between backends.
    pub pool: Pool,
    /// When it stops, a connection finishes the request in hand and ends.
    pub drain: Drain,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            credentials: None,
            head_timeout: HANDSHAKE_TIMEOUT,
            keep_alive: Duration::from_secs(60),
            idle_timeout: None,
            pac: None,
            names: Vec::new(),
            keep_host: false,
            pool: Pool::default(),
            drain: Drain::new(),
        }
    }
}
