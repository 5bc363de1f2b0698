//! Targets: what a client asks for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

/// A host and a port to which a client wants a byte stream.
///
/// Two targets are equal if host and port are; [`Target::origin`] is ignored.
#[derive(Clone, Debug)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The TCP port; never 0.
    pub port: NonZeroU16,
    /// The client.
    pub origin: Origin,
}

impl Target {
    /// Makes a target from its parts. Port 0 is [`TargetError::PortZero`].
    ///
    /// ```
    /// use kubevpn_target::{Host, Origin, Target};
    /// let target = Target::new(Host::parse("web.shop")?, 80, Origin::default())?;
    /// assert_eq!(target.to_string(), "web.shop:80");
    /// # Ok::<(), kubevpn_target::TargetError>(())
    /// ```
    pub fn new(host: Host, port: u16, origin: Origin) -> Result<Self, TargetError> {
        let port = NonZeroU16::new(port).ok_or(TargetError::PortZero)?;
        Ok(Self { host, port, origin })
    }

    /// Parses `host:port`; an IPv6 address has to be in brackets.
    ///
    /// ```
    /// use kubevpn_target::{Origin, Target};
    /// let target = Target::parse("[fd00::1]:443", Origin::default())?;
    /// assert_eq!(target.to_string(), "[fd00::1]:443");
    /// # Ok::<(), kubevpn_target::TargetError>(())
    /// ```
    pub fn parse(authority: &str, origin: Origin) -> Result<Self, TargetError> {
        let (host, port) = authority.rsplit_once(':').ok_or(TargetError::NoPort)?;
        if host.contains(':') && !host.starts_with('[') {
            return Err(TargetError::UnbracketedIpv6);
        }
        // `u16::from_str` would accept a leading `+`.
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(TargetError::BadPort);
        }
        let port = port.parse().map_err(|_| TargetError::BadPort)?;
        Self::new(Host::parse(host)?, port, origin)
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.host == other.host && self.port == other.port
    }
}

impl Eq for Target {}

impl std::hash::Hash for Target {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.host.hash(state);
        self.port.hash(state);
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// A name or an address, as the client wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name to be resolved.
    Name(Name),
    /// An address. IPv4-mapped IPv6 addresses are converted to IPv4.
    Ip(IpAddr),
}

impl Host {
    /// Parses a name, an IPv4 address, or an IPv6 address with or without brackets.
    ///
    /// ```
    /// use kubevpn_target::Host;
    /// assert!(matches!(Host::parse("10.0.0.1")?, Host::Ip(_)));
    /// assert!(matches!(Host::parse("[fd00::1]")?, Host::Ip(_)));
    /// assert!(matches!(Host::parse("Web.Shop.")?, Host::Name(_)));
    /// # Ok::<(), kubevpn_target::TargetError>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(TargetError::BadIpv6)?;
            let ip = Ipv6Addr::from_str(inner).map_err(|_| TargetError::BadIpv6)?;
            return Ok(Self::from(IpAddr::V6(ip)));
        }
        if let Ok(ip) = IpAddr::from_str(text) {
            return Ok(Self::from(ip));
        }
        // A trailing dot, which makes a name absolute, is accepted after an address too: some programs always append it.
        if let Some(Ok(ip)) = text.strip_suffix('.').map(Ipv4Addr::from_str) {
            return Ok(Self::from(ip));
        }
        Name::parse(text).map(Self::Name)
    }

    /// Whether it is an address that the DNS of a VPN program (sing-box, Clash, Surge: "fake-ip") makes up for a name, in
    /// 198.18.0.0/15 or fc00::/18. Only that program knows the name.
    ///
    /// ```
    /// use kubevpn_target::Host;
    /// assert!(Host::parse("198.18.0.7")?.is_fake_ip());
    /// assert!(Host::parse("fc00::2")?.is_fake_ip());
    /// assert!(!Host::parse("10.96.0.1")?.is_fake_ip());
    /// # Ok::<(), kubevpn_target::TargetError>(())
    /// ```
    pub fn is_fake_ip(&self) -> bool {
        match self {
            Self::Name(_) => false,
            Self::Ip(IpAddr::V4(ip)) => matches!(ip.octets(), [198, 18 | 19, ..]),
            Self::Ip(IpAddr::V6(ip)) => matches!(ip.segments(), [0xfc00, ..0x4000, ..]),
        }
    }
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip.to_canonical())
    }
}

impl From<Ipv4Addr> for Host {
    fn from(ip: Ipv4Addr) -> Self {
        Self::Ip(IpAddr::V4(ip))
    }
}

