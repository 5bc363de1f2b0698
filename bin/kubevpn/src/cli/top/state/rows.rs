//! The rows of each view, and the details of a row.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kubevpn_proxy::journal::ConnectionSnapshot;

use super::{OpenConnections, Service, TopState};
use crate::age::age;
use crate::cli::top::columns::{Cell, TopRow, TopView, amount};
use crate::out::escaped;

impl TopState {
    pub(super) fn of_services(&self) -> Vec<TopRow> {
        let none = Service::default();
        let row = |(target, open): (&str, OpenConnections)| {
            let ended = self.services.get(target).unwrap_or(&none);
            TopRow {
                key: target.to_owned(),
                alarming: ended.refused > 0 && open.count + ended.ended == 0,
                cells: vec![
                    Cell::text(target),
                    Cell::count(open.count),
                    Cell::count(open.count + ended.ended),
                    Cell::count(ended.refused),
                    Cell::amount(open.up_rate),
                    Cell::amount(open.down_rate),
                    Cell::amount((open.up + ended.up) as f64),
                    Cell::amount((open.down + ended.down) as f64),
                ],
            }
        };
        self.targets().into_iter().map(row).collect()
    }

    pub(super) fn of_sessions(&self) -> Vec<TopRow> {
        let rows = self.seen.sessions.iter().map(|session| TopRow {
            key: session.id.to_string(),
            alarming: !matches!(session.health.as_str(), "well" | "closing"),
            cells: vec![
                Cell::text(&session.pod),
                Cell::text(&session.transport),
                Cell::text(&session.health),
                Cell::count(session.streams as u64),
                Cell::age(session.age),
                Cell::age(session.silent),
            ],
        });
        rows.collect()
    }

    pub(super) fn of_refusals(&self) -> Vec<TopRow> {
        let rows = self.refusals.iter().map(|(number, refused)| TopRow {
            key: number.to_string(),
            alarming: false,
            cells: vec![
                Cell::age(self.seconds_since(&refused.at)),
                Cell::text(&refused.target),
                Cell::text(&refused.refusal),
                Cell::text(&refused.sentence),
            ],
        });
        rows.collect()
    }

    fn seconds_since(&self, at: &str) -> f64 {
        let (at, now): (Option<Timestamp>, Option<Timestamp>) =
            (at.parse().ok(), self.seen.at.parse().ok());
        let since = at.zip(now).map(|(at, now)| now.duration_since(at));
        since.unwrap_or_default().as_secs_f64().max(0.0)
    }

    /// Label and text of each detail of the row with this key; empty if the row has gone.
    pub(in crate::cli::top) fn details(&self, key: &str) -> Vec<(&'static str, String)> {
        let mut lines = match self.view {
            TopView::Connections => {
                let connection = self.connections().find(|it| it.id.to_string() == key);
                connection.map(about_connection).unwrap_or_default()
            }
            TopView::Services => self.about_service(key),
            TopView::Sessions => self.about_session(key),
            TopView::Refusals => self.about_refusal(key),
        };
        for (_, text) in &mut lines {
            *text = escaped(text).into_owned();
        }
        lines
    }

    fn about_service(&self, target: &str) -> Vec<(&'static str, String)> {
        let targets = self.targets();
        let Some(open) = targets.get(target) else {
            return Vec::new();
        };
        let none = Service::default();
        let ended = self.services.get(target).unwrap_or(&none);
        let mut pods = BTreeMap::<_, u64>::new();
        for connection in self.connections() {
            if connection.target.as_deref() == Some(target) && !connection.via.is_empty() {
                *pods.entry(connection.via.as_str()).or_default() += 1;
            }
        }
        let mut lines = vec![
            ("Target", target.to_owned()),
            ("Open", open.count.to_string()),
            ("In total", (open.count + ended.ended).to_string()),
            ("Refused", ended.refused.to_string()),
        ];
        if ended.refused > 0 {
            lines.push(("Last refusal", ended.reason.clone()));
        }
        lines.push(transferred(open.up + ended.up, open.down + ended.down));
        lines.push(rates(open.up_rate, open.down_rate));
        lines.extend(
            pods.iter()
                .map(|(pod, count)| ("Pod", format!("{pod}, {count} open"))),
        );
        lines
    }

    fn about_session(&self, key: &str) -> Vec<(&'static str, String)> {
        let mut sessions = self.seen.sessions.iter();
        let Some(session) = sessions.find(|it| it.id.to_string() == key) else {
            return Vec::new();
        };
        vec![
            ("Session", key.to_owned()),
            ("Pod", session.pod.clone()),
            ("Transport", session.transport.clone()),
            ("Health", session.health.clone()),
            ("Streams", session.streams.to_string()),
            ("Age", age(session.age as u64)),
            ("Silent for", age(session.silent as u64)),
        ]
    }

    fn about_refusal(&self, key: &str) -> Vec<(&'static str, String)> {
        let mut refusals = self.refusals.iter();
        let found = refusals.find(|(number, _)| number.to_string() == key);
        let Some((_, refused)) = found else {
            return Vec::new();
        };
        vec![
            ("Target", refused.target.clone()),
            ("Reason", refused.sentence.clone()),
            ("Class", refused.refusal.clone()),
            ("Client", refused.client.clone().unwrap_or_default()),
            ("Frontend", refused.frontend.clone()),
            ("At", refused.at.clone()),
        ]
    }
}

pub(super) fn of_connection(connection: &ConnectionSnapshot) -> TopRow {
    let asked = match &connection.target {
        Some(target) => target.clone(),
        None => format!("({})", connection.frontend),
    };
    let via = match connection.via.as_str() {
        "" => "…",
        via => via,
    };
    let client = connection.program.as_ref().or(connection.client.as_ref());
    TopRow {
        key: connection.id.to_string(),
        alarming: false,
        cells: vec![
            Cell::text(&asked),
            Cell::text(via),
            Cell::text(client.map_or("-", String::as_str)),
            Cell::amount(connection.up_rate),
            Cell::amount(connection.down_rate),
            Cell::amount(connection.up as f64),
            Cell::amount(connection.down as f64),
            Cell::age(connection.age),
        ],
    }
}

fn about_connection(connection: &ConnectionSnapshot) -> Vec<(&'static str, String)> {
    vec![
        ("Connection", connection.id.to_string()),
        ("Target", connection.target.clone().unwrap_or_default()),
        ("Pod", connection.via.clone()),
        ("Transport", connection.transport.clone()),
        ("Client", connection.client.clone().unwrap_or_default()),
        ("Program", connection.program.clone().unwrap_or_default()),
        ("Frontend", connection.frontend.clone()),
        transferred(connection.up, connection.down),
        rates(connection.up_rate, connection.down_rate),
        ("Age", age(connection.age as u64)),
    ]
}

fn transferred(up: u64, down: u64) -> (&'static str, String) {
    ("Bytes", format!("{up} up, {down} down"))
}

fn rates(up: f64, down: f64) -> (&'static str, String) {
    let (up, down) = (amount(up), amount(down));
    ("Per second", format!("{up} up, {down} down"))
}
