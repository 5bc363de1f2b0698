//! The objects, and every change made to them: what etcd and the watch cache are to an API server.
//!
//! One number, the revision, counts all changes. The last changes are kept, so that watches can start
//! from a revision and paged lists stay at the one they began with.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

use crate::kind::ResourceKind;

/// Changes kept; who asks for older ones gets 410.
const HISTORY: usize = 10_000;

pub(crate) type Object = Arc<Value>;

/// Where an object stands: kind, namespace (empty for a cluster-wide kind), name.
pub(crate) type ObjectKey = (&'static str, String, String);

#[derive(Debug)]
pub(crate) struct ObjectStore {
    objects: BTreeMap<ObjectKey, Object>,
    history: VecDeque<Change>,
    /// The changes up to here are forgotten.
    compacted: u64,
    revision: watch::Sender<u64>,
}

/// One change: created without `old`, deleted without `new`.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    key: ObjectKey,
    pub(crate) old: Option<Object>,
    pub(crate) new: Option<Object>,
}

/// The revision asked for is older than all that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compacted {
    pub(crate) oldest: u64,
}

pub(crate) fn key(kind: &ResourceKind, namespace: &str, name: &str) -> ObjectKey {
    let namespace = if kind.namespaced { namespace } else { "" };
    (kind.plural, namespace.into(), name.into())
}

impl ObjectStore {
    pub(crate) fn new() -> Self {
        Self {
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            compacted: 0,
            revision: watch::Sender::new(1),
        }
    }

    pub(crate) fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Follows the revision: wakes at every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    pub(crate) fn get(&self, kind: &ResourceKind, namespace: &str, name: &str) -> Option<&Object> {
        self.objects.get(&key(kind, namespace, name))
    }

    /// The objects of a kind in their order, of one namespace or (empty) of all.
    pub(crate) fn list<'a>(
        &'a self,
        kind: &'static ResourceKind,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Object> + 'a {
        let from = (kind.plural, namespace.to_owned(), String::new());
        self.objects
            .range(from..)
            .take_while(move |((plural, ns, _), _)| {
                *plural == kind.plural && (namespace.is_empty() || ns == namespace)
            })
            .map(|(_, object)| object)
    }

    /// As [`ObjectStore::list`], at an earlier revision.
    pub(crate) fn list_at(
        &self,
        kind: &'static ResourceKind,
        namespace: &str,
        revision: u64,
    ) -> Result<Vec<Object>, Compacted> {
        self.reachable(revision)?;
        let mut objects: BTreeMap<ObjectKey, Object> = self
            .objects
            .range((kind.plural, namespace.to_owned(), String::new())..)
            .take_while(|((plural, ns, _), _)| {
                *plural == kind.plural && (namespace.is_empty() || ns == namespace)
            })
            .map(|(k, o)| (k.clone(), o.clone()))
            .collect();
        let undo = self.history.iter().rev();
        for change in undo.take_while(|c| c.revision > revision) {
            if !change.is_of(kind, namespace) {
                continue;
            }
            match &change.old {
                Some(old) => objects.insert(change.key.clone(), old.clone()),
                None => objects.remove(&change.key),
            };
        }
        Ok(objects.into_values().collect())
    }

    /// Up to `limit` changes of a kind after a revision, and the revision they reach up to.
    pub(crate) fn since(
        &self,
        kind: &ResourceKind,
        namespace: &str,
        revision: u64,
        limit: usize,
    ) -> Result<(Vec<Change>, u64), Compacted> {
        self.reachable(revision)?;
        let start = self.history.partition_point(|c| c.revision <= revision);
        let mut found = Vec::new();
        for change in self.history.range(start..) {
            if change.is_of(kind, namespace) {
                found.push(change.clone());
                if found.len() == limit {
                    return Ok((found, change.revision));
                }
            }
        }
        Ok((found, self.revision().max(revision)))
    }

    /// Creates or replaces an object, which gets its new resource version; nothing happens when nothing
    /// but that differs.
    pub(crate) fn put(&mut self, kind: &ResourceKind, mut object: Value) -> Object {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let key = key(
            kind,
            &text(&object["metadata"]["namespace"]),
            &text(&object["metadata"]["name"]),
        );
        let old = self.objects.get(&key).cloned();
        if let Some(old) = &old {
            object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
            if object == **old {
                return old.clone();
            }
        }
        let revision = self.revision() + 1;
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        let object = Arc::new(object);
        self.objects.insert(key.clone(), object.clone());
        self.record(Change {
            revision,
            key,
            old,
            new: Some(object.clone()),
        });
        object
    }

