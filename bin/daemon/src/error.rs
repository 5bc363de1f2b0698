//! Errors of the daemon's API: a code for programs, a message and its causes for people.

use std::error::Error;

use kubevpn_client::{ClientError, KubeconfigError};
use kubevpn_proxy::ListenerError;
use kubevpn_target::{ConnectError, Refusal};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::identity;

/// Error of a call to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct ApiError {
    /// Code of the error.
    pub code: Code,
    /// What failed, on what, and what to try.
    pub message: String,
    /// Its causes, the nearest first.
    #[serde(default)]
    pub causes: Vec<String>,
}

/// Codes of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The kubeconfig cannot be used.
    Kubeconfig,
    /// A value is valid but not accepted.
    InvalidValue,
    /// A listener that is not on loopback would accept everybody.
    Exposed,
    /// There is no such connection.
    NoSuchConnection,
    /// The connection or the listener is open with other settings.
    Conflict,
    /// Another process has the listener's address.
    AddressInUse,
    /// There is no daemon, or it does not answer.
    NotRunning,
    /// The daemon is ending: call its successor.
    Ending,
    /// The daemon speaks another version of this API.
    OtherVersion,
    /// A bug of this program.
    Internal,
    /// Another error.
    Other,
    /// The cluster or a target was refused.
    Refused(Refusal),
}

impl Code {
    /// All codes except refusals, for tables and tests.
    pub const PLAIN: [Self; 11] = [
        Self::Kubeconfig,
        Self::InvalidValue,
        Self::Exposed,
        Self::NoSuchConnection,
        Self::Conflict,
        Self::AddressInUse,
        Self::NotRunning,
        Self::Ending,
        Self::OtherVersion,
        Self::Internal,
        Self::Other,
    ];

    /// Its name in the API; a refusal has its own.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kubeconfig => "kubeconfig",
            Self::InvalidValue => "invalid_value",
            Self::Exposed => "exposed",
            Self::NoSuchConnection => "no_such_connection",
            Self::Conflict => "conflict",
            Self::AddressInUse => "address_in_use",
            Self::NotRunning => "not_running",
            Self::Ending => "ending",
            Self::OtherVersion => "other_version",
            Self::Internal => "daemon_internal",
            Self::Other => "other",
            Self::Refused(refusal) => refusal.as_str(),
        }
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let refusals = Refusal::ALL.into_iter().map(Self::Refused);
        let mut all = Self::PLAIN.into_iter().chain(refusals);
        let found = all.find(|code| code.as_str() == text);
        found.ok_or_else(|| de::Error::custom("no code of this API"))
    }
}

impl ApiError {
    /// An error without a cause.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            causes: Vec::new(),
        }
    }

    /// An error with this cause.
    pub fn caused_by(
        code: Code,
        message: impl Into<String>,
        error: &(dyn Error + 'static),
    ) -> Self {
        let mut causes = vec![error.to_string()];
        causes.extend(causes_of(error));
        Self {
            causes,
            ..Self::new(code, message)
        }
    }

    /// An error with the message and causes of `error`.
    fn of(code: Code, error: &(dyn Error + 'static)) -> Self {
        Self {
            causes: causes_of(error),
            ..Self::new(code, error.to_string())
        }
    }

    /// The error for a connection that does not exist.
    pub fn no_such_connection(id: &str) -> Self {
        let message = match identity::is_id(id) {
            true => format!("there is no connection {id}: kubevpn status lists those there are"),
            false => format!(
                "{id:?} is no connection ID, which has twelve hex digits: kubevpn status lists those there are"
            ),
        };
        Self::new(Code::NoSuchConnection, message)
    }

    /// The message with its causes, in one line.
    pub fn whole(&self) -> String {
        let all = std::iter::once(&self.message).chain(&self.causes);
        all.map(String::as_str).collect::<Vec<_>>().join(": ")
    }
}

fn causes_of(error: &(dyn Error + 'static)) -> Vec<String> {
    std::iter::successors(error.source(), |&error| error.source())
        .map(ToString::to_string)
        .collect()
}

impl From<&KubeconfigError> for ApiError {
    fn from(error: &KubeconfigError) -> Self {
        Self::of(Code::Kubeconfig, error)
    }
}

impl From<KubeconfigError> for ApiError {
    fn from(error: KubeconfigError) -> Self {
        Self::from(&error)
    }
}

impl From<ConnectError> for ApiError {
    fn from(error: ConnectError) -> Self {
        Self::of(Code::Refused(error.refusal()), &error)
    }
}

impl From<ListenerError> for ApiError {
    fn from(error: ListenerError) -> Self {
        let code = match &error {
            ListenerError::InUse { .. } => Code::AddressInUse,
            ListenerError::Exposed { .. } => Code::Exposed,
            ListenerError::NotIp { .. }
            | ListenerError::OwnUpstream { .. }
            | ListenerError::Auth(_) => Code::InvalidValue,
            _ => Code::Other,
        };
        Self::of(code, &error)
    }
}

impl From<ClientError> for ApiError {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            // A file may be mounted later, so that another start succeeds.
            ClientError::Certificates(why) if why.is::<std::io::Error>() => {
                Code::Refused(error.refusal())
            }
            // An entry of the kubeconfig cannot be used, or a flag in its place.
            ClientError::Server(_)
            | ClientError::Header(_)
            | ClientError::Proxy(_)
            | ClientError::ServerName(_)
            | ClientError::Certificates(_)
            | ClientError::Token
            | ClientError::Provider { .. } => Code::Kubeconfig,
            ClientError::TokenFile { .. }
            | ClientError::IdToken
            | ClientError::Plugin(_)
            | ClientError::PluginRuns { .. }
            | ClientError::Login(_)
            | ClientError::Transport { .. }
            | ClientError::NoAnswer { .. } => Code::Refused(error.refusal()),
        };
        Self::of(code, &error)
    }
}

