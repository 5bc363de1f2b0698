//! Whether the program at the other end of a connection of this machine has closed its socket.
//!
//! TCP does not show it: a program that closes and one that ends its writing send the same FIN. The kernel knows. After the
//! FIN the other socket stays in its tables, with an inode while a program holds it and without one afterwards. `sock_diag`
//! returns that for one pair of addresses without listing other sockets (`sock_diag(7)`), for the network namespace in which
//! the querying socket was made.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use netlink_packet_core::{
    NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, Parseable as _,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DIAG_BY_FAMILY};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::Closed;

/// An answer is one message of 72 bytes and a few attributes.
const LONGEST: usize = 4096;
/// States of a socket that has sent its FIN and has not had ours (`include/net/tcp_states.h`).
const ENDED: [u8; 2] = [4, 5];

/// The socket for queries; `None` if the kernel does not answer.
static KERNEL: OnceLock<Option<Mutex<Kernel>>> = OnceLock::new();

/// Opens the socket for queries, unless it is open, and tests it with a listening socket of ours. May take a moment: the
/// kernel loads a module for it.
pub(crate) fn prepare(listener: SocketAddr) {
    KERNEL.get_or_init(|| {
        let any = SocketAddr::new(unspecified(listener.ip()), 0);
        let tried = Kernel::open().and_then(|mut kernel| match kernel.ask(listener, any)? {
            Some(SocketEntry { inode: 1.., .. }) => Ok(kernel),
            _ => Err(io::ErrorKind::NotFound.into()),
        });
        tried
            .inspect_err(|error| {
                tracing::debug!(%error, "the kernel does not report whether clients have closed");
            })
            .ok()
            .map(Mutex::new)
    });
}

/// Whether the program that holds the socket at `peer`, connected to ours at `local`, has closed it. `None` if that is
/// unknown: it is on another machine, in another network namespace, or has not ended its stream.
pub(crate) fn closed(local: SocketAddr, peer: SocketAddr) -> Option<bool> {
    let (local, peer) = (canonical(local), canonical(peer));
    if !peer.ip().is_loopback() && peer.ip() != local.ip() {
        return None;
    }
    let kernel = KERNEL.get()?.as_ref()?;
    kernel
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .closed(peer, local)
}

impl Closed {
    /// Uses this non-blocking `NETLINK_SOCK_DIAG` socket, for the network namespace in which it was made.
    pub fn asked_by(socket: OwnedFd) -> Self {
        let kernel = Mutex::new(Kernel::of(socket));
        Self::new(Arc::new(move |client, to| {
            let mut kernel = kernel.lock().unwrap_or_else(PoisonError::into_inner);
            kernel.closed(canonical(client), canonical(to))
        }))
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    }
}

struct SocketEntry {
    state: u8,
    inode: u32,
}

struct Kernel {
    socket: OwnedFd,
    asked: u32,
    /// The buffer of the query, then of the answer.
    buffer: Vec<u8>,
}

