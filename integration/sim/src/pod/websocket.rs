//! The echo program's `/ws`: sends back every message.

use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::PodClient;
use super::http::{PodBody, full, text};

const LARGEST: usize = 16 * 1024 * 1024;

pub(super) fn upgrade(client: &PodClient, request: Request<Incoming>) -> Response<PodBody> {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return text(StatusCode::UPGRADE_REQUIRED, "a websocket endpoint\n");
    };
    let accept = derive_accept_key(key.as_bytes());
    let running = client.pod.running.clone();
    client.pod.tasks.spawn(async move {
        running.run_until_cancelled(echo(request)).await;
    });
    let mut response = Response::new(full(String::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

async fn echo(request: Request<Incoming>) {
    let Ok(io) = hyper::upgrade::on(request).await else {
        return;
    };
    let bounds = WebSocketConfig::default()
        .max_message_size(Some(LARGEST))
        .max_frame_size(Some(LARGEST));
    let io = TokioIo::new(io);
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(bounds)).await;
    // Pings and closes are answered by the library, at the next read or write.
    while let Some(Ok(message)) = socket.next().await {
        let data = message.is_text() || message.is_binary();
        if data && socket.send(message).await.is_err() {
            return;
        }
    }
}
