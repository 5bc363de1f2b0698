//! Completion in real shells, against the real cluster and against none.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::tmux::Tmux;
use crate::Lab;

/// One word that was completed.
#[derive(Debug)]
pub struct Completed {
    /// The shell.
    pub shell: &'static str,
    /// What was completed.
    pub what: &'static str,
    /// The line before the key.
    pub typed: String,
    /// The line behind it.
    pub completed: String,
    /// From the key to what is on the screen.
    pub took: Duration,
}

/// Name, command without anybody's settings, and what it is told at the start.
const SHELLS: [(&str, &str, &str); 3] = [
    (
        "bash",
        "bash --norc --noprofile -i",
        "PS1='$ '; source <(kubevpn completion bash)",
    ),
    (
        "zsh",
        "zsh -f -i",
        "PS1='$ '; autoload -Uz compinit; compinit -D; source <(kubevpn completion zsh)",
    ),
    (
        "fish",
        "fish --no-config -i",
        // What it suggests by itself is on the screen before a key is pressed.
        "set -g fish_autosuggestion_enabled 0; function fish_prompt; echo -n '$ '; end; kubevpn completion fish | source",
    ),
];

impl Lab {
    /// Presses Tab in every shell, once for each kind of name.
    pub(super) async fn completions(&self, kubevpn: &Path, home: &Path) -> Result<Vec<Completed>> {
        let context = self.kubectl(&["config", "current-context"]).await?;
        let context = context.trim();
        let (most, _) = context.split_at(context.len() - 1);
        let daemon = Tmux::start(self, kubevpn, home, "bash --norc --noprofile -i").await?;
        daemon
            .line("kubevpn connect --socks 127.0.0.1:0 2>/dev/null")
            .await?;
        let (said, _) = daemon.until_text("Connection ID: ").await?;
        let id = said
            .lines()
            .find_map(|line| line.strip_prefix("Connection ID: "))
            .context("it has an ID")?;
        // Takes connections and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0")?;
        let nobody = home.join("nobody");
        let server = format!("https://{}", silent.local_addr()?);
        fs::write(
            &nobody,
            format!(
                "{{current-context: a, contexts: [{{name: a, context: {{cluster: a}}}}], clusters: [{{name: a, cluster: {{server: '{server}'}}}}]}}"
            ),
        )?;
        let nobody = nobody.display();
        let rows = [
            ("command", "kubevpn port-f".to_owned(), "orward"),
            (
                "context",
                format!("kubevpn services --context {most}"),
                &context[most.len()..],
            ),
            ("namespace", "kubevpn services -n team".to_owned(), "-a"),
            ("Service", "kubevpn nc product".to_owned(), "page"),
            (
                "Service of another namespace",
                "kubevpn nc api.t".to_owned(),
                "eam-a",
            ),
            ("port", "kubevpn resolve productpage:".to_owned(), "9080"),
            ("port", "kubevpn nc productpage ".to_owned(), "9080"),
            ("connection", "kubevpn disconnect ".to_owned(), id),
            (
                "Service, as for kubectl",
                "kubevpn port-forward svc/product".to_owned(),
                "page",
            ),
        ];
        let mut completed = Vec::new();
        for (shell, line, setting) in SHELLS {
            let terminal = Tmux::start(self, kubevpn, home, line).await?;
            terminal.line(setting).await?;
            terminal.line("echo rea''dy").await?;
            terminal
                .until("the shell", |screen| {
                    screen.lines().any(|line| line == "ready")
                })
                .await?;
            for (what, typed, rest) in &rows {
                let wanted = format!("{typed}{rest}");
                let took = press(&terminal, typed, "", &wanted).await?;
                completed.push(Completed {
                    shell,
                    what,
                    typed: typed.clone(),
                    completed: wanted,
                    took,
                });
            }
            // The usual time limit; every one of these shells knows the word.
            terminal.key("C-u").await?;
            terminal.line("export KUBEVPN_COMPLETE_WITHIN=").await?;
            // The letter that is typed next comes when the completion has ended.
            let typed = format!("kubevpn nc --kubeconfig {nobody} product");
            let wanted = format!("{typed}@");
            let took = press(&terminal, &typed, "@", &wanted).await?;
            completed.push(Completed {
                shell,
                what: "no answer",
                typed,
                completed: String::new(),
                took,
            });
        }
        daemon.line("kubevpn quit").await?;
        daemon.until_text("Exited").await?;
        Ok(completed)
    }
}

/// Types, presses Tab and what else, and looks for the line; how long that took from Tab on.
async fn press(terminal: &Tmux, typed: &str, more: &str, wanted: &str) -> Result<Duration> {
    terminal.key("C-u").await?;
    terminal.key("C-l").await?;
    terminal
        .until("an empty line", |screen| screen == "$")
        .await?;
    terminal.text(typed).await?;
    let on_screen = |screen: &str, text: &str| {
        // Shells put spaces behind a word, and lists of candidates below.
        let line = screen.lines().next().unwrap_or_default();
        line.trim_end() == format!("$ {}", text.trim_end())
    };
    terminal
        .until(typed, |screen| on_screen(screen, typed))
        .await?;
    let begun = tokio::time::Instant::now();
    terminal.key("Tab").await?;
    if !more.is_empty() {
        terminal.text(more).await?;
    }
    let (screen, _) = terminal
        .until(wanted, |screen| on_screen(screen, wanted))
        .await?;
    let took = begun.elapsed();
    ensure!(
        more.is_empty() || screen.lines().count() == 1,
        "a completion without an answer is not silent:\n{screen}"
    );
    Ok(took)
}
