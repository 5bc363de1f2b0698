//! What is stated twice agrees.

mod api;
mod names;
mod words;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_crate_table_of_the_architecture_page_is_the_workspace() {
    let page = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let in_page: BTreeSet<(String, String)> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('`');
            let name = cells.next()?;
            let folder = cells.nth(1)?;
            Some((name.to_owned(), folder.to_owned()))
        })
        .collect();
    let root = root();
    let in_workspace: BTreeSet<(String, String)> = metadata()["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let manifest = Path::new(package["manifest_path"].as_str().unwrap());
            let folder = manifest.parent().unwrap().strip_prefix(&root).unwrap();
            (
                package["name"].as_str().unwrap().to_owned(),
                folder.to_str().unwrap().to_owned(),
            )
        })
        .collect();
    assert_eq!(in_page, in_workspace);
}

/// Apache-2.0 section 4 asks for it, and cargo packages nothing from outside a crate's folder but by a link.
#[test]
fn each_published_package_has_the_licence() {
    let licence = std::fs::read_to_string(root().join("LICENSE")).unwrap();
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let published = packages.filter(|package| package["publish"].is_null());
    let mut count = 0;
    for package in published {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let own = std::fs::read_to_string(manifest.with_file_name("LICENSE"));
        assert_eq!(own.ok().as_ref(), Some(&licence), "{}", manifest.display());
        count += 1;
    }
    assert!(count > 10);
}

/// The edges between our own crates; what is not here is not allowed. Dev-dependencies are free.
#[test]
fn dependencies_point_one_way() {
    let allowed: &[(&str, &[&str])] = &[
        ("kubevpn-target", &[]),
        ("kubevpn-conn", &["kubevpn-target"]),
        ("kubevpn-socks5", &["kubevpn-conn", "kubevpn-target"]),
        ("kubevpn-http-connect", &["kubevpn-conn", "kubevpn-target"]),
        ("kubevpn-forward", &["kubevpn-conn", "kubevpn-target"]),
        ("kubevpn-dns", &["kubevpn-conn", "kubevpn-target"]),
        ("kubevpn-transparent", &["kubevpn-conn", "kubevpn-target"]),
        ("kubevpn-client", &["kubevpn-target"]),
        ("kubevpn-cluster", &["kubevpn-client", "kubevpn-target"]),
        ("kubevpn-spdy", &[]),
        (
            "kubevpn-portforward",
            &["kubevpn-client", "kubevpn-spdy", "kubevpn-target"],
        ),
        (
            "kubevpn-stack",
            &["kubevpn-cluster", "kubevpn-portforward", "kubevpn-target"],
        ),
        (
            "kubevpn-proxy",
            &[
                "kubevpn-client",
                "kubevpn-conn",
                "kubevpn-dns",
                "kubevpn-forward",
                "kubevpn-http-connect",
                "kubevpn-socks5",
                "kubevpn-stack",
                "kubevpn-target",
                "kubevpn-transparent",
            ],
        ),
        ("kubevpn-namespace", &[]),
        (
            "kubevpn-daemon",
            &[
                "kubevpn-client",
                "kubevpn-conn",
                "kubevpn-proxy",
                "kubevpn-stack",
                "kubevpn-target",
            ],
        ),
        (
            "kubevpn-embed",
            &[
                "kubevpn-client",
                "kubevpn-conn",
                "kubevpn-forward",
                "kubevpn-http-connect",
                "kubevpn-stack",
                "kubevpn-target",
            ],
        ),
        (
            "kubevpn",
            &[
                "kubevpn-client",
                "kubevpn-conn",
                "kubevpn-daemon",
                "kubevpn-forward",
                "kubevpn-namespace",
                "kubevpn-proxy",
                "kubevpn-sim",
                "kubevpn-stack",
                "kubevpn-target",
            ],
        ),
        ("kubevpn-sim", &["kubevpn-spdy"]),
        ("kubevpn-scenarios", &[]),
        ("lab", &[]),
        (
            "kubevpn-benches",
            &["kubevpn-client", "kubevpn-portforward", "lab"],
        ),
        (
            "kubevpn-odd",
            &["kubevpn-conn", "kubevpn-http-connect", "kubevpn-target"],
        ),
    ];
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<&str> = packages
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let allowed = allowed.iter().find(|(n, _)| *n == name);
        let allowed = allowed
            .unwrap_or_else(|| panic!("{name} is not in this list: which edges may it have?"))
            .1;
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = dependency["name"].as_str().unwrap();
            let dev = dependency["kind"] == "dev";
            assert!(
                dev || !ours.contains(to) || allowed.contains(&to),
                "{name} must not depend on {to}"
            );
        }
    }
}

