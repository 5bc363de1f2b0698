//! `kubevpn tap`: one line for each connection and request of a proxy.

mod har;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use kubevpn_daemon::EventLines;
use kubevpn_proxy::journal::{EndedConnection, JournalEvent, Stamped};
use kubevpn_target::{Origin, Target};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use self::har::Recording;
use super::console::{self, ConsoleArgs};
use super::habits;
use crate::exit::Failure;
use crate::out;

/// Printed at most once, because an `https://` address gives one line however many requests are inside.
const UNSEEN: &str = "not seen: requests inside TLS (https:// through CONNECT) and inside SOCKS: each of these connections is one line";
/// Time limit for printing the summary.
const SUMMARY: Duration = Duration::from_secs(1);

/// Show connections and HTTP requests as they go through a proxy
///
/// Prints one line for each connection, and for each request that the HTTP proxy forwards, when it has ended: time, frontend,
/// outcome, duration, request or target, and the Pod that it went to. Requests inside TLS (https:// through CONNECT) and inside
/// SOCKS are not visible.
///
/// Credentials are replaced by REDACTED in URLs and, in a recording, in header fields. These are the user and password in front
/// of a host, and values whose name suggests a credential (Authorization, Cookie, Set-Cookie, Proxy-Authorization, *token*,
/// *key, *session* and the like). A secret elsewhere, such as in a path, is not recognized.
///
/// A recording is a HAR 1.2 file with the heads of requests and answers, without bodies. The file is complete after each
/// request, has at most 64 MiB, and is readable only by you.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # everything that goes through the only proxy
  kubevpn tap

  # what one Service is asked, and what is refused
  kubevpn tap --target productpage.default
  kubevpn tap --refused

  # HTTP requests, for a browser's developer tools
  kubevpn tap --record requests.har")]
pub(crate) struct Tap {
    #[command(flatten)]
    console: ConsoleArgs,
    /// Show only connections and requests to HOST: web also matches web.shop. pod/NAME selects those that went to Pod NAME
    #[arg(long, value_name = "HOST[:PORT]")]
    target: Option<String>,
    /// Show only connections that failed before they reached a Pod
    #[arg(long)]
    refused: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: TapFormat,
    /// Record HTTP requests to FILE, which must not exist
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Replace FILE if it exists
    #[arg(long, requires = "record")]
    overwrite: bool,
    /// Show and record credentials instead of REDACTED
    #[arg(long)]
    credentials: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum TapFormat {
    /// One line for each connection or request
    #[default]
    Text,
    /// One JSON object per line, as docs/tap.schema.json describes it
    Json,
}

impl Tap {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let (console, seen) = self.console.find().await?;
        let wanted = self.target.as_deref();
        let wanted = wanted.map(|text| TapFilter::parse(text, &seen.about.namespace));
        let wanted = wanted.transpose()?;
        let events = match self.record {
            Some(_) => console.events_with_heads().await?,
            None => console.events(true).await?,
        };
        // A file is replaced only when there is something to record.
        let recording = self.record.as_deref();
        let recording = recording.map(|path| Recording::create(path, self.overwrite));
        let tapped = Arc::new(Mutex::new(Tapped {
            wanted,
            refused: self.refused,
            output: self.output,
            credentials: self.credentials,
            recording: recording.transpose()?,
            dropped: 0,
        }));
        let name = console::name(&seen.about);
        if !out::is_hushed() {
            out::aside(format_args!(
                "Looking at proxy {name}{}; {UNSEEN}",
                out::escaped(&console::place(&seen.about))
            ));
        }
        let ended = out::until_interrupted(follow(tapped.clone(), events, name)).await;
        let summary = {
            let mut tapped = lock(&tapped);
            let summary = tapped.summary();
            // After Ctrl-C there may be events that were not looked at: the file has as many requests as the summary says.
            tapped.recording = None;
            summary
        };
        if !out::is_hushed() {
            let printed = spawn_blocking(|| summary.into_iter().for_each(out::aside));
            // A full pipe does not delay the end for long.
            let _ = timeout(SUMMARY, printed).await;
        }
        ended
    }
}

/// Filter and outputs of one `tap`, with the events dropped so far.
struct Tapped {
    wanted: Option<TapFilter>,
    refused: bool,
    output: TapFormat,
    credentials: bool,
    recording: Option<Recording>,
    dropped: u64,
}

