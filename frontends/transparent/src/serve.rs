//! One client connection from its original destination to its last byte.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use kubevpn_conn::{ClientIo, HANDSHAKE_TIMEOUT, Recorder, Relayed, Tunnel, TunnelError};
use kubevpn_target::{Connect, ConnectError, Frontend, Host, Origin, Refusal, Target, TargetError};
use tracing::Instrument;

use crate::{NameTable, is_assignable};

/// Settings of the transparent frontend.
///
/// ```
/// use kubevpn_transparent::Settings;
/// assert_eq!(Settings::default().idle_timeout, None);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The names with assigned addresses; an address of their range without a name is refused.
    pub names: Option<NameTable>,
    /// Ends a connection on which no byte was transferred for this long; `None` for never.
    pub idle_timeout: Option<Duration>,
}

/// Serves one client: one dial of its original destination through `connect`, then the relay. Writes one access record
/// ([`kubevpn_conn::Record`]).
///
/// The target is dialled at once, because many servers speak first. A client whose connection breaks during the dial
/// cancels it; one that has only ended its own writing does not. A refused client is reset.
///
/// Cancellation: dropping the future drops both streams; the client's connection is reset if it was relayed.
///
/// ```no_run
/// use std::sync::Arc;
/// use kubevpn_target::Target;
/// use kubevpn_transparent::{Settings, serve_connection};
/// use tokio::net::{TcpListener, TcpStream};
///
/// # async fn run() -> std::io::Result<()> {
/// let dialer = tower::service_fn(|target: Target| TcpStream::connect(target.to_string()));
/// let settings = Arc::new(Settings::default());
/// let listener = TcpListener::bind("127.0.0.1:15001").await?;
/// loop {
///     let (client, _) = listener.accept().await?;
///     let (dialer, settings) = (dialer.clone(), Arc::clone(&settings));
///     tokio::spawn(async move { serve_connection(client, dialer, &settings).await });
/// }
/// # }
/// ```
pub async fn serve_connection<C, S>(
    mut client: C,
    connect: S,
    settings: &Settings,
) -> Result<Relayed, ServeError>
where
    C: ClientIo,
    S: Connect,
{
    let recorder = Recorder::new(Frontend::Transparent, &client);
    let (origin, mut record) = (recorder.origin(), recorder.start());
    let Some(to) = client.original_destination() else {
        record.rejected(&ServeError::NotRedirected);
        client.reset_on_drop();
        return Err(ServeError::NotRedirected);
    };
    let target = match target(to, settings.names.as_ref(), origin) {
        Ok(target) => target,
        Err(ServeError::Refused(error)) => {
            if let Ok(target) = Target::new(to.ip().into(), to.port(), origin) {
                record.target(&target);
            }
            record.refused(&error);
            client.reset_on_drop();
            return Err(ServeError::Refused(error));
        }
        Err(error) => {
            record.rejected(&error);
            client.reset_on_drop();
            return Err(error);
        }
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
        idle: settings.idle_timeout,
    };
    // There is no protocol for an answer.
    let served = tunnel.serve(target, connect, |_| Vec::new());
    Ok(served.instrument(span).await?)
}

/// The target of an original destination: the name to which the address was assigned, or the address.
fn target(to: SocketAddr, names: Option<&NameTable>, origin: Origin) -> Result<Target, ServeError> {
    let host = match names {
        Some(names) if is_assignable(to.ip()) => match names.find(to.ip()) {
            Some(name) => Host::Name(name),
            None => return Err(ServeError::Refused(forgotten(to))),
        },
        _ => Host::from(to.ip()),
    };
    Ok(Target::new(host, to.port(), origin)?)
}

fn forgotten(to: SocketAddr) -> ConnectError {
    let sentence = format!(
        "{} stands for a name, and for none that was looked up here lately: look the name up again",
        to.ip()
    );
    ConnectError::new(Refusal::NameNotFound, sentence)
}

/// Why a connection was not relayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The client connected to the listener itself, or the kernel does not report the original destination.
    #[error(
        "the connection was not redirected here: connect to where it is to lead, not to this listener"
    )]
    NotRedirected,
    /// The destination is not a target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The client's connection broke while its target was being dialled.
    #[error("the client's connection broke before it was relayed")]
    Gone(#[source] std::io::Error),
    /// The backend opened no stream, or the address has no name.
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
