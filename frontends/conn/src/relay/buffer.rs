//! Buffers, borrowed while they contain bytes.
//!
//! Each thread keeps a few of every size. A direction borrows one to read into and returns it as soon as it is
//! empty, within the same poll if nothing blocks: so 2,000 waiting connections share what one needs, and
//! no read allocates.

use std::cell::RefCell;

/// The sizes through which a direction grows. The last one suits a SPDY frame best.
const SIZES: [usize; 3] = [16 * 1024, 64 * 1024, 256 * 1024];
/// Number of buffers of each size that a thread keeps: 1.3 MiB in total.
const KEPT: usize = 4;

thread_local! {
    static POOL: RefCell<[Vec<Box<[u8]>>; SIZES.len()]> = const { RefCell::new([const { Vec::new() }; SIZES.len()]) };
}

/// An index into the sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size(u8);

impl Size {
    pub(super) fn bytes(self) -> usize {
        SIZES[usize::from(self.0)]
    }

    pub(super) fn larger(self) -> Self {
        Self((self.0 + 1).min(SIZES.len() as u8 - 1))
    }

    pub(super) fn smaller(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// A borrowed buffer; on drop it returns to the thread that drops it.
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    size: Size,
}

impl Buffer {
    pub(super) fn take(size: Size) -> Self {
        let kept = POOL.try_with(|pool| pool.borrow_mut()[usize::from(size.0)].pop());
        let bytes = kept
            .ok()
            .flatten()
            .unwrap_or_else(|| vec![0; size.bytes()].into());
        Self { bytes, size }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // Fails while the thread ends; the buffer is then freed.
        let _ = POOL.try_with(|pool| {
            let kept = &mut pool.borrow_mut()[usize::from(self.size.0)];
            if kept.len() < KEPT {
                kept.push(bytes);
            }
        });
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returned_buffers_are_reused_up_to_a_bound() {
        std::thread::spawn(|| {
            let many: Vec<_> = (0..10).map(|_| Buffer::take(Size::default())).collect();
            drop(many);
            POOL.with(|pool| assert_eq!(pool.borrow()[0].len(), KEPT));
            let one = Buffer::take(Size::default());
            POOL.with(|pool| assert_eq!(pool.borrow()[0].len(), KEPT - 1));
            assert_eq!(one.len(), SIZES[0]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn sizes_stay_in_their_range() {
        assert_eq!(Size::default().smaller(), Size::default());
        let largest = (0..9).fold(Size::default(), |size, _| size.larger());
        assert_eq!(largest.bytes(), SIZES[SIZES.len() - 1]);
    }
}
