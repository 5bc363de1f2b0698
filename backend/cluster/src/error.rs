//! Errors of a lookup.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use kubevpn_target::{ConnectError, Refusal};

use crate::PodRef;

/// Why a lookup found nothing to dial. Cheap to clone: one answer serves all waiters.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// No object has the name, and it can only belong to this cluster.
    #[error("nothing in the cluster is named {name}: {because}")]
    NameNotFound {
        /// The name, and what pointed to it.
        name: String,
        /// The objects that were looked for and do not exist.
        because: String,
    },
    /// The Service has no TCP port of that number, or none at all; `ports` lists those it has.
    #[error("service {service} has no TCP port{}, {ports}", spaced(.port))]
    NoSuchPort {
        /// `namespace/name`.
        service: String,
        /// The requested port.
        port: Option<NonZeroU16>,
        /// Its ports, as a clause.
        ports: String,
    },
    /// No endpoint may be used.
    #[error("{asked} has no ready endpoint: {census}")]
    NotReady {
        /// The target in words.
        asked: String,
        /// How many endpoints there are, and why none is ready.
        census: String,
    },
    /// The ready endpoints are not Pods.
    #[error("{asked} is served by {address}, which port-forward cannot reach: {reason}")]
    NotAPod {
        /// The target in words.
        asked: String,
        /// The address of the endpoint.
        address: String,
        /// Why it cannot be reached.
        reason: String,
    },
    /// Several Pods share this address, and none of them declares the port.
    #[error(
        "{ip} is the node address of {}, none of which declares TCP port {port}: dial one as <pod-name>.<namespace>.pod",
        list(pods)
    )]
    AmbiguousAddress {
        /// The requested address.
        ip: IpAddr,
        /// The requested port.
        port: u16,
        /// The Pods that share the address.
        pods: Vec<PodRef>,
    },
    /// ExternalName Services form a loop or a chain that is too long.
    #[error("service {service} is an ExternalName that leads nowhere: {reason}")]
    ExternalName {
        /// `namespace/name`.
        service: String,
        /// The external name, and what is wrong with it.
        reason: String,
    },
    /// The access rules do not show whether the name exists.
    #[error("{sentence}")]
    Forbidden {
        /// The sentence for the user: the unknown object and the missing right.
        sentence: String,
        /// The refused call; its text is in the sentence.
        call: Arc<ConnectError>,
    },
    /// A call to the API server failed.
    #[error("{0}")]
    Api(Arc<ConnectError>),
}

fn spaced(port: &Option<NonZeroU16>) -> String {
    port.map(|port| format!(" {port}")).unwrap_or_default()
}

fn list(pods: &[PodRef]) -> String {
    const SHOWN: usize = 4;
    let mut names: Vec<_> = pods.iter().take(SHOWN).map(PodRef::to_string).collect();
    if pods.len() > SHOWN {
        names.push(format!("{} more", pods.len() - SHOWN));
    }
    format!("pods {}", names.join(", "))
}

impl LookupError {
    /// The class every frontend knows.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::NameNotFound { .. } => Refusal::NameNotFound,
            Self::NoSuchPort { .. } => Refusal::NoSuchPort,
            Self::NotReady { .. } => Refusal::NotReady,
            Self::NotAPod { .. } | Self::AmbiguousAddress { .. } | Self::ExternalName { .. } => {
                Refusal::Unreachable
            }
            Self::Forbidden { .. } => Refusal::Forbidden,
            Self::Api(error) => error.refusal(),
        }
    }
}

impl From<LookupError> for ConnectError {
    fn from(error: LookupError) -> Self {
        let ours = Self::new(error.refusal(), error.to_string());
        match error {
            LookupError::Forbidden { call, .. } | LookupError::Api(call)
                if call.source().is_some() =>
            {
                ours.with_source(CauseOf(call))
            }
            _ => ours,
        }
    }
}

impl From<Arc<ConnectError>> for LookupError {
    fn from(call: Arc<ConnectError>) -> Self {
        Self::Api(call)
    }
}

/// The cause of a shared error without the error itself, whose text was printed already.
#[derive(Debug)]
struct CauseOf(Arc<ConnectError>);

impl fmt::Display for CauseOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .source()
            .map_or(Ok(()), |cause| fmt::Display::fmt(cause, f))
    }
}

impl Error for CauseOf {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()?.source()
    }
}