impl Kernel {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        Ok(Self::of(socket.as_fd().try_clone_to_owned()?))
    }

    fn of(socket: OwnedFd) -> Self {
        Self {
            socket,
            asked: 0,
            buffer: Vec::with_capacity(LONGEST),
        }
    }

    fn closed(&mut self, client: SocketAddr, to: SocketAddr) -> Option<bool> {
        let found = self.ask(client, to).ok()??;
        ENDED.contains(&found.state).then_some(found.inode == 0)
    }

    /// Looks up the TCP socket that is bound to `at` and connected to `to`. The kernel has answered when the send returns,
    /// so nothing blocks.
    fn ask(&mut self, at: SocketAddr, to: SocketAddr) -> io::Result<Option<SocketEntry>> {
        self.asked = self.asked.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        header.sequence_number = self.asked;
        let request = InetRequest {
            family: if at.is_ipv4() { AF_INET } else { AF_INET6 },
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: SocketId {
                source_port: at.port(),
                destination_port: to.port(),
                source_address: at.ip(),
                destination_address: to.ip(),
                interface_id: 0,
                // Any.
                cookie: [0xff; 8],
            },
        };
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let bytes = &mut self.buffer;
        bytes.clear();
        bytes.resize(message.buffer_len(), 0);
        message.serialize(bytes);
        send(&self.socket, bytes, SendFlags::empty())?;
        loop {
            bytes.resize(LONGEST, 0);
            let (received, _) = recv(&self.socket, bytes.as_mut_slice(), RecvFlags::empty())?;
            bytes.truncate(received);
            let answer = NetlinkBuffer::new_checked(&*bytes).map_err(io::Error::other)?;
            if answer.sequence_number() != self.asked {
                continue;
            }
            // The attributes after the header are not parsed.
            if answer.message_type() == SOCK_DIAG_BY_FAMILY {
                let found = InetResponseHeader::parse(answer.payload());
                let found = found.map_err(io::Error::other)?;
                return Ok(Some(SocketEntry {
                    state: found.state,
                    inode: found.inode,
                }));
            }
            let answer = NetlinkMessage::<SockDiagMessage>::deserialize(bytes);
            return match answer.map_err(io::Error::other)?.payload {
                NetlinkPayload::Error(error) => match error.to_io() {
                    error if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    error => Err(error),
                },
                _ => Err(io::ErrorKind::InvalidData.into()),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    use super::*;

    /// A client and our end of its connection, after `prepare` was called.
    async fn pair(listen: &str, connect: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(listen).await.unwrap();
        let addr = listener.local_addr().unwrap();
        prepare(addr);
        let mut to: SocketAddr = connect.parse().unwrap();
        to.set_port(addr.port());
        let client = TcpStream::connect(to).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    fn told(ours: &TcpStream) -> Option<bool> {
        closed(ours.local_addr().unwrap(), ours.peer_addr().unwrap())
    }

    const FAMILIES: [(&str, &str); 3] = [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("[::1]:0", "[::1]:0"),
        // An IPv4 client of a dual-stack listener.
        ("[::]:0", "127.0.0.1:0"),
    ];

    #[tokio::test]
    async fn closed_and_half_closed_clients_are_distinguished() {
        for (listen, connect) in FAMILIES {
            let (mut client, mut ours) = pair(listen, connect).await;
            assert_eq!(told(&ours), None, "{connect}: it has ended nothing");
            client.shutdown().await.unwrap();
            assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
            assert_eq!(told(&ours), Some(false), "{connect}: half-closed");
            ours.write_all(b"answer").await.unwrap();
            client.read_exact(&mut [0; 6]).await.unwrap();
            assert_eq!(told(&ours), Some(false), "{connect}: still there");
            drop(client);
            assert_eq!(told(&ours), Some(true), "{connect}: closed");
        }
    }

    #[tokio::test]
    async fn a_socket_that_another_program_holds_too_is_not_closed() {
        let (client, mut ours) = pair("127.0.0.1:0", "127.0.0.1:0").await;
        let client = client.into_std().unwrap();
        let other = client.try_clone().unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        drop(client);
        assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(told(&ours), Some(false));
        drop(other);
        assert_eq!(told(&ours), Some(true));
    }

    #[tokio::test]
    async fn remote_and_ended_clients_are_unknown() {
        let (client, ours) = pair("127.0.0.1:0", "127.0.0.1:0").await;
        let local = ours.local_addr().unwrap();
        assert_eq!(closed(local, "192.0.2.1:80".parse().unwrap()), None);
        // An unused port, and a listening one.
        let free = TcpSocket::new_v4().unwrap();
        free.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_eq!(closed(local, free.local_addr().unwrap()), None);
        let listener = free.listen(1).unwrap();
        assert_eq!(closed(local, listener.local_addr().unwrap()), None);
        drop(client);
    }
}
