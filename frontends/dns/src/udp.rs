//! Queries in datagrams.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use kubevpn_conn::{Backoff, Drain};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::Settings;
use crate::ask::{AnswerQueries, ask};
use crate::reply::encode;
use crate::request::{ParsedMessage, read};

/// The kernel's receive buffer: a burst of a few thousand queries.
const BUFFER: usize = 1024 * 1024;

/// Limit on a datagram; longer ones are not queries.
const LONGEST: usize = 4096;

/// Limit on the datagrams of one client that the kernel returns at once (GRO).
const AT_ONCE: usize = 64 * 1024;

/// Limit on the length of an answer to another machine, as a multiple of its query: the sender of a datagram may be forged,
/// and the answer then reaches a third party. The limit is QUIC's (RFC 9000 section 8).
const AMPLIFICATION: usize = 3;

/// Binds a UDP socket to be served.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let socket = kubevpn_dns::bind_udp("127.0.0.1:0".parse().unwrap())?;
/// assert_ne!(socket.local_addr()?.port(), 0);
/// # Ok(())
/// # }
/// ```
pub fn bind_udp(addr: SocketAddr) -> io::Result<UdpSocket> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, None)?;
    // The system may allow less.
    let _ = socket.set_recv_buffer_size(BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    // Serving needs socket options that the system may lack.
    UdpSocketState::new((&socket).into())?;
    UdpSocket::from_std(socket.into())
}

/// A socket that reports the destination address of a datagram, and sends from it: for a socket bound to all addresses the
/// system would choose another one.
struct DatagramSocket {
    io: UdpSocket,
    state: UdpSocketState,
}

impl DatagramSocket {
    fn new(io: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&io).into())?;
        Ok(Self { io, state })
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<RecvMeta> {
        let mut metas = [RecvMeta::default()];
        let receiving = self.io.async_io(Interest::READABLE, || {
            let mut slices = [IoSliceMut::new(buffer)];
            self.state.recv((&self.io).into(), &mut slices, &mut metas)
        });
        receiving.await?;
        Ok(metas[0])
    }

    async fn answer(&self, bytes: &[u8], asked: &RecvMeta) -> io::Result<()> {
        let sending = || self.try_answer(bytes, asked);
        self.io.async_io(Interest::WRITABLE, sending).await
    }

    fn try_answer(&self, contents: &[u8], asked: &RecvMeta) -> io::Result<()> {
        let transmit = Transmit {
            destination: asked.addr,
            ecn: None,
            contents,
            segment_size: None,
            src_ip: asked.dst_ip.filter(is_one_machines),
        };
        self.state.try_send((&self.io).into(), &transmit)
    }
}

/// Not a broadcast or multicast address, from which nothing can be sent.
fn is_one_machines(ip: &IpAddr) -> bool {
    let ip = ip.to_canonical();
    !ip.is_multicast() && ip != Ipv4Addr::BROADCAST
}

/// Limit on an answer to a query of `length` bytes, if its client accepts `takes`.
fn limit(settings: &Settings, asked: &RecvMeta, length: usize, takes: usize) -> usize {
    let peer = asked.addr.ip().to_canonical();
    let is_here = settings.local_clients
        || peer.is_loopback()
        || asked.dst_ip.is_some_and(|ip| ip.to_canonical() == peer);
    if is_here {
        takes
    } else {
        takes.min(AMPLIFICATION * length)
    }
}

