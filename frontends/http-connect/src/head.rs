//! Reads the head of a request before hyper gets it.
//!
//! An unauthenticated client uses no more memory than it has sent, a client with another protocol is told so, and heads that
//! a server may repair are repaired (RFC 9112 section 5.2).

use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use http::{HeaderName, StatusCode};
use kubevpn_conn::ClientIo;
use kubevpn_target::TargetError;
use memchr::{memchr, memchr_iter};
use tokio::io::ReadBuf;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::problem::Problem;
use crate::{MAX_FIELDS, MAX_HEAD, Settings};

/// A head up to this size is read at once; a larger one waits for one of [`LARGE_HEADS`].
const SMALL_HEAD: usize = 8 * 1024;
/// Limit on large unfinished heads in the whole process: 64 KiB each.
static LARGE_HEADS: Semaphore = Semaphore::const_new(256);
/// Limit on a name in an error text.
const MAX_SHOWN: usize = 40;

/// Why there is no head.
pub(crate) enum NoHead {
    /// The client sent no byte before it ended, a drain began, or its time was over.
    Unused,
    /// The client sent something else, too much, or too little in time.
    Refused(Problem),
    Gone(io::Error),
}

/// The first head of a connection with its length, and the bytes after it.
pub(crate) async fn first<C: ClientIo>(
    client: &mut C,
    settings: &Settings,
) -> Result<(BytesMut, usize), NoHead> {
    let (mut bytes, mut ended) = (BytesMut::new(), false);
    let mut reader = HeadReader::default();
    let limit = settings.head_timeout;
    let read = poll_fn(|cx| reader.poll(cx, client, &mut ended, &mut bytes));
    let read = tokio::select! {
        biased;
        read = tokio::time::timeout(limit, read) => read,
        () = settings.drain.stopping() => return Err(NoHead::Unused),
    };
    match read {
        Ok(Ok(0)) => Err(NoHead::Unused),
        Ok(Ok(length)) => Ok((bytes, length)),
        Ok(Err(error)) => Err(error),
        Err(_) if bytes.is_empty() => Err(NoHead::Unused),
        Err(_) => Err(NoHead::Refused(Problem::Slow(limit))),
    }
}

/// Reads one head after another.
#[derive(Default)]
pub(crate) struct HeadReader {
    /// The part of the head that was searched for its end.
    seen: usize,
    /// Bytes of empty lines before it.
    blank: usize,
    large: Option<Large>,
}