impl From<Ipv6Addr> for Host {
    fn from(ip: Ipv6Addr) -> Self {
        Self::from(IpAddr::V6(ip))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

/// A host name, checked and in lower case.
///
/// Letters, digits, `-` and `_` in labels of 1 to 63 bytes, 253 bytes in total. RFC 1123 does not allow `_`, but real
/// cluster names contain it (SRV owners, rewrites). A trailing dot is stored separately as [`Name::is_absolute`]: no
/// search list applies to such a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    text: Box<str>,
    absolute: bool,
}

/// The longest name in presentation form without its trailing dot (RFC 1035, 255 bytes on the wire).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

impl Name {
    /// Parses and checks a name. Dotted decimals that are not an address (`1.2.3`, `300.1.1.1`) are refused: some
    /// resolvers read them as addresses.
    ///
    /// ```
    /// use kubevpn_target::Name;
    /// let name = Name::parse("Web.Shop.svc.")?;
    /// assert_eq!(name.as_str(), "web.shop.svc");
    /// assert!(name.is_absolute());
    /// # Ok::<(), kubevpn_target::TargetError>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let (text, absolute) = match text.strip_suffix('.') {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        if text.is_empty() {
            return Err(TargetError::EmptyHost);
        }
        if text.len() > MAX_NAME {
            return Err(TargetError::NameTooLong(text.len()));
        }
        for label in text.split('.') {
            if label.is_empty() {
                return Err(TargetError::EmptyLabel);
            }
            if label.len() > MAX_LABEL {
                return Err(TargetError::LabelTooLong(label.len()));
            }
            let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            if let Some(bad) = label.chars().find(|c| !is_good(*c)) {
                return Err(match u8::try_from(bad) {
                    Ok(byte) if byte.is_ascii() => TargetError::BadByte(byte),
                    _ => TargetError::BadChar(bad),
                });
            }
        }
        let last = text.rsplit('.').next().unwrap_or(text);
        if last.bytes().all(|b| b.is_ascii_digit()) {
            return Err(TargetError::NumericName);
        }
        Ok(Self {
            text: text.to_ascii_lowercase().into(),
            absolute,
        })
    }

    /// The name in lower case, without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it was written with a trailing dot.
    pub fn is_absolute(&self) -> bool {
        self.absolute
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if self.absolute {
            f.write_str(".")
        } else {
            Ok(())
        }
    }
}

/// The client of a target, for logs and limits. It affects routing in one case: the port of a forward is a Service's, also
/// for a headless one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The frontend that took the request.
    pub frontend: Frontend,
    /// The client's address; `None` if it has none (a Unix socket, a test).
    pub peer: Option<SocketAddr>,
}

/// The frontends; a closed set, usable as a metric's label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Frontend {
    /// None of the others: a library call, a test.
    #[default]
    Other,
    /// SOCKS5 (RFC 1928).
    Socks5,
    /// HTTP CONNECT (RFC 9110 section 9.3.6) and forwarding of absolute-form requests.
    Http,
    /// A static forward: one local port for one target.
    Forward,
    /// A connection that was redirected to us, with an original destination.
    Transparent,
}

impl Frontend {
    /// All frontends, for tables and tests.
    pub const ALL: [Self; 5] = [
        Self::Other,
        Self::Socks5,
        Self::Http,
        Self::Forward,
        Self::Transparent,
    ];

    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Socks5 => "socks5",
            Self::Http => "http",
            Self::Forward => "forward",
            Self::Transparent => "transparent",
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text is not a target: the client's mistake, found before a backend is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Port 0.
    #[error("port 0 cannot be connected to")]
    PortZero,
    /// No `:port` at the end.
    #[error("the port is missing: write host:port")]
    NoPort,
    /// The port is not a number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    BadPort,
    /// The host is empty.
    #[error("the host is empty")]
    EmptyHost,
    /// Brackets around a text that is not an IPv6 address.
    #[error("the brackets hold no IPv6 address")]
    BadIpv6,
    /// An IPv6 address with a port needs brackets.
    #[error("an IPv6 address with a port is written [address]:port")]
    UnbracketedIpv6,
    /// Two dots in a row, or a dot in front.
    #[error("the name has an empty label (two dots in a row, or one in front)")]
    EmptyLabel,
    /// The name has this many bytes; 253 is the limit.
    #[error("the name has {} bytes, {} is the limit", .0, MAX_NAME)]
    NameTooLong(usize),
    /// A label has this many bytes; 63 is the limit.
    #[error("a label of the name has {} bytes, {} is the limit", .0, MAX_LABEL)]
    LabelTooLong(usize),
    /// A byte that is not allowed in a host name: ASCII, or invalid UTF-8.
    #[error(fmt = bad_byte)]
    BadByte(u8),
    /// A character beyond ASCII.
    #[error(
        "the name has the character {0:?}: write it as DNS has it, in letters of ASCII (xn--...)"
    )]
    BadChar(char),
    /// The last label is a number, but the whole is not an IPv4 address.
    #[error("the name ends in a number but is no IPv4 address")]
    NumericName,
}

