//! `kubevpn status`.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::ValueEnum;
use kubevpn_daemon::api::{Connection, State, Status as Document};
use kubevpn_daemon::{Client, Code, StateDir};
use tokio::time::{Instant, sleep};

use super::login;
use crate::exit::Failure;
use crate::out;

/// How long a daemon that ends and starts again and again is asked.
const RESTARTS: Duration = Duration::from_secs(10);
/// Between two tries of that.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a watched status is looked at.
const WATCH: Duration = Duration::from_secs(1);

/// Show the connections there are, and how they are
///
/// Ends with 40 when the API server of a connection cannot be reached, 32 when one does not take the credentials, 1 when a
/// connection is degraded or could not be brought back, and 0 when all is well or there is none.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Format,
    /// Show it again whenever it has changed
    #[arg(short, long)]
    watch: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A line for each connection
    #[default]
    Table,
    /// The same with listeners and counts
    Wide,
    /// Everything, as docs/status.schema.json describes it
    Json,
    /// The same as YAML
    Yaml,
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
        loop {
            let status = ask(&daemon).await?;
            let now = render(&status, self.output)?;
            if now != shown {
                show(&now, self.watch && !shown.is_empty())?;
                shown = now;
            }
            if !self.watch {
                let is_empty = status.list.is_empty() && status.problems.is_empty();
                if is_empty && matches!(self.output, Format::Table | Format::Wide) {
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

pub(crate) fn render(status: &Document, format: Format) -> Result<String, Failure> {
    Ok(match format {
        Format::Table | Format::Wide => {
            let home = std::env::var("HOME").unwrap_or_default();
            table(status, format == Format::Wide, &home)
        }
        Format::Json => serde_json::to_string_pretty(status).map_err(anyhow::Error::from)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(status).map_err(anyhow::Error::from)?,
    })
}

fn table(status: &Document, wide: bool, home: &str) -> String {
    let mut head = vec![
        "CURRENT",
        "CONNECTION ID",
        "CLUSTER",
        "KUBECONFIG",
        "NAMESPACE",
        "STATUS",
    ];
    if wide {
        head.extend([
            "SOCKS",
            "LISTENERS",
            "OPEN",
            "TOTAL",
            "REFUSED",
            "SINCE",
            "REASON",
        ]);
    }
    let mut rows = vec![head.into_iter().map(str::to_owned).collect()];
    for connection in &status.list {
        let mut row = row(connection, &status.current, home);
        if wide {
            row.extend(more(connection));
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

fn row(connection: &Connection, current: &str, home: &str) -> Vec<String> {
    let kubeconfig = match connection.kubeconfig.strip_prefix(home) {
        Some(rest) if !home.is_empty() && rest.starts_with('/') => format!("~{rest}"),
        _ => connection.kubeconfig.clone(),
    };
    let state = match connection.login.is_empty() {
        true => connection.state.as_str(),
        false => "login needed",
    };
    let mark = if connection.id == current { "*" } else { "" };
    vec![
        mark.to_owned(),
        connection.id.clone(),
        connection.cluster.clone(),
        kubeconfig,
        connection.namespace.clone(),
        state.to_owned(),
    ]
}

fn more(connection: &Connection) -> Vec<String> {
    let socks = match (
        connection.socks_listen_addr.as_str(),
        connection.socks_egress,
    ) {
        ("", _) => String::new(),
        (addr, true) => format!("{addr} (egress)"),
        (addr, false) => format!("{addr} (cluster)"),
    };
    let listeners = connection.listeners.iter().map(|l| {
        let not = if l.listening { "" } else { " (not listening)" };
        format!("{}={}{not}", l.protocol, l.address)
    });
    let traffic = &connection.traffic;
    vec![
        socks,
        listeners.collect::<Vec<_>>().join(","),
        traffic.open_connections.to_string(),
        traffic.total_connections.to_string(),
        traffic.refused_connections.to_string(),
        connection.since.clone(),
        connection.reason.clone(),
    ]
}

/// Columns three spaces apart, as kubectl has them; an empty cell is `-`, but for the first column's.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let cell = |row: &Vec<String>, column: usize| match row.get(column).map(String::as_str) {
        Some("") | None if column > 0 => "-".to_owned(),
        text => out::escaped(text.unwrap_or_default()).into_owned(),
    };
    let width = |column| {
        let cells = rows.iter().map(|row| cell(row, column).chars().count());
        cells.max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = widths.iter().enumerate();
        let cells = cells.map(|(column, width)| format!("{:width$}", cell(row, column)));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
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

    #[test]
    fn a_table() {
        let text = table(&sample(), false, "/home/jane");
        assert_eq!(
            text,
            "CURRENT   CONNECTION ID   CLUSTER   KUBECONFIG       NAMESPACE   STATUS\n\
             *         03dc50feb8c3    lab       ~/.kube/config   shop        degraded\n\
             03dc50feb8c3: a listener is not bound\n\
             0123456789ab: not brought back: its state file is broken\n"
        );
        let wide = table(&sample(), true, "/home/jane");
        assert!(wide.contains("127.0.0.1:1080 (cluster)"), "{wide}");
        assert!(
            wide.contains("http=127.0.0.1:3128 (not listening)"),
            "{wide}"
        );
    }

    #[test]
    fn text_of_the_api_server_cannot_drive_the_terminal() {
        let mut status = sample();
        status.list[0].reason = "one\n\u{1b}[2Jtwo".into();
        status.list[0].cluster = "a\u{9b}b".into();
        for wide in [false, true] {
            let text = table(&status, wide, "/home/jane");
            assert!(text.contains(r"one\n\u{1b}[2Jtwo"), "{text}");
            assert!(text.contains(r"a\u{9b}b"), "{text}");
        }
    }

    #[test]
    fn nothing_is_a_document_too() {
        let json = render(&Document::default(), Format::Json).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"List": [], "CurrentConnectionID": "", "Problems": []})
        );
        let yaml = render(&sample(), Format::Yaml).unwrap();
        let back: Document = serde_yaml_ng::from_str(&yaml).unwrap();
        assert_eq!(
            serde_json::to_value(back).unwrap(),
            serde_json::to_value(sample()).unwrap()
        );
    }
}
