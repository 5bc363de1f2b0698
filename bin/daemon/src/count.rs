//! What goes through a connection, counted where targets are dialled.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use jiff::Timestamp;
use kubevpn_target::{Connect, ConnectError, Refusal, Stream, Target, Via};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;
use tower::Service;

use crate::api::{Refused, Traffic};

/// How many refusals are remembered.
const REFUSALS: usize = 10;

/// Counts of a [`Counted`].
#[derive(Debug, Default)]
pub struct Counts {
    open: AtomicU64,
    total: AtomicU64,
    refused: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    last: Mutex<VecDeque<Refused>>,
    dials: Mutex<Dials>,
    /// A refusal that tells of the connection, not of its target.
    pub(crate) trouble: Notify,
}

/// Targets that are being dialled, and since when; keys grow.
#[derive(Debug, Default)]
struct Dials {
    next: u64,
    pending: BTreeMap<u64, (Target, Instant)>,
}

impl Counts {
    /// So far.
    pub fn traffic(&self) -> Traffic {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Traffic {
            open_connections: get(&self.open),
            total_connections: get(&self.total),
            refused_connections: get(&self.refused),
            bytes_up: get(&self.up),
            bytes_down: get(&self.down),
        }
    }

    /// The last ones, newest first.
    pub fn refusals(&self) -> Vec<Refused> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.iter().rev().cloned().collect()
    }

    /// The target that has been dialled for longest, without an outcome yet, and since when.
    pub fn longest_dial(&self) -> Option<(Target, Instant)> {
        let dials = self.dials();
        let (_, longest) = dials.pending.first_key_value()?;
        Some(longest.clone())
    }

    fn dials(&self) -> MutexGuard<'_, Dials> {
        self.dials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dial(&self, target: Target) -> Dial<'_> {
        let mut dials = self.dials();
        let key = dials.next;
        dials.next += 1;
        dials.pending.insert(key, (target, Instant::now()));
        Dial { counts: self, key }
    }

    fn refuse(&self, target: &Target, error: &ConnectError) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if matches!(
            error.refusal(),
            Refusal::ClusterAway | Refusal::Unauthenticated
        ) {
            self.trouble.notify_one();
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == REFUSALS {
            last.pop_front();
        }
        last.push_back(Refused {
            time: Timestamp::now().to_string(),
            target: target.to_string(),
            class: error.refusal().as_str().into(),
            sentence: error.to_string(),
        });
    }
}

/// One dial, until it is dropped: a client may give up.
struct Dial<'a> {
    counts: &'a Counts,
    key: u64,
}

impl Drop for Dial<'_> {
    fn drop(&mut self) {
        self.counts.dials().pending.remove(&self.key);
    }
}

/// Dials as `C` does, and counts.
#[derive(Clone, Debug)]
pub struct Counted<C> {
    inner: C,
    counts: Arc<Counts>,
}

impl<C> Counted<C> {
    /// Counts into `counts`, which others may share.
    pub fn new(inner: C, counts: Arc<Counts>) -> Self {
        Self { inner, counts }
    }

    /// Without the counting.
    pub(crate) fn inner(&self) -> &C {
        &self.inner
    }
}

impl<C: Connect + Clone + 'static> Service<Target> for Counted<C> {
    type Response = CountedStream<C::Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    /// `connect` waits for the inner service.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Target) -> Self::Future {
        let Self { inner, counts } = self.clone();
        Box::pin(async move {
            let dial = counts.dial(target.clone());
            let stream = inner.connect(target.clone()).await;
            drop(dial);
            let stream = stream.inspect_err(|error| counts.refuse(&target, error))?;
            counts.total.fetch_add(1, Ordering::Relaxed);
            counts.open.fetch_add(1, Ordering::Relaxed);
            Ok(CountedStream { stream, counts })
        })
    }
}

/// A stream whose bytes are counted.
pub struct CountedStream<S> {
    stream: S,
    counts: Arc<Counts>,
}

impl<S> Drop for CountedStream<S> {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S: Stream> Stream for CountedStream<S> {
    fn via(&self) -> Via {
        self.stream.via()
    }

    fn no_reader(&mut self) {
        self.stream.no_reader();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CountedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let n = (buf.filled().len() - before) as u64;
        self.counts.down.fetch_add(n, Ordering::Relaxed);
        read
    }
}

impl<S: AsyncWrite + Unpin> CountedStream<S> {
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &written {
            self.counts.up.fetch_add(*n as u64, Ordering::Relaxed);
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CountedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use futures_util::poll;
    use kubevpn_target::Origin;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::advance;
    use tower::service_fn;

    use super::*;

    fn target(port: u16) -> Target {
        Target::parse(&format!("web:{port}"), Origin::default()).unwrap()
    }

    #[tokio::test]
    async fn streams_and_bytes_and_refusals() {
        let counts = Arc::new(Counts::default());
        let dial = |target: Target| async move {
            if target.port.get() == 80 {
                let (ours, mut theirs) = duplex(64);
                tokio::spawn(async move {
                    let mut asked = [0; 4];
                    theirs.read_exact(&mut asked).await.unwrap();
                    theirs.write_all(b"pong!").await.unwrap();
                });
                Ok(ours)
            } else {
                Err(ConnectError::new(Refusal::ClusterAway, "away"))
            }
        };
        let counted = Counted::new(service_fn(dial), counts.clone());
        let mut stream = counted.clone().connect(target(80)).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let traffic = counts.traffic();
        assert_eq!((traffic.bytes_up, traffic.bytes_down), (4, 5));
        assert_eq!(
            (traffic.open_connections, traffic.total_connections),
            (1, 1)
        );
        drop(stream);
        for _ in 0..2 * REFUSALS {
            counted.clone().connect(target(81)).await.err().unwrap();
        }
        // The last of these is kept for who asks later.
        counts.trouble.notified().await;
        let traffic = counts.traffic();
        assert_eq!(
            (traffic.open_connections, traffic.total_connections),
            (0, 1)
        );
        assert_eq!(traffic.refused_connections, 2 * REFUSALS as u64);
        let refusals = counts.refusals();
        assert_eq!(refusals.len(), REFUSALS);
        assert_eq!(refusals[0].target, "web:81");
        assert_eq!(refusals[0].class, "cluster_away");
        assert_eq!(counts.longest_dial(), None);
    }

    /// One whose client gives up is no longer waited for.
    #[tokio::test(start_paused = true)]
    async fn the_longest_dial() {
        let counts = Arc::new(Counts::default());
        let never = |_: Target| std::future::pending::<Result<DuplexStream, ConnectError>>();
        let counted = Counted::new(service_fn(never), counts.clone());
        let dial = async |port| counted.clone().connect(target(port)).await;
        let (mut first, mut second) = (pin!(dial(80)), pin!(dial(81)));
        let begun = Instant::now();
        assert!(poll!(&mut first).is_pending());
        advance(Duration::from_secs(1)).await;
        assert!(poll!(&mut second).is_pending());
        let longest = || {
            counts
                .longest_dial()
                .map(|(target, since)| (target.port.get(), since))
        };
        assert_eq!(longest(), Some((80, begun)));
        first.set(dial(80));
        assert_eq!(longest(), Some((81, begun + Duration::from_secs(1))));
    }
}
