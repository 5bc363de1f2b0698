//! Listening, and the accept loop.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::UCred;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::OwnedSemaphorePermit;

use crate::{Addr, Backoff, ClientIo, Closed, Drain, Gate, Observed, Observer, Permit};

mod unix;

/// The kernel's queue of connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A bound address to which clients connect.
///
/// ```
/// use std::time::Duration;
/// use kubevpn_conn::{Drain, Gate, Limits, Listener};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let listener = Listener::bind(&"127.0.0.1:0".parse()?).await?;
/// let addr = listener.addr().to_string(); // the real port
/// let (gate, drain) = (Gate::new(Limits::default()), Drain::new());
/// let accepting = tokio::spawn(listener.serve(gate, drain.clone(), |mut client| async move {
///     let _ = client.write_all(b"hello").await;
/// }));
///
/// let mut hello = String::new();
/// tokio::net::TcpStream::connect(addr).await?.read_to_string(&mut hello).await?;
/// assert_eq!(hello, "hello");
/// drain.drain(Duration::from_secs(1)).await;
/// accepting.await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Listener {
    addr: Addr,
    socket: ListenSocket,
    asks: bool,
    closed: Option<Closed>,
    observer: Option<Arc<dyn Observer>>,
}

#[derive(Debug)]
enum ListenSocket {
    Tcp(TcpListener),
    Unix(unix::UnixListenSocket),
}

impl Listener {
    /// Binds and listens. A Unix socket is created for its owner only (mode 0600) and removed on drop. A stale
    /// socket file is replaced; any other file at the path is left alone and is an error.
    pub async fn bind(addr: &Addr) -> Result<Self, BindError> {
        let failed = |source| BindError {
            addr: addr.clone(),
            source,
        };
        let (addr, socket) = match addr {
            Addr::Tcp(at) => {
                let listener = bind_tcp(*at).map_err(failed)?;
                let real = listener.local_addr().map_err(failed)?;
                #[cfg(target_os = "linux")]
                let _ = tokio::task::spawn_blocking(move || crate::peer::prepare(real)).await;
                (Addr::Tcp(real), ListenSocket::Tcp(listener))
            }
            Addr::Unix(path) => {
                let socket = unix::UnixListenSocket::bind(path).await.map_err(failed)?;
                (addr.clone(), ListenSocket::Unix(socket))
            }
        };
        Ok(Self {
            addr,
            socket,
            asks: false,
            closed: None,
            observer: None,
        })
    }

    /// Uses a socket that listens already: from a service manager, or from another network namespace.
    pub fn of(listener: TcpListener) -> io::Result<Self> {
        Ok(Self {
            addr: Addr::Tcp(listener.local_addr()?),
            socket: ListenSocket::Tcp(listener),
            asks: false,
            closed: None,
            observer: None,
        })
    }

    /// The listen address, with the real port.
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// Declares that clients have to authenticate. The number of unauthenticated clients from other machines
    /// ([`ClientIo::authenticated`]) is then limited to an eighth of the gate's total, and at least 64; beyond it a new one is
    /// closed.
    pub fn asks_for_password(mut self) -> Self {
        self.asks = true;
        self
    }

    /// Uses `closed` to ask whether clients have closed, for a socket in another network namespace.
    pub fn asks_whether_closed(mut self, closed: Closed) -> Self {
        self.closed = Some(closed);
        self
    }

    /// Reports its connections to this observer ([`ClientIo::observed`]).
    pub fn observed(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Accepts clients and runs `connection` on each in `drain`, until the drain stops it; then closes.
    ///
    /// A client for which the gate has no permit waits; one beyond its own limit is closed. An error of accept
    /// never ends the loop: if the system is out of descriptors or memory, the loop waits and tries again.
    pub async fn serve<F, Fut>(mut self, gate: Gate, drain: Drain, connection: F)
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let closed = self.closed.take();
        let connection = |mut client: Client| {
            client.closed.clone_from(&closed);
            connection(client)
        };
        accept_loop(&mut self, &gate, &drain, connection).await;
    }
}

fn bind_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Lets a restarted program bind its port at once.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG as u32)
}

/// An address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}")]
pub struct BindError {
    /// The address.
    pub addr: Addr,
    /// The system's error; its kind is `AddrInUse` if another program listens there.
    #[source]
    pub source: io::Error,
}

// === the accept loop ===

trait Accept {
    async fn accept(&mut self) -> io::Result<(ClientSocket, Option<SocketAddr>)>;

    /// Whether a client with this address has to authenticate and is on another machine.
    fn is_stranger(&self, peer: Option<SocketAddr>) -> bool;

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        None
    }
}

impl Accept for Listener {
    async fn accept(&mut self) -> io::Result<(ClientSocket, Option<SocketAddr>)> {
        match &self.socket {
            ListenSocket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((ClientSocket::Tcp(stream), Some(peer)))
            }
            ListenSocket::Unix(listener) => {
                Ok((ClientSocket::Unix(listener.accept().await?), None))
            }
        }
    }

    fn is_stranger(&self, peer: Option<SocketAddr>) -> bool {
        self.asks && peer.is_some_and(|peer| !is_local(peer))
    }

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        self.observer.clone()
    }
}

