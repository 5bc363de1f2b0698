//! The states of a stream.

use crate::frame::ResetStatus;

/// Which directions of a stream are open.
///
/// ```text
///                SYN_STREAM sent or received
///                             |
///                           Open
///            FIN sent       /      \      FIN received
///                 LocalEnded        RemoteEnded
///            FIN received   \      /      FIN sent
///                           Ended
/// ```
///
/// A stream opened with FLAG_FIN starts on the second line. RST_STREAM, GOAWAY and the end of the
/// session end a stream in any state; that is stored separately, because a reader has to know whether
/// the FIN came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamState {
    Open,
    LocalEnded,
    RemoteEnded,
    Ended,
}

/// What happens to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamTransition {
    /// We end our direction.
    SendEnd,
    /// The peer sends something.
    Receive,
    /// The peer ends its direction.
    ReceiveEnd,
}

/// When the end of a stream is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndTiming {
    Now,
    /// With the next frames.
    Soon,
}

impl StreamState {
    /// The state after a step, or the status of the reset for a step that is not allowed.
    pub(super) fn after(self, step: StreamTransition) -> Result<Self, ResetStatus> {
        match (self, step) {
            (Self::Open | Self::LocalEnded, StreamTransition::Receive) => Ok(self),
            (Self::Open, StreamTransition::SendEnd) => Ok(Self::LocalEnded),
            (Self::Open, StreamTransition::ReceiveEnd) => Ok(Self::RemoteEnded),
            (Self::LocalEnded, StreamTransition::ReceiveEnd)
            | (Self::RemoteEnded, StreamTransition::SendEnd) => Ok(Self::Ended),
            (
                Self::RemoteEnded | Self::Ended,
                StreamTransition::Receive | StreamTransition::ReceiveEnd,
            ) => Err(ResetStatus::STREAM_ALREADY_CLOSED),
            (Self::LocalEnded | Self::Ended, StreamTransition::SendEnd) => {
                Err(ResetStatus::INTERNAL_ERROR)
            }
        }
    }

    pub(super) fn remote_ended(self) -> bool {
        matches!(self, Self::RemoteEnded | Self::Ended)
    }

    pub(super) fn local_ended(self) -> bool {
        matches!(self, Self::LocalEnded | Self::Ended)
    }
}
