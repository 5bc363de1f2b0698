//! The first head of a connection, read before hyper takes memory for it.
//!
//! A client that has not shown a password yet costs what it has sent and no more, and one that speaks another
//! protocol is told so. Later heads are hyper's to read.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::ready;

use bytes::BytesMut;
use http::StatusCode;
use kubevpn_conn::ClientIo;
use kubevpn_target::TargetError;
use tokio::io::ReadBuf;
use tokio::sync::Semaphore;

use crate::problem::Problem;
use crate::{MAX_HEAD, Settings};

/// A head up to this size is read at once; one beyond it waits for one of [`LARGE_HEADS`].
const SMALL_HEAD: usize = 8 * 1024;
/// How many unfinished heads may be large at a time, in the whole process: 64 KiB each.
static LARGE_HEADS: Semaphore = Semaphore::const_new(256);

/// Why there is no head.
pub(crate) enum NoHead {
    /// The client ended, or was told to by a drain, or its time was over, without a byte.
    Unused,
    /// It sent something else, or too much, or too little in its time.
    Refused(Problem),
    Gone(io::Error),
}

/// Reads up to the end of the first head, and what comes with it; not the empty lines before it.
pub(crate) async fn read<C: ClientIo>(
    client: &mut C,
    settings: &Settings,
) -> Result<BytesMut, NoHead> {
    let mut head = BytesMut::new();
    let limit = settings.head_timeout;
    tokio::select! {
        biased;
        read = tokio::time::timeout(limit, fill(client, &mut head)) => match read {
            Ok(Ok(())) => Ok(head),
            Ok(Err(error)) => Err(error),
            Err(_) if head.is_empty() => Err(NoHead::Unused),
            Err(_) => Err(NoHead::Refused(Problem::Slow(limit))),
        },
        () = settings.drain.stopping() => Err(NoHead::Unused),
    }
}

async fn fill<C: ClientIo>(client: &mut C, head: &mut BytesMut) -> Result<(), NoHead> {
    let mut large = None;
    let mut blank = 0;
    let mut seen = 0;
    loop {
        let got = poll_fn(|cx| {
            // Not a place of its own in the future.
            let mut chunk = [0; 4096];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut *client).poll_read(cx, &mut chunk))?;
            head.extend_from_slice(chunk.filled());
            std::task::Poll::Ready(io::Result::Ok(chunk.filled().len()))
        });
        if got.await.map_err(NoHead::Gone)? == 0 {
            return Err(match head.is_empty() && blank == 0 {
                true => NoHead::Unused,
                false => NoHead::Refused(malformed(
                    "the connection ended in the middle of the request's head".into(),
                )),
            });
        }
        if seen == 0 {
            // RFC 9112 section 2.2.
            let empty = head.iter().take_while(|b| matches!(b, b'\r' | b'\n'));
            let empty = empty.count();
            blank += empty;
            let _ = head.split_to(empty);
        }
        if let Some(first) = head.first() {
            check_first(*first).map_err(NoHead::Refused)?;
        }
        if ends(head, seen) {
            return check_target(head).map_err(NoHead::Refused);
        }
        seen = head.len();
        if seen + blank >= MAX_HEAD {
            return Err(NoHead::Refused(Problem::LargeHead));
        }
        if seen > SMALL_HEAD && large.is_none() {
            large = LARGE_HEADS.acquire().await.ok();
        }
    }
}

/// Whether an empty line is in there, and not wholly before `seen`.
fn ends(head: &[u8], seen: usize) -> bool {
    let new = &head[seen.saturating_sub(2)..];
    (new.windows(2).any(|w| w == b"\n\n")) || new.windows(3).any(|w| w == b"\n\r\n")
}

/// A method begins with a letter, or at least with a character of a token (RFC 9110 section 5.6.2).
fn check_first(first: u8) -> Result<(), Problem> {
    match first {
        0x16 => Err(malformed("this port does not speak TLS: write the proxy's address as http://, for https targets too".into())),
        0x04 | 0x05 => Err(malformed("this port does not speak SOCKS: use the SOCKS port, or set this one as an HTTP proxy".into())),
        b'!'..=b'~' => Ok(()),
        _ => Err(malformed("this is no HTTP/1.1 request: it begins with a byte that no method has".into())),
    }
}

/// The URI library can only say that a target is none; the most usual mistake has a name.
fn check_target(head: &[u8]) -> Result<(), Problem> {
    let line = head.split(|b| *b == b'\r' || *b == b'\n').next();
    let mut words = line.unwrap_or_default().split(|b| *b == b' ');
    let (method, target) = (words.next(), words.next().unwrap_or_default());
    let authority = match target.strip_prefix(b"http://") {
        Some(rest) => rest.split(|b| matches!(b, b'/' | b'?' | b'#')).next(),
        None if method.is_some_and(|m| m.eq_ignore_ascii_case(b"CONNECT")) => Some(target),
        None => None,
    };
    let authority = authority.unwrap_or_default();
    let colons = authority.iter().filter(|b| **b == b':').count();
    let is_address = |b: &u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
    match colons > 1 && authority.iter().all(is_address) {
        true => Err(malformed(TargetError::UnbracketedIpv6.to_string())),
        false => Ok(()),
    }
}

fn malformed(sentence: String) -> Problem {
    Problem::Malformed {
        status: StatusCode::BAD_REQUEST,
        sentence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_head_is_found_wherever_it_is_cut() {
        for head in [
            "GET / HTTP/1.1\r\nA: b\r\n\r\n",
            "GET / HTTP/1.1\n\n",
            "GET / HTTP/1.0\r\n\n",
        ] {
            for cut in 0..head.len() {
                assert!(!ends(&head.as_bytes()[..cut], 0), "{head:?} {cut}");
                assert!(ends(head.as_bytes(), cut), "{head:?} {cut}");
            }
        }
    }
}
