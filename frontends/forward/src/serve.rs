//! One client connection from its first byte to its last.

use std::time::Duration;

use bytes::BytesMut;
use kubevpn_conn::{ClientIo, HANDSHAKE_TIMEOUT, Recorder, Relayed, Tunnel, TunnelError};
use kubevpn_target::{Connect, Frontend, Target};
use tracing::Instrument;

/// Serves one client: one dial of `to` through `connect`, then the relay. Writes one access record
/// ([`kubevpn_conn::Record`]). With `idle_timeout`, a connection on which no byte was transferred for so long is ended.
///
/// The target is dialled at once, because many servers speak first. A client whose connection breaks during the dial
/// cancels it; one that has only ended its own writing does not.
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
) -> Result<Relayed, TunnelError>
where
    C: ClientIo,
    S: Connect,
{
    let recorder = Recorder::new(Frontend::Forward, &client);
    let (origin, record) = (recorder.origin(), recorder.start());
    let target = Target {
        origin,
        ..to.clone()
    };
    let span = tracing::info_span!(
        "conn",
        id = record.id(),
        client.addr = origin.peer.map(tracing::field::display),
        frontend = origin.frontend.as_str(),
    );
    let tunnel = Tunnel {
        client,
        early: BytesMut::new(),
        record,
        patience: HANDSHAKE_TIMEOUT,
        idle: idle_timeout,
    };
    // There is no protocol for an answer.
    let served = tunnel.serve(target, connect, |_| Vec::new());
    served.instrument(span).await
}
