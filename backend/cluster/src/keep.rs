//! Selections of objects, kept while they are used.
//!
//! A [`Shelf`] has one entry per selection of one kind. The first to ask for a selection starts its load,
//! everyone else waits for the same load. What follows depends on the access rules, from the best down:
//! a watch keeps the entry true until nobody used it for a while (`watch.rs`); a list, or a get of the one
//! object, is believed for [`TRUSTED`] and then read again by whoever asks next. A right that is missing is
//! asked for again after [`RIGHTS`], a watch that broke after a back-off of 5 to 30 s. An entry is believed without an
//! expiry only while its watch is connected and has shown that it passes events on.
//!
//! An answer that was good once is served on while the API server is away, and until a refusal has stood for some
//! seconds. Whoever asks meanwhile waits [`PATIENT`] at most for a newer one.

mod entry;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kubevpn_target::{ConnectError, Refusal};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tracing::instrument::WithSubscriber as _;

use crate::fetch::{Failure, Kind, Select, Server, is_forbidden, list};
use crate::trust::Trust;

pub(crate) use self::entry::Entry;
use self::entry::{Held, Known, Missing};

/// How long what nothing watches is believed.
pub(crate) const TRUSTED: Duration = Duration::from_secs(2);

/// How long it is believed that something does not exist.
pub(crate) const ABSENT: Duration = Duration::from_secs(5);

/// After this time a right that was missing is asked for again.
pub(crate) const RIGHTS: Duration = Duration::from_secs(300);

/// How long a load may take before whoever waits for it gets the last good answer instead.
const PATIENT: Duration = Duration::from_secs(2);

/// Entries per kind; the least recently used goes first. And how often unused ones are looked for.
const ENTRIES: usize = 4096;
const SWEEP: Duration = Duration::from_secs(30);

/// What the objects of one cluster are kept with.
pub(crate) struct Env {
    pub(crate) server: Server,
    /// Counts the changes of everything kept.
    pub(crate) changes: watch::Sender<u64>,
    /// One for each watch that may be open at a time.
    pub(crate) watches: Arc<Semaphore>,
    /// An entry that nobody used for this long is no longer watched.
    pub(crate) idle: Duration,
    /// Whether the way to the API server passes the events of watches on.
    pub(crate) path: Path,
}

/// What watches have shown of the way to the API server since one last broke: whether it passes their events on, which
/// is true of all or of none.
#[derive(Default)]
pub(crate) struct Path {
    /// How many watches broke, and how many had when one was opened that something came over.
    broke: AtomicU64,
    passed: AtomicU64,
    /// A watch is open to find out.
    asking: AtomicBool,
}

impl Path {
    pub(crate) fn breaks(&self) -> u64 {
        self.broke.load(Ordering::Acquire)
    }

    pub(crate) fn broke(&self) {
        self.broke.fetch_add(1, Ordering::AcqRel);
    }

    /// Something came over a watch that was opened after so many had broken.
    pub(crate) fn passed(&self, breaks: u64) {
        self.passed.fetch_max(breaks + 1, Ordering::AcqRel);
    }

    /// Whether something came over any watch that was opened since the last one broke.
    pub(crate) fn passes(&self) -> bool {
        self.passed.load(Ordering::Acquire) > self.breaks()
    }

    /// Has one caller at a time find out.
    pub(crate) fn ask(&self) -> Option<PathAsked<'_>> {
        let asking = self.asking.swap(true, Ordering::AcqRel);
        (!asking).then_some(PathAsked(self))
    }
}

/// Somebody finds out.
pub(crate) struct PathAsked<'a>(&'a Path);

impl Drop for PathAsked<'_> {
    fn drop(&mut self) {
        self.0.asking.store(false, Ordering::Release);
    }
}

/// The objects of a selection at one moment.
pub(crate) type Objects<K> = Arc<Vec<Arc<K>>>;

pub(crate) struct Shelf<K: Kind> {
    env: Arc<Env>,
    slots: Arc<Mutex<Slots<K>>>,
}

pub(crate) struct Slots<K> {
    by_select: HashMap<Select, Slot<K>>,
    swept: Instant,
}

struct Slot<K> {
    entry: Arc<Entry<K>>,
    task: Task,
}

/// Ends when its slot goes.
struct Task(Option<AbortHandle>);

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// A selection that somebody asked for.
struct Asked<K> {
    known: Option<Known<K>>,
    entry: Arc<Entry<K>>,
    /// How many loads the entry had then.
    before: u64,
    /// When the load began that is waited for.
    since: Instant,
}

