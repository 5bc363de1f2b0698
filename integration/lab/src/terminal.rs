//! A person at a terminal: completion in real shells, the first minute, and what the live line, `status`, `check` and `top`
//! look like. docs/terminal.md is the page of a run.

mod completion;
mod ssh;
mod tmux;
mod top;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use self::tmux::{PROMPT, Tmux};
use crate::Lab;
use crate::command::{BUILD_LIMIT, command, output, require};

pub use self::completion::Completed;

const BEGIN: &str = "<!-- terminal: begin -->\n";
const END: &str = "<!-- terminal: end -->";
/// The repository's.
const README: &str = include_str!("../../../README.md");
/// Programs of it, with Debian's names.
const PROGRAMS: [&str; 4] = ["tmux", "zsh", "fish", "curl"];

/// What was seen.
#[derive(Debug)]
pub struct TerminalView {
    /// A row for each word that was completed.
    pub completed: Vec<Completed>,
    /// Title and screen.
    pub screens: Vec<(&'static str, String)>,
}

impl Lab {
    /// Sits down at a terminal with this `kubevpn`, or with what a fresh clone installs, and the cluster that is up.
    ///
    /// # Errors
    /// Something that should be on the screen is not.
    pub async fn terminal(&self, kubevpn: Option<&Path>) -> Result<TerminalView> {
        let home = &self.seat().await?;
        let mut screens = Vec::new();
        let kubevpn = &match kubevpn {
            Some(kubevpn) => kubevpn.canonicalize()?,
            None => {
                let (kubevpn, screen) = self.install(home).await?;
                screens.push(("From a fresh clone", screen));
                kubevpn
            }
        };
        let completed = self.completions(kubevpn, home).await?;
        let shell = async || self.shell(kubevpn, home).await;
        let (server, client) = (shell().await?, shell().await?);
        let (demo, seconds) = demo(&server, &client).await?;
        screens.push((DEMO, timed(demo, seconds)));
        let (server, client) = (shell().await?, shell().await?);
        let (first, seconds) = first_minute(&server, &client).await?;
        screens.push((CLUSTER, timed(first, seconds)));
        screens.push(("The live line", live_line(&shell().await?).await?));
        screens.push(("`kubevpn status`", status(&shell().await?).await?));
        screens.push(("`kubevpn check`", check(&shell().await?).await?));
        let proxy = "kubevpn proxy-out --listen 127.0.0.1:0";
        let (server, client) = (shell().await?, shell().await?);
        screens.extend(top::top(proxy, &server, &client, home).await?);
        let (server, client) = (shell().await?, shell().await?);
        screens.push(top::of_daemon(&server, &client, home).await?);
        let (server, client) = (shell().await?, shell().await?);
        screens.push(top::over_ssh(self, proxy, &server, &client, home).await?);
        Ok(TerminalView { completed, screens })
    }

    /// Installs the program as the README says, from a clone of the last commit; where it is, and the screen.
    async fn install(&self, home: &Path) -> Result<(PathBuf, String)> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let clone = home.join("kubevpn");
        let installed = home.join("installed");
        for old in [&clone, &installed] {
            if old.exists() {
                fs::remove_dir_all(old)?;
            }
        }
        let program = installed.join("bin/kubevpn");
        let terminal = self.shell(&program, home).await?;
        let of_caller = |name: &str, folder: &str| {
            let home = std::env::var_os("HOME").unwrap_or_default();
            std::env::var_os(name).map_or_else(|| Path::new(&home).join(folder), PathBuf::from)
        };
        let cargo = of_caller("CARGO_HOME", ".cargo");
        for (name, value) in [
            ("REPOSITORY", &repository),
            ("CARGO_HOME", &cargo),
            ("RUSTUP_HOME", &of_caller("RUSTUP_HOME", ".rustup")),
            ("CARGO_INSTALL_ROOT", &installed),
        ] {
            terminal
                .line(&format!("export {name}='{}'", value.display()))
                .await?;
        }
        let path = format!(
            "export PATH=\"$PATH:{}\"; cd; clear",
            cargo.join("bin").display()
        );
        terminal.line(&path).await?;
        terminal
            .until("an empty screen", |screen| screen == "$")
            .await?;
        let begun = Instant::now();
        terminal
            .line("git clone --quiet \"$REPOSITORY\" kubevpn && cd kubevpn")
            .await?;
        let install = of_readme("cargo install --locked --path bin/kubevpn")?;
        terminal
            .line(&format!("{install}; echo \"exit code $?\""))
            .await?;
        let ended = |screen: &str| {
            let last = screen.lines().rev().nth(1).unwrap_or_default();
            last.starts_with("exit code ") && screen.ends_with("\n$")
        };
        let (screen, _) = terminal
            .until_within(BUILD_LIMIT, "the end of the build", ended)
            .await?;
        let took = begun.elapsed();
        ensure!(program.is_file(), "nothing was installed:\n{screen}");
        let said = format!(
            "$ git clone --quiet \"$REPOSITORY\" kubevpn && cd kubevpn\n$ {install}\n\n# {} s until it was installed",
            took.as_secs()
        );
        Ok((program, said))
    }

