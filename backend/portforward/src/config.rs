//! Bounds and times, with the reason for each default.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A way to speak port-forward with the API server.
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
    /// All of them, in the order they are tried.
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
    /// This one, come what may.
    Only(Transport),
}

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
#[derive(Clone, Debug)]
pub struct Config {
    /// Which transports may be used.
    pub transport: TransportChoice,
    /// How long one upgrade may take, TCP and TLS included.
    pub upgrade_timeout: Duration,
    /// How long a whole dial may take, upgrades included.
    pub dial_timeout: Duration,
    /// How long a client's end is held back while the Pod is silent.
    pub linger: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            transport: TransportChoice::Auto,
            upgrade_timeout: Duration::from_secs(10),
            dial_timeout: Duration::from_secs(15),
            linger: Duration::from_secs(30),
        }
    }
}
