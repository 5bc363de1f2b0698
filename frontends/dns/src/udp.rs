//! Questions in datagrams.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use kubevpn_conn::Drain;
use tokio::net::UdpSocket;

use crate::Settings;
use crate::ask::{Answer, ask};
use crate::reply::encode;
use crate::request::{Read, read};

/// What the kernel holds while we are busy: a burst of a few thousand questions.
const BUFFER: usize = 1024 * 1024;

/// Longer datagrams hold no question.
const LONGEST: usize = 4096;

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
    // As much of it as the system allows.
    let _ = socket.set_recv_buffer_size(BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

/// Answers questions until the drain stops it. Each is answered by a task of the drain; one that is beyond the limits
/// of the settings is dropped, as if the network had.
///
/// An error of the socket never ends it: each is about one datagram.
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
    S: Answer + Clone + Sync + 'static,
{
    let socket = Arc::new(socket);
    let settings = Arc::new(settings);
    let busy = Arc::new(Busy::default());
    let mut buffer = vec![0; LONGEST];
    loop {
        let received = tokio::select! {
            biased;
            () = drain.stopping() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, peer) = match received {
            Ok(received) => received,
            Err(error) => {
                // An earlier answer could not be delivered, as a rule.
                tracing::debug!(%error, "receiving a question");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let request = match read(&buffer[..length]) {
            Read::Question(request) => request,
            Read::Wrong(answer) => {
                // Not waited for: it is worth less than the next question.
                let _ = socket.try_send_to(&encode(&answer, PLAIN), peer);
                continue;
            }
            Read::Noise => continue,
        };
        let Some(place) = busy.enter(peer.ip(), &settings) else {
            tracing::debug!(client.addr = %peer, "as many questions are open as the limit allows");
            continue;
        };
        let (socket, settings, service) = (socket.clone(), settings.clone(), service.clone());
        drain.spawn(async move {
            let answer = ask(&request, service, &settings).await;
            let bytes = encode(&answer, request.udp_limit());
            if let Err(error) = socket.send_to(&bytes, peer).await {
                tracing::debug!(client.addr = %peer, %error, "the answer was not sent");
            }
            drop(place);
        });
    }
}

const PLAIN: usize = crate::reply::PLAIN_UDP as usize;

/// Questions being answered, by client.
#[derive(Debug, Default)]
struct Busy(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    total: usize,
    clients: HashMap<IpAddr, usize>,
}

struct Place {
    busy: Arc<Busy>,
    ip: IpAddr,
}

impl Busy {
    fn enter(self: &Arc<Self>, ip: IpAddr, settings: &Settings) -> Option<Place> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_client = open.clients.get(&ip).copied().unwrap_or_default();
        if open.total >= settings.in_flight || of_client >= settings.in_flight_per_client {
            return None;
        }
        open.total += 1;
        *open.clients.entry(ip).or_default() += 1;
        Some(Place {
            busy: self.clone(),
            ip,
        })
    }
}

impl Drop for Place {
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

    #[test]
    fn each_client_and_all_together_are_bounded() {
        let settings = Settings {
            in_flight: 3,
            in_flight_per_client: 2,
            ..Settings::default()
        };
        let busy = Arc::new(Busy::default());
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
