//! The load of one selection, with the best available right.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kubevpn_target::{ConnectError, Refusal};
use tokio::sync::Semaphore;

use super::WatchNews;
use super::entry::{MissingRight, RIGHTS, SelectionEntry};
use crate::fetch::{CallFailure, LimitedApi, ObjectKind, is_forbidden, list};
use crate::select::Objects;

/// What all selections of one cluster share.
pub(crate) struct StoreEnv {
    pub(crate) server: LimitedApi,
    /// Permits for open watches.
    pub(crate) watches: Arc<Semaphore>,
    /// How long an unused entry stays watched.
    pub(crate) idle: Duration,
    /// Whether the path to the API server passes the events of watches on.
    pub(crate) path: Path,
    pub(crate) told: OnceLock<WatchObserver>,
}

pub(crate) type WatchObserver = Arc<dyn Fn(WatchNews<'_>) + Send + Sync>;

/// What watches have shown about the path to the API server since one last broke: whether it passes events on, which holds
/// for all watches or for none.
#[derive(Default)]
pub(crate) struct Path {
    /// Number of watches that broke, and that number when the last watch that delivered something was opened.
    broke: AtomicU64,
    passed: AtomicU64,
    /// Whether a test watch is open.
    asking: AtomicBool,
}

impl Path {
    pub(crate) fn breaks(&self) -> u64 {
        self.broke.load(Ordering::Acquire)
    }

    pub(crate) fn broke(&self) {
        self.broke.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that a watch that was opened after this many breaks delivered something.
    pub(crate) fn passed(&self, breaks: u64) {
        self.passed.fetch_max(breaks + 1, Ordering::AcqRel);
    }

    /// Whether a watch that was opened since the last break has delivered something.
    pub(crate) fn passes(&self) -> bool {
        self.passed.load(Ordering::Acquire) > self.breaks()
    }

    /// Lets one caller at a time test the path.
    pub(crate) fn ask(&self) -> Option<PathAsked<'_>> {
        let asking = self.asking.swap(true, Ordering::AcqRel);
        (!asking).then_some(PathAsked(self))
    }
}

/// A test of the path that is under way.
pub(crate) struct PathAsked<'a>(&'a Path);

impl Drop for PathAsked<'_> {
    fn drop(&mut self) {
        self.0.asking.store(false, Ordering::Release);
    }
}

/// The load of one entry, and the watch that may follow it.
pub(crate) struct Loading<K: ObjectKind> {
    pub(crate) env: Arc<StoreEnv>,
    pub(crate) entry: Arc<SelectionEntry<K>>,
    /// The number of this task of the entry.
    pub(super) turn: u64,
}

impl<K: ObjectKind> Loading<K> {
    /// Reports that the watch broke.
    pub(super) fn lost(&self, why: &str) {
        if !self.entry.lost.swap(true, Ordering::AcqRel)
            && let Some(told) = self.env.told.get()
        {
            let what = &self.entry.words();
            told(WatchNews::Lost { what, why });
        }
    }

    /// Takes the objects of a watch.
    pub(super) fn watched(&self, objects: Objects<K>) {
        self.entry.watched(objects);
        if self.entry.lost.swap(false, Ordering::AcqRel)
            && let Some(told) = self.env.told.get()
        {
            let what = &self.entry.words();
            told(WatchNews::Back { what });
        }
    }

    pub(crate) fn say(&self, read: Result<Vec<Arc<K>>, CallFailure>) {
        let entry = &self.entry;
        match read.as_ref().is_err_and(|failure| is_forbidden(failure)) {
            true => entry.lacks_all(),
            false => entry.not_refused(),
        }
        match read {
            Ok(objects) => entry.read(Ok(Arc::new(objects)), K::TRUSTED),
            Err(failure) => match entry.last_good() {
                Some(objects) if !(is_forbidden(&failure) && entry.is_revoked()) => {
                    tracing::debug!(select = ?entry.select, error = %failure, "keeping the last answer");
                    entry.read(Ok(objects), K::TRUSTED);
                }
                _ if is_forbidden(&failure) => entry.read(Err(failure), entry.denied()),
                _ => entry.read(Err(failure), Duration::ZERO),
            },
        }
    }

    /// Reads once: by list, or by get if that is forbidden.
    pub(super) async fn read(&self) -> Result<Vec<Arc<K>>, CallFailure> {
        let (server, select) = (&self.env.server, &self.entry.select);
        let mut found = Vec::new();
        let mut keep = |mut object: K| {
            object.prune();
            found.push(Arc::new(object));
        };
        let mut refused = match self.entry.missing() {
            Some(MissingRight::List(failure)) => Some(failure),
            _ => None,
        };
        if K::LISTED && refused.is_none() {
            match list(server, select, &mut keep).await {
                Err(failure) if is_forbidden(&failure) => {
                    self.entry
                        .lacks(MissingRight::List(failure.clone()), RIGHTS);
                    refused = Some(failure);
                }
                read => return read.map(|_| found),
            }
        }
        match (K::get_alone(server, select).await, refused) {
            (Some(Ok(objects)), _) => {
                objects.into_iter().for_each(keep);
                Ok(found)
            }
            (Some(Err(also)), Some(refused)) if is_forbidden(&also) => Err(K::both(refused, also)),
            (Some(Err(failure)), _) => Err(failure),
            (None, refused) => Err(refused.unwrap_or_else(cut_off)),
        }
    }
}

impl<K: ObjectKind> Drop for Loading<K> {
    /// Marks the entry when the task ends for any reason.
    fn drop(&mut self) {
        self.entry.abandoned(self.turn);
    }
}

pub(crate) fn cut_off() -> CallFailure {
    ConnectError::new(
        Refusal::Internal,
        "a question to the API server was cut off",
    )
    .into()
}
