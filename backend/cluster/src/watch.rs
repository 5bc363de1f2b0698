//! Keeps one selection true by watching it.
//!
//! One list, then one watch from the list's version on. Changes and bookmarks move that version forward, so that a
//! watch that breaks goes on where it was; when the server no longer has that version (410 Gone) there is a new
//! list. While the server is away, and until a new list is complete, the last good answer stands.
//!
//! Source: Kubernetes API concepts, "Efficient detection of changes".

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kube::ResourceExt;
use kube::api::{WatchEvent, WatchParams};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::fetch::{Failure, Kind, is_forbidden, list};
use crate::keep::{ABSENT, Entry, Loading, Objects, TRUSTED};

/// Between attempts while the API server does not answer: doubling, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// An attempt that lasted so long was a watch, and what ended it says nothing about the next. A server that ends
/// each at once, with or without an error, is not asked again at once.
const LIVED: Duration = Duration::from_millis(500);

/// How long the server lets a watch last, and how much later it is taken for dead if nobody says that it ended.
const LASTS: u32 = 290;
const LATE: Duration = Duration::from_secs(5);

/// Why a selection is not watched.
pub(crate) enum Ended {
    /// There is no first answer.
    NotListed(Failure),
    /// What was found is said, and will get old.
    NotWatched,
}

/// How a watch, or the list that it needs, came to its end.
enum Broken {
    /// As watches do.
    Over,
    /// The version is no longer known to the server.
    Gone,
    Denied(String),
    Failed(String),
}

type Set<K> = BTreeMap<(String, String), Arc<K>>;

/// Loads an entry and keeps it, until it may be forgotten.
pub(crate) async fn keep<K: Kind>(loading: &Loading<K>) -> Result<(), Ended> {
    let Loading { env, entry, .. } = loading;
    let (set, version) = listed(loading).await.map_err(Ended::NotListed)?;
    if set.is_empty() && !entry.is_pinned() && !parked(entry).await {
        return Ok(());
    }
    let Ok(_watch) = env.watches.clone().try_acquire_owned() else {
        tracing::debug!(select = ?entry.select, "read from time to time: there are as many watches as may be");
        entry.read(Ok(objects(&set)), TRUSTED);
        return Err(Ended::NotWatched);
    };
    entry.watched(objects(&set));
    let mut following = pin!(follow(loading, set, version));
    loop {
        tokio::select! {
            ended = &mut following => return Err(ended),
            () = sleep_until(entry.used() + env.idle) => {
                if loading.gave_up() {
                    return Ok(());
                }
            }
        }
    }
}

/// All objects of the selection, and the version they have together.
async fn listed<K: Kind>(loading: &Loading<K>) -> Result<(Set<K>, String), Failure> {
    let mut set = Set::new();
    let add = |object: K| {
        let (key, object) = kept(object);
        set.insert(key, object);
    };
    let version = list(&loading.env.server, &loading.entry.select, add).await?;
    loading.entry.not_refused();
    Ok((set, version))
}

/// Nothing was found. Waits for somebody to say that this matters; `false` if nobody did in time.
async fn parked<K: Kind>(entry: &Entry<K>) -> bool {
    entry.read(Ok(Objects::default()), ABSENT);
    tokio::select! {
        () = entry.pinning.notified() => true,
        () = sleep(ABSENT) => false,
    }
}

