//! The selections of one kind, kept while they are used.
//!
//! A [`Shelf`] has one entry per selection of one kind. The first caller starts its load, others wait for the same load. What
//! follows depends on the access rules, from the best right down: a watch keeps the entry up to date until it was unused for
//! a while (`watch.rs`); a list, or a get of the one object, is believed for `TRUSTED` and read again by the next caller. A
//! missing right is tried again after `RIGHTS`, a broken watch after a back-off of 5 to 30 s. An entry has no expiry only
//! while its watch is connected and has shown that it passes events on.
//!
//! The last good answer is used while the API server is away, and until a refusal has lasted for some seconds. Callers wait
//! at most [`PATIENT`] for a newer one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use kubevpn_target::{ConnectError, Refusal};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::instrument::WithSubscriber as _;

use super::WatchState;
use super::entry::{KnownObjects, SelectionEntry};
use super::load::{Loading, StoreEnv, cut_off};
use super::validity::{Changes, Validity, lock};
use crate::fetch::{CallFailure, ObjectKind};
use crate::select::{Objects, Select};

/// How long a caller waits for a load before it gets the last good answer instead.
const PATIENT: Duration = Duration::from_secs(2);

/// Limit on entries per kind, of which the least recently used is dropped first; and the interval of the search for unused
/// ones.
const ENTRIES: usize = 4096;
const SWEEP: Duration = Duration::from_secs(30);

pub(crate) struct Shelf<K: ObjectKind> {
    env: Arc<StoreEnv>,
    slots: Arc<Mutex<ShelfSlots<K>>>,
}

pub(crate) struct ShelfSlots<K> {
    by_select: HashMap<Select, ShelfSlot<K>>,
    swept: Instant,
}

struct ShelfSlot<K> {
    entry: Arc<SelectionEntry<K>>,
    task: Task,
}

/// The task of an entry, aborted when its slot is dropped.
struct Task(Option<AbortHandle>);

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// A selection that a caller waits for.
struct AwaitedSelection<K> {
    known: Option<KnownObjects<K>>,
    entry: Arc<SelectionEntry<K>>,
    changes: Changes,
    /// Number of the entry's loads at that time.
    before: u64,
    /// When the awaited load began.
    since: Instant,
}

impl<K: ObjectKind> Shelf<K> {
    pub(crate) fn new(env: Arc<StoreEnv>) -> Self {
        let slots = ShelfSlots {
            by_select: HashMap::new(),
            swept: Instant::now(),
        };
        Self {
            env,
            slots: Arc::new(Mutex::new(slots)),
        }
    }

    /// Reads the objects of a selection.
    ///
    /// Cancellation: the load continues for other and later callers.
    pub(crate) async fn get(
        &self,
        select: &Select,
        validity: &mut Validity,
    ) -> Result<Objects<K>, CallFailure> {
        let known = async {
            let asked = self.ask(select)?;
            validity.rests_on(asked.changes.clone());
            asked.known().await
        };
        let known = known.await.unwrap_or_else(|failure| KnownObjects {
            found: Err(failure),
            until: Some(Instant::now()),
        });
        if let Some(until) = known.until {
            validity.until(until);
        }
        known.found
    }

    /// Starts loading a selection that will be requested in a moment.
    pub(crate) fn warm(&self, select: &Select) {
        // The error is reported to the caller that requests it.
        let _ = self.ask(select);
    }

    /// The last known objects of a selection, however old.
    pub(crate) fn peek(&self, select: &Select) -> Option<Objects<K>> {
        let slots = lock(&self.slots);
        let entry = &slots.by_select.get(select)?.entry;
        let objects = entry.last_good()?;
        entry.pulse.touch();
        Some(objects)
    }

    /// Keeps an empty or forbidden selection watched, because an answer rests on it.
    pub(crate) fn pin(&self, select: &Select) {
        let slots = lock(&self.slots);
        if let Some(slot) = slots.by_select.get(select) {
            slot.entry.pin();
        }
    }

    /// The first match among selections that have not expired.
    pub(crate) fn find<T>(
        &self,
        mut ask: impl FnMut(&K) -> Option<T>,
        validity: &mut Validity,
    ) -> Option<T> {
        let slots = lock(&self.slots);
        slots.by_select.values().find_map(|slot| {
            let state = slot.entry.state.borrow();
            let known = state.current()?;
            let found = known.found.ok()?.iter().find_map(|object| ask(object))?;
            // The state is locked, so a change is reported after this.
            validity.rests_on(Changes::of(&slot.entry.pulse));
            known.until.into_iter().for_each(|at| validity.until(at));
            Some(found)
        })
    }

    pub(crate) fn states(&self) -> Vec<WatchState> {
        let slots = lock(&self.slots);
        let state = |slot: &ShelfSlot<K>| WatchState {
            what: slot.entry.words(),
            health: slot.entry.health(),
        };
        slots.by_select.values().map(state).collect()
    }

    /// Number of selections.
    pub(crate) fn len(&self) -> usize {
        lock(&self.slots).by_select.len()
    }

