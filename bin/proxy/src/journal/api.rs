//! The HTTP API of the journal, on the daemon's socket and on that of a proxy in the foreground.
//!
//! | request | answer |
//! |---|---|
//! | `GET …/inside` | a [`JournalSnapshot`](super::JournalSnapshot) |
//! | `GET …/events`; `?exchanges` for HTTP requests too, `?heads` for these with their heads | one line of JSON for each [`Stamped`](super::Stamped) event from now on |
//! | `GET …/pages` | the URLs of its status pages, with their tokens |
//! | `POST …/cut/NUMBER` | whether that connection existed |

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream::unfold;
use http::{Method, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;

use super::{Events, ProxyView};

/// A response, complete or streaming.
pub type JournalResponse = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Answers a request by the last segments of its path; `None` if the path is unknown.
pub async fn answer(
    view: &ProxyView,
    method: &Method,
    path: &[&str],
    query: Option<&str>,
) -> Option<JournalResponse> {
    Some(match (method, path) {
        (&Method::GET, ["inside"]) => json(&view.snapshot().await),
        (&Method::GET, ["events"]) => stream(match query {
            Some("heads") => view.events_with_heads(),
            query => view.events(query == Some("exchanges")),
        }),
        (&Method::GET, ["pages"]) => json(&view.journal().pages()),
        (&Method::POST, ["cut", id]) => json(&view.cut(id.parse().ok()?)),
        _ => return None,
    })
}

fn json(document: &impl Serialize) -> JournalResponse {
    // These types always serialise.
    let text = serde_json::to_vec(document).unwrap_or_default();
    Response::new(Full::from(text).boxed_unsync())
}

/// Streams a line for each event.
fn stream(events: Events) -> JournalResponse {
    let frames = unfold(events, |mut events| async move {
        let event = events.next().await?;
        let mut line = serde_json::to_vec(&*event).unwrap_or_default();
        line.push(b'\n');
        Some((Ok(Frame::data(line.into())), events))
    });
    Response::new(StreamBody::new(frames).boxed_unsync())
}
