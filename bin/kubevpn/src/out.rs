//! What commands say, and to whom it no longer matters.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;

use crate::exit::Failure;
use crate::terminal::Above;

/// Says a line.
pub(crate) fn line(text: impl Display) -> Result<(), Failure> {
    print(format_args!("{text}\n"))
}

/// Says a text with its own line ends. [`Failure::Unheard`] where nobody reads any more, as behind `| head`.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    written(write!(io::stdout().lock(), "{text}"))
}

/// The outcome of writing to standard output, which is written through.
pub(crate) fn written(said: io::Result<()>) -> Result<(), Failure> {
    match said.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::Unheard),
        said => Ok(said.context("cannot write to standard output")?),
    }
}

/// `--quiet`.
static HUSHED: AtomicBool = AtomicBool::new(false);

/// From now on notes are not said.
pub(crate) fn hush() {
    HUSHED.store(true, Ordering::Relaxed);
}

pub(crate) fn is_hushed() -> bool {
    HUSHED.load(Ordering::Relaxed)
}

/// Says a line that helps people and is no result: not with `--quiet`.
pub(crate) fn note(text: impl Display) -> Result<(), Failure> {
    match is_hushed() {
        true => Ok(()),
        false => line(text),
    }
}

/// Says a line on standard error. Who does not hear it may hear how the command ends.
pub(crate) fn aside(text: impl Display) {
    // In one piece, since what is drawn is drawn again behind each.
    let _ = Above::new().write_all(format!("{text}\n").as_bytes());
}

/// Text from elsewhere as a terminal may have it: control characters, line ends among them, and those that change the
/// direction of writing are escaped.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    let means_something = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(means_something) {
        return text.into();
    }
    let escape = |c: char| match means_something(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect::<String>().into()
}

/// For who goes on whether or not it is heard.
pub(crate) fn even_unheard(said: Result<(), Failure>) -> Result<(), Failure> {
    match said {
        Err(Failure::Unheard) => Ok(()),
        other => other,
    }
}
