//! The echo program's `/count`: bytes of which every eight say their own place, so that whatever is lost, doubled
//! or moved shows.

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};

use super::http::{PodBody, response, text};

const BLOCK: usize = 64 * 1024;

/// The block that begins at this place, a multiple of eight.
fn block(at: u64) -> BytesMut {
    let numbers = (at..at + BLOCK as u64).step_by(8);
    numbers.flat_map(u64::to_be_bytes).collect()
}

/// `n` of them.
pub(super) fn send(n: u64) -> Response<PodBody> {
    let blocks = stream::unfold(0, move |at| async move {
        let size = (n - at).min(BLOCK as u64);
        let block = block(at).split_to(size as usize).freeze();
        (size > 0).then(|| (Ok(Frame::data(block)), at + size))
    });
    let body = StreamBody::new(blocks).boxed_unsync();
    let mut response = response(StatusCode::OK, "application/octet-stream", body);
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, n.into());
    response
}

/// How many came, or where the first wrong one is.
pub(super) async fn check(mut body: Incoming) -> Response<PodBody> {
    let mut at = 0_u64;
    let mut expected = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        let mut data = frame.into_data().unwrap_or_default();
        while !data.is_empty() {
            if expected.is_empty() {
                expected = block(at);
            }
            let size = data.len().min(expected.len());
            let (got, expected) = (data.split_to(size), expected.split_to(size));
            if let Some(wrong) = differ(&got, &expected) {
                let wrong = at + wrong as u64;
                return text(StatusCode::OK, &format!("wrong at {wrong}\n"));
            }
            at += size as u64;
        }
    }
    text(StatusCode::OK, &format!("{at}\n"))
}

fn differ(got: &Bytes, expected: &[u8]) -> Option<usize> {
    if *got == expected {
        return None;
    }
    got.iter().zip(expected).position(|(a, b)| a != b)
}
