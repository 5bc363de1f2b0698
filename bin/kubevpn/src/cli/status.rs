//! `kubevpn status`.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use kubevpn_daemon::api::{ConnectionInfo, ConnectionState, StatusReport as Document};
use kubevpn_daemon::{Code, DaemonClient, StateDir};
use tokio::time::{Instant, sleep};

use super::login;
use crate::age::age;
use crate::exit::Failure;
use crate::out;
use crate::table::align;

/// Time limit for calling a daemon that keeps restarting.
const RESTARTS: Duration = Duration::from_secs(10);
/// Pause between two such calls.
const PAUSE: Duration = Duration::from_millis(50);
/// Interval of reads of a watched status.
const WATCH: Duration = Duration::from_secs(1);

/// Show the background connections and their state
///
/// Exits with 40 when the API server of a connection cannot be reached, 32 when it does not accept the credentials, 1 when
/// a connection is degraded or could not be restored, and 0 when all connections are healthy or there is none.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # what is open, and where it listens
  kubevpn status

  # until Ctrl-C, whenever something has changed
  kubevpn status --watch

  # for a program: docs/status.schema.json has the fields
  kubevpn status -o json | jq -r '.List[].SocksListenAddr'")]
pub(crate) struct StatusCommand {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: StatusFormat,
    /// Keep watching: print the status again whenever it has changed
    #[arg(short, long)]
    watch: bool,
    /// Do not print the column names
    #[arg(long)]
    no_headers: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatusFormat {
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

impl StatusFormat {
    /// Whether the format is a table.
    fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// Format of the output and its settings.
pub(crate) struct StatusOutputArgs {
    format: StatusFormat,
    no_headers: bool,
    now: Timestamp,
    home: String,
}

impl StatusOutputArgs {
    pub(crate) fn now(format: StatusFormat, no_headers: bool) -> Self {
        Self {
            format,
            no_headers,
            now: Timestamp::now(),
            home: std::env::var("HOME").unwrap_or_default(),
        }
    }
}

impl StatusCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        out::until_interrupted(self.show()).await
    }

    async fn show(self) -> Result<(), Failure> {
        let daemon = DaemonClient::new(StateDir::locate()?);
        let mut shown = String::new();
        let begun = StatusOutputArgs::now(self.output, self.no_headers);
        loop {
            let status = ask(&daemon).await?;
            // A change of ages alone is not a change.
            let content = render(&status, &begun)?;
            if content != shown {
                let now = render(
                    &status,
                    &StatusOutputArgs::now(self.output, self.no_headers),
                )?;
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

/// Reads the status; starts the daemon if there are connections to restore.
pub(crate) async fn ask(daemon: &DaemonClient) -> Result<Document, Failure> {
    let until = Instant::now() + RESTARTS;
    loop {
        if !daemon.ensure_if_needed().await? {
            return Ok(Document::default());
        }
        match daemon.status().await {
            // The daemon has ended since: the next one is called.
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

/// The exit code for the worst state of a connection.
fn code(status: &Document) -> u8 {
    let has = |state| {
        status
            .list
            .iter()
            .any(|connection| connection.state == state)
    };
    match () {
        () if has(ConnectionState::Unreachable) => 40,
        () if has(ConnectionState::Unauthenticated) => 32,
        () if has(ConnectionState::Degraded) || !status.problems.is_empty() => 1,
        () => 0,
    }
}

fn show(text: &str, again: bool) -> Result<(), Failure> {
    if again && std::io::stdout().is_terminal() {
        // Moves the cursor to the top left and clears the screen (ECMA-48).
        out::print(format_args!("\x1b[H\x1b[J"))?;
    }
    out::print(text)
}

pub(crate) fn render(status: &Document, shown: &StatusOutputArgs) -> Result<String, Failure> {
    Ok(match shown.format {
        StatusFormat::Table | StatusFormat::Wide => table(status, shown),
        StatusFormat::Json => out::json_text(status, true)? + "\n",
        StatusFormat::Yaml => serde_yaml_ng::to_string(status).map_err(anyhow::Error::from)?,
        StatusFormat::Name => {
            let ids = status
                .list
                .iter()
                .map(|connection| connection.id.clone() + "\n");
            ids.collect()
        }
    })
}

fn table(status: &Document, shown: &StatusOutputArgs) -> String {
    let wide = shown.format == StatusFormat::Wide;
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

fn row(connection: &ConnectionInfo, current: &str, now: Timestamp) -> Vec<String> {
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

fn more(connection: &ConnectionInfo, home: &str) -> Vec<String> {
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
    use kubevpn_daemon::api::{StateFileProblem, TrafficInfo};

    use super::*;
    use crate::cli::sample::{connection, listener};

    fn sample() -> Document {
        Document {
            list: vec![ConnectionInfo {
                socks_listen_addr: "127.0.0.1:1080".into(),
                state: ConnectionState::Degraded,
                reason: "a listener is not bound".into(),
                listeners: vec![
                    listener("socks", "127.0.0.1:1080", true),
                    listener("http", "127.0.0.1:3128", false),
                ],
                traffic: TrafficInfo {
                    total_connections: 7,
                    ..TrafficInfo::default()
                },
                sessions: 1,
                ..connection("03dc50feb8c3")
            }],
            current: "03dc50feb8c3".into(),
            problems: vec![StateFileProblem {
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
        status.list[0].state = ConnectionState::Connected;
        assert_eq!(code(&status), 1, "one was not brought back");
        status.problems.clear();
        assert_eq!(code(&status), 0);
        status.list.push(status.list[0].clone());
        for (state, wanted) in [
            (ConnectionState::Degraded, 1),
            (ConnectionState::Unauthenticated, 32),
            (ConnectionState::Unreachable, 40),
        ] {
            status.list[0].state = state;
            assert_eq!(code(&status), wanted);
        }
    }

    fn shown(format: StatusFormat) -> StatusOutputArgs {
        StatusOutputArgs {
            format,
            no_headers: false,
            now: "2026-01-02T05:04:05Z".parse().unwrap(),
            home: "/home/jane".into(),
        }
    }

    #[test]
    fn a_table() {
        let text = table(&sample(), &shown(StatusFormat::Table));
        assert_eq!(
            text,
            "CURRENT   ID             CONTEXT   NAMESPACE   STATUS     LISTENERS                                                  OPEN   AGE\n\
             *         03dc50feb8c3   lab       shop        degraded   socks=127.0.0.1:1080,http=127.0.0.1:3128 (not listening)   0      120m\n\
             03dc50feb8c3: a listener is not bound\n\
             0123456789ab: not brought back: its state file is broken\n"
        );
        let wide = table(&sample(), &shown(StatusFormat::Wide));
        assert!(wide.contains("~/.kube/config"), "{wide}");
        let bare = StatusOutputArgs {
            no_headers: true,
            ..shown(StatusFormat::Table)
        };
        assert!(table(&sample(), &bare).starts_with('*'));
        assert_eq!(
            render(&sample(), &shown(StatusFormat::Name)).unwrap(),
            "03dc50feb8c3\n"
        );
    }

    #[test]
    fn text_of_the_api_server_cannot_drive_the_terminal() {
        let mut status = sample();
        status.list[0].reason = "one\n\u{1b}[2Jtwo".into();
        status.list[0].context = "a\u{9b}b".into();
        for format in [StatusFormat::Table, StatusFormat::Wide] {
            let text = table(&status, &shown(format));
            assert!(text.contains(r"one\n\u{1b}[2Jtwo"), "{text}");
            assert!(text.contains(r"a\u{9b}b"), "{text}");
        }
    }

    #[test]
    fn json_cannot_drive_the_terminal_either() {
        let mut status = sample();
        status.list[0].reason = "a\u{9b}2Jb\u{202e}c\u{7f}\n".into();
        let text = render(&status, &shown(StatusFormat::Json)).unwrap();
        assert!(text.contains(r"a\u009b2Jb\u202ec\u007f\n"), "{text}");
        let back: Document = serde_json::from_str(&text).unwrap();
        assert_eq!(back.list[0].reason, status.list[0].reason);
    }

    #[test]
    fn status_without_connections_is_a_document() {
        let json = render(&Document::default(), &shown(StatusFormat::Json)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"List": [], "CurrentConnectionID": "", "Problems": []})
        );
        let yaml = render(&sample(), &shown(StatusFormat::Yaml)).unwrap();
        let back: Document = serde_yaml_ng::from_str(&yaml).unwrap();
        assert_eq!(
            serde_json::to_value(back).unwrap(),
            serde_json::to_value(sample()).unwrap()
        );
    }
}
