//! Numbers that mean something: stream ids and status codes.

use std::{fmt, num::NonZeroU32};

/// A stream's number: 1 to 2^31 - 1, odd for streams of the client, even for those of the server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(NonZeroU32);

impl StreamId {
    /// The largest there is. Ids are not used twice, so a session has 2^30 streams of each side.
    pub const MAX: u32 = 0x7fff_ffff;

    /// `None` for 0 and for anything over [`StreamId::MAX`].
    pub const fn new(id: u32) -> Option<Self> {
        match NonZeroU32::new(id) {
            Some(id) if id.get() <= Self::MAX => Some(Self(id)),
            _ => None,
        }
    }

    /// The bare number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({})", self.0)
    }
}

/// Why a stream is reset: the status code of RST_STREAM, which is never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResetStatus(NonZeroU32);

/// Names for codes, used by `Display` and as constants.
macro_rules! codes {
    ($(#[$doc:meta] $name:ident = $code:literal;)*) => {
        impl ResetStatus {
            $(#[$doc] pub const $name: Self = Self(NonZeroU32::new($code).expect("a constant"));)*

            fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// The peer broke a rule on this stream.
    PROTOCOL_ERROR = 1;
    /// A frame came for a stream that was never opened.
    INVALID_STREAM = 2;
    /// The stream was turned away before anything was done for it.
    REFUSED_STREAM = 3;
    /// The stream asks for a version of SPDY that the peer does not speak.
    UNSUPPORTED_VERSION = 4;
    /// The stream is no longer wanted.
    CANCEL = 5;
    /// The peer failed for a reason of its own.
    INTERNAL_ERROR = 6;
    /// A flow control window was overrun.
    FLOW_CONTROL_ERROR = 7;
    /// A second SYN_REPLY came for the stream.
    STREAM_IN_USE = 8;
    /// Data came after the stream's end.
    STREAM_ALREADY_CLOSED = 9;
    /// The credentials are not good for the stream's origin.
    INVALID_CREDENTIALS = 10;
    /// A frame is larger than the peer takes.
    FRAME_TOO_LARGE = 11;
}

impl ResetStatus {
    /// `None` for 0, which is not a status.
    pub const fn new(code: u32) -> Option<Self> {
        match NonZeroU32::new(code) {
            Some(code) => Some(Self(code)),
            None => None,
        }
    }

    /// The number on the wire.
    pub const fn code(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for ResetStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "status {}", self.0),
        }
    }
}

impl fmt::Debug for ResetStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResetStatus({self})")
    }
}

/// Why a session is ended: the status code of GOAWAY.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GoAwayStatus(u32);

impl GoAwayStatus {
    /// A normal end.
    pub const OK: Self = Self(0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// The sender failed for a reason of its own.
    pub const INTERNAL_ERROR: Self = Self(2);

    /// Any number is a status, known or not.
    pub const fn new(code: u32) -> Self {
        Self(code)
    }

    /// The number on the wire.
    pub const fn code(self) -> u32 {
        self.0
    }
}

impl fmt::Display for GoAwayStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OK => f.write_str("OK"),
            Self::PROTOCOL_ERROR => f.write_str("PROTOCOL_ERROR"),
            Self::INTERNAL_ERROR => f.write_str("INTERNAL_ERROR"),
            Self(code) => write!(f, "status {code}"),
        }
    }
}

impl fmt::Debug for GoAwayStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GoAwayStatus({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_31_bits_and_are_not_0() {
        assert_eq!(StreamId::new(0), None);
        assert_eq!(StreamId::new(1).unwrap().get(), 1);
        assert_eq!(StreamId::new(0x7fff_ffff).unwrap().get(), 0x7fff_ffff);
        assert_eq!(StreamId::new(0x8000_0000), None);
    }

    #[test]
    fn a_status_is_shown_by_name_or_number() {
        assert_eq!(ResetStatus::new(0), None);
        assert_eq!(ResetStatus::new(5).unwrap(), ResetStatus::CANCEL);
        assert_eq!(ResetStatus::REFUSED_STREAM.to_string(), "REFUSED_STREAM");
        assert_eq!(ResetStatus::new(77).unwrap().to_string(), "status 77");
        assert_eq!(GoAwayStatus::new(0).to_string(), "OK");
        assert_eq!(GoAwayStatus::new(9).to_string(), "status 9");
    }
}
