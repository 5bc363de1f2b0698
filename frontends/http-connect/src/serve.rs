//! One client connection from its first byte to its last.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use std::{error, fmt, io};

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kubevpn_conn::{ClientIo, End, Record, Tunnel, reply_and_close};
use kubevpn_target::{Connect, Frontend, Origin};
use tracing::Instrument;

use self::drive::{Driver, Over};
use crate::authority::host_value;
use crate::forward::forward;
use crate::problem::Problem;
use crate::reply::{Answered, Reply};
use crate::request::{self, Asked};
use crate::tap::Tap;
use crate::tunnel::{self, say_no};
use crate::turn::{Handover, Turn};
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
    let origin = Origin {
        frontend: Frontend::Http,
        peer: client.peer(),
    };
    let span = tracing::info_span!(
        "conn",
        client.addr = origin.peer.map(tracing::field::display),
        frontend = origin.frontend.as_str(),
    );
    serve(client, connect, settings, origin)
        .instrument(span)
        .await
}

async fn serve<C, S>(
    client: C,
    connect: S,
    settings: &Settings,
    origin: Origin,
) -> Result<(), ServeError>
where
    C: ClientIo,
    S: Connect + Clone,
{
    let turn = Arc::new(Turn::default());
    let (for_hyper, tap) = Tap::new(client, Arc::clone(&turn));
    let (over, mut early) = {
        let (connect, turn_of_request) = (connect.clone(), Arc::clone(&turn));
        let service = service_fn(move |request| {
            turn_of_request.begin();
            let turn = Arc::clone(&turn_of_request);
            respond(request, connect.clone(), settings, origin, turn)
        });
        let mut http = http1::Builder::new()
            // A client may end its writing and still read its answer.
            .half_close(true)
            .max_buf_size(MAX_HEAD)
            // The driver knows idle connections from slow heads.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(for_hyper), service);
        let mut driver = Driver::new(&tap, &turn, settings);
        let stopping = pin!(settings.drain.stopping());
        let over = driver.run(&mut http, stopping).await;
        (over, BytesMut::from(http.into_parts().read_buf))
    };
    let facts = Facts {
        first: tap.first(),
        refused: tap.refused(),
        unanswered: tap.is_corked(),
        ended: tap.has_ended(),
    };
    let Some((mut client, ahead)) = tap.into_inner() else {
        // hyper has just given its handle back.
        return Err(ServeError::Gone(io::ErrorKind::NotConnected.into()));
    };
    early.extend_from_slice(&ahead);

    if let Over::Taken(handover) = over {
        let record = turn.take_record();
        let tunnel = Tunnel {
            client,
            early,
            record: record.unwrap_or_else(|| Record::start(origin.frontend, origin.peer)),
            patience: settings.head_timeout,
            idle: settings.idle_timeout,
        };
        return tunnel::serve(handover, tunnel, connect).await;
    }
    let record = || Record::start(origin.frontend, origin.peer);
    match verdict(over, &facts, &turn, settings) {
        Verdict::Done => {
            if !facts.ended {
                let _ = reply_and_close(client, b"").await;
            }
            Ok(())
        }
        Verdict::Unused => {
            record().unused();
            Err(ServeError::Unused)
        }
        Verdict::Refuse(problem) => {
            record().rejected(&problem);
            if facts.unanswered {
                say_no(client, &problem).await;
            } else {
                let _ = reply_and_close(client, b"").await;
            }
            Err(ServeError::Rejected(problem.to_string()))
        }
        Verdict::Gone(error) => {
            let told = io::Error::new(error.kind(), error.to_string());
            turn.client_failed(told);
            client.reset_on_drop();
            Err(ServeError::Gone(error))
        }
        Verdict::Idle => {
            turn.ended(End::Idle);
            client.reset_on_drop();
            Err(ServeError::Idle)
        }
    }
}

/// What the tap saw.
struct Facts {
    first: Option<u8>,
    /// The status hyper would have answered a malformed head with.
    refused: Option<StatusCode>,
    /// No answer is half written.
    unanswered: bool,
    /// The client has sent its end of file.
    ended: bool,
}

/// How the HTTP part of a connection is to end.
enum Verdict {
    Done,
    Unused,
    Refuse(Problem),
    Gone(io::Error),
    Idle,
}

fn verdict(over: Over, facts: &Facts, turn: &Turn, settings: &Settings) -> Verdict {
    let unused = turn.requests() == 0 && facts.first.is_none();
    match over {
        _ if unused => Verdict::Unused,
        Over::Http(Ok(())) | Over::Kept | Over::Taken(_) => Verdict::Done,
        Over::Http(Err(error)) if error.is_parse() || error.is_incomplete_message() => {
            Verdict::Refuse(malformed(&error, facts))
        }
        Over::Http(Err(error)) => Verdict::Gone(io::Error::other(error)),
        Over::Slow => Verdict::Refuse(Problem::Slow(settings.head_timeout)),
        Over::Gone(error) => Verdict::Gone(error),
        Over::Idle => Verdict::Idle,
    }
}

