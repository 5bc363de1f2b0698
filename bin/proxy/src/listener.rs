//! Listeners: their specification and their sockets.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kubevpn_conn::{Addr, Credentials, Limits, Listener};
use kubevpn_target::{Origin, Target, TargetError};
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;

use crate::error::{AuthError, AuthReason, ListenerError};
use crate::pac::AddressRange;
use crate::reread::{Reread, read};
use crate::{ListenerTls, text};

/// Specification of a listener. The serialised form is part of the daemon's API and of its state files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerSpec {
    /// Protocol of its clients.
    pub protocol: Protocol,
    /// Address to listen on; port 0 is a free port.
    #[serde(with = "text")]
    pub address: Addr,
    /// Whether to listen on the same port of `[::1]` too, if that is possible.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub both_families: bool,
    /// File with the users and passwords that clients have to send; `None` accepts every client.
    pub auth_file: Option<PathBuf>,
    /// Whether clients on other machines are accepted without a password.
    pub allow_unauthenticated: bool,
    /// Whether all targets are dialled from this machine, and none in the cluster.
    pub egress: bool,
    /// Concurrent connections; further clients wait.
    pub max_connections: usize,
    /// Concurrent connections from one IP address; further ones are closed.
    pub max_connections_per_client: Option<usize>,
    /// DNS server for names outside the cluster; without one the answer is REFUSED.
    pub dns_upstream: Option<SocketAddr>,
    /// Settings of its PAC file.
    #[serde(default)]
    pub pac: PacSettings,
    /// Settings of its HTTP.
    #[serde(default, skip_serializing_if = "HttpSettings::is_default")]
    pub http: HttpSettings,
}

/// Settings of an HTTP listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpSettings {
    /// Further host names under which its own pages are served.
    pub names: Vec<String>,
    /// Whether the `Host` of a request is kept as the client sent it.
    pub keep_host: bool,
}

impl HttpSettings {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Settings of a PAC file that cannot be read from the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PacSettings {
    /// Addresses that go through the proxy, besides the ranges of Services.
    pub ranges: Vec<AddressRange>,
    /// HTTP proxy for hosts outside the cluster, as `host:port`; `None` reaches them directly.
    pub upstream: Option<String>,
}

/// Protocol of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// SOCKS5.
    Socks,
    /// HTTP proxying.
    Http,
    /// SOCKS5 and HTTP, distinguished by the first byte.
    Mixed,
    /// A forward to this target.
    Forward(ForwardTo),
    /// DNS over TCP, and over UDP on the same port.
    Dns,
    /// Probes, metrics and the status page.
    Admin,
}

/// The target of a forward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ForwardTo(pub Target);

impl FromStr for ForwardTo {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        Target::parse(text, Origin::default()).map(Self)
    }
}

impl TryFrom<String> for ForwardTo {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Self, TargetError> {
        text.parse()
    }
}

impl From<ForwardTo> for String {
    fn from(to: ForwardTo) -> Self {
        to.0.to_string()
    }
}

impl Protocol {
    /// Its name in status documents.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Socks => "socks",
            Self::Http => "http",
            Self::Mixed => "mixed",
            Self::Forward(_) => "forward",
            Self::Dns => "dns",
            Self::Admin => "admin",
        }
    }

    /// Whether the protocol can carry a user and a password.
    pub(crate) fn asks_for_password(&self) -> bool {
        match self {
            Self::Socks | Self::Http | Self::Mixed => true,
            Self::Forward(_) | Self::Dns | Self::Admin => false,
        }
    }
}

/// Name of the listener in output and errors.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socks => f.write_str("SOCKS5 listener"),
            Self::Http => f.write_str("HTTP listener"),
            Self::Mixed => f.write_str("SOCKS5 and HTTP listener"),
            Self::Forward(to) => write!(f, "forward to {}", to.0),
            Self::Dns => f.write_str("DNS listener"),
            Self::Admin => f.write_str("admin listener"),
        }
    }
}

