//! `docs/clients.md`: its table is the last run's.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::Passage;
use crate::section::table_cell;

const BEGIN: &str = "<!-- clients: begin -->\n";
const END: &str = "<!-- clients: end -->";

/// Puts the table between the two marks of the page.
///
/// # Errors
/// The page cannot be read or written, or has no marks, or a client of it that passed is not among these.
pub fn write(page: &Path, passages: &[Passage]) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let (before, rest) = text.split_once(BEGIN).context("the page has no table")?;
    let (old, after) = rest
        .split_once(END)
        .context("the page's table has no end")?;
    let gone = gone(old, passages);
    ensure!(
        gone.is_empty(),
        "{} no longer in the matrix, and once got through: take that off {} by hand, if it is meant",
        gone.join("; "),
        page.display()
    );
    fs::write(
        page,
        format!("{before}{BEGIN}{}{END}{after}", table(passages)),
    )?;
    Ok(())
}

/// The clients of a table that passed, and are not among these.
fn gone(old: &str, passages: &[Passage]) -> Vec<String> {
    let listed: Vec<[&str; 3]> = passages.iter().map(|p| p.client.key()).collect();
    old.lines()
        .filter_map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
            let (key, result) = (cells.get(..3)?, cells.get(3)?);
            let passed = *result == "pass" && !listed.iter().any(|listed| listed == key);
            passed.then(|| key.join(", "))
        })
        .collect()
}

fn table(passages: &[Passage]) -> String {
    let mut text =
        String::from("| client | listener | target | result | line |\n|---|---|---|---|---|\n");
    for Passage { client, failure } in passages {
        let [name, listener, target] = client.key();
        let result = match failure {
            None => "pass".to_owned(),
            Some(failure) => format!("**{}**", table_cell(failure)),
        };
        let _: std::fmt::Result = writeln!(
            text,
            "| {name} | {listener} | {target} | {result} | `{}` |",
            table_cell(client.line)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::table::CLIENTS;
    use super::*;

    fn passages(clients: &'static [super::super::TestedClient]) -> Vec<Passage> {
        let passed = |client| Passage {
            client,
            failure: None,
        };
        clients.iter().map(passed).collect()
    }

    #[test]
    fn who_passed_does_not_vanish() {
        let keys: BTreeSet<_> = CLIENTS.iter().map(|client| client.key()).collect();
        assert_eq!(keys.len(), CLIENTS.len(), "two clients are called the same");
        let old = table(&passages(CLIENTS));
        let missing = &CLIENTS[0].key().join(", ");
        assert!(gone(&old, &passages(CLIENTS)).is_empty());
        assert_eq!(
            gone(&old, &passages(&CLIENTS[1..])),
            std::slice::from_ref(missing)
        );
        let failed = old.replacen("| pass |", "| **no** |", 1);
        assert!(gone(&failed, &passages(&CLIENTS[1..])).is_empty());

        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("before\n{BEGIN}{old}{END}\nafter\n");
        fs::write(&file, &text).unwrap();
        let error = write(file.path(), &passages(&CLIENTS[1..])).unwrap_err();
        assert!(error.to_string().contains(missing), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        write(file.path(), &passages(CLIENTS)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
    }

    #[test]
    fn the_page_lists_the_table_s_clients_and_all_of_them_passed() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/clients.md");
        let text = fs::read_to_string(page).unwrap();
        let (_, rest) = text.split_once(BEGIN).unwrap();
        let (committed, _) = rest.split_once(END).unwrap();
        assert_eq!(
            committed,
            table(&passages(CLIENTS)),
            "run: cargo run -p lab -- clients --page docs/clients.md"
        );
    }
}
