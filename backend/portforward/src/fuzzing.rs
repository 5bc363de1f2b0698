//! What `integration/fuzz` runs: a plain function over bytes, so that a test can replay a corpus.

use std::io;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;

use crate::config::Config;
use crate::error::ErrorText;
use crate::transport::{WebSocketChannel, said};

/// The longest sentence made of what others say: 300 characters and the mark of what was left out.
const SENTENCE: usize = 301;

/// Reads `data` as what the API server and a Pod's node say; the first byte picks which of it.
///
/// Panics when a bound is not kept, or when the way the bytes were cut changes what they mean.
pub fn pod_answers(data: &[u8]) {
    let Some((&what, data)) = data.split_first() else {
        return;
    };
    match what % 4 {
        0 => error_text(data),
        1 => refused_upgrade(data),
        2 => channel(data),
        _ => channel(&messages(data)),
    }
}

/// The error stream of a connection.
fn error_text(data: &[u8]) {
    let text = |piece: usize| {
        let mut text = ErrorText::default();
        data.chunks(piece).for_each(|piece| text.push(piece));
        text
    };
    let (whole, cut) = (text(usize::MAX), text(7));
    let refusal = whole.refusal("shop/web-0:80".into());
    assert_eq!(
        refusal.refusal(),
        cut.refusal("shop/web-0:80".into()).refusal()
    );
    assert_eq!(whole.failure(), cut.failure());
    let said = whole.failure().map(|f| f.to_string()).unwrap_or_default();
    sentence(&said);
    assert!(refusal.to_string().chars().count() < SENTENCE + 100);
}

/// The answer to an upgrade: two bytes of status, then the body.
fn refused_upgrade(data: &[u8]) {
    let Some((&[high, low], body)) = data.split_first_chunk() else {
        return;
    };
    let status = 400 + u16::from_be_bytes([high, low]) % 200;
    let Ok(status) = StatusCode::from_u16(status) else {
        return;
    };
    sentence(&said(status, &Bytes::copy_from_slice(body)));
}

fn sentence(said: &str) {
    assert!(said.chars().count() <= SENTENCE, "{said:?}");
    assert!(!said.contains(char::is_control), "{said:?}");
}

/// Whole messages of a server: a byte for the channel, one for the length.
fn messages(mut data: &[u8]) -> Vec<u8> {
    let mut sent = Vec::new();
    while let Some((&[channel, len], rest)) = data.split_first_chunk() {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(len % 125)));
        sent.extend([0x82, payload.len() as u8 + 1, channel % 3]);
        sent.extend(payload);
        data = rest;
    }
    sent
}

/// Reads a `v4.channel.k8s.io` connection to its end.
fn channel(sent: &[u8]) {
    let read = |piece| RUNTIME.block_on(read_all(sent, piece));
    let whole = read(usize::MAX);
    assert_eq!(whole, read(1), "cut into single bytes");
    assert!(whole.data.len() <= sent.len());
    assert!(whole.text <= 4096);
}

/// For the timer of a channel, which never goes off here.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    #[expect(clippy::expect_used, reason = "there is nothing to fuzz without")]
    runtime.expect("a runtime of one thread")
});

#[derive(Debug, PartialEq)]
struct FuzzTrace {
    data: Vec<u8>,
    text: usize,
    end: Result<(), io::ErrorKind>,
}

async fn read_all(sent: &[u8], piece: usize) -> FuzzTrace {
    let server = FuzzServer {
        sent: sent.to_vec().into(),
        piece,
    };
    let mut channel = WebSocketChannel::new(Box::new(server), &Config::default()).await;
    let mut seen = FuzzTrace {
        data: Vec::new(),
        text: 0,
        end: Ok(()),
    };
    let mut cx = Context::from_waker(Waker::noop());
    let mut buf = [0; 512];
    loop {
        let mut buf = ReadBuf::new(&mut buf);
        match channel.poll_data(&mut cx, &mut buf) {
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => seen.data.extend(buf.filled()),
            Poll::Ready(Ok(())) => break,
            Poll::Ready(Err(error)) => {
                seen.end = Err(error.kind());
                break;
            }
            Poll::Pending => unreachable!("what never waits is waited for"),
        }
    }
    seen.text = channel.text().whole().len();
    seen
}

/// Gives what was sent so many bytes at a time, then its end; takes everything.
struct FuzzServer {
    sent: Bytes,
    piece: usize,
}

impl AsyncRead for FuzzServer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n = self.sent.len().min(self.piece).min(buf.remaining());
        buf.put_slice(&self.sent.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FuzzServer {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzer() {
        let corpus =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/fuzz/corpus/pod_answers");
        let mut files = 0;
        for file in std::fs::read_dir(&corpus).expect("the corpus is committed") {
            pod_answers(&std::fs::read(file.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files >= 10, "{files} files in {}", corpus.display());
    }

    #[test]
    fn a_channel_as_the_api_server_sends_it() {
        let sent = messages(b"\0\x02x#\x01\x02x#\0\x05hello\x01\x03odd");
        let seen = RUNTIME.block_on(read_all(&sent, 3));
        assert_eq!((&*seen.data, seen.text), (&b"hello"[..], 3));
    }
}