/// One of [`LARGE_HEADS`].
enum Large {
    Waiting(Pin<Box<dyn Future<Output = Option<SemaphorePermit<'static>>> + Send>>),
    Has(#[allow(dead_code)] Option<SemaphorePermit<'static>>),
}

impl HeadReader {
    /// Reads until `bytes` begin with a head, without empty lines before it, and returns its length; 0 for a client that
    /// ended before the first byte. `ended`: the client has ended.
    pub(crate) fn poll<C: ClientIo>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        ended: &mut bool,
        bytes: &mut BytesMut,
    ) -> Poll<Result<usize, NoHead>> {
        loop {
            if let Some(length) = self.look(bytes).map_err(NoHead::Refused)? {
                return Poll::Ready(Ok(length));
            }
            if *ended {
                return Poll::Ready(match bytes.is_empty() {
                    true => Ok(0),
                    false => Err(NoHead::Refused(malformed(
                        "the connection ended in the middle of the request's head".into(),
                    ))),
                });
            }
            if self.seen > SMALL_HEAD {
                ready!(self.poll_large(cx));
            }
            let mut chunk = [MaybeUninit::uninit(); 4096];
            let mut chunk = ReadBuf::uninit(&mut chunk);
            let read = ready!(Pin::new(&mut *client).poll_read(cx, &mut chunk));
            read.map_err(NoHead::Gone)?;
            *ended = chunk.filled().is_empty();
            bytes.extend_from_slice(chunk.filled());
        }
    }

    fn poll_large(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wait = || Large::Waiting(Box::pin(async { LARGE_HEADS.acquire().await.ok() }));
        let large = self.large.get_or_insert_with(wait);
        if let Large::Waiting(waiting) = large {
            *large = Large::Has(ready!(waiting.as_mut().poll(cx)));
        }
        Poll::Ready(())
    }

    /// The length of the head, if it is complete. It has been repaired then.
    pub(crate) fn look(&mut self, bytes: &mut BytesMut) -> Result<Option<usize>, Problem> {
        if self.seen == 0 {
            // RFC 9112 section 2.2.
            let empty = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n'));
            let empty = empty.count();
            self.blank += empty;
            bytes.advance(empty);
        }
        if let Some(first) = bytes.first() {
            check_first(*first)?;
        }
        let end = end(bytes, self.seen);
        if end.unwrap_or(bytes.len()) + self.blank > MAX_HEAD {
            return Err(Problem::LargeHead);
        }
        let Some(length) = end else {
            self.seen = bytes.len();
            return Ok(None);
        };
        // The search for the next head begins at its first byte.
        *self = Self::default();
        check_line(bytes)?;
        put_right(bytes, length).map(Some)
    }
}

/// The end of the first empty line that is not completely before `seen`.
fn end(head: &[u8], seen: usize) -> Option<usize> {
    let from = seen.saturating_sub(2);
    let mut lines = memchr_iter(b'\n', &head[from..]).map(|at| from + at + 1);
    lines.find_map(|next| match &head[next..] {
        [b'\n', ..] => Some(next + 1),
        [b'\r', b'\n', ..] => Some(next + 2),
        _ => None,
    })
}

/// Joins folded fields and removes fields with invalid names, as is done for answers. Returns the new length.
fn put_right(head: &mut BytesMut, length: usize) -> Result<usize, Problem> {
    let mut at = line_end(head, 0);
    let mut kept = at;
    let mut lines = 0;
    unfold(&mut head[at..length]);
    while at < length {
        lines += 1;
        if lines > MAX_FIELDS + 1 {
            return Err(Problem::LargeHead);
        }
        let next = line_end(head, at);
        if passes(&head[at..next])? {
            if kept < at {
                head.copy_within(at..next, kept);
            }
            kept += next - at;
        }
        at = next;
    }
    if kept < length {
        tracing::debug!("fields with invalid names are removed from a request");
        let rest = head.split_off(length);
        head.truncate(kept);
        head.unsplit(rest);
    }
    Ok(kept)
}

fn line_end(bytes: &[u8], from: usize) -> usize {
    memchr(b'\n', &bytes[from..]).map_or(bytes.len(), |at| from + at + 1)
}

/// Replaces line ends before white space by spaces, except before the first field.
fn unfold(fields: &mut [u8]) {
    let mut from = 0;
    while let Some(at) = memchr(b'\n', &fields[from..]) {
        let at = from + at;
        from = at + 1;
        if let Some(b' ' | b'\t') = fields.get(from) {
            fields[at] = b' ';
            if let Some(cr @ b'\r') = at.checked_sub(1).map(|at| &mut fields[at]) {
                *cr = b' ';
            }
        }
    }
}

/// Whether the field of this line is passed to hyper, which checks the rest.
fn passes(line: &[u8]) -> Result<bool, Problem> {
    let Some(colon) = memchr(b':', line) else {
        return Ok(true);
    };
    let name = &line[..colon];
    // A fast path for nearly every name.
    if name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-') {
        return Ok(true);
    }
    if let Some(b' ' | b'\t') = name.last() {
        let shown = &name[..colon.min(MAX_SHOWN)];
        return Err(malformed(format!(
            "there is a space between the name of the field \"{}\" and its colon, which RFC 9112 section 5.1 forbids in a request",
            shown.trim_ascii().escape_ascii()
        )));
    }
    let is_visible = |b: &u8| *b > b' ' && *b != 0x7f;
    let is_none = !name.is_empty() && HeaderName::from_bytes(name).is_err();
    Ok(!(is_none && name.iter().all(is_visible)))
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

/// Faults for which hyper and the URI library have no text.
fn check_line(head: &[u8]) -> Result<(), Problem> {
    if head.starts_with(b"PRI * HTTP/2.0\r\n") {
        return Err(Problem::Malformed {
            status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            sentence:
                "the proxy speaks HTTP/1.1 with its clients: send HTTP/2 through a tunnel (CONNECT)"
                    .into(),
        });
    }
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
    use std::path::Path;

    use super::*;
    use crate::fuzzing::http_messages;

    fn read(bytes: &str) -> Result<Option<String>, String> {
        let mut bytes = BytesMut::from(bytes);
        let length = HeadReader::default().look(&mut bytes);
        let length = length.map_err(|problem| problem.to_string())?;
        Ok(length.map(|length| String::from_utf8_lossy(&bytes[..length]).into_owned()))
    }

    #[test]
    fn end_of_a_head_is_found_wherever_it_is_cut() {
        for head in [
            "GET / HTTP/1.1\r\nA: b\r\n\r\n",
            "GET / HTTP/1.1\n\n",
            "GET / HTTP/1.0\r\n\n",
            "\r\n\nGET / HTTP/1.0\r\n\n",
        ] {
            for cut in 0..head.len() {
                let (mut reader, mut bytes) = (HeadReader::default(), BytesMut::new());
                bytes.extend_from_slice(&head.as_bytes()[..cut]);
                assert_eq!(reader.look(&mut bytes).unwrap(), None, "{head:?} {cut}");
                bytes.extend_from_slice(&head.as_bytes()[cut..]);
                bytes.extend_from_slice(b"GET /next");
                let length = reader.look(&mut bytes).unwrap().unwrap();
                assert_eq!(&bytes[..length], head.trim_start().as_bytes());
            }
        }
    }

    #[test]
    fn folded_fields_are_joined() {
        let joined = read("GET / HTTP/1.1\r\nA: b\r\n c\r\n\t\r\nD: e\n f\r\n\r\n").unwrap();
        let wanted = "GET / HTTP/1.1\r\nA: b   c  \t\r\nD: e  f\r\n\r\n";
        assert_eq!(joined.unwrap(), wanted);
        // RFC 9112 section 2.2 requires a refusal; hyper refuses it.
        let first = "GET / HTTP/1.1\r\n A: b\r\n\r\n";
        assert_eq!(read(first).unwrap().unwrap(), first);
    }

    #[test]
    fn field_under_a_name_that_is_none_is_left_out() {
        let odd = "GET / HTTP/1.1\r\nA[0]: b\r\nHost: x\r\n\u{fc}: c\r\n\r\n";
        let wanted = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(read(odd).unwrap().unwrap(), wanted);
        // hyper refuses a line that could be read as another field.
        for line in ["nonsense", ": b", "A b: c", "\rA: b", "A\0: b"] {
            let head = format!("GET / HTTP/1.1\r\n{line}\r\n\r\n");
            assert_eq!(read(&head).unwrap().unwrap(), head);
        }
    }

    #[test]
    fn the_corpus_of_the_fuzzer() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../integration/fuzz/corpus/http_messages");
        let mut files = 0;
        for file in std::fs::read_dir(&corpus).expect("the corpus is committed") {
            http_messages(&std::fs::read(file.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files >= 12, "{files} files in {}", corpus.display());
    }

    #[test]
    fn space_before_a_colon_is_refused_by_name() {
        let sentence = read("GET / HTTP/1.1\r\nContent-Length : 5\r\n\r\n").unwrap_err();
        assert!(sentence.contains("\"Content-Length\""), "{sentence}");
    }

    #[test]
    fn limit_is_one_however_a_head_is_cut() {
        let head = |length: usize| {
            let begin = "GET / HTTP/1.1\r\nA: ";
            format!("{begin}{}\r\n\r\n", "b".repeat(length - begin.len() - 4))
        };
        for (length, fits) in [(MAX_HEAD, true), (MAX_HEAD + 1, false)] {
            let head = head(length);
            assert_eq!(read(&head).is_ok(), fits);
            for cut in [1, 4096, MAX_HEAD - 1] {
                let (mut reader, mut bytes) = (HeadReader::default(), BytesMut::new());
                let mut pieces = head.as_bytes().chunks(cut);
                let read = pieces.try_for_each(|piece| {
                    bytes.extend_from_slice(piece);
                    reader.look(&mut bytes).map(drop)
                });
                assert_eq!(read.is_ok(), fits, "{length} {cut}");
            }
        }
    }
}
