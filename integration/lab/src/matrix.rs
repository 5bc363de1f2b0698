//! Every Kubernetes on every containerd: does it come up, does it do what the lab claims of it, do the scenarios pass,
//! and what does it answer to upgrades?

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::{Instant, timeout};
use tracing::info;

use crate::cluster::{Extent, Lab};
use crate::section::{table_cell, write_section};
use crate::versions::{Containerd, Versions, has_module};

/// All scenarios of one pair, on two slow cores.
const SCENARIOS: Duration = Duration::from_secs(45 * 60);

/// Questions, and what was seen.
pub(crate) type Rows = Vec<(String, String)>;

/// One pair of versions, and what was run on it.
#[derive(Debug, Serialize, Deserialize)]
pub struct VersionPair {
    /// Which.
    pub versions: Versions,
    /// The error that ended the run, if one did; what follows is what was seen until then.
    #[serde(default)]
    pub failure: Option<String>,
    /// Until every Pod was ready.
    pub up: Duration,
    /// Claims of the lab that hold, and sentences about those that do not.
    pub claims: (usize, Vec<String>),
    /// What the scenarios came to.
    pub scenarios: Scenarios,
    /// What it answers to upgrades.
    pub upgrades: Rows,
    /// What becomes of answers to a client that has ended its side.
    pub half_closed: Rows,
    /// What each transport costs, if that was measured.
    pub transports: Rows,
}

/// A run of the scenarios.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenarios {
    /// Passed.
    pub passed: usize,
    /// Their names.
    pub failed: Vec<String>,
    /// Number of those not run, by reason; the reason is empty where none is given.
    pub ignored: BTreeMap<String, usize>,
    /// All of them together.
    pub took: Duration,
    /// The filters, if not all were run.
    pub only: Vec<String>,
}

/// All pairs, or those of one Kubernetes or one containerd.
///
/// # Errors
/// Sources of the lab that cannot be read; a Kubernetes without a module.
pub fn pairs(kubernetes: Option<&str>, containerd: Option<Containerd>) -> Result<Vec<Versions>> {
    let all = Lab::from_env()?.kubernetes_versions()?;
    if let Some(kubernetes) = kubernetes {
        has_module(kubernetes, &all)?;
    }
    let all = all
        .into_iter()
        .filter(|v| kubernetes.is_none_or(|k| k == v));
    Ok(all
        .flat_map(|kubernetes| {
            let chosen = move |c: &Containerd| containerd.is_none_or(|one| one == *c);
            Containerd::ALL
                .into_iter()
                .filter(chosen)
                .map(move |containerd| Versions {
                    kubernetes: kubernetes.clone(),
                    containerd,
                })
        })
        .collect())
}

impl VersionPair {
    fn new(versions: Versions) -> Self {
        Self {
            versions,
            failure: None,
            up: Duration::ZERO,
            claims: (0, Vec::new()),
            scenarios: Scenarios::default(),
            upgrades: Rows::new(),
            half_closed: Rows::new(),
            transports: Rows::new(),
        }
    }

    /// Takes down the cluster that is up, brings up this pair and tries it; it is left up. Transports are measured with this
    /// program, which the scenarios build.
    pub async fn run(
        versions: &Versions,
        root: &Path,
        filters: &[String],
        measured: Option<&Path>,
    ) -> Self {
        let mut pair = Self::new(versions.clone());
        if let Err(error) = pair.fill(root, filters, measured).await {
            pair.failure = Some(format!("{error:#}"));
        }
        pair
    }

    async fn fill(
        &mut self,
        root: &Path,
        filters: &[String],
        measured: Option<&Path>,
    ) -> Result<()> {
        let versions = &self.versions;
        Lab::from_env()?.down().await?;
        let lab = Lab::from_env()?
            .with_versions(Some(versions.kubernetes.clone()), Some(versions.containerd))?;
        lab.build().await?;
        let begun = Instant::now();
        lab.up(Extent::Full).await?;
        self.up = begun.elapsed();
        info!("{versions} is up");
        let claims = lab.check(|_| {}).await?;
        let broken = claims.iter().filter_map(|claim| {
            let contradiction = claim.contradiction.as_ref()?;
            Some(format!("{}: {contradiction}", claim.what))
        });
        let broken: Vec<String> = broken.collect();
        let holding = claims.len() - broken.len();
        info!("{holding} claims hold, {} do not", broken.len());
        self.claims = (holding, broken);
        let upgrades = lab.upgrades(None).await?;
        self.upgrades = upgrades
            .iter()
            .map(|answer| (answer.question.clone(), answer.cell()))
            .collect();
        let half_closed = lab.half_close().await?;
        let half_closed = half_closed.iter().map(|h| (h.what.to_owned(), h.short()));
        self.half_closed = half_closed.collect();
        self.scenarios = scenarios(root, filters).await?;
        if let Some(kubevpn) = measured {
            self.transports = lab.transports(kubevpn).await?;
        }
        Ok(())
    }

