//! The echo program's HTTP ports.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use serde_json::json;
use tokio::io::DuplexStream;

use super::{PodClient, SimPod, count, grpc, websocket};
use crate::selector::query;
use std::sync::atomic::Ordering;

pub(super) type PodBody = UnsyncBoxBody<Bytes, Infallible>;

/// Serves one connection to its end.
pub(super) async fn serve(client: PodClient, io: DuplexStream) {
    let service = client.clone();
    let answer = service_fn(move |request| answer(service.clone(), request));
    // Go's server reads headers of up to 1 MiB; hyper's bound of about 400 KiB is as good here.
    let mut builder = auto::Builder::new(PodTasks(Arc::clone(&client.pod)));
    builder.http1().half_close(true).title_case_headers(true);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), answer);
    if let Err(error) = connection.await {
        tracing::trace!(%error, "a pod's HTTP connection ended");
    }
}

/// Runs what an HTTP/2 connection spawns for as long as the pod runs.
#[derive(Clone)]
struct PodTasks(Arc<SimPod>);

impl<F> Executor<F> for PodTasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let running = self.0.running.clone();
        self.0.tasks.spawn(async move {
            running.run_until_cancelled(task).await;
        });
    }
}

async fn answer(
    client: PodClient,
    request: Request<Incoming>,
) -> Result<Response<PodBody>, Infallible> {
    let values = query(request.uri().query().unwrap_or_default());
    let number = |name: &str| -> u64 {
        let value = values.get(name).and_then(|v| v.first());
        value.and_then(|v| v.parse().ok()).unwrap_or_default()
    };
    Ok(match request.uri().path() {
        "/ready" if client.pod.ready.load(Ordering::Relaxed) => text(StatusCode::OK, ""),
        "/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        "/bytes" => bytes(number("n")),
        "/sink" => sink(request.into_body()).await,
        "/slow" => {
            let ms = number("ms");
            tokio::time::sleep(Duration::from_millis(ms)).await;
            text(StatusCode::OK, &format!("slept {ms}\n"))
        }
        "/sse" => events(&client, number("n"), number("ms").max(1)),
        "/ws" => websocket::upgrade(&client, request),
        "/count" if request.method() == Method::GET => count::send(number("n")),
        "/count" => count::check(request.into_body()).await,
        "/lab.Echo/Say" => grpc::say(request),
        _ => about(&client, &request),
    })
}

fn about(client: &PodClient, request: &Request<Incoming>) -> Response<PodBody> {
    let header = |headers: &HeaderMap, name| {
        let value: Option<&HeaderValue> = headers.get(name);
        String::from_utf8_lossy(value.map_or(&[], HeaderValue::as_bytes)).into_owned()
    };
    let info = &client.pod.info;
    let host = match request.uri().authority() {
        Some(authority) => authority.to_string(),
        None => header(request.headers(), header::HOST),
    };
    let mut body = json!({
        "service": info.service,
        "hostname": info.hostname,
        "ip": info.ip,
        "local": format!("127.0.0.1:{}", client.port),
        "remote": format!("127.0.0.1:{}", client.from),
        "host": host,
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map_or("", |p| p.as_str()),
        "proto": format!("{:?}", request.version()),
    })
    .to_string();
    body.push('\n');
    response(StatusCode::OK, "application/json", full(body))
}

/// `n` bytes of the pattern that every program with this name sends.
fn bytes(n: u64) -> Response<PodBody> {
    let block = pattern();
    let chunks = stream::unfold(n, move |left| {
        let block = block.clone();
        async move {
            let size = left.min(block.len() as u64);
            let chunk = block.slice(..size as usize);
            (size > 0).then(|| (Ok(Frame::data(chunk)), left - size))
        }
    });
    let body = StreamBody::new(chunks).boxed_unsync();
    let mut response = response(StatusCode::OK, "application/octet-stream", body);
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, n.into());
    response
}

/// 64 KiB, each byte `i*7 + i>>8`, so that a shift or a lost piece shows.
fn pattern() -> Bytes {
    (0..64 * 1024_usize)
        .map(|i| (i * 7 + (i >> 8)) as u8)
        .collect()
}

async fn sink(mut body: Incoming) -> Response<PodBody> {
    let mut total = 0;
    while let Some(Ok(frame)) = body.frame().await {
        total += frame.data_ref().map_or(0, Bytes::len);
    }
    text(StatusCode::OK, &format!("{total}\n"))
}

/// `n` events `ms` apart; 0 is for ever.
fn events(client: &PodClient, n: u64, ms: u64) -> Response<PodBody> {
    let hostname = client.pod.info.hostname.clone();
    let events = stream::unfold(1, move |i| {
        let event = format!("data: {i} {hostname}\n\n");
        async move {
            if i > 1 {
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
            (n == 0 || i <= n).then(|| (Ok(Frame::data(Bytes::from(event))), i + 1))
        }
    });
    let body = StreamBody::new(events).boxed_unsync();
    response(StatusCode::OK, "text/event-stream", body)
}

pub(super) fn text(code: StatusCode, body: &str) -> Response<PodBody> {
    response(code, "text/plain; charset=utf-8", full(body.to_owned()))
}

pub(super) fn response(code: StatusCode, kind: &'static str, body: PodBody) -> Response<PodBody> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

pub(super) fn full(body: String) -> PodBody {
    Full::new(Bytes::from(body)).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_the_real_one() {
        let pattern = pattern();
        assert_eq!(pattern.len(), 65_536);
        assert_eq!(&pattern[..4], [0, 7, 14, 21]);
        assert_eq!(pattern[256], 1);
    }
}
