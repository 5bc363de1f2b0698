//! The public items of each library that is published, one a line: `golden/api`, written anew with `KUBEVPN_BLESS` in the
//! environment. A line that goes or changes breaks somebody's build; one that comes does not.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use crate::{metadata, root};

/// Where rustdoc writes its JSON.
fn documented() -> PathBuf {
    let wrapper = root().join(".ci/rustdoc-json");
    let target = root().join("target");
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(shared) => PathBuf::from(shared),
        None => target,
    };
    let documenting = Command::new(env!("CARGO"))
        .args(["doc", "--workspace", "--no-deps", "--lib", "--quiet"])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTDOC", wrapper)
        .env_remove("RUSTDOCFLAGS")
        .current_dir(root())
        .status();
    assert!(documenting.unwrap().success(), "cargo doc");
    target.join("doc")
}

/// Those that anybody can depend on.
fn published() -> Vec<String> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let published = packages.filter(|package| package["publish"].is_null());
    let libraries = published.flat_map(|package| package["targets"].as_array().unwrap());
    let libraries = libraries.filter(|target| target["kind"] == serde_json::json!(["lib"]));
    let names = libraries.map(|library| library["name"].as_str().unwrap().to_owned());
    names.collect()
}

fn items(json: PathBuf) -> BTreeSet<String> {
    let api = public_api::Builder::from_rustdoc_json(&json)
        .omit_blanket_impls(true)
        // Send and Sync are the facade's to keep; elsewhere they would be most of the list.
        .omit_auto_trait_impls(!json.ends_with("kubevpn_embed.json"))
        .omit_auto_derived_impls(true)
        .build();
    let api = api.unwrap_or_else(|error| {
        panic!(
            "{}: {error}: the public-api of bin/kubevpn/Cargo.toml and this compiler's rustdoc have to fit each other",
            json.display()
        )
    });
    api.items().map(ToString::to_string).collect()
}

#[test]
#[ignore = "documents the workspace once more: .ci/run api"]
fn is_what_was_agreed() {
    let documented = documented();
    let golden = root().join("integration/tests/golden/api");
    let bless = std::env::var_os("KUBEVPN_BLESS").is_some();
    let published = published();
    assert!(published.contains(&"kubevpn_embed".to_owned()));
    let mut differ = Vec::new();
    for name in published {
        let now = items(documented.join(format!("{name}.json")));
        let file = golden.join(format!("{name}.txt"));
        if bless {
            let lines: String = now.iter().map(|item| format!("{item}\n")).collect();
            std::fs::create_dir_all(&golden).unwrap();
            std::fs::write(&file, lines).unwrap();
        }
        let agreed = std::fs::read_to_string(&file).unwrap_or_default();
        let agreed: BTreeSet<_> = agreed.lines().map(str::to_owned).collect();
        let gone = agreed.difference(&now);
        differ.extend(gone.map(|item| format!("{name}: breaking, gone or changed: {item}")));
        let new = now.difference(&agreed);
        differ.extend(new.map(|item| format!("{name}: new or changed: {item}")));
    }
    assert!(
        differ.is_empty(),
        "{}\nIf it is meant: KUBEVPN_BLESS=1 cargo test -p kubevpn --test layout -- --ignored api::, a line in CHANGELOG.md, \
         and the version that it asks for",
        differ.join("\n")
    );
}
