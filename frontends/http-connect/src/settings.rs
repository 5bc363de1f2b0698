//! Settings of the HTTP frontend.

use std::time::Duration;

use kubevpn_conn::{Credentials, Drain, HANDSHAKE_TIMEOUT};

use crate::{Pac, UpstreamPool};

/// Settings of the HTTP frontend. One value serves all connections to one backend.
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
    /// Required of every request to a target (`Proxy-Authorization: Basic`); `None` requires nothing. The help page and
    /// the PAC file are open to clients on this machine; clients on other machines need the same credentials
    /// (`Authorization: Basic`).
    pub credentials: Option<Credentials>,
    /// Time limit from the accepted connection, or from the first byte of a later request, to the end of its head.
    pub head_timeout: Duration,
    /// How long a connection without a request is kept.
    pub keep_alive: Duration,
    /// Ends a connection with an open request or tunnel on which no byte was transferred for this long; `None` for
    /// never.
    pub idle_timeout: Option<Duration>,
    /// The text of `/proxy.pac`; `None` for no such page.
    pub pac: Option<Pac>,
    /// The proxy's own names, in addition to `localhost` and `host.docker.internal` (or any `host.*.internal`). The
    /// help page and the PAC file are served only if `Host` is one of them or an address, so that a page in a browser
    /// whose own name resolves to our address (DNS rebinding) cannot read them.
    pub names: Vec<String>,
    /// Keeps the client's `Host` in a forwarded request. By default the proxy writes that of the request-target, as RFC
    /// 9112 section 3.2.2 requires. Use it to ask an ingress for a name other than its address.
    pub keep_host: bool,
    /// Idle connections to targets. Do not share it between backends.
    pub pool: UpstreamPool,
    /// When the drain begins, a connection finishes its current request and ends.
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
            pool: UpstreamPool::default(),
            drain: Drain::new(),
        }
    }
}
