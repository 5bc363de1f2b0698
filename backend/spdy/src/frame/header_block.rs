//! Headers, and the zlib stream they travel in.
//!
//! Each direction of a session has one zlib stream for all of its header blocks, which starts from
//! the [dictionary](super::dictionary) and is flushed after each block. So every block has to be
//! decompressed, even of a refused stream, and one that fails leaves the rest unreadable.
//!
//! We send blocks uncompressed, in zlib's *stored* form: a compressor holds 190 to 320 KiB per
//! session (zlib-rs, measured) to make 60 bytes into 25, and it would make what one stream sends
//! guessable from the length of another's. To peers it is a block that did not get smaller.

use std::fmt;

use bytes::{BufMut, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::{
    dictionary::{DICTIONARY, DICTIONARY_ID},
    error::WireError,
    head::take_u32,
};

/// The largest header block, decompressed, in bytes.
pub(crate) const MAX_HEADER_BLOCK: usize = 32 * 1024;

/// The most headers of one block.
const MAX_HEADERS: usize = 256;

/// How much is decompressed at once.
const INFLATE_STEP: usize = 1024;

/// The headers of a stream: lower-case names, each at most once, in the order they were added.
///
/// ```
/// # use kubevpn_spdy::Headers;
/// let mut headers = Headers::try_from([("streamType", "data"), ("port", "8080")])?;
/// headers.insert("requestID", "7")?;
/// assert_eq!(headers.get("streamtype"), Some("data"));
/// # Ok::<(), kubevpn_spdy::HeaderError>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Box<str>, Box<str>)>);

/// Why something is no header, or no header block.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderError {
    /// A name that is empty, or has a byte which is not visible ASCII, or an upper-case letter when
    /// received.
    Name,
    /// A name that is there already.
    Duplicate,
    /// A value with an empty part between NULs, which separate several values of one name.
    Value,
    /// More headers than are taken.
    TooMany,
    /// A received block whose lengths do not add up.
    Length,
}

impl Headers {
    /// No headers.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a header; the name is put into lower case.
    pub fn insert(&mut self, name: &str, value: &str) -> Result<(), HeaderError> {
        self.push(name.to_ascii_lowercase().into(), value.into())
    }

    /// The value of `name`, in whatever case that is written.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find_map(|(n, value)| n.eq_ignore_ascii_case(name).then_some(value))
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The rules of the draft, 2.6.10.
    fn push(&mut self, name: Box<str>, value: Box<str>) -> Result<(), HeaderError> {
        let visible = |b: u8| b.is_ascii_graphic() && !b.is_ascii_uppercase();
        if name.is_empty() || !name.bytes().all(visible) {
            return Err(HeaderError::Name);
        }
        if self.0.iter().any(|(known, _)| *known == name) {
            return Err(HeaderError::Duplicate);
        }
        if !value.is_empty() && value.split('\0').any(str::is_empty) {
            return Err(HeaderError::Value);
        }
        if self.0.len() == MAX_HEADERS {
            return Err(HeaderError::TooMany);
        }
        self.0.push((name, value));
        Ok(())
    }

    /// A decompressed block: a count, then as many names and values, each after its length.
    pub(super) fn decode(mut block: &[u8]) -> Result<Self, HeaderError> {
        let count = take_u32(&mut block, "").map_err(|_| HeaderError::Length)?;
        let mut headers = Self::new();
        for _ in 0..count {
            let name = take_text(&mut block)?.ok_or(HeaderError::Name)?;
            let value = take_text(&mut block)?.ok_or(HeaderError::Value)?;
            headers.push(name.into(), value.into())?;
        }
        if block.is_empty() {
            Ok(headers)
        } else {
            Err(HeaderError::Length)
        }
    }

    /// Bytes of the block, not compressed.
    fn encoded_len(&self) -> usize {
        let lens = self.0.iter().map(|(n, v)| 8 + n.len() + v.len());
        4 + lens.sum::<usize>()
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_u32(self.0.len() as u32);
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            out.put_u32(text.len() as u32);
            out.put_slice(text.as_bytes());
        }
    }
}

/// Takes a length and as many bytes off the front; `None` if those are no UTF-8.
fn take_text<'a>(block: &mut &'a [u8]) -> Result<Option<&'a str>, HeaderError> {
    let len = take_u32(block, "").map_err(|_| HeaderError::Length)?;
    let (text, rest) = block
        .split_at_checked(len as usize)
        .ok_or(HeaderError::Length)?;
    *block = rest;
    Ok(std::str::from_utf8(text).ok())
}

