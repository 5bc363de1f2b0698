//! How a command fails: the exit code of each kind of failure, and what is said about it.
//!
//! The numbers follow the families of the Go kubevpn, so that scripts keep working.

use std::fmt;
use std::process::ExitCode;

use kubevpn_client::KubeconfigError;
use kubevpn_target::{ConnectError, Refusal};

use crate::daemon::api::Fault;
use crate::out;

/// Why a command ended without success. clap itself ends with 2 on words it does not know.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The kubeconfig cannot be used.
    Kubeconfig(KubeconfigError),
    /// A value we understand and do not accept.
    Value(String),
    /// A listener could not be had because something else has the address.
    AddressInUse { flag: &'static str, address: String },
    /// A listener could not be had for another reason.
    Listen {
        flag: &'static str,
        address: String,
        source: std::io::Error,
    },
    /// The cluster, or something in it, could not be reached.
    Refused(ConnectError),
    /// A command that was to be run could not be.
    NotRun {
        command: String,
        source: std::io::Error,
    },
    /// A command that was run ended with this code, and has said why itself.
    Ended(u8),
    /// What the daemon said, or what was found out about it.
    Told(Fault),
    /// Ctrl-C.
    Interrupted,
    /// Nobody reads any more what was to be said, as behind `| head`; no failure.
    Unheard,
    /// Anything else.
    Other(anyhow::Error),
}

impl Failure {
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Kubeconfig(_) => 20,
            Self::Value(_) => 23,
            Self::AddressInUse { .. } => 53,
            Self::Listen { .. } | Self::Other(_) => 1,
            Self::Refused(error) => refusal(error.refusal()),
            // As shells have it.
            Self::NotRun { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 127,
            Self::NotRun { .. } => 126,
            Self::Ended(code) => *code,
            Self::Told(fault) => fault.exit,
            Self::Interrupted => 130,
            Self::Unheard => 0,
        }
    }

    /// Says it on stderr, causes and all, and gives the code for `main`.
    pub(crate) fn report(&self) -> ExitCode {
        if !matches!(self, Self::Interrupted | Self::Ended(_) | Self::Unheard) {
            out::aside(format_args!("error: {}", lines(&self.to_string())));
            let mut cause = std::error::Error::source(self);
            while let Some(error) = cause {
                out::aside(format_args!("  because: {}", lines(&error.to_string())));
                cause = error.source();
            }
        }
        ExitCode::from(self.code())
    }
}

/// A message that may come from elsewhere: its own lines stay lines, set in, and nothing else means anything to a terminal.
fn lines(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().map(out::escaped).collect();
    lines.join("\n    ")
}

fn refusal(refusal: Refusal) -> u8 {
    match refusal {
        Refusal::NameNotFound | Refusal::NoSuchPort => 50,
        Refusal::NotReady | Refusal::Refused | Refusal::Unreachable | Refusal::Overloaded => 1,
        Refusal::ClusterAway => 40,
        Refusal::Forbidden | Refusal::Denied => 31,
        Refusal::Unauthenticated => 32,
        Refusal::TimedOut => 42,
        Refusal::Internal => 90,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubeconfig(error) => error.fmt(f),
            Self::Value(sentence) => f.write_str(sentence),
            Self::AddressInUse { flag, address } => {
                write!(
                    f,
                    "{address} is already in use: end what listens there, or pick another address with {flag}"
                )
            }
            Self::Listen { flag, address, .. } => {
                write!(
                    f,
                    "cannot listen on {address}: pick another address with {flag}"
                )
            }
            Self::Refused(error) => error.fmt(f),
            Self::NotRun { command, .. } => {
                write!(
                    f,
                    "cannot run {command}: write the command and its words behind --"
                )
            }
            Self::Ended(code) => write!(f, "the command ended with {code}"),
            Self::Told(fault) => fault.fmt(f),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Unheard => f.write_str("nobody reads the output"),
            Self::Other(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Kubeconfig(error) => error.source(),
            Self::Listen { source, .. } | Self::NotRun { source, .. } => Some(source),
            Self::Refused(error) => error.source(),
            Self::Told(fault) => fault.source(),
            Self::Other(error) => error.source(),
            Self::Value(_)
            | Self::AddressInUse { .. }
            | Self::Ended(_)
            | Self::Interrupted
            | Self::Unheard => None,
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::Refused(error)
    }
}

impl From<KubeconfigError> for Failure {
    fn from(error: KubeconfigError) -> Self {
        Self::Kubeconfig(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

#[cfg(test)]
mod tests {
    use kubevpn_target::table::REFUSALS;

    use super::*;

    #[test]
    fn every_refusal_has_its_code_and_its_sentence() {
        for row in REFUSALS {
            let failure = Failure::from(ConnectError::new(row.refusal, row.sentence));
            assert_eq!(failure.code(), row.exit, "{row:?}");
            assert_eq!(failure.to_string(), row.sentence);
        }
    }

    /// What an API server, a plugin or a daemon says is text, and nothing else.
    #[test]
    fn messages_from_elsewhere_cannot_drive_the_terminal() {
        let said = lines("bad\u{1b}]0;title\u{7} \u{202e}gnp\nsecond\rline");
        assert_eq!(
            said,
            "bad\\u{1b}]0;title\\u{7} \\u{202e}gnp\n    second\\rline"
        );
    }
}
