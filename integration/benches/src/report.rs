//! What is said about the measurements.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::cpu::Usage;
use crate::load::{Figure, Goal, Measured};
use crate::subject::{OURS, SCRAPED};

/// One workload on one subject in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) round: usize,
    workload: String,
    subject: String,
    figures: Vec<Figure>,
    /// How many of `unit` were done, for which the processors were used.
    done: f64,
    unit: String,
    cpu: Usage,
    error: Option<String>,
}

impl Round {
    pub(crate) fn new(
        round: usize,
        workload: String,
        subject: String,
        measured: anyhow::Result<impl Into<Measured>>,
    ) -> Self {
        let empty = Self {
            round,
            workload,
            subject,
            figures: Vec::new(),
            done: 0.0,
            unit: String::new(),
            cpu: Usage::default(),
            error: None,
        };
        match measured.map(Into::into) {
            Ok(measured) => Self {
                figures: measured.figures,
                done: measured.done,
                unit: measured.unit.into(),
                cpu: measured.cpu,
                ..empty
            },
            Err(error) => Self {
                error: Some(format!("{error:#}")),
                ..empty
            },
        }
    }

    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }
}

#[expect(clippy::print_stderr, reason = "progress of a run of many minutes")]
pub(crate) fn progress(round: &Round) {
    let mut line = format!(
        "round {} {:<14} {:<22}",
        round.round + 1,
        round.workload,
        round.subject
    );
    for figure in &round.figures {
        line += &format!(" {:.2} {}", figure.value, figure.unit);
    }
    if let Some(error) = &round.error {
        line += &format!(" failed: {error}");
    }
    eprintln!("{line}");
}

#[expect(clippy::print_stdout, reason = "the report was asked for here")]
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    println!("{text}");
    Ok(())
}

/// The rounds of earlier runs, none where the file is not there yet.
pub(crate) fn load(path: &Path) -> anyhow::Result<Vec<Round>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

pub(crate) fn save(path: &Path, rounds: &[Round]) -> anyhow::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // A line for each, so that two runs can be compared.
    let lines: Result<Vec<_>, _> = rounds.iter().map(serde_json::to_string).collect();
    let text = format!("[\n{}\n]\n", lines?.join(",\n"));
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

/// A place on the page, between two marks of its own, and whom ours is compared with there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ReportSection {
    Cluster,
    Frontends,
    Line,
}

impl ReportSection {
    fn marks(self) -> (&'static str, &'static str) {
        match self {
            Self::Cluster => ("<!-- measured: begin -->\n", "<!-- measured: end -->"),
            Self::Frontends => ("<!-- frontends: begin -->\n", "<!-- frontends: end -->"),
            Self::Line => ("<!-- line: begin -->\n", "<!-- line: end -->"),
        }
    }

    fn rival(self) -> &'static str {
        match self {
            Self::Cluster | Self::Line => "kubectl",
            Self::Frontends => "peer",
        }
    }

    fn is_rival(self, subject: &str) -> bool {
        match self {
            Self::Cluster | Self::Line => is_kubectl(subject),
            Self::Frontends => !is_ours(subject),
        }
    }
}

/// Puts the tables between the two marks of their place.
pub(crate) fn insert(path: &Path, place: ReportSection, text: &str) -> anyhow::Result<()> {
    let (begin, end) = place.marks();
    let page = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let (before, rest) = page
        .split_once(begin)
        .context("the page has no place for the table")?;
    let (_, after) = rest
        .split_once(end)
        .context("the page has no end of the table")?;
    std::fs::write(path, format!("{before}{begin}{text}{end}{after}"))?;
    Ok(())
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], upper),
        _ => upper,
    })
}

fn is_ours(subject: &str) -> bool {
    subject.starts_with("ours")
}

fn is_kubectl(subject: &str) -> bool {
    subject.starts_with("kubectl")
}

/// A row of the first table.
struct ReportRow<'a> {
    place: ReportSection,
    what: &'a str,
    unit: &'a str,
    more_is_better: bool,
    goal: Option<Goal>,
    values: BTreeMap<&'a str, Vec<f64>>,
}