    /// Looks at `top` alone, of `kubevpn demo`: no cluster has to be up.
    ///
    /// # Errors
    /// Something that should be on the screen is not.
    pub async fn top_of_demo(&self, kubevpn: &Path) -> Result<TerminalView> {
        let home = &self.seat().await?;
        let kubevpn = &kubevpn.canonicalize()?;
        let shell = async || self.shell(kubevpn, home).await;
        let (server, client) = (shell().await?, shell().await?);
        let demo = "kubevpn demo --listen 127.0.0.1:0";
        let mut screens = top::top(demo, &server, &client, home).await?;
        let (server, client) = (shell().await?, shell().await?);
        screens.push(top::over_ssh(self, demo, &server, &client, home).await?);
        Ok(TerminalView {
            completed: Vec::new(),
            screens,
        })
    }

    /// A home for the person at the terminal; installs the programs that are missing.
    async fn seat(&self) -> Result<PathBuf> {
        let missing: Vec<_> = PROGRAMS
            .into_iter()
            .filter(|program| require(&[program]).is_err())
            .collect();
        if !missing.is_empty() {
            self.install_packages(&missing).await?;
        }
        let home = self.settings.state().join("terminal");
        fs::create_dir_all(&home)?;
        Ok(home)
    }

    async fn shell(&self, kubevpn: &Path, home: &Path) -> Result<Tmux> {
        // A shell that runs a command, as tmux has it run this one, passes no prompt on.
        let bash = format!("env 'PS1={PROMPT}' bash --norc --noprofile -i");
        let terminal = Tmux::start(self, kubevpn, home, &bash).await?;
        terminal.until("a shell", |screen| screen == "$").await?;
        Ok(terminal)
    }
}

const DEMO: &str = "The first answer, without a cluster";
const CLUSTER: &str = "The first answer, from the real cluster";

fn timed(text: String, seconds: Duration) -> String {
    format!(
        "{text}\n\n# {:.1} s from the first key to the answer",
        seconds.as_secs_f64()
    )
}

/// A line of the README, which is all that a new user knows.
fn of_readme(line: &str) -> Result<&str> {
    let is_there = README.lines().any(|it| it.trim() == line);
    ensure!(is_there, "the README does not say {line:?}");
    Ok(line)
}

/// The program's own words are pasted into another terminal.
async fn demo(server: &Tmux, client: &Tmux) -> Result<(String, Duration)> {
    let begun = Instant::now();
    server.line(of_readme("kubevpn demo")?).await?;
    let (said, _) = server.until_text("Shell: ").await?;
    let curl = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("Try: "))
        .context("there is nothing to try")?;
    client.line(curl).await?;
    let (answer, _) = client.until_text("\"service\":\"productpage\"").await?;
    let seconds = begun.elapsed();
    server.key("C-c").await?;
    server
        .until("the prompt", |screen| screen.ends_with("\n$"))
        .await?;
    Ok((both(&said, &answer), seconds))
}

/// The lines of the README, one after the other.
async fn first_minute(server: &Tmux, client: &Tmux) -> Result<(String, Duration)> {
    let begun = Instant::now();
    server.line(of_readme("kubevpn proxy-out")?).await?;
    let (said, _) = server.until_text("Shell: ").await?;
    client.line(of_readme("kubevpn services")?).await?;
    client
        .until_text("http://productpage.default:9080/")
        .await?;
    client
        .line(of_readme(
            "curl --proxy socks5h://127.0.0.1:1080 http://productpage.default:9080",
        )?)
        .await?;
    let (answer, _) = client.until_text("\"service\":\"productpage\"").await?;
    let seconds = begun.elapsed();
    server.key("C-c").await?;
    server
        .until("the prompt", |screen| screen.ends_with("\n$"))
        .await?;
    Ok((both(&said, &answer), seconds))
}

