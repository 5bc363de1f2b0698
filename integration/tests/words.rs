//! The glossary and the architecture page name what there is: types, files, folders.

use std::collections::BTreeSet;

use crate::{root, sources};

/// The type that a line declares. rustfmt leaves a declaration's keywords and name on one line.
pub(crate) fn declared(line: &str) -> Option<&str> {
    let is_item = !line.starts_with(' ');
    let mut words = line.split_whitespace().peekable();
    if words.peek().is_some_and(|word| word.starts_with("pub")) {
        let visibility = words.next()?;
        // `pub(in path)`
        if visibility.contains('(') && !visibility.contains(')') {
            words.next()?;
        }
    }
    let rest = match (words.next()?, is_item) {
        ("struct" | "enum" | "trait" | "union", _) => words.next()?,
        // Indented, it is an associated type, which the trait names.
        ("type", true) => words.next()?,
        _ => return None,
    };
    let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
    Some(&rest[..end.unwrap_or(rest.len())]).filter(|name| !name.is_empty())
}

#[test]
fn a_declaration_is_found() {
    assert_eq!(declared("pub struct Target {"), Some("Target"));
    assert_eq!(declared("    pub(crate) enum Phase<T> {"), Some("Phase"));
    assert_eq!(
        declared("pub(in crate::pool) struct Seat(u8);"),
        Some("Seat")
    );
    assert_eq!(declared("type Outcome = ();"), Some("Outcome"));
    assert_eq!(declared("    type Error = BoxError;"), None);
    assert_eq!(declared("    structure: u8,"), None);
    assert_eq!(declared("/// struct Target"), None);
}

/// The types that the crates in these folders declare.
fn types(folders: &[&str]) -> BTreeSet<String> {
    let mut types = BTreeSet::new();
    for folder in folders {
        for krate in std::fs::read_dir(root().join(folder)).unwrap() {
            for file in sources(&krate.unwrap().path().join("src")) {
                let text = std::fs::read_to_string(&file).unwrap();
                types.extend(text.lines().filter_map(declared).map(str::to_owned));
            }
        }
    }
    types
}

/// The `code` of a page, without its fenced blocks.
fn code(page: &str) -> Vec<String> {
    let mut spans = Vec::new();
    for event in pulldown_cmark::Parser::new_ext(page, pulldown_cmark::Options::ENABLE_TABLES) {
        if let pulldown_cmark::Event::Code(text) = event {
            spans.push(text.to_string());
        }
    }
    spans
}

/// Whether a piece of code is the path of a file or a folder of the repository.
fn is_path(code: &str) -> bool {
    let is_file = [".rs", ".md", ".toml", ".json", ".yaml", ".js"]
        .iter()
        .any(|end| code.ends_with(end));
    let begins = [
        "frontends/",
        "backend/",
        "bin/",
        "integration/",
        "docs/",
        "deploy/",
    ];
    !code.contains(' ') && (is_file || begins.iter().any(|begin| code.starts_with(begin)))
}

#[test]
fn the_files_of_the_architecture_page_are_there() {
    let root = root();
    let page = std::fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let paths: BTreeSet<String> = code(&page).into_iter().filter(|c| is_path(c)).collect();
    assert!(paths.len() > 80, "{}", paths.len());
    for path in paths {
        assert!(root.join(&path).exists(), "there is no {path}");
    }
}

/// The picture of folders: two spaces for each level, a name, and what it is for.
#[test]
fn the_folders_of_the_architecture_page_are_those_of_the_repository() {
    let root = root();
    let page = std::fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let (_, section) = page.split_once("\n## The folders\n").unwrap();
    let picture = section.split("```").nth(1).unwrap();
    let mut above = Vec::new();
    let mut pictured = BTreeSet::new();
    for line in picture.lines().skip(1) {
        let name = line.split_whitespace().next().unwrap();
        let depth = (line.len() - line.trim_start().len()) / 2;
        above.truncate(depth);
        above.push(name);
        let path = above.join("/");
        assert!(root.join(&path).exists(), "there is no {path}");
        pictured.insert(path);
    }
    for folder in ["frontends", "backend", "bin", "integration"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_dir() {
                let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
                assert!(pictured.contains(&path), "{path} is not in the picture");
            }
        }
    }
}

/// A word of the glossary is a name of the code, where the code has one.
#[test]
fn the_types_and_files_of_the_glossary_are_there() {
    let root = root();
    let types = types(&["frontends", "backend", "bin"]);
    assert!(types.len() > 500, "{}", types.len());
    let page = std::fs::read_to_string(root.join("docs/glossary.md")).unwrap();
    let mut count = 0;
    let mut words = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let word = cells[1];
        assert!(
            word == "word" || words.insert(word),
            "{word} is there twice"
        );
        for name in code(cells[3]) {
            count += 1;
            let is_there = match is_path(&name) {
                true => root.join(&name).exists(),
                false => types.contains(name.split("::").next().unwrap()),
            };
            assert!(is_there, "{word}: there is no {name}");
        }
    }
    assert!(count > 50, "{count}");
}
