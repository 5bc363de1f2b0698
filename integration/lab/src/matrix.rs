//! Every Kubernetes on every containerd: does it come up, does it do what the lab claims of it, do the scenarios pass,
//! and what does it answer to upgrades?

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::process::Command;
use tokio::time::{Instant, timeout};
use tracing::info;

use crate::cluster::{Extent, Lab};
use crate::half_close::HalfClosed;
use crate::upgrades::Answer;
use crate::versions::{Containerd, Versions};

/// All scenarios of one pair, on two slow cores.
const SCENARIOS: Duration = Duration::from_secs(45 * 60);

/// One pair of versions, and what was run on it.
#[derive(Debug)]
pub struct Pair {
    /// Which.
    pub versions: Versions,
    /// Until every Pod was ready.
    pub up: Duration,
    /// Claims of the lab that hold, and sentences about those that do not.
    pub claims: (usize, Vec<String>),
    /// What the scenarios came to.
    pub scenarios: Scenarios,
    /// What it answers to upgrades.
    pub upgrades: Vec<Answer>,
    /// What becomes of answers to a client that has ended its side.
    pub half_closed: Vec<HalfClosed>,
}

/// A run of the scenarios.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scenarios {
    /// Passed.
    pub passed: usize,
    /// Their names.
    pub failed: Vec<String>,
    /// Not run, each for a reason that its name tells.
    pub ignored: usize,
    /// All of them together.
    pub took: Duration,
    /// The filters, if not all were run.
    pub only: Vec<String>,
}

/// All pairs, or those of one Kubernetes or one containerd.
///
/// # Errors
/// Sources of the lab that cannot be read.
pub fn pairs(kubernetes: Option<&str>, containerd: Option<Containerd>) -> Result<Vec<Versions>> {
    let all = Lab::from_env()?.kubernetes_versions()?;
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

impl Pair {
    /// Takes down what is up, and brings up and tries this pair; it is left up.
    ///
    /// # Errors
    /// A cluster that does not come up; scenarios that cannot be built.
    pub async fn run(versions: &Versions, root: &Path, filters: &[String]) -> Result<Self> {
        Lab::from_env()?.down().await?;
        let lab = Lab::from_env()?
            .with_versions(Some(versions.kubernetes.clone()), Some(versions.containerd))?;
        lab.build().await?;
        let begun = Instant::now();
        lab.up(Extent::Full).await?;
        let up = begun.elapsed();
        info!("{versions} is up");
        let claims = lab.check(|_| {}).await?;
        let broken = claims.iter().filter_map(|claim| {
            let contradiction = claim.contradiction.as_ref()?;
            Some(format!("{}: {contradiction}", claim.what))
        });
        let broken: Vec<String> = broken.collect();
        let holding = claims.len() - broken.len();
        let upgrades = lab.upgrades(None).await?;
        let half_closed = lab.half_close().await?;
        info!("{holding} claims hold, {} do not", broken.len());
        Ok(Self {
            versions: versions.clone(),
            up,
            claims: (holding, broken),
            scenarios: scenarios(root, filters).await?,
            upgrades,
            half_closed,
        })
    }

    /// Whether all that was run passed.
    pub fn holds(&self) -> bool {
        self.claims.1.is_empty() && self.scenarios.failed.is_empty() && self.scenarios.passed > 0
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
        all.ignored += run.ignored;
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
    Some(Scenarios {
        passed: count("passed")?,
        failed: failed.collect(),
        ignored: count("ignored")?,
        took: Duration::ZERO,
        only: Vec::new(),
    })
}

/// The pairs in Markdown.
pub fn table(pairs: &[Pair]) -> String {
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
            "{passed} passed, {} failed, {ignored} ignored",
            failed.len()
        );
        if !failed.is_empty() {
            let _ = write!(results, ": `{}`", failed.join("`, `"));
        }
        if !only.is_empty() {
            let _ = write!(results, " (of `{}` alone)", only.join("`, `"));
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

/// Answers to upgrades in Markdown: a column for each pair, a row for each question.
pub fn upgrades_table(pairs: &[Pair]) -> String {
    let mut text = header("asked", pairs);
    for (n, asked) in pairs
        .first()
        .iter()
        .flat_map(|p| p.upgrades.iter().enumerate())
    {
        let _ = write!(text, "| {} |", asked.question);
        for pair in pairs {
            let answer = pair.upgrades.get(n).map(short).unwrap_or_default();
            let _ = write!(text, " {answer} |");
        }
        text.push('\n');
    }
    text
}

/// Answers to clients that have ended their side, in Markdown.
pub fn half_close_table(pairs: &[Pair]) -> String {
    let mut text = header("the client has ended its side, and waits for", pairs);
    for (n, asked) in pairs
        .first()
        .iter()
        .flat_map(|p| p.half_closed.iter().enumerate())
    {
        let _ = write!(text, "| {} |", asked.what);
        for pair in pairs {
            let cell = pair.half_closed.get(n).map(HalfClosed::short);
            let _ = write!(text, " {} |", cell.unwrap_or_default());
        }
        text.push('\n');
    }
    text
}

/// Of a table with a column for each pair.
fn header(first: &str, pairs: &[Pair]) -> String {
    let mut text = format!("| {first} |");
    for pair in pairs {
        let (kubernetes, containerd) = (&pair.versions.kubernetes, pair.versions.containerd);
        let _ = write!(text, " {kubernetes}, {} |", containerd.version());
    }
    text += &format!("\n|-|{}\n", "-|".repeat(pairs.len()));
    text
}

/// Status, and the words of an error or the first bytes of a session.
fn short(answer: &Answer) -> String {
    let status = answer.status.split(' ').nth(1).unwrap_or("none").to_owned();
    if answer.rest.is_empty() {
        return status;
    }
    // A Pod's name and uid differ each time.
    let rest: String = answer.rest.escape_ascii().to_string();
    let rest: String = rest.chars().take(120).collect();
    format!("{status} `{}`", rest.replace('|', "\\|").replace('`', "'"))
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
        assert_eq!((read.passed, read.ignored), (1, 1));
        assert_eq!(read.failed, ["ws::c::d"]);
        assert_eq!(super::read("error: no such test"), None);
    }

    #[test]
    fn pairs_can_be_chosen() {
        assert_eq!(pairs(None, None).unwrap().len(), 6);
        assert_eq!(pairs(Some("1.37.2"), None).unwrap().len(), 2);
        let one = pairs(Some("1.37.2"), Some(Containerd::Two)).unwrap();
        assert_eq!(one[0].to_string(), "Kubernetes 1.37.2, containerd 2.4.2");
    }
}
