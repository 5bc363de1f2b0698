//! Why no stream was opened, in one enum.

use http::StatusCode;
use kubevpn_target::{BoxError, ConnectError, Refusal};

use crate::config::Transport;

/// Why a dial failed. No byte of the client was taken in by the Pod.
///
/// `Display` is the sentence for the user; the cause, where there is one, is the source.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The API server knows no such Pod.
    #[error("pod {pod} does not exist; it may just have been replaced, so try again")]
    PodNotFound {
        /// `namespace/name`.
        pod: String,
    },

    /// The Pod's side said that nothing can be reached on the port.
    #[error("{to} refused the connection: {reason}")]
    Refused {
        /// `namespace/name:port`.
        to: String,
        /// The last clause of what the container runtime said, bounded.
        reason: String,
    },

    /// The API server's access rules forbid the forward by every verb it can be asked with.
    #[error(
        "not allowed to forward ports of pod {pod}: ask for the verbs {verbs} on pods/portforward \
         (API group \"\") in namespace {namespace}; the API server says: {message}"
    )]
    Forbidden {
        /// `namespace/name`.
        pod: String,
        /// Where the rights are missing.
        namespace: String,
        /// The verbs that were refused, e.g. `create and get`.
        verbs: &'static str,
        /// The API server's own words, bounded.
        message: String,
    },

    /// The API server does not accept who we are.
    #[error(
        "the API server does not accept the kubeconfig's credentials for a port-forward: {message}; \
         log in again"
    )]
    Unauthenticated {
        /// The API server's own words, bounded.
        message: String,
    },

    /// The request did not get to the API server, classified by the client.
    #[error("{0}")]
    Api(#[source] ConnectError),

    /// Something on the way to the Pod's node turned every transport down.
    #[error("no port-forward to pod {pod}: {}", answers(.tried))]
    Rejected {
        /// `namespace/name`.
        pod: String,
        /// What was tried and what came back.
        tried: Vec<Rejection>,
    },

    /// No answer within the bound of the step.
    #[error("pod {pod} did not answer within {} ms while {step}; try again", .after.as_millis())]
    TimedOut {
        /// `namespace/name`.
        pod: String,
        /// What was waited for.
        step: &'static str,
        /// How long.
        after: std::time::Duration,
    },

    /// The session broke before the stream was answered.
    #[error("the port-forward session to pod {pod} broke while the connection was opened; try again")]
    SessionLost {
        /// `namespace/name`.
        pod: String,
        /// What broke it.
        #[source]
        source: BoxError,
    },

    /// A bound on open connections is reached.
    #[error("{what} has {limit} connections open, which is the limit; close some and try again")]
    Overloaded {
        /// The Pod, or this program.
        what: String,
        /// The limit.
        limit: usize,
        /// Whether another Pod could take the connection.
        elsewhere: bool,
    },

    /// The forwarder was shut down.
    #[error("the proxy is shutting down and opens no new connections")]
    ShutDown,
}

/// One transport's refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Which.
    pub transport: Transport,
    /// The status of the answer; none where the connection was dropped instead.
    pub status: Option<StatusCode>,
    /// What was said, bounded.
    pub message: String,
}

impl ForwardError {
    /// The class a frontend answers with.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::PodNotFound { .. } => Refusal::NameNotFound,
            Self::Refused { .. } => Refusal::Refused,
            Self::Forbidden { .. } => Refusal::Forbidden,
            Self::Unauthenticated { .. } => Refusal::Unauthenticated,
            Self::Api(error) => error.refusal(),
            Self::Rejected { .. } => Refusal::Unreachable,
            Self::TimedOut { .. } => Refusal::TimedOut,
            Self::SessionLost { .. } => Refusal::ClusterAway,
            Self::Overloaded { .. } | Self::ShutDown => Refusal::Overloaded,
        }
    }

    /// Whether a dial to another Pod may do better.
    ///
    /// Every error of a dial comes before a byte was exchanged, so that this is the whole question.
    pub fn retryable(&self) -> bool {
        match self {
            Self::PodNotFound { .. }
            | Self::Refused { .. }
            | Self::Rejected { .. }
            | Self::TimedOut { .. }
            | Self::SessionLost { .. } => true,
            Self::Overloaded { elsewhere, .. } => *elsewhere,
            Self::Forbidden { .. }
            | Self::Unauthenticated { .. }
            | Self::Api(_)
            | Self::ShutDown => false,
        }
    }
}

impl From<ForwardError> for ConnectError {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::Api(error) => error,
            error => Self::new(error.refusal(), error.to_string()).with_source(error),
        }
    }
}

fn answers(tried: &[Rejection]) -> String {
    let mut text = String::new();
    for (
        i,
        Rejection {
            transport,
            status,
            message,
        },
    ) in tried.iter().enumerate()
    {
        if i > 0 {
            text.push_str("; ");
        }
        text.push_str(transport.as_str());
        text.push_str(": ");
        if let Some(status) = status {
            text.push_str(status.as_str());
            text.push(' ');
        }
        text.push_str(message);
    }
    text
}
