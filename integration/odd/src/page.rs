//! The page of the table.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::libraries::Ran;
use crate::play::{Played, RouteVerdict};

const BEGIN: &str = "<!-- odd: begin -->\n";
const END: &str = "<!-- odd: end -->\n";

/// Writes the tables between the marks of the page.
pub fn write(page: &Path, ways: &[&str], rows: &[Played], libraries: &[Ran]) -> Result<()> {
    let text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let (before, rest) = text.split_once(BEGIN).context("the page has no begin")?;
    let (_, after) = rest.split_once(END).context("the page has no end")?;
    let tables = tables(ways, rows, libraries)?;
    std::fs::write(page, format!("{before}{BEGIN}{tables}{END}{after}"))?;
    Ok(())
}

fn tables(ways: &[&str], rows: &[Played], libraries: &[Ran]) -> Result<String> {
    let mut page = String::new();
    let right = |way: usize| {
        let right = |played: &&Played| played.verdicts[way] == RouteVerdict::Right;
        rows.iter().filter(right).count()
    };
    let means = |way: usize| {
        let without = |played: &&Played| played.verdicts[way] != RouteVerdict::Without;
        rows.iter().filter(without).count()
    };
    writeln!(page, "{} rows. Right in:\n", rows.len())?;
    writeln!(page, "| {} |", ways.join(" | "))?;
    writeln!(page, "|{}", "---|".repeat(ways.len()))?;
    let counts: Vec<String> = (0..ways.len())
        .map(|way| format!("{} of {}", right(way), means(way)))
        .collect();
    writeln!(page, "| {} |\n", counts.join(" | "))?;

    writeln!(page, "| what | RFC | {} |", ways.join(" | "))?;
    writeln!(page, "|---|---|{}", "---|".repeat(ways.len()))?;
    for Played { row, verdicts } in rows {
        let cells: Vec<String> = verdicts.iter().map(cell).collect();
        let because = row.because.map(|why| format!(" ({why})"));
        let name = format!("{}{}", row.name, because.unwrap_or_default());
        writeln!(
            page,
            "| {} | {} | {} |",
            escape(&name),
            row.rule,
            cells.join(" | ")
        )?;
    }
    if !libraries.is_empty() {
        writeln!(page, "\n| client | does | direct | ours |")?;
        writeln!(page, "|---|---|---|---|")?;
        for ran in libraries {
            let cells: Vec<String> = [&ran.direct, &ran.ours]
                .map(|said| escape(said.as_deref().unwrap_or("+")))
                .into();
            let (client, does) = (escape(&ran.client), escape(ran.does));
            writeln!(page, "| {client} | {does} | {} |", cells.join(" | "))?;
        }
    }
    Ok(page)
}

fn cell(verdict: &RouteVerdict) -> String {
    match verdict {
        RouteVerdict::Right => "+".into(),
        RouteVerdict::Wrong(what) => escape(what),
        RouteVerdict::Without => String::new(),
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '|' => escaped.push_str("\\|"),
            '<' => escaped.push_str("&lt;"),
            c if c.is_control() => escaped.push('␀'),
            c => escaped.push(c),
        }
    }
    escaped
}
