//! Holders of ports on this machine.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use kubevpn_daemon::{DaemonClient, StateDir};
use kubevpn_proxy::reachable;

/// Upper bounds on the processes looked at for a port's owner, and on the open files of each.
const PROCESSES: usize = 4096;
const DESCRIPTORS: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PortHolder {
    Free,
    /// A managed connection.
    Connection(String),
    /// A process of this user.
    Process {
        pid: u32,
        name: String,
    },
    /// Another process, probably of another user.
    Somebody,
    /// The system refuses the address, for this reason.
    Refused(String),
}

impl PortHolder {
    /// Whether the holder is a proxy of ours.
    pub(super) fn is_ours(&self) -> bool {
        match self {
            Self::Connection(_) => true,
            Self::Process { name, .. } => name == "kubevpn",
            Self::Free | Self::Somebody | Self::Refused(_) => false,
        }
    }
}

/// Addresses of the listeners of managed connections, with the connections' IDs. No daemon is started; empty if none runs
/// or answers.
pub(super) async fn connections() -> Vec<(SocketAddr, String)> {
    let asked = async {
        let daemon = DaemonClient::new(StateDir::locate()?);
        match daemon.find().await? {
            true => daemon.status().await.map(|status| status.list),
            false => Ok(Vec::new()),
        }
    };
    let list = asked.await.unwrap_or_default();
    let listeners = list.into_iter().flat_map(|connection| {
        let of = |listener: kubevpn_daemon::api::ListenerInfo| {
            let address = listener.address.parse::<SocketAddr>().ok();
            address.filter(|_| listener.listening)
        };
        let addresses: Vec<_> = connection.listeners.into_iter().filter_map(of).collect();
        addresses
            .into_iter()
            .map(move |address| (reachable(address), connection.id.clone()))
    });
    listeners.collect()
}

pub(super) fn held(address: SocketAddr, connections: &[(SocketAddr, String)]) -> PortHolder {
    if address.port() == 0 {
        return PortHolder::Free;
    }
    let ours = connections
        .iter()
        .find(|(ours, _)| *ours == reachable(address));
    if let Some((_, id)) = ours {
        return PortHolder::Connection(id.clone());
    }
    match TcpListener::bind(address) {
        Ok(_) => PortHolder::Free,
        Err(error) if error.kind() == ErrorKind::AddrInUse => owner(address),
        Err(error) => PortHolder::Refused(error.to_string()),
    }
}

/// The process that listens, as far as /proc shows its files to this user (proc(5)).
fn owner(address: SocketAddr) -> PortHolder {
    let sockets = sockets(address);
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in processes.take(PROCESSES) {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
        let files = files.into_iter().flatten().flatten().take(DESCRIPTORS);
        let mut targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        if targets.any(|target| sockets.contains(&*target.to_string_lossy())) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            let name = name.map_or_else(|_| "a process".to_owned(), |name| name.trim().to_owned());
            return PortHolder::Process { pid, name };
        }
    }
    PortHolder::Somebody
}

/// The listening sockets of the address, or of all addresses at its port, as links in /proc/PID/fd name them.
fn sockets(address: SocketAddr) -> HashSet<String> {
    const LISTEN: &str = "0A";
    let (file, wanted) = match address.ip() {
        IpAddr::V4(ip) => (
            "/proc/net/tcp",
            [ip, Ipv4Addr::UNSPECIFIED].map(|ip| hex(&ip.octets())),
        ),
        IpAddr::V6(ip) => (
            "/proc/net/tcp6",
            [ip, Ipv6Addr::UNSPECIFIED].map(|ip| hex(&ip.octets())),
        ),
    };
    let port = format!(":{:04X}", address.port());
    let table = std::fs::read_to_string(file).unwrap_or_default();
    let inode = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let ip = fields.get(1)?.strip_suffix(port.as_str())?;
        let is_it = wanted.iter().any(|wanted| wanted == ip) && *fields.get(3)? == LISTEN;
        is_it.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
    };
    table.lines().filter_map(inode).collect()
}

/// As the kernel prints an address: words of four bytes in the machine's order.
fn hex(octets: &[u8]) -> String {
    let words = octets.chunks_exact(4).map(|word| {
        let word = [word[0], word[1], word[2], word[3]];
        format!("{:08X}", u32::from_ne_bytes(word))
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_of_a_port_is_found() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let process = std::process::id();
        match held(address, &[]) {
            PortHolder::Process { pid, .. } => assert_eq!(pid, process),
            other => panic!("{other:?}"),
        }
        let ours = [(address, "03dc50feb8c3".to_owned())];
        assert_eq!(
            held(address, &ours),
            PortHolder::Connection("03dc50feb8c3".into())
        );
        drop(taken);
        assert_eq!(held(address, &[]), PortHolder::Free);
    }
}