fn is_local(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

async fn accept_loop<A, F, Fut>(listener: &mut A, gate: &Gate, drain: &Drain, connection: F)
where
    A: Accept,
    F: Fn(Client) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut patience = Backoff::default();
    let accepting = async {
        loop {
            let (io, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    let sentence = "cannot accept connections for now; if this lasts, raise the limit on open files (ulimit -n)";
                    patience.wait(&error, sentence).await;
                    continue;
                }
            };
            patience = Backoff::default();
            let mut client = Client::new(io, peer);
            if listener.is_stranger(client.peer) {
                client.stranger = gate.stranger();
                if client.stranger.is_none() {
                    continue;
                }
            }
            // While this waits, further clients stay in the kernel's queue.
            if let Some(permit) = gate.enter(client.peer.map(|addr| addr.ip())).await {
                client.permit = Some(permit);
                client.drain = Some(drain.clone());
                match listener.observer() {
                    None => drain.spawn(connection(client)),
                    Some(observer) => {
                        let cut = drain.cut_of_one();
                        let process = client.process();
                        client.observed = Some(Observed::new(observer, cut.clone(), process));
                        drain.spawn_until(cut, connection(client));
                    }
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = drain.stopping() => {}
        () = accepting => {}
    }
}

// === impl Client ===

/// An accepted connection. Holds its permit until it is dropped or [released](ClientIo::release).
#[derive(Debug)]
pub struct Client {
    io: ClientSocket,
    peer: Option<SocketAddr>,
    permit: Option<Permit>,
    closed: Option<Closed>,
    /// Held until the client is authenticated.
    stranger: Option<OwnedSemaphorePermit>,
    drain: Option<Drain>,
    observed: Option<Observed>,
}

#[derive(Debug)]
enum ClientSocket {
    Tcp(TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Client {
    fn new(io: ClientSocket, peer: Option<SocketAddr>) -> Self {
        if let ClientSocket::Tcp(stream) = &io {
            tune(stream, peer);
        }
        Self {
            io,
            peer,
            permit: None,
            closed: None,
            stranger: None,
            drain: None,
            observed: None,
        }
    }

    /// The client's process, if the socket reports it.
    fn process(&self) -> Option<u32> {
        u32::try_from(self.credentials()?.pid()?).ok()
    }

    /// The client's user, if the socket reports it (a Unix socket).
    pub fn uid(&self) -> Option<u32> {
        Some(self.credentials()?.uid())
    }

    fn credentials(&self) -> Option<UCred> {
        match &self.io {
            ClientSocket::Unix(stream) => stream.peer_cred().ok(),
            ClientSocket::Tcp(_) => None,
        }
    }
}

/// Sets socket options: no delay, and, for a client on another machine, keep-alive probes that detect a
/// vanished machine in about two minutes.
fn tune(stream: &TcpStream, peer: Option<SocketAddr>) {
    // Each fails only on a connection that has ended, which the next read reports.
    let _ = stream.set_nodelay(true);
    if !peer.is_some_and(is_local) {
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(15));
        let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive);
    }
}

impl From<TcpStream> for Client {
    /// A connection accepted elsewhere, without a permit.
    fn from(stream: TcpStream) -> Self {
        let peer = stream.peer_addr().ok();
        Self::new(ClientSocket::Tcp(stream), peer)
    }
}

macro_rules! each {
    ($inner:expr, $io:ident => $do:expr) => {
        match $inner {
            ClientSocket::Tcp($io) => $do,
            ClientSocket::Unix($io) => $do,
        }
    };
}

impl AsyncRead for Client {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(&mut self.get_mut().io, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(&mut self.get_mut().io, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut self.get_mut().io, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut self.get_mut().io, io => Pin::new(io).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(&mut self.get_mut().io, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl ClientIo for Client {
    fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    fn broken(&self) -> Option<io::Error> {
        each!(&self.io, io => io.broken())
    }

    fn closed(&self) -> Option<bool> {
        if let (Some(closed), ClientSocket::Tcp(stream)) = (&self.closed, &self.io) {
            let to = stream.original_destination();
            return closed.ask(self.peer?, to.or_else(|| stream.local_addr().ok())?);
        }
        match &self.io {
            #[cfg(target_os = "linux")]
            ClientSocket::Tcp(stream) => crate::peer::closed(stream.local_addr().ok()?, self.peer?),
            #[cfg(not(target_os = "linux"))]
            ClientSocket::Tcp(stream) => stream.closed(),
            ClientSocket::Unix(stream) => stream.closed(),
        }
    }

    fn original_destination(&self) -> Option<SocketAddr> {
        each!(&self.io, io => io.original_destination())
    }

    fn reset_on_drop(&mut self) {
        each!(&mut self.io, io => io.reset_on_drop());
    }

    fn close_on_drop(&mut self) {
        each!(&mut self.io, io => io.close_on_drop());
    }

    fn drain(&self) -> Drain {
        self.drain.clone().unwrap_or_default()
    }

    fn release(&mut self) {
        self.permit = None;
    }

    fn authenticated(&mut self) {
        self.stranger = None;
    }

    fn observed(&self) -> Option<Observed> {
        self.observed.clone()
    }
}

#[cfg(test)]
mod tests;
