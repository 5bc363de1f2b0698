//! What a user of the frontend can choose.

use std::net::SocketAddr;
use std::time::Duration;

/// What a user of the frontend can choose.
///
/// ```
/// use kubevpn_dns::Settings;
/// assert_eq!(Settings::default().upstream, None);
/// ```
#[derive(Clone, Debug)]
pub struct Settings {
    /// The DNS server that is asked for what the service refuses as not its own; `None` passes the refusal on.
    pub upstream: Option<SocketAddr>,
    /// How long an answer may take; then it is SERVFAIL. Clients ask again after about 5 seconds.
    pub answer_timeout: Duration,
    /// How long a stream is kept on which nothing is asked, and how long its client may take to read an answer.
    pub idle_timeout: Duration,
    /// All clients are on this machine, whatever their addresses, as in a network namespace of it: an answer by UDP is
    /// as long as its client takes.
    pub local_clients: bool,
    /// Questions by UDP that are being answered, in all. What is beyond is dropped, and the client asks again.
    pub in_flight: usize,
    /// The same for one client address. Clients of this machine have one between them.
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
