//! The state of `top`: turns snapshots and events into rows, and keys into actions. It uses neither the terminal nor the clock.
//!
//! Memory is bounded by the open connections ([`JournalSnapshot`]), [`SERVICES`], [`REFUSALS`] and [`GONE`].

mod keys;
mod rows;

use std::collections::{BTreeMap, HashSet, VecDeque};

use kubevpn_proxy::journal::{
    ConnectionSnapshot, JournalEvent, JournalSnapshot, RefusedConnection, Stamped,
};

pub(super) use self::keys::KeyAction;
use self::rows::of_connection;
use super::columns::{TopRow, TopView, amount};
use crate::cli::console;
use crate::out::escaped;

/// Upper bound on targets whose ended connections are counted; above it the least recently used target is forgotten.
const SERVICES: usize = 1000;
/// Upper bound on refusals that are kept; the oldest are dropped first.
const REFUSALS: usize = 1000;
/// Upper bound on connections that have ended and are not in the last snapshot.
const GONE: usize = 1000;

/// Sort order, selection and scroll position of a view.
#[derive(Debug)]
pub(super) struct ListView {
    /// Index of the column by which the view is sorted.
    pub(super) sort: usize,
    pub(super) descending: bool,
    pub(super) filter: String,
    /// Key of the selected row, which the selection follows; `None` selects the first row.
    selected: Option<String>,
    /// Index of the selected row in the last draw, used if the row has gone.
    at: usize,
    /// Index of the first row on the screen.
    offset: usize,
}

impl ListView {
    fn sorted(sort: usize, descending: bool) -> Self {
        Self {
            sort,
            descending,
            filter: String::new(),
            selected: None,
            at: 0,
            offset: 0,
        }
    }
}

/// How keys are interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    List,
    /// Text typed is the filter.
    Filter,
    /// Text typed is a command.
    Command(String),
    /// Details of the row with this key are shown.
    Details(String),
    /// The user is asked whether to cut this connection.
    Cut(u64),
    Help,
}

/// Counters of the ended connections to one target since `top` began.
#[derive(Debug, Default)]
struct Service {
    ended: u64,
    refused: u64,
    up: u64,
    down: u64,
    reason: String,
    /// Number of the last event about this target, to find the least recently used.
    told: u64,
}

/// The live connections to one target.
#[derive(Default)]
struct OpenConnections {
    count: u64,
    up: u64,
    down: u64,
    up_rate: f64,
    down_rate: f64,
}

/// Everything `top` knows.
pub(super) struct TopState {
    seen: JournalSnapshot,
    /// Refused connections of the first snapshot, whose events may still arrive.
    known: HashSet<u64>,
    services: BTreeMap<String, Service>,
    /// Refusals with a number each, the oldest first.
    refusals: VecDeque<(u64, RefusedConnection)>,
    /// Connections whose end was reported by an event, and which an older snapshot may still contain.
    gone: HashSet<u64>,
    events: u64,
    dropped: u64,
    view: TopView,
    lists: [ListView; 4],
    mode: Mode,
    message: String,
    /// Reason why the snapshot is outdated; empty if it is not.
    silent: String,
    /// Index of the first visible line, if a text is on the screen.
    pub(super) scroll: usize,
    /// Number of rows that fit on the screen.
    page: usize,
}

impl TopState {
    /// Starts with a snapshot that was taken after the subscription to events.
    pub(super) fn new(seen: JournalSnapshot) -> Self {
        let refusals = seen.refusals.iter().rev().cloned();
        Self {
            known: seen.refusals.iter().map(|it| it.id).collect(),
            refusals: (0..).zip(refusals).collect(),
            services: BTreeMap::new(),
            gone: HashSet::new(),
            events: seen.refusals.len() as u64,
            dropped: 0,
            view: TopView::Connections,
            lists: [
                ListView::sorted(4, true),
                ListView::sorted(1, true),
                ListView::sorted(0, false),
                ListView::sorted(0, false),
            ],
            mode: Mode::List,
            message: String::new(),
            silent: String::new(),
            scroll: 0,
            page: 1,
            seen,
        }
    }

    // === input ===

    /// Takes a snapshot.
    pub(super) fn see(&mut self, seen: JournalSnapshot) {
        self.seen = seen;
        self.keep_shown();
        self.silent.clear();
    }

