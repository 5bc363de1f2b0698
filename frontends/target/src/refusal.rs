//! Refusals: the classes of failed dials.

use std::error::Error;
use std::sync::Arc;
use std::{fmt, io};

/// Any error, as tower's layers pass it on.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Why no stream was opened.
///
/// On purpose not `#[non_exhaustive]`: every frontend maps it in one `match` without a `_` arm, so that a new class does
/// not compile until each frontend maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No such Service, namespace, Pod or host.
    NameNotFound,
    /// The Service exists and has no such TCP port.
    NoSuchPort,
    /// The Service has no ready endpoint.
    NotReady,
    /// Nothing listens on the port.
    Refused,
    /// The target exists and cannot be dialled from here.
    Unreachable,
    /// The API server cannot be reached.
    ClusterAway,
    /// The cluster's access rules forbid it.
    Forbidden,
    /// A rule of the proxy itself forbids it.
    Denied,
    /// Dialling, or waiting for readiness, took too long.
    TimedOut,
    /// A limit on connections is reached.
    Overloaded,
    /// The cluster rejects our credentials.
    Unauthenticated,
    /// A bug of ours.
    Internal,
}

/// The party responsible for a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The client: its request cannot be served.
    Client,
    /// The cluster, or a workload in it.
    Cluster,
    /// The network between us and the cluster.
    Network,
    /// This program.
    Us,
}

impl Refusal {
    /// All classes, for tables and tests.
    pub const ALL: [Self; 12] = [
        Self::NameNotFound,
        Self::NoSuchPort,
        Self::NotReady,
        Self::Refused,
        Self::Unreachable,
        Self::ClusterAway,
        Self::Forbidden,
        Self::Denied,
        Self::TimedOut,
        Self::Overloaded,
        Self::Unauthenticated,
        Self::Internal,
    ];

    /// The responsible party.
    ///
    /// ```
    /// use kubevpn_target::{Fault, Refusal};
    /// assert_eq!(Refusal::NoSuchPort.fault(), Fault::Client);
    /// ```
    pub fn fault(self) -> Fault {
        match self {
            Self::NameNotFound | Self::NoSuchPort | Self::Denied => Fault::Client,
            Self::NotReady | Self::Refused | Self::Unreachable | Self::Forbidden => Fault::Cluster,
            Self::ClusterAway | Self::TimedOut | Self::Unauthenticated => Fault::Network,
            Self::Overloaded | Self::Internal => Fault::Us,
        }
    }

    /// The name in logs and metrics.
    ///
    /// ```
    /// assert_eq!(kubevpn_target::Refusal::NotReady.as_str(), "not_ready");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NameNotFound => "name_not_found",
            Self::NoSuchPort => "no_such_port",
            Self::NotReady => "not_ready",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::ClusterAway => "cluster_away",
            Self::Forbidden => "forbidden",
            Self::Denied => "denied",
            Self::TimedOut => "timed_out",
            Self::Overloaded => "overloaded",
            Self::Unauthenticated => "unauthenticated",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal with one sentence for the user, and its cause.
///
/// `Display` is the sentence: what failed, on what, and what to try next. Frontends send it where their
/// protocol has room; logs carry the same words.
///
/// ```
/// use kubevpn_target::{ConnectError, Refusal};
/// let error = ConnectError::new(Refusal::NoSuchPort, "service shop/web has no TCP port 81, it has 80 (http)");
/// assert_eq!(error.refusal(), Refusal::NoSuchPort);
/// assert_eq!(error.to_string(), "service shop/web has no TCP port 81, it has 80 (http)");
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct ConnectError {
    refusal: Refusal,
    sentence: Box<str>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ConnectError {
    /// A refusal and its sentence.
    pub fn new(refusal: Refusal, sentence: impl Into<String>) -> Self {
        Self {
            refusal,
            sentence: sentence.into().into(),
            source: None,
        }
    }

    /// Adds the error that caused it. The sentence should not repeat the cause's text.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into().into());
        self
    }

    /// The class.
    pub fn refusal(&self) -> Refusal {
        self.refusal
    }
}

/// Classifies the error of any backend.
///
/// A [`ConnectError`] is passed on as it is; otherwise the chain of causes is searched for one, then for an
/// [`io::Error`] and, with the feature `tower`, for tower's timeout and overload errors. Any other error is
/// [`Refusal::Internal`].
///
/// ```
/// use kubevpn_target::{Refusal, classify};
/// let error = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
/// assert_eq!(classify(error.into()).refusal(), Refusal::Refused);
/// ```
pub fn classify(error: BoxError) -> ConnectError {
    let error = match error.downcast::<ConnectError>() {
        Ok(ours) => return *ours,
        Err(other) => other,
    };
    let ours = chain(&*error).find_map(|e| e.downcast_ref::<ConnectError>());
    let (refusal, sentence) = match ours {
        Some(ours) => (ours.refusal, ours.sentence.clone()),
        None => (
            chain(&*error).find_map(known).unwrap_or(Refusal::Internal),
            error.to_string().into(),
        ),
    };
    ConnectError {
        refusal,
        sentence,
        source: Some(error.into()),
    }
}

/// The error and its causes, including the error inside an [`io::Error`], which its `source` skips.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        match error.downcast_ref().and_then(io::Error::get_ref) {
            Some(held) => Some(held),
            None => error.source(),
        }
    })
}

