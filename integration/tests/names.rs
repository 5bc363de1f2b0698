//! A type name is used once in the workspace: a second type of the same name cannot be told from the first in a sentence, a log
//! or the result of a search.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::words::declared;
use crate::{root, sources};

/// The names that several types have, and why the same word is right for each of them.
const REPEATED: [(&str, &str); 7] = [
    (
        "Args",
        "the command line of a program: kubevpn, lab, benches",
    ),
    (
        "Cluster",
        "a Kubernetes cluster, as kubevpn-cluster has it and as kubevpn-embed has it, its facade",
    ),
    (
        "Command",
        "the subcommands of a program: kubevpn, lab; clap's word",
    ),
    (
        "Config",
        "the limits of a protocol, as h2 and quinn name theirs: kubevpn-portforward, kubevpn-spdy",
    ),
    ("ServeError", "why a frontend's `serve` ended with an error"),
    ("Settings", "the settings of a crate or of one frontend"),
    ("Stats", "the counters of a crate, at one moment"),
];

/// The types that a file declares outside of its tests.
fn types(text: &str) -> impl Iterator<Item = &str> {
    let tests = text
        .match_indices("\n#[cfg(test)]\nmod ")
        .find(|(at, _)| text[*at..].lines().nth(2).is_some_and(|l| l.ends_with('{')));
    let code = tests.map_or(text, |(at, _)| &text[..at]);
    code.lines().filter_map(declared)
}

#[test]
fn types_of_tests_are_left_out() {
    let text = "struct A;\n#[cfg(test)]\nmod fake;\nenum B {}\n#[cfg(test)]\nmod tests {\n    struct C;\n}\n";
    assert_eq!(types(text).collect::<Vec<_>>(), ["A", "B"]);
}

fn is_test(file: &Path) -> bool {
    file.components()
        .any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs")))
}

#[test]
fn a_type_name_is_used_once() {
    let root = root();
    let mut declared = BTreeMap::<String, BTreeSet<String>>::new();
    for folder in ["frontends", "backend", "bin", "integration"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let src = entry.unwrap().path().join("src");
            let files = if src.is_dir() {
                sources(&src)
            } else {
                Vec::new()
            };
            for file in files {
                let path = file.strip_prefix(&root).unwrap();
                if is_test(path) {
                    continue;
                }
                let text = std::fs::read_to_string(&file).unwrap();
                for name in types(&text) {
                    let files = declared.entry(name.to_owned()).or_default();
                    files.insert(path.display().to_string());
                }
            }
        }
    }
    assert!(declared.len() > 1000, "{}", declared.len());
    let repeated: BTreeMap<&str, _> = declared
        .iter()
        .filter(|(_, files)| files.len() > 1)
        .map(|(name, files)| (name.as_str(), files))
        .collect();
    let allowed: BTreeSet<&str> = REPEATED.iter().map(|(name, _)| *name).collect();
    let new: BTreeMap<_, _> = repeated
        .iter()
        .filter(|(name, _)| !allowed.contains(*name))
        .collect();
    assert!(
        new.is_empty(),
        "call each type what it is, by docs/glossary.md: {new:#?}"
    );
    let old: Vec<_> = allowed
        .iter()
        .filter(|name| !repeated.contains_key(*name))
        .collect();
    assert!(old.is_empty(), "allowed and not repeated: {old:?}");
}
