//! What `integration/fuzz` runs: a plain function over bytes, so that a test can replay a corpus.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

use crate::SniffedProtocol;

/// Lets a client send `data` on a listener for two protocols; the first byte says in which pieces.
///
/// Panics if a byte is lost or duplicated, if the result depends on the pieces, or if the detected protocol is
/// impossible.
pub fn first_byte(data: &[u8]) {
    let Some((&piece, sent)) = data.split_first() else {
        return;
    };
    let read = |piece| ready(read_back(Pieces { sent, piece }));
    let whole = read(usize::MAX);
    assert_eq!(whole, read(usize::from(piece).max(1)), "cut into pieces");
    let Some((opening, bytes)) = whole else {
        assert!(sent.is_empty());
        return;
    };
    assert_eq!(bytes, sent);
    match opening {
        SniffedProtocol::Http => assert!(!matches!(sent, [4 | 5, ..])),
        SniffedProtocol::Socks => {
            assert!(!sent.starts_with(b"CONNECT ") && !sent.starts_with(b"GET "))
        }
    }
}

async fn read_back(client: Pieces<'_>) -> Option<(SniffedProtocol, Vec<u8>)> {
    let (opening, mut client) = match SniffedProtocol::read(client).await {
        Ok(read) => read,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            return None;
        }
    };
    let mut bytes = Vec::new();
    let read = client.read_to_end(&mut bytes).await;
    read.ok().map(|_| (opening, bytes))
}

/// Returns the data in pieces of this size, and never waits.
struct Pieces<'a> {
    sent: &'a [u8],
    piece: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n = self.sent.len().min(self.piece).min(buf.remaining());
        let (now, later) = self.sent.split_at(n);
        buf.put_slice(now);
        self.sent = later;
        Poll::Ready(Ok(()))
    }
}

fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("what never waits is waited for"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_first_byte() {
        for first in 0..=u8::MAX {
            first_byte(&[1, first]);
            first_byte(&[2, first, b'E', b'T', b' ']);
        }
    }

    #[test]
    fn the_corpus_of_the_fuzzer() {
        let corpus =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/fuzz/corpus/first_byte");
        let mut files = 0;
        for file in std::fs::read_dir(&corpus).expect("the corpus is committed") {
            first_byte(&std::fs::read(file.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files >= 8, "{files} files in {}", corpus.display());
    }
}