    pub(crate) fn remove(
        &mut self,
        kind: &ResourceKind,
        namespace: &str,
        name: &str,
    ) -> Option<Object> {
        let key = key(kind, namespace, name);
        let old = self.objects.remove(&key)?;
        self.record(Change {
            revision: self.revision() + 1,
            key,
            old: Some(old.clone()),
            new: None,
        });
        Some(old)
    }

    /// Forgets all history.
    pub(crate) fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.revision();
    }

    fn record(&mut self, change: Change) {
        if self.history.len() == HISTORY
            && let Some(gone) = self.history.pop_front()
        {
            self.compacted = gone.revision;
        }
        let revision = change.revision;
        self.history.push_back(change);
        self.revision.send_replace(revision);
    }

    fn reachable(&self, revision: u64) -> Result<(), Compacted> {
        if revision < self.compacted {
            return Err(Compacted {
                oldest: self.compacted,
            });
        }
        Ok(())
    }
}

impl Change {
    fn is_of(&self, kind: &ResourceKind, namespace: &str) -> bool {
        self.key.0 == kind.plural && (namespace.is_empty() || self.key.1 == namespace)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kind::{POD, SERVICE};

    fn pod(name: &str, n: u32) -> Value {
        json!({"metadata": {"name": name, "namespace": "default"}, "n": n})
    }

    fn names(objects: &[Object]) -> Vec<(&str, u64)> {
        objects
            .iter()
            .map(|o| {
                let name = o["metadata"]["name"].as_str().unwrap();
                (name, o["n"].as_u64().unwrap())
            })
            .collect()
    }

    #[test]
    fn an_earlier_revision_can_be_listed() {
        let mut store = ObjectStore::new();
        store.put(&POD, pod("a", 1));
        store.put(&POD, pod("b", 1));
        let then = store.revision();
        store.put(&POD, pod("a", 2));
        store.put(&POD, pod("c", 1));
        store.remove(&POD, "default", "b");
        store.put(&SERVICE, pod("a", 9));
        let old = store.list_at(&POD, "", then).unwrap();
        assert_eq!(names(&old), [("a", 1), ("b", 1)]);
        let now: Vec<_> = store.list(&POD, "default").cloned().collect();
        assert_eq!(names(&now), [("a", 2), ("c", 1)]);
        assert_eq!(store.list(&POD, "defaul").count(), 0);
        store.compact();
        let oldest = store.revision();
        assert_eq!(
            store.list_at(&POD, "", then).unwrap_err(),
            Compacted { oldest }
        );
    }

    #[test]
    fn changes_are_found_by_revision() {
        let mut store = ObjectStore::new();
        let start = store.revision();
        store.put(&POD, pod("a", 1));
        store.put(&SERVICE, pod("s", 1));
        store.put(&POD, pod("a", 1));
        assert_eq!(store.revision(), start + 2, "the same again is no change");
        store.remove(&POD, "default", "a");
        let (changes, upto) = store.since(&POD, "", start, 10).unwrap();
        assert_eq!(changes.len(), 2);
        assert!(changes[0].old.is_none() && changes[0].new.is_some());
        assert!(changes[1].old.is_some() && changes[1].new.is_none());
        assert_eq!(upto, store.revision());
        let (changes, upto) = store.since(&POD, "", start, 1).unwrap();
        assert_eq!((changes.len(), upto), (1, start + 1));
        assert!(store.since(&POD, "other", start, 10).unwrap().0.is_empty());
    }

    #[test]
    fn history_is_bounded() {
        let mut store = ObjectStore::new();
        for n in 0..HISTORY as u32 + 10 {
            store.put(&POD, pod("a", n));
        }
        assert_eq!(store.history.len(), HISTORY);
        assert!(store.since(&POD, "", 2, 1).is_err());
        let last = store.revision() - 1;
        assert_eq!(store.since(&POD, "", last, 9).unwrap().0.len(), 1);
    }
}
