//! Sending a request on, and its answer back.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::Poll;

use http::header::{CONNECTION, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use kubevpn_target::{Connect, Stream as _, Target};

use crate::headers::{self, Asks, Content};
use crate::pool::{Pool, Reused};
use crate::problem::Problem;
use crate::reply::{Download, Reply};
use crate::turn::{Handover, Turn};
use crate::upload::{GoAhead, Upload};
use crate::upstream::{Upstream, promised};

/// Sends a request on and waits for the head of its answer.
///
/// A connection that was used before may be dead without our knowing: a Pod's close reaches us a second
/// late. So only a request that can be repeated is sent on one, and repeated once, on a stream of its own.
pub(crate) async fn forward<S: Connect>(
    mut head: Parts,
    body: Incoming,
    target: Target,
    connect: S,
    pool: &Pool,
    turn: &Arc<Turn>,
) -> Result<Response<Reply>, Problem> {
    let content = match body.size_hint().exact() {
        _ if body.is_end_stream() => Content::None,
        Some(_) => Content::Known,
        None => Content::Chunked,
    };
    let asks = headers::request(&mut head, &target, content);
    let exchange = Exchange {
        asks,
        target,
        pool,
        turn,
    };
    let body = match content {
        Content::None => None,
        Content::Known | Content::Chunked => Some(body),
    };

    if body.is_none()
        && !asks.upgrade
        && head.method.is_idempotent()
        && let Some(reused) = pool.take(&exchange.target).await
    {
        let Reused {
            mut upstream,
            rested,
        } = reused;
        turn.via(upstream.via().clone());
        let (request, _) = exchange.request(head.clone(), None);
        match upstream.send(request).await {
            Ok(answer) => return exchange.answered(upstream, answer, None).await,
            Err(error) if error.is_parse() => return Err(exchange.failed(error)),
            Err(error) => {
                tracing::debug!(target = %exchange.target, %error, ?rested, "a kept connection was dead, trying a new one");
                pool.learn(&exchange.target, rested);
            }
        }
    }
    let dial = Box::pin(connect.connect(exchange.target.clone()));
    let stream = dial.await.map_err(Problem::Refused)?;
    turn.via(stream.via());
    let upstream = Upstream::new(stream).await;
    let mut upstream = upstream.map_err(|error| exchange.failed(error))?;
    let (request, go_ahead) = exchange.request(head, body);
    match upstream.send(request).await {
        Ok(answer) => exchange.answered(upstream, answer, go_ahead).await,
        Err(error) => Err(exchange.failed(error)),
    }
}

/// One request and its answer.
struct Exchange<'e> {
    asks: Asks,
    target: Target,
    pool: &'e Pool,
    turn: &'e Arc<Turn>,
}

impl Exchange<'_> {
    fn request(&self, head: Parts, body: Option<Incoming>) -> (Request<Upload>, Option<GoAhead>) {
        let mut upload = Upload::new(body, Arc::clone(self.turn));
        let go_ahead = self.asks.go_ahead.then(|| upload.wait_for_go_ahead());
        let mut request = Request::from_parts(head, upload);
        if let Some(go_ahead) = go_ahead.clone() {
            hyper::ext::on_informational(&mut request, move |answer| {
                if answer.status() == StatusCode::CONTINUE {
                    go_ahead.give();
                }
            });
        }
        (request, go_ahead)
    }

    async fn answered(
        self,
        upstream: Upstream,
        answer: Response<Incoming>,
        go_ahead: Option<GoAhead>,
    ) -> Result<Response<Reply>, Problem> {
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switched(upstream, answer).await;
        }
        let promised = promised(answer.headers());
        let asked_for_body = go_ahead.is_none_or(|go_ahead| go_ahead.settle());
        let (mut head, body) = answer.into_parts();
        if !headers::response(&mut head) {
            return Err(Problem::AnswerCoding(self.target));
        }
        if !asked_for_body {
            // Whether the client sends its body now or never, it cannot be told from a next request.
            head.headers
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut download = Download {
            body,
            upstream: Some(upstream),
            target: self.target,
            promised,
            pool: self.pool.clone(),
        };
        self.turn.answer();
        if download.body.is_end_stream() {
            poll_fn(|cx| {
                download.complete(cx, self.turn);
                Poll::Ready(())
            })
            .await;
        }
        let reply = Reply::download(download, self.turn);
        Ok(Response::from_parts(head, reply))
    }

    /// Gives both streams to whoever serves this connection, and is not polled again.
    async fn switched(
        self,
        mut upstream: Upstream,
        mut answer: Response<Incoming>,
    ) -> Result<Response<Reply>, Problem> {
        let upgraded = match self.asks.upgrade {
            true => upstream.upgraded(&mut answer).await.ok(),
            false => None,
        };
        let (mut head, _) = answer.into_parts();
        match upgraded {
            Some(upgraded) if headers::response(&mut head) => {
                let fields = Box::new(head.headers);
                self.turn.hand_over(Handover::Upgrade(fields, upgraded));
                pending().await
            }
            _ => Err(Problem::Switched(self.target)),
        }
    }

    fn failed(&self, error: hyper::Error) -> Problem {
        let target = self.target.clone();
        if self.turn.has_broken_body() {
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