impl ListenerSpec {
    /// A listener with every setting at its default.
    pub fn new(protocol: Protocol, address: Addr) -> Self {
        Self {
            protocol,
            address,
            both_families: false,
            auth_file: None,
            allow_unauthenticated: false,
            egress: false,
            max_connections: Limits::default().total,
            max_connections_per_client: None,
            dns_upstream: None,
            pac: PacSettings::default(),
            http: HttpSettings::default(),
        }
    }

    /// Whether `other` specifies the same listener: the second address family does not count.
    pub fn is_same(&self, other: &Self) -> bool {
        let other = Self {
            both_families: self.both_families,
            ..other.clone()
        };
        *self == other
    }

    /// Binds the listener at `address`, its own or the one it had before; with [`both_families`](Self::both_families) the
    /// same port of `[::1]` too. `asks`: whether clients have to send a password.
    pub async fn bind(&self, address: &Addr, asks: bool) -> Result<Vec<Bound>, ListenerError> {
        let bind = |address| {
            let protocol = self.protocol.clone();
            async move { Bound::bind(protocol, &address, asks, self.allow_unauthenticated).await }
        };
        let mut bound = vec![bind(address.clone()).await?];
        if let Some(first) = bound[0].address().filter(|_| self.both_families) {
            let second = Addr::Tcp((Ipv6Addr::LOCALHOST, first.port()).into());
            match bind(second).await {
                Ok(second) => bound.push(second),
                Err(error) => tracing::warn!(%error, "listening on {first} only"),
            }
        }
        Ok(bound)
    }

    /// Settings for its clients, who connect to `own`. Reads the file of credentials.
    pub fn clients(&self, own: &[SocketAddr]) -> Result<Clients, ListenerError> {
        let read = self.auth_file.as_deref().map(credentials_in).transpose()?;
        let (credentials, reread) = read.unzip();
        Ok(Clients {
            credentials,
            tls: None,
            reread: reread.into_iter().collect(),
            limits: Limits {
                total: self.max_connections,
                per_client: self.max_connections_per_client,
            },
            dns: dns_settings(self.dns_upstream, own)?,
            pac: self.pac.clone(),
            http: self.http.clone(),
        })
    }
}

/// A socket that is bound and not yet served.
pub struct Bound {
    /// The listening socket.
    pub listener: Listener,
    /// UDP socket on the same port, for DNS.
    pub udp: Option<UdpSocket>,
    /// Protocol of its clients.
    pub protocol: Protocol,
}

impl Bound {
    /// Binds a socket, unless other machines could connect to it without a password. `asks`: a password is required, if the
    /// protocol can carry one; `admits_all`: the user accepts clients without one.
    pub async fn bind(
        protocol: Protocol,
        addr: &Addr,
        asks: bool,
        admits_all: bool,
    ) -> Result<Self, ListenerError> {
        let can_ask = protocol.asks_for_password();
        // The admin listener serves no secrets on other addresses than loopback.
        let is_admin = protocol == Protocol::Admin;
        let guarded = addr.is_loopback() || admits_all || (can_ask && asks) || is_admin;
        if !guarded {
            return Err(ListenerError::Exposed {
                listener: protocol.to_string(),
                address: addr.clone(),
                can_ask,
            });
        }
        let (listener, udp) = match protocol {
            Protocol::Dns => {
                let (listener, udp) = bind_both(&protocol, addr).await?;
                (listener, Some(udp))
            }
            _ => (bind_one(&protocol, addr).await?, None),
        };
        Ok(Self {
            listener,
            udp,
            protocol,
        })
    }

    /// Its IP address and port, if it has one.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.listener.addr() {
            Addr::Tcp(addr) => Some(*addr),
            Addr::Unix(_) => None,
        }
    }
}

/// Bound listeners, and the settings for their clients; not served yet.
pub struct Listening {
    /// The sockets.
    pub bound: Vec<Bound>,
    /// Settings for their clients.
    pub clients: Clients,
}

