//! Other programs: found or named with the way to get them, run with a limit, quoted when they fail.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

/// Nothing the lab runs to its end takes longer, but for a build on an empty cache.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);
/// Kubernetes from nothing on two slow cores, with modules to fetch.
pub(crate) const BUILD_LIMIT: Duration = Duration::from_secs(45 * 60);

/// Where system programs are; root's PATH does not always say so.
const SYSTEM: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What installs a program that is missing (Debian's names).
const PROGRAMS: [(&str, &str); 11] = [
    (
        "apt-get",
        "this needs Debian: its containerd is what the node runs",
    ),
    ("curl", "apt-get install -y curl"),
    ("dig", "apt-get install -y dnsutils"),
    (
        "dpkg",
        "this needs Debian: its containerd is what the node runs",
    ),
    ("go", "install Go 1.24 or newer, https://go.dev/doc/install"),
    ("ip", "apt-get install -y iproute2"),
    ("mount", "apt-get install -y mount"),
    ("nsenter", "apt-get install -y util-linux"),
    ("setsid", "apt-get install -y util-linux"),
    ("sh", "apt-get install -y dash"),
    ("unshare", "apt-get install -y util-linux"),
];

/// What `up` runs, besides Go where something has to be built.
pub(crate) const FOR_UP: [&str; 6] = ["ip", "mount", "nsenter", "setsid", "sh", "unshare"];
/// What `check` runs.
pub(crate) const FOR_CHECK: [&str; 2] = ["curl", "dig"];

pub(crate) fn search_path() -> String {
    match std::env::var("PATH") {
        Ok(path) if !path.is_empty() => format!("{path}:{SYSTEM}"),
        _ => SYSTEM.to_owned(),
    }
}

fn find(name: &str) -> Option<PathBuf> {
    search_path()
        .split(':')
        .map(|dir| PathBuf::from(dir).join(name))
        .find(|file| file.is_file())
}

/// Says all that is missing at once.
pub(crate) fn require(names: &[&str]) -> Result<()> {
    let missing: Vec<String> = names
        .iter()
        .filter(|name| find(name).is_none())
        .map(
            |name| match PROGRAMS.iter().find(|(program, _)| program == name) {
                Some((_, how)) => format!("{name} ({how})"),
                None => (*name).to_owned(),
            },
        )
        .collect();
    ensure!(
        missing.is_empty(),
        "missing on this machine: {}",
        missing.join(", ")
    );
    Ok(())
}

/// A program of this machine, by name. It ends when its handle is dropped.
pub(crate) fn command(name: &str) -> Result<Command> {
    require(&[name])?;
    let mut command = Command::new(find(name).context("it was there a moment ago")?);
    command.stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

/// Its standard output, if it succeeds within [`LIMIT`].
pub(crate) async fn output(command: &mut Command) -> Result<String> {
    output_within(LIMIT, command).await
}

pub(crate) async fn output_within(limit: Duration, command: &mut Command) -> Result<String> {
    let what = describe(command);
    let done = timeout(limit, command.output())
        .await
        .with_context(|| format!("{what}: still running after {limit:?}"))?
        .with_context(|| format!("cannot run {what}"))?;
    text_of(&what, done)
}

/// The same, with something to read for it.
pub(crate) async fn output_of_input(command: &mut Command, input: &str) -> Result<String> {
    let what = describe(command);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {what}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let run = async {
        // Writing and reading at once, or both sides could wait on full pipes. A program that ends early
        // closes its input; what it said is the better error.
        let write = async {
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
        };
        tokio::join!(write, child.wait_with_output()).1
    };
    let done = timeout(LIMIT, run)
        .await
        .with_context(|| format!("{what}: still running after {LIMIT:?}"))??;
    text_of(&what, done)
}

fn text_of(what: &str, done: Output) -> Result<String> {
    if !done.status.success() {
        let said = String::from_utf8_lossy(if done.stderr.is_empty() {
            &done.stdout
        } else {
            &done.stderr
        })
        .into_owned();
        bail!("{what}: {}: {}", done.status, last_lines(&said, 20));
    }
    String::from_utf8(done.stdout).with_context(|| format!("{what}: not text"))
}

/// The end of a log, which is where the reason stands.
pub(crate) fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}

fn describe(command: &Command) -> String {
    let command = command.as_std();
    let mut text = command.get_program().display().to_string();
    for arg in command.get_args() {
        text.push(' ');
        text.extend(arg.to_string_lossy().chars().take(80));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        require(&["sh"]).unwrap();
        let message = require(&["sh", "no-such-program", "no-such-either"])
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "missing on this machine: no-such-program, no-such-either"
        );
        for name in FOR_UP
            .iter()
            .chain(&FOR_CHECK)
            .chain(&["go", "apt-get", "dpkg"])
        {
            assert!(
                PROGRAMS.iter().any(|(program, _)| program == name),
                "{name}"
            );
        }
    }

    #[tokio::test]
    async fn a_failure_quotes_the_program() {
        let mut failing = command("sh").unwrap();
        let error = output(failing.args(["-c", "echo no such thing >&2; exit 3"]))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("exit status: 3: no such thing"), "{error}");
    }

    #[tokio::test]
    async fn input_larger_than_a_pipe_comes_back() {
        let mut cat = command("sh").unwrap();
        let text = "x".repeat(1 << 20);
        assert_eq!(
            output_of_input(cat.args(["-c", "cat"]), &text)
                .await
                .unwrap(),
            text
        );
    }
}
