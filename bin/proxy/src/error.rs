//! Errors of listeners. The texts name the listener and no flag: the caller knows its flags.

use std::io;
use std::path::PathBuf;

use kubevpn_conn::{Addr, CredentialsLineError};

/// A listener that cannot be bound or served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenerError {
    /// Another process, or another listener of this one, has the address.
    #[error(
        "the {listener}: {address} is already in use: stop the process that uses it, or pick another address"
    )]
    InUse {
        /// The listener's name.
        listener: String,
        /// The address, with the transport unless that is TCP.
        address: String,
    },
    /// The system refused for another reason.
    #[error("the {listener}: cannot listen on {address}: pick another address")]
    Io {
        /// The listener's name.
        listener: String,
        /// The address, with the transport unless that is TCP.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The address is not loopback, and clients are not asked for a password.
    #[error(
        "the {listener}: {address} can be reached from other machines, and whoever connects is in the cluster: listen on \
         127.0.0.1, {}or allow clients without a password",
        asking(.can_ask)
    )]
    Exposed {
        /// The listener's name.
        listener: String,
        /// The requested address.
        address: Addr,
        /// Whether the protocol can carry a user and a password.
        can_ask: bool,
    },
    /// A DNS listener on a Unix socket.
    #[error("the {listener}: a DNS client needs an IP address and a port, not {address}")]
    NotIp {
        /// The listener's name.
        listener: String,
        /// The requested address.
        address: Addr,
    },
    /// A DNS listener whose upstream is itself.
    #[error("the DNS upstream {upstream} is this program's own listener: it would ask itself")]
    OwnUpstream {
        /// The requested upstream.
        upstream: std::net::SocketAddr,
    },
    /// Its credentials cannot be used.
    #[error(transparent)]
    Auth(#[from] AuthError),
}

fn asking(can_ask: &bool) -> &'static str {
    match can_ask {
        true => "ask for a password, ",
        false => "",
    }
}

/// A file of credentials that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the file of users and passwords, {}: {reason}", path.display())]
pub struct AuthError {
    /// The file.
    pub path: PathBuf,
    /// The reason, without contents of the file.
    pub reason: AuthReason,
}

/// Reason why a file of credentials cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthReason {
    /// It cannot be read.
    #[error("{0}")]
    Read(io::Error),
    /// The file is not text.
    #[error("the file is not UTF-8")]
    NoText,
    /// A line of it is not `USER:PASSWORD`.
    #[error("{0}")]
    Credentials(CredentialsLineError),
}
