//! Errors of making a cluster and of opening a local port.

use kubevpn_client::{ClientError, KubeconfigError};
use kubevpn_conn::BindError;
use kubevpn_target::TargetError;

/// Error of making a [`Cluster`](crate::Cluster).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// There is no kubeconfig, or it cannot be used.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// The API server or the credentials of the configuration cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Error of opening a [`LocalPort`](crate::LocalPort).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalPortError {
    /// The text is not `HOST:PORT`.
    #[error("{text:?} names no target")]
    Target {
        /// The text.
        text: String,
        /// The reason.
        #[source]
        source: TargetError,
    },
    /// The address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
}