/// Answers queries until the drain stops it, each in a task of the drain. A query beyond the limits of the settings is
/// dropped, as if the network had lost it.
///
/// An answer is sent from the address that was asked. For a client on another machine it is at most three times as long as
/// its query, because the sender's address may be forged; a longer answer is marked as truncated, and the client asks again
/// over TCP.
///
/// A receive error never ends it; it waits longer with each error in a row.
///
/// ```no_run
/// use hickory_proto::op::{Message, OpCode, Query};
/// use kubevpn_conn::Drain;
/// use kubevpn_dns::{Settings, bind_udp, serve_udp};
///
/// # async fn run() -> std::io::Result<()> {
/// let nothing = tower::service_fn(|_: Query| async {
///     Ok::<_, std::io::Error>(Message::response(0, OpCode::Query))
/// });
/// let socket = bind_udp("127.0.0.1:5353".parse().unwrap())?;
/// serve_udp(socket, nothing, Settings::default(), Drain::new()).await;
/// # Ok(())
/// # }
/// ```
pub async fn serve_udp<S>(socket: UdpSocket, service: S, settings: Settings, drain: Drain)
where
    S: AnswerQueries + Clone + Sync + 'static,
{
    let socket = match DatagramSocket::new(socket) {
        Ok(socket) => Arc::new(socket),
        Err(error) => {
            tracing::warn!(%error, "cannot answer questions by UDP");
            return;
        }
    };
    let settings = Arc::new(settings);
    let busy = Arc::new(BusyClients::default());
    let mut buffer = vec![0; AT_ONCE];
    let mut patience = Backoff::default();
    loop {
        let receiving = async {
            loop {
                match socket.receive(&mut buffer).await {
                    Ok(asked) => return asked,
                    Err(error) => {
                        patience
                            .wait(&error, "cannot receive questions for now")
                            .await
                    }
                }
            }
        };
        let asked = tokio::select! {
            biased;
            () = drain.stopping() => return,
            asked = receiving => asked,
        };
        patience = Backoff::default();
        for message in buffer[..asked.len].chunks(asked.stride.max(1)) {
            let request = match read(message) {
                _ if message.len() > LONGEST => continue,
                ParsedMessage::Question(request) => request,
                ParsedMessage::Wrong(answer) => {
                    // Sending does not wait: the next query matters more.
                    let limit = limit(&settings, &asked, message.len(), PLAIN);
                    let _ = socket.try_answer(&encode(&answer, limit), &asked);
                    continue;
                }
                ParsedMessage::Noise => continue,
            };
            let peer = asked.addr;
            let Some(place) = busy.enter(peer.ip(), &settings) else {
                tracing::debug!(client.addr = %peer, "as many questions are open as the limit allows");
                continue;
            };
            let limit = limit(&settings, &asked, message.len(), request.udp_limit());
            let (socket, settings, service) = (socket.clone(), settings.clone(), service.clone());
            drain.spawn(async move {
                let answer = ask(&request, service, &settings).await;
                if let Err(error) = socket.answer(&encode(&answer, limit), &asked).await {
                    tracing::debug!(client.addr = %peer, %error, "the answer was not sent");
                }
                drop(place);
            });
        }
    }
}

const PLAIN: usize = crate::reply::PLAIN_UDP as usize;

/// Queries being answered, by client.
#[derive(Debug, Default)]
struct BusyClients(Mutex<InFlight>);

#[derive(Debug, Default)]
struct InFlight {
    total: usize,
    clients: HashMap<IpAddr, usize>,
}

struct QueryPermit {
    busy: Arc<BusyClients>,
    ip: IpAddr,
}

impl BusyClients {
    fn enter(self: &Arc<Self>, ip: IpAddr, settings: &Settings) -> Option<QueryPermit> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_client = open.clients.get(&ip).copied().unwrap_or_default();
        if open.total >= settings.in_flight || of_client >= settings.in_flight_per_client {
            return None;
        }
        open.total += 1;
        *open.clients.entry(ip).or_default() += 1;
        Some(QueryPermit {
            busy: self.clone(),
            ip,
        })
    }
}

impl Drop for QueryPermit {
    fn drop(&mut self) {
        let mut open = self.busy.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.total -= 1;
        if let Entry::Occupied(mut client) = open.clients.entry(self.ip) {
            *client.get_mut() -= 1;
            if *client.get() == 0 {
                client.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sender of a datagram may be forged, but not as an address of this machine.
    #[test]
    fn other_machines_get_no_more_than_three_times_what_they_sent() {
        let asked = |peer: &str, at: &str| {
            let mut meta = RecvMeta::default();
            meta.addr = peer.parse().unwrap();
            meta.dst_ip = Some(at.parse().unwrap());
            limit(&Settings::default(), &meta, 40, 1232)
        };
        assert_eq!(asked("192.0.2.7:53", "192.0.2.1"), 120);
        assert_eq!(asked("[2001:db8::7]:53", "2001:db8::1"), 120);
        assert_eq!(asked("[::ffff:192.0.2.7]:53", "::ffff:192.0.2.1"), 120);
        assert_eq!(asked("127.0.0.1:53", "127.0.0.2"), 1232);
        assert_eq!(asked("192.0.2.1:53", "192.0.2.1"), 1232);
        assert_eq!(asked("[::ffff:127.0.0.1]:53", "::ffff:127.0.0.1"), 1232);
        let unknown = RecvMeta::default();
        assert_eq!(limit(&Settings::default(), &unknown, 40, 1232), 120);
        let local = Settings {
            local_clients: true,
            ..Settings::default()
        };
        assert_eq!(limit(&local, &unknown, 40, 1232), 1232);
    }

    #[test]
    fn each_client_and_all_together_are_bounded() {
        let settings = Settings {
            in_flight: 3,
            in_flight_per_client: 2,
            ..Settings::default()
        };
        let busy = Arc::new(BusyClients::default());
        let [a, b, c] = [1, 2, 3].map(|n| IpAddr::from([10, 0, 0, n]));
        let first = busy.enter(a, &settings);
        let held = [busy.enter(a, &settings), busy.enter(b, &settings)];
        assert!(first.is_some() && held.iter().all(Option::is_some));
        assert!(busy.enter(a, &settings).is_none(), "one client's share");
        assert!(busy.enter(c, &settings).is_none(), "all places");
        drop(first);
        assert!(busy.enter(c, &settings).is_some());
        drop(held);
        let open = busy.0.lock().unwrap();
        assert_eq!((open.total, open.clients.len()), (0, 0));
    }
}
