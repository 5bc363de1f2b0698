//! `pods/{name}/portforward`: who may upgrade to what, and the sessions that come of it.
//!
//! The answers to all the ways of asking were printed by a real API server with a kubelet and containerd
//! behind it. As there, the upgrade succeeds before anybody knows whether the pod's port is open.

mod channel;
mod forward;
mod sessions;
mod spdy;
mod tunnel;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::api::{Body, full, text};
use crate::cluster::Cluster;
use crate::link::Link;
use crate::pod::Pod;
use crate::status::Status;

pub use self::sessions::Session;
pub(crate) use self::sessions::Sessions;
pub(crate) use crate::faults::Transport;

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNEL: &str = "v4.channel.k8s.io";
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

impl Transport {
    /// What a request asks for by its headers; `None` if it is no upgrade.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let tokens = list(headers, &header::CONNECTION);
        let upgrade = tokens.iter().any(|t| t.eq_ignore_ascii_case("upgrade"));
        let wanted = headers.get(header::UPGRADE)?.to_str().ok()?;
        if !upgrade {
            return None;
        }
        if !wanted.eq_ignore_ascii_case("websocket") {
            return Some(Self::Spdy);
        }
        let tunnel = list(headers, &header::SEC_WEBSOCKET_PROTOCOL).contains(&TUNNEL);
        Some(if tunnel { Self::Tunnel } else { Self::Channel })
    }
}

/// Answers an upgrade, and starts its session if the answer is yes.
pub(crate) fn upgrade(
    cluster: &Arc<Cluster>,
    link: &Link,
    request: Request<Incoming>,
    pod: Arc<Pod>,
    user: &str,
    ports: &[String],
) -> Result<Response<Body>, Status> {
    for port in ports.iter().flat_map(|p| p.split(',')) {
        if let Err(why) = port.parse::<u16>() {
            let why = match why.kind() {
                std::num::IntErrorKind::PosOverflow => "value out of range",
                _ => "invalid syntax",
            };
            return Err(Status::bad_request(format!(
                "cannot convert to []int32: strconv.ParseUint: parsing {port:?}: {why}"
            )));
        }
    }
    let headers = request.headers();
    let Some(mut transport) = Transport::of(headers) else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    // An older API server leaves it to the kubelet, which does not know it.
    if transport == Transport::Tunnel && cluster.options.minor < 31 {
        transport = Transport::Channel;
    }
    let ports = ports.iter().flat_map(|p| p.split(',')).map(|p| p.parse());
    let ports: Vec<u16> = ports.filter_map(Result::ok).collect();
    let accepted = match transport {
        Transport::Spdy => spdy_answer(headers),
        Transport::Tunnel if *request.method() != Method::GET => {
            let code = StatusCode::METHOD_NOT_ALLOWED;
            Err(text(code, "Method Not Allowed\n"))
        }
        Transport::Tunnel => socket_answer(headers, TUNNEL),
        Transport::Channel => channel_answer(request.method(), headers, &ports),
    };
    let response = match accepted {
        Ok(response) => response,
        Err(refusal) => return Ok(refusal),
    };
    let live = cluster.sessions.open(link, &pod.info, transport, user);
    let shared = Arc::clone(cluster);
    cluster.spawn(async move {
        let io = match hyper::upgrade::on(request).await {
            Ok(io) => TokioIo::new(io),
            Err(error) => return tracing::debug!(%error, "an upgrade failed"),
        };
        match transport {
            Transport::Spdy => spdy::serve(shared, live, pod, io).await,
            Transport::Tunnel => spdy::serve(shared, live, pod, tunnel::bytes(io).await).await,
            Transport::Channel => channel::serve(shared, live, pod, ports, io).await,
        }
    });
    Ok(response)
}

type Answer = Result<Response<Body>, Response<Body>>;

fn spdy_answer(headers: &HeaderMap) -> Answer {
    let upgrade = headers
        .get(header::UPGRADE)
        .map_or(&[][..], HeaderValue::as_bytes);
    let versions = list(headers, &STREAM_PROTOCOL);
    if versions.is_empty() {
        // The kubelet does not upgrade, and the API server does not know what to make of that.
        return Err(text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "invalid upgrade response: status code 200\n",
        ));
    }
    if !versions.contains(&PROTOCOL) {
        return Err(text(
            StatusCode::FORBIDDEN,
            &format!(
                "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{PROTOCOL}]\n",
                versions.join(" ")
            ),
        ));
    }
    if !upgrade.eq_ignore_ascii_case(b"spdy/3.1") {
        let text_ = "unable to upgrade: missing upgrade headers in request\n";
        return Err(text(StatusCode::BAD_REQUEST, text_));
    }
    let mut response = switching("SPDY/3.1");
    let value = HeaderValue::from_static(PROTOCOL);
    response.headers_mut().insert(STREAM_PROTOCOL, value);
    Ok(response)
}

fn channel_answer(method: &Method, headers: &HeaderMap, ports: &[u16]) -> Answer {
    if ports.is_empty() {
        let why = "query parameter \"port\" is required";
        return Err(text(StatusCode::BAD_REQUEST, why));
    }
    if ports.contains(&0) {
        return Err(text(StatusCode::BAD_REQUEST, "port \"0\" must be > 0"));
    }
    if *method != Method::GET {
        return Err(text(StatusCode::METHOD_NOT_ALLOWED, ""));
    }
    let wanted = list(headers, &header::SEC_WEBSOCKET_PROTOCOL);
    if wanted.is_empty() {
        return socket_answer(headers, "");
    }
    if !wanted.contains(&CHANNEL) {
        let mut refusal = text(StatusCode::FORBIDDEN, "");
        let close = HeaderValue::from_static("close");
        refusal.headers_mut().insert(header::CONNECTION, close);
        return Err(refusal);
    }
    socket_answer(headers, CHANNEL)
}

fn socket_answer(headers: &HeaderMap, protocol: &'static str) -> Answer {
    let version = headers.get(header::SEC_WEBSOCKET_VERSION);
    let key = headers.get(header::SEC_WEBSOCKET_KEY);
    let (Some(key), true) = (key, version.is_some_and(|v| v == "13")) else {
        return Err(text(StatusCode::BAD_REQUEST, "Bad Request\n"));
    };
    let mut response = switching("websocket");
    let accept = derive_accept_key(key.as_bytes());
    let fields = response.headers_mut();
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        fields.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    let protocol = HeaderValue::from_static(protocol);
    fields.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    Ok(response)
}

fn switching(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(full(String::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// The elements of a header that is a list with commas, on one line or several.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let lines = headers.get_all(name).into_iter();
    let lines = lines.filter_map(|v| v.to_str().ok());
    let parts = lines.flat_map(|l| l.split(',').map(str::trim));
    parts.filter(|p| !p.is_empty()).collect()
}
