//! Who asked for what: the API server's audit log, in memory.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// The oldest entries go when more than this many are there.
const KEPT: usize = 100_000;

/// One request, written down when its answer began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditedRequest {
    /// As access rules name it: `get`, `list`, `watch`, `create`… For paths that are no resource, the
    /// method in lower case.
    pub verb: String,
    /// The API group; empty for the core one.
    pub group: String,
    /// In the plural: `pods`. Empty where the path names none.
    pub resource: String,
    /// `portforward`; empty without one.
    pub subresource: String,
    /// Empty for a cluster-wide request.
    pub namespace: String,
    /// The object's name; empty for a list. A `metadata.name` field selector counts, as in Kubernetes.
    pub name: String,
    /// Path and query.
    pub uri: String,
    /// Who; `system:anonymous` without credentials.
    pub user: String,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// The HTTP version: 1 or 2.
    pub http: u8,
    /// The answer's status; 101 for an upgrade, 0 when the connection was dropped instead.
    pub code: u16,
}

#[derive(Debug, Default)]
pub(crate) struct Audit {
    log: Mutex<VecDeque<AuditedRequest>>,
}

impl Audit {
    pub(crate) fn push(&self, request: AuditedRequest) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == KEPT {
            log.pop_front();
        }
        log.push_back(request);
    }

    pub(crate) fn all(&self) -> Vec<AuditedRequest> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().cloned().collect()
    }

    pub(crate) fn clear(&self) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.clear();
    }
}
