//! `docs/clients.md`: its table is the last run's.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Passage;

const BEGIN: &str = "<!-- clients: begin -->\n";
const END: &str = "<!-- clients: end -->";

/// Puts the table between the two marks of the page.
///
/// # Errors
/// The page cannot be read or written, or has no marks.
pub fn write(page: &Path, passages: &[Passage]) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let (before, rest) = text.split_once(BEGIN).context("the page has no table")?;
    let (_, after) = rest
        .split_once(END)
        .context("the page's table has no end")?;
    fs::write(
        page,
        format!("{before}{BEGIN}{}{END}{after}", table(passages)),
    )?;
    Ok(())
}

fn table(passages: &[Passage]) -> String {
    let mut text =
        String::from("| client | listener | target | result | line |\n|---|---|---|---|---|\n");
    for Passage { client, failure } in passages {
        let result = match failure {
            None => "pass".to_owned(),
            Some(failure) => format!("**{}**", failure.replace('\n', " ").replace('|', "\\|")),
        };
        let _: std::fmt::Result = writeln!(
            text,
            "| {} | {} | {} | {result} | `{}` |",
            client.name,
            client.listener.name(),
            client.target,
            client.line.replace('|', "\\|")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::table::CLIENTS;
    use super::*;

    #[test]
    fn the_page_lists_the_table_s_clients_and_all_of_them_passed() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/clients.md");
        let text = fs::read_to_string(page).unwrap();
        let (_, rest) = text.split_once(BEGIN).unwrap();
        let (committed, _) = rest.split_once(END).unwrap();
        let passages: Vec<Passage> = CLIENTS
            .iter()
            .map(|client| Passage {
                client,
                failure: None,
            })
            .collect();
        assert_eq!(
            committed,
            table(&passages),
            "run: cargo run -p lab -- clients --page docs/clients.md"
        );
    }
}
