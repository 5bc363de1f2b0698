//! Differences between two builds of the packages, and folders of this machine that a program contains.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use memchr::memmem;
use object::{Object as _, ObjectSection as _};

use super::sha256;

/// The programs of the packages, relative to the output folder. Packages are compressed, so only these files show which bytes
/// differ.
const PROGRAMS: [&str; 2] = ["root/usr/bin/kubevpn", "root-musl/usr/bin/kubevpn"];

/// One file that differs between two builds.
#[derive(Debug)]
pub struct FileDifference {
    /// Name relative to the output folder.
    pub file: String,
    /// Description of the difference.
    pub what: String,
}

impl Display for FileDifference {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.what)
    }
}

/// The files that differ between two builds of the packages; for a program also where.
///
/// # Errors
/// A folder cannot be read.
pub fn differences(one: &Path, other: &Path) -> Result<Vec<FileDifference>> {
    let mut names = BTreeSet::new();
    for folder in [one, other] {
        let sums = folder.join("SHA256SUMS");
        let sums = fs::read_to_string(&sums).with_context(|| sums.display().to_string())?;
        names.extend(
            sums.lines()
                .filter_map(|line| line.split_once("  "))
                .map(|(_, name)| name.to_owned()),
        );
        names.extend(
            PROGRAMS
                .iter()
                .filter(|program| folder.join(program).exists())
                .map(|program| (*program).to_owned()),
        );
    }
    let mut found = Vec::new();
    for file in names {
        let both = [one.join(&file), other.join(&file)];
        let what = match [both[0].exists(), both[1].exists()] {
            [true, false] => "the second folder has none".to_owned(),
            [false, true] => "the first folder has none".to_owned(),
            _ => {
                let sums = [sha256(&both[0])?, sha256(&both[1])?];
                if sums[0] == sums[1] {
                    continue;
                }
                let place = place(&fs::read(&both[0])?, &fs::read(&both[1])?);
                format!("sha256 {} and {}; {place}", sums[0], sums[1])
            }
        };
        found.push(FileDifference { file, what });
    }
    Ok(found)
}

/// Describes where two files differ: sizes, first different byte, and sections if they are programs.
fn place(one: &[u8], other: &[u8]) -> String {
    let mut place = if one.len() == other.len() {
        let count = one.iter().zip(other).filter(|(a, b)| a != b).count();
        format!("{count} of {} bytes differ", one.len())
    } else {
        format!("{} and {} bytes", one.len(), other.len())
    };
    if let Some(first) = one.iter().zip(other).position(|(a, b)| a != b) {
        place.push_str(&format!(", the first at {first:#x}"));
    }
    if let (Some(one), Some(other)) = (sections(one), sections(other)) {
        let mut names: Vec<&String> = one.iter().chain(&other).map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        let of = |sections: &[(String, Vec<u8>)], name: &String| {
            sections
                .iter()
                .find(|it| it.0 == *name)
                .map(|it| it.1.clone())
        };
        let differ: Vec<&str> = names
            .into_iter()
            .filter(|name| of(&one, name) != of(&other, name))
            .map(String::as_str)
            .collect();
        place.push_str(&format!(", in the sections {}", differ.join(" ")));
    }
    place
}

/// Names and contents of the sections of a program; `None` if the file is not a program.
fn sections(file: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let file = object::File::parse(file).ok()?;
    let sections = file.sections().filter_map(|section| {
        let name = section.name().ok()?.to_owned();
        Some((name, section.data().ok()?.to_vec()))
    });
    Some(sections.collect())
}

/// Checks that a program contains none of these folders: the same sources would give other bytes on another machine.
///
/// # Errors
/// The program contains one.
pub(super) fn names_no_folder(program: &Path, folders: &[String]) -> Result<()> {
    let bytes = fs::read(program).with_context(|| program.display().to_string())?;
    for folder in folders {
        let found: Vec<usize> = memmem::find_iter(&bytes, folder).collect();
        ensure!(
            found.is_empty(),
            "the program names {folder} {} times, first in {:?}: it would be another one if built elsewhere",
            found.len(),
            found
                .first()
                .map(|at| text_at(&bytes, *at))
                .unwrap_or_default()
        );
    }
    Ok(())
}

/// The printable text that begins at an offset, at most 100 bytes.
fn text_at(bytes: &[u8], at: usize) -> String {
    let text = bytes[at..].iter().take(100);
    text.take_while(|byte| byte.is_ascii_graphic())
        .map(|byte| char::from(*byte))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut sums = String::new();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            if !name.contains('/') {
                sums.push_str(&format!("{}  {name}\n", sha256(&path).unwrap()));
            }
        }
        fs::write(folder.path().join("SHA256SUMS"), sums).unwrap();
        folder
    }

    fn said(one: &tempfile::TempDir, other: &tempfile::TempDir) -> Vec<String> {
        let differences = differences(one.path(), other.path()).unwrap();
        differences.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_same_bytes_are_no_difference() {
        let files: [(&str, &[u8]); 2] = [("a.tar.gz", b"a"), ("root/usr/bin/kubevpn", b"p")];
        assert!(said(&made(&files), &made(&files)).is_empty());
    }

    #[test]
    fn a_byte_and_a_missing_file_are_found() {
        let one = made(&[("a.tar.gz", b"abc"), ("only-here", b"")]);
        let other = made(&[("a.tar.gz", b"abd"), ("only-there", b"")]);
        let said = said(&one, &other);
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(
            said[0].ends_with("1 of 3 bytes differ, the first at 0x2"),
            "{said:?}"
        );
        assert_eq!(said[1], "only-here: the second folder has none");
        assert_eq!(said[2], "only-there: the first folder has none");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_program_that_differs_is_told_by_its_sections() {
        let program = fs::read(std::env::current_exe().unwrap()).unwrap();
        let at = {
            let file = object::File::parse(&*program).unwrap();
            let text = file.section_by_name(".rodata").unwrap();
            usize::try_from(text.file_range().unwrap().0).unwrap()
        };
        let mut other = program.clone();
        other[at] ^= 1;
        let place = place(&program, &other);
        assert!(place.ends_with(", in the sections .rodata"), "{place}");
    }

    #[test]
    fn a_folder_in_a_program_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, b"\0\x7f/home/me/.cargo/registry/src/a.rs\0").unwrap();
        let error =
            names_no_folder(&program, &["/src".into(), "/home/me/.cargo".into()]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("names /src 1 times, first in \"/src/a.rs\""),
            "{error}"
        );
        names_no_folder(&program, &["/home/you".into()]).unwrap();
    }
}