impl<const N: usize> TryFrom<[(&str, &str); N]> for Headers {
    type Error = HeaderError;

    fn try_from(list: [(&str, &str); N]) -> Result<Self, HeaderError> {
        let mut headers = Self::new();
        for (name, value) in list {
            headers.insert(name, value)?;
        }
        Ok(headers)
    }
}

/// Names only: a value may be a secret.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|(name, _)| name))
            .finish()
    }
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "a header name that is empty or not lower-case ASCII",
            Self::Duplicate => "a header name that is there twice",
            Self::Value => "a header value with an empty part, or that is not text",
            Self::TooMany => "too many headers",
            Self::Length => "a header block whose lengths do not add up",
        })
    }
}

impl std::error::Error for HeaderError {}

/// Makes the header blocks of one direction.
#[derive(Debug, Default)]
pub(crate) struct Deflater {
    started: bool,
}

impl Deflater {
    /// Appends the block of `headers`, or says that it is larger than [`MAX_HEADER_BLOCK`].
    pub(crate) fn encode(
        &mut self,
        headers: &Headers,
        out: &mut BytesMut,
    ) -> Result<(), WireError> {
        let len = headers.encoded_len();
        if len > MAX_HEADER_BLOCK {
            return Err(WireError::HeaderBlockTooLarge);
        }
        if !self.started {
            self.started = true;
            // RFC 1950: deflate with a window of 32 KiB; a dictionary was set; its checksum.
            out.put_slice(&[0x78, 0x20]);
            out.put_u32(DICTIONARY_ID);
        }
        // RFC 1951, 3.2.4: not the last block, stored; its length and that inverted.
        put_stored_head(len as u16, out);
        headers.encode(out);
        // An empty block is what a flush ends with: Go's reader holds data back until it sees one.
        put_stored_head(0, out);
        Ok(())
    }
}

fn put_stored_head(len: u16, out: &mut BytesMut) {
    out.put_u8(0);
    out.put_u16_le(len);
    out.put_u16_le(!len);
}

/// Reads the header blocks of one direction.
#[derive(Debug, Default)]
pub(crate) struct Inflater {
    /// Tens of KiB, so made only when the first block comes.
    zlib: Option<Box<Decompress>>,
}

