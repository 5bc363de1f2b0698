//! Listen addresses, as users write them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// An address to listen on.
///
/// | written | means |
/// |---|---|
/// | `127.0.0.1:1080`, `[::1]:0` | that address; port 0 lets the system choose |
/// | `1080`, `:1080`, `localhost:1080` | `127.0.0.1:1080` |
/// | `unix:/run/user/1000/socks` | a Unix socket, for its owner only |
///
/// `:1080` is *not* every interface, unlike in some programs: a proxy into a cluster must not be exposed by
/// accident. Every interface is written `0.0.0.0:1080` or `[::]:1080`.
///
/// ```
/// use kubevpn_conn::Addr;
/// let addr: Addr = ":1080".parse()?;
/// assert_eq!(addr.to_string(), "127.0.0.1:1080");
/// assert!(addr.is_loopback());
/// # Ok::<(), kubevpn_conn::AddrError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Addr {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Addr {
    /// Whether only this machine can connect. Every user of the machine can connect to a TCP address, but
    /// only the owner to a Unix socket.
    ///
    /// ```
    /// use kubevpn_conn::Addr;
    /// let is_loopback = |s: &str| s.parse::<Addr>().unwrap().is_loopback();
    /// assert!(is_loopback("127.9.9.9:1080") && is_loopback("[::1]:1080") && is_loopback("unix:socks"));
    /// assert!(!is_loopback("0.0.0.0:1080") && !is_loopback("[::]:1080"));
    /// ```
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp(addr) => addr.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl FromStr for Addr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(AddrError::NoPath);
            }
            return Ok(Self::Unix(path.into()));
        }
        if let Ok(addr) = text.parse() {
            return Ok(Self::Tcp(addr));
        }
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        if host.is_empty() || host.eq_ignore_ascii_case("localhost") {
            // `u16::from_str` would accept a leading `+`.
            if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
                return Err(AddrError::BadPort(text.into()));
            }
            let port = port.parse().map_err(|_| AddrError::BadPort(text.into()))?;
            return Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        if text.parse::<IpAddr>().is_ok() {
            return Err(AddrError::NoPort(text.into()));
        }
        let ip = host.trim_start_matches('[').trim_end_matches(']');
        match ip.parse::<IpAddr>() {
            Ok(_) => Err(AddrError::BadPort(text.into())),
            Err(_) => Err(AddrError::NotAnAddress(text.into())),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a text is not a listen address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    /// The part after the last colon is not a port.
    #[error("{0:?} has no port from 0 to 65535 at its end: write e.g. 127.0.0.1:1080")]
    BadPort(String),
    /// An IP address without a port.
    #[error("{0:?} has no port: write e.g. 127.0.0.1:1080 or [::1]:1080")]
    NoPort(String),
    /// A host name, or another text that is not an IP address.
    #[error("{0:?} is no IP address with a port: write e.g. 127.0.0.1:1080, or unix:/path")]
    NotAnAddress(String),
    /// `unix:` without a path.
    #[error("the path of the Unix socket is missing: write unix:/path")]
    NoPath,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, AddrError> {
        text.parse::<Addr>().map(|a| a.to_string())
    }

    #[test]
    fn good_ones() {
        for (text, means) in [
            ("127.0.0.1:1080", "127.0.0.1:1080"),
            ("[::1]:0", "[::1]:0"),
            ("0.0.0.0:1080", "0.0.0.0:1080"),
            (":1080", "127.0.0.1:1080"),
            ("1080", "127.0.0.1:1080"),
            ("LocalHost:1080", "127.0.0.1:1080"),
            ("unix:/run/socks", "unix:/run/socks"),
            ("unix:socks", "unix:socks"),
        ] {
            assert_eq!(parse(text), Ok(means.into()), "{text}");
            assert_eq!(parse(means), Ok(means.into()), "{text}");
        }
    }

    #[test]
    fn bad_ones() {
        for text in [
            "",
            ":",
            ":+80",
            "65536",
            ":65536",
            "127.0.0.1:",
            "[::1]:x",
            "127.0.0.1:99999",
        ] {
            assert_eq!(parse(text), Err(AddrError::BadPort(text.into())), "{text}");
        }
        for text in ["127.0.0.1", "::1"] {
            let error = parse(text).unwrap_err();
            assert!(
                matches!(error, AddrError::NoPort(_) | AddrError::BadPort(_)),
                "{text}: {error}"
            );
        }
        for text in ["example.com:80", "*:80", "[::1", "unix"] {
            let error = parse(text).unwrap_err();
            assert!(
                matches!(error, AddrError::NotAnAddress(_) | AddrError::BadPort(_)),
                "{text}: {error}"
            );
        }
        assert_eq!(parse("unix:"), Err(AddrError::NoPath));
    }
}
