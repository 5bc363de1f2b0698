//! The program of a client, from `/proc` on Linux: of this user's processes, and for root of all.

use std::collections::HashMap;
use std::net::SocketAddr;

/// A client, by the key under which the system lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ClientProgram {
    /// By its address on this machine.
    Address(SocketAddr),
    Process(u32),
}

/// The programs of these clients of these listeners. Blocks while it reads files.
#[cfg(target_os = "linux")]
pub(super) fn find(
    clients: &[ClientProgram],
    listeners: &[SocketAddr],
) -> HashMap<ClientProgram, String> {
    linux::find(clients, listeners)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn find(_: &[ClientProgram], _: &[SocketAddr]) -> HashMap<ClientProgram, String> {
    HashMap::new()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashMap;
    use std::fs;
    use std::io::Read as _;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
    use std::path::Path;

    use super::ClientProgram;

    /// Upper bound on the bytes read from a table of sockets: about 100,000 sockets.
    const TABLE: u64 = 16 << 20;
    /// Upper bound on open files that are looked at.
    const FILES: usize = 200_000;

    pub(super) fn find(
        clients: &[ClientProgram],
        listeners: &[SocketAddr],
    ) -> HashMap<ClientProgram, String> {
        let mut found = HashMap::new();
        let mut inodes = HashMap::new();
        let mut wanted = HashMap::new();
        for client in clients {
            match client {
                ClientProgram::Process(pid) => {
                    let name = name(&Path::new("/proc").join(pid.to_string()));
                    found.extend(name.map(|name| (*client, name)));
                }
                ClientProgram::Address(at) => {
                    let at = SocketAddr::new(at.ip().to_canonical(), at.port());
                    wanted.insert(at, *client);
                }
            }
        }
        if wanted.is_empty() {
            return found;
        }
        for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
            let mut text = String::new();
            let file = fs::File::open(table);
            // The complete lines of a truncated table are used.
            let _ = file.and_then(|file| file.take(TABLE).read_to_string(&mut text));
            for line in text.lines().skip(1) {
                if let Some((at, to, inode)) = row(line)
                    && let Some(client) = wanted.get(&at)
                    && listeners.iter().any(|listener| is_of(listener, to))
                {
                    inodes.insert(inode, *client);
                }
            }
        }
        holders(inodes, &mut found);
        found
    }

    /// Whether a connection to this address is one to the listener: a local address alone is that of any number of
    /// connections.
    fn is_of(listener: &SocketAddr, to: SocketAddr) -> bool {
        let ip = listener.ip().to_canonical();
        listener.port() == to.port() && (ip.is_unspecified() || ip == to.ip())
    }

    /// The programs that have these sockets open.
    fn holders(
        mut inodes: HashMap<u64, ClientProgram>,
        found: &mut HashMap<ClientProgram, String>,
    ) {
        let mut left = FILES;
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        for process in processes {
            let is_process = process.file_name().as_encoded_bytes()[0].is_ascii_digit();
            if !is_process {
                continue;
            }
            let files = fs::read_dir(process.path().join("fd"));
            for file in files.into_iter().flatten().flatten() {
                if inodes.is_empty() || left == 0 {
                    return;
                }
                left -= 1;
                let Ok(link) = fs::read_link(file.path()) else {
                    continue;
                };
                let inode = link.to_str().and_then(|link| {
                    link.strip_prefix("socket:[")?
                        .strip_suffix(']')?
                        .parse()
                        .ok()
                });
                if let Some(client) = inode.and_then(|inode: u64| inodes.remove(&inode)) {
                    let name = name(&process.path());
                    found.extend(name.map(|name| (client, name)));
                }
            }
        }
    }

    fn name(process: &Path) -> Option<String> {
        let name = fs::read(process.join("comm")).ok()?;
        let name = String::from_utf8_lossy(&name);
        Some(name.trim_end().to_owned()).filter(|name| !name.is_empty())
    }

    /// Local address, remote address and inode in a line of `/proc/net/tcp`.
    pub(super) fn row(line: &str) -> Option<(SocketAddr, SocketAddr, u64)> {
        let mut words = line.split_ascii_whitespace();
        let (local, remote) = (words.nth(1)?, words.next()?);
        let inode = words.nth(6)?.parse().ok().filter(|inode| *inode != 0)?;
        Some((address(local)?, address(remote)?, inode))
    }

    fn address(word: &str) -> Option<SocketAddr> {
        let (ip, port) = word.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        // 32-bit words in this machine's byte order.
        let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok();
        let ip = match ip.len() {
            8 => IpAddr::V4(Ipv4Addr::from(word(0)?.to_ne_bytes())),
            32 => {
                let mut bytes = [0; 16];
                for (chunk, at) in bytes.chunks_exact_mut(4).zip([0, 8, 16, 24]) {
                    chunk.copy_from_slice(&word(at)?.to_ne_bytes());
                }
                IpAddr::V6(Ipv6Addr::from(bytes))
            }
            _ => return None,
        };
        Some(SocketAddr::new(ip.to_canonical(), port))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_kernels_tables() {
        let row = |line: &str| {
            let (local, remote, inode) = linux::row(line)?;
            Some((local.to_string(), remote.to_string(), inode))
        };
        let read =
            |local: &str, remote: &str, inode| Some((local.to_owned(), remote.to_owned(), inode));
        let v4 = "   2: 0100007F:A0EE 0100007F:0438 01 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0";
        assert_eq!(row(v4), read("127.0.0.1:41198", "127.0.0.1:1080", 4242));
        let mapped = "   0: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 01 0:0 0:0 0 0 0 77 1";
        assert_eq!(row(mapped), read("127.0.0.1:80", "[::]:0", 77));
        let v6 = "   0: 00000000000000000000000001000000:0050 00000000000000000000000001000000:1234 01 0:0 0:0 0 0 0 78 1";
        assert_eq!(row(v6), read("[::1]:80", "[::1]:4660", 78));
        for none in [
            "",
            "x",
            "0: 0100007F 0",
            "0: 0100007F:0050 0:0 06 0:0 0:0 0 0 0 0 3",
        ] {
            assert_eq!(row(none), None, "{none}");
        }
    }

    #[test]
    fn own_connection_is_this_program() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let stream = std::net::TcpStream::connect(at).unwrap();
        let client = ClientProgram::Address(stream.local_addr().unwrap());
        let process = ClientProgram::Process(std::process::id());
        for listener in [at, SocketAddr::new([0, 0, 0, 0].into(), at.port())] {
            let found = find(&[client, process], &[listener]);
            assert!(found.contains_key(&client), "{found:?}");
            assert_eq!(found[&client], found[&process]);
        }
        // A connection to another listener may have the same local address, and is another program's.
        let other = SocketAddr::new(at.ip(), at.port() ^ 1);
        assert!(!find(&[client], &[other]).contains_key(&client));
    }
}
