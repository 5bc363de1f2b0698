//! One client connection from its first byte to its last.

use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kubevpn_conn::{ClientIo, End, Recorder, Relayed, Tunnel, TunnelError, reply_and_close};
use kubevpn_target::{Connect, Frontend};
use tracing::Instrument;

use self::drive::{HttpDriver, Over};
use crate::authority::host_value;
use crate::client::ClientStream;
use crate::content::MissingContent;
use crate::exchange::{ExchangePhase, Handover, SharedExchange};
use crate::forward::forward;
use crate::head::{self, NoHead};
use crate::headers;
use crate::reply::{HttpReply, ServiceResult};
use crate::request::{self, RequestPurpose};
use crate::tunnel::{self, say_no};
use crate::{MAX_FIELDS, MAX_HEAD, Settings, answer};

mod drive;

/// Serves one client: any number of requests, each forwarded through `connect`, or one tunnel. Writes an
/// access record ([`kubevpn_conn::Record`]) for each that was to go anywhere.
///
/// `connect` is any `tower_service::Service<Target>` that answers with a [`kubevpn_target::Stream`]. Each
/// request that needs a stream calls a clone. A client whose connection breaks meanwhile cancels the dial;
/// one that has only ended its own writing does not.
///
/// Cancellation: dropping the future drops the client's stream and the target's. A tunnel's client is reset.
///
/// ```no_run
/// use std::sync::Arc;
/// use kubevpn_http_connect::{Settings, serve_connection};
/// use kubevpn_target::Target;
/// use tokio::net::{TcpListener, TcpStream};
///
/// # async fn run() -> std::io::Result<()> {
/// let dialer = tower::service_fn(|target: Target| TcpStream::connect(target.to_string()));
/// let settings = Arc::new(Settings::default());
/// let listener = TcpListener::bind("127.0.0.1:8118").await?;
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
) -> Result<(), ServeError>
where
    C: ClientIo,
    S: Connect + Clone,
{
    let recorder = Recorder::new(Frontend::Http, &client);
    let origin = recorder.origin();
    let span = tracing::info_span!(
        "conn",
        client.addr = origin.peer.map(tracing::field::display),
        frontend = origin.frontend.as_str(),
    );
    serve(client, connect, settings, recorder)
        .instrument(span)
        .await
}

async fn serve<C, S>(
    client: C,
    connect: S,
    settings: &Settings,
    recorder: Recorder,
) -> Result<(), ServeError>
where
    C: ClientIo,
    S: Connect + Clone,
{
    // In a box, so that its memory is not held by the tunnel that may come of it.
    let spoken = Box::pin(speak(client, connect.clone(), settings, recorder)).await?;
    match spoken {
        None => Ok(()),
        Some((Handover::Tunnel(target), tunnel)) => {
            served(tunnel::dial(target, tunnel, connect).await)
        }
        // The rest is larger than a tunnel.
        Some((Handover::Upgrade(fields, upstream), tunnel)) => {
            served(Box::pin(tunnel::switch(&fields, upstream, tunnel)).await)
        }
        Some((Handover::Refused(problem), tunnel)) => {
            tunnel.record.rejected(&problem);
            Box::pin(say_no(tunnel.client, &problem)).await;
            Err(ServeError::Refused)
        }
    }
}

fn served(tunnel: Result<Relayed, TunnelError>) -> Result<(), ServeError> {
    match tunnel {
        Ok(_) => Ok(()),
        Err(TunnelError::Gone(error)) => Err(ServeError::Gone(error)),
        Err(TunnelError::Refused(_)) => Err(ServeError::Refused),
    }
}

/// Answers requests for as long as the connection is HTTP, and to its end unless it is handed over.
async fn speak<C, S>(
    mut client: C,
    connect: S,
    settings: &Settings,
    recorder: Recorder,
) -> Result<Option<(Handover, Tunnel<C>)>, ServeError>
where
    C: ClientIo,
    S: Connect + Clone,
{
    let record = || recorder.start();
    let head = match head::first(&mut client, settings).await {
        Ok(head) => head,
        Err(NoHead::Unused) => {
            record().unused();
            let _ = reply_and_close(client, b"").await;
            return Err(ServeError::Unused);
        }
        Err(NoHead::Refused(problem)) => {
            record().rejected(&problem);
            say_no(client, &problem).await;
            return Err(ServeError::Rejected(problem.to_string()));
        }
        Err(NoHead::Gone(error)) => return Err(ServeError::Gone(error)),
    };

    let exchange = Arc::new(SharedExchange::new());
    let (for_hyper, stream) = ClientStream::new(client, head, Arc::clone(&exchange));
    let (over, mut early) = {
        let exchange_of_request = Arc::clone(&exchange);
        let recorder = &recorder;
        let service = service_fn(move |request: Request<Incoming>| {
            let length = request.body().size_hint().exact();
            exchange_of_request.begin(MissingContent::new(length));
            let exchange = Arc::clone(&exchange_of_request);
            respond(request, connect.clone(), settings, recorder, exchange)
        });
        let mut http = http1::Builder::new()
            // A client may end its writing and still read its answer.
            .half_close(true)
            // `head.rs` has the same limit.
            .max_header_size(MAX_HEAD)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_FIELDS)
            .preserve_header_case(true)
            .title_case_headers(true)
            // The driver knows idle connections from slow heads.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(for_hyper), service);
        let mut driver = HttpDriver::new(&stream, &exchange, settings);
        let stopping = pin!(settings.drain.stopping());
        let over = driver.run(&mut http, stopping).await;
        (over, BytesMut::from(http.into_parts().read_buf))
    };
    let ended = stream.has_ended();
    let Some((mut client, ahead)) = stream.into_inner() else {
        // hyper has just given its handle back.
        return Err(ServeError::Gone(io::ErrorKind::NotConnected.into()));
    };
    if let Over::Handover(_) = over {
        early.extend_from_slice(&ahead);
    } else {
        // Nothing of it is held while the client is told no.
        early = BytesMut::new();
    }
    drop(ahead);

    match over {
        Over::Handover(handover) => {
            if exchange.is_authenticated() {
                client.authenticated();
            }
            let tunnel = Tunnel {
                client,
                early,
                record: exchange.take_record().unwrap_or_else(record),
                patience: settings.head_timeout,
                idle: settings.idle_timeout,
            };
            Ok(Some((handover, tunnel)))
        }
        Over::Done => {
            if !ended {
                let _ = reply_and_close(client, b"").await;
            }
            Ok(None)
        }
        Over::Refused { problem, said } => {
            record().rejected(&problem);
            match exchange.phase() {
                ExchangePhase::Head { .. } if !said => say_no(client, &problem).await,
                _ => {
                    let _ = reply_and_close(client, b"").await;
                }
            }
            Err(ServeError::Rejected(problem.to_string()))
        }
        Over::Gone(error) => {
            let told = io::Error::new(error.kind(), error.to_string());
            exchange.client_failed(told);
            client.reset_on_drop();
            Err(ServeError::Gone(error))
        }
        Over::Idle => {
            exchange.ended(End::Idle);
            client.reset_on_drop();
            Err(ServeError::Idle)
        }
    }
}

