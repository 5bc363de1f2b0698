//! An ssh server on this machine, for what is looked at from far away: Debian's, unpacked and not installed.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::Lab;
use crate::command::{command, output};
use crate::process::until;

/// With the libraries that the server needs beyond the client's.
const PACKAGES: [&str; 5] = [
    "openssh-server",
    "openssh-client",
    "libwrap0",
    "libnsl2",
    "libtirpc3",
];
/// How long it may take to listen.
const LIMIT: Duration = Duration::from_secs(20);

/// A server that lets in whoever has its key. It ends when this is dropped.
pub(super) struct SshServer {
    root: PathBuf,
    directory: tempfile::TempDir,
    port: u16,
    _child: Child,
}

impl SshServer {
    /// Starts it on a free port of loopback.
    pub(super) async fn start(lab: &Lab) -> Result<Self> {
        let root = lab.debian("debian-ssh", &PACKAGES).await?;
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name).display().to_string();
        // It refuses to start without that.
        fs::create_dir_all("/run/sshd")?;
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        let mut keygen = Command::new(root.join("usr/bin/ssh-keygen"));
        keygen
            .args(["-q", "-t", "ed25519", "-N", "", "-f", &at("key")])
            .env("LD_LIBRARY_PATH", &libraries);
        output(&mut keygen).await?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        drop(listener);
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             AuthenticationMethods publickey\nUsePAM no\nPidFile none\nPrintMotd no\nPrintLastLog no\n",
            key = at("key")
        );
        fs::write(at("sshd"), config)?;
        // A user of its own, who is there where the package is installed, is what it insists on.
        let passwd = fs::read_to_string("/etc/passwd")?;
        let passwd = format!("{passwd}sshd:x:64999:65534::/run/sshd:/bin/false\n");
        fs::write(at("passwd"), passwd)?;
        let script = format!(
            "mount --bind {} /etc/passwd; exec {} -D -f {}",
            at("passwd"),
            root.join("usr/sbin/sshd").display(),
            at("sshd")
        );
        let mut sshd = command("unshare")?;
        sshd.args(["--mount", "--propagation", "private", "sh", "-ec", &script])
            .env("LD_LIBRARY_PATH", &libraries);
        let child = sshd.spawn().context("cannot start sshd")?;
        until(LIMIT, "sshd to listen", async || {
            let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
            Ok(connected.ok())
        })
        .await?;
        Ok(Self {
            root,
            directory,
            port,
            _child: child,
        })
    }

    /// The words that run a command there, at the terminal of the shell that is told them. The command has the shell's `HOME`,
    /// `PATH` and `KUBECONFIG`.
    pub(super) fn line(&self, command: &str) -> String {
        let libraries: &Path = &self.root.join("usr/lib/x86_64-linux-gnu");
        format!(
            "LD_LIBRARY_PATH={libraries} {ssh} -tt -F none -i {key} -p {port} -o LogLevel=ERROR \
             -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@127.0.0.1 \
             \"env HOME='$HOME' PATH='$PATH' KUBECONFIG='$KUBECONFIG' {command}\"",
            libraries = libraries.display(),
            ssh = self.root.join("usr/bin/ssh").display(),
            key = self.directory.path().join("key").display(),
            port = self.port,
        )
    }
}
