//! Serves a network namespace from outside: all its TCP connections, and its DNS queries.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_proto::op::{OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name as DnsName, RData, Record, RecordType};
use kubevpn_conn::{ClientIo as _, Closed, Drain, Gate, Limits, Listener};
use kubevpn_dns::{Message, Query};
use kubevpn_stack::{Either, Outside};
use kubevpn_target::{BoxError, ConnectError, Host, Name, Refusal, Stream, Target, classify};
use kubevpn_transparent::{Addresses, NameTable as Given};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tower::ServiceExt as _;
use tower_service::Service;

use crate::{Backend, Guard, NameService};

/// Name inside for the loopback of the machine outside.
pub const HOST: &str = "host.kubevpn.internal";

/// Port of DNS queries, over TCP too, at any address.
const DNS: u16 = 53;

/// TTL of our answers; the assigned address is kept for longer.
const TTL: u32 = 30;

/// Time limit of a lookup by this machine's resolver.
const LOOKUP: Duration = Duration::from_secs(4);

/// A network namespace being served.
pub struct Inside {
    drain: Drain,
    accepting: JoinSet<()>,
}

/// The sockets of a network namespace in which all TCP connections and DNS queries are redirected to them.
pub struct InsideSockets {
    /// Listeners of redirected connections, whose original destination is known.
    pub listeners: Vec<std::net::TcpListener>,
    /// Sockets of DNS queries over UDP.
    pub dns: Vec<std::net::UdpSocket>,
    /// Address of the programs inside; this machine does not have it.
    pub address: IpAddr,
    /// Tells whether programs inside have closed their sockets; `None` if the system cannot be asked.
    pub closed: Option<Closed>,
    /// Rules about the targets of its programs; `None` permits all.
    pub guard: Option<Guard>,
}

impl Inside {
    /// Serves the namespace over `backend` until [`end`](Self::end). Must be called in a runtime, with non-blocking
    /// sockets.
    ///
    /// Names of the cluster resolve to their own addresses. A name without one (an ExternalName Service), a host outside,
    /// if those are reached, and [`HOST`] are assigned one here.
    pub fn serve<C>(
        backend: Backend<C>,
        outside: Outside,
        sockets: InsideSockets,
    ) -> io::Result<Self>
    where
        C: Service<Target> + Clone + Send + Sync + 'static,
        C::Response: Stream,
        C::Error: Into<BoxError>,
        C::Future: Send,
    {
        let given = Given::default();
        let answers = Answers {
            cluster: backend.names,
            given: given.clone(),
            outside,
        };
        let answers = tower::service_fn(move |query: Query| {
            let answers = answers.clone();
            async move { answers.answer(&query).await }
        });
        let connect = FromInside {
            inner: backend.connect,
            address: sockets.address,
            guard: sockets.guard,
        };
        let dns = kubevpn_dns::Settings {
            local_clients: true,
            ..kubevpn_dns::Settings::default()
        };
        let drain = Drain::new();
        let gate = Gate::new(Limits::default());
        let mut accepting = JoinSet::new();
        for socket in sockets.dns {
            let socket = UdpSocket::from_std(socket)?;
            let serving =
                kubevpn_dns::serve_udp(socket, answers.clone(), dns.clone(), drain.clone());
            accepting.spawn(serving);
        }
        let settings = Arc::new(kubevpn_transparent::Settings {
            names: Some(given),
            ..kubevpn_transparent::Settings::default()
        });
        for listener in sockets.listeners {
            let mut listener = Listener::of(TcpListener::from_std(listener)?)?;
            if let Some(closed) = &sockets.closed {
                listener = listener.asks_whether_closed(closed.clone());
            }
            let (connect, answers) = (connect.clone(), answers.clone());
            let (settings, dns) = (settings.clone(), dns.clone());
            let serving = listener.serve(gate.clone(), drain.clone(), move |client| {
                let (connect, answers) = (connect.clone(), answers.clone());
                let (settings, dns) = (settings.clone(), dns.clone());
                async move {
                    let to = client.original_destination();
                    if to.is_some_and(|to| to.port() == DNS) {
                        let _ended = kubevpn_dns::serve_stream(client, answers, &dns).await;
                    } else {
                        let serving =
                            kubevpn_transparent::serve_connection(client, connect, &settings);
                        let _ended = serving.await;
                    }
                }
            });
            accepting.spawn(serving);
        }
        Ok(Self { drain, accepting })
    }

