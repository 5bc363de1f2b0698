//! Text tables.

use unicode_width::UnicodeWidthStr as _;

use crate::out;

/// Separates columns by three spaces, as kubectl does. An empty cell is `-`, except in the first column.
pub(crate) fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let cell = |row: &Vec<String>, column: usize| match row.get(column).map(String::as_str) {
        Some("") | None if column > 0 => "-".to_owned(),
        text => out::escaped(text.unwrap_or_default()).into_owned(),
    };
    let width = |column| {
        let cells = rows.iter().map(|row| cell(row, column).width());
        cells.max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = widths.iter().enumerate();
        let cells = cells.map(|(column, width)| {
            let cell = cell(row, column);
            let padding = " ".repeat(width - cell.width());
            cell + &padding
        });
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_begin_below_each_other() {
        let rows = [
            ["NAME", "PORTS", "READY"],
            ["商店", "80(http)", "1"],
            ["cafe\u{301}", "", "商"],
        ];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(
            align(&rows),
            "NAME   PORTS      READY\n\
             商店   80(http)   1\n\
             cafe\u{301}   -          商\n"
        );
    }
}
