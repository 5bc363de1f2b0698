//! `kubevpn status`.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use kubevpn_daemon::api::{Connection, State, Status as Document};
use kubevpn_daemon::{Client, Code, StateDir};
use tokio::time::{Instant, sleep};

use super::login;
use crate::age::age;
use crate::exit::Failure;
use crate::out;
use crate::table::align;

/// How long a daemon that ends and starts again and again is asked.
const RESTARTS: Duration = Duration::from_secs(10);
/// Between two tries of that.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a watched status is looked at.
const WATCH: Duration = Duration::from_secs(1);

/// Show the background connections and their state
///
/// Exits with 40 when the API server of a connection cannot be reached, 32 when it does not accept the credentials, 1 when a
/// connection is degraded or could not be restored, and 0 when every connection is well or there is none.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # what is open, and where it listens
  kubevpn status

  # until Ctrl-C, whenever something has changed
  kubevpn status --watch

  # for a program: docs/status.schema.json has the fields
  kubevpn status -o json | jq -r '.List[].SocksListenAddr'")]
pub(crate) struct Status {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Format,
    /// Keep watching: show it again whenever it has changed
    #[arg(short, long)]
    watch: bool,
    /// Print no line of column names
    #[arg(long)]
    no_headers: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A line for each connection
    #[default]
    Table,
    /// The same with cluster, kubeconfig, counts and reason
    Wide,
    /// Everything, as docs/status.schema.json describes it
    Json,
    /// The same as YAML
    Yaml,
    /// The IDs alone
    Name,
}

impl Format {
    /// Whether it is for people.
    fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// Form of the output.
pub(crate) struct Shown {
    format: Format,
    no_headers: bool,
    now: Timestamp,
    home: String,
}

impl Shown {
    pub(crate) fn now(format: Format, no_headers: bool) -> Self {
        Self {
            format,
            no_headers,
            now: Timestamp::now(),
            home: std::env::var("HOME").unwrap_or_default(),
        }
    }
}

impl Status {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            shown = self.show() => shown,
            _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
        }
    }

    async fn show(self) -> Result<(), Failure> {
        let daemon = Client::new(StateDir::locate()?);
        let mut shown = String::new();
        let begun = Shown::now(self.output, self.no_headers);
        loop {
            let status = ask(&daemon).await?;
            // Nothing has changed where only ages have.
            let content = render(&status, &begun)?;
            if content != shown {
                let now = render(&status, &Shown::now(self.output, self.no_headers))?;
                let again = !shown.is_empty() && self.output.is_table();
                show(&now, again)?;
                shown = content;
            }
            if !self.watch {
                let is_empty = status.list.is_empty() && status.problems.is_empty();
                if is_empty && self.output.is_table() {
                    out::aside("no connection is open: kubevpn connect opens one");
                }
                return match code(&status) {
                    0 => Ok(()),
                    code => Err(Failure::Ended(code)),
                };
            }
            sleep(WATCH).await;
        }
    }
}

/// What there is; brings back what is to be brought back.
pub(crate) async fn ask(daemon: &Client) -> Result<Document, Failure> {
    let until = Instant::now() + RESTARTS;
    loop {
        if !daemon.ensure_if_needed().await? {
            return Ok(Document::default());
        }
        match daemon.status().await {
            // It has ended since: the next one is asked.
            Err(error)
                if matches!(error.code, Code::NotRunning | Code::Ending)
                    && Instant::now() < until =>
            {
                sleep(PAUSE).await;
            }
            other => {
                let mut status = other?;
                for connection in &mut status.list {
                    if let Some(selection) = connection.selection.take() {
                        connection.login = login::command(&selection, &connection.namespace);
                    }
                }
                return Ok(status);
            }
        }
    }
}

/// The exit code that says how the worst connection is.
fn code(status: &Document) -> u8 {
    let has = |state| {
        status
            .list
            .iter()
            .any(|connection| connection.state == state)
    };
    match () {
        () if has(State::Unreachable) => 40,
        () if has(State::Unauthenticated) => 32,
        () if has(State::Degraded) || !status.problems.is_empty() => 1,
        () => 0,
    }
}

fn show(text: &str, again: bool) -> Result<(), Failure> {
    if again && std::io::stdout().is_terminal() {
        // Up to the left, and everything below away (ECMA-48).
        out::print(format_args!("\x1b[H\x1b[J"))?;
    }
    out::print(text)
}

pub(crate) fn render(status: &Document, shown: &Shown) -> Result<String, Failure> {
    Ok(match shown.format {
        Format::Table | Format::Wide => table(status, shown),
        Format::Json => serde_json::to_string_pretty(status).map_err(anyhow::Error::from)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(status).map_err(anyhow::Error::from)?,
        Format::Name => {
            let ids = status
                .list
                .iter()
                .map(|connection| connection.id.clone() + "\n");
            ids.collect()
        }
    })
}

fn table(status: &Document, shown: &Shown) -> String {
    let wide = shown.format == Format::Wide;
    let mut head = vec![
        "CURRENT",
        "ID",
        "CONTEXT",
        "NAMESPACE",
        "STATUS",
        "LISTENERS",
        "OPEN",
        "AGE",
    ];
    if wide {
        head.extend([
            "CLUSTER",
            "KUBECONFIG",
            "TOTAL",
            "REFUSED",
            "SINCE",
            "REASON",
        ]);
    }
    let head: Vec<_> = head.into_iter().map(str::to_owned).collect();
    let mut rows = if shown.no_headers {
        Vec::new()
    } else {
        vec![head]
    };
    for connection in &status.list {
        let mut row = row(connection, &status.current, shown.now);
        if wide {
            row.extend(more(connection, &shown.home));
        }
        rows.push(row);
    }
    let mut text = align(&rows);
    for connection in &status.list {
        if !connection.reason.is_empty() && !wide {
            let reason = out::escaped(&connection.reason);
            text.push_str(&format!("{}: {reason}\n", connection.id));
        }
        if !connection.login.is_empty() {
            let login = out::escaped(&connection.login);
            text.push_str(&format!("{}: log in with: {login}\n", connection.id));
        }
    }
    for problem in &status.problems {
        text.push_str(&format!(
            "{}: not brought back: {}\n",
            problem.id,
            out::escaped(&problem.reason)
        ));
    }
    text
}

