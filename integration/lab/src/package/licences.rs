//! The licences of all libraries in the program, as one text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use tokio::process::Command;

use crate::command::output;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<LicensedPackage>,
}

#[derive(Deserialize)]
struct LicensedPackage {
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: PathBuf,
}

/// Names and versions of libraries.
pub(super) type Libraries = BTreeSet<(String, String)>;

/// Prefixes of the names of licence files, in capitals.
const FILES: [&str; 6] = [
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "UNLICENSE",
];

/// Extensions of files that have such a prefix and are no licences.
const SOURCES: [&str; 8] = ["rs", "c", "h", "py", "json", "toml", "yml", "yaml"];

/// Folders of a library that are not linked.
const NOT_LINKED: [&str; 4] = ["tests", "benches", "examples", "fuzz"];

/// Third-party libraries linked for one target: no build scripts and no macros, and only with the release's features.
pub(super) async fn libraries(repository: &Path, target: &str) -> Result<Libraries> {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(repository)
        .args(["tree", "--locked", "-p", "kubevpn", "--target", target])
        .args(["-e", "normal,no-proc-macro", "--prefix", "none"])
        .args(["--format", "{p}"]);
    let tree = output(&mut cargo).await?;
    let linked = tree.lines().filter_map(library).collect();
    Ok(linked)
}

/// Name and version in a line of `cargo tree`, such as `name v1.2.3`; `None` for a package of this repository, whose line has a
/// path.
fn library(line: &str) -> Option<(String, String)> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    let version = words.next()?.strip_prefix('v')?;
    let is_own = words.any(|word| word.starts_with("(/"));
    (!is_own).then(|| (name.to_owned(), version.to_owned()))
}

/// The text: a list of the libraries with the licence of each, then each licence once, with its libraries.
///
/// # Errors
/// A library has no licence text.
pub(super) async fn of(repository: &Path, target: &str) -> Result<String> {
    let libraries = libraries(repository, target).await?;
    ensure!(
        !libraries.is_empty(),
        "cargo tree has no library for {target}"
    );
    let mut cargo = Command::new("cargo");
    cargo.current_dir(repository).args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        target,
    ]);
    let metadata: Metadata = serde_json::from_str(&output(&mut cargo).await?)?;
    let own = fs::read_to_string(repository.join("LICENSE"))?;
    let mut texts = BTreeMap::<String, Vec<String>>::new();
    let mut list = String::new();
    for (name, version) in &libraries {
        let package = metadata
            .packages
            .iter()
            .find(|it| it.name == *name && it.version == *version)
            .with_context(|| format!("cargo metadata has no {name} {version}"))?;
        let called = format!("{name} {version}");
        let licence = package.license.as_deref().unwrap_or("see its text");
        writeln!(list, "{called}: {licence}")?;
        let folder = package
            .manifest_path
            .parent()
            .context("a manifest is in a folder")?;
        let mut found = BTreeSet::new();
        gather(folder, &mut found)?;
        if found.is_empty() {
            found.insert(text_of(licence, &own).with_context(|| {
                format!("{called} is published without the text of its licence, {licence}")
            })?);
        }
        for text in found {
            texts.entry(text).or_default().push(called.clone());
        }
    }
    let mut all = format!(
        "{} libraries are in this program, and the standard library of Rust.\n\n{list}",
        libraries.len()
    );
    let standard = standard_library().await?;
    let mut sections: Vec<(String, &str)> = texts
        .iter()
        .map(|(text, names)| (names.join(", "), &**text))
        .collect();
    sections.push(("Rust's standard library".to_owned(), &standard));
    let musl;
    if target.ends_with("musl") {
        // Licence file of Debian's musl, which is linked into the program.
        let file = "/usr/share/doc/musl/copyright";
        musl = fs::read_to_string(file).with_context(|| format!("{file}: install musl-tools"))?;
        sections.push(("musl, the C library".to_owned(), musl.trim_end()));
    }
    for (names, text) in sections {
        let rule = "=".repeat(80);
        write!(all, "\n{rule}\n{names}\n{rule}\n\n{text}\n")?;
    }
    Ok(all)
}