/// The class of an error of another library.
fn known(error: &(dyn Error + 'static)) -> Option<Refusal> {
    #[cfg(feature = "tower")]
    if error.is::<tower::timeout::error::Elapsed>() {
        return Some(Refusal::TimedOut);
    } else if error.is::<tower::load_shed::error::Overloaded>() {
        return Some(Refusal::Overloaded);
    }
    error.downcast_ref().and_then(classify_io)
}

fn classify_io(error: &io::Error) -> Option<Refusal> {
    use io::ErrorKind as K;
    Some(match error.kind() {
        K::ConnectionRefused | K::ConnectionReset => Refusal::Refused,
        K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown | K::AddrNotAvailable => {
            Refusal::Unreachable
        }
        K::TimedOut => Refusal::TimedOut,
        K::NotFound => Refusal::NameNotFound,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("wrapped")]
    struct Wrapped(#[source] BoxError);

    fn of(error: impl Into<BoxError>) -> Refusal {
        classify(error.into()).refusal()
    }

    #[test]
    fn one_row_per_case() {
        let io = |kind: io::ErrorKind| of(io::Error::from(kind));
        assert_eq!(io(io::ErrorKind::ConnectionRefused), Refusal::Refused);
        assert_eq!(io(io::ErrorKind::HostUnreachable), Refusal::Unreachable);
        assert_eq!(io(io::ErrorKind::NetworkUnreachable), Refusal::Unreachable);
        assert_eq!(io(io::ErrorKind::TimedOut), Refusal::TimedOut);
        assert_eq!(io(io::ErrorKind::NotFound), Refusal::NameNotFound);
        assert_eq!(io(io::ErrorKind::InvalidData), Refusal::Internal);
        assert_eq!(of("a string"), Refusal::Internal);
        assert_eq!(
            of(Wrapped(io::Error::from(io::ErrorKind::TimedOut).into())),
            Refusal::TimedOut
        );
        let ours = || ConnectError::new(Refusal::Forbidden, "no");
        assert_eq!(of(ours()), Refusal::Forbidden);
        assert_eq!(of(Wrapped(ours().into())), Refusal::Forbidden);
        assert_eq!(classify(Wrapped(ours().into()).into()).to_string(), "no");
        // An `io::Error` may hold any of these.
        let held = |error: BoxError| of(io::Error::other(error));
        assert_eq!(held(ours().into()), Refusal::Forbidden);
        assert_eq!(held(Wrapped(ours().into()).into()), Refusal::Forbidden);
        let timed_out = io::Error::new(io::ErrorKind::TimedOut, ours());
        assert_eq!(classify(timed_out.into()).refusal(), Refusal::Forbidden);
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(held(refused.into()), Refusal::Refused);
    }

    #[cfg(feature = "tower")]
    #[test]
    fn towers_own_errors() {
        assert_eq!(of(tower::timeout::error::Elapsed::new()), Refusal::TimedOut);
        assert_eq!(
            of(tower::load_shed::error::Overloaded::new()),
            Refusal::Overloaded
        );
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::HashSet<_> = Refusal::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(names.len(), Refusal::ALL.len());
    }
}
