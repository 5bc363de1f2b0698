//! How a command fails: the exit code of each kind of failure, what is said about it, and what to try.
//!
//! The numbers follow the families of the Go kubevpn, so that scripts keep working.

use std::io::ErrorKind;
use std::process::ExitCode;

use kubevpn_client::KubeconfigError;
use kubevpn_daemon::{ApiError, Code};
use kubevpn_proxy::BindError;
use kubevpn_target::{ConnectError, Refusal};

use crate::near::nearest;
use crate::out;

/// Why a command ended without success. clap itself ends with 2 on words it does not know.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What the daemon said, or what a library did: with its code.
    Api(ApiError),
    /// A failure of the same kinds, with advice.
    Advised { error: ApiError, advice: String },
    /// A command that was to be run could not be.
    NotRun {
        command: String,
        source: std::io::Error,
    },
    /// A network of its own cannot be had for a command: why and what to do, and what the system said.
    NotIsolated {
        message: String,
        cause: Option<String>,
    },
    /// A command that was run ended with this code, or what is shown already means it.
    Ended(u8),
    /// Ctrl-C.
    Interrupted,
    /// Nobody reads any more what was to be said, as behind `| head`; no failure.
    Unheard,
    /// Anything else.
    Other(anyhow::Error),
}

/// The exit code of each failure; 0 is none.
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
                Refusal::NotReady
                | Refusal::Refused
                | Refusal::Unreachable
                | Refusal::Overloaded => 1,
                Refusal::ClusterAway => 40,
                Refusal::Forbidden | Refusal::Denied => 31,
                Refusal::Unauthenticated => 32,
                Refusal::TimedOut => 42,
                Refusal::Internal => 90,
            },
        },
        // As shells have it.
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
    /// A value that is understood and not accepted.
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

    /// Says it on stderr, causes and all, and gives the code for `main`.
    pub(crate) fn report(&self) -> ExitCode {
        for line in self.lines() {
            out::aside(line);
        }
        ExitCode::from(exit_code(self))
    }

    fn lines(&self) -> Vec<String> {
        let (message, causes) = match self {
            Self::Api(error) | Self::Advised { error, .. } => {
                (error.message.clone(), error.causes.clone())
            }
            Self::NotRun { command, source } if source.kind() == ErrorKind::NotFound => (
                format!("cannot run {command}: it is not found in PATH"),
                Vec::new(),
            ),
            Self::NotIsolated { message, cause } => {
                (message.clone(), cause.iter().cloned().collect())
            }
            Self::NotRun { command, source } => {
                (format!("cannot run {command}"), vec![source.to_string()])
            }
            Self::Other(error) => {
                let causes = error.chain().skip(1).map(ToString::to_string);
                (error.to_string(), causes.collect())
            }
            Self::Ended(_) | Self::Interrupted | Self::Unheard => return Vec::new(),
        };
        let mut lines = vec![format!("error: {}", set_in(&message))];
        let causes = causes
            .iter()
            .map(|cause| format!("  caused by: {}", set_in(cause)));
        lines.extend(causes);
        let advice = match self {
            Self::Api(error) => hint(error.code),
            Self::Advised { advice, .. } => Some(advice.as_str()),
            Self::NotIsolated { .. } => {
                Some("--isolated=auto, which uses the environment's way where there is no other")
            }
            _ => None,
        };
        lines.extend(advice.map(|advice| format!("  try: {}", set_in(advice))));
        lines
    }
}

/// The flags that help, where the library that failed does not know them.
fn hint(code: Code) -> Option<&'static str> {
    match code {
        Code::Exposed => Some(
            "--auth-file FILE asks clients for a password, --allow-unauthenticated lets everybody in",
        ),
        _ => None,
    }
}

/// A message that may come from elsewhere: its own lines stay lines, set in, and nothing else means anything to a terminal.
fn set_in(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().map(out::escaped).collect();
    lines.join("\n    ")
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

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        Self::Api(error.into())
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
    fn every_refusal_has_its_code_and_its_sentence() {
        for row in REFUSALS {
            let failure = Failure::from(ConnectError::new(row.refusal, row.sentence));
            assert_eq!(exit_code(&failure), row.exit, "{row:?}");
            assert_eq!(failure.lines(), [format!("error: {}", row.sentence)]);
        }
    }

    #[test]
    fn causes_and_flags_that_help_are_said() {
        let exposed = ApiError {
            causes: vec!["one".into(), "two".into()],
            ..ApiError::new(Code::Exposed, "open to all")
        };
        let lines = Failure::from(exposed).lines();
        assert_eq!(
            lines[..3],
            ["error: open to all", "  caused by: one", "  caused by: two"]
        );
        assert!(lines[3].contains("--auth-file"), "{lines:?}");
        let advised = Failure::Advised {
            error: ApiError::new(Code::Refused(Refusal::NameNotFound), "no"),
            advice: "web.shop?".into(),
        };
        assert_eq!(advised.lines(), ["error: no", "  try: web.shop?"]);
        assert_eq!(exit_code(&advised), 50);
    }

    /// What an API server, a plugin or a daemon says is text, and nothing else.
    #[test]
    fn messages_from_elsewhere_cannot_drive_the_terminal() {
        let said = set_in("bad\u{1b}]0;title\u{7} \u{202e}gnp\nsecond\rline");
        assert_eq!(
            said,
            "bad\\u{1b}]0;title\\u{7} \\u{202e}gnp\n    second\\rline"
        );
    }
}