    /// Whether all that was run passed.
    pub fn holds(&self) -> bool {
        self.failure.is_none()
            && self.claims.1.is_empty()
            && self.upgrades.iter().all(|(_, cell)| cell != "none")
            && self.scenarios.failed.is_empty()
            && self.scenarios.passed > 0
    }
}

async fn scenarios(root: &Path, filters: &[String]) -> Result<Scenarios> {
    let every = [String::new()];
    let mut all = Scenarios {
        only: filters.to_vec(),
        ..Scenarios::default()
    };
    // The test program takes one filter at a time.
    for filter in if filters.is_empty() { &every } else { filters } {
        let run = one_run(root, filter).await?;
        all.passed += run.passed;
        all.failed.extend(run.failed);
        for (reason, ignored) in run.ignored {
            *all.ignored.entry(reason).or_default() += ignored;
        }
        all.took += run.took;
    }
    Ok(all)
}

async fn one_run(root: &Path, filter: &str) -> Result<Scenarios> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["test", "-p", "kubevpn", "--test", "real", "--"])
        .args((!filter.is_empty()).then_some(filter))
        .current_dir(root)
        .env("KUBEVPN_LAB", "1")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    let begun = Instant::now();
    let done = timeout(SCENARIOS, command.output())
        .await
        .context("the scenarios do not end")??;
    let said = String::from_utf8_lossy(&done.stdout);
    let mut scenarios = read(&said).with_context(|| format!("no result of tests in:\n{said}"))?;
    if !scenarios.failed.is_empty() {
        info!("{said}"); // the table names those that failed, and not why
    }
    scenarios.took = begun.elapsed();
    Ok(scenarios)
}

/// What a run of tests printed.
fn read(said: &str) -> Option<Scenarios> {
    let result = said
        .lines()
        .rfind(|line| line.starts_with("test result:"))?;
    let count = |word: &str| {
        let (before, _) = result.split_once(&format!(" {word}"))?;
        before.rsplit(' ').next()?.parse().ok()
    };
    let failed = said.lines().filter_map(|line| {
        let name = line.strip_prefix("test ")?.split_once(" ... FAILED")?.0;
        Some(name.trim().to_owned())
    });
    let mut ignored = BTreeMap::new();
    for line in said.lines() {
        if let Some((name, _)) = line.split_once(" ... ignored") {
            let reason = name.split_once("(skipped: ").map_or("", |(_, r)| r);
            let reason = reason.trim().trim_end_matches(')');
            *ignored.entry(reason.to_owned()).or_default() += 1;
        }
    }
    Some(Scenarios {
        passed: count("passed")?,
        failed: failed.collect(),
        ignored,
        took: Duration::ZERO,
        only: Vec::new(),
    })
}

/// The pairs in Markdown.
pub fn table(pairs: &[VersionPair]) -> String {
    let mut text = String::from(
        "| Kubernetes | containerd | up | claims of `lab check` | scenarios | took |\n|-|-|-|-|-|-|\n",
    );
    for pair in pairs {
        let Scenarios {
            passed,
            failed,
            ignored,
            took,
            only,
        } = &pair.scenarios;
        let mut results = format!(
            "{passed} passed, {} failed, {} ignored",
            failed.len(),
            ignored.values().sum::<usize>()
        );
        let reasons: Vec<String> = ignored
            .iter()
            .filter(|(reason, _)| !reason.is_empty())
            .map(|(reason, ignored)| format!("{ignored}: {}", table_cell(reason)))
            .collect();
        if !reasons.is_empty() {
            let _ = write!(results, " ({})", reasons.join("; "));
        }
        if !failed.is_empty() {
            let _ = write!(results, ": `{}`", failed.join("`, `"));
        }
        if !only.is_empty() {
            let _ = write!(results, " (of `{}` alone)", only.join("`, `"));
        }
        if let Some(failure) = &pair.failure {
            let _ = write!(results, "; **{}**", table_cell(failure));
        }
        let (holding, broken) = &pair.claims;
        let mut claims = format!("{holding} hold");
        if !broken.is_empty() {
            let _ = write!(claims, ", {} do not: {}", broken.len(), broken.join("; "));
        }
        let _ = writeln!(
            text,
            "| {} | {} | {:.1} s | {claims} | {results} | {} s |",
            pair.versions.kubernetes,
            pair.versions.containerd.version(),
            pair.up.as_secs_f64(),
            took.as_secs()
        );
    }
    text
}

/// A column for each pair, a row for each question.
fn rows_table(first: &str, pairs: &[VersionPair], rows: impl Fn(&VersionPair) -> &Rows) -> String {
    let mut text = header(first, pairs);
    let mut questions: Vec<&str> = Vec::new();
    for (question, _) in pairs.iter().flat_map(&rows) {
        if !questions.contains(&question.as_str()) {
            questions.push(question);
        }
    }
    for question in questions {
        let _ = write!(text, "| {question} |");
        for pair in pairs {
            let cell = rows(pair).iter().find(|(asked, _)| asked == question);
            let _ = write!(text, " {} |", cell.map_or("", |(_, cell)| cell));
        }
        text.push('\n');
    }
    text
}

