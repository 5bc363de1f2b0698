//! State and view together: from events and keys to the text of the screen.

use std::path::Path;

use kubevpn_proxy::journal::{
    AboutProxy, ConnectionSnapshot, CredentialSnapshot, JournalEvent, JournalSnapshot,
    RefusedConnection, SessionSnapshot, Stamped, TrafficTotals, WatchSnapshot,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::{Color, Modifier};

use super::columns::TopView;
use super::state::{KeyAction, Mode, TopState};
use super::view::{Theme, draw};

fn connection(id: u64, target: &str, via: &str, down: u64) -> ConnectionSnapshot {
    ConnectionSnapshot {
        id,
        frontend: "socks5".into(),
        client: Some(format!("127.0.0.1:{}", 50_000 + id)),
        program: (id % 2 == 1).then(|| "curl".into()),
        target: Some(target.into()),
        via: via.into(),
        transport: "spdy-ws".into(),
        up: 78 * id,
        down,
        up_rate: 0.0,
        down_rate: down as f64 / 4.0,
        age: 3.5 * id as f64,
        exchange: None,
    }
}

fn refused(id: u64, at: &str, target: &str, refusal: &str, sentence: &str) -> RefusedConnection {
    RefusedConnection {
        id,
        at: at.into(),
        frontend: "http".into(),
        client: Some("127.0.0.1:50100".into()),
        target: target.into(),
        refusal: refusal.into(),
        sentence: sentence.into(),
    }
}

fn sample() -> JournalSnapshot {
    let web = "productpage.default.svc.cluster.local:9080";
    let pod = "default/productpage-76d75bfd64-4bbxp:9080";
    let session = |id, pod: &str, health: &str| SessionSnapshot {
        id,
        pod: pod.into(),
        transport: "spdy-ws".into(),
        streams: 2,
        health: health.into(),
        age: 700.0,
        silent: 3.0,
    };
    JournalSnapshot {
        at: "2026-01-02T03:04:05.5Z".into(),
        about: AboutProxy {
            connection: "03dc50feb8c3".into(),
            context: "lab".into(),
            namespace: "shop".into(),
            ..AboutProxy::default()
        },
        totals: TrafficTotals {
            open: 4,
            connected: 120,
            refused: 2,
            up: 12_345,
            down: 3_400_000_000,
        },
        connections: vec![
            connection(1, web, pod, 1_234_567),
            connection(2, "reviews:80", "default/reviews-5f-x2x9q:8080", 99_950),
            connection(3, web, pod, 40_000_000),
            connection(4, "db.team-a:5432", "", 0),
        ],
        sessions: vec![
            session(7, "default/productpage-76d75bfd64-4bbxp", "well"),
            session(9, "default/reviews-5f-x2x9q", "suspect"),
        ],
        refusals: vec![
            refused(
                900,
                "2026-01-02T03:04:01Z",
                "productpage:81",
                "no_such_port",
                "service productpage has no TCP port 81: it has 9080 (http)",
            ),
            refused(
                800,
                "2026-01-02T03:00:00Z",
                "notready:80",
                "not_ready",
                "service notready has no ready endpoint",
            ),
        ],
        ..JournalSnapshot::default()
    }
}

fn state() -> TopState {
    TopState::new(sample())
}

fn told(event: JournalEvent) -> Stamped {
    Stamped {
        at: "2026-01-02T03:04:06Z".into(),
        event,
    }
}

fn closed(id: u64, target: &str, down: u64) -> Stamped {
    told(JournalEvent::ConnectionClosed {
        id,
        frontend: "socks5".into(),
        client: None,
        target: Some(target.into()),
        via: String::new(),
        transport: String::new(),
        up: 1,
        down,
        seconds: 1.0,
        end: "eof".into(),
        error: None,
        exchange: None,
        trace: None,
    })
}

fn refusal(at: &str, target: &str) -> Stamped {
    Stamped {
        at: at.into(),
        event: JournalEvent::ConnectionRefused {
            id: 1000,
            frontend: "http".into(),
            client: None,
            target: Some(target.into()),
            refusal: "name_not_found".into(),
            sentence: "no service of this name".into(),
            seconds: 0.1,
            exchange: None,
            trace: None,
        },
    }
}

/// Presses one key per character; `⏎`, `⎋` and `⇥` are Enter, Esc and Tab.
fn press(state: &mut TopState, keys: &str) -> Option<KeyAction> {
    let mut last = None;
    for key in keys.chars() {
        let code = match key {
            '⏎' => KeyCode::Enter,
            '⎋' => KeyCode::Esc,
            '⇥' => KeyCode::Tab,
            '⌫' => KeyCode::Backspace,
            key => KeyCode::Char(key),
        };
        last = state.key(KeyEvent::new(code, KeyModifiers::NONE));
    }
    last
}

fn control(state: &mut TopState, key: char) -> Option<KeyAction> {
    state.key(KeyEvent::new(KeyCode::Char(key), KeyModifiers::CONTROL))
}

fn drawn(state: &mut TopState, (width, height): (u16, u16), colored: bool) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let theme = Theme { colored };
    terminal.draw(|frame| draw(frame, state, theme)).unwrap();
    terminal.backend().clone()
}