    /// Notes that a connection has ended.
    fn note_end(&mut self, id: u64) {
        self.gone.insert(id);
        // Events may arrive while snapshots fail.
        if self.gone.len() > self.seen.connections.len() + GONE {
            self.keep_shown();
        }
    }

    /// Drops ended connections that the last snapshot does not contain.
    fn keep_shown(&mut self) {
        let ids: HashSet<_> = self.seen.connections.iter().map(|it| it.id).collect();
        self.gone.retain(|id| ids.contains(id));
    }

    /// Takes an event.
    pub(super) fn tell(&mut self, stamped: Stamped) {
        self.events += 1;
        match stamped.event {
            JournalEvent::ConnectionClosed {
                id,
                target,
                up,
                down,
                ..
            } => {
                self.note_end(id);
                let service = self.service(target);
                service.ended += 1;
                service.up += up;
                service.down += down;
            }
            JournalEvent::ConnectionRefused {
                id,
                frontend,
                client,
                target,
                refusal,
                sentence,
                ..
            } => {
                self.note_end(id);
                let service = self.service(target.clone());
                service.refused += 1;
                service.reason.clone_from(&sentence);
                if self.known.remove(&id) {
                    return;
                }
                if self.refusals.len() == REFUSALS {
                    self.refusals.pop_front();
                }
                let refused = RefusedConnection {
                    id,
                    at: stamped.at,
                    frontend,
                    client,
                    target: target.unwrap_or_default(),
                    refusal,
                    sentence,
                };
                self.refusals.push_back((self.events, refused));
            }
            JournalEvent::Dropped { events } => self.dropped += events,
            _ => {}
        }
    }

    fn service(&mut self, target: Option<String>) -> &mut Service {
        let target = target.unwrap_or_default();
        if self.services.len() >= SERVICES && !self.services.contains_key(&target) {
            let oldest = self.services.iter().min_by_key(|(_, it)| it.told);
            if let Some(oldest) = oldest.map(|(target, _)| target.clone()) {
                self.services.remove(&oldest);
            }
        }
        let service = self.services.entry(target).or_default();
        service.told = self.events;
        service
    }

    /// Notes why there is no new snapshot.
    pub(super) fn miss(&mut self, why: &str) {
        self.silent = escaped(why).into_owned();
    }

    /// Shows a message until the next key.
    pub(super) fn say(&mut self, message: &str) {
        self.message = escaped(message).into_owned();
    }

    // === output ===

    pub(super) fn view(&self) -> TopView {
        self.view
    }

    pub(super) fn mode(&self) -> &Mode {
        &self.mode
    }

    pub(super) fn list(&self) -> &ListView {
        &self.lists[self.view as usize]
    }

    fn list_mut(&mut self) -> &mut ListView {
        &mut self.lists[self.view as usize]
    }

    fn connections(&self) -> impl Iterator<Item = &ConnectionSnapshot> {
        let live = self.seen.connections.iter();
        live.filter(|it| !self.gone.contains(&it.id))
    }

    /// Name and totals of the proxy.
    pub(super) fn headline(&self) -> String {
        let (about, totals) = (&self.seen.about, self.seen.totals);
        let place = [&about.context, &about.namespace].map(String::as_str);
        let place = place.join("/");
        let text = format!(
            "{} open, {} in total, {} refused, {} up, {} down  {} {}",
            totals.open,
            totals.connected,
            totals.refused,
            amount(totals.up as f64),
            amount(totals.down as f64),
            console::name(about),
            place.trim_matches('/'),
        );
        escaped(&text).into_owned()
    }

    /// Number of rows of a view, before the filter.
    pub(super) fn count(&self, view: TopView) -> usize {
        match view {
            TopView::Connections => self.connections().count(),
            TopView::Services => self.targets().len(),
            TopView::Sessions => self.seen.sessions.len(),
            TopView::Refusals => self.refusals.len(),
        }
    }

