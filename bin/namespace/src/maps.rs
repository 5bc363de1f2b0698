//! The users of a user namespace.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _};

use rustix::process::{getegid, geteuid};

/// A map has at most 340 lines of three numbers (user_namespaces(7)).
const LONGEST: u64 = 16 * 1024;

/// Maps the users of a process's new namespace: for root all users, so that access to files stays the same; for an ordinary
/// user, who may not map others, only that one. Files of others then belong to `nobody`, and setuid has no effect.
pub(crate) fn write(pid: u32) -> io::Result<()> {
    let of = |name: &str| format!("/proc/{pid}/{name}");
    if geteuid().is_root() {
        let all = (same("/proc/self/uid_map")?, same("/proc/self/gid_map")?);
        match fs::write(of("uid_map"), all.0) {
            Ok(()) => return fs::write(of("gid_map"), all.1),
            // Root without the capability, as in a container.
            Err(error) => tracing::debug!(%error, "all users cannot be mapped"),
        }
    }
    fs::write(of("setgroups"), "deny")?;
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    fs::write(of("uid_map"), format!("{uid} {uid} 1"))?;
    fs::write(of("gid_map"), format!("{gid} {gid} 1"))
}

/// The identity map of all users that are mapped here.
fn same(path: &str) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?
        .take(LONGEST)
        .read_to_string(&mut text)?;
    Ok(identity(&text))
}

fn identity(map: &str) -> String {
    map.lines().fold(String::new(), |mut same, line| {
        let mut numbers = line.split_whitespace();
        if let (Some(first), Some(count)) = (numbers.next(), numbers.nth(1)) {
            let _ = writeln!(same, "{first} {first} {count}");
        }
        same
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_users_keep_their_numbers() {
        let whole = "         0          0 4294967295\n";
        assert_eq!(identity(whole), "0 0 4294967295\n");
        let rootless = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(identity(rootless), "0 0 1\n1 1 65536\n");
        assert_eq!(identity("garbage\n"), "");
    }
}
