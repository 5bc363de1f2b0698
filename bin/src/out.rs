//! What commands say, and to whom it no longer matters.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};

use anyhow::Context as _;

use crate::exit::Failure;

/// Says a line.
pub(crate) fn line(text: impl Display) -> Result<(), Failure> {
    print(format_args!("{text}\n"))
}

/// Says a text with its own line ends. [`Failure::Unheard`] where nobody reads any more, as behind `| head`.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::Unheard),
        said => Ok(said.context("cannot write to standard output")?),
    }
}

/// Says a line on standard error. Who does not hear it may hear how the command ends.
pub(crate) fn aside(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// For who goes on whether or not it is heard.
pub(crate) fn even_unheard(said: Result<(), Failure>) -> Result<(), Failure> {
    match said {
        Err(Failure::Unheard) => Ok(()),
        other => other,
    }
}
