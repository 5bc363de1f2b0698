//! Keeps one selection true by watching it.
//!
//! One list, then one watch from the list's version on; bookmarks move that version forward, and 410 Gone
//! or a version the server no longer has lead back to a list (kube-runtime's `watcher` does this). While
//! the server is away, and until a new list is complete, the last good answer stands.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kube::ResourceExt;
use kube::runtime::watcher::{self, Event};
use kubevpn_target::{ConnectError, Refusal};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::fetch::{Doing, Failure, Kind, PATIENCE, Select};
use crate::keep::{ABSENT, Entry, Loading, Objects, TRUSTED};

/// Between attempts while the API server does not answer: doubling, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// An error after this time of peace starts with the first pause again.
const PEACE: Duration = Duration::from_secs(30);

/// Why a selection is not watched.
pub(crate) enum Ended {
    /// There is no first answer.
    NotListed(Failure),
    /// What was found is said, and will get old.
    NotWatched,
}

type Set<K> = BTreeMap<(String, String), Arc<K>>;

/// Loads an entry and keeps it, until it may be forgotten.
pub(crate) async fn keep<K: Kind>(loading: &Loading<K>) -> Result<(), Ended> {
    let Loading { env, entry, .. } = loading;
    let mut events = pin!(stream::<K>(loading));
    let mut set = match first(&mut events, &entry.select).await {
        Ok(set) => set,
        Err(failure) => return Err(Ended::NotListed(failure)),
    };
    if set.is_empty() && !entry.is_pinned() && !parked(entry).await {
        return Ok(());
    }
    // The list is over, and the watch starts when the stream is polled next.
    let Ok(_watch) = env.watches.clone().try_acquire_owned() else {
        tracing::debug!(select = ?entry.select, "read from time to time: there are as many watches as may be");
        entry.read(Ok(objects(&set)), TRUSTED);
        return Err(Ended::NotWatched);
    };
    entry.watched(objects(&set));
    let mut relisting = None;
    let mut pause = FIRST_PAUSE;
    let mut last_error = Instant::now();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = sleep_until(entry.used() + env.idle) => {
                if loading.gave_up() {
                    return Ok(());
                }
                continue;
            }
        };
        let error = match event {
            Some(Ok(event)) => {
                if step(&mut set, &mut relisting, event) {
                    entry.watched(objects(&set));
                    env.changes.send_modify(|n| *n += 1);
                }
                continue;
            }
            Some(Err(error)) => error,
            None => return Ok(()),
        };
        tracing::debug!(select = ?entry.select, %error, "watch broken, the last good answer stands");
        if is_denied(&error) {
            entry.read(Ok(objects(&set)), TRUSTED);
            return Err(Ended::NotWatched);
        }
        if last_error.elapsed() > PEACE {
            pause = FIRST_PAUSE;
        }
        if is_too_old(&error) {
            // In an answer rather than an event, which `watcher` would ask for again and again.
            events.set(stream::<K>(loading));
        }
        last_error = Instant::now();
        sleep(jittered(pause)).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

fn stream<K: Kind>(loading: &Loading<K>) -> impl Stream<Item = watcher::Result<Event<K>>> + use<K> {
    let select = &loading.entry.select;
    let api = K::api(loading.env.client.clone(), select.namespace());
    let config = watcher::Config {
        field_selector: select.fields(),
        label_selector: select.labels(),
        ..watcher::Config::default()
    };
    watcher::watcher(api, config)
}

/// The first list.
async fn first<K: Kind>(
    events: &mut (impl Stream<Item = watcher::Result<Event<K>>> + Unpin),
    select: &Select,
) -> Result<Set<K>, Failure> {
    let mut set = Set::new();
    let mut relisting = None;
    let until = Instant::now() + PATIENCE;
    loop {
        match timeout_at(until, events.next()).await {
            Ok(Some(Ok(event))) => {
                if let Event::InitDone = event {
                    step(&mut set, &mut relisting, event);
                    return Ok(set);
                }
                step(&mut set, &mut relisting, event);
            }
            Ok(Some(Err(error))) => return Err(failed::<K>(error, select)),
            Ok(None) | Err(_) => {
                let kind = K::plural(&());
                let sentence = format!(
                    "cannot list {kind}: the API server did not finish its answer: try again"
                );
                return Err(ConnectError::new(Refusal::TimedOut, sentence).into());
            }
        }
    }
}

fn failed<K: Kind>(error: watcher::Error, select: &Select) -> Failure {
    let doing = Doing {
        verb: "list",
        namespace: select.namespace(),
        name: None,
    };
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => doing.failed::<K>(error),
        watcher::Error::WatchError(status) => doing.failed::<K>(kube::Error::Api(status)),
        watcher::Error::NoResourceVersion => {
            let sentence = format!(
                "cannot watch {}: the API server gives no version",
                K::plural(&())
            );
            ConnectError::new(Refusal::ClusterAway, sentence).into()
        }
    }
}

/// Nothing was found. Waits for somebody to say that this matters; `false` if nobody did in time.
async fn parked<K: Kind>(entry: &Entry<K>) -> bool {
    entry.read(Ok(Objects::default()), ABSENT);
    tokio::select! {
        () = entry.pin.notified() => true,
        () = sleep(ABSENT) => false,
    }
}

/// Takes an event in; whether anything changed that we keep.
fn step<K: Kind>(set: &mut Set<K>, relisting: &mut Option<Set<K>>, event: Event<K>) -> bool {
    let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
    match event {
        Event::Init => {
            *relisting = Some(Set::new());
            false
        }
        Event::InitApply(mut object) => {
            let key = key(&object);
            object.prune();
            relisting
                .get_or_insert_default()
                .insert(key, Arc::new(object));
            false
        }
        Event::InitDone => {
            let new = relisting.take().unwrap_or_default();
            let changed = *set != new;
            *set = new;
            changed
        }
        Event::Apply(mut object) => {
            let key = key(&object);
            object.prune();
            let changed = set.get(&key).is_none_or(|known| **known != object);
            set.insert(key, Arc::new(object));
            changed
        }
        Event::Delete(object) => set.remove(&key(&object)).is_some(),
    }
}

fn objects<K>(set: &Set<K>) -> Objects<K> {
    Arc::new(set.values().cloned().collect())
}

fn status(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

fn is_denied(error: &watcher::Error) -> bool {
    status(error) == Some(403)
}

fn is_too_old(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(_)) && status(error) == Some(410)
}

/// Between half and all of it, so that many watches do not come back in one instant.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8);
    let part = u32::try_from(random % 512).unwrap_or_default();
    pause / 2 + pause / 1024 * part
}
