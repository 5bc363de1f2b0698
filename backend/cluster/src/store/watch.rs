//! Keeps one selection up to date by a watch.
//!
//! One list, then one watch from the list's resource version. Changes and bookmarks advance the version, so that a broken
//! watch resumes where it was; if the server no longer has that version (410 Gone), there is a new list. While the server is
//! away, and until a new list is complete, the last good answer is used.
//!
//! An entry has no expiry only while its watch is connected and *proven*, because a proxy on the way may answer with a head
//! and hold back the rest. Proven means that something was received on it (an event, or one of the bookmarks that an API
//! server sends about once a minute), or on another watch since one last broke. If nothing was received, one test watch at a
//! time is opened in parallel, without a version, on which objects arrive at once. An entry whose watch is not proven expires
//! after [`UNPROVEN`] and is read again on demand. A watch that misses changes that a list shows is given up for [`RIGHTS`]. A
//! watch that breaks and is not back within [`GRACE`] is given up for the back-off of its entry, and so is one without a head.
//!
//! Source: Kubernetes API concepts, "Efficient detection of changes" and "Watch bookmarks".

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kube::ResourceExt;
use kube::api::{WatchEvent, WatchParams};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::entry::{RIGHTS, SelectionEntry};
use super::load::{Loading, Path};
use crate::fetch::{CallFailure, ObjectKind, TRUSTED, is_forbidden, list};
use crate::select::Objects;

/// How long the absence of an object is believed.
pub(super) const ABSENT: Duration = Duration::from_secs(5);

/// Waits between attempts to restore a watch: doubling, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// How long a selection is believed after its watch broke, and the limit on restoring the watch.
const GRACE: Duration = Duration::from_secs(5);

/// How long a list is believed while its watch is connected and has delivered nothing.
const UNPROVEN: Duration = Duration::from_secs(25);

/// Silence after which a proven watch is no longer proven: its bookmarks are late.
const QUIET: Duration = Duration::from_secs(150);

/// How long a watch may take to deliver a change that a list shows.
const TELLS: Duration = Duration::from_secs(1);

/// An attempt that lasted this long was a working watch, and its end does not count against the next. A server that ends
/// each attempt at once, with or without events or an error, is not asked again at once.
const LIVED: Duration = Duration::from_millis(500);

/// The requested duration of a watch in seconds, and how much later it counts as dead if its end was not received. The
/// successor of a watch that ended in this way keeps its state.
const LASTS: u32 = 290;
const LATE: Duration = Duration::from_secs(5);
const LASTED: Duration = Duration::from_secs(200);

/// Why a selection is not watched.
pub(crate) enum WatchEnd {
    /// The first list failed.
    NotListed(CallFailure),
    /// The objects were read and will expire; a watch may be tried again after this time.
    NotWatched(Duration),
    /// The selection is empty, and no answer rests on that.
    Absent,
}

/// Why a watch, or its list, ended.
enum WatchFailure {
    /// It ended orderly.
    Over,
    /// The server no longer has the resource version.
    Gone,
    Denied(String),
    /// The server, or a proxy before it, does not support watches.
    Unsupported(String),
    /// It does not deliver changes.
    Silent,
    Failed(String),
}

type Set<K> = BTreeMap<(String, String), Arc<K>>;

/// Loads an entry and keeps it up to date. Returns why it is not kept any more.
pub(super) async fn keep<K: ObjectKind>(loading: &Loading<K>) -> WatchEnd {
    let Loading { env, entry, .. } = loading;
    let (set, version) = match listed(loading).await {
        Ok(listed) => listed,
        Err(failure) => return WatchEnd::NotListed(failure),
    };
    let listed_at = Instant::now();
    if set.is_empty() && !entry.is_pinned() && !parked(entry).await {
        return WatchEnd::Absent;
    }
    let Ok(_watch) = env.watches.clone().try_acquire_owned() else {
        tracing::debug!(select = ?entry.select, "polling: the limit on watches is reached");
        entry.read(Ok(objects(&set)), TRUSTED);
        return WatchEnd::NotWatched(RIGHTS);
    };
    entry.followed();
    entry.read(Ok(objects(&set)), GRACE);
    let mut follower = Follower {
        loading,
        set,
        version: Some(version),
        fresh: listed_at,
        proven: false,
        heard: false,
        breaks: 0,
        allowed: false,
    };
    WatchEnd::NotWatched(follower.follow().await)
}

