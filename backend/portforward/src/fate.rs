//! The outcome of a dial to a port whose state is not known.

use std::io;

/// Outcome of a new connection's forward.
pub(crate) enum Fate {
    /// No failure was reported in time.
    Good,
    /// The Pod's side reported a failure.
    Refused,
    /// The stream, or the whole session, failed.
    Broken(io::Error),
}
