//! The state of `top`: turns snapshots and events into rows, and keys into actions. It uses neither the terminal nor the clock.
//!
//! Memory is bounded by the open connections ([`JournalSnapshot`]), [`SERVICES`] and [`REFUSALS`]. All text of a row comes from
//! outside, and is escaped when the row is made.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet, VecDeque};

use jiff::Timestamp;
use kubevpn_proxy::journal::{
    ConnectionSnapshot, JournalEvent, JournalSnapshot, RefusedConnection, Stamped,
};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::age::age;
use crate::cli::console;
use crate::out::escaped;

/// Upper bound on targets whose ended connections are counted; above it the least recently used target is forgotten.
const SERVICES: usize = 1000;
/// Upper bound on refusals that are kept; the oldest are dropped first.
const REFUSALS: usize = 1000;
/// Upper bound on the length of typed text.
const TYPED: usize = 100;

/// A list that `top` can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TopView {
    Connections,
    Services,
    Sessions,
    Refusals,
}

pub(super) const VIEWS: [TopView; 4] = [
    TopView::Connections,
    TopView::Services,
    TopView::Sessions,
    TopView::Refusals,
];

impl TopView {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Connections => "Connections",
            Self::Services => "Services",
            Self::Sessions => "Sessions",
            Self::Refusals => "Refusals",
        }
    }

    /// The view for a command: the beginning of the view's name, or kubectl's short name.
    fn named(word: &str) -> Option<Self> {
        let is_meant = |view: &Self| view.title().to_lowercase().starts_with(word);
        match word {
            "" => None,
            "svc" => Some(Self::Services),
            _ => VIEWS.into_iter().find(is_meant),
        }
    }

    pub(super) fn columns(self) -> &'static [Column] {
        match self {
            Self::Connections => &CONNECTION,
            Self::Services => &SERVICE,
            Self::Sessions => &SESSION,
            Self::Refusals => &REFUSAL,
        }
    }
}

/// A column of a view.
pub(super) struct Column {
    pub(super) title: &'static str,
    /// Minimum width.
    pub(super) width: u16,
    /// Share of the remaining width; 0 for numbers.
    pub(super) grow: u16,
    /// Columns with the greatest rank are left out first if the screen is too narrow.
    pub(super) rank: u8,
}

impl Column {
    const fn text(title: &'static str, width: u16, grow: u16, rank: u8) -> Self {
        Self {
            title,
            width,
            grow,
            rank,
        }
    }

    const fn number(title: &'static str, width: u16, rank: u8) -> Self {
        Self::text(title, width, 0, rank)
    }

    pub(super) fn is_number(&self) -> bool {
        self.grow == 0
    }
}

const CONNECTION: [Column; 8] = [
    Column::text("TARGET", 24, 3, 0),
    Column::text("POD", 22, 3, 3),
    Column::text("CLIENT", 12, 1, 4),
    Column::number("UP/S", 5, 7),
    Column::number("DOWN/S", 7, 1),
    Column::number("UP", 5, 6),
    Column::number("DOWN", 5, 5),
    Column::number("AGE", 5, 2),
];
const SERVICE: [Column; 8] = [
    Column::text("TARGET", 20, 1, 0),
    Column::number("OPEN", 5, 1),
    Column::number("TOTAL", 6, 3),
    Column::number("REFUSED", 8, 4),
    Column::number("UP/S", 5, 5),
    Column::number("DOWN/S", 7, 2),
    Column::number("UP", 5, 7),
    Column::number("DOWN", 5, 6),
];
const SESSION: [Column; 6] = [
    Column::text("POD", 20, 6, 0),
    Column::text("TRANSPORT", 10, 1, 4),
    Column::text("HEALTH", 8, 1, 1),
    Column::number("STREAMS", 8, 2),
    Column::number("AGE", 5, 3),
    Column::number("SILENT", 7, 5),
];
const REFUSAL: [Column; 4] = [
    Column::number("AGE", 5, 2),
    Column::text("TARGET", 16, 2, 0),
    Column::text("CLASS", 15, 1, 3),
    Column::text("REASON", 20, 5, 1),
];

/// A cell: its text, and the number by which it is sorted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cell {
    pub(super) text: String,
    number: Option<f64>,
}

impl Cell {
    fn text(text: &str) -> Self {
        Self {
            text: escaped(text).into_owned(),
            number: None,
        }
    }