impl<K: Kind> Shelf<K> {
    pub(crate) fn new(env: Arc<Env>) -> Self {
        let slots = Slots {
            by_select: HashMap::new(),
            swept: Instant::now(),
        };
        Self {
            env,
            slots: Arc::new(Mutex::new(slots)),
        }
    }

    /// The objects of a selection.
    ///
    /// Cancellation: the load goes on for the others who wait, and for the next who ask.
    pub(crate) async fn get(
        &self,
        select: &Select,
        trust: &mut Trust,
    ) -> Result<Objects<K>, Failure> {
        let known = self.ask(select)?.known().await?;
        if let Some(until) = known.until {
            trust.until(until);
        }
        known.found
    }

    /// Starts loading what will be asked for in a moment.
    pub(crate) fn warm(&self, select: &Select) {
        // Who asks for it will hear why not.
        let _ = self.ask(select);
    }

    /// The objects of a selection as they were last known, however long ago.
    pub(crate) fn peek(&self, select: &Select) -> Option<Objects<K>> {
        let slots = lock(&self.slots);
        let entry = &slots.by_select.get(select)?.entry;
        let objects = entry.last_good()?;
        *lock(&entry.used) = Instant::now();
        Some(objects)
    }

    /// That a selection is empty, or may not be seen, decided what something else means: so it is kept like
    /// a selection that has objects.
    pub(crate) fn pin(&self, select: &Select) {
        let slots = lock(&self.slots);
        if let Some(slot) = slots.by_select.get(select) {
            slot.entry.pin();
        }
    }

    /// The first answer to a question about anything that is current.
    pub(crate) fn find<T>(&self, mut ask: impl FnMut(&K) -> Option<T>) -> Option<T> {
        let slots = lock(&self.slots);
        slots.by_select.values().find_map(|slot| {
            let state = slot.entry.state.borrow();
            let objects = state.current()?.found.ok()?;
            objects.iter().find_map(|object| ask(object))
        })
    }

    /// How many selections are kept.
    pub(crate) fn len(&self) -> usize {
        lock(&self.slots).by_select.len()
    }

    /// What is known; where nothing is, a load is under way.
    fn ask(&self, select: &Select) -> Result<Asked<K>, Failure> {
        let now = Instant::now();
        let mut slots = lock(&self.slots);
        if !slots.by_select.contains_key(select) && !slots.make_room(now) {
            return Err(too_many::<K>());
        }
        let slot = slots
            .by_select
            .entry(select.clone())
            .or_insert_with(|| Slot::new(select.clone(), now));
        let entry = slot.entry.clone();
        *lock(&entry.used) = now;
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
                slots: Arc::downgrade(&self.slots),
                turn,
            };
            let task = tokio::spawn(loading.run().with_current_subscriber());
            slot.task = Task(Some(task.abort_handle()));
        }
        Ok(Asked {
            known,
            entry,
            before,
            since,
        })
    }
}

impl<K: Kind> Asked<K> {
    /// What was known when it was asked for, however old by now: no load was started for it. Else what the load comes
    /// to, or the last good answer where that takes too long.
    async fn known(self) -> Result<Known<K>, Failure> {
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
                    tracing::debug!(select = ?self.entry.select, "the last good answer stands while it is read again");
                    let until = Some(Instant::now() + K::TRUSTED);
                    return Ok(Known {
                        found: Ok(objects),
                        until,
                    });
                }
            },
        };
        // The entry holds the sender: waiting cannot fail.
        let state = loaded.map_err(|_| cut_off())?;
        state.known().ok_or_else(cut_off)
    }
}

impl<K> Slot<K> {
    fn new(select: Select, now: Instant) -> Self {
        Self {
            entry: Arc::new(Entry::new(select, now)),
            task: Task(None),
        }
    }
}

impl<K> Slots<K> {
    /// Before a new entry: forgets what nobody watches or uses, and the least recently used if it must. What is being
    /// loaded stays; `false` if that is everything.
    fn make_room(&mut self, now: Instant) -> bool {
        let full = self.by_select.len() >= ENTRIES;
        if !full && now < self.swept + SWEEP {
            return true;
        }
        self.swept = now;
        self.by_select.retain(|_, slot| {
            let state = slot.entry.state.borrow();
            let kept = state.followed || state.loading.is_some();
            kept || now < *lock(&slot.entry.used) + SWEEP
        });
        if self.by_select.len() >= ENTRIES {
            let idle = |slot: &&Slot<K>| slot.entry.state.borrow().loading.is_none();
            let slots = self.by_select.values().filter(idle);
            let oldest = slots.min_by_key(|slot| *lock(&slot.entry.used));
            let Some(select) = oldest.map(|slot| slot.entry.select.clone()) else {
                return false;
            };
            self.by_select.remove(&select);
        }
        true
    }
}

