//! One selection: its known objects, and the rights for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::WatchHealth;
use super::validity::{Pulse, lock};
use crate::fetch::{CallFailure, ObjectKind, is_forbidden};
use crate::select::{Objects, Select};

/// Time after which a missing right is tried again.
pub(crate) const RIGHTS: Duration = Duration::from_secs(300);

/// How long a refusal by the access rules is believed.
const DENIED: Duration = Duration::from_secs(10);

/// How long a right that existed before has to be refused until the refusal is believed: an API server that has just
/// started refuses everything until it has read the access rules (kubernetes issue 121635).
const REVOKED: Duration = Duration::from_secs(8);

/// Wait before the next attempt at a watch that failed; it doubles with each failure in a row.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(30);

pub(crate) struct SelectionEntry<K> {
    pub(crate) select: Select,
    pub(super) state: watch::Sender<SelectionState<K>>,
    pub(super) pulse: Arc<Pulse>,
    rights: Mutex<Rights>,
    /// Negative entry that stays watched: a name was resolved differently because this object does not exist.
    pinned: AtomicBool,
    pub(crate) pinning: Notify,
    /// Tells the entry's task to read it again.
    pub(crate) wanted: Notify,
    /// Whether its watch broke and is not back yet.
    pub(super) lost: AtomicBool,
}

#[derive(Default)]
struct Rights {
    /// The right that is missing, and when it is tried again.
    missing: Option<(MissingRight, Instant)>,
    /// Number of watches in a row that broke and did not come back.
    broken: u32,
    /// Whether there was an answer once.
    had: bool,
    /// Since when every answer is a refusal.
    refused: Option<Instant>,
}

#[derive(Clone)]
pub(crate) enum MissingRight {
    Watch,
    List(CallFailure),
}

pub(super) struct SelectionState<K> {
    /// Number of finished loads.
    pub(super) loads: u64,
    /// Since when a load is in progress.
    pub(super) loading: Option<Instant>,
    /// Number of the entry's current task; earlier ones are ignored.
    pub(super) turn: u64,
    /// Whether the task is following the entry and loads it on demand.
    pub(super) followed: bool,
    pub(super) held: HeldObjects<K>,
}

pub(super) enum HeldObjects<K> {
    Nothing,
    /// Up to date without an expiry: the watch is connected and passes events on.
    Watched(Objects<K>),
    /// Read once, with an expiry.
    Read {
        found: Result<Objects<K>, CallFailure>,
        until: Instant,
    },
}

impl<K> HeldObjects<K> {
    pub(super) fn known(&self) -> Option<KnownObjects<K>> {
        let (found, until) = match self {
            Self::Nothing => return None,
            Self::Watched(objects) => (Ok(objects.clone()), None),
            Self::Read { found, until } => (found.clone(), Some(*until)),
        };
        Some(KnownObjects { found, until })
    }

    /// Whether answers that rest on it have to be made again: the objects differ, or they expire earlier.
    fn is_outdated_by(&self, new: &Self) -> bool {
        let (Some(old), Some(new)) = (self.known(), new.known()) else {
            return false;
        };
        let same = match (&old.found, &new.found) {
            (Ok(old), Ok(new)) => {
                let both = old.iter().zip(new.iter());
                old.len() == new.len() && both.into_iter().all(|(old, new)| Arc::ptr_eq(old, new))
            }
            (Err(_), Err(_)) => true,
            _ => false,
        };
        let earlier = match (old.until, new.until) {
            (None, Some(_)) => true,
            (Some(old), Some(new)) => new < old,
            (_, None) => false,
        };
        !same || earlier
    }
}

/// The objects of a selection and their expiry; `None` while it is watched.
pub(super) struct KnownObjects<K> {
    pub(super) found: Result<Objects<K>, CallFailure>,
    pub(super) until: Option<Instant>,
}

impl<K> SelectionState<K> {
    /// The objects, if they have not expired.
    pub(super) fn current(&self) -> Option<KnownObjects<K>> {
        let now = Instant::now();
        self.held
            .known()
            .filter(|known| known.until.is_none_or(|until| now < until))
    }
}

impl<K> SelectionEntry<K> {
    pub(super) fn new(select: Select, now: Instant) -> Self {
        let state = SelectionState {
            loads: 0,
            loading: None,
            turn: 0,
            followed: false,
            held: HeldObjects::Nothing,
        };
        Self {
            select,
            state: watch::Sender::new(state),
            pulse: Arc::new(Pulse::new(now)),
            rights: Mutex::default(),
            pinned: AtomicBool::new(false),
            pinning: Notify::new(),
            wanted: Notify::new(),
            lost: AtomicBool::new(false),
        }
    }