    /// Returns what is known, and starts a load if nothing is.
    fn ask(&self, select: &Select) -> Result<AwaitedSelection<K>, CallFailure> {
        let now = Instant::now();
        let mut slots = lock(&self.slots);
        if !slots.by_select.contains_key(select) && !slots.make_room(now) {
            return Err(too_many::<K>());
        }
        let slot = slots
            .by_select
            .entry(select.clone())
            .or_insert_with(|| ShelfSlot::new(select.clone(), now));
        let entry = slot.entry.clone();
        entry.pulse.touch();
        let changes = Changes::of(&entry.pulse);
        let (mut known, mut before, mut since) = (None, 0, now);
        let mut turn = None;
        entry.state.send_if_modified(|state| {
            (known, before) = (state.current(), state.loads);
            if known.is_none() && state.loading.is_none() {
                state.loading = Some(now);
                if state.followed {
                    entry.wanted.notify_one();
                } else {
                    state.turn += 1;
                    turn = Some(state.turn);
                }
            }
            since = state.loading.unwrap_or(now);
            false
        });
        if let Some(turn) = turn {
            let loading = Loading {
                env: self.env.clone(),
                entry: entry.clone(),
                turn,
            };
            let task = run(loading, Arc::downgrade(&self.slots));
            let task = tokio::spawn(task.with_current_subscriber());
            slot.task = Task(Some(task.abort_handle()));
        }
        Ok(AwaitedSelection {
            known,
            entry,
            changes,
            before,
            since,
        })
    }
}

impl<K: ObjectKind> AwaitedSelection<K> {
    /// The objects known at the time of the call, if no load was started for it; otherwise the result of the load, or the
    /// last good answer if the load takes too long.
    async fn known(self) -> Result<KnownObjects<K>, CallFailure> {
        if let Some(known) = self.known {
            return Ok(known);
        }
        let mut state = self.entry.state.subscribe();
        let loaded = state.wait_for(|state| state.loads > self.before);
        let loaded = match self.entry.last_good() {
            None => loaded.await,
            Some(objects) => match timeout_at(self.since + PATIENT, loaded).await {
                Ok(loaded) => loaded,
                Err(_) => {
                    tracing::debug!(select = ?self.entry.select, "keeping the last answer while it is read again");
                    let until = Some(Instant::now() + K::TRUSTED);
                    return Ok(KnownObjects {
                        found: Ok(objects),
                        until,
                    });
                }
            },
        };
        // The entry holds the sender, so waiting cannot fail.
        let state = loaded.map_err(|_| cut_off())?;
        state.held.known().ok_or_else(cut_off)
    }
}

impl<K> ShelfSlot<K> {
    fn new(select: Select, now: Instant) -> Self {
        Self {
            entry: Arc::new(SelectionEntry::new(select, now)),
            task: Task(None),
        }
    }
}

impl<K> ShelfSlots<K> {
    /// Drops entries before a new one: unused ones, and the least recently used one if necessary. Entries that are being
    /// loaded stay; `false` if that is all of them.
    fn make_room(&mut self, now: Instant) -> bool {
        let full = self.by_select.len() >= ENTRIES;
        if !full && now < self.swept + SWEEP {
            return true;
        }
        self.swept = now;
        self.by_select.retain(|_, slot| {
            let state = slot.entry.state.borrow();
            let kept = state.followed || state.loading.is_some();
            kept || now < slot.entry.pulse.used() + SWEEP
        });
        if self.by_select.len() >= ENTRIES {
            let idle = |slot: &&ShelfSlot<K>| slot.entry.state.borrow().loading.is_none();
            let slots = self.by_select.values().filter(idle);
            let oldest = slots.min_by_key(|slot| slot.entry.pulse.used());
            let Some(select) = oldest.map(|slot| slot.entry.select.clone()) else {
                return false;
            };
            self.by_select.remove(&select);
        }
        true
    }
}

/// Loads an entry, and keeps it up to date while it is used.
async fn run<K: ObjectKind>(loading: Loading<K>, slots: Weak<Mutex<ShelfSlots<K>>>) {
    tokio::select! {
        () = load(&loading) => {}
        () = unused(&loading, &slots) => {}
    }
}

async fn load<K: ObjectKind>(loading: &Loading<K>) {
    #[cfg(feature = "watch")]
    if K::LISTED && loading.entry.missing().is_none() {
        use super::entry::{MissingRight, RIGHTS};
        use super::watch::{WatchEnd, keep};
        use crate::fetch::is_forbidden;
        let entry = &loading.entry;
        let ended = keep(loading).await;
        match &ended {
            WatchEnd::NotWatched(retry) => entry.lacks(MissingRight::Watch, *retry),
            WatchEnd::NotListed(failure) if is_forbidden(failure) => {
                entry.lacks(MissingRight::List(failure.clone()), RIGHTS);
            }
            WatchEnd::NotListed(_) | WatchEnd::Absent => {}
        }
        let waited_for = entry.unfollowed();
        match ended {
            WatchEnd::NotListed(failure) if !is_forbidden(&failure) => {
                return loading.say(Err(failure));
            }
            // The entry was requested after the watch had ended.
            _ if waited_for => {}
            _ => return,
        }
    }
    loading.say(loading.read().await);
}

/// Returns when the entry was unused for so long that it was dropped.
async fn unused<K: ObjectKind>(loading: &Loading<K>, slots: &Weak<Mutex<ShelfSlots<K>>>) {
    let Loading { env, entry, .. } = loading;
    loop {
        sleep_until(entry.pulse.used() + env.idle).await;
        let Some(slots) = slots.upgrade() else {
            return;
        };
        let mut slots = lock(&slots);
        if entry.pulse.used().elapsed() < env.idle {
            continue;
        }
        // No caller can request the entry under the lock. Another entry may have taken its place.
        let own = |slot: &ShelfSlot<K>| Arc::ptr_eq(&slot.entry, entry);
        if slots.by_select.get(&entry.select).is_some_and(own) {
            slots.by_select.remove(&entry.select);
        }
        return;
    }
}

fn too_many<K: ObjectKind>() -> CallFailure {
    let kind = K::plural(&());
    let sentence = format!(
        "cannot look up {kind}: {ENTRIES} questions about {kind} wait for the API server already; try again when it has answered"
    );
    ConnectError::new(Refusal::Overloaded, sentence).into()
}

#[cfg(all(test, feature = "watch"))]
mod tests;
