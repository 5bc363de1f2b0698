//! `kubevpn top`: the status page in a terminal.
//!
//! ```text
//!   keys (a thread) ─┐
//!   snapshots ───────┼─▶ Input ─▶ TopState (top/state.rs) ─▶ draw (top/view.rs)
//!   events ──────────┘
//! ```

mod state;
#[cfg(test)]
mod tests;
mod view;

use std::io::IsTerminal as _;
use std::mem::ManuallyDrop;
use std::time::Duration;

use anyhow::Context as _;
use kubevpn_daemon::{Console, EventLines};
use kubevpn_proxy::journal::{JournalSnapshot, Stamped};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use self::state::{KeyAction, TopState};
use self::view::{Theme, draw};
use super::console::{self, ConsoleArgs};
use super::serve::{result, termination};
use crate::exit::Failure;

/// How often it is looked, as the status page does.
const TICK: Duration = Duration::from_secs(1);
/// What waits to be taken in; events above that wait in the proxy, which drops what is too much.
const WAITING: usize = 64;

/// Watch the connections through a proxy in this terminal
///
/// Shows connections, Services, port-forward sessions and refusals of a background connection, or of a proxy that runs in
/// another terminal, and lets you cut connections. Press `?` for the list of keys, and `q` to quit.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # the proxy that runs
  kubevpn top

  # one of several: a background connection by the beginning of its ID, or a proxy by its process
  kubevpn top 03d
  kubevpn top 4711")]
pub(crate) struct Top {
    #[command(flatten)]
    proxy: ConsoleArgs,
}

/// What happens.
enum Input {
    Terminal(Event),
    Seen(Box<JournalSnapshot>),
    Told(Box<Stamped>),
    /// Why there is no snapshot.
    Silent(String),
    /// What has become of something that was asked for.
    Said(String),
    /// There is nothing to look at any more, or to look with.
    Over(Failure),
}

impl Top {
    pub(crate) async fn run(self, colored: bool) -> Result<(), Failure> {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() || is_dumb {
            return Err(Failure::value(
                "top needs a terminal: kubevpn status and the status page (--admin) tell the same elsewhere",
            ));
        }
        let mut ending = termination()?;
        let looking = async {
            let (proxy, _) = self.proxy.find().await?;
            // Before the snapshot: what ends in between is told.
            let events = proxy.events(false).await?;
            let seen = proxy.snapshot().await?;
            Ok::<_, Failure>((proxy, events, seen))
        };
        let (proxy, events, seen) = tokio::select! {
            looking = looking => looking?,
            ended = ending.next() => return result(ended),
        };
        let mut screen = Screen::new()?;
        tokio::select! {
            over = watch(&mut screen.terminal, proxy, events, seen, Theme { colored }) => over,
            ended = ending.next() => result(ended),
        }
    }
}

/// The terminal, which is as it was when this is dropped, and after a panic.
struct Screen {
    /// Not dropped: it would panic where the terminal was closed, since it says so on standard error.
    terminal: ManuallyDrop<DefaultTerminal>,
}

impl Screen {
    fn new() -> Result<Self, Failure> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self {
                terminal: ManuallyDrop::new(terminal),
            }),
            Err(error) => {
                let _ = ratatui::try_restore();
                Err(anyhow::Error::new(error)
                    .context("cannot set up the terminal")
                    .into())
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that was closed cannot be restored.
        let _ = self.terminal.show_cursor();
        // The hook of a panic has done it, and what it has said since shall stay.
        if !std::thread::panicking() {
            let _ = ratatui::try_restore();
        }
    }
}

async fn watch(
    terminal: &mut DefaultTerminal,
    proxy: Console,
    events: EventLines,
    seen: JournalSnapshot,
    theme: Theme,
) -> Result<(), Failure> {
    let name = console::name(&seen.about);
    let mut state = TopState::new(seen);
    let (sender, mut inputs) = mpsc::channel(WAITING);
    read_keys(sender.clone());
    tokio::spawn(look(proxy.clone(), sender.clone()));
    tokio::spawn(listen(events, name, sender.clone()));
    loop {
        let drawn = terminal.draw(|frame| draw(frame, &mut state, theme));
        drawn.context("cannot write to the terminal")?;
        fail_for_tests();
        // Events are not drawn one by one: the next snapshot is soon.
        loop {
            match inputs.recv().await {
                Some(Input::Told(event)) => {
                    state.tell(*event);
                    continue;
                }
                Some(Input::Terminal(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    match state.key(key) {
                        None => {}
                        Some(KeyAction::Quit) => return Ok(()),
                        Some(KeyAction::Redraw) => {
                            terminal.clear().context("cannot write to the terminal")?;
                        }
                        Some(KeyAction::Cut(id)) => {
                            tokio::spawn(cut(proxy.clone(), id, sender.clone()));
                        }
                    }
                }
                // Of a new size, for which drawing asks itself.
                Some(Input::Terminal(_)) => {}
                Some(Input::Seen(seen)) => state.see(*seen),
                Some(Input::Silent(why)) => state.miss(&why),
                Some(Input::Said(text)) => state.say(&text),
                Some(Input::Over(failure)) => return Err(failure),
                None => return Ok(()),
            }
            break;
        }
    }
}

/// Keys, from a thread of their own: reading them cannot be cancelled, and ends with the process.
fn read_keys(sender: mpsc::Sender<Input>) {
    std::thread::spawn(move || {
        loop {
            let input = match event::read() {
                Ok(event) => Input::Terminal(event),
                Err(error) => {
                    let error = anyhow::Error::new(error).context("cannot read from the terminal");
                    Input::Over(error.into())
                }
            };
            let is_over = matches!(input, Input::Over(_));
            if sender.blocking_send(input).is_err() || is_over {
                return;
            }
        }
    });
}

/// Snapshots, until nobody takes them.
async fn look(proxy: Console, sender: mpsc::Sender<Input>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let input = match proxy.snapshot().await {
            Ok(seen) => Input::Seen(Box::new(seen)),
            // The end of the events says whether it is over.
            Err(error) => Input::Silent(error.message),
        };
        if sender.send(input).await.is_err() {
            return;
        }
    }
}

/// Events, until there are none any more.
async fn listen(mut events: EventLines, name: String, sender: mpsc::Sender<Input>) {
    let over = loop {
        match events.next().await {
            Ok(Some(event)) => {
                if sender.send(Input::Told(Box::new(event))).await.is_err() {
                    return;
                }
            }
            Ok(None) => break console::ended(&name),
            Err(error) => break error,
        }
    };
    let _ = sender.send(Input::Over(over.into())).await;
}

async fn cut(proxy: Console, id: u64, sender: mpsc::Sender<Input>) {
    let said = match proxy.cut(id).await {
        Ok(true) => format!("connection {id} was cut"),
        Ok(false) => format!("connection {id} has ended already"),
        Err(error) => format!("connection {id} was not cut: {}", error.message),
    };
    let _ = sender.send(Input::Said(said)).await;
}

/// A panic where a test asks for one: nothing in a release build.
fn fail_for_tests() {
    if cfg!(debug_assertions)
        && std::env::var_os("KUBEVPN_TEST_PANIC_AT").is_some_and(|at| at == "top")
    {
        panic!("a test asked for it");
    }
}
