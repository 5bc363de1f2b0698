//! A long line to a server on this machine: a relay on loopback on which bytes take their time.
//!
//! The kernels that the lab runs on have no netem. So each direction of a connection is a queue here: a piece is stamped
//! when it comes, and passed on when its time is up, however many others are on their way. A connection's first bytes take
//! a round trip more, for the TCP handshake that loopback does at once. Where the line has a bandwidth, all connections
//! share it, each direction by itself, a piece of one after a piece of the next, as with fair queueing (fq_codel); what waits
//! stays with its sender, as the system's own buffers between that and the relay are kept small then.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// What the system holds of a connection before the relay has it, on a line with a bandwidth.
const HELD: u32 = 64 << 10;

/// How long a piece is on its way onto such a line at most, and how late a timer may be without the line standing idle.
const PIECE_TAKES: Duration = Duration::from_millis(2);
const LATE: Duration = Duration::from_millis(5);

const BACKLOG: u32 = 1024;

/// How large a piece is at most, and how many are on their way in one direction of a connection: 64 MiB.
const PIECE: usize = 16 << 10;
const PIECES: usize = 4096;

/// What a [`LineRelay`] is like.
#[derive(Clone, Copy, Debug)]
pub struct Length {
    /// From one end to the other.
    pub each_way: Duration,
    /// Bytes a second, of all connections together; `None` for as many as there are.
    pub bandwidth: Option<u64>,
}

impl Length {
    fn socket(&self, to: SocketAddr) -> io::Result<TcpSocket> {
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if self.bandwidth.is_some() {
            socket.set_recv_buffer_size(HELD)?;
        }
        Ok(socket)
    }

    /// How much is read at a time.
    fn piece(&self) -> usize {
        let short = |b: u64| (b as f64 * PIECE_TAKES.as_secs_f64()) as usize;
        self.bandwidth.map_or(PIECE, |b| short(b).clamp(1, PIECE))
    }
}

/// Reads a round trip: `50ms`.
///
/// Errors: it is none from 2 ms to 2 s.
pub fn round_trip(text: &str) -> Result<Duration, String> {
    let ms = text.strip_suffix("ms").and_then(|ms| ms.parse().ok());
    ms.filter(|ms| (2..=2000).contains(ms))
        .map(Duration::from_millis)
        .ok_or_else(|| "write it as 50ms, from 2ms to 2000ms".into())
}

