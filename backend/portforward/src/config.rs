//! Bounds and times, with the reason for each default.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Protocol that carries port-forward to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// SPDY/3.1 on the upgraded connection itself.
    Spdy,
    /// The same SPDY frames inside WebSocket messages (API servers 1.31 and newer).
    SpdyWs,
    /// `v4.channel.k8s.io`: one connection per upgrade, and no half-close.
    WsV4,
}

impl Transport {
    /// All transports, in the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Spdy, Self::SpdyWs, Self::WsV4];

    /// The name in flags, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spdy => "spdy",
            Self::SpdyWs => "spdy-ws",
            Self::WsV4 => "ws",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which transports may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportChoice {
    /// All, in the order of [`Transport::ALL`]; what worked is remembered.
    #[default]
    Auto,
    /// This transport only.
    Only(Transport),
}

/// The form that `FromStr` parses.
impl fmt::Display for TransportChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(transport) => transport.fmt(f),
        }
    }
}

/// Reads `auto` or the name of a transport.
///
/// ```
/// use kubevpn_portforward::{Transport, TransportChoice};
/// assert_eq!("auto".parse(), Ok(TransportChoice::Auto));
/// assert_eq!("spdy-ws".parse(), Ok(TransportChoice::Only(Transport::SpdyWs)));
/// assert!("quic".parse::<TransportChoice>().is_err());
/// ```
impl FromStr for TransportChoice {
    type Err = UnknownTransport;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let known = Transport::ALL.into_iter().find(|t| t.as_str() == text);
        known.map(Self::Only).ok_or(UnknownTransport)
    }
}

/// No transport has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such transport: write auto, spdy, spdy-ws or ws")]
pub struct UnknownTransport;