impl Inflater {
    /// The headers of the next block. The outer error ends the session, as the blocks after it
    /// cannot be read; the inner one concerns this block alone.
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
    ) -> Result<Result<Headers, HeaderError>, WireError> {
        self.inflate(block).map(|block| Headers::decode(&block))
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, WireError> {
        let zlib = self
            .zlib
            .get_or_insert_with(|| Box::new(Decompress::new(true)));
        let mut block = Vec::new();
        loop {
            block.reserve(INFLATE_STEP);
            let before = zlib.total_in();
            let status = zlib.decompress_vec(input, &mut block, FlushDecompress::Sync);
            let used = usize::try_from(zlib.total_in() - before).unwrap_or(usize::MAX);
            input = input.get(used..).unwrap_or_default();
            if block.len() > MAX_HEADER_BLOCK {
                return Err(WireError::HeaderBlockTooLarge);
            }
            match status {
                // Space left over means that there is no more to come.
                Ok(Status::Ok | Status::BufError)
                    if input.is_empty() && block.len() < block.capacity() =>
                {
                    return Ok(block);
                }
                Ok(Status::Ok) => {}
                Err(error) if error.needs_dictionary() == Some(DICTIONARY_ID) => {
                    zlib.set_dictionary(&DICTIONARY)
                        .map_err(|_| WireError::Compression)?;
                }
                // The stream never ends, and cannot stand still with input and space at hand.
                Ok(Status::BufError | Status::StreamEnd) | Err(_) => {
                    return Err(WireError::Compression);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    fn stored(headers: &Headers, deflater: &mut Deflater) -> BytesMut {
        let mut out = BytesMut::new();
        deflater.encode(headers, &mut out).unwrap();
        out
    }

    /// What a peer that compresses sends: zlib with the dictionary, flushed after each block.
    struct Compressor(Compress);

    impl Compressor {
        fn new() -> Self {
            let mut zlib = Compress::new(Compression::best(), true);
            assert_eq!(zlib.set_dictionary(&DICTIONARY).unwrap(), DICTIONARY_ID);
            Self(zlib)
        }

        fn block(&mut self, text: &[u8]) -> Vec<u8> {
            let mut out = Vec::with_capacity(text.len() + 1024);
            let before = self.0.total_in();
            let status = self.0.compress_vec(text, &mut out, FlushCompress::Sync);
            assert_eq!(status.unwrap(), Status::Ok);
            assert_eq!(self.0.total_in() - before, text.len() as u64);
            assert!(out.ends_with(&[0, 0, 0xff, 0xff]), "{out:02x?}");
            out
        }
    }

    fn plain(headers: &Headers) -> BytesMut {
        let mut out = BytesMut::new();
        headers.encode(&mut out);
        out
    }

    fn sample() -> Headers {
        Headers::try_from([
            ("streamType", "error"),
            ("port", "8080"),
            ("requestID", "0"),
        ])
        .unwrap()
    }

    #[test]
    fn the_dictionary_is_the_drafts() {
        assert_eq!(DICTIONARY.len(), 1423);
        let (a, b) = DICTIONARY.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!(b << 16 | a, DICTIONARY_ID);
    }

    #[test]
    fn blocks_are_these_bytes() {
        let mut deflater = Deflater::default();
        let mut headers = Headers::new();
        headers.insert("Port", "80").unwrap();
        let first = stored(&headers, &mut deflater);
        let block = b"\0\0\0\x01\0\0\0\x04port\0\0\0\x0280";
        let flush = [0, 0, 0, 0xff, 0xff];
        let expected = [
            &[0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2][..],
            &[0, 18, 0, 237, 0xff],
            block,
            &flush,
        ];
        assert_eq!(first, expected.concat());
        assert_eq!(0x7820 % 31, 0, "RFC 1950: the header is a multiple of 31");
        let second = stored(&headers, &mut deflater);
        assert_eq!(second, [&[0, 18, 0, 237, 0xff][..], block, &flush].concat());
    }

    #[test]
    fn every_block_continues_one_stream() {
        let mut deflater = Deflater::default();
        let mut inflater = Inflater::default();
        for _ in 0..3 {
            let block = stored(&sample(), &mut deflater);
            assert_eq!(inflater.decode(&block).unwrap().unwrap(), sample());
            let block = stored(&Headers::new(), &mut deflater);
            assert_eq!(inflater.decode(&block).unwrap().unwrap(), Headers::new());
        }
    }

    #[test]
    fn a_compressing_peer_is_understood() {
        let mut zlib = Compressor::new();
        let mut inflater = Inflater::default();
        let sizes: Vec<usize> = (0..3)
            .map(|_| {
                let block = zlib.block(&plain(&sample()));
                assert_eq!(inflater.decode(&block).unwrap().unwrap(), sample());
                block.len()
            })
            .collect();
        assert!(sizes[1] < sizes[0], "no shared history: {sizes:?}");
    }

    #[test]
    fn a_block_as_large_as_allowed_passes_and_one_byte_more_does_not() {
        let filled = |len: usize| {
            let mut headers = Headers::new();
            headers.insert("a", &"v".repeat(len - 4 - 8 - 1)).unwrap();
            assert_eq!(headers.encoded_len(), len);
            headers
        };
        let largest = filled(MAX_HEADER_BLOCK);
        let block = stored(&largest, &mut Deflater::default());
        assert_eq!(
            Inflater::default().decode(&block).unwrap().unwrap(),
            largest
        );

        let larger = filled(MAX_HEADER_BLOCK + 1);
        let refused = Deflater::default().encode(&larger, &mut BytesMut::new());
        assert_eq!(refused, Err(WireError::HeaderBlockTooLarge));
        let block = Compressor::new().block(&plain(&larger));
        let refused = Inflater::default().decode(&block);
        assert_eq!(refused, Err(WireError::HeaderBlockTooLarge));
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let block = Compressor::new().block(&vec![0; 32 * 1024 * 1024]);
        assert!(block.len() < 64 * 1024);
        let mut inflater = Inflater::default();
        assert_eq!(inflater.decode(&block), Err(WireError::HeaderBlockTooLarge));
        let unpacked = inflater.zlib.unwrap().total_out();
        assert!(unpacked < 128 * 1024, "{unpacked} bytes");
    }

    #[test]
    fn a_stream_that_is_no_zlib_or_has_ended_is_refused() {
        let mut inflater = Inflater::default();
        assert_eq!(inflater.decode(b"streamtype"), Err(WireError::Compression));
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(b"another dictionary").unwrap();
        let mut out = Vec::with_capacity(1024);
        zlib.compress_vec(&plain(&sample()), &mut out, FlushCompress::Sync)
            .unwrap();
        let refused = Inflater::default().decode(&out);
        assert_eq!(refused, Err(WireError::Compression));

        let mut ended = Compressor::new();
        let mut out = Vec::with_capacity(1024);
        let text = plain(&sample());
        ended
            .0
            .compress_vec(&text, &mut out, FlushCompress::Finish)
            .unwrap();
        let refused = Inflater::default().decode(&out);
        assert_eq!(refused, Err(WireError::Compression));
    }

    #[test]
    fn a_block_cut_short_is_an_error_of_that_block() {
        let block = stored(&sample(), &mut Deflater::default());
        for cut in 0..block.len() - 5 {
            let mut inflater = Inflater::default();
            let result = inflater.decode(&block[..cut]);
            assert_eq!(result, Ok(Err(HeaderError::Length)), "{cut} bytes");
        }
    }

    #[test]
    fn names_and_values_follow_the_draft() {
        let mut headers = Headers::new();
        headers.insert("Stream-Type", "").unwrap();
        headers.insert("two", "a\0b").unwrap();
        for name in ["", "a b", "a\n", "é"] {
            assert_eq!(
                headers.insert(name, "x"),
                Err(HeaderError::Name),
                "{name:?}"
            );
        }
        for value in ["\0", "a\0", "\0a", "a\0\0b"] {
            assert_eq!(
                headers.insert("x", value),
                Err(HeaderError::Value),
                "{value:?}"
            );
        }
        let twice = headers.insert("STREAM-TYPE", "x");
        assert_eq!(twice, Err(HeaderError::Duplicate));
        assert_eq!(format!("{headers:?}"), r#"["stream-type", "two"]"#);
    }

    #[test]
    fn received_blocks_are_checked() {
        let mut upper = plain(&Headers::try_from([("port", "1")]).unwrap());
        upper[8] = b'P';
        assert_eq!(Headers::decode(&upper), Err(HeaderError::Name));
        let cases: [(&[u8], HeaderError); 6] = [
            (b"", HeaderError::Length),
            (b"\0\0\0\0x", HeaderError::Length),
            (
                b"\0\0\0\x02\0\0\0\x01a\0\0\0\0\0\0\0\x01a\0\0\0\0",
                HeaderError::Duplicate,
            ),
            (b"\0\0\0\x01\0\0\0\x01\xff\0\0\0\0", HeaderError::Name),
            (b"\0\0\0\x01\0\0\0\x01a\0\0\0\x01\xff", HeaderError::Value),
            (
                b"\xff\xff\xff\xff\0\0\0\x01a\xff\xff\xff\xff",
                HeaderError::Length,
            ),
        ];
        for (block, error) in cases {
            assert_eq!(Headers::decode(block), Err(error), "{block:02x?}");
        }
        let mut many = Headers::new();
        for i in 0..MAX_HEADERS {
            many.insert(&i.to_string(), "").unwrap();
        }
        assert_eq!(Headers::decode(&plain(&many)), Ok(many.clone()));
        assert_eq!(many.insert("one-more", ""), Err(HeaderError::TooMany));
    }

    proptest! {
        #[test]
        fn headers_survive_both_forms(
            list in proptest::collection::btree_map("[!-@\\[-~]{1,20}", "[^\\x00]{0,40}", 0..20)
        ) {
            let mut headers = Headers::new();
            for (name, value) in &list {
                headers.insert(name, value).unwrap();
            }
            let block = stored(&headers, &mut Deflater::default());
            prop_assert_eq!(Inflater::default().decode(&block).unwrap().unwrap(), headers.clone());
            let block = Compressor::new().block(&plain(&headers));
            prop_assert_eq!(Inflater::default().decode(&block).unwrap().unwrap(), headers);
        }

        #[test]
        fn any_block_is_taken_or_refused(block in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Headers::decode(&block);
            let mut inflater = Inflater::default();
            let mut opening = stored(&sample(), &mut Deflater::default());
            inflater.decode(&opening.split()).unwrap().unwrap();
            let _ = inflater.decode(&block);
        }
    }
}
