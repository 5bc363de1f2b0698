//! The last line of a terminal, which is overwritten; all other output is printed above it.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use unicode_width::UnicodeWidthStr as _;

/// Moves to the first column and clears the line (ECMA-48).
const CLEAR: &[u8] = b"\r\x1b[K";

/// The line on the terminal; empty for none.
static DRAWN: Mutex<String> = Mutex::new(String::new());

fn drawn() -> MutexGuard<'static, String> {
    DRAWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replaces the line. Errors are ignored, because the line is not a result.
pub(crate) fn draw(line: String) {
    let mut drawn = drawn();
    if *drawn == line {
        return;
    }
    let mut stderr = io::stderr().lock();
    let _ = stderr
        .write_all(CLEAR)
        .and_then(|()| stderr.write_all(line.as_bytes()));
    *drawn = line;
}

/// A writer to standard error that prints above the line.
pub(crate) struct Above;

impl Above {
    pub(crate) fn new() -> Self {
        Self
    }
}

impl Write for Above {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let drawn = drawn();
        let mut stderr = io::stderr().lock();
        if drawn.is_empty() {
            return stderr.write(text);
        }
        stderr.write_all(CLEAR)?;
        stderr.write_all(text)?;
        stderr.write_all(drawn.as_bytes())?;
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Whether standard error is a terminal.
pub(crate) fn is_there() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stderr().is_terminal() && !dumb
}

/// The width of the terminal.
pub(crate) fn columns() -> usize {
    // A terminal that does not know its size says 0.
    let columns = rustix::termios::tcgetwinsize(io::stderr()).map(|size| size.ws_col);
    let columns = columns.ok().filter(|columns| *columns > 0).unwrap_or(80);
    columns.into()
}

/// The text, cut to one line of the terminal; its last column would wrap.
pub(crate) fn one_line(mut text: String, columns: usize) -> String {
    let room = columns.saturating_sub(1);
    if text.width() > room {
        let fits = |end: &usize| text[..*end].width() < room;
        let ends = text.char_indices().map(|(at, _)| at);
        let end = ends.take_while(fits).last().unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_cut_by_columns() {
        for (text, columns, line) in [
            ("shop", 5, "shop"),
            ("shops", 5, "sho…"),
            // Each of these characters has two columns.
            ("商店", 5, "商店"),
            ("商店", 4, "商…"),
            ("商店", 3, "…"),
            ("a商店b", 6, "a商…"),
            ("a商店b", 7, "a商店b"),
            // A combining accent has none, and stays with its letter.
            ("cafe\u{301}s", 6, "cafe\u{301}s"),
            ("cafe\u{301}ss", 6, "cafe\u{301}…"),
            ("", 0, ""),
        ] {
            assert_eq!(one_line(text.to_owned(), columns), line, "{text} {columns}");
        }
    }
}