/// Settings for the clients of all listeners.
pub struct Clients {
    /// Required user and password; `None` accepts every client.
    pub credentials: Option<Credentials>,
    /// Certificate of SOCKS5 and HTTP listeners; without one they do not use TLS.
    pub tls: Option<ListenerTls>,
    /// Watchers of the files that these were read from, kept while clients are served.
    pub reread: Vec<Reread>,
    /// Limits on connections.
    pub limits: Limits,
    /// Settings of DNS listeners.
    pub dns: kubevpn_dns::Settings,
    /// Settings of PAC files.
    pub pac: PacSettings,
    /// Settings of HTTP listeners.
    pub http: HttpSettings,
}

impl Clients {
    /// Uses TLS with clients if there is a certificate, whose files are watched.
    pub fn speak_tls(&mut self, tls: Option<(ListenerTls, Reread)>) {
        let (tls, reread) = tls.unzip();
        self.tls = tls;
        self.reread.extend(reread);
    }
}

impl Listening {
    /// The IP addresses and ports of the listeners.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.bound.iter().filter_map(Bound::address).collect()
    }
}

/// Address by which this machine reaches a listener: loopback for one on every address.
pub fn reachable(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr.is_ipv4() {
            true => Ipv4Addr::LOCALHOST.into(),
            false => Ipv6Addr::LOCALHOST.into(),
        });
    }
    addr
}

/// Settings of DNS listeners with this upstream, which must not be one of `own`, the listeners of this program.
pub fn dns_settings(
    upstream: Option<SocketAddr>,
    own: &[SocketAddr],
) -> Result<kubevpn_dns::Settings, ListenerError> {
    let is_upstream = |upstream: SocketAddr, own: &SocketAddr| {
        own.port() == upstream.port() && (own.ip() == upstream.ip() || own.ip().is_unspecified())
    };
    match upstream {
        Some(upstream) if own.iter().any(|own| is_upstream(upstream, own)) => {
            Err(ListenerError::OwnUpstream { upstream })
        }
        _ => Ok(kubevpn_dns::Settings {
            upstream,
            ..kubevpn_dns::Settings::default()
        }),
    }
}

/// Listeners on free ports of loopback: HTTP, then SOCKS5.
pub async fn own(credentials: Option<Credentials>) -> Result<Listening, ListenerError> {
    let addr = Addr::Tcp((Ipv4Addr::LOCALHOST, 0).into());
    let mut bound = Vec::new();
    for protocol in [Protocol::Http, Protocol::Socks] {
        bound.push(Bound::bind(protocol, &addr, credentials.is_some(), false).await?);
    }
    Ok(Listening {
        bound,
        clients: Clients {
            credentials,
            tls: None,
            reread: Vec::new(),
            limits: Limits::default(),
            dns: kubevpn_dns::Settings::default(),
            pac: PacSettings::default(),
            http: HttpSettings::default(),
        },
    })
}

async fn bind_one(protocol: &Protocol, addr: &Addr) -> Result<Listener, ListenerError> {
    Listener::bind(addr)
        .await
        .map_err(|error| not_bound(protocol.to_string(), error.addr.to_string(), error.source))
}

pub(crate) fn not_bound(listener: String, address: String, source: io::Error) -> ListenerError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenerError::InUse { listener, address },
        _ => ListenerError::Io {
            listener,
            address,
            source,
        },
    }
}

/// The users in a file of at most 64 KiB, a line `USER:PASSWORD` each, and the watcher of the file. A pipe, as of a shell's
/// `<(...)`, is read once.
pub fn credentials_in(path: &Path) -> Result<(Credentials, Reread), AuthError> {
    let failed = |reason| AuthError {
        path: path.to_owned(),
        reason,
    };
    let contents = read(path).map_err(|error| failed(AuthReason::Read(error)))?;
    let credentials = users(&contents).map_err(failed)?;
    let clone = credentials.clone();
    let update = move |contents: &[Vec<u8>]| {
        let contents = contents.first().map_or(&[][..], Vec::as_slice);
        clone.replace(users(contents).map_err(|reason| reason.to_string())?);
        Ok(())
    };
    let reread = Reread::new(vec![path.to_owned()], vec![contents], Box::new(update));
    Ok((credentials, reread))
}

