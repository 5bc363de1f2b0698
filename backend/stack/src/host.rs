//! Direct dialer for outside hosts, with a deny list: own listeners, loopback, link-local addresses.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kubevpn_target::{ConnectError, Host, Name, Refusal, Target};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::sleep;
use tower_service::Service;

/// How long an address is tried alone before the next is tried in parallel (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Limit on addresses of a name that are tried.
const ADDRESSES: usize = 16;

/// A host to be dialled from this machine.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// The requested target.
    pub target: Target,
    /// What the target resolved to: a name, or addresses.
    pub to: Vec<Host>,
    /// The object that named the host, e.g. `service default/external`; `None` if the client named it.
    pub learned_from: Option<String>,
}

impl From<Target> for Outbound {
    fn from(target: Target) -> Self {
        Self {
            to: vec![target.host.clone()],
            target,
            learned_from: None,
        }
    }
}

/// Dials from this machine, with its resolver and its routes.
///
/// Never dialled, with [`Refusal::Denied`]: our own listeners; an address of this machine or of its link if an object of the
/// cluster named it; and such an address for a client on another machine, which could not reach it directly.
///
/// Always ready. Cancellation: dropping a call's future gives the dial up.
#[derive(Clone, Debug, Default)]
pub struct FromHost {
    own: OwnListeners,
}

/// Addresses on which this program itself listens. Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct OwnListeners(Arc<RwLock<Vec<SocketAddr>>>);

impl OwnListeners {
    /// Adds a listener, if it has an address.
    pub fn add(&self, addr: impl IntoIterator<Item = SocketAddr>) {
        let mut own = self.0.write().unwrap_or_else(PoisonError::into_inner);
        own.extend(addr);
    }

    /// Removes a listener.
    pub fn remove(&self, addr: impl IntoIterator<Item = SocketAddr>) {
        let mut own = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for addr in addr {
            own.retain(|own| *own != addr);
        }
    }

    fn now(&self) -> Vec<SocketAddr> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl FromIterator<SocketAddr> for OwnListeners {
    fn from_iter<T: IntoIterator<Item = SocketAddr>>(own: T) -> Self {
        Self(Arc::new(RwLock::new(own.into_iter().collect())))
    }
}

impl FromHost {
    /// `own` are the addresses on which this program itself listens.
    pub fn new(own: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self::sharing(own.into_iter().collect())
    }

    /// For a program whose listeners change.
    pub fn sharing(own: OwnListeners) -> Self {
        Self { own }
    }
}

impl Service<Outbound> for FromHost {
    type Response = TcpStream;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<TcpStream, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, outbound: Outbound) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.dial(&outbound).await })
    }
}

/// Dials every target from this machine, for a proxy without a cluster.
impl Service<Target> for FromHost {
    type Response = TcpStream;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<TcpStream, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Target) -> Self::Future {
        self.call(Outbound::from(target))
    }
}

impl FromHost {
    /// Why the addresses are never dialled; `None` if one may be, or if they are not known yet.
    pub(crate) fn never(&self, outbound: &Outbound) -> Option<String> {
        let port = outbound.target.port.get();
        let mut why = None;
        for host in &outbound.to {
            let Host::Ip(ip) = host else { return None };
            why = Some(deny(SocketAddr::new(*ip, port), outbound, &self.own.now())?);
        }
        why
    }