impl ReportRow<'_> {
    fn of(&self, subject: &str) -> Option<f64> {
        self.values.get(subject).and_then(|v| median(v))
    }

    /// Ours to the better rival.
    fn ratio(&self) -> Option<f64> {
        let rivals = self.values.keys().filter(|s| self.place.is_rival(s));
        let rivals = rivals.filter_map(|s| self.of(s));
        let best = match self.more_is_better {
            true => rivals.reduce(f64::max)?,
            false => rivals.reduce(f64::min)?,
        };
        (best > 0.0).then_some(self.ours()? / best)
    }

    fn ours(&self) -> Option<f64> {
        let ours = self.values.keys().find(|s| is_ours(s))?;
        self.of(ours)
    }

    /// The goal, and whether it was reached or by how much not.
    fn verdict(&self) -> (String, String) {
        let (goal, reached, text) = match self.goal {
            None => return (String::new(), String::new()),
            Some(Goal::Ratio(goal)) if self.more_is_better => {
                (goal, self.ratio(), format!(">= {goal} x"))
            }
            Some(Goal::Ratio(goal)) => (goal, self.ratio(), format!("<= {goal} x")),
            Some(Goal::Value(goal)) => {
                let sign = if self.more_is_better { ">=" } else { "<=" };
                (goal, self.ours(), format!("{sign} {goal} {}", self.unit))
            }
        };
        let verdict = match reached {
            None => "not measured".into(),
            Some(reached) if self.more_is_better && reached < goal => {
                format!("short by {:.0} %", 100.0 * (1.0 - reached / goal))
            }
            Some(reached) if !self.more_is_better && reached > goal && goal == 0.0 => {
                "missed".into()
            }
            Some(reached) if !self.more_is_better && reached > goal => {
                format!("over by {:.0} %", 100.0 * (reached / goal - 1.0))
            }
            Some(_) => "met".into(),
        };
        (text.trim_end().into(), verdict)
    }
}

fn number(value: Option<f64>) -> String {
    match value {
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) => format!("{value:.2}"),
        None => "-".into(),
    }
}

/// Ours, kubectl, then the others by name.
fn subjects(rounds: &[Round]) -> Vec<&str> {
    let mut subjects: Vec<&str> = rounds.iter().map(|r| &*r.subject).collect();
    subjects.sort_by_key(|name| (!is_ours(name), !is_kubectl(name), *name));
    subjects.dedup();
    subjects
}

/// The two tables: the figures with their goals, and who used the processors.
pub(crate) fn render(rounds: &[Round]) -> anyhow::Result<String> {
    let mut text = figures(rounds, ReportSection::Cluster)?;
    text += &processors(rounds)?;
    Ok(text)
}

/// The table of figures, with goals where there are any.
pub(crate) fn figures(rounds: &[Round], place: ReportSection) -> anyhow::Result<String> {
    let subjects = subjects(rounds);
    let mut rows: Vec<ReportRow<'_>> = Vec::new();
    let mut failures: BTreeMap<(&str, &str), (usize, &str)> = BTreeMap::new();
    for round in rounds {
        for figure in &round.figures {
            let at = rows.iter().position(|row| row.what == figure.what);
            let at = at.unwrap_or_else(|| {
                rows.push(ReportRow {
                    place,
                    what: &figure.what,
                    unit: &figure.unit,
                    more_is_better: figure.more_is_better,
                    goal: figure.goal,
                    values: BTreeMap::new(),
                });
                rows.len() - 1
            });
            let values = rows[at].values.entry(&round.subject).or_default();
            values.push(figure.value);
        }
        if let Some(error) = &round.error {
            let failure = failures.entry((&round.workload, &round.subject));
            let failure = failure.or_default();
            failure.0 += 1;
            failure.1 = error;
        }
    }

    let count = rounds.iter().map(|r| r.round + 1).max().unwrap_or(0);
    let plural = if count == 1 { "" } else { "s" };
    let rival = place.rival();
    let mut text = format!(
        "Medians of {count} round{plural}. \"x\" is ours as a multiple of the better {rival}'s.\n\n"
    );
    let goals = rows.iter().any(|row| row.goal.is_some());
    text += "| what | unit | x |";
    text += if goals { " goal | |" } else { "" };
    for subject in &subjects {
        write!(text, " {subject} |")?;
    }
    text += "\n|---|---|---|";
    text += if goals { "---|---|" } else { "" };
    text += &"---|".repeat(subjects.len());
    text.push('\n');
    for row in &rows {
        let ratio = number(row.ratio());
        write!(text, "| {} | {} | {ratio} |", row.what, row.unit)?;
        if goals {
            let (goal, verdict) = row.verdict();
            write!(text, " {goal} | {verdict} |")?;
        }
        for subject in &subjects {
            write!(text, " {} |", number(row.of(subject)))?;
        }
        text.push('\n');
    }
    if !failures.is_empty() {
        text += "\nFailed measurements:\n\n";
        for ((workload, subject), (times, error)) in failures {
            writeln!(
                text,
                "- {workload}, {subject}: {times} of {count} rounds, the last with: {error}"
            )?;
        }
    }
    Ok(text)
}

/// By how much of itself ours may be worse where its metrics are read.
const METRICS_COST: f64 = 0.02;

