//! The sockets: a listener that can go away and come back, and connections that can be reset or fall silent.
//!
//! All of it takes effect before the call returns: who asks for a reset and then dials gets a new connection.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio_util::either::Either;

/// Connections at once; more are closed as they come.
const MOST: usize = 4096;
const BACKLOG: u32 = 1024;
/// What a connection in memory holds each way.
const MEMORY: usize = 256 * 1024;

/// The listener and every connection it took.
#[derive(Debug)]
pub(crate) struct Links {
    address: SocketAddr,
    runtime: Handle,
    /// Holds the port while nothing listens on it.
    _reserved: TcpSocket,
    state: Mutex<LinkState>,
}

#[derive(Debug, Default)]
struct LinkState {
    listener: Option<TcpListener>,
    accepting: Option<Waker>,
    links: BTreeMap<u64, Link>,
    next: u64,
    silent: bool,
    closed: bool,
}

/// A handle on one connection; its other half is the [`SimSocket`].
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) id: u64,
    wire: Arc<Mutex<Wire>>,
}

#[derive(Debug, Default)]
struct Wire {
    io: Option<LinkIo>,
    silent: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// A socket, or a connection in memory.
type LinkIo = Either<TcpStream, DuplexStream>;

/// A connection's bytes.
#[derive(Debug)]
pub(crate) struct SimSocket {
    link: Link,
    links: Arc<Links>,
}

impl Links {
    /// Listens on a loopback port of the system's choice. Must be called in a tokio runtime.
    pub(crate) fn listen() -> io::Result<Self> {
        let reserved = socket()?;
        reserved.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let links = Self {
            address: reserved.local_addr()?,
            runtime: Handle::current(),
            _reserved: reserved,
            state: Mutex::default(),
        };
        links.come_back()?;
        Ok(links)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection; `None` once closed.
    pub(crate) async fn accept(self: &Arc<Self>) -> Option<SimSocket> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Option<SimSocket>> {
        let mut state = self.state();
        loop {
            if state.closed {
                return Poll::Ready(None);
            }
            let Some(listener) = &state.listener else {
                state.accepting = Some(cx.waker().clone());
                return Poll::Pending;
            };
            let Poll::Ready(taken) = listener.poll_accept(cx) else {
                state.accepting = Some(cx.waker().clone());
                return Poll::Pending;
            };
            // An error is that of one connection that went away while it waited.
            let Ok((tcp, _)) = taken else { continue };
            if state.links.len() >= MOST || tcp.set_nodelay(true).is_err() {
                continue;
            }
            return Poll::Ready(Some(self.add(&mut state, Either::Left(tcp))));
        }
    }

    /// Takes a connection in memory; `None` while nothing listens.
    pub(crate) fn connect(self: &Arc<Self>) -> Option<(SimSocket, DuplexStream)> {
        let mut state = self.state();
        state.listener.as_ref()?;
        let (ours, theirs) = tokio::io::duplex(MEMORY);
        Some((self.add(&mut state, Either::Right(ours)), theirs))
    }

    fn add(self: &Arc<Self>, state: &mut LinkState, io: LinkIo) -> SimSocket {
        state.next += 1;
        let wire = Wire {
            io: Some(io),
            silent: state.silent,
            ..Wire::default()
        };
        let link = Link {
            id: state.next,
            wire: Arc::new(Mutex::new(wire)),
        };
        state.links.insert(link.id, link.clone());
        SimSocket {
            link,
            links: Arc::clone(self),
        }
    }

    /// Stops listening: connections are refused.
    pub(crate) fn go_away(&self) {
        self.state().listener = None;
    }

    /// Listens again, on the same port.
    pub(crate) fn come_back(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.listener.is_some() || state.closed {
            return Ok(());
        }
        let _runtime = self.runtime.enter();
        let socket = socket()?;
        socket.bind(self.address)?;
        state.listener = Some(socket.listen(BACKLOG)?);
        if let Some(waker) = state.accepting.take() {
            waker.wake();
        }
        Ok(())
    }

    /// Resets every connection and says how many there were.
    pub(crate) fn reset_all(&self) -> usize {
        let links: Vec<Link> = self.state().links.values().cloned().collect();
        links.iter().filter(|l| l.reset()).count()
    }

    /// Lets no byte pass, or lets them pass again.
    pub(crate) fn set_silent(&self, silent: bool, to_come: bool) {
        let mut state = self.state();
        if to_come {
            state.silent = silent;
        }
        for link in state.links.values() {
            link.set_silent(silent);
        }
    }

    /// The open connections.
    pub(crate) fn count(&self) -> usize {
        let state = self.state();
        state.links.values().filter(|l| l.is_open()).count()
    }

    /// Ends the listener and all connections for good.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.listener = None;
        if let Some(waker) = state.accepting.take() {
            waker.wake();
        }
        drop(state);
        self.reset_all();
    }

    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A second socket on the same port is what keeps the port ours while nothing listens on it.
fn socket() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    Ok(socket)
}

impl Link {
    /// Ends the connection with a reset (RST); whether it was open.
    pub(crate) fn reset(&self) -> bool {
        let mut wire = self.wire();
        let Some(io) = wire.io.take() else {
            return false;
        };
        if let Either::Left(tcp) = &io {
            // Without it the close is a plain one, which ends the connection as well.
            let _ = tcp.set_zero_linger();
        }
        drop(io);
        wire.wake();
        true
    }

    pub(crate) fn is_open(&self) -> bool {
        self.wire().io.is_some()
    }

    pub(crate) fn set_silent(&self, silent: bool) {
        let mut wire = self.wire();
        wire.silent = silent;
        wire.wake();
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }

    /// The socket, unless it is to be silent.
    fn reading(&mut self, cx: &Context<'_>) -> Poll<io::Result<Pin<&mut LinkIo>>> {
        self.reader = Some(cx.waker().clone());
        self.open()
    }

    fn writing(&mut self, cx: &Context<'_>) -> Poll<io::Result<Pin<&mut LinkIo>>> {
        self.writer = Some(cx.waker().clone());
        self.open()
    }

    fn open(&mut self) -> Poll<io::Result<Pin<&mut LinkIo>>> {
        match &mut self.io {
            None => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Some(_) if self.silent => Poll::Pending,
            Some(io) => Poll::Ready(Ok(Pin::new(io))),
        }
    }
}

impl SimSocket {
    pub(crate) fn link(&self) -> Link {
        self.link.clone()
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        self.links.state().links.remove(&self.link.id);
        self.link.wire().io = None;
    }
}

impl AsyncRead for SimSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut wire = self.link.wire();
        ready!(wire.reading(cx))?.poll_read(cx, buf)
    }
}

impl AsyncWrite for SimSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut wire = self.link.wire();
        ready!(wire.writing(cx))?.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.link.wire();
        ready!(wire.writing(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.link.wire();
        ready!(wire.writing(cx))?.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut wire = self.link.wire();
        ready!(wire.writing(cx))?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