fn both(server: &str, client: &str) -> String {
    // The last prompt waits for what comes next.
    let client = client.trim_end().trim_end_matches(PROMPT.trim_end());
    format!("{server}\n\n# in another terminal\n{}", client.trim_end())
}

/// A download goes on, and something was refused.
async fn live_line(terminal: &Tmux) -> Result<String> {
    terminal
        .line("kubevpn proxy-out --listen 127.0.0.1:0")
        .await?;
    let (said, _) = terminal.until_text("Shell: ").await?;
    let proxy = listening(&said)?;
    curl(&proxy, "http://productpage:81/").await?;
    let mut download = download(&proxy)?;
    let (screen, _) = terminal
        .until("the live line", |screen| {
            let last = screen.lines().last().unwrap_or_default();
            last.starts_with("1 connection open, ") && last.contains("MB/s; last refusal: ")
        })
        .await?;
    download.kill().await?;
    terminal.key("C-c").await?;
    terminal
        .until("the prompt, and no live line", |screen| {
            screen.ends_with("\n$") && !screen.contains("connection open")
        })
        .await?;
    Ok(screen)
}

/// Where a proxy says that it listens, as a URL.
fn listening(said: &str) -> Result<String> {
    let mut lines = said.lines();
    let address = lines.find_map(|line| line.strip_prefix("SOCKS5 and HTTP proxy listening on "));
    let address = address.context("it does not say where it listens")?;
    Ok(format!("http://{address}"))
}

/// One request, whatever its answer.
async fn curl(proxy: &str, url: &str) -> Result<()> {
    output(command("curl")?.args(["-sS", "--proxy", proxy, url])).await?;
    Ok(())
}

fn download(proxy: &str) -> Result<Child> {
    let mut curl: Command = command("curl")?;
    let url = "http://productpage:9080/bytes?n=1000000000";
    curl.args(["-s", "--limit-rate", "3M", "-o", "/dev/null", "--proxy"])
        .args([proxy, url])
        .stdout(Stdio::null());
    Ok(curl.spawn()?)
}

async fn status(terminal: &Tmux) -> Result<String> {
    terminal
        .line("kubevpn connect --socks 127.0.0.1:0 --http 127.0.0.1:0 2>/dev/null | tail -1; clear")
        .await?;
    terminal
        .until("an empty screen", |screen| screen == "$")
        .await?;
    terminal.line("kubevpn status").await?;
    let seen = terminal
        .until("a connection", |screen| {
            screen.contains(" connected ") && screen.ends_with("\n$")
        })
        .await;
    terminal.line("clear; kubevpn quit").await?;
    terminal.until_text("Exited").await?;
    let (screen, _) = seen?;
    Ok(screen.trim_end_matches("\n$").to_owned())
}

async fn check(terminal: &Tmux) -> Result<String> {
    terminal
        .line("kubevpn check --listen-socks 127.0.0.1:0")
        .await?;
    let (screen, _) = terminal
        .until("the end of the check", |screen| {
            screen.contains("access") && screen.ends_with("\n$")
        })
        .await?;
    Ok(screen.trim_end_matches("\n$").to_owned())
}

/// Puts what was seen between the two marks of the page.
///
/// # Errors
/// The page cannot be read or written, or has no marks.
pub fn write_terminal_page(page: &Path, seen: &TerminalView) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let (before, rest) = text.split_once(BEGIN).context("the page has no mark")?;
    let (_, after) = rest.split_once(END).context("the page has no end mark")?;
    fs::write(
        page,
        format!("{before}{BEGIN}{}{END}{after}", sections(seen)),
    )?;
    Ok(())
}

fn sections(seen: &TerminalView) -> String {
    let mut text = String::new();
    for (title, screen) in &seen.screens {
        let _: std::fmt::Result = writeln!(text, "## {title}\n\n```text\n{screen}\n```\n");
    }
    text.push_str("## Completion\n\n| shell | completed | typed | then | from the key to the screen |\n|---|---|---|---|---|\n");
    for row in &seen.completed {
        // A path of this machine says nothing to others.
        let typed = match row.completed.is_empty() {
            true => "`kubevpn nc product`, and an API server that does not answer".to_owned(),
            false => format!("`{}`", row.typed),
        };
        let completed = match row.completed.as_str() {
            "" => "nothing".to_owned(),
            completed => format!("`{completed}`"),
        };
        let _: std::fmt::Result = writeln!(
            text,
            "| {} | {} | {typed} | {completed} | {} ms |",
            row.shell,
            row.what,
            row.took.as_millis()
        );
    }
    text
}