/// Adds the failed action to an error.
pub(crate) trait ErrorContext<T> {
    fn context(self, what: impl Into<String>) -> Result<T, ApiError>;
}

impl<T, E: Error + 'static> ErrorContext<T> for Result<T, E> {
    fn context(self, what: impl Into<String>) -> Result<T, ApiError> {
        self.map_err(|error| ApiError::caused_by(Code::Other, what, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_read_back() {
        let refusals = Refusal::ALL.into_iter().map(Code::Refused);
        for code in Code::PLAIN.into_iter().chain(refusals) {
            let error = ApiError {
                causes: vec!["why".into()],
                ..ApiError::new(code, "no")
            };
            let json = serde_json::to_string(&error).unwrap();
            assert_eq!(
                serde_json::from_str::<ApiError>(&json).unwrap(),
                error,
                "{json}"
            );
        }
        assert!(serde_json::from_str::<Code>("\"x\"").is_err());
    }

    #[test]
    fn a_text_that_is_no_id_is_quoted() {
        let said = |id| ApiError::no_such_connection(id).message;
        assert!(said("03dc50feb8c3").starts_with("there is no connection 03dc50feb8c3"));
        assert!(said("a\nb").starts_with(r#""a\nb" is no connection ID"#));
    }

    #[test]
    fn what_keeps_a_client_from_being_built_has_its_code() {
        let why = || "why".into();
        let source = || std::io::Error::other("why");
        let refused = Code::Refused;
        let path = || "/token".into();
        let server = || "https://127.0.0.1:6443".into();
        let after = std::time::Duration::from_secs(1);
        let command = || "login".to_owned();
        let plugin = kubevpn_client::PluginError {
            command: command(),
            failure: kubevpn_client::PluginFailure::Missing,
            hint: None,
        };
        for (error, code) in [
            (ClientError::Server("x".into()), Code::Kubeconfig),
            (ClientError::Header(why()), Code::Kubeconfig),
            (ClientError::ServerName("x".into()), Code::Kubeconfig),
            (ClientError::Certificates(why()), Code::Kubeconfig),
            (
                ClientError::Certificates(source().into()),
                refused(Refusal::Unauthenticated),
            ),
            (ClientError::Token, Code::Kubeconfig),
            (
                ClientError::TokenFile {
                    path: path(),
                    source: source(),
                },
                refused(Refusal::Unauthenticated),
            ),
            (
                ClientError::Provider {
                    name: "x".into(),
                    instead: "y",
                },
                Code::Kubeconfig,
            ),
            (ClientError::IdToken, refused(Refusal::Unauthenticated)),
            (
                ClientError::Plugin(plugin),
                refused(Refusal::Unauthenticated),
            ),
            (
                ClientError::PluginRuns {
                    command: command(),
                    after,
                },
                refused(Refusal::Unauthenticated),
            ),
            (
                ClientError::Transport {
                    server: server(),
                    source: why(),
                },
                refused(Refusal::ClusterAway),
            ),
            (
                ClientError::NoAnswer {
                    server: server(),
                    after,
                },
                refused(Refusal::TimedOut),
            ),
        ] {
            let said = error.to_string();
            assert_eq!(ApiError::from(error).code, code, "{said}");
        }
    }

    #[test]
    fn causes_are_kept_in_order() {
        let source = std::io::Error::other("the disk is full");
        let error = ApiError::caused_by(Code::Other, "cannot write", &source);
        assert_eq!(error.whole(), "cannot write: the disk is full");
    }
}
