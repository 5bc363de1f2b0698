//! The object of a long wait, shown on a terminal after a second.

use std::fmt::Display;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, interval_at};

use crate::out;
use crate::terminal::{self, columns, draw, one_line};

/// A shorter wait is not shown.
const SHORT: Duration = Duration::from_secs(1);

/// Shows the object of the wait in the live line, until the wait ends.
pub(crate) async fn shown<T>(what: impl Display, wait: impl Future<Output = T>) -> T {
    let mut wait = pin!(wait);
    if !terminal::is_there() || out::is_hushed() {
        return wait.await;
    }
    let begun = Instant::now();
    let mut ticks = interval_at(begun + SHORT, SHORT);
    let line = ProgressLine;
    loop {
        tokio::select! {
            biased;
            done = &mut wait => {
                drop(line);
                return done;
            }
            _ = ticks.tick() => line.draw(&what, begun.elapsed()),
        }
    }
}

/// Prints the object of the wait once, as a line: the terminal may be used by another program meanwhile, e.g. a login with
/// prompts.
pub(crate) async fn said<T>(what: impl Display, wait: impl Future<Output = T>) -> T {
    let mut wait = pin!(wait);
    if terminal::is_there() && !out::is_hushed() {
        tokio::select! {
            biased;
            done = &mut wait => return done,
            () = tokio::time::sleep(SHORT) => {
                let what = what.to_string();
                out::aside(format_args!("waiting for {}", out::escaped(&what)));
            }
        }
    }
    wait.await
}

/// Clears the line when dropped, also after a cancelled wait.
struct ProgressLine;

impl ProgressLine {
    fn draw(&self, what: &impl Display, elapsed: Duration) {
        let text = format!("waiting for {what} ({} s)", elapsed.as_secs());
        draw(one_line(out::escaped(&text).into_owned(), columns()));
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        draw(String::new());
    }
}
