//! A long line to the API server, in memory: with a paused clock its round trips can be counted.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;

use crate::cluster::Cluster;
use crate::server;

/// What a connection in memory holds at either end.
const MEMORY: usize = 256 * 1024;
/// Pieces on their way in one direction, and how large one is at most. Far more than a test sends in a round trip.
const PIECES: usize = 4096;
const PIECE: usize = 16 * 1024;

/// A line on which each byte is on its way for some time, and nothing else limits what is. See
/// [`Sim::line`](crate::Sim::line).
#[derive(Clone, Debug)]
pub struct Line(Arc<Ends>);

struct Ends {
    cluster: Arc<Cluster>,
    tls: Option<TlsAcceptor>,
    each_way: Duration,
    dialled: AtomicUsize,
    /// Nothing arrives before.
    stalled: Arc<Mutex<Option<Instant>>>,
}

impl std::fmt::Debug for Ends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ends")
            .field("each_way", &self.each_way)
            .finish_non_exhaustive()
    }
}

impl Line {
    pub(crate) fn new(cluster: Arc<Cluster>, tls: Option<TlsAcceptor>, each_way: Duration) -> Self {
        Self(Arc::new(Ends {
            cluster,
            tls,
            each_way,
            dialled: AtomicUsize::new(0),
            stalled: Arc::default(),
        }))
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
    /// built [without](crate::Builder::plain).
    ///
    /// Errors: the API server is away.
    pub async fn dial(&self) -> io::Result<DuplexStream> {
        let Ends {
            cluster,
            tls,
            each_way,
            dialled,
            stalled,
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
        let (takes, stalled) = (*each_way, || Arc::clone(stalled));
        cluster.spawn(carry(near_read, far_write, takes, stalled()));
        cluster.spawn(carry(far_read, near_write, takes, stalled()));
        Ok(theirs)
    }

    /// How many connections were asked for so far.
    pub fn dialled(&self) -> usize {
        self.0.dialled.load(Ordering::Relaxed)
    }
}

/// Carries the bytes of one direction, and their end.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    takes: Duration,
    stalled: Arc<Mutex<Option<Instant>>>,
) {
    let (sent, mut coming) = mpsc::channel::<(Instant, Bytes)>(PIECES);
    let leave = async move {
        loop {
            let mut piece = BytesMut::with_capacity(PIECE);
            // A broken connection ends as one that was closed does.
            let read = from.read_buf(&mut piece).await.unwrap_or_default();
            let arrives = Instant::now() + takes;
            if sent.send((arrives, piece.freeze())).await.is_err() || read == 0 {
                return;
            }
        }
    };
    let arrive = async move {
        while let Some((at, piece)) = coming.recv().await {
            sleep_until(at).await;
            let until = *stalled.lock().unwrap_or_else(PoisonError::into_inner);
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
