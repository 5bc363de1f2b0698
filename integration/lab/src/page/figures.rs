//! Times that were measured in the page, as a table.

use std::fmt::Write as _;

use serde::Deserialize;

use super::{BrowserWindow, CONNECTIONS, SPEED};

/// A frame that lasts longer is seen as a stutter, in ms.
const STUTTER: f64 = 50.0;

/// What was measured while the whole list went by.
#[derive(Debug, Deserialize)]
pub(super) struct Scrolled {
    /// Number of rows that were seen, filled and in order.
    pub(super) seen: usize,
    pub(super) wrong: Vec<String>,
    /// Time from each frame to the next, in ms.
    frames: Vec<f64>,
    /// Time of the page's script in each frame, in ms.
    #[serde(rename = "inFrames")]
    in_frames: Vec<f64>,
    scripts: Vec<SnapshotTimes>,
    /// Most pixels without a row when a frame began.
    bare: f64,
}

/// Time that one snapshot took, in ms.
#[derive(Debug, Deserialize)]
struct SnapshotTimes {
    parsed: f64,
    shown: f64,
}

/// What does not fit into the screen.
#[derive(Debug, Deserialize)]
pub(super) struct Fit {
    /// How much wider the page is than the screen, in pixels.
    pub(super) wide: f64,
    /// Elements that reach out of the screen.
    pub(super) out: Vec<String>,
    /// Texts of figures that are cut.
    pub(super) cut: Vec<String>,
}

/// The pair of colours with the least contrast.
#[derive(Debug, Deserialize)]
pub(super) struct LeastContrast {
    pub(super) contrast: f64,
    #[expect(dead_code, reason = "shown where it is too little")]
    of: String,
}

/// The page at one width.
#[derive(Debug)]
pub(super) struct SeenScreen {
    pub(super) screen: &'static BrowserWindow,
    /// Without a stop.
    pub(super) fast: Scrolled,
    /// Page by page.
    pub(super) slow: Scrolled,
    pub(super) fit: Fit,
    /// For each scheme.
    pub(super) contrast: Vec<LeastContrast>,
}

/// Median, 99th percentile and longest of some times.
#[derive(Debug, PartialEq)]
struct Spread {
    p50: f64,
    p99: f64,
    longest: f64,
}

impl Spread {
    fn of(times: impl Iterator<Item = f64>) -> Option<Self> {
        let mut times: Vec<_> = times.collect();
        times.sort_by(f64::total_cmp);
        let at = |part: f64| times.get(((times.len() as f64 * part).ceil() as usize).max(1) - 1);
        Some(Self {
            p50: *at(0.5)?,
            p99: *at(0.99)?,
            longest: *times.last()?,
        })
    }
}

pub(super) fn table(screens: &[SeenScreen]) -> String {
    let mut text = format!(
        "{CONNECTIONS} connections, the whole list scrolled at {SPEED} pixels a second while snapshots arrive; \
         times in ms.\n\n\
         | screen | | number | median | 99 % | longest | over {STUTTER} ms |\n|---|---|---|---|---|---|---|\n"
    );
    for SeenScreen { screen, fast, .. } in screens {
        let (frames, scripts) = (&fast.frames, &fast.scripts);
        for (what, times) in [
            ("frames", frames.clone()),
            ("the page's script in a frame", fast.in_frames.clone()),
            (
                "a snapshot read",
                scripts.iter().map(|s| s.parsed).collect(),
            ),
            (
                "a snapshot drawn",
                scripts.iter().map(|s| s.shown).collect(),
            ),
        ] {
            let Some(spread) = Spread::of(times.iter().copied()) else {
                continue;
            };
            let long = times.iter().filter(|time| **time > STUTTER).count();
            let _: std::fmt::Result = writeln!(
                text,
                "| {} | {what} | {} | {:.1} | {:.1} | {:.1} | {long} |",
                screen.name,
                times.len(),
                spread.p50,
                spread.p99,
                spread.longest
            );
        }
    }
    text.push('\n');
    for SeenScreen { screen, fast, .. } in screens {
        let _: std::fmt::Result = writeln!(
            text,
            "{}: at most {:.0} pixels of the list without a row when a frame began.",
            screen.name, fast.bare
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_of_times() {
        let times = (1..=200).map(f64::from);
        let spread = Spread {
            p50: 100.0,
            p99: 198.0,
            longest: 200.0,
        };
        assert_eq!(Spread::of(times.rev()), Some(spread));
        let one = Spread {
            p50: 7.0,
            p99: 7.0,
            longest: 7.0,
        };
        assert_eq!(Spread::of([7.0].into_iter()), Some(one));
        assert_eq!(Spread::of([].into_iter()), None);
    }
}
