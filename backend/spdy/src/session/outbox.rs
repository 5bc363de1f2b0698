//! The outbox: encoded frames that wait for the socket.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes, BytesMut};

/// Frames are copied together into pieces of up to this many bytes, so that few pieces are written
/// instead of many; larger frames are pieces of their own.
const GATHERED: usize = 8 * 1024;

/// Encoded frames, in pieces, in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pieces: VecDeque<Bytes>,
    /// The last piece, while small frames can still be added to it.
    tail: BytesMut,
    len: usize,
}

impl Outbox {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds whole frames.
    pub(crate) fn push(&mut self, frames: BytesMut) {
        self.len += frames.len();
        if self.tail.is_empty() {
            self.tail = frames;
        } else if self.tail.len() + frames.len() <= GATHERED {
            self.tail.extend_from_slice(&frames);
        } else {
            self.seal();
            self.tail = frames;
        }
    }

    /// The first piece to write.
    pub(crate) fn front(&mut self) -> &[u8] {
        self.seal();
        self.pieces.front().map_or(&[], Bytes::chunk)
    }

    /// The first pieces to write; returns their number.
    pub(crate) fn slices<'a>(&'a mut self, slices: &mut [IoSlice<'a>]) -> usize {
        self.seal();
        let pieces = slices.iter_mut().zip(&self.pieces);
        pieces
            .map(|(slice, piece)| *slice = IoSlice::new(piece))
            .count()
    }

    /// Removes written bytes.
    pub(crate) fn advance(&mut self, mut written: usize) {
        self.len -= written;
        while let Some(piece) = self.pieces.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
        self.pieces = VecDeque::new();
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.pieces
                .push_back(std::mem::take(&mut self.tail).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = GATHERED + 1;

    fn bytes(len: usize, fill: u8) -> BytesMut {
        BytesMut::from(&vec![fill; len][..])
    }

    #[test]
    fn small_frames_share_a_piece_and_large_ones_are_not_copied() {
        let mut out = Outbox::default();
        let large = bytes(LARGE, 2);
        let at = large.as_ptr();
        for frame in [bytes(10, 0), bytes(GATHERED - 10, 1), large, bytes(5, 3)] {
            out.push(frame);
        }
        assert_eq!(out.len(), GATHERED + LARGE + 5);
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(out.slices(&mut slices), 3);
        assert_eq!(slices[0].len(), GATHERED);
        assert_eq!(slices[1].as_ptr(), at);
        assert_eq!(*slices[2], [3; 5]);
    }

    #[test]
    fn written_bytes_go_from_the_front() {
        let mut out = Outbox::default();
        out.push(bytes(4, 1));
        out.push(bytes(LARGE, 2));
        assert_eq!(out.front(), [1; 4]);
        out.advance(3);
        assert_eq!(out.front(), [1]);
        out.advance(2);
        assert_eq!(out.front(), vec![2; LARGE - 1]);
        out.advance(LARGE - 1);
        assert!(out.is_empty());
        assert_eq!(out.front(), []);
    }
}
