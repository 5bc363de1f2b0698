//! Settings of the DNS frontend.

use std::net::SocketAddr;
use std::time::Duration;

/// Settings of the DNS frontend.
///
/// ```
/// use kubevpn_dns::Settings;
/// assert_eq!(Settings::default().upstream, None);
/// ```
#[derive(Clone, Debug)]
pub struct Settings {
    /// The DNS server for names that the service refuses as not its own; `None` passes the refusal on.
    pub upstream: Option<SocketAddr>,
    /// How long an answer may take before it is SERVFAIL. Clients ask again after about 5 seconds.
    pub answer_timeout: Duration,
    /// How long a stream without queries is kept, and how long its client may take to read an answer.
    pub idle_timeout: Duration,
    /// Whether all clients are on this machine, whatever their addresses, as in a network namespace: answers over UDP are
    /// then as long as the client accepts.
    pub local_clients: bool,
    /// Limit on simultaneous queries over UDP. Further ones are dropped, and the client asks again.
    pub in_flight: usize,
    /// The same for one client address. Clients of this machine share one.
    pub in_flight_per_client: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            upstream: None,
            answer_timeout: Duration::from_millis(4500),
            idle_timeout: Duration::from_secs(10),
            local_clients: false,
            in_flight: 256,
            in_flight_per_client: 128,
        }
    }
}
