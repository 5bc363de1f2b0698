//! Every written form of a Service or Pod name: parsing only.

use std::fmt;

use kubevpn_target::{Name, TargetError};

/// The names that belong to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    cluster: Name,
    suffixes: Vec<Name>,
}

impl Domain {
    /// A cluster domain, `cluster.local` in most clusters.
    pub fn new(cluster: &str) -> Result<Self, TargetError> {
        Ok(Self {
            cluster: Name::parse(cluster)?,
            suffixes: Vec::new(),
        })
    }

    /// Adds a suffix whose names belong to the cluster too, though only its DNS knows them.
    pub fn with_suffix(mut self, suffix: &str) -> Result<Self, TargetError> {
        self.suffixes.push(Name::parse(suffix)?);
        Ok(self)
    }

    /// Whether a name is the cluster's by its ending.
    pub fn contains(&self, name: &Name) -> bool {
        let mut endings = std::iter::once(&self.cluster).chain(&self.suffixes);
        endings.any(|ending| under(name.as_str(), ending.as_str()).is_some())
    }
}

impl Default for Domain {
    fn default() -> Self {
        Self::new("cluster.local").expect("a constant that is a name")
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cluster.as_str())
    }
}

/// What stands before `.suffix`; empty when the name is the suffix itself.
fn under<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    match name.strip_suffix(suffix)? {
        "" => Some(""),
        rest => rest.strip_suffix('.'),
    }
}
