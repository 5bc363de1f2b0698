//! The links of the book lead somewhere: to a page that is in it, and to a heading that the page has.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

pub(crate) fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap()
}

/// What is read outside the book, as files of the repository.
const BESIDE: [&str; 3] = ["README.md", "CONTRIBUTING.md", "SECURITY.md"];

/// The pages of the book, in its order, and what is read beside it.
pub(crate) fn book() -> Vec<String> {
    let summary = std::fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let pages = links(&summary).into_iter().map(|to| format!("docs/{to}"));
    pages.chain(BESIDE.map(str::to_owned)).collect()
}

fn parser(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
}

fn links(text: &str) -> Vec<String> {
    let links = parser(text).filter_map(|event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            Some(dest_url.to_string())
        }
        _ => None,
    });
    links.collect()
}

/// The fragments of a page: those that mdBook and GitHub make of its headings, and those of its `<a id>`.
pub(crate) fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut seen = HashMap::<String, usize>::new();
    let mut heading = None;
    for event in parser(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                let id = slug(&heading.take().unwrap());
                let count = seen.entry(id.clone()).or_default();
                anchors.insert(match *count {
                    0 => id.clone(),
                    n => format!("{id}-{n}"),
                });
                *count += 1;
            }
            Event::Html(html) | Event::InlineHtml(html) => {
                if let Some((_, id)) = html.split_once("<a id=\"") {
                    anchors.insert(id.split('"').next().unwrap().to_owned());
                }
            }
            _ => {}
        }
    }
    anchors
}

fn slug(heading: &str) -> String {
    let letters = heading.chars().filter_map(|letter| match letter {
        ' ' => Some('-'),
        '-' | '_' => Some(letter),
        letter if letter.is_alphanumeric() => Some(letter),
        _ => None,
    });
    letters.flat_map(char::to_lowercase).collect()
}

#[test]
fn no_link_is_dead() {
    let mut dead = Vec::new();
    let mut count = 0;
    let pages = book();
    for name in pages.iter().map(String::as_str).chain(["docs/SUMMARY.md"]) {
        let path = root().join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        for to in links(&text) {
            if to.contains("://") || to.starts_with("mailto:") {
                continue;
            }
            count += 1;
            let (file, fragment) = to.split_once('#').unwrap_or((&to, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            let Ok(target) = target.canonicalize() else {
                dead.push(format!("{name}: there is no {to}"));
                continue;
            };
            // Of the pages the book has alone what is below `docs`.
            if name.starts_with("docs/") && !target.starts_with(root().join("docs")) {
                dead.push(format!("{name}: {to} is not in the book"));
            }
            let is_page = target.extension().is_some_and(|end| end == "md");
            let own = target.strip_prefix(root()).unwrap().to_str().unwrap();
            if is_page && !pages.iter().any(|page| page == own) && own != "CHANGELOG.md" {
                dead.push(format!("{name}: {to} is not in SUMMARY.md"));
            }
            if is_page && !fragment.is_empty() {
                let text = std::fs::read_to_string(&target).unwrap();
                if !anchors(&text).contains(fragment) {
                    dead.push(format!("{name}: {file} has no heading #{fragment}"));
                }
            }
        }
    }
    assert!(dead.is_empty(), "{}", dead.join("\n"));
    println!("{count} links lead somewhere");
    assert!(count > 100, "{count}");
}

#[test]
fn every_page_is_in_the_summary() {
    let pages = book();
    for folder in ["docs", "docs/decisions", "docs/performance"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            let name = format!("{folder}/{file}");
            if file.ends_with(".md") && file != "SUMMARY.md" {
                assert!(pages.contains(&name), "{name} is not in SUMMARY.md");
            }
        }
    }
}

/// The page of commands is made of the help that is agreed.
#[test]
fn every_command_is_in_the_reference() {
    let page = std::fs::read_to_string(root().join("docs/commands.md")).unwrap();
    let folder = "integration/tests/golden/help";
    let mut count = 0;
    for entry in std::fs::read_dir(root().join(folder)).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let include = format!("{{{{#include ../{folder}/{file}}}}}");
        assert!(page.contains(&include), "{include}");
        count += 1;
    }
    assert_eq!(page.matches("{{#include").count(), count);
}
