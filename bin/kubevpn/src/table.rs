//! Text tables.

use crate::out;

/// Separates columns by three spaces, as kubectl does. An empty cell is `-`, except in the first column.
pub(crate) fn align(rows: &[Vec<String>]) -> String {
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
