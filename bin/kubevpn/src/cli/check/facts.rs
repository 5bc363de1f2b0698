//! Facts that `kubevpn check` judges: plain values, so that a test can construct every case.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use kubevpn_client::ShownCredentials;
use kubevpn_daemon::ApiError;
use kubevpn_proxy::probe::{AccessRight, PortForwardAccess};

pub(super) use crate::cli::holder::PortHolder;
use crate::exit::{Failure, exit_code};

/// All facts. `None` and empty lists were not read, because an earlier probe failed.
#[derive(Clone, Debug, Default)]
pub(super) struct CheckFacts {
    /// This machine's time.
    pub(super) now: Option<SystemTime>,
    pub(super) kubeconfig: Option<Result<KubeconfigFacts, CheckFailure>>,
    pub(super) server: Option<Result<ServerFacts, CheckFailure>>,
    /// Addresses of the API server's name, if it is reached without a proxy.
    pub(super) addresses: Vec<AddressFacts>,
    pub(super) credentials: Option<CredentialFacts>,
    /// Each right and whether the access rules allow it.
    pub(super) rights: Option<Result<Vec<(AccessRight, bool)>, CheckFailure>>,
    pub(super) transports: Vec<Tried>,
    pub(super) names: Option<NameFacts>,
    pub(super) ranges: Option<Ranges>,
    /// Address for the proxy's listener.
    pub(super) listener: Option<ListenerFacts>,
    pub(super) proxies: Vec<ProxyVariable>,
    pub(super) lookup: Option<Lookup>,
    /// The hard limit on open files; `Some(None)` for no limit.
    pub(super) files: Option<Option<u64>>,
    /// Whether `run --isolated` works here, else the reason and advice. `None` on systems without it.
    pub(super) isolated: Option<Result<(), String>>,
}

/// A failure: its exit code, and the sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CheckFailure {
    pub(super) code: u8,
    pub(super) sentence: String,
}

impl CheckFailure {
    pub(super) fn of(error: impl Into<ApiError>) -> Self {
        let error = error.into();
        Self {
            sentence: error.message.clone(),
            code: exit_code(&Failure::Api(error)),
        }
    }
}

/// The selected entries of the kubeconfig.
#[derive(Clone, Debug)]
pub(super) struct KubeconfigFacts {
    pub(super) files: Vec<String>,
    pub(super) context: Option<String>,
    pub(super) user: Option<String>,
    pub(super) namespace: String,
    pub(super) server: String,
    /// Entries that are broken, and not used.
    pub(super) notes: Vec<String>,
    pub(super) trust: Trust,
    /// The proxy to the API server, without its password.
    pub(super) proxy: Option<String>,
    /// Whether the proxy is from the environment.
    pub(super) proxy_of_env: bool,
}

/// Trust anchor for the certificate of the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// The `certificate-authority` of the cluster's entry.
    Kubeconfig,
    /// The system's trust store.
    System,
    /// Nothing is verified: `insecure-skip-tls-verify`.
    Nobody,
    /// The connection has no TLS.
    Plain,
}

/// An API server that answers.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerFacts {
    /// Version as `v1.34.4`, if it may be read.
    pub(super) version: Option<String>,
    /// Minor version: 34.
    pub(super) minor: Option<u32>,
    /// Until the first answer: name lookup, TCP, proxy, TLS and one request.
    pub(super) first: Duration,
    /// The shortest time of a request on the open connection.
    pub(super) round_trip: Duration,
    /// Seconds by which this machine's clock is ahead of the server's.
    pub(super) ahead: Option<i64>,
}

#[derive(Clone, Debug)]
pub(super) struct AddressFacts {
    pub(super) ip: IpAddr,
    /// This machine has a route to it.
    pub(super) routed: bool,
}

/// The client's credentials, and the API server's verdict.
#[derive(Clone, Debug, Default)]
pub(super) struct CredentialFacts {
    pub(super) shown: Option<ShownCredentials>,
    /// Reason why there are none, or why they are rejected.
    pub(super) trouble: Option<CheckFailure>,
}

/// A transport and the result of its dial.
#[derive(Clone, Debug)]
pub(super) struct Tried {
    pub(super) transport: String,
    pub(super) came: Result<PortForwardAccess, CheckFailure>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct NameFacts {
    /// Suffix of the cluster's names.
    pub(super) domain: String,
    /// Number of ready endpoints of the cluster's DNS, or the reason why it is not known.
    pub(super) dns: Option<Result<usize, String>>,
}

/// An address range of the cluster, and whether this machine has another route for it.
#[derive(Clone, Debug)]
pub(super) struct Ranges {
    pub(super) services: Result<Vec<RangeFacts>, String>,
    pub(super) pods: Result<Vec<RangeFacts>, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RangeFacts {
    pub(super) cidr: String,
    /// Source address of a route into this range, other than the default route.
    pub(super) routed_by: Option<IpAddr>,
}

/// Address for the proxy's listener, and its holder.
#[derive(Clone, Debug)]
pub(super) struct ListenerFacts {
    pub(super) address: String,
    pub(super) state: PortHolder,
}

/// A variable that names a proxy.
#[derive(Clone, Debug)]
pub(super) struct ProxyVariable {
    pub(super) name: &'static str,
    /// The URL without its password.
    pub(super) url: String,
    /// Holder of the port, if it is on this machine.
    pub(super) held: Option<PortHolder>,
    /// `KUBEVPN_PROXIES` names it: it was set by `kubevpn env` or `kubevpn run`.
    pub(super) known: bool,
}

/// Answer of this machine's own DNS.
#[derive(Clone, Debug, Default)]
pub(super) struct Lookup {
    /// A name of the cluster.
    pub(super) name: String,
    /// Its addresses by this machine's DNS, usually none.
    pub(super) addresses: Vec<IpAddr>,
    /// Its address in the API.
    pub(super) real: Option<IpAddr>,
}
