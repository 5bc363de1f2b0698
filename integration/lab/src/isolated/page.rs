//! `docs/isolated.md`: its two tables are the last run's.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::ProgramOutcome;
use crate::section::table_cell;

/// Puts each table between the two marks of its name.
///
/// # Errors
/// The page cannot be read or written, or has no marks.
pub fn write(page: &Path, outcomes: &[ProgramOutcome]) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let text = replaced(&text, "programs", &programs(outcomes))?;
    let text = replaced(&text, "shows", &shows(outcomes))?;
    Ok(fs::write(page, text)?)
}

fn replaced(text: &str, name: &str, table: &str) -> Result<String> {
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->"),
    );
    let (before, rest) = text
        .split_once(&begin)
        .with_context(|| format!("no {begin}"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("no {end}"))?;
    Ok(format!("{before}{begin}{table}{end}{after}"))
}

fn programs(outcomes: &[ProgramOutcome]) -> String {
    let mut text = String::from(
        "| program | what is run | environment | isolated | isolated, ordinary user |\n|---|---|---|---|---|\n",
    );
    for outcome in outcomes {
        let Some(environment) = &outcome.environment else {
            continue;
        };
        let [environment, root, user] = [environment, &outcome.root, &outcome.user]
            .map(|result| if result.is_ok() { "yes" } else { "no" });
        let line = short(outcome.program.line);
        let _: std::fmt::Result = writeln!(
            text,
            "| {} | `{line}` | {environment} | {root} | {user} |",
            outcome.program.name
        );
    }
    text
}

fn shows(outcomes: &[ProgramOutcome]) -> String {
    let mut text = String::from("| what | root | ordinary user |\n|---|---|---|\n");
    for outcome in outcomes
        .iter()
        .filter(|outcome| outcome.environment.is_none())
    {
        let [root, user] = [&outcome.root, &outcome.user].map(|result| match result {
            // A figure, where there is one.
            Ok(said) if said.contains(" in ") => format!("yes: {said}"),
            Ok(_) => "yes".to_owned(),
            Err(_) => "no".to_owned(),
        });
        let _: std::fmt::Result = writeln!(text, "| {} | {root} | {user} |", outcome.program.name);
    }
    text
}

/// Without the places of the lab's programs, and in one line.
fn short(line: &str) -> String {
    let words = line
        .split_whitespace()
        .filter(|word| !word.starts_with("LD_LIBRARY_PATH="));
    let words = words.map(|word| match word.strip_prefix("$KITS/") {
        Some(path) => path.rsplit('/').next().unwrap_or(path),
        None => word,
    });
    table_cell(&words.collect::<Vec<_>>().join(" "))
}
