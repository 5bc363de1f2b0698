//! Subscriptions: queries and their answers as the cluster changes.
//!
//! Subscribers to the same query share a [`Topic`] with its last answer. The answer is made again when a subscriber asks and
//! something that it rests on has changed or expired. An unused topic is dropped.

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kubevpn_target::Host;
use tokio::time::Instant;

use crate::candidates::Resolution;
use crate::check::{PodCheck, check_pods};
use crate::resolve::{Notes, Subject, resolve};
use crate::settings::Settings;
use crate::snapshot::{AddressOwner, Hints, ResolveStep, Snapshot, Stop};
use crate::store::{Store, Validity, lock};
use crate::{Candidates, LookupError};

/// Limit on topics, of which the least recently used is dropped first; and the interval of the search for unused ones.
const TOPICS: usize = 4096;
const SWEEP: Duration = Duration::from_secs(30);

/// The answer to a query, whose Pods can be followed.
pub type Answer = Resolution<Subscription>;

/// The store, and the answers resolved from it.
pub(crate) struct Resolver {
    pub(crate) store: Arc<Store>,
    pub(crate) settings: Settings,
    topics: Mutex<Topics>,
}

struct Topics {
    by_subject: HashMap<Subject, Arc<Topic>>,
    swept: Instant,
}

/// One subject and its last answer.
pub(crate) struct Topic {
    subject: Subject,
    state: Mutex<TopicState>,
}

struct TopicState {
    used: Instant,
    last: Option<Arc<ResolvedSubject>>,
    owner: Option<AddressOwner>,
}

/// The answer to a subject, and how long it holds.
struct ResolvedSubject {
    answer: Result<Resolution<Arc<Candidates>>, LookupError>,
    validity: Validity,
}

impl Resolver {
    pub(crate) fn new(store: Store, settings: Settings) -> Self {
        let topics = Topics {
            by_subject: HashMap::new(),
            swept: Instant::now(),
        };
        Self {
            store: Arc::new(store),
            settings,
            topics: Mutex::new(topics),
        }
    }

    /// Resolves a subject, or returns its last answer while it holds.
    pub(crate) async fn subscribe(
        self: &Arc<Self>,
        subject: Subject,
    ) -> Result<Answer, LookupError> {
        let topic = self.topic(subject);
        let last = self.current(&topic).await;
        let answer = last.answer.clone()?;
        let resolver = self.clone();
        Ok(answer.map(|candidates| Subscription {
            candidates,
            source: Some(AnswerSource {
                resolver,
                topic,
                last,
            }),
        }))
    }

    pub(crate) fn topic(&self, subject: Subject) -> Arc<Topic> {
        let now = Instant::now();
        let mut topics = lock(&self.topics);
        if let Some(topic) = topics.by_subject.get(&subject) {
            return topic.clone();
        }
        topics.make_room(now, self.store.idle());
        let state = TopicState {
            used: now,
            last: None,
            owner: None,
        };
        let topic = Arc::new(Topic {
            subject: subject.clone(),
            state: Mutex::new(state),
        });
        topics.by_subject.insert(subject, topic.clone());
        topic
    }

    async fn current(&self, topic: &Topic) -> Arc<ResolvedSubject> {
        if let Some(last) = topic.last().filter(|last| last.validity.holds()) {
            last.validity.touch();
            return last;
        }
        let rule =
            |snapshot: &Snapshot<'_>, notes: &mut Notes| resolve(snapshot, &topic.subject, notes);
        let (answer, validity) = self.settle(Some(topic), rule).await;
        let answer = answer.map(|answer| answer.map(Arc::new));
        let resolved = Arc::new(ResolvedSubject { answer, validity });
        lock(&topic.state).last = Some(resolved.clone());
        resolved
    }

    /// Applies a rule and reads the facts that it needs, until it has an answer.
    pub(crate) async fn settle<T>(
        &self,
        topic: Option<&Topic>,
        rule: impl Fn(&Snapshot<'_>, &mut Notes) -> ResolveStep<T>,
    ) -> (Result<T, LookupError>, Validity) {
        let Self {
            store, settings, ..
        } = self;
        let mut validity = Validity::default();
        let hints = match topic {
            Some(topic) => topic.hints(store, settings, &mut validity),
            None => Hints::default(),
        };
        let mut snapshot = Snapshot::new(settings, store.domain_guess(), hints);
        snapshot.additions = store.additions();
        let mut told = 0;
        loop {
            let mut notes = Notes::default();
            let step = rule(&snapshot, &mut notes);
            // The steps before the missing fact are the same each time.
            for step in &notes.steps[told.min(notes.steps.len())..] {
                tracing::debug!("{step}");
            }
            told = told.max(notes.steps.len());
            let answer = match step {
                Err(Stop::Needs(needs)) => {
                    store.warm(&needs.soon);
                    store.read(needs.first, &mut snapshot, &mut validity).await;
                    continue;
                }
                Ok(answer) => Ok(answer),
                Err(Stop::Failed(failure)) => Err(failure.into()),
                Err(Stop::Error(error)) => Err(error),
            };
            notes.pins.iter().for_each(|need| store.pin(need));
            if let Some(topic) = topic {
                topic.owned_by(notes.owner, store);
            }
            return (answer, validity);
        }
    }
}

impl Topic {
    fn last(&self) -> Option<Arc<ResolvedSubject>> {
        let mut state = lock(&self.state);
        state.used = Instant::now();
        state.last.clone()
    }