/// A line of output.
#[derive(Debug, PartialEq)]
enum TapLine {
    Shown(String),
    /// Something is missing in the output or the recording. It is printed with `--quiet` too.
    Warning(String),
}

/// Shows events until the proxy ends, which is a failure here as it is in `top`.
async fn follow(
    tapped: Arc<Mutex<Tapped>>,
    mut events: EventLines,
    name: String,
) -> Result<(), Failure> {
    while let Some(event) = events.next().await? {
        // The lock is released before lines are printed, which may block.
        let lines = lock(&tapped).take(event)?;
        for line in lines {
            match line {
                TapLine::Shown(text) => out::line(text)?,
                TapLine::Warning(text) => out::aside(text),
            }
        }
    }
    Err(console::ended(&name).into())
}

fn lock(tapped: &Mutex<Tapped>) -> MutexGuard<'_, Tapped> {
    tapped.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tapped {
    /// The lines to print for an event.
    fn take(&mut self, mut stamped: Stamped) -> Result<Vec<TapLine>, Failure> {
        let mut lines = Vec::new();
        if let JournalEvent::Dropped { events } = stamped.event {
            self.dropped += events;
            lines.push(TapLine::Warning(dropped(events)));
            if self.output == TapFormat::Json {
                lines.push(TapLine::Shown(out::json_text(&stamped, false)?));
            }
            return Ok(lines);
        }
        if let JournalEvent::ConnectionClosed { exchange, .. }
        | JournalEvent::ConnectionRefused { exchange, .. } = &mut stamped.event
            && let Some(exchange) = exchange
        {
            // Heads arrive without `--record` too if another `tap` has asked for them.
            if self.recording.is_none() {
                (exchange.request, exchange.response) = (None, None);
            }
            if !self.credentials {
                exchange.redact();
            }
        }
        let Some(seen) = shown(&stamped) else {
            return Ok(lines);
        };
        let fits = |wanted: &TapFilter| wanted.fits(seen.target, seen.via);
        if self.refused && seen.refusal.is_none() || !self.wanted.as_ref().is_none_or(fits) {
            return Ok(lines);
        }
        if let (Some(recording), Some(exchange)) = (&mut self.recording, seen.exchange)
            && recording.add(&seen, exchange)?
        {
            lines.push(TapLine::Warning(format!(
                "{} is full: no further request is recorded",
                recording.path.display()
            )));
        }
        lines.push(TapLine::Shown(match self.output {
            TapFormat::Text => line(&seen),
            TapFormat::Json => out::json_text(&stamped, false)?,
        }));
        Ok(lines)
    }

    /// Lines to print at the end.
    fn summary(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(recording) = &self.recording {
            let left_out = match recording.left_out {
                0 => String::new(),
                n => format!("; {n} more did not fit"),
            };
            lines.push(format!(
                "Recorded to {}: {} requests{left_out}",
                recording.path.display(),
                recording.entries
            ));
        }
        if self.dropped > 0 {
            lines.push(dropped(self.dropped));
        }
        lines
    }
}

fn dropped(events: u64) -> String {
    format!("{events} events were dropped: they came faster than they were read here")
}

/// The end of a connection or a request, if it is shown: clients that closed without asking for a target are not.
fn shown(stamped: &Stamped) -> Option<EndedConnection<'_>> {
    EndedConnection::of(stamped).filter(|seen| seen.target.is_some() || seen.end == "rejected")
}

fn line(seen: &EndedConnection<'_>) -> String {
    let what: Cow<'_, str> = match (seen.exchange, seen.target) {
        (Some(exchange), _) => format!("{} {}", exchange.method, exchange.url).into(),
        (None, target) => target.unwrap_or("-").into(),
    };
    let status = seen.exchange.and_then(|exchange| exchange.status);
    let outcome = match (status, seen.refusal.unwrap_or(seen.end)) {
        (Some(status), "eof") => status.to_string(),
        (Some(status), other) => format!("{status} {other}"),
        (None, other) => other.to_owned(),
    };
    let mut line = format!(
        "{}  {:<11}  {outcome:<18}  {:>8}  {what}",
        time_of_day(seen.at),
        seen.frontend,
        duration(seen.seconds),
    );
    if !seen.via.is_empty() {
        line += &format!(" -> {}", seen.via);
    }
    if let Some(error) = seen.error {
        line += &format!(": {error}");
    }
    out::escaped(&line).into_owned()
}

