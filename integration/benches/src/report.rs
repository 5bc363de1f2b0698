//! What is said about the measurements.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use crate::load::{Figure, Workload};
use crate::subject::Kind;

/// One workload on one subject in one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Round {
    round: usize,
    workload: String,
    subject: String,
    figures: Vec<Figure>,
    error: Option<String>,
}

impl Round {
    pub(crate) fn new(
        round: usize,
        workload: &Workload,
        kind: &Kind,
        measured: anyhow::Result<Vec<Figure>>,
    ) -> Self {
        let (figures, error) = match measured {
            Ok(figures) => (figures, None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        Self {
            round,
            workload: workload.title(),
            subject: kind.name(),
            figures,
            error,
        }
    }
}

#[expect(clippy::print_stderr, reason = "progress of a run of many minutes")]
pub(crate) fn progress(round: &Round) {
    eprint!(
        "round {} {:<14} {:<22}",
        round.round + 1,
        round.workload,
        round.subject
    );
    for figure in &round.figures {
        eprint!(" {:.2} {}", figure.value, figure.unit);
    }
    eprintln!(
        "{}",
        round
            .error
            .as_ref()
            .map(|e| format!(" failed: {e}"))
            .unwrap_or_default()
    );
}

#[expect(clippy::print_stdout, reason = "the report was asked for here")]
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    println!("{text}");
    Ok(())
}

/// Puts the table between the two marks of a page.
pub(crate) fn insert(path: &Path, text: &str) -> anyhow::Result<()> {
    const BEGIN: &str = "<!-- measured: begin -->\n";
    const END: &str = "<!-- measured: end -->";
    let page = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let (before, rest) = page
        .split_once(BEGIN)
        .context("the page has no place for the table")?;
    let (_, after) = rest
        .split_once(END)
        .context("the page has no end of the table")?;
    std::fs::write(path, format!("{before}{BEGIN}{text}{END}{after}"))?;
    Ok(())
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A table: a row per figure, a column per subject, and ours as a ratio to the better kubectl.
pub(crate) fn render(rounds: &[Round], count: usize) -> anyhow::Result<String> {
    let mut subjects = Vec::new();
    let mut rows: Vec<(String, &'static str, bool)> = Vec::new();
    let mut values: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    let mut failures: BTreeMap<(String, String), (usize, String)> = BTreeMap::new();
    for round in rounds {
        if !subjects.contains(&round.subject) {
            subjects.push(round.subject.clone());
        }
        for figure in &round.figures {
            if !rows.iter().any(|(what, ..)| *what == figure.what) {
                rows.push((figure.what.clone(), figure.unit, figure.more_is_better));
            }
            values
                .entry((figure.what.clone(), round.subject.clone()))
                .or_default()
                .push(figure.value);
        }
        if let Some(error) = &round.error {
            let failure = failures
                .entry((round.workload.clone(), round.subject.clone()))
                .or_default();
            failure.0 += 1;
            failure.1.clone_from(error);
        }
    }
    subjects.sort_by_key(|name| {
        (
            !name.starts_with("ours"),
            !name.starts_with("kubectl"),
            name.clone(),
        )
    });

    let mut text = format!("Medians of {count} rounds.\n\n| what | unit | ours / better kubectl |");
    for subject in &subjects {
        write!(text, " {subject} |")?;
    }
    text.push_str("\n|---|---|---|");
    text.push_str(&"---|".repeat(subjects.len()));
    text.push('\n');
    for (what, unit, more_is_better) in &rows {
        let mut of = |subject: &str| {
            values
                .get_mut(&(what.clone(), subject.to_owned()))
                .and_then(|v| median(v))
        };
        let cells: Vec<Option<f64>> = subjects.iter().map(|s| of(s)).collect();
        let ours = subjects
            .iter()
            .zip(&cells)
            .find(|(s, _)| s.starts_with("ours"))
            .and_then(|(_, v)| *v);
        let kubectl = subjects
            .iter()
            .zip(&cells)
            .filter(|(s, _)| s.starts_with("kubectl"))
            .filter_map(|(_, v)| *v);
        let best = if *more_is_better {
            kubectl.reduce(f64::max)
        } else {
            kubectl.reduce(f64::min)
        };
        let ratio = match (ours, best) {
            (Some(ours), Some(best)) if best > 0.0 => format!("{:.2}", ours / best),
            _ => "-".into(),
        };
        write!(text, "| {what} | {unit} | {ratio} |")?;
        for cell in cells {
            match cell {
                Some(value) if value >= 100.0 => write!(text, " {value:.0} |")?,
                Some(value) => write!(text, " {value:.2} |")?,
                None => text.push_str(" - |"),
            }
        }
        text.push('\n');
    }
    if !failures.is_empty() {
        text.push_str("\nFailed measurements:\n\n");
        for ((workload, subject), (times, error)) in failures {
            writeln!(
                text,
                "- {workload}, {subject}: {times} of {count} rounds, the last with: {error}"
            )?;
        }
    }
    Ok(text)
}
