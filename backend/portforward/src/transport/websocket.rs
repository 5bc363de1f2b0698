//! The WebSocket handshake of RFC 6455 section 4 over the client's own HTTP upgrade.

use std::io;
use std::time::Duration;

use http::{Method, Request, header};
use kube::client::Body;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::pod::PodId;
use crate::transport::upgrade::{UpgradeError, UpgradedIo, check_protocol, upgrade};

/// Limit on a message. API servers send what one read returned, 32 KiB.
const MESSAGE: usize = 4 << 20;

/// Upgrades to a WebSocket that speaks this subprotocol.
pub(crate) async fn open(
    client: &kube::Client,
    pod: &PodId,
    uri: String,
    protocol: &'static str,
    within: Duration,
) -> Result<UpgradedIo, UpgradeError> {
    let key = generate_key();
    let request = Request::builder()
        .method(Method::GET)
        .uri(uri)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
        .body(Body::empty())
        .map_err(|e| UpgradeError::rejected(e.to_string()))?;
    let (head, io) = upgrade(client, pod, request, within).await?;
    check_protocol(&head, "websocket")?;
    let accept = head.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    if accept.is_none_or(|v| v != derive_accept_key(key.as_bytes()).as_str()) {
        return Err(UpgradeError::rejected(
            "the WebSocket answer is to somebody else's key",
        ));
    }
    match head.headers().get(header::SEC_WEBSOCKET_PROTOCOL) {
        Some(agreed) if agreed == protocol => Ok(io),
        agreed => Err(UpgradeError::rejected(format!(
            "agreed on the subprotocol {agreed:?}"
        ))),
    }
}

/// Buffers of this many bytes in each direction; the read buffer is allocated at once.
pub(crate) fn config(buffer: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(buffer)
        // Writers flush themselves; the size only limits what waits for the socket.
        .write_buffer_size(0)
        .max_write_buffer_size(1 << 20)
        .max_message_size(Some(MESSAGE))
        .max_frame_size(Some(MESSAGE))
}

/// The I/O error for a WebSocket error.
pub(crate) fn io_error(error: WsError) -> io::Error {
    match error {
        WsError::Io(error) => error,
        WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            io::Error::new(io::ErrorKind::ConnectionReset, error)
        }
        WsError::ConnectionClosed | WsError::AlreadyClosed => {
            io::Error::new(io::ErrorKind::BrokenPipe, error)
        }
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

/// Whether the error is an orderly end.
pub(crate) fn is_end(error: &WsError) -> bool {
    matches!(error, WsError::ConnectionClosed | WsError::AlreadyClosed)
}