fn row(connection: &Connection, current: &str, now: Timestamp) -> Vec<String> {
    let state = match connection.login.is_empty() {
        true => connection.state.as_str(),
        false => "login needed",
    };
    let mark = if connection.id == current { "*" } else { "" };
    let listeners = connection.listeners.iter().map(|l| {
        let egress = if l.egress { " (egress)" } else { "" };
        let not = if l.listening { "" } else { " (not listening)" };
        format!("{}={}{egress}{not}", l.protocol, l.address)
    });
    let started: Option<Timestamp> = connection.started_at.parse().ok();
    let age = started.map(|started| {
        let seconds = now.as_second().saturating_sub(started.as_second());
        age(u64::try_from(seconds).unwrap_or_default())
    });
    vec![
        mark.to_owned(),
        connection.id.clone(),
        connection.context.clone(),
        connection.namespace.clone(),
        state.to_owned(),
        listeners.collect::<Vec<_>>().join(","),
        connection.traffic.open_connections.to_string(),
        age.unwrap_or_default(),
    ]
}

fn more(connection: &Connection, home: &str) -> Vec<String> {
    let kubeconfig = match connection.kubeconfig.strip_prefix(home) {
        Some(rest) if !home.is_empty() && rest.starts_with('/') => format!("~{rest}"),
        _ => connection.kubeconfig.clone(),
    };
    let traffic = &connection.traffic;
    vec![
        connection.cluster.clone(),
        kubeconfig,
        traffic.total_connections.to_string(),
        traffic.refused_connections.to_string(),
        connection.since.clone(),
        connection.reason.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use kubevpn_daemon::api::{Problem, Traffic};

    use super::*;
    use crate::cli::sample::{connection, listener};

    fn sample() -> Document {
        Document {
            list: vec![Connection {
                socks_listen_addr: "127.0.0.1:1080".into(),
                state: State::Degraded,
                reason: "a listener is not bound".into(),
                listeners: vec![
                    listener("socks", "127.0.0.1:1080", true),
                    listener("http", "127.0.0.1:3128", false),
                ],
                traffic: Traffic {
                    total_connections: 7,
                    ..Traffic::default()
                },
                sessions: 1,
                ..connection("03dc50feb8c3")
            }],
            current: "03dc50feb8c3".into(),
            problems: vec![Problem {
                id: "0123456789ab".into(),
                reason: "its state file is broken".into(),
            }],
            daemon: None,
        }
    }

    #[test]
    fn exit_code_is_that_of_the_worst_connection() {
        let mut status = sample();
        assert_eq!(code(&status), 1);
        status.list[0].state = State::Connected;
        assert_eq!(code(&status), 1, "one was not brought back");
        status.problems.clear();
        assert_eq!(code(&status), 0);
        status.list.push(status.list[0].clone());
        for (state, wanted) in [
            (State::Degraded, 1),
            (State::Unauthenticated, 32),
            (State::Unreachable, 40),
        ] {
            status.list[0].state = state;
            assert_eq!(code(&status), wanted);
        }
    }

    fn shown(format: Format) -> Shown {
        Shown {
            format,
            no_headers: false,
            now: "2026-01-02T05:04:05Z".parse().unwrap(),
            home: "/home/jane".into(),
        }
    }

    #[test]
    fn a_table() {
        let text = table(&sample(), &shown(Format::Table));
        assert_eq!(
            text,
            "CURRENT   ID             CONTEXT   NAMESPACE   STATUS     LISTENERS                                                  OPEN   AGE\n\
             *         03dc50feb8c3   lab       shop        degraded   socks=127.0.0.1:1080,http=127.0.0.1:3128 (not listening)   0      120m\n\
             03dc50feb8c3: a listener is not bound\n\
             0123456789ab: not brought back: its state file is broken\n"
        );
        let wide = table(&sample(), &shown(Format::Wide));
        assert!(wide.contains("~/.kube/config"), "{wide}");
        let bare = Shown {
            no_headers: true,
            ..shown(Format::Table)
        };
        assert!(table(&sample(), &bare).starts_with('*'));
        assert_eq!(
            render(&sample(), &shown(Format::Name)).unwrap(),
            "03dc50feb8c3\n"
        );
    }

    #[test]
    fn text_of_the_api_server_cannot_drive_the_terminal() {
        let mut status = sample();
        status.list[0].reason = "one\n\u{1b}[2Jtwo".into();
        status.list[0].context = "a\u{9b}b".into();
        for format in [Format::Table, Format::Wide] {
            let text = table(&status, &shown(format));
            assert!(text.contains(r"one\n\u{1b}[2Jtwo"), "{text}");
            assert!(text.contains(r"a\u{9b}b"), "{text}");
        }
    }

    #[test]
    fn nothing_is_a_document_too() {
        let json = render(&Document::default(), &shown(Format::Json)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"List": [], "CurrentConnectionID": "", "Problems": []})
        );
        let yaml = render(&sample(), &shown(Format::Yaml)).unwrap();
        let back: Document = serde_yaml_ng::from_str(&yaml).unwrap();
        assert_eq!(
            serde_json::to_value(back).unwrap(),
            serde_json::to_value(sample()).unwrap()
        );
    }
}
