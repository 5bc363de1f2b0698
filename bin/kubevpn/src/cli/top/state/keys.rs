//! The keys of `top`.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{Mode, TopState};
use crate::cli::top::columns::{TopView, VIEWS};

/// Upper bound on the length of typed text.
const TYPED: usize = 100;

/// An action of a key that needs more than the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli::top) enum KeyAction {
    Quit,
    Cut(u64),
    /// Redraws the whole screen.
    Redraw,
}

impl TopState {
    /// Takes a key, and returns the action that it needs.
    pub(in crate::cli::top) fn key(&mut self, key: KeyEvent) -> Option<KeyAction> {
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
