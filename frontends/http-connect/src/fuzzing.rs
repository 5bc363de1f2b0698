//! What `integration/fuzz` runs: plain functions over bytes, so that a test can replay a corpus.

use bytes::{Buf as _, BytesMut};
use http::Uri;
use kubevpn_target::{Host, Origin, Target};

use crate::MAX_HEAD;
use crate::authority::{forward, host, host_value, tunnel};
use crate::content::MissingContent;
use crate::head::HeadReader;

/// Reads `data` as a request-target and as a `Host` field.
///
/// Panics when two readings of the same bytes differ: ours and that of the URI library hyper parses
/// with, ours of CONNECT and of forwarding, or that of the `Host` field made of a target.
pub fn http_authority(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let tunnel = tunnel(text, Origin::default());
        let host = host(text, Origin::default());
        if let Ok(target) = &tunnel {
            assert_eq!(host.as_ref(), Ok(target), "{text:?} as CONNECT and as Host");
        }
        if let Ok(target) = &host {
            stable(target);
        }
    }
    let Ok(uri) = Uri::try_from(data) else {
        return;
    };
    let Some(authority) = uri.authority() else {
        return;
    };
    let target = match uri.scheme_str() {
        Some(scheme) => forward(scheme, authority.as_str(), Origin::default()),
        None => tunnel(authority.as_str(), Origin::default()),
    };
    if let Ok(target) = target {
        stable(&target);
        let port = authority.port_u16().unwrap_or(80);
        assert_eq!(target.port.get(), port, "{uri}");
        assert_eq!(
            Host::parse(authority.host()).as_ref(),
            Ok(&target.host),
            "{uri}"
        );
    }
}

/// What we write of a target is read as the same target.
fn stable(target: &Target) {
    let origin = Origin::default();
    assert_eq!(tunnel(&target.to_string(), origin).as_ref(), Ok(target));
    assert_eq!(host(&host_value(target), origin).as_ref(), Ok(target));
}

/// Reads `data` as requests behind one another, whole and in pieces. Its first byte says how long their bodies are: 255
/// for chunks.
///
/// Panics when the pieces change what is read, or when a head that is read would be taken for two, or for a folded one.
///
/// ```
/// kubevpn_http_connect::fuzzing::http_messages(b"\x02GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\nokGET / HTTP/1.0\r\n\r\n");
/// ```
pub fn http_messages(data: &[u8]) {
    let Some((&length, sent)) = data.split_first() else {
        return;
    };
    let whole = messages(length, sent, sent.len());
    for piece in [1, 7] {
        assert_eq!(whole, messages(length, sent, piece), "in pieces of {piece}");
    }
}

/// A head, and its body as it was sent.
type FuzzMessage = (Vec<u8>, Vec<u8>);

/// What was read, and why no more was.
fn messages(length: u8, sent: &[u8], piece: usize) -> (Vec<FuzzMessage>, Option<String>) {
    let mut read: Vec<FuzzMessage> = Vec::new();
    let (mut head, mut bytes, mut content) =
        (HeadReader::default(), BytesMut::new(), MissingContent::NONE);
    for piece in sent.chunks(piece.max(1)) {
        bytes.extend_from_slice(piece);
        while !bytes.is_empty() {
            if !content.is_over() {
                let taken = content.take(&bytes);
                assert!(taken > 0 && taken <= bytes.len());
                if let Some((_, body)) = read.last_mut() {
                    body.extend_from_slice(&bytes[..taken]);
                }
                bytes.advance(taken);
                continue;
            }
            match head.look(&mut bytes) {
                Ok(Some(length_of_head)) => {
                    let head = bytes.split_to(length_of_head).to_vec();
                    one_head(&head);
                    read.push((head, Vec::new()));
                    content = MissingContent::new((length != u8::MAX).then(|| length.into()));
                }
                Ok(None) => break,
                Err(problem) => return (read, Some(problem.to_string())),
            }
        }
    }
    (read, None)
}

fn one_head(head: &[u8]) {
    assert!(head.len() <= MAX_HEAD);
    let mut lines: Vec<&[u8]> = head.split_inclusive(|b| *b == b'\n').collect();
    let last = lines.pop();
    assert!(
        matches!(last, Some(b"\n" | b"\r\n")),
        "it ends in an empty line"
    );
    for (number, line) in lines.iter().enumerate() {
        assert!(!matches!(*line, b"\n" | b"\r\n"), "another empty line");
        let folded = line.starts_with(b" ") || line.starts_with(b"\t");
        assert!(!folded || number <= 1, "a folded field");
    }
}
