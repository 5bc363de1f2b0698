//! Why there is no cluster, and why a port is not opened.

use kubevpn_client::{ClientError, KubeconfigError};
use kubevpn_conn::BindError;
use kubevpn_target::TargetError;

/// Why there is no [`Cluster`](crate::Cluster).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// There is no kubeconfig, or it cannot be used.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// What the configuration says of the API server or the credentials cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Why a [`LocalPort`](crate::LocalPort) is not opened.
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