    /// Stops accepting, waits up to `patience` for open connections, and cuts the rest.
    pub async fn end(self, patience: Duration) {
        let drained = self.drain.drain(patience).await;
        tracing::debug!(finished = drained.finished, cut = drained.cut, "ended");
        self.accepting.join_all().await;
    }
}

// === connections ===

/// Dialer for programs inside. To them, loopback is their own; that of the machine has the name [`HOST`].
#[derive(Clone)]
struct FromInside<C> {
    inner: C,
    address: IpAddr,
    guard: Option<Guard>,
}

impl<C> Service<Target> for FromInside<C>
where
    C: Service<Target> + Clone + Send + 'static,
    C::Response: Stream,
    C::Error: Into<BoxError>,
    C::Future: Send,
{
    type Response = Either<C::Response, TcpStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut target: Target) -> Self::Future {
        let is_host = matches!(&target.host, Host::Name(name) if name.as_str() == HOST);
        // A program may have bound its socket to loopback.
        let port = target.origin.peer.map_or(0, |peer| peer.port());
        target.origin.peer = Some(SocketAddr::new(self.address, port));
        let (inner, guard) = (self.inner.clone(), self.guard.clone());
        Box::pin(async move {
            if let Some(guard) = guard {
                guard.check(&target, is_host).await?;
            }
            if is_host {
                return to_host(&target).await.map(Either::B);
            }
            let stream = inner.oneshot(target).await;
            stream.map(Either::A).map_err(|e| classify(e.into()))
        })
    }
}

/// A server on the loopback of this machine.
async fn to_host(target: &Target) -> Result<TcpStream, ConnectError> {
    let port = target.port.get();
    let loopback = [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ];
    let stream = TcpStream::connect(&loopback[..]).await.map_err(|error| {
        let sentence = format!("nothing listens on port {port} of this machine's loopback");
        ConnectError::new(Refusal::Refused, sentence).with_source(error)
    })?;
    // This fails only if the connection has ended, which the next read reports.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

// === names ===

/// Answers a DNS client inside.
#[derive(Clone)]
struct Answers {
    /// DNS service for names of the cluster.
    cluster: Option<NameService>,
    given: Given,
    outside: Outside,
}

impl Answers {
    async fn answer(&self, query: &Query) -> Result<Message, ConnectError> {
        if let Some(name) = self.pointer(query) {
            let name = DnsName::from_ascii(format!("{}.", name.as_str()));
            return Ok(answer(query, name.ok().map(|name| RData::PTR(PTR(name)))));
        }
        let name = query.name().to_ascii().to_ascii_lowercase();
        let name = name.trim_end_matches('.');
        if name == HOST {
            return self.give(query, name);
        }
        // RFC 6761 section 6.3. The C library usually has these from /etc/hosts.
        if name == "localhost" || name.ends_with(".localhost") {
            let loopback = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
            return Ok(answer(query, of_kind(query, loopback.0, loopback.1)));
        }
        let known = match &self.cluster {
            Some(names) => names.clone().oneshot(query.clone()).await,
            None => Err(ConnectError::new(Refusal::Denied, "there is no cluster")),
        };
        match known {
            Ok(message) if is_address(query) && is_alias_alone(&message) => self.give(query, name),
            Err(error) if error.refusal() == Refusal::Denied => self.outside(query, name).await,
            known => known,
        }
    }

    /// The name to which a queried address is assigned.
    fn pointer(&self, query: &Query) -> Option<Name> {
        if query.query_type() != RecordType::PTR {
            return None;
        }
        let net = query.name().parse_arpa_name().ok()?;
        let is_one = net.prefix_len() == net.max_prefix_len();
        self.given.find(net.addr()).filter(|_| is_one)
    }

    /// Answers for a name outside the cluster.
    async fn outside(&self, query: &Query, name: &str) -> Result<Message, ConnectError> {
        if self.outside == Outside::Direct && exists(name).await {
            return self.give(query, name);
        }
        if self.outside == Outside::Deny && query.query_type() == RecordType::A {
            tracing::info!(
                name,
                "a host outside the cluster was looked up, and is not reached from here"
            );
        }
        Ok(no_such_name(query))
    }

    /// Assigns addresses to the name, and answers with them.
    fn give(&self, query: &Query, name: &str) -> Result<Message, ConnectError> {
        if !is_address(query) {
            return Ok(answer(query, None));
        }
        // Fully qualified, unless this machine's resolver has to complete it.
        let parsed = match name.contains('.') {
            true => Name::parse(&format!("{name}.")),
            false => Name::parse(name),
        };
        let Ok(parsed) = parsed else {
            return Ok(no_such_name(query));
        };
        let Some(Addresses { v4, v6 }) = self.given.assign(&parsed) else {
            let sentence = format!("{name} gets no address: too many names are in use");
            return Err(ConnectError::new(Refusal::Overloaded, sentence));
        };
        Ok(answer(query, of_kind(query, v4, v6)))
    }
}

/// Whether the resolver of this machine knows an address of the name.
async fn exists(name: &str) -> bool {
    let lookup = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((name, 0)));
    let found = lookup.await.ok().and_then(Result::ok);
    found.is_some_and(|mut addresses| addresses.next().is_some())
}

