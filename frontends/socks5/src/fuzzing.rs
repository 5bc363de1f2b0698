//! What `integration/fuzz` runs: plain functions over bytes, so that a test can replay a corpus.

use bytes::BytesMut;
use kubevpn_conn::Credentials;
use kubevpn_target::{Origin, Target};

use crate::session::{Handshake, HandshakeError, MAX_INPUT};

/// Feeds `data` to a session, whole and byte by byte, with a password asked for and without.
///
/// Panics if the outcome depends on how the bytes are split, or if a handshake waits for more input than it may
/// hold.
pub fn socks5_handshake(data: &[u8]) {
    let credentials = Credentials::new("user", "pass").ok();
    for credentials in [None, credentials.as_ref()] {
        let whole = run(credentials, data, data.len());
        assert_eq!(whole, run(credentials, data, 1), "cut into single bytes");
        assert_eq!(whole, run(credentials, data, 7), "cut into pieces of seven");
    }
}

#[derive(Debug, PartialEq)]
struct FuzzOutcome {
    result: Result<Option<Target>, HandshakeError>,
    sent: Vec<u8>,
    /// The part of the data that is payload, or an incomplete message.
    left: usize,
}

fn run(credentials: Option<&Credentials>, data: &[u8], piece: usize) -> FuzzOutcome {
    let mut session = Handshake::new(credentials, Origin::default());
    let mut input = BytesMut::new();
    let mut sent = Vec::new();
    let mut result = Ok(None);
    let mut fed = 0;
    for piece in data.chunks(piece.max(1)) {
        input.extend_from_slice(piece);
        fed += piece.len();
        result = session.receive(&mut input, &mut sent);
        if !matches!(result, Ok(None)) {
            break;
        }
        assert!(input.len() < MAX_INPUT, "waits for more than it may hold");
    }
    let left = match result {
        Ok(_) => data.len() - fed + input.len(),
        // Bytes after an error are ignored.
        Err(_) => 0,
    };
    if matches!(result, Ok(Some(_))) {
        session.answer(Ok(()), &mut sent);
    }
    FuzzOutcome { result, sent, left }
}
