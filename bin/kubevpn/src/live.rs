//! The live line of a terminal: what a proxy does now, below its log. It is drawn over itself, and gone at the end.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kubevpn_daemon::Counts;
use kubevpn_daemon::api::Refused;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use crate::out;

/// Time between two drawings.
const TICK: Duration = Duration::from_secs(1);
/// To the left, and everything to the right away (ECMA-48).
const CLEAR: &[u8] = b"\r\x1b[K";

/// The line on the terminal; empty for none.
static DRAWN: Mutex<String> = Mutex::new(String::new());

fn drawn() -> MutexGuard<'static, String> {
    DRAWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Draws this instead. Who does not see it misses nothing.
fn draw(line: String) {
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

/// Standard error for log lines: above what is drawn.
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

/// Whether standard output and standard error are a person's terminal.
pub(crate) fn is_wanted() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stderr().is_terminal() && io::stdout().is_terminal() && !dumb && !out::is_hushed()
}

/// The line of one proxy.
pub(crate) struct Live {
    counts: Arc<Counts>,
    ticks: Interval,
    /// Bytes at a time, for the rate.
    before: (u64, Instant),
}

impl Live {
    pub(crate) fn new(counts: Arc<Counts>) -> Self {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self {
            counts,
            ticks,
            before: (0, Instant::now()),
        }
    }

    /// Waits until it is to be drawn again. Cancel safe.
    pub(crate) async fn tick(&mut self) {
        self.ticks.tick().await;
    }

    /// Draws it, with so many clients.
    pub(crate) fn show(&mut self, open: usize) {
        let traffic = self.counts.traffic();
        let bytes = traffic.bytes_up + traffic.bytes_down;
        let (before, at) = self.before;
        let elapsed = at.elapsed().as_secs_f64().max(0.001);
        let rate = bytes.saturating_sub(before) as f64 / elapsed;
        self.before = (bytes, Instant::now());
        let last = self.counts.refusals().into_iter().next();
        // A terminal that does not know its size says 0.
        let columns = rustix::termios::tcgetwinsize(io::stderr()).map(|size| size.ws_col);
        let columns = columns.ok().filter(|columns| *columns > 0).unwrap_or(80);
        draw(text(open, rate, last.as_ref(), columns.into()));
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        draw(String::new());
    }
}

/// In one line of a terminal of so many columns, the last of which wraps.
fn text(open: usize, rate: f64, last: Option<&Refused>, columns: usize) -> String {
    let connections = if open == 1 {
        "connection"
    } else {
        "connections"
    };
    let mut text = format!("{open} {connections} open, {}/s", amount(rate));
    if let Some(last) = last {
        text.push_str(&format!(
            "; last refusal: {}: {}",
            last.target,
            out::escaped(&last.sentence)
        ));
    }
    let room = columns.saturating_sub(1);
    if text.chars().count() > room {
        text = text.chars().take(room.saturating_sub(1)).collect();
        text.push('…');
    }
    text
}

fn amount(bytes: f64) -> String {
    match bytes {
        bytes if bytes >= 1e9 => format!("{:.1} GB", bytes / 1e9),
        bytes if bytes >= 1e6 => format!("{:.1} MB", bytes / 1e6),
        bytes if bytes >= 1e3 => format!("{:.1} kB", bytes / 1e3),
        bytes => format!("{bytes:.0} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_the_terminal() {
        assert_eq!(text(1, 0.0, None, 80), "1 connection open, 0 B/s");
        let refused = Refused {
            time: String::new(),
            target: "web:81".into(),
            class: "no_such_port".into(),
            sentence: "service web has no TCP port 81\u{1b}[2J".into(),
        };
        let said = text(2, 1_250_000.0, Some(&refused), 200);
        assert_eq!(
            said,
            "2 connections open, 1.2 MB/s; last refusal: web:81: service web has no TCP port 81\\u{1b}[2J"
        );
        let said = text(2, 3e3, Some(&refused), 40);
        assert_eq!(said.chars().count(), 39);
        assert!(said.ends_with('…'), "{said}");
    }
}
