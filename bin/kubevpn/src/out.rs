//! Output of commands, also to readers that have closed it.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use crate::exit::Failure;
use crate::terminal::Above;

/// Prints a line.
pub(crate) fn line(text: impl Display) -> Result<(), Failure> {
    print(format_args!("{text}\n"))
}

/// Prints a text as it is. Returns [`Failure::Unheard`] if the reader has closed it, as `| head` does.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    written(write!(io::stdout().lock(), "{text}"))
}

/// Prints a document as JSON, on several lines.
pub(crate) fn json(document: &impl Serialize) -> Result<(), Failure> {
    line(json_text(document, true)?)
}

/// Prints a document as JSON, on one line.
pub(crate) fn json_line(document: &impl Serialize) -> Result<(), Failure> {
    line(json_text(document, false)?)
}

/// The document as JSON. Characters that a terminal acts on are written as `\uXXXX`, which means the same.
pub(crate) fn json_text(document: &impl Serialize, pretty: bool) -> Result<String, Failure> {
    let text = match pretty {
        true => serde_json::to_string_pretty(document),
        false => serde_json::to_string(document),
    };
    let text = text.map_err(anyhow::Error::from)?;
    // serde_json escapes the control characters of ASCII in strings, except for DEL. Line ends between values stay.
    let is_raw = |c: char| c >= '\u{7f}' && drives_terminal(c);
    let escape = |mut text: String, c: char| {
        match is_raw(c) {
            true => text += &format!("\\u{:04x}", u32::from(c)),
            false => text.push(c),
        }
        text
    };
    Ok(match text.contains(is_raw) {
        true => text.chars().fold(String::new(), escape),
        false => text,
    })
}

/// Does the work of a command that prints without end, until Ctrl-C. The work has a thread of its own, because a full
/// pipe blocks it, and the command has to end nevertheless.
pub(crate) async fn until_interrupted(
    work: impl Future<Output = Result<(), Failure>> + Send + 'static,
) -> Result<(), Failure> {
    let interrupt = signal(SignalKind::interrupt());
    let mut interrupt = interrupt.context("cannot wait for signals")?;
    // The work ends at its next await point when this is dropped.
    let (_running, stopped) = oneshot::channel::<()>();
    let runtime = Handle::current();
    let working = spawn_blocking(move || {
        runtime.block_on(async {
            tokio::select! {
                biased;
                _ = stopped => Err(Failure::Interrupted),
                ended = work => ended,
            }
        })
    });
    tokio::select! {
        ended = working => ended.context("the output has failed")?,
        _ = interrupt.recv() => Err(Failure::Interrupted),
    }
}

/// Flushes standard output, and converts the result of a write.
pub(crate) fn written(said: io::Result<()>) -> Result<(), Failure> {
    match said.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::Unheard),
        said => Ok(said.context("cannot write to standard output")?),
    }
}

/// `--quiet`.
static HUSHED: AtomicBool = AtomicBool::new(false);

/// Suppresses notes from now on.
pub(crate) fn hush() {
    HUSHED.store(true, Ordering::Relaxed);
}

pub(crate) fn is_hushed() -> bool {
    HUSHED.load(Ordering::Relaxed)
}

/// Prints a note, which is not a result; not with `--quiet`.
pub(crate) fn note(text: impl Display) -> Result<(), Failure> {
    match is_hushed() {
        true => Ok(()),
        false => line(text),
    }
}

/// Prints a line to standard error, and ignores errors: the exit code is still reported.
pub(crate) fn aside(text: impl Display) {
    // The text is written at once, because the live line is drawn again after each write.
    let _ = Above::new().write_all(format!("{text}\n").as_bytes());
}

/// Escapes text from outside for a terminal: control characters, including line ends, and characters that change the
/// direction of text.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(drives_terminal) {
        return text.into();
    }
    let escape = |c: char| match drives_terminal(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect::<String>().into()
}

/// Whether a terminal acts on the character: control characters, the line ends of Unicode, and its marks of direction
/// (UAX #9).
fn drives_terminal(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Ignores that the reader has closed the output.
pub(crate) fn even_unheard(said: Result<(), Failure>) -> Result<(), Failure> {
    match said {
        Err(Failure::Unheard) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Characters that move the cursor, end a line, or change the direction of text.
    const ACTIVE: &str = "\0\t\n\r\u{1b}\u{7f}\u{85}\u{9b}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\
        \u{2066}\u{2069}";

    #[test]
    fn json_has_the_same_value_and_drives_no_terminal() {
        let document = serde_json::json!({"a": [ACTIVE, "Ä 商店 🙂"], ACTIVE: 1});
        for pretty in [true, false] {
            let text = json_text(&document, pretty).unwrap();
            let others = text.chars().filter(|c| *c != '\n' || !pretty);
            assert!(!others.clone().any(drives_terminal), "{text:?}");
            assert!(text.contains("Ä 商店 🙂"), "{text}");
            let back: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(back, document);
        }
    }

    #[test]
    fn what_drives_a_terminal_is_escaped() {
        for active in ACTIVE.chars() {
            let text = format!("a{active}b");
            let escape = active.escape_default();
            assert_eq!(escaped(&text), format!("a{escape}b"));
        }
        let plain = "http://jane@web.shop:80/?a=\"b\"&c=\\d Ä 商店 e\u{301} 🙂";
        assert!(matches!(escaped(plain), Cow::Borrowed(text) if text == plain));
    }
}