    async fn dial(&self, outbound: &Outbound) -> Result<TcpStream, ConnectError> {
        let mut addresses = addresses(outbound).await?;
        let own = self.own.now();
        let mut denied = None;
        addresses.retain(|&address| match deny(address, outbound, &own) {
            None => true,
            Some(why) => {
                denied = Some(why);
                false
            }
        });
        if let (Some(why), true) = (denied, addresses.is_empty()) {
            return Err(ConnectError::new(Refusal::Denied, why));
        }
        addresses = alternate(addresses);
        addresses.truncate(ADDRESSES);
        tracing::debug!(target = %outbound.target, ?addresses, "dialing from this host");
        let stream = race(addresses).await.map_err(|e| failed(outbound, e))?;
        if let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr())
            && is_loop(local, peer, &own)
        {
            return Err(ConnectError::new(Refusal::Denied, looped(peer)));
        }
        // This fails only on a connection that has ended, which the next read reports.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

async fn addresses(outbound: &Outbound) -> Result<Vec<SocketAddr>, ConnectError> {
    let port = outbound.target.port.get();
    let mut addresses = Vec::new();
    for host in &outbound.to {
        match host {
            Host::Ip(ip) => addresses.push(SocketAddr::new(*ip, port)),
            Host::Name(name) => addresses.extend(resolve(name, port).await?),
        }
    }
    Ok(addresses)
}

async fn resolve(name: &Name, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
    let unknown = || {
        let sentence = format!("the DNS of this machine has no address for {name}");
        ConnectError::new(Refusal::NameNotFound, sentence)
    };
    tracing::debug!(%name, "asking the resolver of this host");
    let found = lookup_host((name.to_string(), port)).await;
    let found = found.map_err(|error| unknown().with_source(error))?;
    let found: Vec<_> = found
        .map(|address| SocketAddr::new(address.ip().to_canonical(), port))
        .collect();
    match found.is_empty() {
        true => Err(unknown()),
        false => Ok(found),
    }
}

/// Why an address is never dialled.
fn deny(address: SocketAddr, outbound: &Outbound, own: &[SocketAddr]) -> Option<String> {
    let asked = &outbound.target;
    if own.iter().any(|own| is_own(address, *own)) {
        return Some(looped(address));
    }
    let ip = address.ip().to_canonical();
    if !is_here(ip) {
        return None;
    }
    if let Some(learned_from) = &outbound.learned_from {
        return Some(format!(
            "{asked} leads to {ip} by {learned_from}: no cluster is let reach this machine or its link"
        ));
    }
    let peer = asked.origin.peer?;
    if peer.ip().to_canonical().is_loopback() {
        return None;
    }
    Some(format!(
        "{asked} is {ip}, of this machine or its link, which only clients on this machine may reach"
    ))
}

/// Whether an address means this machine or its link, or is unspecified.
fn is_here(ip: IpAddr) -> bool {
    let link = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    link || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}

/// Whether an address is that of a listener of our own.
fn is_own(address: SocketAddr, own: SocketAddr) -> bool {
    let (ip, own_ip) = (address.ip().to_canonical(), own.ip().to_canonical());
    let this = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    let same = ip == own_ip
        // A connection to the unspecified address reaches this machine.
        || ip.is_unspecified() && own_ip.is_loopback()
        || own_ip.is_unspecified() && this(ip);
    address.port() == own.port() && same
}

/// Whether a connection ended at a listener of our own that is bound to all addresses: both ends have the same address.
fn is_loop(local: SocketAddr, peer: SocketAddr, own: &[SocketAddr]) -> bool {
    let mut own = own.iter();
    local.ip() == peer.ip() && own.any(|own| own.ip().is_unspecified() && own.port() == peer.port())
}

fn looped(address: SocketAddr) -> String {
    format!("proxy loop detected: {address} is where this proxy itself listens")
}

fn failed(outbound: &Outbound, error: io::Error) -> ConnectError {
    let asked = &outbound.target;
    let (refusal, why) = match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => (
            Refusal::Refused,
            "refused the connection from this machine: nothing listens there",
        ),
        io::ErrorKind::TimedOut => (
            Refusal::TimedOut,
            "did not answer this machine in time: try again, or check its network",
        ),
        _ => (
            Refusal::Unreachable,
            "cannot be reached from this machine: check its network and routes",
        ),
    };
    ConnectError::new(refusal, format!("{asked} {why}")).with_source(error)
}

/// The order of the resolver with the families alternating (RFC 8305 section 4).
fn alternate(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (a, b): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|x| x.is_ipv4() == first);
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    let mut all = Vec::new();
    loop {
        let next = [a.next(), b.next()];
        if next == [None, None] {
            return all;
        }
        all.extend(next.into_iter().flatten());
    }
}

