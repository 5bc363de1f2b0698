//! An environment as a file: a line of `NAME=VALUE` for each variable, without quotes, as `docker run --env-file` reads it.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::exit::Failure;
use crate::out;

/// Writes the file with mode 0600. Calls `note` for each variable that the format cannot contain.
pub(super) fn write(
    path: &Path,
    variables: &[(String, OsString)],
    note: impl Fn(&str),
) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for (name, value) in variables {
        match line(name, value.as_bytes()) {
            Some(line) => lines.extend(line),
            None => note(&format!(
                "{name} is not written: a line of NAME=VALUE cannot hold it"
            )),
        }
    }
    if path.as_os_str() == "-" {
        return out::written(io::stdout().lock().write_all(&lines));
    }
    replace(path, &lines).map_err(|error| {
        Failure::value(format!(
            "--env-file: cannot write {}: {error}",
            path.display()
        ))
    })
}

fn line(name: &str, value: &[u8]) -> Option<Vec<u8>> {
    let is_name = !name.starts_with('#') && !name.contains(char::is_whitespace);
    let is_line = is_name && !value.contains(&b'\n') && !value.contains(&b'\r');
    is_line.then(|| [name.as_bytes(), b"=", value, b"\n"].concat())
}

/// Replaces the file atomically, so that a file with another mode never contains the values.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(directory.unwrap_or_else(|| Path::new(".")))?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn lines_that_other_tools_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.env");
        // Others may read this file.
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let variables = [
            ("A", "1"),
            ("QUOTED", "\"a\" $b 'c' #d = e"),
            ("EMPTY", ""),
            ("PEM", "-----BEGIN\nsecret"),
            ("#x", "secret"),
        ]
        .map(|(name, value)| (name.to_owned(), OsString::from(value)));
        let notes = RefCell::new(Vec::new());
        write(&path, &variables, |note| {
            notes.borrow_mut().push(note.to_owned())
        })
        .unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written, "A=1\nQUOTED=\"a\" $b 'c' #d = e\nEMPTY=\n");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            notes.into_inner(),
            [
                "PEM is not written: a line of NAME=VALUE cannot hold it",
                "#x is not written: a line of NAME=VALUE cannot hold it"
            ]
        );
        let failed = write(&dir.path().join("no/web.env"), &[], |_| {}).unwrap_err();
        assert!(failed.message().starts_with("--env-file: cannot write "));
    }
}