    /// Message that replaces the list of keys; empty for none.
    pub(super) fn message(&self) -> String {
        for text in [&self.message, &self.silent] {
            if !text.is_empty() {
                return text.clone();
            }
        }
        let credentials = self.seen.credentials.as_ref();
        let trouble = credentials.and_then(|it| it.trouble.as_deref());
        let lost = self.seen.watches.iter().filter(|it| it.health == "lost");
        match (trouble, lost.count(), self.dropped) {
            (Some(trouble), _, _) => escaped(&format!("credentials: {trouble}")).into_owned(),
            (None, 0, 0) => String::new(),
            (None, 0, dropped) => format!("{dropped} events came too fast and are not counted"),
            (None, lost, _) => format!("watches lost: {lost}; what they follow gets old"),
        }
    }

    /// The question whether to cut; its keys come first, so that a narrow terminal shows them.
    pub(super) fn question(&self, id: u64) -> String {
        let target = self.connections().find(|it| it.id == id);
        let target = target.and_then(|it| it.target.as_deref()).unwrap_or("?");
        format!("y/n: cut connection {id} to {}?", escaped(target))
    }

    /// The rows of the current view, filtered and sorted.
    pub(super) fn rows(&self) -> Vec<TopRow> {
        let mut rows = match self.view {
            TopView::Connections => self.connections().map(of_connection).collect(),
            TopView::Services => self.of_services(),
            TopView::Sessions => self.of_sessions(),
            TopView::Refusals => self.of_refusals(),
        };
        let list = self.list();
        let filter = list.filter.to_lowercase();
        let has = |row: &TopRow| {
            let mut cells = row.cells.iter();
            cells.any(|cell| cell.text.to_lowercase().contains(&filter))
        };
        rows.retain(|row| filter.is_empty() || has(row));
        rows.sort_by(|one, two| {
            let order = one.cells[list.sort].cmp(&two.cells[list.sort]);
            match list.descending {
                true => order.reverse(),
                false => order,
            }
        });
        rows
    }

    /// The rows that fit into `height` lines, and the index of the selected one among them.
    pub(super) fn window(&mut self, height: usize) -> (Vec<TopRow>, Option<usize>) {
        self.page = height.max(1);
        let mut rows = self.rows();
        let at = self.settle(&rows);
        let page = self.page;
        let list = self.list_mut();
        let last = rows.len().saturating_sub(page);
        let first = (at + 1).saturating_sub(page);
        list.offset = list.offset.clamp(first, at.min(last));
        let shown: Vec<_> = rows.drain(list.offset..).take(height).collect();
        let selected = at.checked_sub(list.offset);
        (shown, selected)
    }

    /// Index of the selected row; if that row has gone, of the row that took its place.
    fn settle(&mut self, rows: &[TopRow]) -> usize {
        let list = self.list_mut();
        let Some(selected) = &list.selected else {
            list.at = 0;
            return 0;
        };
        match rows.iter().position(|row| row.key == *selected) {
            Some(at) => list.at = at,
            None => {
                list.at = list.at.min(rows.len().saturating_sub(1));
                list.selected = rows.get(list.at).map(|row| row.key.clone());
            }
        }
        list.at
    }

    /// Open connections by target, with the targets whose connections have all ended.
    fn targets(&self) -> BTreeMap<&str, OpenConnections> {
        let known = self
            .services
            .keys()
            .map(|it| (it.as_str(), OpenConnections::default()));
        let mut targets: BTreeMap<_, _> = known.collect();
        for connection in self.connections() {
            let target = connection.target.as_deref().unwrap_or_default();
            let open = targets.entry(target).or_default();
            open.count += 1;
            open.up += connection.up;
            open.down += connection.down;
            open.up_rate += connection.up_rate;
            open.down_rate += connection.down_rate;
        }
        // Clients that have not asked for a target yet have no row.
        targets.remove("");
        targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_connections_are_forgotten_while_snapshots_fail() {
        let mut state = TopState::new(JournalSnapshot::default());
        for id in 0..10_000 {
            state.miss("the proxy does not answer");
            state.tell(Stamped {
                at: String::new(),
                event: JournalEvent::ConnectionRefused {
                    id,
                    frontend: "http".into(),
                    client: None,
                    target: None,
                    refusal: "cluster_away".into(),
                    sentence: String::new(),
                    seconds: 0.0,
                    exchange: None,
                    trace: None,
                },
            });
        }
        assert!(state.gone.len() <= 1_000, "{}", state.gone.len());
    }
}
