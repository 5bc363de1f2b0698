//! The files by which programs resolve names, replaced in a mount namespace.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use crate::error::{EnterError, SetupStep};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const NSSWITCH_CONF: &str = "/etc/nsswitch.conf";

/// Candidates for a temporary mount point; every system has one of them.
const STAGES: [&str; 4] = ["/tmp", "/mnt", "/var", "/home"];

/// Services that the C library asks for names before, or instead of, the DNS server of `resolv.conf`: nscd, and
/// systemd-resolved's two. They are in another network.
const RESOLVERS: [&str; 4] = [
    "/run/nscd/socket",
    "/var/run/nscd/socket",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/systemd/resolve/io.systemd.Resolve.Monitor",
];

/// Mounts these files over the system's, for this process and its children.
pub(crate) fn show(resolv_conf: &str) -> Result<(), EnterError> {
    let failed = |on: &str, error: io::Error| EnterError::on(SetupStep::Files, on, error);
    // Later mounts of the system are still visible here, and ours are not visible outside.
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(|error| failed("/", error.into()))?;
    let nsswitch = match fs::read_to_string(NSSWITCH_CONF) {
        Ok(text) => Some(without_other_ways(&text)),
        // musl has no such file.
        Err(_) => None,
    };
    let stage = STAGES.iter().find(|stage| Path::new(stage).is_dir());
    let stage = stage.ok_or_else(|| failed(STAGES[0], io::ErrorKind::NotFound.into()))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("kubevpn", *stage, "tmpfs", flags, c"mode=0755,size=256k")
        .map_err(|error| failed(stage, error.into()))?;
    let mut shown = vec![(RESOLV_CONF, resolv_conf)];
    shown.extend(nsswitch.as_deref().map(|text| (NSSWITCH_CONF, text)));
    for (number, (path, text)) in shown.into_iter().enumerate() {
        let file = format!("{stage}/{number}");
        fs::write(&file, text).map_err(|error| failed(&file, error))?;
        mount_bind(&file, path).map_err(|error| failed(path, error.into()))?;
    }
    for socket in RESOLVERS {
        if Path::new(socket).exists() {
            // Connecting to a file that is not a socket is refused.
            mount_bind("/dev/null", socket).map_err(|error| failed(socket, error.into()))?;
        }
    }
    // The bind mounts keep the file system alive.
    unmount(*stage, UnmountFlags::DETACH).map_err(|error| failed(stage, error.into()))
}

/// The same file, with hosts looked up only in `/etc/hosts` and by DNS: mDNS before DNS would capture names below `.local`.
fn without_other_ways(nsswitch: &str) -> String {
    let mut found = false;
    let mut lines: Vec<_> = nsswitch
        .lines()
        .map(|line| match line.trim_start().strip_prefix("hosts:") {
            Some(ways) => {
                found = true;
                // The name of this machine.
                match ways.split_whitespace().any(|way| way == "myhostname") {
                    true => "hosts: files myhostname dns",
                    false => "hosts: files dns",
                }
            }
            None => line,
        })
        .collect();
    if !found {
        lines.push("hosts: files dns");
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_in_files_and_dns() {
        for (hosts, shown) in [
            (
                "hosts: files mdns4_minimal [NOTFOUND=return] dns",
                "hosts: files dns",
            ),
            (
                "hosts:\tmymachines resolve [!UNAVAIL=return] files myhostname dns",
                "hosts: files myhostname dns",
            ),
            ("  hosts: db files", "hosts: files dns"),
        ] {
            let text = format!("# comment\npasswd: files systemd\n{hosts}\nservices: files");
            let wanted = format!("# comment\npasswd: files systemd\n{shown}\nservices: files\n");
            assert_eq!(without_other_ways(&text), wanted);
        }
        assert_eq!(
            without_other_ways("passwd: files"),
            "passwd: files\nhosts: files dns\n"
        );
    }
}