/// Puts this pair in the place of an earlier run of it, whose tables are kept where a failure left none, and writes the page's tables of all pairs that were run. They are
/// kept in a directory beside the page that has its name.
///
/// # Errors
/// A page that cannot be written, or has no place for a table.
pub fn write_pair(page: &Path, mut pair: VersionPair) -> Result<()> {
    let file = page.with_extension("").join("pairs.json");
    let mut pairs: Vec<VersionPair> = match fs::read(&file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read
            .map_err(anyhow::Error::from)
            .and_then(|json| Ok(serde_json::from_slice(&json)?))
            .with_context(|| format!("cannot read {}", file.display()))?,
    };
    let same = pairs.iter().position(|p| p.versions == pair.versions);
    let earlier = same.map(|at| pairs.remove(at));
    if let (Some(earlier), Some(_)) = (earlier, &pair.failure) {
        for (rows, kept) in [
            (&mut pair.upgrades, earlier.upgrades),
            (&mut pair.half_closed, earlier.half_closed),
            (&mut pair.transports, earlier.transports),
        ] {
            if rows.is_empty() {
                *rows = kept;
            }
        }
    }
    pairs.push(pair);
    pairs.sort_by_key(|pair| pair.versions.age());
    write_section(page, "pairs", &table(&pairs))?;
    let waits = "the client has ended its side, and waits for";
    write_section(
        page,
        "half-close",
        &rows_table(waits, &pairs, |p| &p.half_closed),
    )?;
    write_section(
        page,
        "upgrades",
        &rows_table("asked", &pairs, |p| &p.upgrades),
    )?;
    write_section(
        page,
        "transports",
        &rows_table("", &pairs, |p| &p.transports),
    )?;
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    Ok(fs::write(
        &file,
        serde_json::to_string_pretty(&pairs)? + "\n",
    )?)
}

/// Of a table with a column for each pair.
fn header(first: &str, pairs: &[VersionPair]) -> String {
    let mut text = format!("| {first} |");
    for pair in pairs {
        let (kubernetes, containerd) = (&pair.versions.kubernetes, pair.versions.containerd);
        let _ = write!(text, " {kubernetes}, {} |", containerd.version());
    }
    text += &format!("\n|-|{}\n", "-|".repeat(pairs.len()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_of_a_run_is_read() {
        let said = "
running 3 tests
test a::b ... ok
test ws::c::d       ... FAILED
test e (skipped: no IPv6) ... ignored

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
";
        let read = read(said).unwrap();
        assert_eq!(read.passed, 1);
        assert_eq!(read.ignored, BTreeMap::from([("no IPv6".to_owned(), 1)]));
        assert_eq!(read.failed, ["ws::c::d"]);
        assert_eq!(super::read("error: no such test"), None);
    }

    #[test]
    fn a_run_replaces_that_of_its_pair_alone() {
        let dir = tempfile::tempdir().unwrap();
        let page = dir.path().join("page.md");
        let marks = ["pairs", "half-close", "upgrades", "transports"];
        let marks = marks.map(|m| format!("<!-- {m}: begin -->\n<!-- {m}: end -->\n"));
        fs::write(&page, marks.concat()).unwrap();
        let run = |versions: &Versions, cell: &str| VersionPair {
            up: Duration::from_secs(1),
            claims: (17, Vec::new()),
            upgrades: vec![("asked".into(), cell.into())],
            ..VersionPair::new(versions.clone())
        };
        let all = pairs(None, Some(Containerd::Two)).unwrap();
        for (versions, cell) in [(&all[2], "new"), (&all[0], "gone"), (&all[0], "old")] {
            write_pair(&page, run(versions, cell)).unwrap();
        }
        let page = fs::read_to_string(&page).unwrap();
        assert!(
            page.contains("| asked | 1.30.14, 2.4.2 | 1.37.2, 2.4.2 |"),
            "{page}"
        );
        assert!(page.contains("| asked | old | new |"), "{page}");
        assert!(
            page.contains("| 1.30.14 | 2.4.2 | 1.0 s | 17 hold |"),
            "{page}"
        );
    }

    #[test]
    fn a_pair_that_does_not_come_up_has_a_row() {
        let versions = pairs(None, None).unwrap().remove(0);
        let failed = VersionPair {
            failure: Some("etcd ended:\nexit code 1".into()),
            ..VersionPair::new(versions)
        };
        assert!(!failed.holds());
        let table = table(&[failed]);
        assert!(table.contains("**etcd ended: exit code 1**"), "{table}");
    }

    #[test]
    fn pairs_can_be_chosen() {
        assert_eq!(pairs(None, None).unwrap().len(), 6);
        assert_eq!(pairs(Some("1.37.2"), None).unwrap().len(), 2);
        assert!(pairs(Some("1.29.0"), None).is_err());
        let one = pairs(Some("1.37.2"), Some(Containerd::Two)).unwrap();
        assert_eq!(one[0].to_string(), "Kubernetes 1.37.2, containerd 2.4.2");
    }
}