/// A running relay. Dropping it ends its connections.
#[derive(Debug)]
pub struct LineRelay {
    address: SocketAddr,
    ends: Arc<RelayEnds>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct RelayEnds {
    to: SocketAddr,
    length: Length,
    /// Until when each direction is taken.
    up: LineShare,
    down: LineShare,
    /// Nothing arrives before.
    stalled: Mutex<Instant>,
    resets: watch::Sender<u64>,
    accepted: AtomicU64,
}

/// One direction of a line with a bandwidth. Who waits longest has it next.
type LineShare = tokio::sync::Mutex<Instant>;

impl LineRelay {
    /// Starts a line that leads to this address.
    ///
    /// Errors: no port is to be had.
    pub async fn start(to: SocketAddr, length: Length) -> io::Result<Self> {
        let own = SocketAddr::from(([127, 0, 0, 1], 0));
        let socket = length.socket(own)?;
        socket.bind(own)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        let now = Instant::now();
        let ends = Arc::new(RelayEnds {
            to,
            length,
            up: LineShare::new(now),
            down: LineShare::new(now),
            stalled: Mutex::new(now),
            resets: watch::Sender::new(0),
            accepted: AtomicU64::new(0),
        });
        let task = tokio::spawn(accept(listener, ends.clone()));
        Ok(Self {
            address,
            ends,
            task,
        })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets nothing arrive for this long, and then all at once: what a lost packet does to those behind it.
    pub fn stall(&self, lasts: Duration) {
        *lock(&self.ends.stalled) = Instant::now() + lasts;
    }

    /// Resets every connection.
    pub fn reset(&self) {
        self.ends.resets.send_modify(|n| *n += 1);
    }

    /// How many connections there were so far.
    pub fn accepted(&self) -> u64 {
        self.ends.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for LineRelay {
    fn drop(&mut self) {
        self.task.abort();
        self.reset();
    }
}

async fn accept(listener: TcpListener, ends: Arc<RelayEnds>) {
    while let Ok((client, _)) = listener.accept().await {
        ends.accepted.fetch_add(1, Ordering::Relaxed);
        let resets = ends.resets.subscribe();
        tokio::spawn(pass(client, resets, ends.clone()));
    }
}

/// One connection, to its end.
async fn pass(
    mut client: TcpStream,
    mut resets: watch::Receiver<u64>,
    ends: Arc<RelayEnds>,
) -> io::Result<()> {
    let open = Instant::now() + 2 * ends.length.each_way;
    let mut server = ends.length.socket(ends.to)?.connect(ends.to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let reset = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let up = carry(client_read, server_write, &ends, &ends.up, open);
        let down = carry(server_read, client_write, &ends, &ends.down, open);
        tokio::select! {
            _ = async { tokio::join!(up, down) } => false,
            _ = resets.changed() => true,
        }
    };
    if reset {
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    Ok(())
}

/// One direction of a connection, to its end.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    ends: &RelayEnds,
    lane: &LineShare,
    open: Instant,
) {
    let (sent, mut coming) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let leave = async move {
        loop {
            let mut piece = Vec::with_capacity(ends.length.piece());
            // A broken connection ends as one that was closed does.
            let read = from.read_buf(&mut piece).await.unwrap_or_default();
            let left = ends.leave(read, lane, open).await;
            let arrives = left + ends.length.each_way;
            if sent.send((arrives, piece)).await.is_err() || read == 0 {
                return;
            }
        }
    };
    let arrive = async move {
        while let Some((at, piece)) = coming.recv().await {
            sleep_until(at).await;
            let stalled = *lock(&ends.stalled);
            sleep_until(stalled).await;
            let done = match piece.is_empty() {
                true => to.shutdown().await,
                false => to.write_all(&piece).await,
            };
            if done.is_err() {
                return;
            }
        }
    };
    tokio::join!(leave, arrive);
}

impl RelayEnds {
    /// Waits until bytes that have come now are on the line.
    async fn leave(&self, bytes: usize, lane: &LineShare, open: Instant) -> Instant {
        let Some(bandwidth) = self.length.bandwidth else {
            return Instant::now().max(open);
        };
        sleep_until(open).await;
        let takes = Duration::from_secs_f64(bytes as f64 / bandwidth as f64);
        let mut free = lane.lock().await;
        *free = (*free).max(Instant::now() - LATE) + takes;
        sleep_until(*free).await;
        *free
    }
}

fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that echoes, and a line to it.
    async fn echo(each_way: u64, bandwidth: Option<u64>) -> LineRelay {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut io, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = io.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        let each_way = Duration::from_millis(each_way);
        let length = Length {
            each_way,
            bandwidth,
        };
        LineRelay::start(to, length).await.unwrap()
    }

    async fn there_and_back(io: &mut TcpStream, bytes: usize) -> Duration {
        let begun = Instant::now();
        let (mut read, mut write) = io.split();
        let sent = vec![7; bytes];
        let mut got = vec![0; bytes];
        let (wrote, read) = tokio::join!(write.write_all(&sent), read.read_exact(&mut got));
        wrote.unwrap();
        read.unwrap();
        assert!(got == sent);
        begun.elapsed()
    }

    // Lower bounds alone: how much later it is depends on the machine.
    #[tokio::test]
    async fn bytes_take_their_time_and_the_first_a_round_trip_more() {
        let line = echo(20, None).await;
        let mut io = TcpStream::connect(line.address()).await.unwrap();
        let first = there_and_back(&mut io, 5).await;
        assert!(first >= Duration::from_millis(80), "{first:?}");
        let second = there_and_back(&mut io, 1 << 20).await;
        assert!(second >= Duration::from_millis(40), "{second:?}");
        io.shutdown().await.unwrap();
        assert_eq!(io.read(&mut [0; 8]).await.unwrap(), 0, "the end passes too");
        assert_eq!(line.accepted(), 1);
    }

    #[tokio::test]
    async fn a_bandwidth_is_shared() {
        let line = echo(0, Some(1 << 20)).await;
        let one = async || {
            let mut io = TcpStream::connect(line.address()).await.unwrap();
            there_and_back(&mut io, 256 << 10).await
        };
        let (one, other) = tokio::join!(one(), one());
        let longer = one.max(other);
        assert!(longer >= Duration::from_millis(500), "{longer:?}");
    }

    #[tokio::test]
    async fn it_stalls_and_it_resets() {
        let line = echo(0, None).await;
        let mut io = TcpStream::connect(line.address()).await.unwrap();
        there_and_back(&mut io, 5).await;
        line.stall(Duration::from_millis(60));
        let stalled = there_and_back(&mut io, 5).await;
        assert!(stalled >= Duration::from_millis(60), "{stalled:?}");
        line.reset();
        let error = io.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
