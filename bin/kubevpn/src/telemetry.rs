//! Logs, on standard error, so that standard output contains only results; and the steps of a dial for `resolve`, which are
//! the same events.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::{ArgAction, ValueEnum};
use kubevpn_daemon::log::LogLevel;
use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt as log};

use crate::exit::Failure;
use crate::out;
use crate::terminal::Above;

/// Flags of the log, for every command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogArgs {
    /// Increase log verbosity (-v: debug, -vv: also dependencies); RUST_LOG overrides
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print nothing but results and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Format of log lines
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    log_format: LogFormat,
    /// Color log lines; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t)]
    color: Color,
}

impl LogArgs {
    /// Whether output is colored, depending on whether it is a terminal.
    pub(crate) fn is_colored(&self, terminal: bool) -> bool {
        let no_color = std::env::var_os("NO_COLOR");
        self.color.is_wanted(no_color.as_deref(), terminal)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Human-readable lines
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

impl Color {
    /// By no-color.org, any value but the empty one disables color.
    fn is_wanted(self, no_color: Option<&OsStr>, terminal: bool) -> bool {
        match self {
            Self::Auto => terminal && no_color.is_none_or(OsStr::is_empty),
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Log level of a command without `-v`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usual {
    /// Start and end, refusals and access records: for a proxy.
    Info,
    /// For commands that print their steps themselves.
    Warnings,
    /// For commands whose standard error belongs to another program.
    Errors,
}

/// Starts logging. `-v` adds debug events of our crates, `-vv` those of libraries. `RUST_LOG` overrides it.
pub(crate) fn init(args: &LogArgs, usual: Usual, steps: Option<LoggedSteps>) {
    let own = std::env::var_os("RUST_LOG").is_some_and(|own| !own.is_empty());
    let filter = match (args.verbose, usual) {
        _ if own => LogLevel::Info.filter(),
        _ if args.quiet => EnvFilter::new("error"),
        (0, Usual::Warnings) => EnvFilter::new("warn"),
        (0, Usual::Errors) => EnvFilter::new("error"),
        (verbose, _) => LogLevel::of_verbosity(verbose).filter(),
    };
    let terminal = std::io::stderr().is_terminal();
    let log = log::layer()
        .with_writer(Above::new)
        .with_ansi(args.is_colored(terminal));
    let log: Box<dyn Layer<Registry> + Send + Sync> = match args.log_format {
        LogFormat::Text => log.boxed(),
        LogFormat::Json => log.json().boxed(),
    };
    let ours = Targets::new().with_target("kubevpn", tracing::Level::DEBUG);
    tracing_subscriber::registry()
        .with(log.with_filter(filter))
        .with(steps.map(|steps| steps.with_filter(ours)))
        .init();
}

/// Number of steps that are kept.
const STEPS: usize = 1000;

/// The steps of our crates, with the time since the start. Clones share them.
#[derive(Clone)]
pub(crate) struct LoggedSteps {
    noted: Arc<Mutex<Noted>>,
}

struct Noted {
    begun: Instant,
    steps: Vec<LoggedStep>,
    /// Facts of the cluster that were printed, because a second lookup reports them again.
    found: HashSet<String>,
    /// Whether steps are printed as they happen.
    told: bool,
    /// The first error of printing.
    unwritten: Option<Failure>,
}

/// One step.
#[derive(Clone, Debug)]
pub(crate) struct LoggedStep {
    pub(crate) at: Duration,
    /// The part of the program that took the step.
    pub(crate) by: &'static str,
    pub(crate) text: String,
}

impl fmt::Display for LoggedStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.as_secs_f64() * 1000.0;
        write!(f, "{at:>9.1} ms  {:<8} {}", self.by, self.text)
    }
}

impl LoggedSteps {
    pub(crate) fn new() -> Self {
        let noted = Noted {
            begun: Instant::now(),
            steps: Vec::new(),
            found: HashSet::new(),
            told: false,
            unwritten: None,
        };
        Self {
            noted: Arc::new(Mutex::new(noted)),
        }
    }

    /// Drops all steps so far, which did not concern the target.
    pub(crate) fn begin(&self) {
        let mut noted = self.noted();
        noted.begun = Instant::now();
        noted.steps.clear();
        noted.found.clear();
    }

    /// Stops printing steps: the dial has ended.
    pub(crate) fn end(&self) {
        self.noted().told = false;
    }

    /// Prints each step from now on.
    pub(crate) fn tell(&self) {
        self.noted().told = true;
    }

    pub(crate) fn note(&self, by: &'static str, text: String) {
        let mut noted = self.noted();
        let at = noted.begun.elapsed();
        if noted.steps.len() >= STEPS || by == RESOLVE && !noted.found.insert(text.clone()) {
            return;
        }
        let step = LoggedStep { at, by, text };
        if noted.told {
            let said = out::line(out::escaped(&step.to_string()));
            if noted.unwritten.is_none() {
                noted.unwritten = said.err();
            }
        }
        noted.steps.push(step);
    }

    /// The first error of printing, unless the reader has closed the output: the exit code is still reported.
    pub(crate) fn written(&self) -> Result<(), Failure> {
        out::even_unheard(self.noted().unwritten.take().map_or(Ok(()), Err))
    }

    pub(crate) fn all(&self) -> Vec<LoggedStep> {
        self.noted().steps.clone()
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const RESOLVE: &str = "resolve";

impl<S: Subscriber> Layer<S> for LoggedSteps {
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
        let mut said = EventLine::default();
        event.record(&mut said);
        self.note(by, said.message + &said.fields);
    }
}

/// An event as one line.
#[derive(Default)]
struct EventLine {
    message: String,
    fields: String,
}

impl Visit for EventLine {
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

    /// One line per event of our crates, with any fields, and none for other crates.
    #[test]
    fn events_are_steps() {
        let steps = LoggedSteps::new();
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
    fn colors_are_for_terminals() {
        let auto = |no_color: Option<&str>, terminal| {
            Color::Auto.is_wanted(no_color.map(OsStr::new), terminal)
        };
        assert!(auto(None, true) && auto(Some(""), true));
        assert!(!auto(Some("1"), true) && !auto(None, false));
        assert!(Color::Always.is_wanted(Some(OsStr::new("1")), false));
        assert!(!Color::Never.is_wanted(None, true));
    }

    #[test]
    fn steps_are_bounded() {
        let steps = LoggedSteps::new();
        for n in 0..2 * STEPS {
            steps.note("dial", n.to_string());
        }
        assert_eq!(steps.all().len(), STEPS);
    }

    #[test]
    fn a_step_is_a_line() {
        let step = LoggedStep {
            at: Duration::from_micros(12_340),
            by: "dial",
            text: "dialing".into(),
        };
        assert_eq!(step.to_string(), "     12.3 ms  dial     dialing");
    }
}
