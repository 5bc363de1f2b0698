//! Where a message ends, for a reader that takes nearly everything.

/// A message as far as it is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    /// Up to and with the empty line.
    pub(crate) head: Vec<u8>,
    /// Without its transfer coding.
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<u8>,
    /// All of it came, as its framing has it.
    pub(crate) whole: bool,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyEnd {
    None,
    After(usize),
    Chunked,
    /// With the connection.
    AtEof,
}

pub(crate) fn head_length(bytes: &[u8]) -> Option<usize> {
    (0..bytes.len()).find_map(|at| {
        let rest = &bytes[at..];
        if rest.starts_with(b"\n\n") {
            Some(at + 2)
        } else if rest.starts_with(b"\n\r\n") {
            Some(at + 3)
        } else {
            None
        }
    })
}

/// The value of a field, its last line.
pub(crate) fn field(head: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    let found = text.lines().skip(1).filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim()
            .eq_ignore_ascii_case(name)
            .then(|| value.trim().to_owned())
    });
    found.last()
}

pub(crate) fn status(head: &[u8]) -> u16 {
    let line = String::from_utf8_lossy(head);
    let code = line.split_whitespace().nth(1).unwrap_or_default();
    code.parse().unwrap_or(0)
}

/// How the body of a request ends.
pub(crate) fn request_ends(head: &[u8]) -> BodyEnd {
    match ends(head) {
        BodyEnd::AtEof => BodyEnd::None,
        ends => ends,
    }
}

/// How the body of an answer to a request of this method ends.
pub(crate) fn answer_ends(head: &[u8], method: &[u8]) -> BodyEnd {
    match status(head) {
        100..=199 | 204 | 304 => BodyEnd::None,
        200..=299 if method == b"CONNECT" => BodyEnd::None,
        _ if method == b"HEAD" => BodyEnd::None,
        _ => ends(head),
    }
}

fn ends(head: &[u8]) -> BodyEnd {
    let chunked = field(head, "transfer-encoding");
    if chunked.is_some_and(|codings| codings.to_ascii_lowercase().contains("chunked")) {
        return BodyEnd::Chunked;
    }
    match field(head, "content-length") {
        Some(length) => match length.rsplit(',').next().unwrap_or_default().trim().parse() {
            Ok(length) => BodyEnd::After(length),
            Err(_) => BodyEnd::AtEof,
        },
        None => BodyEnd::AtEof,
    }
}

/// Takes a body off `bytes`; `None` while some of it is missing. `at_eof`: nothing more will come.
pub(crate) fn take_body(bytes: &[u8], ends: BodyEnd, at_eof: bool) -> Option<(Message, usize)> {
    let mut message = Message {
        whole: true,
        ..Message::default()
    };
    match ends {
        BodyEnd::None => Some((message, 0)),
        BodyEnd::After(length) if bytes.len() >= length => {
            message.body = bytes[..length].to_vec();
            Some((message, length))
        }
        BodyEnd::AtEof if at_eof => {
            message.body = bytes.to_vec();
            Some((message, bytes.len()))
        }
        BodyEnd::Chunked => match chunks(bytes) {
            Some((body, trailers, used)) => {
                message.body = body;
                message.trailers = trailers;
                Some((message, used))
            }
            None => cut(bytes, at_eof),
        },
        BodyEnd::After(_) | BodyEnd::AtEof => cut(bytes, at_eof),
    }
}

fn cut(bytes: &[u8], at_eof: bool) -> Option<(Message, usize)> {
    at_eof.then(|| {
        let message = Message {
            body: bytes.to_vec(),
            ..Message::default()
        };
        (message, bytes.len())
    })
}

/// Body, trailer section, and how many bytes that took.
fn chunks(bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>, usize)> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let (line, next) = line(bytes, at)?;
        let size = std::str::from_utf8(line).ok()?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        at = next;
        if size == 0 {
            break;
        }
        body.extend_from_slice(bytes.get(at..at + size)?);
        (_, at) = self::line(bytes, at + size)?;
    }
    let mut trailers = Vec::new();
    loop {
        let (line, next) = line(bytes, at)?;
        at = next;
        if line.is_empty() {
            return Some((body, trailers, at));
        }
        trailers.extend_from_slice(line);
        trailers.extend_from_slice(b"\r\n");
    }
}

/// The line that begins there without its end, and where the next one begins.
fn line(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|b| *b == b'\n')?;
    let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
    Some((line, at + end + 1))
}