/// Collects the licence texts in a library's folder, and those of the C libraries below it.
fn gather(folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type()?;
        if kind.is_dir() && !NOT_LINKED.contains(&&*name) {
            gather(&entry.path(), found)?;
        }
        if kind.is_file() && is_licence(&name) {
            let text = fs::read(entry.path())?;
            found.insert(String::from_utf8_lossy(&text).trim_end().to_owned());
        }
    }
    Ok(())
}

fn is_licence(file: &str) -> bool {
    let begins = FILES.iter().any(|it| file.to_uppercase().starts_with(it));
    let end = Path::new(file).extension().and_then(|end| end.to_str());
    begins && !end.is_some_and(|end| SOURCES.contains(&end))
}

/// The text for a library that only names its licence: Apache-2.0, the only licence whose text is the same for every library.
fn text_of(licence: &str, apache: &str) -> Result<String> {
    match licence.split([' ', '/']).any(|id| id == "Apache-2.0") {
        true => Ok(apache.trim_end().to_owned()),
        false => bail!("only Apache-2.0 can be put in its place: find the text at its source"),
    }
}

/// The licences of the standard library, as shipped with the compiler.
async fn standard_library() -> Result<String> {
    let root = output(Command::new("rustc").args(["--print", "sysroot"])).await?;
    let page = Path::new(root.trim()).join("share/doc/rust/COPYRIGHT-library.html");
    let page = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    Ok(text_of_page(&page))
}

/// The text of an HTML page: without tags and repeated empty lines, and with entities replaced.
fn text_of_page(page: &str) -> String {
    let mut text = String::new();
    for (n, part) in page.split('<').enumerate() {
        let shown = if n == 0 {
            Some(part)
        } else {
            part.split_once('>').map(|it| it.1)
        };
        text.push_str(shown.unwrap_or_default());
    }
    for (name, character) in [
        ("&#60;", "<"),
        ("&#62;", ">"),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#38;", "&"),
        ("&amp;", "&"),
    ] {
        text = text.replace(name, character);
    }
    let mut lines = Vec::new();
    for line in text.lines().map(str::trim_end) {
        if !line.is_empty() || lines.last().is_some_and(|last: &&str| !last.is_empty()) {
            lines.push(line);
        }
    }
    lines.join("\n").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_of_others() {
        let of = |line| library(line).map(|(name, version)| format!("{name}={version}"));
        assert_eq!(of("adler2 v2.0.1").as_deref(), Some("adler2=2.0.1"));
        assert_eq!(of("adler2 v2.0.1 (*)").as_deref(), Some("adler2=2.0.1"));
        assert_eq!(of("kubevpn v0.1.0 (/src/kubevpn/bin/kubevpn)"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn licences_are_told_from_sources() {
        for file in [
            "LICENSE",
            "LICENSE-MIT",
            "licence.md",
            "COPYING",
            "LICENSE.Apache-2.0",
        ] {
            assert!(is_licence(file), "{file}");
        }
        for file in ["license.rs", "README.md", "license.yml"] {
            assert!(!is_licence(file), "{file}");
        }
    }

    #[test]
    fn a_library_below_another_is_found_and_its_tests_are_not() {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("LICENSE", "ours\n"),
            ("jemalloc/COPYING", "theirs\n"),
            ("tests/LICENSE", "of a test\n"),
        ] {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mut found = BTreeSet::new();
        gather(folder.path(), &mut found).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["ours", "theirs"]);
    }

    #[test]
    fn only_a_text_that_is_the_same_for_everybody_is_put_in() {
        assert_eq!(text_of("MIT OR Apache-2.0", "text\n").unwrap(), "text");
        assert!(text_of("MIT", "text").is_err());
    }

    #[test]
    fn a_page_is_its_text() {
        let page = "<html><p>A &#60;b&#62;</p>\n\n\n<pre>&#34;C&#34; &#38; d\n</pre></html>";
        assert_eq!(text_of_page(page), "A <b>\n\n\"C\" & d");
    }
}
