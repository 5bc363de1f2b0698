//! The columns of each view of `top`, and the cells of a row.
//!
//! All text of a row comes from outside, and is escaped when the row is made.

use std::cmp::Ordering;

use crate::age::age;
use crate::out::escaped;

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
    pub(super) fn named(word: &str) -> Option<Self> {
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
    pub(super) fn text(text: &str) -> Self {
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

    pub(super) fn count(count: u64) -> Self {
        Self::number(count.to_string(), count as f64)
    }

    pub(super) fn amount(bytes: f64) -> Self {
        Self::number(amount(bytes), bytes)
    }

    pub(super) fn age(seconds: f64) -> Self {
        Self::number(age(seconds.max(0.0) as u64), seconds)
    }

    pub(super) fn cmp(&self, other: &Self) -> Ordering {
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
    pub(super) key: String,
    pub(super) cells: Vec<Cell>,
    /// Whether the row is highlighted as a problem.
    pub(super) alarming: bool,
}

/// An amount of bytes in at most five characters.
pub(super) fn amount(bytes: f64) -> String {
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
