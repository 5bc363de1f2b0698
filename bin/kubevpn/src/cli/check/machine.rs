//! The probes of this machine: ports, variables, routes, DNS, limits. Only the lookup of names sends packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime};

use http::Uri;
use kubevpn_client::OWN_PROXIES;
use kubevpn_conn::Addr;
use rustix::process::{Resource, getrlimit};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::facts::{AddressFacts, CheckFacts, ListenerFacts, Lookup, ProxyVariable, RangeFacts};
use crate::cli::holder::{connections, held};
use crate::cli::isolated::{IS_KNOWN_HERE, possible};

/// Time limit of a lookup.
const LOOKUP: Duration = Duration::from_secs(2);
/// The variables that name a proxy, those in capitals first.
const VARIABLES: [&str; 6] = [
    "ALL_PROXY",
    "all_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
];

/// All facts that need no cluster.
pub(super) async fn facts(listen: &Addr) -> CheckFacts {
    let connections = connections().await;
    let listener = match listen {
        Addr::Tcp(address) => Some(ListenerFacts {
            address: address.to_string(),
            state: held(*address, &connections),
        }),
        Addr::Unix(_) => None,
    };
    CheckFacts {
        now: Some(SystemTime::now()),
        listener,
        proxies: variables(&connections),
        files: Some(getrlimit(Resource::Nofile).maximum),
        isolated: match IS_KNOWN_HERE {
            true => spawn_blocking(possible).await.ok(),
            false => None,
        },
        ..CheckFacts::default()
    }
}

fn variables(connections: &[(SocketAddr, String)]) -> Vec<ProxyVariable> {
    let known = std::env::var(OWN_PROXIES).unwrap_or_default();
    let mut found = Vec::new();
    for name in VARIABLES {
        let Some(value) = std::env::var(name).ok().filter(|value| !value.is_empty()) else {
            continue;
        };
        // A value that is not a URL may be a password.
        let Ok(url) = value.parse::<Uri>() else {
            continue;
        };
        if is_unescaped(&value) {
            continue;
        }
        found.push(ProxyVariable {
            name,
            url: without_login(&url),
            held: here(&url).map(|address| held(address, connections)),
            known: known.split(',').any(|known| known == value),
        });
    }
    found
}

/// Whether the URL's login has a `/`, `?` or `#` that is not percent-encoded, so that a part of the login is taken for its host.
fn is_unescaped(value: &str) -> bool {
    let rest = value.split_once("://").map_or(value, |(_, rest)| rest);
    let end = rest.find(['/', '?', '#']);
    end.is_some_and(|end| rest[end..].contains('@'))
}

/// The address of a proxy on this machine.
fn here(url: &Uri) -> Option<SocketAddr> {
    let host = url.host()?.trim_matches(['[', ']']);
    let ip: IpAddr = match host.eq_ignore_ascii_case("localhost") {
        true => Ipv4Addr::LOCALHOST.into(),
        false => host.parse().ok()?,
    };
    ip.is_loopback()
        .then_some(SocketAddr::new(ip, url.port_u16()?))
}

/// A proxy's URL without its user and password.
pub(super) fn without_login(url: &Uri) -> String {
    let scheme = url.scheme_str().unwrap_or("http");
    let host = url.host().unwrap_or_default();
    match url.port_u16() {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    }
}

/// The addresses of the API server's host, and whether there are routes to them.
pub(super) async fn addresses(server: &Uri) -> Vec<AddressFacts> {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    let found = match host.parse::<IpAddr>() {
        Ok(ip) => vec![ip],
        Err(_) => look_up(host).await,
    };
    let address = |ip: IpAddr| AddressFacts {
        ip,
        routed: source(ip).is_some(),
    };
    found.into_iter().map(address).collect()
}

/// Queries this machine's DNS for a name that exists only in the cluster.
pub(super) async fn lookup() -> Lookup {
    // The name is fully qualified, so that no search list is used.
    let name = "kubernetes.default.svc.cluster.local";
    Lookup {
        name: name.to_owned(),
        addresses: look_up(&format!("{name}.")).await,
        real: None,
    }
}

async fn look_up(host: &str) -> Vec<IpAddr> {
    let looked_up = timeout(LOOKUP, tokio::net::lookup_host((host, 443))).await;
    let Ok(Ok(addresses)) = looked_up else {
        return Vec::new();
    };
    let mut found: Vec<IpAddr> = Vec::new();
    for address in addresses.take(16) {
        if !found.contains(&address.ip()) {
            found.push(address.ip());
        }
    }
    found
}

/// The source address of a packet to `ip`; `None` without a route. Connecting a UDP socket sends nothing.
fn source(ip: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((ip, 443)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// A range, and the source address for it, if that differs from the default route's. An address for documentation (RFC
/// 5737, RFC 3849) stands for the default route.
pub(super) fn route_into(cidr: String) -> RangeFacts {
    let inside = cidr
        .split_once('/')
        .and_then(|(first, _)| first.parse().ok());
    let everywhere: IpAddr = match inside {
        Some(IpAddr::V6(_)) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        _ => Ipv4Addr::new(192, 0, 2, 1).into(),
    };
    let by = inside.and_then(|ip| source(next(ip)));
    RangeFacts {
        cidr,
        routed_by: by.filter(|by| source(everywhere) != Some(*by)),
    }
}

/// The first address of a range is that of the network.
fn next(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip).saturating_add(1)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip).saturating_add(1)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_proxies() {
        let url: Uri = "socks5h://ann:s3cret@127.0.0.1:1080".parse().unwrap();
        assert_eq!(without_login(&url), "socks5h://127.0.0.1:1080");
        assert_eq!(here(&url), "127.0.0.1:1080".parse().ok());
        let url: Uri = "http://proxy.corp:3128".parse().unwrap();
        assert_eq!(here(&url), None);
    }

    #[test]
    fn a_part_of_a_password_is_no_host() {
        for value in [
            "http://u:1/ss@p:3128",
            "http://u:1?ss@p",
            "http://pa#ss@p",
            // The login begins as the host does.
            "http://pr/ss@proxy",
            "u:1/ss@p",
        ] {
            assert!(is_unescaped(value), "{value}");
        }
        for value in ["http://u:pa%2Fss@p:3128/", "http://p:3128/a", "u:p@p:1"] {
            assert!(!is_unescaped(value), "{value}");
        }
    }

    #[test]
    fn loopback_has_a_route_and_is_no_default() {
        assert_eq!(
            source(Ipv4Addr::LOCALHOST.into()),
            Some(Ipv4Addr::LOCALHOST.into())
        );
        let range = route_into("127.0.0.0/8".into());
        assert_eq!(range.routed_by, Some(Ipv4Addr::LOCALHOST.into()));
    }
}