fn bad_byte(byte: &u8, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("the name has the ")?;
    match byte.is_ascii() {
        true => write!(f, "character {:?}", char::from(*byte))?,
        false => write!(f, "byte {byte:#04x}")?,
    }
    f.write_str(", which no host name has")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let ip = |s: &str| Ok(Host::Ip(s.parse().unwrap()));
        assert_eq!(Host::parse("10.96.0.1"), ip("10.96.0.1"));
        assert_eq!(Host::parse("fd00::1"), ip("fd00::1"));
        assert_eq!(Host::parse("[fd00::1]"), ip("fd00::1"));
        assert_eq!(Host::parse("::ffff:10.0.0.1"), ip("10.0.0.1"));
        assert_eq!(Host::parse("10.0.0.1."), ip("10.0.0.1"));
        assert_eq!(Host::parse("[10.0.0.1]"), Err(TargetError::BadIpv6));
        assert_eq!(Host::parse("[fd00::1"), Err(TargetError::BadIpv6));
        assert_eq!(Host::parse("fe80::1%eth0"), Err(TargetError::BadByte(b':')));
        assert_eq!(Host::parse("1.2.3"), Err(TargetError::NumericName));
        assert_eq!(Host::parse("300.1.1.1"), Err(TargetError::NumericName));
        assert_eq!(Host::parse(""), Err(TargetError::EmptyHost));
        assert_eq!(Host::parse("."), Err(TargetError::EmptyHost));
    }

    #[test]
    fn names() {
        let text = |s: &str| Name::parse(s).map(|n| n.as_str().to_owned());
        assert_eq!(text("A.b"), Ok("a.b".into()));
        assert_eq!(text("a..b"), Err(TargetError::EmptyLabel));
        assert_eq!(text(".a"), Err(TargetError::EmptyLabel));
        assert_eq!(text("a b"), Err(TargetError::BadByte(b' ')));
        assert_eq!(text("a\0b"), Err(TargetError::BadByte(0)));
        assert_eq!(text("bücher"), Err(TargetError::BadChar('ü')));
        let label = "x".repeat(63);
        assert_eq!(text(&label), Ok(label.clone()));
        assert_eq!(
            text(&format!("{label}x")),
            Err(TargetError::LabelTooLong(64))
        );
        let long = [&*label, &label, &label, &label[..61]].join(".");
        assert_eq!(long.len(), 253);
        assert_eq!(text(&long), Ok(long.clone()));
        assert_eq!(text(&format!("{long}.")), Ok(long.clone()));
        assert_eq!(
            text(&format!("{long}x")),
            Err(TargetError::NameTooLong(254))
        );
    }

    /// As it was typed.
    #[test]
    fn invalid_bytes_of_a_name_are_shown() {
        let said = |s: &str| Name::parse(s).unwrap_err().to_string();
        assert!(said("é.default").contains("'é'"), "{}", said("é.default"));
        assert!(said("a b").contains("' '"));
        assert!(said("a\tb").contains(r"'\t'"));
        assert!(TargetError::BadByte(0xff).to_string().contains("0xff"));
    }

    #[test]
    fn addresses_that_vpns_make_up() {
        let is_fake = |s: &str| Host::parse(s).unwrap().is_fake_ip();
        for fake in [
            "198.18.0.0",
            "198.19.255.255",
            "fc00::2",
            "fc00:3fff::1",
            "::ffff:198.18.0.1",
        ] {
            assert!(is_fake(fake), "{fake}");
        }
        for real in [
            "198.17.0.1",
            "198.20.0.1",
            "fc00:4000::1",
            "fd00::1",
            "fc01::",
            "198.18.0.1.x",
        ] {
            assert!(!is_fake(real), "{real}");
        }
    }

    #[test]
    fn authorities() {
        let parse = |s: &str| Target::parse(s, Origin::default()).map(|t| t.to_string());
        assert_eq!(parse("Web:80"), Ok("web:80".into()));
        assert_eq!(parse("web.:80"), Ok("web.:80".into()));
        assert_eq!(parse("[FD00::1]:80"), Ok("[fd00::1]:80".into()));
        assert_eq!(parse("web"), Err(TargetError::NoPort));
        assert_eq!(parse("fd00::1:80"), Err(TargetError::UnbracketedIpv6));
        for bad in ["web:", "web:+80", "web:65536", "web:8o", "web:-1"] {
            assert_eq!(parse(bad), Err(TargetError::BadPort), "{bad}");
        }
        assert_eq!(parse("web:0"), Err(TargetError::PortZero));
        assert_eq!(parse(":80"), Err(TargetError::EmptyHost));
    }

    #[test]
    fn origin_takes_no_part_in_equality() {
        let a = Target::parse("web:80", Origin::default()).unwrap();
        let mut b = a.clone();
        b.origin.peer = Some(([127, 0, 0, 1], 9).into());
        assert_eq!(a, b);
    }
}
