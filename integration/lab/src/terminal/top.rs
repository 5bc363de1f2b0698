//! `kubevpn top`: each view, another size, a connection that is cut, and the terminal as it was, however it ended.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::ssh::SshServer;
use super::tmux::Tmux;
use super::{curl, download, listening};
use crate::Lab;
use crate::command::{command, output};
use crate::interrupt::undone;

/// The views, and how large a terminal usually is.
const SIZE: (u16, u16) = (80, 24);

/// What was seen of the proxy that this line starts, with a title each.
pub(super) async fn top(
    proxy: &str,
    server: &Tmux,
    person: &Tmux,
    home: &Path,
) -> Result<Vec<(&'static str, String)>> {
    server.line(proxy).await?;
    let (said, _) = server.until_text("Shell: ").await?;
    let proxy = listening(&said)?;
    // It is drawn once other commands can look at the proxy.
    server.until_text("0 connections open").await?;
    person.resize(SIZE).await?;
    let mut screens = Vec::new();

    begin(person).await?;
    let mut held = download(&proxy)?;
    curl(&proxy, "http://reviews/").await?;
    curl(&proxy, "http://productpage:81/").await?;
    let seen = person
        .until("a connection and its rate", |screen| {
            let mut lines = screen.lines();
            let line = lines.find(|line| line.starts_with("productpage:9080 "));
            line.is_some_and(|line| line.matches('M').count() == 2)
        })
        .await?;
    screens.push(("`kubevpn top`: connections", seen.0));
    person.key("Enter").await?;
    let seen = person
        .until("what there is of it", |screen| {
            screen.contains("\nProgram      curl") && screen.contains("\nPod          default/")
        })
        .await?;
    screens.push(("`kubevpn top`: a connection", seen.0));
    person.key("Escape").await?;
    person.key("2").await?;
    let seen = person
        .until("Services", |screen| {
            let has = |name: &str| screen.lines().any(|line| line.starts_with(name));
            has("productpage:9080 ") && has("productpage:81 ") && has("reviews:80 ")
        })
        .await?;
    screens.push(("`kubevpn top`: Services", seen.0));
    person.key("Tab").await?;
    let seen = person
        .until("sessions", |screen| {
            screen.contains("HEALTH") && screen.contains(" well ")
        })
        .await?;
    screens.push(("`kubevpn top`: sessions", seen.0));
    person.text(":ref").await?;
    person.key("Enter").await?;
    let seen = person.until_text("no_such_port").await?;
    screens.push(("`kubevpn top`: refusals", seen.0));
    person.key("?").await?;
    person.until_text("this help").await?;
    person.text("1").await?;
    person.until_text("productpage:9080").await?;

    person.text("/nothing has this").await?;
    person
        .until("no row", |screen| {
            screen.contains("/nothing has this") && !screen.contains("productpage")
        })
        .await?;
    person.key("Escape").await?;
    person
        .until("all rows", |screen| {
            screen.contains("productpage:9080") && !screen.contains("/nothing")
        })
        .await?;

    person.resize((130, 40)).await?;
    person
        .until("a wide table", |screen| {
            let header = screen.lines().nth(2).unwrap_or_default();
            header.chars().count() > 120 && header.trim_end().ends_with("AGE")
        })
        .await?;
    person.resize((40, 10)).await?;
    let seen = person
        .until("a narrow table", |screen| {
            let header = screen.lines().nth(2).unwrap_or_default();
            header.starts_with("TARGET") && !header.contains("POD")
        })
        .await?;
    screens.push(("`kubevpn top` at 40 × 10", seen.0));
    person.resize(SIZE).await?;
    person
        .until("the usual table", |screen| screen.contains(" POD "))
        .await?;

    person.key("x").await?;
    person.until_text("y/n: cut connection").await?;
    person.key("y").await?;
    person.until_text(" was cut").await?;
    let ended = held.wait().await?;
    ensure!(!ended.success(), "the connection was not cut: {ended}");
    person.key("q").await?;
    end(person, home, 0).await?;

    for signal in ["TERM", "HUP"] {
        begin(person).await?;
        let pid = fs::read_to_string(home.join("top.pid"))?;
        output(command("kill")?.args(["-s", signal, pid.trim()])).await?;
        end(person, home, 0).await?;
    }
    begin(person).await?;
    server.key("C-c").await?;
    let screen = end(person, home, 80).await?;
    ensure!(screen.contains(" has ended\n"), "{screen}");
    Ok(screens)
}