/// Settings of a [`Forwarder`](crate::Forwarder).
///
/// The defaults were chosen from what a real API server, kubelet and containerd did; see
/// `docs/decisions/0003-sessions.md` for the measurements and `0004-end-of-stream.md` for the linger.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which transports may be used.
    pub transport: TransportChoice,
    /// How long a transport that was turned down is left out. Afterwards it is tried in parallel with a dial, not before it.
    pub transport_retry: Duration,
    /// How long an upgrade may be silent before the next transport is tried in parallel. A dial that begins later waits for
    /// another.
    pub transport_stagger: Duration,
    /// How long a dial waits for a session before it tries a channel in parallel.
    pub channel_after: Duration,

    /// How long a whole dial may take, upgrades and second attempts included.
    pub dial_timeout: Duration,
    /// How long one upgrade may take, TCP and TLS included. 13 ms on a quiet cluster nearby.
    pub upgrade_timeout: Duration,
    /// How long a new stream may go unanswered (SYN_REPLY, normally 0.5 ms) before its session is given
    /// up. The session is pinged after a fifth of this time.
    pub reply_timeout: Duration,
    /// How long the Pod's side may take to report a failure on a port not known to be good, counted from the
    /// stream's reply. Success is silence for this long, and until the echo of a PING that is sent then. On a line with a
    /// longer round trip the PING is sent this long after the streams, and counts if its echo comes as long after the
    /// reply. Failures were reported after 0.3 to 4 ms on a quiet cluster; on a busy one the echo is delayed as much as
    /// they are. Zero: do not wait.
    pub fate_wait: Duration,
    /// How long the text of the error stream may come after the end of the data stream: 0.02 to 4 ms on a
    /// quiet cluster.
    pub last_words: Duration,
    /// How long a port stays known to be good after a connection to it worked.
    pub good_for: Duration,

    /// How long the client's end of stream is held back while the Pod is silent. The container runtime
    /// closes both directions 1 s after it has seen the end of one, so an answer that begins later
    /// would be lost; each byte of the Pod starts the wait anew, and the Pod's own end ends it.
    pub linger: Duration,
    /// How many connections of one Pod may wait for the rest of [`Config::linger`] after their client has ended its
    /// side. Beyond this, the client likeliest to have closed is released: first those that had their answer, the longest
    /// silent first; last those that were sent something after their end.
    pub lingering: usize,

    /// Number of sessions of a Pod up to which a connection gets one of its own, while no more than
    /// [`Config::hurry`] connections are opened in a second; beyond it, connections share. Sessions with bulk transfers are
    /// not counted, up to as many again.
    pub sessions_per_pod: usize,
    /// Number of new connections to a Pod in a second beyond which they share one session, with another in reserve:
    /// each additional session costs API server, kubelet and container runtime a read and a write of their own for
    /// each frame.
    pub hurry: usize,
    /// How many connections opened in quick succession share a session.
    pub crowd: usize,
    /// Age from which a connection is not short: its session gets no new connections while there is another.
    pub short: Duration,
    /// Limit on sessions of all Pods together, not counting the first of each Pod, which is always allowed. From half of
    /// the limit on, a Pod gets a second session and no more. Beyond the limit, a Pod whose sessions all are going away,
    /// silent or wedged may open further ones.
    pub sessions: usize,
    /// Limit on sessions that were opened before a connection asked for them and are not used yet.
    pub ahead: usize,
    /// Limit on connections to one Pod, including lingering ones. Its container runtime holds four
    /// descriptors and up to one thread for each, and did not survive 5,000.
    pub streams_per_pod: usize,
    /// Limit on connections of one session, including those that linger or wait for the other side's end: at 500
    /// short connections a second these are as many again. 1,000 worked; a server may have a lower limit.
    pub streams_per_session: usize,
    /// Received bytes that one connection may hold unread, in bytes, before its session is no longer read. A local
    /// client that keeps up never lets it fill.
    pub unread_per_stream: usize,
    /// The same for all connections of one session.
    pub unread_per_session: usize,
    /// The same for all sessions. What clients do not read takes at most twice this in memory, and 256 KiB for
    /// each session; of one session, [`Config::unread_per_session`] + 2.25 MiB. See [`kubevpn_spdy::Config`]. Not counted
    /// are WebSocket messages, each of which is taken whole: one for each connection by [`Transport::WsV4`] and for each
    /// session by [`Transport::SpdyWs`], normally of 32 KiB and at most of 4 MiB, in addition to a read buffer of 16 and
    /// 128 KiB.
    pub unread: usize,
    /// Limit on simultaneous upgrades for one Pod, and on further ones beside those that a new dial does not wait for.
    pub upgrades_at_once: usize,
    /// How long a connection that could share a session waits for one of its own. It does not wait if the fastest of
    /// the last upgrades took longer.
    pub share_after: Duration,
    /// A session that was unused for this long is closed.
    pub idle: Duration,
    /// The same for a Pod's other unused sessions, when it has more than one.
    pub idle_spare: Duration,
    /// The same for a session that was opened ahead and never used.
    pub idle_ahead: Duration,

    /// How often a silent session is pinged. The PINGs keep the connection alive in middleboxes, some of which
    /// forget it after 4 minutes, and find dead sessions.
    pub ping_every: Duration,
    /// The same for a session that was used within the last minute, if the fastest of the last upgrades took longer
    /// than [`Config::share_after`]: the next connection then need not wait a round trip to know that it is alive.
    pub ping_in_use: Duration,
    /// A session is pinged when it has been silent this long after something was sent.
    pub suspect_after: Duration,
    /// A session that stays silent this long after a ping is closed, and its connections fail.
    pub probe_timeout: Duration,
    /// Replaces [`Config::probe_timeout`] for a session whose only connection is an upload: a Pod that does not read may
    /// be what holds it up.
    pub upload_patience: Duration,
    /// Time after which a connection whose client does not read is reset, because it holds up the others of its
    /// session. Alone on its session it may stall without limit.
    pub stall: Duration,
    /// The same once another connection of the session has sent something.
    pub stall_wanted: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            transport: TransportChoice::Auto,
            transport_retry: Duration::from_secs(600),
            transport_stagger: Duration::from_secs(2),
            channel_after: Duration::from_secs(5),
            dial_timeout: Duration::from_secs(15),
            upgrade_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(5),
            fate_wait: Duration::from_millis(25),
            last_words: Duration::from_secs(1),
            good_for: Duration::from_secs(600),
            linger: Duration::from_secs(30),
            lingering: 512,
            sessions_per_pod: 16,
            hurry: 8,
            crowd: 64,
            short: Duration::from_secs(1),
            sessions: 256,
            ahead: 16,
            streams_per_pod: 3000,
            streams_per_session: 400,
            unread_per_stream: 512 * 1024,
            unread_per_session: 4 * 1024 * 1024,
            unread: 128 * 1024 * 1024,
            upgrades_at_once: 4,
            share_after: Duration::from_millis(30),
            idle: Duration::from_secs(300),
            idle_spare: Duration::from_secs(10),
            idle_ahead: Duration::from_secs(60),
            ping_every: Duration::from_secs(30),
            ping_in_use: Duration::from_secs(3),
            suspect_after: Duration::from_secs(3),
            probe_timeout: Duration::from_secs(3),
            upload_patience: Duration::from_secs(300),
            stall: Duration::from_secs(10),
            stall_wanted: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_black_hole_is_found_within_ten_seconds() {
        let config = Config::default();
        // The keeper looks once a second.
        let found = config.suspect_after + config.probe_timeout + Duration::from_secs(2);
        assert!(found < Duration::from_secs(10));
        assert!(config.reply_timeout < config.dial_timeout);
        assert!(config.ping_every < Duration::from_secs(240));
        // Swallowed upgrades are recognised before the dial times out.
        let all = config.transport_stagger + config.upgrade_timeout;
        assert!(all < config.dial_timeout && config.channel_after < config.upgrade_timeout);
    }

    #[test]
    fn every_transport_is_read_back() {
        for transport in Transport::ALL {
            let read = transport.as_str().parse();
            assert_eq!(read, Ok(TransportChoice::Only(transport)));
        }
    }
}
