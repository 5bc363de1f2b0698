//! Tables of a page that a run rewrites, between two marks.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Replaces what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
///
/// # Errors
/// The page cannot be read or written, or has no such marks.
pub fn write_section(page: &Path, name: &str, text: &str) -> Result<()> {
    let old = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let new = replaced(&old, name, text)
        .with_context(|| format!("{} has no marks for {name}", page.display()))?;
    Ok(fs::write(page, new)?)
}

/// Text as the content of one cell of a Markdown table: on one line, with `|` escaped.
pub(crate) fn table_cell(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

fn replaced(page: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->"),
    );
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{text}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_ends_no_row() {
        assert_eq!(
            table_cell("ssh: a | b\nexit status: 255\n"),
            "ssh: a \\| b exit status: 255"
        );
    }

    #[test]
    fn one_section_is_replaced() {
        let page =
            "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n<!-- y: begin -->\n<!-- y: end -->\n";
        let new = replaced(page, "x", "new\n").unwrap();
        assert_eq!(new, page.replace("old", "new"));
        assert_eq!(replaced(page, "z", "new\n"), None);
    }
}
