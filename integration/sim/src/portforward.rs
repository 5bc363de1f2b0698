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

use crate::api::{ApiBody, full, text};
use crate::cluster::SimCluster;
use crate::link::Link;
use crate::pod::SimPod;
use crate::status::Status;

pub(crate) use self::sessions::Sessions;
pub use self::sessions::SimSession;
pub(crate) use crate::faults::SimTransport;

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNEL: &str = "v4.channel.k8s.io";
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

impl SimTransport {
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
    cluster: &Arc<SimCluster>,
    link: &Link,
    request: Request<Incoming>,
    pod: Arc<SimPod>,
    user: &str,
    ports: &[String],
) -> Result<Response<ApiBody>, Status> {
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
    let Some(mut transport) = SimTransport::of(headers) else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    // An older API server leaves it to the kubelet, which does not know it.
    if transport == SimTransport::Tunnel && cluster.options.minor < 31 {
        transport = SimTransport::Channel;
    }
    let ports = ports.iter().flat_map(|p| p.split(',')).map(|p| p.parse());
    let ports: Vec<u16> = ports.filter_map(Result::ok).collect();
    let response = match transport {
        SimTransport::Spdy => spdy_answer(headers),
        SimTransport::Tunnel if *request.method() != Method::GET => {
            text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n")
        }
        SimTransport::Tunnel => socket_answer(headers, TUNNEL),
        SimTransport::Channel => channel_answer(request.method(), headers, &ports),
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let live = cluster.sessions.open(link, &pod.info, transport, user);
    let shared = Arc::clone(cluster);
    cluster.spawn(async move {
        let io = match hyper::upgrade::on(request).await {
            Ok(io) => TokioIo::new(io),
            Err(error) => return tracing::debug!(%error, "an upgrade failed"),
        };
        match transport {
            SimTransport::Spdy => spdy::serve(shared, live, pod, io).await,
            SimTransport::Tunnel => spdy::serve(shared, live, pod, tunnel::bytes(io).await).await,
            SimTransport::Channel => channel::serve(shared, live, pod, ports, io).await,
        }
    });
    Ok(response)
}

fn spdy_answer(headers: &HeaderMap) -> Response<ApiBody> {
    let versions = list(headers, &STREAM_PROTOCOL);
    if versions.is_empty() {
        // The kubelet does not upgrade, and the API server does not know what to make of that.
        let code = StatusCode::INTERNAL_SERVER_ERROR;
        return text(code, "invalid upgrade response: status code 200\n");
    }
    if !versions.contains(&PROTOCOL) {
        let versions = versions.join(" ");
        let why = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{versions}], server accepts [{PROTOCOL}]\n"
        );
        return text(StatusCode::FORBIDDEN, &why);
    }
    let upgrade = headers.get(header::UPGRADE);
    if !upgrade.is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"spdy/3.1")) {
        let why = "unable to upgrade: missing upgrade headers in request\n";
        return text(StatusCode::BAD_REQUEST, why);
    }
    let mut response = switching("SPDY/3.1");
    let value = HeaderValue::from_static(PROTOCOL);
    response.headers_mut().insert(STREAM_PROTOCOL, value);
    response
}

fn channel_answer(method: &Method, headers: &HeaderMap, ports: &[u16]) -> Response<ApiBody> {
    if ports.is_empty() {
        let why = "query parameter \"port\" is required";
        return text(StatusCode::BAD_REQUEST, why);
    }
    if ports.contains(&0) {
        return text(StatusCode::BAD_REQUEST, "port \"0\" must be > 0");
    }
    if *method != Method::GET {
        return bare(StatusCode::METHOD_NOT_ALLOWED, "bad method");
    }
    let wanted = list(headers, &header::SEC_WEBSOCKET_PROTOCOL);
    if wanted.is_empty() {
        return socket_answer(headers, "");
    }
    if !wanted.contains(&CHANNEL) {
        let mut refusal = bare(StatusCode::FORBIDDEN, "");
        let close = HeaderValue::from_static("close");
        refusal.headers_mut().insert(header::CONNECTION, close);
        return refusal;
    }
    socket_answer(headers, CHANNEL)
}

fn socket_answer(headers: &HeaderMap, protocol: &'static str) -> Response<ApiBody> {
    let version = headers.get(header::SEC_WEBSOCKET_VERSION);
    let key = headers.get(header::SEC_WEBSOCKET_KEY);
    let (Some(key), true) = (key, version.is_some_and(|v| v == "13")) else {
        let code = StatusCode::BAD_REQUEST;
        return if protocol == TUNNEL {
            text(code, "Bad Request\n")
        } else {
            bare(code, "mismatch challenge/response")
        };
    };
    let mut response = switching("websocket");
    let accept = derive_accept_key(key.as_bytes());
    let fields = response.headers_mut();
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        fields.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    let protocol = HeaderValue::from_static(protocol);
    fields.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    response
}

/// A refusal that does not say what its text is.
fn bare(code: StatusCode, body: &str) -> Response<ApiBody> {
    let mut response = Response::new(full(body.to_owned()));
    *response.status_mut() = code;
    response
}

fn switching(protocol: &'static str) -> Response<ApiBody> {
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