/// Answers one request, or hands its connection over and is not polled again.
async fn respond<S: Connect>(
    request: Request<Incoming>,
    connect: S,
    settings: &Settings,
    recorder: &Recorder,
    exchange: Arc<SharedExchange>,
) -> ServiceResult {
    let (head, body) = request.into_parts();
    let (tunnel, has_body) = (head.method == Method::CONNECT, !body.is_end_stream());
    let own = |answer: Response<Bytes>| {
        exchange.start();
        Ok(HttpReply::text(answer, &exchange))
    };
    let asked = request::read(&head, settings, recorder.origin());
    if let Ok(RequestPurpose::Tunnel(_) | RequestPurpose::Forward(_)) = asked {
        exchange.authenticated();
    }
    match &asked {
        Ok(RequestPurpose::Help(host)) => {
            let host = host.as_ref().map(host_value);
            return own(answer::help(host.as_deref()));
        }
        Ok(RequestPurpose::Pac(host)) => {
            let host = host.as_ref().map(ToString::to_string);
            let text = match &settings.pac {
                Some(pac) => pac.text(host).await,
                None => String::new(),
            };
            return own(answer::pac(text.into()));
        }
        Ok(RequestPurpose::LastHop) => return own(answer::last_hop(&head)),
        _ => {}
    }

    let mut record = recorder.start();
    let span = tracing::info_span!("request", id = record.id());
    let problem = match asked {
        Ok(RequestPurpose::Tunnel(target)) => {
            record.target(&target);
            exchange.record(record);
            exchange.hand_over(Handover::Tunnel(target));
            return pending().await;
        }
        Ok(RequestPurpose::Forward(target)) => {
            record.target(&target);
            record.exchange(
                head.method.as_str(),
                || head.uri.to_string(),
                || headers::told(head.version, &head.headers),
            );
            record.traceparent(|| headers::traceparent(&head.headers));
            exchange.record(record);
            let sent = forward(head, body, target, connect, settings, &exchange);
            match sent.instrument(span).await {
                Ok(answer) => {
                    exchange.answered(answer.status(), answer.headers());
                    return Ok(answer);
                }
                Err(problem) => problem,
            }
        }
        Err(problem) if tunnel => {
            exchange.record(record);
            exchange.hand_over(Handover::Refused(problem));
            return pending().await;
        }
        Err(problem) => {
            exchange.record(record);
            problem
        }
        Ok(RequestPurpose::Help(_) | RequestPurpose::Pac(_) | RequestPurpose::LastHop) => {
            unreachable!("answered above")
        }
    };
    let mut answer = answer::refusal(&problem);
    exchange.answered(answer.status(), answer.headers());
    exchange.failed(&problem);
    if has_body {
        // Nobody reads what is left of it.
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(CONNECTION, close);
    }
    own(answer)
}

/// Why a connection ended before its time. Its requests have their own records; this is about the rest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The client ended, or said nothing, without a byte.
    #[error("the client ended without a byte")]
    Unused,
    /// What the client sent is no HTTP request, or was not complete in time, and it was told this.
    #[error("{0}")]
    Rejected(String),
    /// A CONNECT was refused; its record says why.
    #[error("a tunnel was refused")]
    Refused,
    /// The connection to the client, or the answer it was getting, broke.
    #[error("the client's connection broke off")]
    Gone(#[source] io::Error),
    /// No byte moved for as long as the settings allow.
    #[error("no byte moved for too long")]
    Idle,
}

/// A client that has ended its writing may be gone for good, which looks the same. So its request is given
/// up when nothing was sent to it for so long.
pub(crate) const HALF_CLOSED: Duration = Duration::from_secs(60);
