//! A connection to a target that speaks HTTP/1.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kubevpn_target::{Stream, Via};

use crate::upload::Upload;
use crate::{MAX_FIELDS, MAX_HEAD};

/// The connection and hyper's driver of it. The user of the connection drives it, so that a request needs no
/// second task and no hop between threads.
pub(crate) struct Upstream {
    requests: http1::SendRequest<Upload>,
    wire: Option<UpstreamWire>,
    via: Via,
    /// Whether the server has authenticated the client by NTLM or Negotiate, which authenticate a connection and not a
    /// request (RFC 4559 section 6): other clients' requests must not use it.
    pub(crate) knows_client: bool,
}

type UpstreamWire = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

impl Upstream {
    pub(crate) async fn new<S: Stream>(stream: S) -> hyper::Result<Self> {
        let via = stream.via();
        let (requests, wire) = http1::Builder::new()
            .max_header_size(MAX_HEAD)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_FIELDS)
            .preserve_header_case(true)
            .title_case_headers(true)
            // Leniency that clients show towards servers, including RFC 9112 sections 5.1 and 5.2.
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .handshake(TokioIo::new(stream))
            .await?;
        Ok(Self {
            requests,
            wire: Some(Box::pin(wire.with_upgrades())),
            via,
            knows_client: false,
        })
    }

    /// The target of the connection.
    pub(crate) fn via(&self) -> &Via {
        &self.via
    }

    /// Transfers bytes in both directions as far as possible.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(wire) = &mut self.wire
            && let Poll::Ready(ended) = wire.as_mut().poll(cx)
        {
            // The waiting request has got the error.
            if let Err(error) = ended {
                tracing::debug!(%error, via = %self.via, "a connection to the target broke");
            }
            self.wire = None;
        }
    }

    /// Sends a request and waits for the head of its answer. The body needs [`drive`](Self::drive) to move.
    pub(crate) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> hyper::Result<Response<Incoming>> {
        let mut answer = pin!(self.requests.send_request(request));
        poll_fn(|cx| {
            if let Some(wire) = &mut self.wire
                && wire.as_mut().poll(cx).is_ready()
            {
                self.wire = None;
            }
            answer.as_mut().poll(cx)
        })
        .await
    }

    /// The stream after an answer that switched protocols.
    pub(crate) async fn upgraded(
        &mut self,
        answer: &mut Response<Incoming>,
    ) -> hyper::Result<Upgraded> {
        let mut upgraded = pin!(hyper::upgrade::on(answer));
        poll_fn(|cx| {
            self.drive(cx);
            upgraded.as_mut().poll(cx)
        })
        .await
    }

    /// Whether the connection seems able to take another request.
    pub(crate) fn is_free(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        self.wire.is_some() && self.requests.is_ready()
    }
}

/// The server's keep-alive time (`Keep-Alive: timeout=5`) minus a second, which a Pod's close takes to
/// reach us.
pub(crate) fn promised(headers: &http::HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let mut parameters = value.split(',').map(str::trim);
    let seconds = parameters.find_map(|p| p.strip_prefix("timeout="))?;
    let seconds: u32 = seconds.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.saturating_sub(1).into()))
}
