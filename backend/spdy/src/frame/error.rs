//! What is wrong with received bytes.

use std::fmt;

/// How the peer broke the protocol, in a way that leaves nothing after it readable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    /// A control frame of another version of SPDY: most likely not SPDY at all.
    Version(u16),
    /// A frame whose length its type does not allow, or that is larger than we take.
    Length {
        /// The frame's type.
        frame: &'static str,
        /// The length of its body, in bytes.
        length: u32,
    },
    /// A frame that ends before its last field.
    Truncated {
        /// The frame's type.
        frame: &'static str,
    },
    /// A frame for stream 0, which is none.
    ZeroStreamId {
        /// The frame's type.
        frame: &'static str,
    },
    /// RST_STREAM with status 0, which is none.
    ZeroStatus,
    /// A header block that does not continue the zlib stream.
    Compression,
    /// A header block that is larger, decompressed, than we take.
    HeaderBlockTooLarge,
    /// SYN_STREAM with an id the peer may not use, or not any more.
    StreamIdOrder(u32),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "a control frame of version {version}, not 3"),
            Self::Length { frame, length } => {
                write!(f, "{frame} with a length of {length} bytes")
            }
            Self::Truncated { frame } => write!(f, "{frame} without its last fields"),
            Self::ZeroStreamId { frame } => write!(f, "{frame} for stream 0"),
            Self::ZeroStatus => f.write_str("RST_STREAM with status 0"),
            Self::Compression => f.write_str("a header block that cannot be decompressed"),
            Self::HeaderBlockTooLarge => f.write_str("a header block that is too large"),
            Self::StreamIdOrder(id) => write!(f, "SYN_STREAM with id {id} out of order"),
        }
    }
}

impl std::error::Error for WireError {}