/// Watches for as long as it may.
async fn follow<K: Kind>(loading: &Loading<K>, mut set: Set<K>, version: String) -> Ended {
    let Loading { env, entry, .. } = loading;
    let tell = |set: &Set<K>| {
        entry.watched(objects(set));
        env.changes.send_modify(|n| *n += 1);
    };
    let mut version = Some(version);
    let mut allowed = false;
    let mut pause = FIRST_PAUSE;
    loop {
        let begun = Instant::now();
        let broken = match &mut version {
            Some(version) => watch(loading, &mut set, version, &mut allowed, tell).await,
            None => match listed(loading).await {
                Ok((new, at)) => {
                    version = Some(at);
                    if new != set {
                        set = new;
                        tell(&set);
                    }
                    continue;
                }
                Err(failure) if is_forbidden(&failure) => Broken::Denied(failure.to_string()),
                Err(failure) => Broken::Failed(failure.to_string()),
            },
        };
        let lived = begun.elapsed() >= LIVED;
        if !matches!(broken, Broken::Denied(_)) {
            entry.not_refused();
        }
        match broken {
            Broken::Over if lived => continue,
            Broken::Over => tracing::debug!(select = ?entry.select, "watch ended at once"),
            Broken::Gone => {
                tracing::debug!(select = ?entry.select, "watch too far behind, listing again");
                version = None;
            }
            Broken::Denied(error) if allowed && !entry.is_revoked() => {
                tracing::debug!(select = ?entry.select, error, "watch refused, the last good answer stands");
            }
            Broken::Denied(error) => {
                tracing::debug!(select = ?entry.select, error, "may not be watched any more");
                entry.read(Ok(objects(&set)), TRUSTED);
                // Who waits for a change is told that nobody tells of them any more.
                env.changes.send_modify(|n| *n += 1);
                return Ended::NotWatched;
            }
            Broken::Failed(error) => {
                tracing::debug!(select = ?entry.select, error, "watch broken, the last good answer stands");
            }
        }
        if lived {
            pause = FIRST_PAUSE;
        }
        sleep(jittered(pause)).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// One watch, to its end.
async fn watch<K: Kind>(
    loading: &Loading<K>,
    set: &mut Set<K>,
    version: &mut String,
    allowed: &mut bool,
    tell: impl Fn(&Set<K>),
) -> Broken {
    let select = &loading.entry.select;
    let params = WatchParams {
        field_selector: select.fields(),
        label_selector: select.labels(),
        timeout: Some(LASTS),
        ..WatchParams::default()
    };
    let api = K::api(loading.env.server.client.clone(), select.namespace());
    let mut events = match api.watch(&params, version).await {
        Ok(events) => pin!(events),
        Err(error) => return broken(error),
    };
    *allowed = true;
    let silence = Duration::from_secs(LASTS.into()) + LATE;
    loop {
        let Ok(Some(event)) = timeout(silence, events.next()).await else {
            return Broken::Over;
        };
        let changed = match event {
            Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                advance(version, object.resource_version());
                let (key, object) = kept(object);
                let old = set.insert(key, object.clone());
                old.is_none_or(|old| old != object)
            }
            Ok(WatchEvent::Deleted(object)) => {
                advance(version, object.resource_version());
                set.remove(&key(&object)).is_some()
            }
            Ok(WatchEvent::Bookmark(bookmark)) => {
                advance(version, Some(bookmark.metadata.resource_version));
                false
            }
            Ok(WatchEvent::Error(status)) => return broken(kube::Error::Api(status)),
            Err(error) => return broken(error),
        };
        if changed {
            tell(set);
        }
    }
}

fn advance(version: &mut String, to: Option<String>) {
    if let Some(to) = to.filter(|to| !to.is_empty()) {
        *version = to;
    }
}

fn broken(error: kube::Error) -> Broken {
    match &error {
        kube::Error::Api(status) if status.code == 410 => Broken::Gone,
        kube::Error::Api(status) if status.code == 403 => Broken::Denied(error.to_string()),
        _ => Broken::Failed(error.to_string()),
    }
}

fn key<K: Kind>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn kept<K: Kind>(mut object: K) -> ((String, String), Arc<K>) {
    let key = key(&object);
    object.prune();
    (key, Arc::new(object))
}

fn objects<K>(set: &Set<K>) -> Objects<K> {
    Arc::new(set.values().cloned().collect())
}

/// Between half and all of it, so that many watches do not come back in one instant.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8);
    let part = u32::try_from(random % 512).unwrap_or_default();
    pause / 2 + pause / 1024 * part
}
