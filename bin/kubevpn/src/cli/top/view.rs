//! The screen of `top`: two lines with totals and views, then rows or a text, then a line for keys, questions and typed text.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row as Cells, Table, Wrap};

use super::columns::{Column, VIEWS};
use super::state::{Mode, TopState};

/// Width in columns below which titles are shortened.
const NARROW: u16 = 64;
/// Columns between two cells.
const GAP: u16 = 1;
const KEYS: &str = "? help  q quit  Tab view  / filter  Enter details  x cut  < > sort  : command";
const DETAIL_KEYS: &str = "Esc back  ? help  q quit  x cut";
const HELP: &str = "\
1 2 3 4, Tab, arrows   another view
:NAME                  a view by its name: :conn, :svc, :sess, :ref; :q quits
Down Up, j k           next and previous row
PgDn PgUp, ^F ^B       by a screen
Home End, g G          first and last row
Enter                  everything about a row; Esc goes back
/TEXT                  only rows with TEXT; Esc shows all again
> <, F6                sort by the next or previous column
I                      the other way round
x, ^D, F9              cut a connection, after a question
^L                     draw the screen again
?, h, F1               this help
q, ^C, F10             quit

UP is towards the cluster. 1.2M are 1,200,000 bytes.
A row that is selected is followed; the first row is whichever is first.
Services count connections and refusals since top began.";

/// Whether colors are used. No information is in a color alone.
#[derive(Clone, Copy)]
pub(super) struct Theme {
    pub(super) colored: bool,
}