/// The lines of the screen, without trailing spaces.
fn screen(state: &mut TopState, size: (u16, u16)) -> String {
    let backend = drawn(state, size, true);
    let buffer = backend.buffer();
    let line = |y| {
        let cells = (0..size.0).map(|x| buffer[(x, y)].symbol());
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    (0..size.1).map(line).collect()
}

fn firsts(state: &TopState) -> Vec<String> {
    let rows = state.rows().into_iter();
    rows.map(|row| row.cells[0].text.clone()).collect()
}

// === drawing ===

#[test]
fn screens_are_what_was_agreed() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/tests/golden/top");
    let bless = std::env::var_os("KUBEVPN_BLESS").is_some();
    for size in [(80, 24), (40, 10), (200, 60)] {
        let mut text = String::new();
        for keys in [
            "", "jx", "j⏎", "/revi", "2", "2⏎", "3", "4", "4⏎", "?", ":x⏎",
        ] {
            let mut state = state();
            state.tell(refusal("2026-01-02T03:04:05.6Z", "nosuch.shop:80"));
            state.tell(closed(77, "reviews:80", 5_000));
            press(&mut state, keys);
            text += &format!("=== {keys}\n{}", screen(&mut state, size));
        }
        let path = dir.join(format!("{}x{}.txt", size.0, size.1));
        if bless {
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let agreed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, agreed, "{}", path.display());
    }
}

/// A window manager may give the terminal any size.
#[test]
fn no_size_is_too_small() {
    for width in (0..50).step_by(7) {
        for height in 0..7 {
            for keys in ["", "G", "⏎", "?", "/web", "x", "4", ":con"] {
                let mut state = state();
                press(&mut state, keys);
                screen(&mut state, (width, height));
            }
        }
    }
}

#[test]
fn text_from_outside_cannot_drive_the_terminal() {
    let evil = "a\u{1b}[2Jb\u{9b}c\u{202e}d\ne";
    let mut seen = sample();
    seen.about.context = evil.into();
    for connection in &mut seen.connections {
        connection.target = Some(evil.into());
        connection.via = evil.into();
        connection.program = Some(evil.into());
        connection.client = Some(evil.into());
    }
    seen.sessions[0].pod = evil.into();
    seen.refusals[0].sentence = evil.into();
    seen.refusals[0].target = evil.into();
    seen.credentials = Some(CredentialSnapshot {
        trouble: Some(evil.into()),
        ..CredentialSnapshot::default()
    });
    for keys in ["", "⏎", "x", "2", "2⏎", "3", "3⏎", "4", "4⏎"] {
        let mut state = TopState::new(seen.clone());
        press(&mut state, "/a⏎");
        press(&mut state, keys);
        let text = screen(&mut state, (300, 30));
        assert!(text.contains(r"a\u{1b}[2Jb\u{9b}c\u{202e}d\ne"), "{text}");
        let means_something = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!text.contains(means_something), "{text:?}");
    }
    let mut state = state();
    state.miss(evil);
    assert!(!state.message().contains('\u{1b}'));
}

