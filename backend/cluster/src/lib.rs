//! What exists in the cluster: names and addresses to [`Candidates`].

mod candidates;
#[cfg(feature = "watch")]
mod cluster;
mod error;
mod name;

pub use self::candidates::{Answer, Candidates, Endpoint, Outside, PodRef, Readiness, Stray};
#[cfg(feature = "watch")]
pub use self::cluster::{Cluster, Settings};
pub use self::error::LookupError;
pub use self::name::Domain;