/// Ours with metrics that are read beside ours without: pairs of the same round, since what the machine does differs more from one
/// round to the next. Nothing where that was not measured.
pub(crate) fn metrics(rounds: &[Round]) -> anyhow::Result<String> {
    let mut ratios: BTreeMap<&str, (bool, Vec<f64>)> = BTreeMap::new();
    for with in rounds.iter().filter(|round| round.subject == SCRAPED) {
        let without = rounds.iter().find(|round| {
            round.subject == OURS && round.round == with.round && round.workload == with.workload
        });
        let Some(without) = without else { continue };
        for figure in &with.figures {
            let same = without.figures.iter().find(|it| it.what == figure.what);
            let Some(same) = same.filter(|it| it.value > 0.0) else {
                continue;
            };
            let (_, all) = ratios
                .entry(&figure.what)
                .or_insert((figure.more_is_better, Vec::new()));
            all.push(figure.value / same.value);
        }
    }
    let mut text = String::new();
    if ratios.is_empty() {
        return Ok(text);
    }
    text += "\nWith `--metrics`, read once a second, as a multiple of without: the median over rounds, and whether that is within 2 %.\n\n| what | x | least | most | |\n|---|---|---|---|---|\n";
    for (what, (more_is_better, all)) in ratios {
        let Some(middle) = median(&all) else { continue };
        let worse = match more_is_better {
            true => 1.0 - middle,
            false => middle - 1.0,
        };
        let verdict = match worse <= METRICS_COST {
            true => "met".to_owned(),
            false => format!("worse by {:.1} %", 100.0 * worse),
        };
        let least = all.iter().copied().fold(f64::INFINITY, f64::min);
        let most = all.iter().copied().fold(0.0, f64::max);
        writeln!(
            text,
            "| {what} | {middle:.3} | {least:.3} | {most:.3} | {verdict} |"
        )?;
    }
    Ok(text)
}

/// Whose processor time goes into one connection, request or MiB.
fn processors(rounds: &[Round]) -> anyhow::Result<String> {
    const WHO: [&str; 6] = [
        "kube-apiserver",
        "kubelet",
        "containerd",
        "others",
        "clients",
        "subject",
    ];
    let mut keys: Vec<(&str, &str, &str)> = Vec::new();
    let counted = |r: &&Round| r.done > 0.0 && (is_ours(&r.subject) || is_kubectl(&r.subject));
    for round in rounds.iter().filter(counted) {
        let key = (&*round.workload, &*round.subject, &*round.unit);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let place = |workload: &str| rounds.iter().position(|r| r.workload == workload);
    keys.sort_by_key(|(workload, subject, _)| (place(workload), !is_ours(subject), *subject));
    let mut text = "\nProcessor time, in microseconds of one core, medians. \"others\" is the Pod and the rest of the\n\
        machine, \"subject\" the program under test.\n\n| workload | subject | for each |"
        .to_owned();
    for who in WHO {
        write!(text, " {who} |")?;
    }
    text += " sum |\n|---|---|---|";
    text += &"---|".repeat(WHO.len() + 1);
    text.push('\n');
    for (workload, subject, unit) in keys {
        write!(text, "| {workload} | {subject} | {unit} |")?;
        let here = |r: &&Round| r.done > 0.0 && r.workload == workload && r.subject == subject;
        let mut sum = 0.0;
        for who in WHO {
            let each = rounds
                .iter()
                .filter(here)
                .filter_map(|r| Some(r.cpu.of(who)? / r.done * 1e6));
            let each = median(&each.collect::<Vec<_>>()).unwrap_or_default();
            sum += each;
            write!(text, " {each:.0} |")?;
        }
        writeln!(text, " {sum:.0} |")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_compared_round_by_round() {
        let round = |round, subject: &str, value| {
            let figures = vec![
                Figure::more("connections", "/s", value),
                Figure::less("latency", "ms", 1000.0 / value),
            ];
            Round::new(round, "churn-16".into(), subject.into(), Ok(figures))
        };
        let without = [round(0, OURS, 100.0), round(1, OURS, 400.0)];
        assert_eq!(metrics(&without).unwrap(), "");
        // The second round is faster for both.
        let well = [round(0, SCRAPED, 99.0), round(1, SCRAPED, 396.0)];
        let text = metrics(&[&without[..], &well].concat()).unwrap();
        assert!(
            text.contains("| connections | 0.990 | 0.990 | 0.990 | met |"),
            "{text}"
        );
        assert_eq!(text.matches("| met |").count(), 2, "{text}");
        // A row that does not begin its line is no table.
        assert!(text.contains("\n| what |"), "{text}");
        let badly = [round(0, SCRAPED, 90.0), round(1, SCRAPED, 360.0)];
        let text = metrics(&[&without[..], &badly].concat()).unwrap();
        assert!(text.contains("| 0.900 | worse by 10.0 % |"), "{text}");
    }
}