#[test]
fn without_colors_there_are_none() {
    for keys in ["", "2", "3", "?", "x", "⏎"] {
        let has_color = |colored| {
            let mut state = state();
            press(&mut state, keys);
            let backend = drawn(&mut state, (80, 24), colored);
            let mut cells = backend.buffer().content().iter();
            cells.any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
        };
        assert!(has_color(true), "{keys:?}");
        assert!(!has_color(false), "{keys:?}");
    }
    let backend = drawn(&mut state(), (80, 24), false);
    let selected = &backend.buffer()[(0, 3)];
    assert!(selected.modifier.contains(Modifier::REVERSED));
}

#[test]
fn trouble_stands_in_place_of_the_keys() {
    let mut seen = sample();
    seen.watches = vec![WatchSnapshot {
        what: "services shop".into(),
        health: "lost".into(),
    }];
    let mut state = TopState::new(seen.clone());
    assert!(state.message().starts_with("watches lost: 1"));
    seen.credentials = Some(CredentialSnapshot {
        trouble: Some("the plugin failed".into()),
        ..CredentialSnapshot::default()
    });
    state.see(seen);
    assert_eq!(state.message(), "credentials: the plugin failed");
    state.miss("the proxy does not answer");
    assert_eq!(state.message(), "the proxy does not answer");
    state.see(sample());
    assert_eq!(state.message(), "");
    state.tell(told(JournalEvent::Dropped { events: 3 }));
    assert!(state.message().starts_with("3 events"));
}

// === snapshots and events ===

#[test]
fn services_count_what_is_open_and_what_was() {
    let mut state = state();
    state.tell(closed(2, "reviews:80", 50_000));
    state.tell(closed(88, "reviews:80", 50_000));
    state.tell(refusal("2026-01-02T03:04:06Z", "reviews:80"));
    press(&mut state, "2");
    let rows = state.rows();
    let reviews = rows.iter().find(|row| row.cells[0].text == "reviews:80");
    let cells = &reviews.unwrap().cells;
    let text: Vec<_> = cells.iter().map(|cell| cell.text.as_str()).collect();
    // The ended connection is still in the old snapshot, and is not counted twice.
    assert_eq!(text, ["reviews:80", "0", "2", "1", "0", "0", "2", "100k"]);
    let first = &rows[0].cells;
    assert_eq!((&*first[1].text, &*first[7].text), ("2", "41.2M"));
    assert_eq!(state.count(TopView::Connections), 3);
    // The newer snapshot does not contain it any more.
    let mut seen = sample();
    seen.connections.remove(1);
    state.see(seen);
    assert_eq!(state.count(TopView::Connections), 3);
}

#[test]
fn refusals_are_neither_lost_nor_twice() {
    let mut state = state();
    // The event is a duplicate: the first snapshot contains this refusal, which has another time there.
    let mut again = refusal("2026-01-02T03:04:06Z", "productpage:81");
    if let JournalEvent::ConnectionRefused { id, .. } = &mut again.event {
        *id = 900;
    }
    state.tell(again);
    assert_eq!(state.count(TopView::Refusals), 2);
    state.tell(refusal("2026-01-02T03:04:05.6Z", "new:80"));
    // Between the subscription and the snapshot, which contains only the last ten.
    state.tell(refusal("2026-01-02T03:04:03Z", "one-of-many:80"));
    press(&mut state, "4");
    let rows = state.rows();
    let targets: Vec<_> = rows.iter().map(|row| &*row.cells[1].text).collect();
    assert_eq!(
        targets,
        ["new:80", "one-of-many:80", "productpage:81", "notready:80"]
    );
}

#[test]
fn memory_is_bounded() {
    let mut state = state();
    for number in 0..5_000 {
        state.tell(closed(number, &format!("target-{number}:80"), 1));
        state.tell(refusal("2026-01-02T03:04:07Z", &format!("no-{number}:80")));
    }
    assert_eq!(state.count(TopView::Refusals), 1_000);
    state.see(JournalSnapshot::default());
    assert_eq!(state.count(TopView::Services), 1_000);
    press(&mut state, "2");
    assert!(firsts(&state).contains(&"target-4999:80".to_owned()));
    press(&mut state, "/");
    for _ in 0..1_000 {
        press(&mut state, "a");
    }
    assert_eq!(state.list().filter.len(), 100);
}

