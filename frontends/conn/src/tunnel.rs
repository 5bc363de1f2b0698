//! A connection that becomes a tunnel: dial, answer to the client, relay, access record.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use kubevpn_target::{Connect, ConnectError, Stream, Target};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use crate::{
    ClientIo, Live, Record, RelayOptions, Relayed, Rewind, farewell, relay, while_connected,
};

/// A client whose request is complete, with everything needed to serve it to its end.
///
/// ```
/// use kubevpn_conn::{Record, Tunnel};
/// use kubevpn_target::{Frontend, Origin, Target};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let backend = tower::service_fn(|_: Target| async {
///     let (stream, mut server) = tokio::io::duplex(64);
///     server.write_all(b"hello").await?;
///     Ok::<_, std::io::Error>(stream)
/// });
/// let (mut app, client) = tokio::io::duplex(64);
/// let tunnel = Tunnel {
///     client,
///     early: Default::default(),
///     record: Record::start(Frontend::Forward, None),
///     patience: kubevpn_conn::HANDSHAKE_TIMEOUT,
///     idle: None,
/// };
/// let target = Target::parse("web:80", Origin::default()).unwrap();
/// let served = tokio::spawn(tunnel.serve(target, backend, |dialled| match dialled {
///     Ok(()) => b"yes ".to_vec(),
///     Err(error) => error.to_string().into_bytes(),
/// }));
/// app.shutdown().await?;
/// let mut heard = String::new();
/// app.read_to_string(&mut heard).await?;
/// assert_eq!(heard, "yes hello");
/// assert_eq!(served.await?.unwrap().down, 5);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Tunnel<C> {
    /// The client.
    pub client: C,
    /// Bytes that the client sent after its request: the first of the tunnel.
    pub early: BytesMut,
    /// The record of the connection, which is written here, whatever the end.
    pub record: Record,
    /// How long the client may take to read its answer before it counts as gone.
    pub patience: Duration,
    /// Ends a tunnel on which no byte was transferred for this long; `None` for never.
    pub idle: Option<Duration>,
}

impl<C: ClientIo> Tunnel<C> {
    /// Dials `target` once, answers the client, and relays until both directions have ended.
    ///
    /// `answer` makes the answer to the client: on success it precedes the relay, on failure it is the last thing sent.
    /// If it is empty for a failure, the client is reset, because an orderly end would look like a server without an
    /// answer.
    ///
    /// A client whose connection breaks during the dial cancels it; one that has only ended its own writing does not.
    ///
    /// Cancellation: dropping the future drops both streams; the client is reset if it was being relayed.
    // An `async fn` would hold the memory of `self` twice.
    #[allow(clippy::manual_async_fn)]
    pub fn serve<S: Connect>(
        mut self,
        target: Target,
        connect: S,
        answer: impl FnOnce(Result<(), &ConnectError>) -> Vec<u8> + Send,
    ) -> impl Future<Output = Result<Relayed, TunnelError>> + Send {
        async move {
            self.record.target(&target);
            tracing::debug!(%target, "dialing");
            // Boxed, so that the memory of the dial is not held for the life of the connection.
            let dial = Box::pin(Live::dialling(self.record.live(), connect.connect(target)));
            let dialled = while_connected(&mut self.client, &mut self.early, dial).await;
            let upstream = match dialled {
                Ok(Ok(upstream)) => upstream,
                Ok(Err(error)) => {
                    self.record.refused(&error);
                    let words = answer(Err(&error));
                    if words.is_empty() {
                        self.client.reset_on_drop();
                    } else {
                        Box::pin(farewell(self.client, &words)).await;
                    }
                    return Err(TunnelError::Refused(error));
                }
                Err(error) => return Err(gone(self.record, error)),
            };
            self.record.via(upstream.via());
            let said = Box::pin(say(&mut self.client, self.patience, answer(Ok(())))).await;
            if let Err(error) = said {
                return Err(gone(self.record, error));
            }
            let relayed = relay(
                Rewind::new(self.client, self.early),
                upstream,
                RelayOptions {
                    idle: self.idle,
                    traffic: self.record.traffic(),
                },
            );
            let relayed = relayed.await;
            self.record.relayed(&relayed);
            Ok(relayed)
        }
    }

    /// Answers the client, and relays to an open stream.
    ///
    /// Cancellation: as with [`serve`](Self::serve).
    pub async fn relay<U>(mut self, upstream: U, answer: Vec<u8>) -> Result<Relayed, TunnelError>
    where
        U: Stream,
    {
        if let Err(error) = say(&mut self.client, self.patience, answer).await {
            return Err(gone(self.record, error));
        }
        let options = RelayOptions {
            idle: self.idle,
            traffic: self.record.traffic(),
        };
        let relayed = relay(Rewind::new(self.client, self.early), upstream, options).await;
        self.record.relayed(&relayed);
        Ok(relayed)
    }
}

fn gone(record: Record, error: io::Error) -> TunnelError {
    record.gone(&error);
    TunnelError::Gone(error)
}

async fn say<C: ClientIo>(client: &mut C, patience: Duration, words: Vec<u8>) -> io::Result<()> {
    if words.is_empty() {
        return Ok(());
    }
    let said = timeout(patience, async {
        client.write_all(&words).await?;
        client.flush().await
    });
    said.await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Why a tunnel was not relayed.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The client's connection broke before its answer was sent.
    #[error("the client's connection broke before it was answered")]
    Gone(#[source] io::Error),
    /// The backend opened no stream, and the client was answered or reset.
    #[error(transparent)]
    Refused(ConnectError),
}
