//! The messages: decode and encode, nothing else.
//!
//! A decoder looks at the front of what has arrived. `Ok(None)` means more bytes are needed, which no prefix
//! of a valid message fails to be; `Ok(Some((message, n)))` that the first `n` bytes were it. What a message
//! asks for is not judged here: an unknown command is a value, not an error.

#![deny(clippy::indexing_slicing, clippy::unwrap_used)]

use std::fmt;

pub(crate) mod addr;
pub(crate) mod auth;
pub(crate) mod greeting;
pub(crate) mod http;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod socks4;

pub(crate) type Decoded<T> = Result<Option<(T, usize)>, WireError>;

/// No message, and none by more bytes either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireError {
    /// Another version byte than the message has.
    Version(u8),
    /// An address type of unknown length, so that the message's end cannot be found.
    AddressType(u8),
    /// A text of SOCKS4 that does not end.
    Unterminated,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(v) => write!(f, "unexpected version {v:#04x}"),
            Self::AddressType(t) => write!(f, "unknown address type {t:#04x}"),
            Self::Unterminated => f.write_str("a text does not end within 255 bytes"),
        }
    }
}

impl std::error::Error for WireError {}

/// Reads the front of a message piece by piece and counts. `None` when it ends too early.
struct Reader<'a> {
    rest: &'a [u8],
    whole: usize,
}

impl<'a> Reader<'a> {
    fn new(input: &'a [u8]) -> Self {
        Self {
            rest: input,
            whole: input.len(),
        }
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*array)
    }

    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(bytes)
    }

    /// A text with its length in a byte before it.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let n = self.byte()?;
        self.bytes(n.into())
    }

    fn port(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn read(&self) -> usize {
        self.whole - self.rest.len()
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests;
