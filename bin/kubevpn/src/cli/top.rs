//! `kubevpn top`: the status page in a terminal.
//!
//! ```text
//!   keys (a thread) ─┐
//!   snapshots ───────┼─▶ Input ─▶ TopState (top/state.rs) ─▶ draw (top/view.rs)
//!   events ──────────┘
//! ```

mod columns;
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

/// Time between two snapshots; the status page has the same.
const TICK: Duration = Duration::from_secs(1);
/// Capacity of the input queue. Further events wait in the proxy, which drops those that exceed its own limit.
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

/// Input of `top`.
enum Input {
    Terminal(Event),
    Seen(Box<JournalSnapshot>),
    Told(Box<Stamped>),
    /// Reason why there is no snapshot.
    Silent(String),
    /// Result of an action.
    Said(String),
    /// The proxy has ended, or the terminal cannot be read.
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
            // Events are subscribed to before the snapshot is taken, so that a connection that ends in between is not missed.
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

/// The terminal, restored when this is dropped and after a panic.
struct Screen {
    /// Never dropped: its `Drop` prints to standard error, which panics if the terminal was closed.
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
        // A closed terminal cannot be restored, and that is no failure.
        let _ = self.terminal.show_cursor();
        // After a panic, its hook has restored the terminal; restoring again would erase the panic's message.
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
        // Events do not cause a redraw of their own: the next snapshot follows soon.
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
                // A resize needs no state: ratatui asks for the size when it draws.
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

/// Reads keys in a thread of its own: the read cannot be cancelled, and ends with the process.
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

/// Sends snapshots until the receiver is dropped.
async fn look(proxy: Console, sender: mpsc::Sender<Input>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let input = match proxy.snapshot().await {
            Ok(seen) => Input::Seen(Box::new(seen)),
            // A failed snapshot does not end `top`: only the end of the events shows that the proxy has ended.
            Err(error) => Input::Silent(error.message),
        };
        if sender.send(input).await.is_err() {
            return;
        }
    }
}

/// Sends events until the proxy ends.
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

/// Panics if a test asks for it; does nothing in a release build.
fn fail_for_tests() {
    if cfg!(debug_assertions)
        && std::env::var_os("KUBEVPN_TEST_PANIC_AT").is_some_and(|at| at == "top")
    {
        panic!("a test asked for it");
    }
}
