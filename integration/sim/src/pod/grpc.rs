//! The echo program's `/lab.Echo/Say`: a gRPC method that answers every message with the same message.

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};

use super::http::{PodBody, response, text};

/// The largest message.
const LARGEST: usize = 16 * 1024 * 1024;
/// A byte that says whether it is compressed, and the length.
const PREFIX: usize = 5;

pub(super) fn say(request: Request<Incoming>) -> Response<PodBody> {
    if request.version() != Version::HTTP_2 {
        let code = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
        return text(code, "gRPC is HTTP/2\n");
    }
    let state = Some((request.into_body(), BytesMut::new()));
    let frames = stream::unfold(state, |state| async move {
        let (mut body, mut read) = state?;
        loop {
            match message(&mut read) {
                Ok(Some(message)) => return Some((Ok(Frame::data(message)), Some((body, read)))),
                Ok(None) => {}
                Err(TooLarge) => return Some((Ok(Frame::trailers(trailers("8"))), None)),
            }
            match body.frame().await {
                Some(Ok(frame)) => {
                    read.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()))
                }
                Some(Err(_)) | None => return Some((Ok(Frame::trailers(trailers("0"))), None)),
            }
        }
    });
    let body = StreamBody::new(frames).boxed_unsync();
    response(StatusCode::OK, "application/grpc", body)
}

struct TooLarge;

/// The next whole message, its prefix with it.
fn message(read: &mut BytesMut) -> Result<Option<Bytes>, TooLarge> {
    if read.len() < PREFIX {
        return Ok(None);
    }
    let length = (&read[1..]).get_u32() as usize;
    if length > LARGEST {
        return Err(TooLarge);
    }
    let whole = PREFIX + length;
    Ok((read.len() >= whole).then(|| read.split_to(whole).freeze()))
}

fn trailers(status: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    trailers.insert("grpc-message", HeaderValue::from_static("said"));
    trailers
}
