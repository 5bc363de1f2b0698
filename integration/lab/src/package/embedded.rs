//! The list of libraries that `cargo auditable` writes into a program: JSON under zlib, in the section `.dep-v0`.
//!
//! Specified at <https://github.com/rust-secure-code/cargo-auditable/blob/master/PARSING.md>.

use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, Result};
use flate2::read::ZlibDecoder;
use serde::Deserialize;

use super::licences::Libraries;
use crate::command::{command, output};

#[derive(Deserialize)]
struct EmbeddedList {
    packages: Vec<EmbeddedPackage>,
}

#[derive(Deserialize)]
struct EmbeddedPackage {
    name: String,
    version: String,
    source: String,
    /// `build` for a library that is used by the build only; `None` for one that is linked.
    kind: Option<String>,
}

/// The third-party libraries in the list of a program.
///
/// # Errors
/// The program was not built by `cargo auditable`.
pub(super) async fn libraries(program: &Path) -> Result<Libraries> {
    let folder = tempfile::tempdir()?;
    let section = folder.path().join("section");
    let mut objcopy = command("objcopy")?;
    objcopy
        .args(["--output-target=binary", "--only-section=.dep-v0"])
        .args(["--set-section-flags", ".dep-v0=alloc"])
        .arg(program)
        .arg(&section);
    output(&mut objcopy).await?;
    let section = std::fs::read(&section)?;
    read(&section).with_context(|| format!("the section .dep-v0 of {}", program.display()))
}

fn read(section: &[u8]) -> Result<Libraries> {
    let mut text = String::new();
    ZlibDecoder::new(section).read_to_string(&mut text)?;
    let list: EmbeddedList = serde_json::from_str(&text)?;
    let linked = list
        .packages
        .into_iter()
        .filter(|it| it.kind.is_none() && it.source != "local");
    Ok(linked.map(|it| (it.name, it.version)).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    #[test]
    fn libraries_are_those_that_are_linked() {
        let text = r#"{"packages":[
            {"name":"cc","version":"1.2.0","source":"crates.io","kind":"build"},
            {"name":"kubevpn","version":"0.1.0","source":"local","dependencies":[0,2],"root":true},
            {"name":"rustls","version":"0.23.0","source":"crates.io"}]}"#;
        let mut section = ZlibEncoder::new(Vec::new(), Compression::default());
        section.write_all(text.as_bytes()).unwrap();
        let libraries = read(&section.finish().unwrap()).unwrap();
        let expected = ("rustls".to_owned(), "0.23.0".to_owned());
        assert_eq!(libraries.into_iter().collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn a_program_without_the_section_is_refused() {
        read(&[]).unwrap_err();
    }
}
