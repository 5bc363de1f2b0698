//! Requests on connections: calls share HTTP/2 connections, each upgrade gets an HTTP/1.1 one.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{Either, ready, select};
use http::{Request, Response, header};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::client::legacy::{Builder, Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::Body;
use kube::client::retry::RetryPolicy;
use kubevpn_target::BoxError;
use tokio::sync::OnceCell;
use tower::retry::Retry;
use tower::{Service, ServiceExt};

use crate::connector::Connector;
use crate::error::ClientError;
use crate::options::Options;

/// How many requests one connection carries at a time before the next is opened. API servers and the
/// proxies before them allow 100 streams as a rule; the rest is room for those who allow fewer, and for
/// calls beside long watches.
const STREAMS_PER_CONNECTION: usize = 64;

/// What is read of the API server.
pub(crate) type Received = UnsyncBoxBody<Bytes, BoxError>;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Received>, BoxError>> + Send>>;

/// Sends each request the way it needs. Always ready.
#[derive(Clone)]
pub(crate) struct Transport {
    calls: Retry<RetryPolicy, Calls>,
    upgrades: Client<Connector, Body>,
    server: Arc<str>,
    /// How long a call may take until its response's head is there.
    answer: Duration,
}

impl Transport {
    /// `calls` makes connections for plain calls, `upgrades` for upgrades.
    pub(crate) fn new(
        calls: Connector,
        upgrades: Connector,
        server: Arc<str>,
        retry: RetryPolicy,
        options: &Options,
    ) -> Self {
        let mut shared = Client::builder(TokioExecutor::new());
        shared
            // hyper-util takes a connection for idle on which nothing is asked, be it full of watches,
            // and opens another. The server closes the ones that really are.
            .pool_idle_timeout(None)
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(options.ping_interval)
            .http2_keep_alive_timeout(options.ping_timeout)
            // So that the call after a laptop's sleep does not find the connection dead.
            .http2_keep_alive_while_idle(true);
        // An idle HTTP/1.1 connection is not probed: what is left of a refused upgrade may be dead by the
        // time of the next one.
        let upgrades = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(upgrades);
        Self {
            calls: Retry::new(retry, Calls::new(shared, calls, server.clone())),
            upgrades,
            server,
            answer: options.answer_timeout,
        }
    }
}

fn received<B>(body: B, server: Arc<str>) -> Received
where
    B: BodyExt<Data = Bytes, Error = hyper::Error> + Send + 'static,
{
    let failed = move |source: hyper::Error| {
        let (server, source) = (server.clone(), source.into());
        ClientError::Transport { server, source }.into()
    };
    body.map_err(failed).boxed_unsync()
}

impl Service<Request<Body>> for Transport {
    type Response = Response<Received>;
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let Self {
            calls,
            upgrades,
            server,
            answer,
        } = self.clone();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        Box::pin(async move {
            let upgrade = request.headers().contains_key(header::UPGRADE);
            let answered = if upgrade {
                // Never retried, and timed by the caller: an upgrade is one step of its dial.
                let upgraded = upgrades.request(request).await;
                let received = |body| received(body, server.clone());
                upgraded.map(|r| r.map(received)).map_err(Into::into)
            } else {
                match tokio::time::timeout(answer, calls.oneshot(request)).await {
                    Ok(answered) => answered,
                    Err(_) => {
                        let server = server.clone();
                        return Err(ClientError::NoAnswer {
                            server,
                            after: answer,
                        }
                        .into());
                    }
                }
            };
            match answered {
                Ok(response) => {
                    let status = response.status().as_u16();
                    tracing::debug!(%method, path, upgrade, status, "answered");
                    Ok(response)
                }
                Err(source) => {
                    tracing::debug!(%method, path, upgrade, error = %source, "not answered");
                    Err(ClientError::Transport { server, source }.into())
                }
            }
        })
    }
}

/// Plain calls over as few connections as their streams fit on.
///
/// hyper-util's client keeps one HTTP/2 connection per server and queues what the server has no stream
/// for: behind 100 watches a call would wait for ever. So there is a client per
/// [`STREAMS_PER_CONNECTION`] requests in flight, the first with room takes the next.
#[derive(Clone)]
struct Calls {
    builder: Builder,
    connector: Connector,
    server: Arc<str>,
    lanes: Arc<Mutex<Vec<Lane>>>,
}

#[derive(Clone)]
struct Lane {
    client: Client<Connector, Body>,
    /// A clone lives as long as a request or the body of its response.
    streams: Arc<()>,
    /// Set once the first connection stands or has failed.
    opened: Arc<OnceCell<()>>,
}

impl Lane {
    /// The first request goes ahead until it has a connection: what comes with it would otherwise open as
    /// many, since that they can share one is known when TLS is up.
    async fn request(&self, mut request: Request<Body>) -> Result<Response<Incoming>, Error> {
        let mut connection = capture_connection(&mut request);
        let mut answer = Either::Left(self.client.request(request));
        self.opened
            .get_or_init(|| async {
                let connected = pin!(connection.wait_for_connection_metadata());
                if let Either::Left((answered, _)) = select(&mut answer, connected).await {
                    answer = Either::Right(ready(answered));
                }
            })
            .await;
        answer.await
    }
}

impl Calls {
    fn new(builder: Builder, connector: Connector, server: Arc<str>) -> Self {
        Self {
            builder,
            connector,
            server,
            lanes: Arc::default(),
        }
    }

    fn lane(&self) -> Lane {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let free = lanes
            .iter()
            .find(|lane| Arc::strong_count(&lane.streams) <= STREAMS_PER_CONNECTION);
        if let Some(lane) = free {
            return lane.clone();
        }
        let lane = Lane {
            client: self.builder.build(self.connector.clone()),
            streams: Arc::default(),
            opened: Arc::default(),
        };
        lanes.push(lane.clone());
        lane
    }
}

impl Service<Request<Body>> for Calls {
    type Response = Response<Received>;
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let (lane, server) = (self.lane(), self.server.clone());
        Box::pin(async move {
            let response = lane.request(request).await?;
            Ok(response.map(|body| {
                let counted = body.map_frame(move |frame| {
                    let _until_dropped = &lane.streams;
                    frame
                });
                received(counted, server)
            }))
        })
    }
}