/// Connects to the first address that answers: each is tried when those before it have failed, or in parallel after a
/// delay.
async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut rest = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut error = io::ErrorKind::AddrNotAvailable.into();
    loop {
        attempts.extend(rest.next().map(TcpStream::connect));
        tokio::select! {
            done = attempts.next() => match done {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(failed)) => error = failed,
                None => return Err(error),
            },
            () = sleep(STAGGER), if rest.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use kubevpn_target::Origin;
    use tokio::net::TcpListener;

    use super::*;

    fn outbound(target: &str, learned_from: Option<&str>, peer: Option<&str>) -> Outbound {
        let origin = Origin {
            peer: peer.map(|peer| peer.parse().unwrap()),
            ..Origin::default()
        };
        Outbound {
            learned_from: learned_from.map(str::to_owned),
            ..Outbound::from(Target::parse(target, origin).unwrap())
        }
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn names_and_addresses_are_dialled() {
        let (_listener, address) = listener().await;
        let host = FromHost::default();
        for name in ["127.0.0.1", "localhost"] {
            let target = format!("{name}:{}", address.port());
            let stream = host.dial(&outbound(&target, None, None)).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), address);
            assert!(stream.nodelay().unwrap());
        }
    }

    #[tokio::test]
    async fn failures_have_their_refusals() {
        let (listener, address) = listener().await;
        drop(listener);
        let target = address.to_string();
        let error = FromHost::default()
            .dial(&outbound(&target, None, None))
            .await
            .unwrap_err();
        assert_eq!(error.refusal(), Refusal::Refused);
        let said = "refused the connection from this machine";
        assert!(error.to_string().contains(said), "{error}");
    }

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_fails() {
        let (gone, nothing) = listener().await;
        drop(gone);
        let (_listener, address) = listener().await;
        let stream = race(vec![nothing, address]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert!(race(vec![nothing]).await.is_err());
        assert!(race(vec![]).await.is_err());
    }

    #[test]
    fn families_take_turns() {
        let of = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|t| t.parse().unwrap()).collect()
        };
        let mixed = of(&["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1"]);
        let turns = of(&["[::1]:1", "1.0.0.1:1", "[::2]:1", "[::3]:1"]);
        assert_eq!(alternate(mixed), turns);
        assert_eq!(alternate(Vec::new()), Vec::new());
    }

    /// Whether the address is denied: to a local client, to a client elsewhere, to the cluster.
    fn denied(address: &str, own: &[&str]) -> (bool, bool, bool) {
        let own: Vec<SocketAddr> = own.iter().map(|t| t.parse().unwrap()).collect();
        let deny = |learned_from, peer| {
            let outbound = outbound("any.example:1", learned_from, peer);
            deny(address.parse().unwrap(), &outbound, &own).is_some()
        };
        (
            deny(None, Some("127.0.0.1:5000")),
            deny(None, Some("192.0.2.1:5000")),
            deny(Some("service default/external"), Some("127.0.0.1:5000")),
        )
    }

    #[test]
    fn addresses_that_are_never_dialled() {
        for address in [
            "127.0.0.1:80",
            "127.9.9.9:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "0.0.0.0:80",
            "[::]:80",
            "169.254.169.254:80",
            "[fe80::1]:80",
            "255.255.255.255:80",
            "224.0.0.1:80",
        ] {
            assert_eq!(denied(address, &[]), (false, true, true), "{address}");
        }
        for address in ["192.0.2.1:80", "10.0.0.1:80", "[2001:db8::1]:80"] {
            assert_eq!(denied(address, &[]), (false, false, false), "{address}");
        }
    }

    #[test]
    fn our_own_listeners_are_never_dialled() {
        let all = (true, true, true);
        for (address, own) in [
            ("127.0.0.1:1080", "127.0.0.1:1080"),
            ("[::ffff:127.0.0.1]:1080", "127.0.0.1:1080"),
            ("0.0.0.0:1080", "127.0.0.1:1080"),
            ("[::]:1080", "127.0.0.1:1080"),
            ("[::1]:1080", "[::1]:1080"),
            ("127.0.0.1:1080", "0.0.0.0:1080"),
            ("[::1]:1080", "[::]:1080"),
            ("192.0.2.1:1080", "192.0.2.1:1080"),
        ] {
            assert_eq!(denied(address, &[own]), all, "{address} {own}");
        }
        let outbound = outbound("127.0.0.1:1080", None, None);
        let own = "127.0.0.1:1080".parse().unwrap();
        let said = deny(own, &outbound, &[own]).unwrap();
        assert!(
            said.starts_with("proxy loop detected: 127.0.0.1:1080"),
            "{said}"
        );
        let none = (false, false, false);
        assert_eq!(denied("192.0.2.1:1080", &["127.0.0.1:1080"]), none);
        assert_eq!(denied("192.0.2.1:1081", &["192.0.2.1:1080"]), none);
    }

    #[test]
    fn a_listener_on_all_addresses_is_known_by_the_connection() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (local, peer) = (at("192.0.2.1:40000"), at("192.0.2.1:1080"));
        assert!(is_loop(local, peer, &[at("0.0.0.0:1080")]));
        assert!(!is_loop(local, peer, &[at("0.0.0.0:1081")]));
        assert!(!is_loop(local, peer, &[at("127.0.0.1:1080")]));
        assert!(!is_loop(local, at("192.0.2.9:1080"), &[at("0.0.0.0:1080")]));
    }

    #[tokio::test]
    async fn a_name_that_leads_here_is_denied_to_the_cluster() {
        let (_listener, address) = listener().await;
        let target = format!("localhost:{}", address.port());
        let learned = outbound(&target, Some("service default/external"), None);
        let error = FromHost::default().dial(&learned).await.unwrap_err();
        assert_eq!(error.refusal(), Refusal::Denied);
        let said = error.to_string();
        assert!(said.contains("by service default/external"), "{said}");
    }
}
