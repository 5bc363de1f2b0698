//! Snapshots: the objects known when a query is resolved.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::IPAddress;

use crate::fetch::CallFailure;
use crate::name::Domain;
use crate::select::{Objects, Select};
use crate::settings::Settings;
use crate::{LookupError, PodRef};

/// One fact that has to be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Need {
    Domain,
    Additions,
    Services(Select),
    Slices(Select),
    Pods(Select),
    Addresses(Select),
    Namespaces(Select),
    Second(Search),
}

/// A search for addresses that are not a Pod's first, which no field selector finds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Search {
    /// The namespace; `None` for all that may be read.
    pub(crate) within: Option<String>,
    pub(crate) v4: bool,
    /// All Pods, or a sample.
    pub(crate) all: bool,
}

/// What a [`Search`] found.
#[derive(Debug, Default)]
pub(crate) struct Second {
    pub(crate) pods: HashMap<IpAddr, ObjectName>,
    /// The networks of these addresses.
    pub(crate) networks: HashSet<u32>,
    pub(crate) hidden: Option<CallFailure>,
}

impl Second {
    /// The network of an address: its first 8 bits for IPv4, 32 for IPv6. The Pods of a cluster are in a few of these.
    pub(crate) fn network(ip: IpAddr) -> u32 {
        match ip {
            IpAddr::V4(ip) => u32::from(ip) >> 24,
            IpAddr::V6(ip) => (ip.to_bits() >> 96) as u32,
        }
    }
}

/// Namespace and name.
pub(crate) type ObjectName = (String, String);

/// The selections of one kind that were read, or the failures.
pub(crate) type SelectionFacts<K> = HashMap<Select, Result<Objects<K>, CallFailure>>;

/// All facts of a resolution. Their age is known to the store only.
pub(crate) struct Snapshot<'a> {
    pub(crate) settings: &'a Settings,
    /// The cluster's domain, as far as it is known without a call.
    pub(crate) guess: Arc<Domain>,
    pub(crate) domain: Option<Arc<Domain>>,
    /// Whether the cluster's DNS may know names under the domain that no object has.
    pub(crate) additions: Option<bool>,
    pub(crate) services: SelectionFacts<Service>,
    pub(crate) slices: SelectionFacts<EndpointSlice>,
    pub(crate) pods: SelectionFacts<Pod>,
    pub(crate) addresses: SelectionFacts<IPAddress>,
    pub(crate) namespaces: SelectionFacts<Namespace>,
    pub(crate) second: HashMap<Search, Result<Arc<Second>, CallFailure>>,
    pub(crate) hints: Hints,
}

impl<'a> Snapshot<'a> {
    pub(crate) fn new(settings: &'a Settings, guess: Arc<Domain>, hints: Hints) -> Self {
        Self {
            settings,
            guess,
            domain: None,
            additions: None,
            services: SelectionFacts::new(),
            slices: SelectionFacts::new(),
            pods: SelectionFacts::new(),
            addresses: SelectionFacts::new(),
            namespaces: SelectionFacts::new(),
            second: HashMap::new(),
            hints,
        }
    }
}

/// Where to look for an address first. Hints save calls and change no answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hints {
    /// The object that had the address at the last lookup; checked at each use.
    pub(crate) owner: Option<AddressOwner>,
    /// Selections of Pods with the address that were not empty.
    pub(crate) pods: Vec<Select>,
    /// The Pod with the address behind a Service in use, and whether the Service has the port.
    pub(crate) seen: Option<(PodRef, bool)>,
}

/// The object that an address belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AddressOwner {
    Service(ObjectName),
    /// A Pod, by an address that is not its first.
    Pod(ObjectName),
}

/// Why a resolution stops.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Facts have to be read first.
    Needs(Needs),
    /// A call failed.
    Failed(CallFailure),
    /// The object exists and cannot serve.
    Error(LookupError),
}

/// Facts to read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) first: Need,
    /// Facts that are likely to be needed next, the likeliest first.
    pub(crate) soon: Vec<Need>,
}

impl Stop {
    pub(crate) fn needs(first: Need) -> Self {
        let soon = Vec::new();
        Self::Needs(Needs { first, soon })
    }

    /// Adds facts that are likely to be needed next.
    pub(crate) fn with_soon(self, soon: Vec<Need>) -> Self {
        match self {
            Self::Needs(needs) => Self::Needs(Needs { soon, ..needs }),
            stop => stop,
        }
    }

    /// Makes a failed call final: no other meaning is tried.
    pub(crate) fn for_good(self) -> Self {
        match self {
            Self::Failed(failure) => Self::Error(failure.into()),
            stop => stop,
        }
    }
}

impl From<CallFailure> for Stop {
    fn from(failure: CallFailure) -> Self {
        Self::Failed(failure)
    }
}

impl From<LookupError> for Stop {
    fn from(error: LookupError) -> Self {
        Self::Error(error)
    }
}

/// One step of a resolution.
pub(crate) type ResolveStep<T> = Result<T, Stop>;

/// The fact, or the need to read it.
pub(crate) fn fact<Q: Eq + Hash + Clone, T>(
    facts: &HashMap<Q, Result<T, CallFailure>>,
    question: Q,
    need: fn(Q) -> Need,
) -> ResolveStep<&T> {
    match facts.get(&question) {
        Some(Ok(fact)) => Ok(fact),
        Some(Err(failure)) => Err(failure.clone().into()),
        None => Err(Stop::needs(need(question))),
    }
}

/// `None` if the fact cannot be read.
pub(crate) fn readable<T>(step: ResolveStep<T>) -> ResolveStep<Option<T>> {
    match step {
        Ok(found) => Ok(Some(found)),
        Err(Stop::Failed(_)) => Ok(None),
        Err(stop) => Err(stop),
    }
}