#[test]
fn amounts_have_five_columns() {
    let mut seen = sample();
    let mut bytes = 1_u64;
    while bytes < u64::MAX / 11 {
        for down in [bytes, bytes * 10 - 1, bytes / 2, 9_995 * (bytes / 10_000)] {
            seen.connections[0].down = down;
            seen.connections[0].down_rate = 0.0;
            let mut state = TopState::new(seen.clone());
            press(&mut state, "/productpage⏎");
            let rows = state.rows();
            let text = &rows.last().unwrap().cells[6].text;
            assert!(text.len() <= 5, "{down}: {text}");
        }
        bytes *= 10;
    }
}

// === keys ===

#[test]
fn keys_that_end_it() {
    for keys in ["q", "?q", "⏎q", "3q", ":q⏎", ":quit⏎"] {
        assert_eq!(press(&mut state(), keys), Some(KeyAction::Quit), "{keys}");
    }
    for mode in ["", "/", ":", "x", "?"] {
        let mut state = state();
        press(&mut state, mode);
        assert_eq!(control(&mut state, 'c'), Some(KeyAction::Quit), "{mode}");
    }
    let mut state = state();
    assert_eq!(press(&mut state, "/q"), None);
    assert_eq!(state.list().filter, "q");
    let f10 = KeyEvent::new(KeyCode::F(10), KeyModifiers::NONE);
    press(&mut state, "⏎");
    assert_eq!(state.key(f10), Some(KeyAction::Quit));
    assert_eq!(control(&mut state, 'l'), Some(KeyAction::Redraw));
}

#[test]
fn views_by_digit_tab_and_name() {
    use TopView::{Connections, Refusals, Services, Sessions};
    for (keys, view) in [
        ("", Connections),
        ("2", Services),
        ("4", Refusals),
        ("⇥⇥", Sessions),
        ("⇥⇥⇥⇥", Connections),
        (":svc⏎", Services),
        (":se⏎", Services),
        (":sess⏎", Sessions),
        (":ref⏎", Refusals),
        ("3:CONN⏎", Connections),
        ("3:conn⎋", Sessions),
        ("3:nothing⏎", Sessions),
        ("3:⏎", Sessions),
        ("⏎2", Services),
        ("?3", Sessions),
    ] {
        let mut state = state();
        press(&mut state, keys);
        assert_eq!((state.view(), state.mode()), (view, &Mode::List), "{keys}");
    }
    let mut state = state();
    state.key(KeyEvent::new(KeyCode::BackTab, KeyModifiers::SHIFT));
    assert_eq!(state.view(), Refusals);
}

#[test]
fn a_filter_is_typed_kept_and_cleared() {
    let mut state = state();
    press(&mut state, "/CURL");
    assert_eq!(state.rows().len(), 2, "any cell, in any case");
    press(&mut state, "⌫⌫⌫⌫revi⏎");
    assert_eq!(firsts(&state), ["reviews:80"]);
    // Each view has a filter of its own.
    press(&mut state, "2");
    assert_eq!(state.rows().len(), 3);
    press(&mut state, "1");
    assert_eq!(state.rows().len(), 1);
    press(&mut state, "⎋");
    assert_eq!(state.rows().len(), 4);
    press(&mut state, "/x⎋");
    assert_eq!(state.rows().len(), 4);
}

#[test]
fn sorted_by_any_column_both_ways() {
    let mut state = state();
    let ids = |state: &TopState| {
        let rows = state.rows().into_iter();
        let down = rows.map(|row| row.cells[6].text.clone());
        down.collect::<Vec<_>>()
    };
    assert_eq!(ids(&state), ["40.0M", "1.2M", "100k", "0"]);
    press(&mut state, "I");
    assert_eq!(ids(&state), ["0", "100k", "1.2M", "40.0M"]);
    // The column UP is sorted in descending order.
    press(&mut state, ">");
    assert_eq!(ids(&state), ["0", "40.0M", "100k", "1.2M"]);
    // Sorting wraps around to the targets; equal ones keep their order.
    press(&mut state, "<<<<<");
    assert_eq!(ids(&state), ["0", "1.2M", "40.0M", "100k"]);
    press(&mut state, "<");
    assert_eq!(
        ids(&state),
        ["0", "40.0M", "100k", "1.2M"],
        "the oldest first"
    );
}

