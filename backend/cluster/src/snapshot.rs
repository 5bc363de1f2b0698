//! What is known of the cluster's objects when a query is resolved.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::IPAddress;

use crate::fetch::Failure;
use crate::name::Domain;
use crate::select::{Objects, Select};
use crate::settings::Settings;
use crate::{LookupError, PodRef};

/// One thing that has to be read.
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

/// A search for the Pods' addresses that no selector finds: those that are not a Pod's first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Search {
    /// One namespace; `None` for as many as may be seen.
    pub(crate) within: Option<String>,
    pub(crate) v4: bool,
    /// All Pods, or a sample.
    pub(crate) all: bool,
}

/// What a [`Search`] found.
#[derive(Debug, Default)]
pub(crate) struct Second {
    pub(crate) pods: HashMap<IpAddr, ObjectName>,
    /// The networks these addresses are in.
    pub(crate) networks: HashSet<u32>,
    pub(crate) hidden: Option<Failure>,
}

impl Second {
    /// The first 8 bits of an IPv4 address, 32 of an IPv6 address: no cluster gives its Pods addresses of more than a
    /// few.
    pub(crate) fn network(ip: IpAddr) -> u32 {
        match ip {
            IpAddr::V4(ip) => u32::from(ip) >> 24,
            IpAddr::V6(ip) => (ip.to_bits() >> 96) as u32,
        }
    }
}

/// Namespace and name.
pub(crate) type ObjectName = (String, String);

/// What reading each selection of one kind came to.
pub(crate) type Facts<K> = HashMap<Select, Result<Objects<K>, Failure>>;

/// Everything a resolution may rest on. Nothing in it says how old it is: that is the store's business.
pub(crate) struct Snapshot<'a> {
    pub(crate) settings: &'a Settings,
    /// The cluster's domain as far as it is known without asking.
    pub(crate) guess: Arc<Domain>,
    pub(crate) domain: Option<Arc<Domain>>,
    /// Whether the cluster's DNS may know names under the domain that no object has.
    pub(crate) additions: Option<bool>,
    pub(crate) services: Facts<Service>,
    pub(crate) slices: Facts<EndpointSlice>,
    pub(crate) pods: Facts<Pod>,
    pub(crate) addresses: Facts<IPAddress>,
    pub(crate) namespaces: Facts<Namespace>,
    pub(crate) second: HashMap<Search, Result<Arc<Second>, Failure>>,
    pub(crate) hints: Hints,
}

impl<'a> Snapshot<'a> {
    pub(crate) fn new(settings: &'a Settings, guess: Arc<Domain>, hints: Hints) -> Self {
        Self {
            settings,
            guess,
            domain: None,
            additions: None,
            services: Facts::new(),
            slices: Facts::new(),
            pods: Facts::new(),
            addresses: Facts::new(),
            namespaces: Facts::new(),
            second: HashMap::new(),
            hints,
        }
    }
}

/// Where to look for an address first. They spare questions and change no answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hints {
    /// The object that had it when it was last looked for; checked at each use.
    pub(crate) owner: Option<Owner>,
    /// Selections of Pods with the address that were not empty.
    pub(crate) pods: Vec<Select>,
    /// The Pod with it behind a Service in use, and whether that has the port.
    pub(crate) seen: Option<(PodRef, bool)>,
}

/// The object that an address belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Service(ObjectName),
    /// A Pod, by an address that is not its first.
    Pod(ObjectName),
}

/// Why a resolution does not go on.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Something has to be read first.
    Needs(Needs),
    /// A call failed.
    Failed(Failure),
    /// The object is there and cannot serve.
    Error(LookupError),
}

/// What to read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) first: Need,
    /// What will be needed next as a rule, the likeliest first.
    pub(crate) soon: Vec<Need>,
}

impl Stop {
    pub(crate) fn needs(first: Need) -> Self {
        let soon = Vec::new();
        Self::Needs(Needs { first, soon })
    }

    /// The same, where these will be needed next.
    pub(crate) fn with_soon(self, soon: Vec<Need>) -> Self {
        match self {
            Self::Needs(needs) => Self::Needs(Needs { soon, ..needs }),
            stop => stop,
        }
    }

    /// A failed call decides, and no other meaning is tried.
    pub(crate) fn for_good(self) -> Self {
        match self {
            Self::Failed(failure) => Self::Error(failure.into()),
            stop => stop,
        }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<LookupError> for Stop {
    fn from(error: LookupError) -> Self {
        Self::Error(error)
    }
}

/// One step of a resolution.
pub(crate) type Step<T> = Result<T, Stop>;

/// What a fact says, or that it has to be read.
pub(crate) fn fact<Q: Eq + Hash + Clone, T>(
    facts: &HashMap<Q, Result<T, Failure>>,
    question: Q,
    need: fn(Q) -> Need,
) -> Step<&T> {
    match facts.get(&question) {
        Some(Ok(fact)) => Ok(fact),
        Some(Err(failure)) => Err(failure.clone().into()),
        None => Err(Stop::needs(need(question))),
    }
}

/// `None` where it cannot be read.
pub(crate) fn readable<T>(step: Step<T>) -> Step<Option<T>> {
    match step {
        Ok(found) => Ok(Some(found)),
        Err(Stop::Failed(_)) => Ok(None),
        Err(stop) => Err(stop),
    }
}