fn users(contents: &[u8]) -> Result<Credentials, AuthReason> {
    let text = str::from_utf8(contents).map_err(|_| AuthReason::NoText)?;
    Credentials::parse_lines(text).map_err(AuthReason::Credentials)
}

/// Number of free TCP ports that are tried to find one whose UDP port is free too.
const PORTS: usize = 16;

/// TCP and UDP on one port.
async fn bind_both(
    protocol: &Protocol,
    addr: &Addr,
) -> Result<(Listener, UdpSocket), ListenerError> {
    let not_ip = || ListenerError::NotIp {
        listener: protocol.to_string(),
        address: addr.clone(),
    };
    let Addr::Tcp(wanted) = addr else {
        return Err(not_ip());
    };
    let mut attempts = 1;
    loop {
        let listener = bind_one(protocol, addr).await?;
        let Addr::Tcp(real) = *listener.addr() else {
            return Err(not_ip());
        };
        match kubevpn_dns::bind_udp(real) {
            Ok(udp) => return Ok((listener, udp)),
            // The UDP port of the same number is in use.
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && wanted.port() == 0
                    && attempts < PORTS =>
            {
                attempts += 1;
            }
            Err(source) => {
                return Err(not_bound(
                    protocol.to_string(),
                    format!("{real} (UDP)"),
                    source,
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(address: &str, both_families: bool) -> ListenerSpec {
        let spec = ListenerSpec::new(Protocol::Socks, address.parse().unwrap());
        ListenerSpec {
            both_families,
            ..spec
        }
    }

    #[tokio::test]
    async fn second_family_is_bound_where_it_can_be() {
        let spec = spec("127.0.0.1:0", true);
        let bound = spec.bind(&spec.address, false).await.unwrap();
        let addresses: Vec<_> = bound.iter().filter_map(Bound::address).collect();
        let port = addresses[0].port();
        let both = [
            (Ipv4Addr::LOCALHOST, port).into(),
            (Ipv6Addr::LOCALHOST, port).into(),
        ];
        assert_eq!(addresses, both);
        // Only the second address is in use.
        drop(bound);
        let _taken = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, port)).unwrap();
        let first = Addr::Tcp((Ipv4Addr::LOCALHOST, port).into());
        let bound = spec.bind(&first, false).await.unwrap();
        assert_eq!(bound.len(), 1);
    }

    #[test]
    fn second_family_makes_no_other_listener() {
        let one = spec("127.0.0.1:1080", false);
        assert!(one.is_same(&spec("127.0.0.1:1080", true)));
        assert!(!one.is_same(&spec("127.0.0.1:1081", true)));
    }

    #[tokio::test(start_paused = true)]
    async fn users_follow_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("users");
        std::fs::write(&file, "ann:x\nbob:y\n").unwrap();
        let (credentials, reread) = credentials_in(&file).unwrap();
        assert!(credentials.check(b"ann", b"x") && credentials.check(b"bob", b"y"));
        let following = tokio::spawn(reread.run());
        // An invalid file, and then a valid one.
        for (text, ann, carol) in [
            ("ann", true, false),
            ("\n", true, false),
            ("carol:z\n", false, true),
        ] {
            std::fs::write(&file, text).unwrap();
            tokio::time::sleep(std::time::Duration::from_secs(10)).await;
            assert_eq!(credentials.check(b"ann", b"x"), ann, "{text:?}");
            assert_eq!(credentials.check(b"carol", b"z"), carol, "{text:?}");
        }
        following.abort();
    }

    /// The daemon's API and state file have every setting.
    #[test]
    fn second_family_is_written_down() {
        for both_families in [true, false] {
            let spec = spec("127.0.0.1:1080", both_families);
            let text = serde_json::to_string(&spec).unwrap();
            assert_eq!(text.contains("bothFamilies"), both_families);
            assert_eq!(serde_json::from_str::<ListenerSpec>(&text).unwrap(), spec);
        }
    }
}