impl Theme {
    fn color(self, color: Color) -> Style {
        match self.colored {
            true => Style::new().fg(color),
            false => Style::new(),
        }
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

pub(super) fn draw(frame: &mut Frame<'_>, state: &mut TopState, theme: Theme) {
    let line = Constraint::Length(1);
    let rows = Layout::vertical([line, line, Constraint::Fill(1), line]);
    let [totals, views, body, last] = rows.areas(frame.area());
    frame.render_widget(Line::styled(state.headline(), BOLD), totals);
    draw_views(frame, state, theme, views);
    match state.mode() {
        Mode::Help => draw_text(frame, state, HELP.lines().map(Line::raw).collect(), body),
        Mode::Details(key) => {
            let text = details(&state.details(key));
            draw_text(frame, state, text, body);
        }
        _ => draw_rows(frame, state, theme, body),
    }
    draw_last(frame, state, theme, last);
}

fn draw_views(frame: &mut Frame<'_>, state: &TopState, theme: Theme, area: Rect) {
    let mut spans = Vec::new();
    for (view, digit) in VIEWS.into_iter().zip(1..) {
        let title = match area.width < NARROW {
            true => view.title().get(..4).unwrap_or_default(),
            false => view.title(),
        };
        let style = match view == state.view() {
            true => theme.color(Color::Cyan).patch(BOLD).patch(REVERSED),
            false => Style::new(),
        };
        let count = state.count(view);
        spans.push(Span::styled(format!(" {digit} {title} {count} "), style));
    }
    frame.render_widget(Line::from(spans), area);
}

fn draw_rows(frame: &mut Frame<'_>, state: &mut TopState, theme: Theme, area: Rect) {
    let height = usize::from(area.height.saturating_sub(1));
    let (rows, selected) = state.window(height);
    let all = state.view().columns();
    let columns = columns(all, area.width);
    let list = state.list();
    let titles = columns.iter().map(|(index, _)| {
        let mark = match (*index == list.sort, list.descending) {
            (false, _) => "",
            (true, true) => "▼",
            (true, false) => "▲",
        };
        aligned(format!("{}{mark}", all[*index].title), &all[*index])
    });
    let header = Cells::new(titles).style(theme.color(Color::Cyan).patch(BOLD));
    let lines = rows.into_iter().enumerate().map(|(at, mut row)| {
        let alarm = match row.alarming {
            true => theme.color(Color::Yellow).patch(BOLD),
            false => Style::new(),
        };
        let style = match selected == Some(at) {
            true => alarm.patch(REVERSED),
            false => alarm,
        };
        let cells = columns.iter().map(|(index, _)| {
            let text = std::mem::take(&mut row.cells[*index].text);
            aligned(text, &all[*index])
        });
        Cells::new(cells.collect::<Vec<_>>()).style(style)
    });
    let widths = columns.iter().map(|(_, width)| Constraint::Length(*width));
    let table = Table::new(lines, widths).header(header).column_spacing(GAP);
    frame.render_widget(table, area);
}

fn aligned(text: String, column: &Column) -> Line<'static> {
    match column.is_number() {
        true => Line::from(text).right_aligned(),
        false => Line::from(text),
    }
}

/// Indices of the columns that fit, with their widths.
fn columns(all: &[Column], room: u16) -> Vec<(usize, u16)> {
    let mut by_rank: Vec<_> = (0..all.len()).collect();
    by_rank.sort_by_key(|index| all[*index].rank);
    let mut left = room.saturating_add(GAP);
    by_rank.retain(|index| {
        let needed = all[*index].width + GAP;
        let fits = needed <= left || all[*index].rank == 0;
        left = left.saturating_sub(if fits { needed } else { 0 });
        fits
    });
    by_rank.sort_unstable();
    let mut shares: u16 = by_rank.iter().map(|index| all[*index].grow).sum();
    let widths = by_rank.into_iter().map(|index| {
        let column = &all[index];
        let more = left.saturating_mul(column.grow);
        let more = more.checked_div(shares).unwrap_or_default();
        (left, shares) = (left - more, shares - column.grow);
        (index, column.width + more)
    });
    widths.collect()
}

fn details(about: &[(&'static str, String)]) -> Vec<Line<'static>> {
    if about.is_empty() {
        return vec![Line::raw("It is not there any more.")];
    }
    let about = about.iter().filter(|(_, text)| !text.is_empty());
    let line = |(label, text): &(&'static str, String)| {
        Line::from(vec![
            Span::styled(format!("{label:<12} "), BOLD),
            Span::raw(text.clone()),
        ])
    };
    about.map(line).collect()
}

fn draw_text(frame: &mut Frame<'_>, state: &mut TopState, text: Vec<Line<'_>>, area: Rect) {
    let text = Paragraph::new(text).wrap(Wrap { trim: false });
    // Scrolling stops when the last line is visible.
    let lines = text.line_count(area.width);
    state.scroll = state.scroll.min(lines.saturating_sub(area.height.into()));
    let scroll = u16::try_from(state.scroll).unwrap_or(u16::MAX);
    frame.render_widget(text.scroll((scroll, 0)), area);
}

fn draw_last(frame: &mut Frame<'_>, state: &TopState, theme: Theme, area: Rect) {
    let message = state.message();
    let filter = &state.list().filter;
    let (text, is_typed) = match state.mode() {
        Mode::Cut(id) => (state.question(*id), false),
        Mode::Filter => (format!("/{filter}"), true),
        Mode::Command(word) => (format!(":{word}"), true),
        _ if !message.is_empty() => (message, false),
        Mode::Details(_) | Mode::Help => (DETAIL_KEYS.to_owned(), false),
        Mode::List if !filter.is_empty() => {
            let keys = format!("Esc shows all  {KEYS}");
            (format!("/{filter}  {keys}"), false)
        }
        Mode::List => (KEYS.to_owned(), false),
    };
    let line = Line::styled(text, theme.color(Color::Cyan));
    if is_typed && area.width > 0 {
        let end = u16::try_from(line.width()).unwrap_or(u16::MAX);
        let end = area.x + end.min(area.width - 1);
        frame.set_cursor_position(Position::new(end, area.y));
    }
    frame.render_widget(line, area);
}
