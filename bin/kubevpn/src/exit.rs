//! Failures of a command, and the exit code of each. `report.rs` prints them.
//!
//! The numbers follow the families of the Go kubevpn, so that scripts keep working.

use std::io::ErrorKind;

use kubevpn_client::KubeconfigError;
use kubevpn_daemon::{ApiError, Code};
use kubevpn_proxy::{ListenerError, nearest};
use kubevpn_target::{ConnectError, Refusal};

/// Reason why a command ended without success. clap itself exits with 2 on unknown arguments.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An error with a code, from the daemon or from a library.
    Api(ApiError),
    /// The same, with advice.
    Advised { error: ApiError, advice: String },
    /// The command of `run` could not be started.
    NotRun {
        command: String,
        source: std::io::Error,
    },
    /// The command could not be isolated: reason and advice, and the system's error.
    NotIsolated {
        message: String,
        cause: Option<String>,
    },
    /// The command of `run` ended with this exit code, or the output already explains the code.
    Ended(u8),
    /// Ctrl-C.
    Interrupted,
    /// The reader of standard output has closed it, as `| head` does; no failure.
    Unheard,
    /// Anything else.
    Other(anyhow::Error),
}

/// The exit code of a failure; 0 for `Unheard`.
pub(crate) fn exit_code(failure: &Failure) -> u8 {
    match failure {
        Failure::Api(error) | Failure::Advised { error, .. } => match error.code {
            Code::Other => 1,
            Code::Kubeconfig => 20,
            Code::InvalidValue | Code::Exposed => 23,
            Code::NoSuchConnection => 51,
            Code::Conflict | Code::AddressInUse => 53,
            Code::NotRunning | Code::Ending => 80,
            Code::OtherVersion => 81,
            Code::Internal => 90,
            Code::Refused(refusal) => match refusal {
                Refusal::NameNotFound | Refusal::NoSuchPort => 50,
                Refusal::Refused | Refusal::Unreachable | Refusal::Overloaded => 1,
                Refusal::ClusterAway => 40,
                Refusal::Forbidden | Refusal::Denied => 31,
                Refusal::Unauthenticated => 32,
                Refusal::TimedOut => 42,
                // A code of its own, for scripts that wait until the Service is ready.
                Refusal::NotReady => 43,
                Refusal::Internal => 90,
            },
        },
        // Shells use these codes too.
        Failure::NotRun { source, .. } if source.kind() == ErrorKind::NotFound => 127,
        Failure::NotRun { .. } => 126,
        Failure::NotIsolated { .. } => 60,
        Failure::Ended(code) => *code,
        Failure::Other(_) => 1,
        Failure::Interrupted => 130,
        Failure::Unheard => 0,
    }
}

impl Failure {
    /// A value that can be parsed but is not accepted.
    pub(crate) fn value(sentence: impl Into<String>) -> Self {
        Self::Api(ApiError::new(Code::InvalidValue, sentence))
    }

    /// The failure in one line, without causes.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Api(error) | Self::Advised { error, .. } => error.message.clone(),
            Self::Other(error) => error.to_string(),
            Self::NotRun { command, source } => format!("cannot run {command}: {source}"),
            Self::NotIsolated { message, .. } => message.clone(),
            Self::Ended(_) | Self::Interrupted | Self::Unheard => String::new(),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::Api(error.into())
    }
}

impl From<ListenerError> for Failure {
    fn from(error: ListenerError) -> Self {
        match &error {
            ListenerError::Exposed { can_ask: false, .. } => Self::Advised {
                error: error.into(),
                advice: "--allow-unauthenticated, which lets everybody in: forwards and DNS have no place for a password"
                    .into(),
            },
            _ => Self::Api(error.into()),
        }
    }
}

impl From<KubeconfigError> for Failure {
    fn from(error: KubeconfigError) -> Self {
        let near = match &error {
            KubeconfigError::UnknownContext { name, known }
            | KubeconfigError::UnknownCluster { name, known }
            | KubeconfigError::UnknownUser { name, known } => {
                nearest(name, known.0.iter().map(String::as_str))
            }
            _ => None,
        };
        match near.map(|near| format!("did you mean {near:?}?")) {
            Some(advice) => Self::Advised {
                error: error.into(),
                advice,
            },
            None => Self::Api(error.into()),
        }
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
    fn every_refusal_has_its_code() {
        for row in REFUSALS {
            let failure = Failure::from(ConnectError::new(row.refusal, row.sentence));
            assert_eq!(exit_code(&failure), row.exit, "{row:?}");
        }
    }
}