#[test]
fn a_row_that_is_selected_is_followed() {
    let mut state = state();
    press(&mut state, "j⏎");
    assert_eq!(*state.mode(), Mode::Details("1".into()));
    press(&mut state, "⎋");
    let mut seen = sample();
    seen.connections[0].down_rate = 1e9;
    state.see(seen.clone());
    press(&mut state, "⏎");
    assert_eq!(*state.mode(), Mode::Details("1".into()), "now the first");
    // The details are still of the same connection when it ends; its place in the list goes to the next row.
    seen.connections.remove(0);
    state.see(seen);
    assert!(state.details("1").is_empty());
    assert!(screen(&mut state, (80, 24)).contains("It is not there any more."));
    press(&mut state, "⎋⏎");
    assert_eq!(*state.mode(), Mode::Details("3".into()));
    // Without a selection, the first row is selected whichever it is.
    press(&mut state, "⎋gI⏎");
    assert_eq!(*state.mode(), Mode::Details("4".into()));
    press(&mut state, "⎋Gk⏎");
    assert_eq!(*state.mode(), Mode::Details("2".into()));
}

#[test]
fn a_list_scrolls_with_its_selection() {
    let mut seen = sample();
    let target = |id| format!("target-{id:03}:80");
    seen.connections = (0..200)
        .map(|id| connection(id, &target(id), "", 0))
        .collect();
    let mut state = TopState::new(seen);
    let size = (80, 24);
    let has = |state: &mut TopState, id| screen(state, size).contains(&target(id));
    assert!(has(&mut state, 19) && !has(&mut state, 20));
    press(&mut state, "G");
    assert!(has(&mut state, 180) && has(&mut state, 199) && !has(&mut state, 179));
    control(&mut state, 'b');
    assert!(has(&mut state, 179) && has(&mut state, 198) && !has(&mut state, 199));
    press(&mut state, "g");
    assert!(has(&mut state, 0) && !has(&mut state, 20));
    control(&mut state, 'f');
    assert!(has(&mut state, 1) && has(&mut state, 20) && !has(&mut state, 0));
    // The selected row stays visible in larger and smaller windows.
    assert!(screen(&mut state, (80, 8)).contains(&target(20)));
    assert!(screen(&mut state, (80, 250)).contains(&target(0)));
}

#[test]
fn a_text_scrolls_to_its_end() {
    let mut state = state();
    press(&mut state, "?");
    assert!(!screen(&mut state, (40, 10)).contains("began."));
    press(&mut state, "G");
    assert!(screen(&mut state, (40, 10)).contains("began."));
    press(&mut state, "g");
    assert!(screen(&mut state, (40, 10)).contains("another view"));
}

#[test]
fn a_connection_is_cut_after_a_question() {
    for (keys, action) in [
        ("xy", Some(KeyAction::Cut(3))),
        ("jxy", Some(KeyAction::Cut(1))),
        ("j⏎xy", Some(KeyAction::Cut(1))),
        ("xn", None),
        ("xq", None),
        ("x⎋", None),
        ("x⏎", None),
        ("2xy", None),
        ("4xy", None),
        ("/nothing⏎xy", None),
    ] {
        let mut state = state();
        assert_eq!(press(&mut state, keys), action, "{keys}");
    }
    let mut state = state();
    control(&mut state, 'd');
    assert_eq!(*state.mode(), Mode::Cut(3));
    // The question keeps its connection even if another row is first now.
    let mut seen = sample();
    seen.connections[0].down_rate = 1e9;
    state.see(seen);
    assert_eq!(press(&mut state, "y"), Some(KeyAction::Cut(3)));
    press(&mut state, "3x");
    assert!(state.message().starts_with("only a connection"));
    press(&mut state, "j");
    assert_eq!(state.message(), "");
}