/// All objects of the selection, and the list's resource version.
async fn listed<K: ObjectKind>(loading: &Loading<K>) -> Result<(Set<K>, String), CallFailure> {
    let mut set = Set::new();
    let add = |object: K| {
        let (key, object) = kept(object);
        set.insert(key, object);
    };
    let version = list(&loading.env.server, &loading.entry.select, add).await?;
    loading.entry.not_refused();
    Ok((set, version))
}

/// Waits for an empty selection to be pinned; `false` if it was not in time.
async fn parked<K: ObjectKind>(entry: &SelectionEntry<K>) -> bool {
    entry.read(Ok(Objects::default()), ABSENT);
    tokio::select! {
        () = entry.pinning.notified() => true,
        () = sleep(ABSENT) => false,
    }
}

/// Keeps one selection up to date by one watch after the other.
struct Follower<'a, K: ObjectKind> {
    loading: &'a Loading<K>,
    set: Set<K>,
    /// The resource version at which the next watch begins; `None` if a list is needed first.
    version: Option<String>,
    /// When the set was last known to be up to date.
    fresh: Instant,
    /// Whether the watch is proven.
    proven: bool,
    /// Whether this watch itself delivered something.
    heard: bool,
    /// Number of broken watches when it was opened.
    breaks: u64,
    /// Whether there was a watch once.
    allowed: bool,
}