    fn number(text: String, number: f64) -> Self {
        Self {
            text,
            number: Some(number),
        }
    }

    fn count(count: u64) -> Self {
        Self::number(count.to_string(), count as f64)
    }

    fn amount(bytes: f64) -> Self {
        Self::number(amount(bytes), bytes)
    }

    fn age(seconds: f64) -> Self {
        Self::number(age(seconds.max(0.0) as u64), seconds)
    }

    fn cmp(&self, other: &Self) -> Ordering {
        match (self.number, other.number) {
            (Some(one), Some(two)) => one.total_cmp(&two),
            _ => self.text.cmp(&other.text),
        }
    }
}

/// A row of a view.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TopRow {
    /// Identity of the row while it exists: the connection's number, or the target.
    key: String,
    pub(super) cells: Vec<Cell>,
    /// Whether the row is highlighted as a problem.
    pub(super) alarming: bool,
}

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

/// An action of a key that needs more than the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyAction {
    Quit,
    Cut(u64),
    /// Redraws the whole screen.
    Redraw,
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
    /// Time of the first snapshot: earlier refusals are already in it, and are not counted twice.
    since: Option<Timestamp>,
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
            since: seen.at.parse().ok(),
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
        let ids: HashSet<_> = seen.connections.iter().map(|it| it.id).collect();
        self.gone.retain(|id| ids.contains(id));
        self.seen = seen;
        self.silent.clear();
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
                self.gone.insert(id);
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
                self.gone.insert(id);
                let service = self.service(target.clone());
                service.refused += 1;
                service.reason.clone_from(&sentence);
                let at: Option<Timestamp> = stamped.at.parse().ok();
                if at <= self.since {
                    return;
                }
                if self.refusals.len() == REFUSALS {
                    self.refusals.pop_front();
                }
                let refused = RefusedConnection {
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

    fn of_services(&self) -> Vec<TopRow> {
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

    fn of_sessions(&self) -> Vec<TopRow> {
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

    fn of_refusals(&self) -> Vec<TopRow> {
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
    pub(super) fn details(&self, key: &str) -> Vec<(&'static str, String)> {
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

    // === keys ===

    /// Takes a key, and returns the action that it needs.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<KeyAction> {
        self.message.clear();
        let code = match (key.modifiers.contains(KeyModifiers::CONTROL), key.code) {
            (false, code) => code,
            (true, KeyCode::Char('c')) => return Some(KeyAction::Quit),
            (true, KeyCode::Char('l')) => return Some(KeyAction::Redraw),
            (true, KeyCode::Char('f')) => KeyCode::PageDown,
            (true, KeyCode::Char('b')) => KeyCode::PageUp,
            (true, KeyCode::Char('d')) => KeyCode::F(9),
            (true, _) => return None,
        };
        match &mut self.mode {
            Mode::Filter => self.type_filter(code),
            Mode::Command(_) => return self.type_command(code),
            Mode::Cut(id) => {
                let id = *id;
                match code {
                    KeyCode::Char('y') => {
                        self.turn(Mode::List);
                        return Some(KeyAction::Cut(id));
                    }
                    KeyCode::Char('n' | 'q') | KeyCode::Esc => self.turn(Mode::List),
                    _ => {}
                }
            }
            Mode::List | Mode::Details(_) | Mode::Help => return self.press(code),
        }
        None
    }

    fn press(&mut self, code: KeyCode) -> Option<KeyAction> {
        match code {
            KeyCode::Char('q') | KeyCode::F(10) => return Some(KeyAction::Quit),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => match self.mode {
                Mode::Help => self.turn(Mode::List),
                _ => self.turn(Mode::Help),
            },
            KeyCode::Char('/') | KeyCode::F(3 | 4) => self.turn(Mode::Filter),
            KeyCode::Char(':') => self.turn(Mode::Command(String::new())),
            KeyCode::Char('x') | KeyCode::F(9) => self.ask_to_cut(),
            KeyCode::Esc if self.mode == Mode::List => self.list_mut().filter.clear(),
            KeyCode::Esc => self.turn(Mode::List),
            KeyCode::Enter => match self.mode {
                Mode::List => {
                    if let Some(key) = self.selected() {
                        self.turn(Mode::Details(key));
                    }
                }
                _ => self.turn(Mode::List),
            },
            KeyCode::Char(digit @ '1'..='4') => {
                self.show(VIEWS[digit as usize - '1' as usize]);
            }
            KeyCode::Tab | KeyCode::Right => self.turn_view(1),
            KeyCode::BackTab | KeyCode::Left => self.turn_view(VIEWS.len() - 1),
            KeyCode::Char('>') | KeyCode::F(6) => self.sort_by_next(1),
            KeyCode::Char('<') => self.sort_by_next(self.view.columns().len() - 1),
            KeyCode::Char('I') => self.list_mut().descending ^= true,
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.step(self.page as isize),
            KeyCode::PageUp => self.step(-(self.page as isize)),
            KeyCode::Home | KeyCode::Char('g') => self.step(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX),
            _ => {}
        }
        None
    }

    fn turn(&mut self, mode: Mode) {
        self.scroll = 0;
        self.mode = mode;
    }

    fn show(&mut self, view: TopView) {
        self.view = view;
        self.turn(Mode::List);
    }

    fn turn_view(&mut self, by: usize) {
        self.show(VIEWS[(self.view as usize + by) % VIEWS.len()]);
    }

    /// Sorts by the next column; numbers are sorted in descending order.
    fn sort_by_next(&mut self, by: usize) {
        let columns = self.view.columns();
        let list = self.list_mut();
        list.sort = (list.sort + by) % columns.len();
        list.descending = columns[list.sort].is_number();
    }

    fn selected(&mut self) -> Option<String> {
        let rows = self.rows();
        let at = self.settle(&rows);
        rows.into_iter().nth(at).map(|row| row.key)
    }

    /// Moves the selection by rows, or scrolls a text by lines.
    fn step(&mut self, by: isize) {
        if self.mode != Mode::List {
            self.scroll = self.scroll.saturating_add_signed(by);
            return;
        }
        let rows = self.rows();
        let at = self.settle(&rows).saturating_add_signed(by);
        let at = at.min(rows.len().saturating_sub(1));
        let list = self.list_mut();
        list.at = at;
        list.selected = rows.get(at).filter(|_| at > 0).map(|row| row.key.clone());
    }

    fn ask_to_cut(&mut self) {
        let key = match &self.mode {
            Mode::Details(key) => Some(key.clone()),
            _ => self.selected(),
        };
        let is_there = |id: &u64| self.connections().any(|it| it.id == *id);
        let id = key.and_then(|key| key.parse().ok()).filter(is_there);
        match (self.view, id) {
            (TopView::Connections, Some(id)) => self.turn(Mode::Cut(id)),
            (TopView::Connections, None) => self.say("there is no connection to cut"),
            _ => self.say("only a connection can be cut: 1 lists them"),
        }
    }

    fn type_filter(&mut self, code: KeyCode) {
        let filter = &mut self.list_mut().filter;
        match code {
            KeyCode::Enter => self.turn(Mode::List),
            KeyCode::Esc => {
                filter.clear();
                self.turn(Mode::List);
            }
            code => edit(filter, code),
        }
    }

    fn type_command(&mut self, code: KeyCode) -> Option<KeyAction> {
        let Mode::Command(word) = &mut self.mode else {
            return None;
        };
        if code != KeyCode::Enter && code != KeyCode::Esc {
            edit(word, code);
            return None;
        }
        let word = word.trim().to_lowercase();
        self.turn(Mode::List);
        match word.as_str() {
            _ if code == KeyCode::Esc => {}
            "" => {}
            "q" | "q!" | "quit" => return Some(KeyAction::Quit),
            "h" | "help" | "?" => self.turn(Mode::Help),
            word => match TopView::named(word) {
                Some(view) => self.show(view),
                None => self.say(&format!("there is no view {word:?}")),
            },
        }
        None
    }
}

fn edit(text: &mut String, code: KeyCode) {
    match code {
        KeyCode::Backspace => {
            text.pop();
        }
        KeyCode::Char(c) if text.len() < TYPED => text.push(c),
        _ => {}
    }
}

fn of_connection(connection: &ConnectionSnapshot) -> TopRow {
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

/// An amount of bytes in at most five characters.
fn amount(bytes: f64) -> String {
    let mut units = ["k", "M", "G", "T", "P", "E"].into_iter();
    let (mut number, mut unit) = (bytes, "");
    while number >= 999.5
        && let Some(greater) = units.next()
    {
        (number, unit) = (number / 1000.0, greater);
    }
    match unit.is_empty() || number >= 99.95 {
        true => format!("{number:.0}{unit}"),
        false => format!("{number:.1}{unit}"),
    }
}
