//! A network for one command, made of namespaces by an ordinary user. Linux only.
//!
//! The command gets a user, a network and a mount namespace of its own. In the network there is one interface, `lo`, on
//! which *every* address is local; rules redirect TCP to a listener and DNS queries over UDP to a socket, and refuse
//! everything else at once. Both sockets are made inside and handed out, so that a process outside serves them: the kernel
//! does TCP, and a connection's original destination is known (`SO_ORIGINAL_DST`). It serves nothing itself.
//!
//! ```text
//!   outside: PendingNamespace                                inside: helper(), a process with one thread
//!   new(words): this program again, with the ───► unshare(2)
//!     word of the helper, stdin a socket    ◄───  "the namespaces are there"
//!   prepare(): uid_map, gid_map, the files  ───►  mounts (files.rs), addresses and routes (network.rs), rules
//!     to show, the real stdin                     (rules.rs), sockets
//!                                           ◄───  the sockets (SCM_RIGHTS, control.rs)
//!   start()                                 ───►  execve(2) of the command, in the same process
//! ```
//!
//! Since the helper becomes the command, the command is a child of the process outside, in its process group and on its
//! terminal, as if there were no namespaces. It is killed with that process, and its children by a [`Keeper`], because
//! their network no longer leads anywhere.
//!
//! Sources: user_namespaces(7), network_namespaces(7), rtnetlink(7), `include/uapi/linux/netfilter/nf_tables.h`.
#![cfg(target_os = "linux")]

mod control;
mod entry;
mod error;
mod files;
mod helper;
mod keeper;
mod maps;
mod members;
mod netlink;
mod network;
mod porter;
mod rules;
mod start;

use std::net::{Ipv4Addr, Ipv6Addr};

pub use self::entry::{NetworkSockets, PendingNamespace, possible};
pub use self::error::{EnterError, SetupStep};
pub use self::helper::{helper, is_helper};
pub use self::keeper::Keeper;
pub use self::members::Members;
pub use self::porter::Porter;

/// Address of programs inside, and of their DNS server: everything sent to port 53 is a DNS query.
pub const ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The IPv6 address, if the system supports IPv6.
pub const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 1);
/// Port of DNS queries.
pub const DNS_PORT: u16 = 53;