/// Time of day of an RFC 3339 timestamp: `21:05:03Z`.
fn time_of_day(at: &str) -> String {
    let time = at.get(11..19).unwrap_or(at);
    format!("{time}Z")
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.1} ms", s * 1e3),
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s => format!("{s:.1} s"),
    }
}

/// Targets that are shown.
#[derive(Debug)]
enum TapFilter {
    /// The port, if one was named, and the namespace for names without one.
    Host {
        host: String,
        port: Option<u16>,
        namespace: String,
    },
    /// `namespace/pod`
    Pod(String),
}

impl TapFilter {
    fn parse(text: &str, namespace: &str) -> Result<Self, Failure> {
        if let Some((_, pod)) = text
            .split_once('/')
            .filter(|(kind, _)| matches!(*kind, "pod" | "pods" | "po"))
        {
            return match pod {
                "" => Err(Failure::value("--target: a Pod is named as pod/NAME")),
                pod => Ok(Self::Pod(format!("{namespace}/{pod}"))),
            };
        }
        let (host, port) = habits::target(text, namespace)?;
        Ok(Self::Host {
            host: host.to_string(),
            port: port.map(Into::into),
            namespace: namespace.to_owned(),
        })
    }

    fn fits(&self, target: Option<&str>, via: &str) -> bool {
        match self {
            Self::Pod(pod) => {
                let port = via.strip_prefix(pod.as_str());
                port.is_some_and(|port| port.is_empty() || port.starts_with(':'))
            }
            Self::Host {
                host: wanted,
                port,
                namespace,
            } => {
                let target = target.and_then(|text| Target::parse(text, Origin::default()).ok());
                target.is_some_and(|target| {
                    let host = target.host.to_string();
                    let begins = |host: &str| {
                        let longer = host.strip_prefix(wanted.as_str());
                        longer.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                    };
                    let is_short = !host.contains(['.', ':']);
                    (begins(&host) || is_short && begins(&format!("{host}.{namespace}")))
                        && port.is_none_or(|port| port == target.port.get())
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kubevpn_proxy::journal::{ExchangeEvent, MessageHead};
    use kubevpn_target::Refusal;
    use serde_json::Value;

    use super::*;

    pub(super) fn request() -> Stamped {
        Stamped {
            at: "2026-11-30T21:05:03.123Z".into(),
            event: JournalEvent::ConnectionClosed {
                id: 7,
                frontend: "http".into(),
                client: Some("127.0.0.1:4711".into()),
                target: Some("web.shop:80".into()),
                via: "shop/web-0:8080".into(),
                transport: "spdy".into(),
                up: 3,
                down: 5,
                seconds: 0.0123,
                end: "eof".into(),
                error: None,
                exchange: Some(ExchangeEvent {
                    method: "GET".into(),
                    url: "http://web.shop/?page=1".into(),
                    status: Some(200),
                    began: "2026-11-30T21:05:03.1107Z".into(),
                    dialled: Some(0.004),
                    waited: Some(0.01),
                    ..ExchangeEvent::default()
                }),
                trace: None,
            },
        }
    }

    pub(super) fn refused() -> Stamped {
        Stamped {
            at: "2026-11-30T21:05:03Z".into(),
            event: JournalEvent::ConnectionRefused {
                id: 8,
                frontend: "socks5".into(),
                client: None,
                target: Some("web:81".into()),
                refusal: "no_such_port".into(),
                sentence: "service shop/web has no TCP port 81\u{1b}[2J".into(),
                seconds: 1.26,
                exchange: None,
                trace: None,
            },
        }
    }

    #[test]
    fn lines() {
        let line = |stamped: &Stamped| line(&shown(stamped).unwrap());
        assert_eq!(
            line(&request()),
            "21:05:03Z  http         200                    12 ms  GET http://web.shop/?page=1 -> shop/web-0:8080"
        );
        // Control characters from a target or an error are escaped, so that they cannot drive the terminal.
        assert_eq!(
            line(&refused()),
            "21:05:03Z  socks5       no_such_port           1.3 s  web:81: service shop/web has no TCP port 81\\u{1b}[2J"
        );
    }

    #[test]
    fn json_is_as_the_schema_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tap.schema.json");
        let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let words = |name: &str| -> Vec<String> {
            serde_json::from_value(schema["$defs"][name]["enum"].clone()).unwrap()
        };
        assert_eq!(words("end"), kubevpn_conn::ENDS);
        assert_eq!(
            words("refusal"),
            Refusal::ALL.map(|refusal| refusal.as_str())
        );
        let schema = jsonschema::validator_for(&schema).unwrap();
        let mut with_heads = request();
        if let JournalEvent::ConnectionClosed {
            exchange: Some(exchange),
            ..
        } = &mut with_heads.event
        {
            let head = MessageHead {
                version: "HTTP/1.1".into(),
                fields: vec![("host".into(), "web.shop".into())],
                is_whole: true,
            };
            (exchange.request, exchange.response) = (Some(head.clone()), Some(head));
        }
        let dropped = Stamped {
            at: "2026-11-30T21:05:03Z".into(),
            event: JournalEvent::Dropped { events: 3 },
        };
        for stamped in [request(), with_heads, refused(), dropped] {
            let event = serde_json::to_value(&stamped).unwrap();
            let errors = schema.iter_errors(&event).map(|error| error.to_string());
            assert_eq!(errors.collect::<Vec<_>>(), Vec::<String>::new(), "{event}");
            // No key may be missing, and there are no others.
            for key in event.as_object().unwrap().keys() {
                let mut other = event.clone();
                let value = other.as_object_mut().unwrap().remove(key).unwrap();
                assert!(!schema.is_valid(&other), "without {key}: {event}");
                other[format!("{key}s")] = value;
                assert!(!schema.is_valid(&other), "{key}s: {event}");
            }
        }
    }

    #[test]
    fn clients_that_asked_for_nothing_have_no_line() {
        let closed = |end: &str| {
            let mut stamped = request();
            let JournalEvent::ConnectionClosed {
                target,
                end: ended,
                exchange,
                ..
            } = &mut stamped.event
            else {
                unreachable!()
            };
            (*target, *exchange, *ended) = (None, None, end.to_owned());
            shown(&stamped).is_some()
        };
        assert!(!closed("unused"));
        assert!(!closed("gone"));
        assert!(closed("rejected"));
        let other = Stamped {
            at: String::new(),
            event: JournalEvent::CredentialsRefused,
        };
        assert!(shown(&other).is_none());
    }

    #[test]
    fn which_targets_are_shown() {
        for (wanted, target, via, fits) in [
            ("web", "web:80", "", true),
            ("web", "web.shop:80", "", true),
            ("web", "webs:80", "", false),
            ("web", "api.web:80", "", false),
            ("web.shop:80", "web.shop:80", "", true),
            ("web.shop:80", "web.shop.svc:80", "", true),
            ("web.shop:80", "web.shop:81", "", false),
            ("svc/web", "web.shop:80", "", true),
            ("web.shop", "web:80", "", true),
            ("web.shop.svc", "web:80", "", false),
            ("web.team", "web:80", "", false),
            ("10.0.0.1", "10.0.0.1:80", "", true),
            ("10.0.0.1", "10.0.0.10:80", "", false),
            ("fd00::1", "[fd00::1]:80", "", true),
            ("pod/web-0", "web:80", "shop/web-0:8080", true),
            ("pod/web-0:8080", "web:80", "shop/web-0:8080", true),
            ("pod/web-0:80", "web:80", "shop/web-0:8080", false),
            ("pod/web-0", "web:80", "shop/web-00:8080", false),
            ("pod/web-0", "web:80", "team/web-0:8080", false),
        ] {
            let shown = TapFilter::parse(wanted, "shop").unwrap();
            assert_eq!(shown.fits(Some(target), via), fits, "{wanted} {target}");
        }
        assert!(TapFilter::parse("a b", "shop").is_err());
        assert!(TapFilter::parse("pod/", "shop").is_err());
        assert!(!TapFilter::parse("web", "shop").unwrap().fits(None, ""));
    }

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0.0002, "0.2 ms"),
            (0.0123, "12 ms"),
            (0.9996, "1.0 s"),
            (83.24, "83.2 s"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn dropped_events_are_counted() {
        let mut tapped = Tapped {
            wanted: None,
            refused: false,
            output: TapFormat::Text,
            credentials: false,
            recording: None,
            dropped: 0,
        };
        assert_eq!(tapped.summary(), Vec::<String>::new());
        for events in [3, 4] {
            let event = JournalEvent::Dropped { events };
            let at = String::new();
            let lines = tapped.take(Stamped { at, event }).unwrap();
            assert_eq!(lines, [TapLine::Warning(dropped(events))]);
        }
        let said = "7 events were dropped: they came faster than they were read here";
        assert_eq!(tapped.summary(), [said]);
    }
}
