//! How the dial of a port whose state is not known went.

use std::io;

/// What became of a new connection.
pub(crate) enum Fate {
    /// It stands, as far as anyone can tell.
    Good,
    /// The Pod's side said that it cannot be.
    Refused,
    /// The stream, or the whole session, failed.
    Broken(io::Error),
}
