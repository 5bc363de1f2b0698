//! Sending a request on, and its answer back.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use kubevpn_conn::Live;
use kubevpn_target::{Connect, Target};

use crate::Settings;
use crate::answer;
use crate::exchange::{Handover, SharedExchange};
use crate::headers::{self, Asks, RequestContent};
use crate::pool::Reused;
use crate::problem::Problem;
use crate::reply::{Download, HttpReply};
use crate::upload::{GoAhead, Upload};
use crate::upstream::{Upstream, promised};

/// Sends a request on and waits for the head of its answer.
///
/// A connection that was used before may be dead without our knowing: a Pod's close reaches us a second
/// late. So only a request that can be repeated is sent on one, and repeated once, on a stream of its own. A
/// connection that knows who the client is has no other like it, and takes every request of that client.
pub(crate) async fn forward<S: Connect>(
    mut head: Parts,
    body: Incoming,
    target: Target,
    connect: S,
    settings: &Settings,
    exchange: &Arc<SharedExchange>,
) -> Result<Response<HttpReply>, Problem> {
    let content = match body.size_hint().exact() {
        _ if body.is_end_stream() => RequestContent::None,
        Some(_) => RequestContent::Known,
        None => RequestContent::Chunked,
    };
    let interim = head.version == Version::HTTP_11;
    let knows_client = headers::knows_client(&head.headers);
    let asks = headers::request(&mut head, &target, content, settings.keep_host);
    let attempt = ForwardAttempt {
        asks,
        interim,
        knows_client,
        target,
        settings,
        exchange,
    };
    let body = match content {
        RequestContent::None => None,
        RequestContent::Known | RequestContent::Chunked => Some(body),
    };
    let repeatable = body.is_none() && !asks.upgrade && head.method.is_idempotent();

    let mut own = exchange.take_own(&attempt.target);
    if let Some(upstream) = &mut own
        && !poll_fn(|cx| Poll::Ready(upstream.is_free(cx))).await
    {
        own = None;
    }
    if !repeatable && let Some(upstream) = own {
        return attempt.send(upstream, head, body).await;
    }
    let reused = match own {
        Some(upstream) => Some(Reused {
            upstream,
            rested: Duration::ZERO,
        }),
        None if repeatable && !knows_client => settings.pool.take(&attempt.target).await,
        None => None,
    };
    if let Some(Reused {
        mut upstream,
        rested,
    }) = reused
    {
        exchange.tried(upstream.via());
        let (request, _) = attempt.request(head.clone(), None);
        match upstream.send(request).await {
            Ok(answer) => {
                exchange.via(upstream.via().clone());
                return attempt.answered(upstream, answer, None).await;
            }
            Err(error) if error.is_parse() => {
                exchange.via(upstream.via().clone());
                return Err(attempt.failed(error));
            }
            Err(error) => {
                exchange.lost();
                tracing::debug!(target = %attempt.target, %error, ?rested, "a kept connection was dead, trying a new one");
                settings.pool.learn(&attempt.target, rested);
            }
        }
    }
    let dial = connect.connect(attempt.target.clone());
    let dial = Box::pin(Live::dialling(exchange.live(), dial));
    let stream = dial.await.map_err(Problem::Refused)?;
    let upstream = Upstream::new(stream).await;
    let upstream = upstream.map_err(|error| attempt.failed(error))?;
    attempt.send(upstream, head, body).await
}

/// One request and its answer.
struct ForwardAttempt<'e> {
    asks: Asks,
    /// The client takes interim answers.
    interim: bool,
    knows_client: bool,
    target: Target,
    settings: &'e Settings,
    exchange: &'e Arc<SharedExchange>,
}

impl ForwardAttempt<'_> {
    async fn send(
        self,
        mut upstream: Upstream,
        head: Parts,
        body: Option<Incoming>,
    ) -> Result<Response<HttpReply>, Problem> {
        self.exchange.via(upstream.via().clone());
        let (request, go_ahead) = self.request(head, body);
        match upstream.send(request).await {
            Ok(answer) => self.answered(upstream, answer, go_ahead).await,
            Err(error) => Err(self.failed(error)),
        }
    }

    fn request(&self, head: Parts, body: Option<Incoming>) -> (Request<Upload>, Option<GoAhead>) {
        let mut upload = Upload::new(body, Arc::clone(self.exchange));
        let go_ahead = self.asks.go_ahead.then(|| upload.wait_for_go_ahead());
        let mut request = Request::from_parts(head, upload);
        let (given, exchange) = (go_ahead.clone(), Arc::clone(self.exchange));
        let interim = self.interim;
        hyper::ext::on_informational(&mut request, move |answer| match answer.status() {
            StatusCode::CONTINUE => {
                if let Some(go_ahead) = &given {
                    go_ahead.give();
                }
            }
            status if interim => {
                let mut fields = answer.headers().clone();
                headers::interim(&mut fields);
                exchange.add_interim(&answer::head(status, &fields));
            }
            _ => {}
        });
        (request, go_ahead)
    }

    async fn answered(
        self,
        mut upstream: Upstream,
        answer: Response<Incoming>,
        go_ahead: Option<GoAhead>,
    ) -> Result<Response<HttpReply>, Problem> {
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switched(upstream, answer).await;
        }
        upstream.knows_client |= self.knows_client || headers::knows_client(answer.headers());
        let promised = promised(answer.headers());
        let asked_for_body = go_ahead.is_none_or(|go_ahead| go_ahead.settle());
        let (mut head, body) = answer.into_parts();
        let Ok(left) = headers::response(&mut head) else {
            return Err(Problem::AnswerCoding(self.target));
        };
        if !asked_for_body {
            // Whether the client sends its body now or never, it cannot be told from a next request.
            head.headers
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut download = Download {
            left: left.filter(|_| !body.is_end_stream()),
            body,
            upstream: Some(upstream),
            target: self.target,
            promised,
            pool: self.settings.pool.clone(),
        };
        self.exchange.start();
        if download.body.is_end_stream() {
            poll_fn(|cx| {
                download.complete(cx, self.exchange);
                Poll::Ready(())
            })
            .await;
        }
        let reply = HttpReply::download(download, self.exchange);
        Ok(Response::from_parts(head, reply))
    }

    /// Gives both streams to whoever serves this connection, and is not polled again.
    async fn switched(
        self,
        mut upstream: Upstream,
        mut answer: Response<Incoming>,
    ) -> Result<Response<HttpReply>, Problem> {
        let upgraded = match self.asks.upgrade {
            true => upstream.upgraded(&mut answer).await.ok(),
            false => None,
        };
        let (mut head, _) = answer.into_parts();
        match upgraded {
            Some(upgraded) if headers::response(&mut head).is_ok() => {
                self.exchange
                    .answered(StatusCode::SWITCHING_PROTOCOLS, &head.headers);
                let fields = Box::new(head.headers);
                self.exchange.hand_over(Handover::Upgrade(fields, upgraded));
                pending().await
            }
            _ => Err(Problem::Switched(self.target)),
        }
    }

    fn failed(&self, error: hyper::Error) -> Problem {
        let target = self.target.clone();
        if self.exchange.has_broken_body() {
            Problem::Body
        } else if error.is_parse_too_large() {
            Problem::LargeAnswer(target)
        } else if error.is_parse() {
            Problem::Garbage { target, error }
        } else {
            Problem::Died { target, error }
        }
    }
}
