//! The live line on a terminal: the current activity of a proxy, below its log. It is overwritten, and cleared at the end.

use std::io::IsTerminal as _;
use std::time::Duration;

use kubevpn_proxy::Journal;
use kubevpn_proxy::journal::RefusedConnection;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use crate::out;
use crate::terminal::{self, columns, draw, one_line};

/// Interval of updates. A shorter dial is not shown.
const TICK: Duration = Duration::from_secs(1);

/// Whether standard output and standard error are a terminal.
pub(crate) fn is_wanted() -> bool {
    std::io::stdout().is_terminal() && terminal::is_there() && !out::is_hushed()
}

/// The line of one proxy.
pub(crate) struct LiveLine {
    journal: Journal,
    ticks: Interval,
    /// Bytes at a time, to compute the rate.
    before: (u64, Instant),
}

impl LiveLine {
    pub(crate) fn new(journal: Journal) -> Self {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self {
            journal,
            ticks,
            before: (0, Instant::now()),
        }
    }

    /// Waits for the next update. Cancel safe.
    pub(crate) async fn tick(&mut self) {
        self.ticks.tick().await;
    }

    /// Draws the line, with `open` clients.
    pub(crate) fn show(&mut self, open: usize) {
        let totals = self.journal.totals();
        let bytes = totals.up + totals.down;
        let (before, at) = self.before;
        let elapsed = at.elapsed().as_secs_f64().max(0.001);
        let rate = bytes.saturating_sub(before) as f64 / elapsed;
        self.before = (bytes, Instant::now());
        let waiting = self.journal.longest_dial();
        let event = match waiting.filter(|(_, waited)| *waited >= TICK) {
            Some((target, waited)) => {
                format!("; waiting for {target} ({} s)", waited.as_secs())
            }
            None => refusal(self.journal.refusals().first()),
        };
        draw(text(open, rate, &event, columns()));
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        draw(String::new());
    }
}

fn refusal(last: Option<&RefusedConnection>) -> String {
    let said = last.map(|last| format!("; last refusal: {}: {}", last.target, last.sentence));
    said.unwrap_or_default()
}

/// The text, escaped and cut to one line of the terminal.
fn text(open: usize, rate: f64, event: &str, columns: usize) -> String {
    let connections = if open == 1 {
        "connection"
    } else {
        "connections"
    };
    let text = format!("{open} {connections} open, {}/s{event}", amount(rate));
    one_line(out::escaped(&text).into_owned(), columns)
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
        assert_eq!(text(1, 0.0, "", 80), "1 connection open, 0 B/s");
        let refused = RefusedConnection {
            id: 0,
            at: String::new(),
            frontend: "http".into(),
            client: None,
            target: "web\u{202e}:81".into(),
            refusal: "no_such_port".into(),
            sentence: "service web has no TCP port 81\u{1b}[2J".into(),
        };
        let said = text(2, 1_250_000.0, &refusal(Some(&refused)), 200);
        assert_eq!(
            said,
            "2 connections open, 1.2 MB/s; last refusal: web\\u{202e}:81: service web has no TCP port 81\\u{1b}[2J"
        );
        let said = text(2, 3e3, &refusal(Some(&refused)), 40);
        assert_eq!(said.chars().count(), 39);
        assert!(said.ends_with('…'), "{said}");
    }
}
