//! One direction: reads from one side, writes to the other, passes the end on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffer::{Buffer, Size};

/// Limit on rounds in one poll, after which the other direction and other tasks run. Streams of tokio yield by
/// themselves; others may not.
const ROUNDS: usize = 8;
/// Limit on reads into one buffer, so that a reader of single bytes does not delay the first.
const READS: usize = 64;

#[derive(Default)]
pub(super) struct Direction {
    state: DirectionState,
    held: Option<UnsentBytes>,
    size: Size,
    /// An error of the reader, kept until earlier data was offered to the writer.
    broken: Option<io::Error>,
    /// Whether the last read found nothing, so that the reader holds our waker.
    reading: bool,
    /// Whether something was written since the last flush.
    dirty: bool,
    /// Whether a poll ends before the shutdown begins, so that the owner can tell the writer first that nobody reads.
    pauses: bool,
    pub(super) read: u64,
    pub(super) written: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum DirectionState {
    /// The reader may have more.
    #[default]
    Open,
    /// The reader has ended; there may be bytes to write.
    Ended,
    /// Everything is written and flushed.
    Delivered,
    /// The shutdown has not finished.
    Closing,
    Done,
}

/// A buffer and the bytes in it that have not been written.
struct UnsentBytes {
    buffer: Buffer,
    start: usize,
    end: usize,
}

/// Where an error came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IoOperation {
    Read,
    Write,
}

type DirectionError = (IoOperation, io::Error);

impl Direction {
    /// A direction whose poll is pending, without a waker, before the shutdown.
    pub(super) fn pausing() -> Self {
        Self {
            pauses: true,
            ..Self::default()
        }
    }

    /// Whether the direction is done.
    pub(super) fn is_done(&self) -> bool {
        self.state == DirectionState::Done
    }

    /// Whether the reader has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.state != DirectionState::Open
    }

    /// Whether the reader has ended and the writer has every byte, though perhaps not yet the end.
    pub(super) fn is_delivered(&self) -> bool {
        use DirectionState::{Closing, Delivered, Done};
        matches!(self.state, Delivered | Closing | Done)
    }

    /// Whether everything was delivered and the next poll begins the shutdown.
    pub(super) fn is_before_shutdown(&self) -> bool {
        self.state == DirectionState::Delivered
    }

    /// Whether the reader will wake us when it has data or an error.
    pub(super) fn is_reading(&self) -> bool {
        self.state == DirectionState::Open && self.reading
    }

    pub(super) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<(), DirectionError>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..ROUNDS {
            let written = self.write(cx, writer)?;
            if self.state == DirectionState::Open {
                self.fill(cx, reader);
                // A writer that has just blocked is not polled again.
                if written.is_ready() {
                    let _ = self.write(cx, writer)?;
                }
            }
            if let Some(error) = self.broken.take() {
                return Poll::Ready(Err((IoOperation::Read, error)));
            }
            if self.held.is_some() {
                return Poll::Pending;
            }
            match self.state {
                DirectionState::Open if self.reading => {
                    let _ = self.flush(cx, writer)?;
                    return Poll::Pending;
                }
                DirectionState::Open => {}
                DirectionState::Ended => {
                    ready!(self.flush(cx, writer))?;
                    self.state = DirectionState::Delivered;
                    if self.pauses {
                        return Poll::Pending;
                    }
                }
                DirectionState::Delivered => self.state = DirectionState::Closing,
                DirectionState::Closing => {
                    let shutdown = Pin::new(&mut *writer).poll_shutdown(cx);
                    ready!(shutdown).map_err(|e| (IoOperation::Write, e))?;
                    self.state = DirectionState::Done;
                }
                DirectionState::Done => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads until no data is available, the buffer is full, or the reader has ended.
    fn fill<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, reader: &mut R) {
        self.reading = false;
        let mut held = self.held.take().unwrap_or_else(|| UnsentBytes {
            buffer: Buffer::take(self.size),
            start: 0,
            end: 0,
        });
        for _ in 0..READS {
            let room = &mut held.buffer[held.end..];
            if room.is_empty() {
                self.size = self.size.larger();
                break;
            }
            let mut room = ReadBuf::new(room);
            match Pin::new(&mut *reader).poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) if room.filled().is_empty() => {
                    self.state = DirectionState::Ended;
                    break;
                }
                Poll::Ready(Ok(())) => {
                    let n = room.filled().len();
                    held.end += n;
                    self.read += n as u64;
                }
                Poll::Ready(Err(error)) => {
                    self.broken = Some(error);
                    break;
                }
                Poll::Pending => {
                    self.reading = true;
                    if held.end < held.buffer.len() / 8 {
                        self.size = self.size.smaller();
                    }
                    break;
                }
            }
        }
        if held.start < held.end {
            self.held = Some(held);
        }
    }

    /// Writes the buffered bytes; returns the buffer when all are written.
    fn write<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<Result<(), DirectionError>> {
        while let Some(held) = &mut self.held {
            let bytes = &held.buffer[held.start..held.end];
            let written = ready!(Pin::new(&mut *writer).poll_write(cx, bytes));
            let n = match written {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                other => other,
            };
            let n = n.map_err(|e| (IoOperation::Write, e))?;
            held.start += n;
            self.written += n as u64;
            self.dirty = true;
            if held.start >= held.end {
                self.held = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn flush<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<Result<(), DirectionError>> {
        if self.dirty {
            ready!(Pin::new(writer).poll_flush(cx)).map_err(|e| (IoOperation::Write, e))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }
}