/// The load of one entry, and the watch that may follow it.
pub(crate) struct Loading<K: Kind> {
    pub(crate) env: Arc<Env>,
    pub(crate) entry: Arc<Entry<K>>,
    slots: Weak<Mutex<Slots<K>>>,
    /// Which of the entry's tasks this is.
    turn: u64,
}

impl<K: Kind> Loading<K> {
    async fn run(self) {
        #[cfg(feature = "watch")]
        if K::LISTED && self.entry.missing().is_none() {
            use crate::watch::{Ended, keep};
            let ended = keep(&self).await;
            match &ended {
                Err(Ended::NotWatched(retry)) => self.entry.lacks(Missing::Watch, *retry),
                Err(Ended::NotListed(failure)) if is_forbidden(failure) => {
                    self.entry.lacks(Missing::List(failure.clone()), RIGHTS);
                }
                _ => {}
            }
            let waited_for = self.entry.unfollowed();
            match ended {
                Err(Ended::NotListed(failure)) if !is_forbidden(&failure) => {
                    return self.say(Err(failure));
                }
                // It was asked for after the watch had ended.
                _ if waited_for => {}
                _ => return,
            }
        }
        self.say(self.read().await);
    }

    pub(crate) fn say(&self, read: Result<Vec<Arc<K>>, Failure>) {
        let entry = &self.entry;
        match read.as_ref().is_err_and(|failure| is_forbidden(failure)) {
            true => entry.lacks_all(),
            false => entry.not_refused(),
        }
        match read {
            Ok(objects) => entry.read(Ok(Arc::new(objects)), K::TRUSTED),
            Err(failure) => match entry.last_good() {
                Some(objects) if !(is_forbidden(&failure) && entry.is_revoked()) => {
                    tracing::debug!(select = ?entry.select, error = %failure, "the last good answer stands");
                    entry.read(Ok(objects), K::TRUSTED);
                }
                _ if is_forbidden(&failure) => entry.read(Err(failure), entry.denied()),
                _ => entry.read(Err(failure), Duration::ZERO),
            },
        }
    }

    /// One list, or where that is forbidden one get.
    async fn read(&self) -> Result<Vec<Arc<K>>, Failure> {
        let (server, select) = (&self.env.server, &self.entry.select);
        let mut found = Vec::new();
        let mut keep = |mut object: K| {
            object.prune();
            found.push(Arc::new(object));
        };
        let mut refused = match self.entry.missing() {
            Some(Missing::List(failure)) => Some(failure),
            _ => None,
        };
        if K::LISTED && refused.is_none() {
            match list(server, select, &mut keep).await {
                Err(failure) if is_forbidden(&failure) => {
                    self.entry.lacks(Missing::List(failure.clone()), RIGHTS);
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

    /// Gives the entry up if nobody used it for too long.
    pub(crate) fn gave_up(&self) -> bool {
        let Some(slots) = self.slots.upgrade() else {
            return true;
        };
        let mut slots = lock(&slots);
        if self.entry.used().elapsed() < self.env.idle {
            return false;
        }
        // Under the lock nobody can be asking for it. Another entry may have taken its place.
        let own = |slot: &Slot<K>| Arc::ptr_eq(&slot.entry, &self.entry);
        if slots.by_select.get(&self.entry.select).is_some_and(own) {
            slots.by_select.remove(&self.entry.select);
        }
        true
    }
}

impl<K: Kind> Drop for Loading<K> {
    /// Whatever ended the task: nobody waits for it, and nobody believes it.
    fn drop(&mut self) {
        let mut followed = false;
        self.entry.state.send_if_modified(|state| {
            if state.turn != self.turn {
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
            // Who waits for a change has to ask again, or would wait for ever.
            self.env.changes.send_modify(|n| *n += 1);
        }
    }
}

fn too_many<K: Kind>() -> Failure {
    let kind = K::plural(&());
    let sentence = format!(
        "cannot look up {kind}: {ENTRIES} questions about {kind} wait for the API server already; try again when it has answered"
    );
    ConnectError::new(Refusal::Overloaded, sentence).into()
}

pub(crate) fn cut_off() -> Failure {
    ConnectError::new(
        Refusal::Internal,
        "a question to the API server was cut off",
    )
    .into()
}

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, feature = "watch"))]
mod tests;