fn is_address(query: &Query) -> bool {
    matches!(query.query_type(), RecordType::A | RecordType::AAAA)
}

/// Whether the message has an alias of the name and no address.
fn is_alias_alone(message: &Message) -> bool {
    let mut answers = message.answers.iter();
    !message.answers.is_empty() && answers.all(|record| record.record_type() == RecordType::CNAME)
}

fn of_kind(query: &Query, v4: Ipv4Addr, v6: Ipv6Addr) -> Option<RData> {
    match query.query_type() {
        RecordType::A => Some(RData::A(A(v4))),
        RecordType::AAAA => Some(RData::AAAA(AAAA(v6))),
        _ => None,
    }
}

fn answer(query: &Query, data: Option<RData>) -> Message {
    let mut message = Message::response(0, OpCode::Query);
    message.metadata.authoritative = true;
    let record = data.map(|data| Record::from_rdata(query.name().clone(), TTL, data));
    message.add_answers(record);
    message
}

fn no_such_name(query: &Query) -> Message {
    let mut message = answer(query, None);
    message.metadata.response_code = ResponseCode::NXDomain;
    message
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::CNAME;
    use kubevpn_target::Origin;
    use tower::service_fn;
    use tower::util::BoxCloneSyncService;

    use super::*;

    fn query(name: &str, kind: RecordType) -> Query {
        Query::query(DnsName::from_ascii(name).unwrap(), kind)
    }

    /// A cluster of one Service, one alias, and one server that is away.
    fn answers(outside: Outside) -> Answers {
        let cluster = service_fn(async |query: Query| {
            let name = query.name().to_ascii();
            let alias = DnsName::from_ascii("example.test.").unwrap();
            match name.as_str() {
                "web.shop.svc.cluster.local." => {
                    let ip = RData::A(A([10, 96, 0, 7].into()));
                    Ok(answer(&query, Some(ip)))
                }
                "ext.shop.svc.cluster.local." => {
                    Ok(answer(&query, Some(RData::CNAME(CNAME(alias)))))
                }
                "away.shop.svc.cluster.local." => {
                    Err(ConnectError::new(Refusal::ClusterAway, "away"))
                }
                name if name.ends_with(".cluster.local.") => Ok(no_such_name(&query)),
                _ => Err(ConnectError::new(Refusal::Denied, "not of the cluster")),
            }
        });
        Answers {
            cluster: Some(BoxCloneSyncService::new(cluster)),
            given: Given::default(),
            outside,
        }
    }

    async fn ask(answers: &Answers, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let message = answers.answer(&query(name, kind)).await.unwrap();
        let records = message.answers.iter().map(|r| r.data.to_string()).collect();
        (message.metadata.response_code, records)
    }

    #[tokio::test]
    async fn names_with_addresses_keep_them_and_others_get_some() {
        let answers = answers(Outside::Deny);
        let web = "web.shop.svc.cluster.local.";
        let found = ask(&answers, web, RecordType::A).await;
        assert_eq!(found, (ResponseCode::NoError, vec!["10.96.0.7".into()]));
        let ext = "ext.shop.svc.cluster.local.";
        let (_, v4) = ask(&answers, ext, RecordType::A).await;
        assert_eq!(v4, ["198.18.1.0"]);
        assert_eq!(ask(&answers, ext, RecordType::A).await.1, v4);
        let (_, v6) = ask(&answers, ext, RecordType::AAAA).await;
        assert_eq!(v6, ["fc00::c612:100"]);
        // No address was assigned.
        assert_eq!(
            ask(&answers, ext, RecordType::CNAME).await.1,
            ["example.test."]
        );
        let back = ask(&answers, "0.1.18.198.in-addr.arpa.", RecordType::PTR).await;
        assert_eq!(back.1, ["ext.shop.svc.cluster.local."]);
        let (_, host) = ask(&answers, "host.kubevpn.internal.", RecordType::A).await;
        assert_eq!(host, ["198.18.1.1"]);
        assert_eq!(
            ask(&answers, "localhost.", RecordType::A).await.1,
            ["127.0.0.1"]
        );
    }

    #[tokio::test]
    async fn hosts_outside_are_there_when_they_may_be_reached() {
        let denied = answers(Outside::Deny);
        let none = (ResponseCode::NXDomain, Vec::new());
        assert_eq!(ask(&denied, "example.test.", RecordType::A).await, none);
        let direct = answers(Outside::Direct);
        // RFC 6761: this name never exists.
        assert_eq!(ask(&direct, "x.invalid.", RecordType::A).await, none);
        let name = "none.shop.svc.cluster.local.";
        assert_eq!(ask(&direct, name, RecordType::A).await, none);
        // Every resolver resolves an address to itself.
        assert!(exists("127.0.0.1").await && !exists("x.invalid").await);
        let given = direct.give(&query("example.test.", RecordType::MX), "example.test");
        assert!(given.unwrap().answers.is_empty());
    }

    #[tokio::test]
    async fn a_cluster_that_is_away_is_no_host_outside() {
        let answers = answers(Outside::Direct);
        let away = query("away.shop.svc.cluster.local.", RecordType::A);
        let error = answers.answer(&away).await.unwrap_err();
        assert_eq!(error.refusal(), Refusal::ClusterAway);
    }

    #[tokio::test]
    async fn the_machine_outside_is_a_name_and_no_address() {
        let inner = service_fn(async |target: Target| {
            assert_eq!(target.origin.peer, "198.18.0.1:9".parse().ok());
            Ok::<_, BoxError>(tokio::io::duplex(1).0)
        });
        let connect = FromInside {
            inner,
            address: "198.18.0.1".parse().unwrap(),
            guard: None,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let origin = Origin {
            peer: "127.0.0.1:9".parse().ok(),
            ..Origin::default()
        };
        let target = |text: &str| Target::parse(text, origin).unwrap();
        let to = target(&format!("{HOST}.:{}", address.port()));
        let stream = connect.clone().oneshot(to).await.unwrap();
        assert_eq!(stream.via().to, address.to_string());
        let other = connect.clone().oneshot(target(&address.to_string())).await;
        assert!(matches!(other, Ok(Either::A(_))));
        drop(listener);
        let to = target(&format!("{HOST}:{}", address.port()));
        let refused = connect.oneshot(to).await.map(|_| ()).unwrap_err();
        assert_eq!(refused.refusal(), Refusal::Refused);
    }
}