    fn hints(&self, store: &Store, settings: &Settings, validity: &mut Validity) -> Hints {
        let Subject::Target(query) = &self.subject else {
            return Hints::default();
        };
        let Host::Ip(ip) = query.host else {
            return Hints::default();
        };
        let owner = lock(&self.state).owner.clone();
        let port = query.port.map_or(0, |port| port.get());
        store.hints((ip, port), owner, settings, validity)
    }

    /// Remembers the owner of an address; a Service is read by its name from now on.
    fn owned_by(&self, owner: Option<AddressOwner>, store: &Store) {
        if let Some(AddressOwner::Service((namespace, name))) = &owner {
            store.warm_service(namespace, name);
        }
        lock(&self.state).owner = owner;
    }
}

impl Topics {
    /// Drops unused topics before a new one, and the least recently used one if necessary.
    fn make_room(&mut self, now: Instant, idle: Duration) {
        let full = self.by_subject.len() >= TOPICS;
        if !full && now < self.swept + SWEEP {
            return;
        }
        self.swept = now;
        let used = |topic: &Topic| lock(&topic.state).used;
        self.by_subject.retain(|_, topic| now < used(topic) + idle);
        if self.by_subject.len() >= TOPICS {
            let oldest = self.by_subject.values().min_by_key(|topic| used(topic));
            let oldest = oldest.map(|topic| topic.subject.clone());
            oldest.and_then(|subject| self.by_subject.remove(&subject));
        }
    }
}

/// The Pods that could serve a query, as last resolved, and a way to follow their changes. It dereferences to these
/// [`Candidates`]. Clones follow independently.
#[derive(Clone)]
pub struct Subscription {
    candidates: Arc<Candidates>,
    source: Option<AnswerSource>,
}

#[derive(Clone)]
struct AnswerSource {
    resolver: Arc<Resolver>,
    topic: Arc<Topic>,
    last: Arc<ResolvedSubject>,
}

impl Subscription {
    /// Waits until the Pods may have changed since they were resolved. It may return without a change. Pods made from
    /// [`Candidates`] never change.
    ///
    /// Cancel safe.
    pub async fn changed(&self) {
        match &self.source {
            Some(source) => source.last.validity.over().await,
            None => pending().await,
        }
    }

    /// Waits like [`changed`](Self::changed), then resolves the query again and takes the new Pods.
    ///
    /// Errors: those of the lookup, and `NameNotFound` if the target no longer leads to Pods. The Pods stay as they were.
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Result<(), LookupError> {
        self.changed().await;
        let Some(source) = &mut self.source else {
            return pending().await;
        };
        source.last = source.resolver.current(&source.topic).await;
        match source.last.answer.clone()? {
            Resolution::Pods(candidates) => {
                self.candidates = candidates;
                Ok(())
            }
            Resolution::Dns(question) => Err(question.otherwise),
            Resolution::ApiServer | Resolution::Outside(_) => Err(LookupError::NameNotFound {
                name: self.candidates.asked.clone(),
                because: "it was there a moment ago".into(),
            }),
        }
    }

    /// Reads the usable Pods from the API server, past the watches: one call each, in parallel, for a few Pods at most.
    ///
    /// A failed call is [`PodCheck::Unclear`]. Cancellation: the calls are given up.
    pub async fn check_pods(&self) -> PodCheck {
        match &self.source {
            Some(source) => check_pods(&source.resolver.store, self).await,
            None => PodCheck::Unclear,
        }
    }
}

impl From<Candidates> for Subscription {
    /// Pods that never change.
    fn from(candidates: Candidates) -> Self {
        Self {
            candidates: Arc::new(candidates),
            source: None,
        }
    }
}

impl Deref for Subscription {
    type Target = Candidates;

    fn deref(&self) -> &Candidates {
        &self.candidates
    }
}

impl DerefMut for Subscription {
    /// Changes made through this reference are overwritten by [`next`](Subscription::next).
    fn deref_mut(&mut self) -> &mut Candidates {
        Arc::make_mut(&mut self.candidates)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.candidates.fmt(f)
    }
}
