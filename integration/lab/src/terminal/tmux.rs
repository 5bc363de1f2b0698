//! A terminal of tmux, with somebody who types and looks.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::Lab;
use crate::command::{command, output, search_path};

/// Nothing that is looked for takes longer to appear.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at the screen.
const LOOK: Duration = Duration::from_millis(4);

/// What the person's shell has in front of a command.
pub(super) const PROMPT: &str = "$ ";

/// One terminal. Its programs end when it is dropped.
pub(super) struct Tmux {
    /// The server's name, which no other has.
    server: String,
}

impl Tmux {
    /// Starts this program, with the `kubevpn` that is tested in front of all others.
    pub(super) async fn start(lab: &Lab, kubevpn: &Path, home: &Path, line: &str) -> Result<Self> {
        let server = format!("kubevpn-{}-{}", std::process::id(), fresh());
        let own = kubevpn.parent().context("a program is in a directory")?;
        let path = format!(
            "{}:{}:{}",
            own.display(),
            lab.settings.path("bin"),
            search_path()
        );
        let this = Self { server };
        let mut tmux = this.tmux(&["-f", "/dev/null", "new-session", "-d"])?;
        tmux.args(["-x", "130", "-y", "40", line])
            // Nothing of the caller's environment.
            .env_clear()
            .env("PATH", path)
            .env("HOME", home)
            .env("SHELL", "/bin/bash")
            .env("TERM", "xterm-256color")
            .env("LANG", "C.UTF-8")
            // However busy this machine is: the time is reported.
            .env("KUBEVPN_COMPLETE_WITHIN", "30s")
            .env("KUBECONFIG", lab.kubeconfig());
        output(&mut tmux).await?;
        Ok(this)
    }

    fn tmux(&self, words: &[&str]) -> Result<Command> {
        let mut tmux = command("tmux")?;
        tmux.args(["-L", &self.server]).args(words);
        Ok(tmux)
    }

    /// Types a text.
    pub(super) async fn text(&self, text: &str) -> Result<()> {
        output(&mut self.tmux(&["send-keys", "-l", "--", text])?).await?;
        Ok(())
    }

    /// Presses a key, by tmux's name of it.
    pub(super) async fn key(&self, key: &str) -> Result<()> {
        output(&mut self.tmux(&["send-keys", key])?).await?;
        Ok(())
    }

    /// Has so many columns and lines from now on.
    pub(super) async fn resize(&self, (columns, lines): (u16, u16)) -> Result<()> {
        let (columns, lines) = (columns.to_string(), lines.to_string());
        let words = ["resize-window", "-x", &columns, "-y", &lines];
        output(&mut self.tmux(&words)?).await?;
        Ok(())
    }

    /// Types a line and ends it.
    pub(super) async fn line(&self, line: &str) -> Result<()> {
        self.text(line).await?;
        self.key("Enter").await
    }

    /// The lines that can be seen, down to the last that is not empty.
    pub(super) async fn screen(&self) -> Result<String> {
        let mut seen = self.tmux(&["capture-pane", "-p"])?;
        seen.stderr(Stdio::piped());
        Ok(output(&mut seen).await?.trim_end().to_owned())
    }

    /// Looks until the screen fits; how long that took.
    pub(super) async fn until(
        &self,
        what: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Result<(String, Duration)> {
        self.until_within(LIMIT, what, fits).await
    }

    /// The same, for what takes its time.
    pub(super) async fn until_within(
        &self,
        limit: Duration,
        what: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Result<(String, Duration)> {
        let begun = Instant::now();
        loop {
            let screen = self.screen().await?;
            let elapsed = begun.elapsed();
            if fits(&screen) {
                return Ok((screen, elapsed));
            }
            if elapsed > limit {
                bail!("{what} is not seen within {limit:?}:\n{screen}");
            }
            sleep(LOOK).await;
        }
    }

    /// The same for a text.
    pub(super) async fn until_text(&self, text: &str) -> Result<(String, Duration)> {
        self.until(text, |screen| screen.contains(text)).await
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        if let Ok(tmux) = self.tmux(&["kill-server"]) {
            // One whose program has ended is gone.
            let _ = tmux.into_std().output();
        }
    }
}

/// A number that this process has not used.
fn fresh() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
