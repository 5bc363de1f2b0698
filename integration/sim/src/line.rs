//! A long line to the API server, in memory: with a paused clock its round trips can be counted.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;

use crate::cluster::SimCluster;
use crate::server;

/// What a connection in memory holds at either end.
const MEMORY: usize = 256 * 1024;
/// Pieces on their way in one direction, and how large one is at most. Far more than a test sends in a round trip.
const PIECES: usize = 4096;
const PIECE: usize = 16 * 1024;

/// How long a piece is on its way onto a line with a bandwidth at most.
const PIECE_TAKES: Duration = Duration::from_millis(2);

/// A line on which each byte is on its way for some time, and nothing else limits what is unless it was made
/// [narrow](Self::narrow). See [`Sim::line`](crate::Sim::line).
#[derive(Clone, Debug)]
pub struct Line(Arc<LineEnds>);

struct LineEnds {
    cluster: Arc<SimCluster>,
    tls: Option<TlsAcceptor>,
    each_way: Duration,
    dialled: AtomicUsize,
    /// Nothing arrives before.
    stalled: Mutex<Option<Instant>>,
    /// Bytes a second each way; without limit where it is 0.
    bandwidth: AtomicU64,
    up: LineDirection,
    down: LineDirection,
}

/// One direction.
struct LineDirection {
    carried: AtomicU64,
    /// Until when a narrow one is taken. Who waits longest has it next.
    free: tokio::sync::Mutex<Instant>,
}

impl LineDirection {
    fn new() -> Self {
        Self {
            carried: AtomicU64::new(0),
            free: tokio::sync::Mutex::new(Instant::now()),
        }
    }
}

impl std::fmt::Debug for LineEnds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ends")
            .field("each_way", &self.each_way)
            .finish_non_exhaustive()
    }
}

impl Line {
    pub(crate) fn new(
        cluster: Arc<SimCluster>,
        tls: Option<TlsAcceptor>,
        each_way: Duration,
    ) -> Self {
        Self(Arc::new(LineEnds {
            cluster,
            tls,
            each_way,
            dialled: AtomicUsize::new(0),
            stalled: Mutex::default(),
            bandwidth: AtomicU64::new(0),
            up: LineDirection::new(),
            down: LineDirection::new(),
        }))
    }

    /// Lets no more than so many bytes a second pass each way, of all connections together: a piece of one after a piece
    /// of the next, as with fair queueing.
    pub fn narrow(&self, bandwidth: u64) {
        self.0.bandwidth.store(bandwidth, Ordering::Relaxed);
    }

    /// Lets nothing arrive for this long, and then all at once: what a lost packet does to those behind it.
    pub fn stall(&self, lasts: Duration) {
        let mut stalled = self
            .0
            .stalled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *stalled = Some(Instant::now() + lasts);
    }

    /// One connection to the API server, after a round trip: that of a TCP handshake. With TLS unless the simulation was
    /// built [without](crate::SimBuilder::plain).
    ///
    /// Errors: the API server is away.
    pub async fn dial(&self) -> io::Result<DuplexStream> {
        let LineEnds {
            cluster,
            tls,
            each_way,
            dialled,
            ..
        } = &*self.0;
        dialled.fetch_add(1, Ordering::Relaxed);
        sleep(2 * *each_way).await;
        let (socket, far) = cluster
            .faults
            .links
            .connect()
            .ok_or(io::ErrorKind::ConnectionRefused)?;
        cluster.spawn(server::connection(Arc::clone(cluster), socket, tls.clone()));
        let (theirs, near) = tokio::io::duplex(MEMORY);
        let ((near_read, near_write), (far_read, far_write)) =
            (tokio::io::split(near), tokio::io::split(far));
        let ends = || Arc::clone(&self.0);
        cluster.spawn(carry(near_read, far_write, ends(), |ends| &ends.up));
        cluster.spawn(carry(far_read, near_write, ends(), |ends| &ends.down));
        Ok(theirs)
    }

    /// How many bytes went to the API server so far.
    pub fn carried(&self) -> u64 {
        self.0.up.carried.load(Ordering::Relaxed)
    }

    /// How many connections were asked for so far.
    pub fn dialled(&self) -> usize {
        self.0.dialled.load(Ordering::Relaxed)
    }
}

impl LineEnds {
    fn bandwidth(&self) -> Option<u64> {
        Some(self.bandwidth.load(Ordering::Relaxed)).filter(|b| *b > 0)
    }

    /// How much is read at a time.
    fn piece(&self) -> usize {
        let short = |b: u64| (b as f64 * PIECE_TAKES.as_secs_f64()) as usize;
        self.bandwidth().map_or(PIECE, |b| short(b).clamp(1, PIECE))
    }

    /// Waits until bytes that have come now are on the line.
    async fn leave(&self, bytes: usize, lane: &LineDirection) {
        if let Some(bandwidth) = self.bandwidth() {
            let takes = Duration::from_secs_f64(bytes as f64 / bandwidth as f64);
            let mut free = lane.free.lock().await;
            *free = (*free).max(Instant::now()) + takes;
            sleep_until(*free).await;
        }
        lane.carried.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Carries the bytes of one direction, and their end.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    ends: Arc<LineEnds>,
    lane: fn(&LineEnds) -> &LineDirection,
) {
    let (sent, mut coming) = mpsc::channel::<(Instant, Bytes)>(PIECES);
    let ends = &*ends;
    let leave = async move {
        loop {
            let mut piece = BytesMut::with_capacity(ends.piece());
            // A broken connection ends as one that was closed does.
            let read = from.read_buf(&mut piece).await.unwrap_or_default();
            ends.leave(read, lane(ends)).await;
            let arrives = Instant::now() + ends.each_way;
            if sent.send((arrives, piece.freeze())).await.is_err() || read == 0 {
                return;
            }
        }
    };
    let arrive = async move {
        while let Some((at, piece)) = coming.recv().await {
            sleep_until(at).await;
            let until = *ends.stalled.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(until) = until {
                sleep_until(until).await;
            }
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
