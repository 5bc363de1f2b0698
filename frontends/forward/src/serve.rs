//! One client connection from its first byte to its last.

use std::time::Duration;
use std::{error, fmt, io};

use bytes::BytesMut;
use kubevpn_conn::{ClientIo, Record, RelayOptions, Relayed, Rewind, relay, while_connected};
use kubevpn_target::{Connect, ConnectError, Frontend, Origin, Stream as _, Target};
use tracing::Instrument;

/// Serves one client: one dial of `to` through `connect`, then the relay. Writes one access record
/// ([`kubevpn_conn::Record`]). With `idle_timeout`, a connection on which no byte moved for so long is ended.
///
/// The target is dialled at once: many servers speak first. A client whose connection breaks meanwhile cancels the
/// dial; one that has only ended its own writing does not.
///
/// Cancellation: dropping the future drops both streams; the client's connection is reset if it was relayed.
///
/// ```no_run
/// use kubevpn_forward::{Forward, serve_connection};
/// use kubevpn_target::Target;
/// use tokio::net::{TcpListener, TcpStream};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let dialer = tower::service_fn(|target: Target| TcpStream::connect(target.to_string()));
/// let forward: Forward = "15432:localhost:5432".parse()?;
/// let listener = TcpListener::bind(forward.listen.to_string()).await?;
/// loop {
///     let (client, _) = listener.accept().await?;
///     let (dialer, to) = (dialer.clone(), forward.to.clone());
///     tokio::spawn(async move { serve_connection(client, &to, dialer, None).await });
/// }
/// # }
/// ```
pub async fn serve_connection<C, S>(
    client: C,
    to: &Target,
    connect: S,
    idle_timeout: Option<Duration>,
) -> Result<Relayed, ServeError>
where
    C: ClientIo,
    S: Connect,
{
    let origin = Origin {
        frontend: Frontend::Forward,
        peer: client.peer(),
    };
    let target = Target {
        origin,
        ..to.clone()
    };
    let mut record = Record::start(origin.frontend, origin.peer);
    record.target(&target);
    let span = tracing::info_span!(
        "conn",
        id = record.id(),
        client.addr = origin.peer.map(tracing::field::display),
        frontend = origin.frontend.as_str(),
    );
    async {
        let served = serve(client, target, connect, idle_timeout, &mut record).await;
        match &served {
            Ok(relayed) => record.relayed(relayed),
            Err(ServeError::Refused(error)) => record.refused(error),
            Err(ServeError::Gone(error)) => record.gone(error),
        }
        served
    }
    .instrument(span)
    .await
}

async fn serve<C, S>(
    mut client: C,
    target: Target,
    connect: S,
    idle: Option<Duration>,
    record: &mut Record,
) -> Result<Relayed, ServeError>
where
    C: ClientIo,
    S: Connect,
{
    let mut early = BytesMut::new();
    // In a box, so that the memory of dialing is not held for the life of the connection.
    let dial = Box::pin(connect.connect(target));
    let upstream = match while_connected(&mut client, &mut early, dial).await {
        Ok(Ok(upstream)) => upstream,
        Ok(Err(error)) => {
            // An orderly end could pass for a server that had nothing to say.
            client.reset_on_drop();
            return Err(ServeError::Refused(error));
        }
        Err(error) => return Err(ServeError::Gone(error)),
    };
    record.via(upstream.via());
    let options = RelayOptions {
        idle,
        traffic: record.traffic(),
    };
    Ok(relay(Rewind::new(client, early), upstream, options).await)
}

/// Why a connection never came to be relayed.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeError {
    /// The client's connection broke before the target was dialled.
    Gone(io::Error),
    /// The backend opened no stream, and the client was reset.
    Refused(ConnectError),
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(_) => {
                f.write_str("the client's connection broke before its target was dialled")
            }
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl error::Error for ServeError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Gone(error) => Some(error),
            // Its own text is shown above, so the chain goes on behind it.
            Self::Refused(error) => error.source(),
        }
    }
}