    /// How the entry is kept up to date.
    pub(super) fn health(&self) -> WatchHealth {
        match &self.state.borrow().held {
            _ if self.lost.load(Ordering::Acquire) => WatchHealth::Lost,
            HeldObjects::Watched(_) => WatchHealth::Watched,
            HeldObjects::Nothing | HeldObjects::Read { .. } => WatchHealth::Read,
        }
    }

    /// The objects, in words.
    pub(super) fn words(&self) -> String
    where
        K: ObjectKind,
    {
        format!("{} {}", K::plural(&()), self.select)
    }

    /// Keeps the entry watched although it is empty or forbidden.
    pub(super) fn pin(&self) {
        if self.pinned.swap(true, Ordering::AcqRel) {
            return;
        }
        self.pinning.notify_one();
        self.state.send_if_modified(|state| {
            if let HeldObjects::Read { found, until } = &mut state.held
                && found.as_ref().is_err_and(|f| is_forbidden(f))
                && !lock(&self.rights).had
            {
                *until = (*until).max(Instant::now() + RIGHTS);
            }
            false
        });
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Acquire)
    }

    /// Notes that a right is missing, until `retry` has passed.
    pub(super) fn lacks(&self, right: MissingRight, retry: Duration) {
        lock(&self.rights).missing = Some((right, Instant::now() + retry));
    }

    /// Notes that a watch broke and did not come back. Returns the wait before the next attempt.
    pub(crate) fn watch_broke(&self) -> Duration {
        let mut rights = lock(&self.rights);
        let retry = FIRST_RETRY.saturating_mul(1 << rights.broken.min(8));
        rights.broken = rights.broken.saturating_add(1);
        retry.min(LAST_RETRY)
    }

    /// Notes that a watch passes events on.
    pub(crate) fn watch_works(&self) {
        lock(&self.rights).broken = 0;
    }

    /// The task loads the entry on demand from now on.
    pub(crate) fn followed(&self) {
        self.state.send_if_modified(|state| {
            state.followed = true;
            false
        });
    }

    /// Ends [`followed`](Self::followed). Returns whether a load is awaited.
    pub(super) fn unfollowed(&self) -> bool {
        let mut waited_for = false;
        self.state.send_if_modified(|state| {
            state.followed = false;
            waited_for = state.loading.is_some();
            false
        });
        waited_for
    }

    /// No right exists: all are tried again next time.
    pub(super) fn lacks_all(&self) {
        lock(&self.rights).missing = None;
    }

    pub(super) fn missing(&self) -> Option<MissingRight> {
        let missing = lock(&self.rights).missing.clone();
        let (right, retry) = missing?;
        (Instant::now() < retry).then_some(right)
    }

    /// Notes an answer that was not a refusal.
    pub(crate) fn not_refused(&self) {
        lock(&self.rights).refused = None;
    }

    /// Notes a refusal of an existing right. Returns whether it is to be believed.
    pub(crate) fn is_revoked(&self) -> bool {
        let mut rights = lock(&self.rights);
        let since = *rights.refused.get_or_insert_with(Instant::now);
        since.elapsed() >= REVOKED
    }

    /// How long a refusal is believed.
    pub(super) fn denied(&self) -> Duration {
        match self.is_pinned() && !lock(&self.rights).had {
            true => RIGHTS,
            false => DENIED,
        }
    }

    /// Takes the objects of a watch.
    pub(crate) fn watched(&self, objects: Objects<K>) {
        lock(&self.rights).had = true;
        self.set(HeldObjects::Watched(objects));
    }

    /// Takes the result of one read.
    pub(crate) fn read(&self, found: Result<Objects<K>, CallFailure>, trusted: Duration) {
        let until = Instant::now() + trusted;
        lock(&self.rights).had |= found.is_ok();
        self.set(HeldObjects::Read { found, until });
    }

    fn set(&self, held: HeldObjects<K>) {
        let mut news = false;
        self.state.send_modify(|state| {
            news = state.held.is_outdated_by(&held);
            state.held = held;
            state.loading = None;
            state.loads += 1;
        });
        if news {
            self.pulse.changed();
        }
    }

    /// The task of this turn has ended: ends its load, and expires what it watched.
    pub(super) fn abandoned(&self, turn: u64) {
        let mut followed = false;
        self.state.send_if_modified(|state| {
            if state.turn != turn {
                return false;
            }
            followed = std::mem::take(&mut state.followed);
            if let HeldObjects::Watched(objects) = &state.held {
                let found = Ok(objects.clone());
                let until = Instant::now();
                state.held = HeldObjects::Read { found, until };
                followed = true;
            }
            let cut = state.loading.take().is_some();
            state.loads += u64::from(cut);
            cut
        });
        if followed {
            // Wakes callers that wait for a change, which would otherwise wait for ever.
            self.pulse.changed();
        }
    }

    /// The objects of the last good read.
    pub(super) fn last_good(&self) -> Option<Objects<K>> {
        self.state.borrow().held.known()?.found.ok()
    }
}