fn malformed(error: &hyper::Error, facts: &Facts) -> Problem {
    let mut status = facts.refused.unwrap_or(StatusCode::BAD_REQUEST);
    let sentence = match facts.first {
        Some(0x16) => "this port does not speak TLS: write the proxy's address as http://, for https targets too".into(),
        Some(0x04 | 0x05) => "this port does not speak SOCKS: use the SOCKS port, or set this one as an HTTP proxy".into(),
        _ if error.is_parse_version_h2() => {
            status = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
            "the proxy speaks HTTP/1.1 with its clients: send HTTP/2 through a tunnel (CONNECT)".into()
        }
        _ if error.is_parse_too_large() => {
            if status == StatusCode::BAD_REQUEST {
                status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            }
            format!("the request's head has more than {} KiB or {MAX_FIELDS} fields", MAX_HEAD / 1024)
        }
        _ if error.is_incomplete_message() => "the connection ended in the middle of the request's head".into(),
        _ => format!("this is no well-formed HTTP/1.1 request ({error})"),
    };
    Problem::Malformed { status, sentence }
}

/// Answers one request, or hands its connection over and is not polled again.
async fn respond<S: Connect>(
    request: Request<Incoming>,
    connect: S,
    settings: &Settings,
    origin: Origin,
    turn: Arc<Turn>,
) -> Answered {
    let (head, body) = request.into_parts();
    let (tunnel, has_body) = (head.method == Method::CONNECT, !body.is_end_stream());
    let own = |answer: Response<Bytes>| {
        turn.answer();
        Ok(Reply::text(answer, &turn))
    };
    let asked = request::read(&head, settings, origin);
    match &asked {
        Ok(Asked::Help(host)) => {
            let host = host.as_ref().map(host_value);
            return own(answer::help(host.as_deref()));
        }
        Ok(Asked::Pac(host)) => {
            let host = host.as_ref().map(ToString::to_string);
            let text = match &settings.pac {
                Some(pac) => pac.text(host).await,
                None => String::new(),
            };
            return own(answer::pac(text.into()));
        }
        Ok(Asked::LastHop) => return own(answer::last_hop(&head)),
        _ => {}
    }

    let mut record = Record::start(origin.frontend, origin.peer);
    let span = tracing::info_span!("request", id = record.id());
    let problem = match asked {
        Ok(Asked::Tunnel(target)) => {
            record.target(&target);
            turn.record(record);
            turn.hand_over(Handover::Tunnel(target));
            return pending().await;
        }
        Ok(Asked::Forward(target)) => {
            record.target(&target);
            turn.record(record);
            let sent = forward(head, body, target, connect, &settings.pool, &turn);
            match sent.instrument(span).await {
                Ok(answer) => return Ok(answer),
                Err(problem) => problem,
            }
        }
        Err(problem) if tunnel => {
            turn.record(record);
            turn.hand_over(Handover::Refused(problem));
            return pending().await;
        }
        Err(problem) => {
            turn.record(record);
            problem
        }
        Ok(Asked::Help(_) | Asked::Pac(_) | Asked::LastHop) => unreachable!("answered above"),
    };
    turn.failed(&problem);
    let mut answer = answer::refusal(&problem);
    if has_body {
        // Nobody reads what is left of it.
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(CONNECTION, close);
    }
    own(answer)
}

/// Why a connection ended before its time. Its requests have their own records; this is about the rest.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeError {
    /// The client ended, or said nothing, without a byte.
    Unused,
    /// What the client sent is no HTTP request, or was not complete in time, and it was told this.
    Rejected(String),
    /// A CONNECT was refused; its record says why.
    Refused,
    /// The connection to the client, or the answer it was getting, broke.
    Gone(io::Error),
    /// No byte moved for as long as the settings allow.
    Idle,
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unused => f.write_str("the client ended without a byte"),
            Self::Rejected(sentence) => f.write_str(sentence),
            Self::Refused => f.write_str("a tunnel was refused"),
            Self::Gone(_) => f.write_str("the client's connection broke off"),
            Self::Idle => f.write_str("no byte moved for too long"),
        }
    }
}

impl error::Error for ServeError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Gone(error) => Some(error),
            Self::Unused | Self::Rejected(_) | Self::Refused | Self::Idle => None,
        }
    }
}

/// A client that has ended its writing may be gone for good, which looks the same. So its request is given
/// up when nothing was sent to it for so long.
pub(crate) const HALF_CLOSED: Duration = Duration::from_secs(60);
