//! Logs: on stderr, so that stdout holds nothing but what a command was asked for. And the steps of one dial, for
//! the command that explains it: they are the same events.

use std::collections::HashSet;
use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kubevpn_daemon::log::Level;
use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt as log};

use crate::exit::Failure;
use crate::out;

/// `-v` says more about us, `-vv` about the libraries too. `RUST_LOG`, where set, has the last word. A command that
/// tells the steps itself logs warnings alone, unless told to say more.
pub(crate) fn init(verbose: u8, steps: Option<Steps>) {
    let filter = match (verbose, steps.is_some(), std::env::var_os("RUST_LOG")) {
        (0, true, None) => EnvFilter::new("warn"),
        _ => Level::of_verbosity(verbose).filter(),
    };
    let log = log::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter(filter);
    let ours = Targets::new().with_target("kubevpn", tracing::Level::DEBUG);
    tracing_subscriber::registry()
        .with(log)
        .with(steps.map(|steps| steps.with_filter(ours)))
        .init();
}

/// How many steps are kept.
const STEPS: usize = 1000;

/// What our own crates say they do, with the time since the first look at it. Clones are the same.
#[derive(Clone)]
pub(crate) struct Steps {
    begun: Instant,
    noted: Arc<Mutex<Noted>>,
}

#[derive(Default)]
struct Noted {
    steps: Vec<Step>,
    /// What the cluster was found to be: a second lookup of the same says it all again.
    found: HashSet<String>,
    /// Said on stdout as they come.
    told: bool,
    /// The first failure of that.
    unwritten: Option<Failure>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) at: Duration,
    /// Which part of the program took it.
    pub(crate) by: &'static str,
    pub(crate) text: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.as_secs_f64() * 1000.0;
        write!(f, "{at:>9.1} ms  {:<8} {}", self.by, self.text)
    }
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            noted: Arc::default(),
        }
    }

    /// From now on each step is a line on stdout, too.
    pub(crate) fn tell(&self) {
        self.noted().told = true;
    }

    pub(crate) fn note(&self, by: &'static str, text: String) {
        let at = self.begun.elapsed();
        let mut noted = self.noted();
        if noted.steps.len() >= STEPS || by == RESOLVE && !noted.found.insert(text.clone()) {
            return;
        }
        let step = Step { at, by, text };
        if noted.told {
            let said = out::line(out::escaped(&step.to_string()));
            if noted.unwritten.is_none() {
                noted.unwritten = said.err();
            }
        }
        noted.steps.push(step);
    }

    /// The first step that could not be written, unless nobody reads any more: the end may be heard yet.
    pub(crate) fn written(&self) -> Result<(), Failure> {
        out::even_unheard(self.noted().unwritten.take().map_or(Ok(()), Err))
    }

    pub(crate) fn all(&self) -> Vec<Step> {
        self.noted().steps.clone()
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const RESOLVE: &str = "resolve";

impl<S: Subscriber> Layer<S> for Steps {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut crates = event.metadata().target().split("::");
        let by = match (crates.next().unwrap_or_default(), crates.next()) {
            ("kubevpn_cluster", _) => RESOLVE,
            ("kubevpn_client", _) => "api",
            ("kubevpn_portforward", _) => "session",
            ("kubevpn_stack", Some("dns")) => "dns",
            ("kubevpn_stack", _) => "dial",
            _ => return,
        };
        let mut said = Said::default();
        event.record(&mut said);
        self.note(by, said.message + &said.fields);
    }
}

/// An event as one line.
#[derive(Default)]
struct Said {
    message: String,
    fields: String,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line per event of ours, whatever its fields; nobody else's.
    #[test]
    fn events_are_steps() {
        let steps = Steps::new();
        let ours = Targets::new().with_target("kubevpn", tracing::Level::DEBUG);
        let subscriber = tracing_subscriber::registry().with(steps.clone().with_filter(ours));
        tracing::subscriber::with_default(subscriber, || {
            let path = "/version";
            tracing::debug!(target: "kubevpn_client::transport", path, status = 200, "answered");
            for _ in 0..2 {
                tracing::debug!(target: "kubevpn_cluster::cluster", "there is a {}", "namespace");
                tracing::debug!(target: "kubevpn_stack::dns", to = %"a", "asking");
            }
            tracing::info!(target: "kubevpn_portforward::pool", "session begins");
            tracing::trace!(target: "kubevpn_portforward::pool", "too small");
            tracing::warn!(target: "hyper_util", "not ours");
        });
        let said: Vec<_> = steps.all().into_iter().map(|s| (s.by, s.text)).collect();
        let wanted = [
            ("api", "answered path=/version status=200"),
            ("resolve", "there is a namespace"),
            ("dns", "asking to=a"),
            ("dns", "asking to=a"),
            ("session", "session begins"),
        ];
        assert_eq!(said, wanted.map(|(by, text)| (by, text.to_owned())));
    }

    #[test]
    fn steps_are_bounded() {
        let steps = Steps::new();
        for n in 0..2 * STEPS {
            steps.note("dial", n.to_string());
        }
        assert_eq!(steps.all().len(), STEPS);
    }

    #[test]
    fn a_step_is_a_line() {
        let step = Step {
            at: Duration::from_micros(12_340),
            by: "dial",
            text: "dialing".into(),
        };
        assert_eq!(step.to_string(), "     12.3 ms  dial     dialing");
    }
}
