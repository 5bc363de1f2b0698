//! One query to one answer, within its time limit.

use std::future::poll_fn;

use hickory_proto::op::{Message, Query, ResponseCode};
use kubevpn_target::{BoxError, ConnectError, Refusal, classify};
use tokio::time::timeout;
use tower_service::Service;

use crate::request::DnsRequest;
use crate::{Settings, response_code, upstream};

/// A service that answers queries.
///
/// Do not implement it: every [`Service<Query>`] that answers with a [`Message`] has it. Of the message, the response code,
/// `authoritative` and the sections are used. Errors are classified; a name outside the service's zones is
/// [`Refusal::Denied`].
pub trait AnswerQueries: Send {
    /// Waits until the service is ready, and calls it once.
    ///
    /// Cancellation: dropping the future gives the query up.
    fn answer(self, query: Query) -> impl Future<Output = Result<Message, ConnectError>> + Send;
}

impl<S> AnswerQueries for S
where
    S: Service<Query, Response = Message> + Send,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    async fn answer(mut self, query: Query) -> Result<Message, ConnectError> {
        poll_fn(|cx| self.poll_ready(cx))
            .await
            .map_err(|e| classify(e.into()))?;
        let answer = self.call(query);
        answer.await.map_err(|e| classify(e.into()))
    }
}

/// The complete answer to a request.
pub(crate) async fn ask<S: AnswerQueries>(
    request: &DnsRequest,
    service: S,
    settings: &Settings,
) -> Message {
    let query = &request.query;
    let limit = settings.answer_timeout;
    let answered = timeout(limit, through(request, service, settings)).await;
    let answered = answered.unwrap_or_else(|_| {
        let sentence = format!("no answer within {limit:?}");
        Err(ConnectError::new(Refusal::TimedOut, sentence))
    });
    let mut response = request.response();
    // Without an upstream only the service is asked, so recursion is not available.
    response.metadata.recursion_available = settings.upstream.is_some();
    match answered {
        Ok(found) => {
            response.metadata.response_code = found.metadata.response_code;
            response.metadata.authoritative = found.metadata.authoritative;
            response.metadata.recursion_available |= found.metadata.recursion_available;
            response.answers = found.answers;
            response.authorities = found.authorities;
            response.additionals = found.additionals;
            let code = response.metadata.response_code;
            tracing::debug!(name = %query.name(), kind = %query.query_type(), %code, "answered");
        }
        Err(error) => {
            response.metadata.response_code = response_code(error.refusal());
            let code = response.metadata.response_code;
            tracing::debug!(name = %query.name(), kind = %query.query_type(), %code, %error, "not answered");
        }
    }
    response
}

async fn through<S: AnswerQueries>(
    request: &DnsRequest,
    service: S,
    settings: &Settings,
) -> Result<Message, ConnectError> {
    let answered = service.answer(request.query.clone()).await;
    match (answered, settings.upstream) {
        (Err(error), Some(upstream)) if response_code(error.refusal()) == ResponseCode::Refused => {
            upstream::ask(request, upstream).await.map_err(|error| {
                let sentence =
                    format!("{upstream}, which is asked for other names, does not answer");
                ConnectError::new(Refusal::Unreachable, sentence).with_source(error)
            })
        }
        (answered, _) => answered,
    }
}
