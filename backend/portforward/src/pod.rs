//! Pods and their ports.

use std::fmt;

/// A port of one Pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodPort {
    /// The Pod's namespace.
    pub namespace: String,
    /// The Pod's name.
    pub pod: String,
    /// The Pod's UID if known: a later Pod of the same name is a different one.
    pub uid: Option<String>,
    /// The TCP port inside the Pod.
    pub port: u16,
}

/// `namespace/pod:port`
impl fmt::Display for PodPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.pod, self.port)
    }
}

/// What one more connection to a Pod would find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodSessionState {
    /// No session: the next connection has to open one.
    Closed,
    /// A session is being opened, and no connection waits for it yet.
    Opening,
    /// A session is open.
    Open,
}

impl PodPort {
    /// `namespace/pod`
    pub(crate) fn pod_name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }
}

/// Identity of a Pod, by which its sessions are kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodId {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) uid: Option<String>,
}

impl PodId {
    /// Whether the names are valid for a Pod: they become part of a URL.
    pub(crate) fn is_valid(&self) -> bool {
        [&self.namespace, &self.pod].into_iter().all(|name| {
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
            !name.is_empty() && !name.starts_with('.') && name.bytes().all(fits)
        })
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

impl From<&PodPort> for PodId {
    fn from(to: &PodPort) -> Self {
        Self {
            namespace: to.namespace.clone(),
            pod: to.pod.clone(),
            uid: to.uid.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_pod_has_stay_out_of_urls() {
        let valid = |namespace: &str, pod: &str| {
            let (namespace, pod) = (namespace.into(), pod.into());
            let uid = None;
            PodId {
                namespace,
                pod,
                uid,
            }
            .is_valid()
        };
        assert!(valid("shop", "web-0.x"));
        for bad in ["", ".", "..", "a/b", "a?b", "a%2fb", "a b", "A", "a\n"] {
            assert!(!valid("shop", bad), "{bad:?}");
            assert!(!valid(bad, "web-0"), "{bad:?}");
        }
    }
}