/// Words that only the command may have: a library that knows a flag, an exit code or a terminal cannot be used by another
/// program.
#[test]
fn libraries_of_bin_know_no_command_line() {
    for krate in ["bin/proxy", "bin/daemon", "bin/embed"] {
        let manifest = std::fs::read_to_string(root().join(krate).join("Cargo.toml")).unwrap();
        assert!(!manifest.contains("clap"), "{krate} depends on clap");
        for file in sources(&root().join(krate).join("src")) {
            let text = std::fs::read_to_string(&file).unwrap();
            let code = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            for line in code {
                for word in ["\"--", " --", "println!", "eprint", "exit_code"] {
                    let found = line.contains(word);
                    assert!(!found, "{word:?} in {}: {line}", file.display());
                }
            }
        }
    }
}

/// A log of a normal day is for people: what has no `Display` is said at `debug`.
#[test]
fn no_rust_structures_in_logs_of_a_normal_day() {
    for dir in ["backend", "frontends", "bin"] {
        for file in sources(&root().join(dir)) {
            let text = std::fs::read_to_string(&file).unwrap();
            for level in ["tracing::info!(", "tracing::warn!(", "tracing::error!("] {
                for (at, _) in text.match_indices(level) {
                    let call = text[at + level.len()..]
                        .split(");")
                        .next()
                        .unwrap_or_default();
                    let fields = call.split('"').step_by(2).collect::<String>();
                    let found = fields.contains("= ?") || fields.trim_start().starts_with('?');
                    assert!(!found, "{}: {level}{call}", file.display());
                }
            }
        }
    }
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let all = entries.flat_map(|path| match path.is_dir() {
        true => sources(&path),
        false => vec![path],
    });
    all.filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect()
}

/// `cargo build -p kubevpn-socks5` brings no Kubernetes and no HTTP along.
#[test]
fn the_socks5_frontend_stands_alone() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--package",
            "kubevpn-socks5",
            "--edges",
            "normal",
            "--prefix",
            "none",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.contains("kubevpn-target"), "{tree}");
    let strangers = [
        "kube",
        "k8s",
        "hyper",
        "kubevpn-client",
        "kubevpn-cluster",
        "kubevpn-portforward",
        "kubevpn-stack",
    ];
    for line in tree.lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let stranger = strangers
            .iter()
            .find(|s| name == **s || name.starts_with(&format!("{s}-")));
        assert_eq!(stranger, None, "{tree}");
    }
}

/// The page for users has a row for each refusal, with what curl shows of it, and a row for each exit code.
#[test]
fn the_page_says_what_each_refusal_looks_like() {
    let page = std::fs::read_to_string(root().join("docs/proxy-out.md")).unwrap();
    for row in kubevpn_target::table::REFUSALS {
        let name = format!("`{}`", row.refusal);
        let line = page
            .lines()
            .find(|line| line.starts_with('|') && line.contains(&name))
            .unwrap_or_else(|| panic!("no row for {name}"));
        for cell in [format!("`({})`", row.reply), row.status.to_string()] {
            assert!(line.contains(&cell), "{cell} is not in {line}");
        }
        let code = format!("\n| {} |", row.exit);
        assert!(page.contains(&code), "exit code {} has no row", row.exit);
    }
}
