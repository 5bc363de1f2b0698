//! The spare: a connection for the next upgrade, made before it is needed.
//!
//! An upgrade needs a connection of its own: two round trips before the first byte of the request. So one connection with
//! completed TLS is kept ready while upgrades are likely: from the first announcement until [`IN_USE`] after the last
//! upgrade. A connection that is taken is replaced; at most one is ready or being made.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read as _, ReadBuf};
use kubevpn_target::BoxError;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};
use tower::Service;

use crate::connector::{ApiConnector, Conn};

/// How long a connection may wait for its upgrade: an API server closes a connection without a request after 32 s
/// (kubernetes, `ReadHeaderTimeout` of its server).
const FRESH: Duration = Duration::from_secs(25);

/// How long after the last use a connection is kept ready.
const IN_USE: Duration = Duration::from_secs(60);

type Made = Result<Conn, BoxError>;

/// Makes connections for upgrades, the next one ahead. Clones share the spare; the last one closes it.
#[derive(Clone)]
pub(crate) struct Spare(Arc<SpareOwner>);

struct SpareOwner {
    connector: ApiConnector,
    server: Uri,
    shelf: Arc<SpareShared>,
}

/// The state shared by the task that keeps a connection ready and the upgrades that take it.
#[derive(Default)]
struct SpareShared {
    state: Mutex<SpareState>,
    /// Wakes the task: the connection was taken, or is no longer wanted.
    changed: Notify,
}

#[derive(Default)]
struct SpareState {
    ready: Option<Conn>,
    /// The upgrade that waits for the connection being made.
    waiting: Option<oneshot::Sender<Made>>,
    making: bool,
    /// Until when a connection is kept; `None` while no task runs.
    until: Option<Instant>,
    /// Whether upgrades were announced once.
    expected: bool,
}

impl Spare {
    pub(crate) fn new(connector: ApiConnector, server: Uri) -> Self {
        Self(Arc::new(SpareOwner {
            connector,
            server,
            shelf: Arc::default(),
        }))
    }

    /// Announces an upgrade: makes a connection now if none is ready.
    pub(crate) fn expect(&self) {
        self.0.shelf.state().expected = true;
        self.keep();
    }

    /// Keeps a connection from now on, if upgrades were announced.
    fn keep(&self) {
        let SpareOwner {
            connector,
            server,
            shelf,
        } = &*self.0;
        let mut state = shelf.state();
        if !state.expected {
            return;
        }
        let kept = state.until.replace(Instant::now() + IN_USE).is_some();
        if !kept {
            state.making = true;
            let (connector, server, shelf) = (connector.clone(), server.clone(), shelf.clone());
            tokio::spawn(keep(connector, server, SpareKeeper(shelf)));
        }
    }

    /// Takes the ready connection, or a promise of the one being made.
    fn take(&self) -> Option<SpareOutcome> {
        let mut state = self.0.shelf.state();
        if let Some(mut conn) = state.ready.take() {
            self.0.shelf.changed.notify_one();
            let mut cx = Context::from_waker(Waker::noop());
            return match poll_over(&mut conn, &mut cx) {
                Poll::Pending => Some(SpareOutcome::Ready(Box::new(conn))),
                Poll::Ready(()) => None,
            };
        }
        let awaited = state.waiting.as_ref().is_some_and(|w| !w.is_closed());
        if !state.making || awaited {
            return None;
        }
        let (give, given) = oneshot::channel();
        state.waiting = Some(give);
        Some(SpareOutcome::Promised(given))
    }
}

enum SpareOutcome {
    Ready(Box<Conn>),
    Promised(oneshot::Receiver<Made>),
}

impl Service<Uri> for Spare {
    type Response = Conn;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Made> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // The connector is always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let taken = self.take();
        self.keep();
        let mut connector = self.0.connector.clone();
        Box::pin(async move {
            match taken {
                Some(SpareOutcome::Ready(conn)) => return Ok(*conn),
                Some(SpareOutcome::Promised(given)) => {
                    if let Ok(made) = given.await {
                        return made;
                    }
                }
                None => {}
            }
            connector.call(server).await
        })
    }
}

impl Drop for SpareOwner {
    fn drop(&mut self) {
        let mut state = self.shelf.state();
        (state.until, state.ready) = (None, None);
        drop(state);
        self.shelf.changed.notify_one();
    }
}

impl SpareShared {
    fn state(&self) -> MutexGuard<'_, SpareState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a new connection to the waiting upgrade, or keeps it. `false` if none is wanted, or none can be made.
    fn place(&self, made: Made) -> bool {
        let mut state = self.state();
        state.making = false;
        let waiting = state.waiting.take();
        let failed = made.is_err();
        let left = match waiting {
            Some(waiting) => waiting.send(made).err(),
            None => Some(made),
        };
        // After a failure, the next use tries again.
        if failed || state.until.is_none() {
            return false;
        }
        state.ready = left.and_then(Result::ok);
        true
    }

    /// Returns when the kept connection has ended or was taken.
    async fn over(&self) {
        poll_fn(|cx| match &mut self.state().ready {
            Some(conn) => poll_over(conn, cx),
            None => Poll::Pending,
        })
        .await;
    }
}

/// The task that keeps a connection. However it ends, waiting upgrades are released.
struct SpareKeeper(Arc<SpareShared>);

impl Drop for SpareKeeper {
    fn drop(&mut self) {
        let mut state = self.0.state();
        (state.until, state.ready, state.waiting, state.making) = (None, None, None, false);
    }
}

/// Keeps one connection ready until none is wanted.
async fn keep(mut connector: ApiConnector, server: Uri, keeping: SpareKeeper) {
    let shelf = &keeping.0;
    loop {
        let made = connector.call(server.clone()).await;
        if !shelf.place(made) {
            return;
        }
        let fresh = Instant::now() + FRESH;
        loop {
            let until = {
                let now = Instant::now();
                let mut state = shelf.state();
                let Some(until) = state.until.filter(|until| now < *until) else {
                    return;
                };
                if state.ready.is_none() || fresh <= now {
                    state.ready = None;
                    state.making = true;
                    break;
                }
                until
            };
            tokio::select! {
                () = shelf.changed.notified() => {}
                // Avoids a loop with a server that closes connections at once.
                () = shelf.over() => return,
                () = sleep_until(fresh.min(until)) => {}
            }
        }
    }
}

/// Ready when the connection has ended, or the server sends something without a request.
fn poll_over(conn: &mut Conn, cx: &mut Context<'_>) -> Poll<()> {
    let mut byte = [0];
    let mut byte = ReadBuf::new(&mut byte);
    Pin::new(conn).poll_read(cx, byte.unfilled()).map(drop)
}
