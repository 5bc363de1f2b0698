//! Finds the end of a request's body in the client's bytes. hyper gets nothing beyond it.

/// The missing part of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MissingContent {
    Length(u64),
    Chunked(Chunk),
}

/// The next element of a chunked body (RFC 9112 section 7.1). hyper refuses malformed bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// The line of a chunk's size, of which this much was read.
    Size {
        size: u64,
        extension: bool,
    },
    /// This many bytes of a chunk's data.
    Data(u64),
    /// The end of the line after a chunk's data.
    Behind,
    /// A line of the trailer section.
    Trailer {
        empty: bool,
    },
    Over,
}

impl MissingContent {
    pub(crate) const NONE: Self = Self::Length(0);

    /// A body of this length; `None` for chunked.
    pub(crate) fn new(length: Option<u64>) -> Self {
        length.map_or(Self::Chunked(Chunk::NEXT), Self::Length)
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Over))
    }

    /// How many of the next bytes belong to the body.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> usize {
        match self {
            Self::Length(left) => take(left, bytes),
            Self::Chunked(chunk) => {
                let mut taken = 0;
                while taken < bytes.len() && *chunk != Chunk::Over {
                    taken += chunk.take(&bytes[taken..]);
                }
                taken
            }
        }
    }
}

impl Chunk {
    const NEXT: Self = Self::Size {
        size: 0,
        extension: false,
    };

    /// At least one of the bytes.
    fn take(&mut self, bytes: &[u8]) -> usize {
        if let Self::Data(left) = self {
            let taken = take(left, bytes);
            if *left == 0 {
                *self = Self::Behind;
            }
            return taken;
        }
        let byte = bytes[0];
        *self = match (*self, byte) {
            (Self::Size { size: 0, .. }, b'\n') => Self::Trailer { empty: true },
            (Self::Size { size, .. }, b'\n') => Self::Data(size),
            (Self::Size { size, extension }, _) => {
                let digit = char::from(byte).to_digit(16).filter(|_| !extension);
                Self::Size {
                    size: digit.map_or(size, |d| size.saturating_mul(16).saturating_add(d.into())),
                    extension: digit.is_none(),
                }
            }
            (Self::Behind, b'\n') => Self::NEXT,
            (Self::Trailer { empty: true }, b'\n') => Self::Over,
            (Self::Trailer { .. }, b'\n') => Self::Trailer { empty: true },
            (Self::Trailer { empty }, _) => Self::Trailer {
                empty: empty && byte == b'\r',
            },
            (other, _) => other,
        };
        1
    }
}

fn take(left: &mut u64, bytes: &[u8]) -> usize {
    let taken = usize::try_from(*left)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    *left -= taken as u64;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_is_found_wherever_it_is_cut() {
        for (length, body) in [
            (Some(5), "hello"),
            (None, "0\r\n\r\n"),
            (None, "5\r\nhello\r\n0\r\n\r\n"),
            (
                None,
                "000A;a=\"b;c\"\r\n0123\r\n6789\r\n1 \r\nx\r\n0;last\r\nX-Sum: 1\r\nY: 2\r\n\r\n",
            ),
        ] {
            for cut in 0..=body.len() {
                let mut content = MissingContent::new(length);
                let (first, rest) = body.as_bytes().split_at(cut);
                assert_eq!(content.take(first), first.len(), "{body:?} {cut}");
                assert_eq!(content.is_over(), cut == body.len(), "{body:?} {cut}");
                let rest = [rest, b"GET /next"].concat();
                assert_eq!(content.take(&rest), body.len() - cut, "{body:?} {cut}");
                assert!(content.is_over());
            }
        }
    }

    #[test]
    fn sizes_beyond_all_bounds_end_nowhere() {
        let mut content = MissingContent::new(None);
        let bytes = [&[b'f'; 40][..], b"\r\n", &[b'x'; 100]].concat();
        assert_eq!(content.take(&bytes), bytes.len());
        assert_eq!(
            content,
            MissingContent::Chunked(Chunk::Data(u64::MAX - 100))
        );
    }
}
