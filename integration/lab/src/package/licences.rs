//! The licences of all that is in the program, in one text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tokio::process::Command;

use crate::command::output;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: String,
    /// None of our own.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// Nothing for one that is linked.
    kind: Option<String>,
}

/// What the files of a licence begin with, in capitals.
const FILES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"];

/// Of the program as it is built here: what it links on this system, and nothing that only builds or tests it.
pub(super) async fn of(repository: &Path) -> Result<String> {
    let mut cargo = Command::new("cargo");
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    cargo.current_dir(repository).args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        &target,
    ]);
    let metadata: Metadata = serde_json::from_str(&output(&mut cargo).await?)?;
    let nodes: BTreeMap<&str, &Node> = metadata
        .resolve
        .nodes
        .iter()
        .map(|node| (&*node.id, node))
        .collect();
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|p| (&*p.id, p)).collect();
    let program = metadata
        .packages
        .iter()
        .find(|p| p.name == "kubevpn" && p.source.is_none());
    let mut left = vec![&*program.context("there is no package kubevpn")?.id];
    let mut linked = BTreeSet::new();
    while let Some(id) = left.pop() {
        if linked.insert(id) {
            let dependencies = nodes[id].deps.iter();
            let normal = dependencies.filter(|d| d.dep_kinds.iter().any(|k| k.kind.is_none()));
            left.extend(normal.map(|d| &*d.pkg));
        }
    }
    let mut theirs: Vec<&Package> = linked
        .iter()
        .map(|id| packages[id])
        .filter(|p| p.source.is_some())
        .collect();
    theirs.sort_by_key(|package| (&package.name, &package.version));
    let mut texts = BTreeMap::<String, Vec<String>>::new();
    let mut list = String::new();
    for package in &theirs {
        let name = format!("{} {}", package.name, package.version);
        let licence = package.license.as_deref().unwrap_or("see its file");
        writeln!(list, "{name}: {licence}")?;
        let folder = Path::new(&package.manifest_path)
            .parent()
            .context("a manifest is in a folder")?;
        for file in fs::read_dir(folder)? {
            let file = file?;
            let called = file.file_name().to_string_lossy().to_uppercase();
            if file.file_type()?.is_file() && FILES.iter().any(|begin| called.starts_with(begin)) {
                let text = String::from_utf8_lossy(&fs::read(file.path())?)
                    .trim_end()
                    .to_owned();
                texts.entry(text).or_default().push(name.clone());
            }
        }
    }
    let mut all = format!("{} libraries are in this program.\n\n{list}", theirs.len());
    for (text, mut names) in texts {
        names.sort();
        let rule = "=".repeat(80);
        write!(all, "\n{rule}\n{}\n{rule}\n\n{text}\n", names.join(", "))?;
    }
    Ok(all)
}
