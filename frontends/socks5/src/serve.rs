//! One client connection from its first byte to its last.

use std::io;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use kubevpn_conn::{
    ClientIo, Credentials, HANDSHAKE_TIMEOUT, Record, Recorder, Relayed, Tunnel, TunnelError,
    farewell,
};
use kubevpn_target::{Connect, ConnectError, Frontend, Origin, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tracing::Instrument;

use crate::session::{Handshake, HandshakeError, MAX_INPUT};

/// Settings of the SOCKS5 frontend.
///
/// ```
/// use kubevpn_socks5::Settings;
/// assert!(Settings::default().credentials.is_none());
/// assert_eq!(Settings::default().handshake_timeout.as_secs(), 10);
/// ```
#[derive(Clone, Debug)]
pub struct Settings {
    /// Required of every client (RFC 1929); `None` requires nothing.
    pub credentials: Option<Credentials>,
    /// Time limit from the accepted connection to the complete request, without the dial.
    pub handshake_timeout: Duration,
    /// Ends a connection on which no byte was transferred for this long; `None` for never.
    pub idle_timeout: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            credentials: None,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            idle_timeout: None,
        }
    }
}

/// Serves one client: handshake, one dial through `connect`, answer, relay. Writes one access record
/// ([`kubevpn_conn::Record`]).
///
/// `connect` is any `tower_service::Service<Target>` that answers with a [`kubevpn_target::Stream`]; give each connection
/// a clone. It is called once, when the request is complete, and success is reported to the client when it has
/// answered. A client whose connection breaks during the dial cancels it; one that has only ended its own writing
/// does not.
///
/// Cancellation: dropping the future drops both streams; the client's connection is reset if it was relayed.
///
/// ```no_run
/// use std::sync::Arc;
/// use kubevpn_socks5::{Settings, serve_connection};
/// use kubevpn_target::Target;
/// use tokio::net::{TcpListener, TcpStream};
///
/// # async fn run() -> std::io::Result<()> {
/// let dialer = tower::service_fn(|target: Target| TcpStream::connect(target.to_string()));
/// let settings = Arc::new(Settings::default());
/// let listener = TcpListener::bind("127.0.0.1:1080").await?;
/// loop {
///     let (client, _) = listener.accept().await?;
///     let (dialer, settings) = (dialer.clone(), Arc::clone(&settings));
///     tokio::spawn(async move { serve_connection(client, dialer, &settings).await });
/// }
/// # }
/// ```
pub async fn serve_connection<C, S>(
    client: C,
    connect: S,
    settings: &Settings,
) -> Result<Relayed, ServeError>
where
    C: ClientIo,
    S: Connect,
{
    let (origin, record) = {
        let recorder = Recorder::new(Frontend::Socks5, &client);
        (recorder.origin(), recorder.start())
    };
    let span = tracing::info_span!(
        "conn",
        id = record.id(),
        client.addr = origin.peer.map(tracing::field::display),
        frontend = origin.frontend.as_str(),
    );
    serve(client, connect, settings, origin, record)
        .instrument(span)
        .await
}

async fn serve<C, S>(
    mut client: C,
    connect: S,
    settings: &Settings,
    origin: Origin,
    record: Record,
) -> Result<Relayed, ServeError>
where
    C: ClientIo,
    S: Connect,
{
    let mut session = Handshake::new(settings.credentials.as_ref(), origin);
    let mut early = BytesMut::new();
    let patience = settings.handshake_timeout;

    // Boxed, like everything that ends before the relay begins, so that its memory is not held for the life of the connection.
    let handshake = Box::pin(handshake(&mut client, &mut session, &mut early));
    let asked = timeout(patience, handshake).await;
    let target = match asked.unwrap_or(Err(FailedHandshake::with(ServeError::Slow(patience)))) {
        Ok(target) => target,
        Err(FailedHandshake { error, last_words }) => {
            match &error {
                ServeError::Unused => record.unused(),
                // A dropped client is reset.
                ServeError::Ending => drop(record),
                ServeError::Gone(error) => record.gone(error),
                error => record.rejected(error),
            }
            if !last_words.is_empty() {
                Box::pin(farewell(client, &last_words)).await;
            }
            return Err(error);
        }
    };
    client.authenticated();
    let tunnel = Tunnel {
        client,
        early,
        record,
        patience,
        idle: settings.idle_timeout,
    };
    let answer = |dialled: Result<(), &ConnectError>| {
        let mut answer = Vec::new();
        session.answer(dialled.map_err(ConnectError::refusal), &mut answer);
        answer
    };
    Ok(tunnel.serve(target, connect, answer).await?)
}

/// A failed handshake, and the last reply to the client.
struct FailedHandshake {
    error: ServeError,
    last_words: Vec<u8>,
}

impl FailedHandshake {
    fn with(error: ServeError) -> Self {
        Self {
            error,
            last_words: Vec::new(),
        }
    }
}

async fn handshake<C: ClientIo>(
    client: &mut C,
    session: &mut Handshake<'_>,
    input: &mut BytesMut,
) -> Result<Target, FailedHandshake> {
    let gone = |error| FailedHandshake::with(ServeError::Gone(error));
    let drain = client.drain();
    let mut begun = false;
    let mut out = Vec::new();
    loop {
        let received = match session.receive(input, &mut out) {
            Ok(received) => received,
            Err(error) => {
                return Err(FailedHandshake {
                    error: error.into(),
                    last_words: out,
                });
            }
        };
        send(client, &out).await.map_err(gone)?;
        out.clear();
        if let Some(target) = received {
            return Ok(target);
        }
        let room = MAX_INPUT.saturating_sub(input.len());
        let mut room = (&mut *input).limit(room);
        let read = tokio::select! {
            biased;
            read = client.read_buf(&mut room) => read.map_err(gone)?,
            () = drain.stopping() => return Err(FailedHandshake::with(ServeError::Ending)),
        };
        if read == 0 {
            return Err(FailedHandshake::with(if begun {
                ServeError::Truncated
            } else {
                ServeError::Unused
            }));
        }
        begun = true;
    }
}

async fn send<C: ClientIo>(client: &mut C, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    client.write_all(bytes).await?;
    client.flush().await
}

/// Why a connection was not relayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The client's handshake is invalid or unsupported, and was refused.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The handshake was not complete within this time.
    #[error("no complete SOCKS handshake within {0:?}")]
    Slow(Duration),
    /// The client ended in the middle of its handshake.
    #[error("the client ended in the middle of its SOCKS handshake")]
    Truncated,
    /// The client ended without a byte.
    #[error("the client ended without a byte")]
    Unused,
    /// The drain began before the handshake was complete.
    #[error("this proxy ended before the client's handshake did")]
    Ending,
    /// The client's connection broke before its answer was sent.
    #[error("the client's connection broke before it was answered")]
    Gone(#[source] io::Error),
    /// The backend opened no stream, and the client got the reply that says so.
    #[error(transparent)]
    Refused(ConnectError),
}

impl From<TunnelError> for ServeError {
    fn from(error: TunnelError) -> Self {
        match error {
            TunnelError::Gone(error) => Self::Gone(error),
            TunnelError::Refused(error) => Self::Refused(error),
        }
    }
}