impl<K: ObjectKind> Follower<'_, K> {
    /// Watches for as long as possible. Returns the wait before another attempt.
    async fn follow(&mut self) -> Duration {
        let entry = &self.loading.entry;
        let mut pause = FIRST_PAUSE;
        // Since when no watch is connected.
        let mut down = Instant::now();
        loop {
            self.heard = false;
            self.breaks = self.path().breaks();
            let mut lived = Duration::ZERO;
            let broken = match timeout_at(down + GRACE, self.open()).await {
                Ok(Ok(events)) => {
                    let begun = Instant::now();
                    let broken = self.listen(pin!(events)).await;
                    lived = begun.elapsed();
                    broken
                }
                Ok(Err(broken)) => broken,
                Err(_) => WatchFailure::Failed(format!("no answer within {GRACE:?}")),
            };
            let worked = lived >= LIVED || self.heard;
            if !matches!(broken, WatchFailure::Denied(_)) {
                entry.not_refused();
            }
            if worked && self.proven {
                self.fresh = Instant::now();
            }
            let orderly = matches!(broken, WatchFailure::Over) && lived >= LASTED;
            self.proven &= orderly;
            // Other answers show nothing about the path.
            if !orderly
                && matches!(
                    broken,
                    WatchFailure::Over | WatchFailure::Failed(_) | WatchFailure::Silent
                )
            {
                self.path().broke();
            }
            if worked {
                down = Instant::now();
            }
            if lived >= LIVED {
                pause = FIRST_PAUSE;
            }
            if !self.proven {
                self.believed_until((down + GRACE).min(self.fresh + UNPROVEN));
            }
            match broken {
                WatchFailure::Over if lived >= LIVED => continue,
                WatchFailure::Over => {
                    tracing::debug!(select = ?entry.select, "watch ended at once")
                }
                WatchFailure::Gone => {
                    tracing::debug!(select = ?entry.select, "watch too far behind, listing again");
                    self.version = None;
                }
                WatchFailure::Denied(error) if self.allowed && !entry.is_revoked() => {
                    tracing::debug!(select = ?entry.select, error, "watch refused, keeping the last answer");
                    self.lost(&error);
                }
                WatchFailure::Denied(error) | WatchFailure::Unsupported(error) => {
                    tracing::debug!(select = ?entry.select, error, "watching is forbidden");
                    self.lost(&error);
                    return self.given_up(RIGHTS);
                }
                WatchFailure::Silent => {
                    tracing::debug!(select = ?entry.select, "the watch does not report changes");
                    self.lost("it tells nothing of what changes");
                    return self.given_up(RIGHTS);
                }
                WatchFailure::Failed(error) => {
                    tracing::debug!(select = ?entry.select, error, "watch ended, keeping the last answer");
                    self.lost(&error);
                }
            }
            let next = Instant::now() + jittered(pause);
            if next >= down + GRACE {
                let retry = entry.watch_broke();
                tracing::debug!(select = ?entry.select, ?retry, "polling: the watch cannot be restored");
                return self.given_up(retry);
            }
            pause = (pause * 2).min(LAST_PAUSE);
            loop {
                tokio::select! {
                    () = sleep_until(next) => break,
                    () = entry.wanted.notified() => self.read_again().await,
                }
            }
        }
    }

    /// Reports a broken watch; a watch that was never allowed is not lost.
    fn lost(&self, why: &str) {
        if self.allowed {
            self.loading.lost(why);
        }
    }

    /// The watch is given up: the known objects get an expiry.
    fn given_up(&self, retry: Duration) -> Duration {
        self.believed_until(self.fresh + TRUSTED);
        retry
    }

    fn believed_until(&self, until: Instant) {
        let trusted = until.saturating_duration_since(Instant::now());
        self.loading.entry.read(Ok(objects(&self.set)), trusted);
    }

    /// Lists if necessary, then opens a watch up to its head.
    async fn open(
        &mut self,
    ) -> Result<impl Stream<Item = kube::Result<WatchEvent<K>>> + use<K>, WatchFailure> {
        let version = match &self.version {
            Some(version) => version.clone(),
            None => match listed(self.loading).await {
                Ok((set, version)) => {
                    self.take(set, version.clone());
                    version
                }
                Err(failure) if is_forbidden(&failure) => {
                    return Err(WatchFailure::Denied(failure.to_string()));
                }
                Err(failure) => return Err(WatchFailure::Failed(failure.to_string())),
            },
        };
        let events = self.watch_from(&version).await.map_err(broken)?;
        self.allowed = true;
        Ok(events)
    }

    /// Opens a watch from a version; with an empty version it begins with the existing objects.
    async fn watch_from(
        &self,
        version: &str,
    ) -> kube::Result<impl Stream<Item = kube::Result<WatchEvent<K>>> + use<K>> {
        let select = &self.loading.entry.select;
        let params = WatchParams {
            field_selector: select.fields(),
            label_selector: select.labels(),
            timeout: Some(LASTS),
            ..WatchParams::default()
        };
        let api = K::api(self.loading.env.server.client.clone(), select.namespace());
        api.watch(&params, version).await
    }

    /// Takes the result of a list.
    fn take(&mut self, set: Set<K>, version: String) {
        self.version = Some(version);
        self.fresh = Instant::now();
        if set != self.set {
            self.set = set;
        }
        self.believed_until(self.fresh + GRACE);
    }

    /// Reads the selection on demand while no watch is connected.
    async fn read_again(&mut self) {
        match listed(self.loading).await {
            Ok((set, version)) => self.take(set, version),
            Err(failure) => self.loading.say(Err(failure)),
        }
    }

    /// Reads one watch to its end.
    async fn listen(
        &mut self,
        mut events: Pin<&mut impl Stream<Item = kube::Result<WatchEvent<K>>>>,
    ) -> WatchFailure {
        let entry = &self.loading.entry;
        let begun = Instant::now();
        let mut heard = begun;
        if !self.proven {
            self.believed_until((self.fresh + UNPROVEN).min(begun + GRACE));
            self.proven = self.path_passes().await;
        }
        match self.proven {
            true => self.loading.watched(objects(&self.set)),
            false => self.believed_until(self.fresh + UNPROVEN),
        }
        loop {
            let quiet = match self.proven {
                true => heard + QUIET,
                false => begun + Duration::from_secs(LASTS.into()) + LATE,
            };
            tokio::select! {
                event = events.next() => {
                    heard = Instant::now();
                    if let Some(broken) = self.hear(event) {
                        return broken;
                    }
                }
                () = entry.wanted.notified() => {
                    if self.path().passes() {
                        self.proven = true;
                        self.loading.watched(objects(&self.set));
                        continue;
                    }
                    let (set, _) = match listed(self.loading).await {
                        Ok(listed) => listed,
                        Err(failure) => {
                            self.loading.say(Err(failure));
                            continue;
                        }
                    };
                    let before = self.proven;
                    let told = async {
                        while self.set != set {
                            let event = events.next().await;
                            heard = Instant::now();
                            if let Some(broken) = self.hear(event) {
                                return Some(broken);
                            }
                        }
                        None
                    };
                    match timeout(TELLS, told).await {
                        Ok(Some(broken)) => return broken,
                        Ok(None) => self.fresh = Instant::now(),
                        // Other events were received meanwhile.
                        Err(_) if self.proven && !before => {}
                        Err(_) => {
                            self.set = set;
                            return WatchFailure::Silent;
                        }
                    }
                    match self.proven {
                        true => self.loading.watched(objects(&self.set)),
                        false => self.believed_until(self.fresh + UNPROVEN),
                    }
                }
                () = sleep_until(quiet) => {
                    if !self.proven {
                        return WatchFailure::Over;
                    }
                    self.proven = false;
                    self.fresh = heard;
                    self.believed_until(heard);
                }
            }
        }
    }

    fn path(&self) -> &Path {
        &self.loading.env.path
    }

    /// Whether the path passes events on, if that is known or can be tested: a watch without a version begins with the existing
    /// objects.
    async fn path_passes(&self) -> bool {
        if self.path().passes() {
            return true;
        }
        if self.set.is_empty() {
            return false;
        }
        let Some(_asked) = self.path().ask() else {
            return false;
        };
        let breaks = self.path().breaks();
        let first = async {
            let events = self.watch_from("").await.ok()?;
            pin!(events).next().await?.ok()
        };
        match timeout(TELLS, first).await {
            Ok(Some(WatchEvent::Added(_) | WatchEvent::Bookmark(_))) => {
                self.path().passed(breaks);
                self.path().passes()
            }
            _ => false,
        }
    }

    /// Processes what a watch delivers; `Some` at its end.
    fn hear(&mut self, event: Option<kube::Result<WatchEvent<K>>>) -> Option<WatchFailure> {
        let changed = match event {
            None => return Some(WatchFailure::Over),
            Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                self.advance(object.resource_version());
                let (key, object) = kept(object);
                let changed = self.set.get(&key) != Some(&object);
                if changed {
                    self.set.insert(key, object);
                }
                changed
            }
            Some(Ok(WatchEvent::Deleted(object))) => {
                self.advance(object.resource_version());
                self.set.remove(&key(&object)).is_some()
            }
            Some(Ok(WatchEvent::Bookmark(bookmark))) => {
                self.advance(Some(bookmark.metadata.resource_version));
                false
            }
            Some(Ok(WatchEvent::Error(status))) => return Some(broken(kube::Error::Api(status))),
            Some(Err(error)) => return Some(broken(error)),
        };
        self.heard = true;
        let entry = &self.loading.entry;
        if changed || !self.proven {
            self.loading.watched(objects(&self.set));
        }
        if !self.proven {
            self.proven = true;
            entry.watch_works();
        }
        self.path().passed(self.breaks);
        None
    }

    fn advance(&mut self, to: Option<String>) {
        if let Some(to) = to.filter(|to| !to.is_empty()) {
            self.version = Some(to);
        }
    }
}

fn broken(error: kube::Error) -> WatchFailure {
    match &error {
        kube::Error::Api(status) => match status.code {
            410 => WatchFailure::Gone,
            403 => WatchFailure::Denied(error.to_string()),
            400 | 404 | 405 | 406 | 415 | 501 => WatchFailure::Unsupported(error.to_string()),
            _ => WatchFailure::Failed(error.to_string()),
        },
        _ => WatchFailure::Failed(error.to_string()),
    }
}

fn key<K: ObjectKind>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn kept<K: ObjectKind>(mut object: K) -> ((String, String), Arc<K>) {
    let key = key(&object);
    object.prune();
    (key, Arc::new(object))
}

fn objects<K>(set: &Set<K>) -> Objects<K> {
    Arc::new(set.values().cloned().collect())
}

/// Between half and all of the wait, so that many watches do not return at the same instant.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8);
    let part = u32::try_from(random % 512).unwrap_or_default();
    pause / 2 + pause / 1024 * part
}