/// The same of a background connection: the daemon is asked.
pub(super) async fn of_daemon(
    server: &Tmux,
    person: &Tmux,
    home: &Path,
) -> Result<(&'static str, String)> {
    let seen = async {
        server
            .line("kubevpn connect --socks 127.0.0.1:0 --http 127.0.0.1:0 2>/dev/null | tail -1; clear")
            .await?;
        server
            .until("an empty screen", |screen| screen == "$")
            .await?;
        // The connection is found by the line that every shell is told.
        server
            .line("eval \"$(kubevpn env)\"; curl -s --limit-rate 3M -o /dev/null 'http://productpage:9080/bytes?n=1000000000'")
            .await?;
        person.resize(SIZE).await?;
        glance(person, home, TOP).await
    };
    let quit = async {
        server.key("C-c").await?;
        server
            .until("the prompt", |screen| screen.ends_with('$'))
            .await?;
        server.line("clear; kubevpn quit").await?;
        server.until_text("Exited").await.map(drop)
    };
    let seen = undone(seen, quit).await?;
    Ok(("`kubevpn top` of a background connection", seen))
}

/// The same from another machine, which is this one: over ssh.
pub(super) async fn over_ssh(
    lab: &Lab,
    proxy: &str,
    server: &Tmux,
    person: &Tmux,
    home: &Path,
) -> Result<(&'static str, String)> {
    let ssh = SshServer::start(lab).await?;
    server.line(proxy).await?;
    let (said, _) = server.until_text("Shell: ").await?;
    let proxy = listening(&said)?;
    server.until_text("0 connections open").await?;
    let _held = download(&proxy)?;
    person.resize(SIZE).await?;
    let seen = glance(person, home, &ssh.line("kubevpn top")).await?;
    server.key("C-c").await?;
    Ok(("`kubevpn top` over ssh", seen))
}

/// `top` by these words, until there is a connection with its rate and its program; then it is ended.
async fn glance(person: &Tmux, home: &Path, words: &str) -> Result<String> {
    begin_by(person, words).await?;
    let (screen, _) = person
        .until("a connection and its rate", |screen| {
            let mut lines = screen.lines();
            let line = lines.find(|line| line.starts_with("productpage:9080 "));
            line.is_some_and(|line| line.matches('M').count() == 2 && line.contains(" curl "))
        })
        .await?;
    person.key("q").await?;
    end(person, home, 0).await?;
    Ok(screen)
}

/// How it is begun, so that its process is known.
const TOP: &str = "sh -c 'echo $$ >~/top.pid; exec kubevpn top'";

/// It is on the screen, and in place of what was there.
async fn begin(person: &Tmux) -> Result<()> {
    begin_by(person, TOP).await
}

async fn begin_by(person: &Tmux, words: &str) -> Result<()> {
    person
        .line(&format!(
            "clear; stty -a >~/top.before; {words}; echo ended $?; stty -a >~/top.after"
        ))
        .await?;
    person
        .until("top", |screen| {
            screen.contains("Connections") && !screen.contains("stty")
        })
        .await?;
    Ok(())
}

/// It has ended with this code, and the terminal is as it was: its modes, and what was on it.
async fn end(person: &Tmux, home: &Path, code: u8) -> Result<String> {
    let said = format!("ended {code}\n$");
    let (screen, _) = person
        .until(&said, |screen| {
            screen.ends_with(&said) && !screen.contains("Connections")
        })
        .await?;
    let stty = |name: &str| fs::read_to_string(home.join(name)).context(name.to_owned());
    let (before, after) = (stty("top.before")?, stty("top.after")?);
    ensure!(before == after, "the terminal was {before}\nand is {after}");
    Ok(screen)
}
