//! One selection: what is known of it, and what we may.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::WatchHealth;
use super::validity::{Pulse, lock};
use crate::fetch::{Failure, Kind, is_forbidden};
use crate::select::{Objects, Select};

/// After this time a right that was missing is asked for again.
pub(crate) const RIGHTS: Duration = Duration::from_secs(300);

/// How long it is believed that the access rules forbid something.
const DENIED: Duration = Duration::from_secs(10);

/// What was allowed before has to be refused for so long until that is believed: an API server that has just started
/// refuses everything until it has read the access rules (kubernetes issue 121635).
const REVOKED: Duration = Duration::from_secs(8);

/// Before the next attempt to watch what could not be watched: doubling with each in a row.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(30);

pub(crate) struct Entry<K> {
    pub(crate) select: Select,
    pub(super) state: watch::Sender<State<K>>,
    pub(super) pulse: Arc<Pulse>,
    rights: Mutex<Rights>,
    /// Kept even though it is empty: that it is decides what a name means.
    pinned: AtomicBool,
    pub(crate) pinning: Notify,
    /// Whoever follows the entry is to read it again.
    pub(crate) wanted: Notify,
    /// Its watch broke and is not back yet.
    pub(super) lost: AtomicBool,
}

#[derive(Default)]
struct Rights {
    /// The right that is missing, and when it is tried again.
    missing: Option<(Missing, Instant)>,
    /// Watches in a row that broke and did not come back.
    broken: u32,
    /// There was an answer once.
    had: bool,
    /// Since when every answer is a refusal.
    refused: Option<Instant>,
}

#[derive(Clone)]
pub(crate) enum Missing {
    Watch,
    List(Failure),
}

pub(super) struct State<K> {
    /// How many loads there were; a load in progress is not counted yet.
    pub(super) loads: u64,
    /// Since when.
    pub(super) loading: Option<Instant>,
    /// How many tasks there were for it; only the last has a say.
    pub(super) turn: u64,
    /// The task keeps the entry: it loads what is wanted.
    pub(super) followed: bool,
    pub(super) held: Held<K>,
}

pub(super) enum Held<K> {
    Nothing,
    /// True as long as the watch says nothing else: it is connected, and passes events on.
    Watched(Objects<K>),
    /// Read at one moment.
    Read {
        found: Result<Objects<K>, Failure>,
        until: Instant,
    },
}

impl<K> Held<K> {
    pub(super) fn known(&self) -> Option<Known<K>> {
        let (found, until) = match self {
            Self::Nothing => return None,
            Self::Watched(objects) => (Ok(objects.clone()), None),
            Self::Read { found, until } => (found.clone(), Some(*until)),
        };
        Some(Known { found, until })
    }

    /// Whether an answer that rests on it has to be made again: there are other objects, or they expire earlier.
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

/// An answer, and until when it is believed; `None` while it is watched.
pub(super) struct Known<K> {
    pub(super) found: Result<Objects<K>, Failure>,
    pub(super) until: Option<Instant>,
}

impl<K> State<K> {
    /// What may be answered without asking.
    pub(super) fn current(&self) -> Option<Known<K>> {
        let now = Instant::now();
        self.held
            .known()
            .filter(|known| known.until.is_none_or(|until| now < until))
    }
}

impl<K> Entry<K> {
    pub(super) fn new(select: Select, now: Instant) -> Self {
        let state = State {
            loads: 0,
            loading: None,
            turn: 0,
            followed: false,
            held: Held::Nothing,
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

    /// How it is kept.
    pub(super) fn health(&self) -> WatchHealth {
        match &self.state.borrow().held {
            _ if self.lost.load(Ordering::Acquire) => WatchHealth::Lost,
            Held::Watched(_) => WatchHealth::Watched,
            Held::Nothing | Held::Read { .. } => WatchHealth::Read,
        }
    }

    /// The objects, in words.
    pub(super) fn words(&self) -> String
    where
        K: Kind,
    {
        format!("{} {}", K::plural(&()), self.select)
    }

    /// From now on it is kept though it is empty, or may not be seen.
    pub(super) fn pin(&self) {
        if self.pinned.swap(true, Ordering::AcqRel) {
            return;
        }
        self.pinning.notify_one();
        self.state.send_if_modified(|state| {
            if let Held::Read { found, until } = &mut state.held
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

    /// Does without a right for that long.
    pub(super) fn lacks(&self, right: Missing, retry: Duration) {
        lock(&self.rights).missing = Some((right, Instant::now() + retry));
    }

    /// A watch broke and did not come back: when the next is worth an attempt.
    pub(crate) fn watch_broke(&self) -> Duration {
        let mut rights = lock(&self.rights);
        let retry = FIRST_RETRY.saturating_mul(1 << rights.broken.min(8));
        rights.broken = rights.broken.saturating_add(1);
        retry.min(LAST_RETRY)
    }

    /// A watch passes events on.
    pub(crate) fn watch_works(&self) {
        lock(&self.rights).broken = 0;
    }

    /// From now on the task loads what is asked for.
    pub(crate) fn followed(&self) {
        self.state.send_if_modified(|state| {
            state.followed = true;
            false
        });
    }

    /// And now no longer; whether a load is waited for.
    pub(super) fn unfollowed(&self) -> bool {
        let mut waited_for = false;
        self.state.send_if_modified(|state| {
            state.followed = false;
            waited_for = state.loading.is_some();
            false
        });
        waited_for
    }

    /// Nothing is allowed: any right would help, so all are tried next time.
    pub(super) fn lacks_all(&self) {
        lock(&self.rights).missing = None;
    }

    pub(super) fn missing(&self) -> Option<Missing> {
        let missing = lock(&self.rights).missing.clone();
        let (right, retry) = missing?;
        (Instant::now() < retry).then_some(right)
    }

    /// The last answer was no refusal.
    pub(crate) fn not_refused(&self) {
        lock(&self.rights).refused = None;
    }

    /// Notes a refusal of what was allowed before, and says whether it is to be believed.
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

    /// What the watch says.
    pub(crate) fn watched(&self, objects: Objects<K>) {
        lock(&self.rights).had = true;
        self.set(Held::Watched(objects));
    }

    /// What one read said.
    pub(crate) fn read(&self, found: Result<Objects<K>, Failure>, trusted: Duration) {
        let until = Instant::now() + trusted;
        lock(&self.rights).had |= found.is_ok();
        self.set(Held::Read { found, until });
    }

    fn set(&self, held: Held<K>) {
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

    /// Its task of this turn has ended, however: nobody waits for it, and nobody believes what it watched.
    pub(super) fn abandoned(&self, turn: u64) {
        let mut followed = false;
        self.state.send_if_modified(|state| {
            if state.turn != turn {
                return false;
            }
            followed = std::mem::take(&mut state.followed);
            if let Held::Watched(objects) = &state.held {
                let found = Ok(objects.clone());
                let until = Instant::now();
                state.held = Held::Read { found, until };
                followed = true;
            }
            let cut = state.loading.take().is_some();
            state.loads += u64::from(cut);
            cut
        });
        if followed {
            // A caller that waits for a change has to ask again, or would wait for ever.
            self.pulse.changed();
        }
    }

    /// What was good when it was last read.
    pub(super) fn last_good(&self) -> Option<Objects<K>> {
        self.state.borrow().held.known()?.found.ok()
    }
}
