//! Queries to the cluster's DNS, sent to its Pods through port-forward.
//!
//! Each query has a stream of its own: the server would close an idle one before the next query, and a stream on an open
//! session costs a round trip. Answers are cached for their TTL.

mod answer;
mod exchange;
pub(crate) mod message;
#[cfg(test)]
mod testing;

use std::collections::HashMap;
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, Query};
use kubevpn_cluster::{Cluster, Endpoint, Subscription};
use kubevpn_target::{BoxError, ConnectError, Refusal, Stream, classify};
use tokio::time::Instant;
use tower::ServiceExt as _;
use tower_service::Service;

pub(crate) use self::exchange::SearchNames;
use self::message::{AnsweredAddresses, DnsError};

/// Limit on cached names, and interval of the search for expired ones.
const NAMES: usize = 1024;
const SWEEP: Duration = Duration::from_secs(5);

/// How long it is believed that the DNS is forbidden or missing: access rules do not change a moment later. The failure of a
/// server is not cached: it may answer the next query.
const FAILURE: Duration = Duration::from_secs(5);

/// Limit on replicas of the DNS that are asked, one after the other: one may be terminating, or hang.
const ATTEMPTS: usize = 2;

/// Cached answers of the cluster's DNS. Clones share the cache.
#[derive(Clone, Default)]
pub(crate) struct RemoteDns {
    /// Addresses of names, for dials.
    pub(crate) addresses: DnsCache<SearchNames, AnsweredAddresses>,
    /// Complete answers, for DNS clients.
    pub(crate) messages: DnsCache<Query, Message>,
}

/// The lifetime of an answer.
pub(crate) trait Lasting: Clone {
    /// Zero for an answer that must not be cached.
    fn lasts(&self) -> Duration;
    /// The text for the log.
    fn describe(&self) -> String;
}

/// A cache of answers.
pub(crate) struct DnsCache<Q, A> {
    slots: Arc<Mutex<CacheSlots<Q, A>>>,
}

struct CacheSlots<Q, A> {
    by_question: HashMap<Q, Arc<CacheSlot<A>>>,
    swept: Instant,
}

/// The cached answer to one query. The caller that asks the server holds the lock, so that all others wait for the same
/// answer, and share it however short its lifetime.
struct CacheSlot<A> {
    known: tokio::sync::Mutex<Option<CachedAnswer<A>>>,
    /// Number of answers so far.
    answers: AtomicU64,
}

struct CachedAnswer<A> {
    answer: Result<A, Arc<ConnectError>>,
    until: Instant,
}

impl<Q, A> Clone for DnsCache<Q, A> {
    fn clone(&self) -> Self {
        Self {
            slots: self.slots.clone(),
        }
    }
}

impl<Q, A> Default for DnsCache<Q, A> {
    fn default() -> Self {
        let slots = CacheSlots {
            by_question: HashMap::new(),
            swept: Instant::now(),
        };
        Self {
            slots: Arc::new(Mutex::new(slots)),
        }
    }
}

impl<Q: Clone + Eq + Hash + Display, A: Lasting> DnsCache<Q, A> {
    /// The cached answer to a query, or that of `fetch`. Callers that wait at the same time share one answer.
    ///
    /// Cancellation: the next waiting caller asks instead.
    pub(crate) async fn ask(
        &self,
        question: &Q,
        fetch: impl Future<Output = Result<A, ConnectError>>,
    ) -> Result<A, Arc<ConnectError>> {
        let slot = self.slot(question);
        let before = slot.answers.load(Ordering::Acquire);
        let mut known = slot.known.lock().await;
        let came = before < slot.answers.load(Ordering::Acquire);
        let current = |k: &&CachedAnswer<A>| came || Instant::now() < k.until;
        if let Some(answer) = known.as_ref().filter(current).map(|k| k.answer.clone()) {
            forget_after_the_last(&slot, &mut known);
            return answer;
        }
        tracing::debug!("asking the cluster's DNS for {question}");
        let answer = fetch.await.map_err(Arc::new);
        let lasts = match &answer {
            Ok(answer) => {
                let said = answer.describe();
                tracing::debug!("the cluster's DNS says that {question} {said}");
                answer.lasts()
            }
            Err(error) => {
                tracing::debug!("the cluster's DNS cannot be reached: {error}");
                match error.refusal() {
                    Refusal::TimedOut | Refusal::Unreachable | Refusal::Overloaded => {
                        Duration::ZERO
                    }
                    _ => FAILURE,
                }
            }
        };
        *known = Some(CachedAnswer {
            answer: answer.clone(),
            until: Instant::now() + lasts,
        });
        slot.answers.fetch_add(1, Ordering::Release);
        forget_after_the_last(&slot, &mut known);
        answer
    }

    fn slot(&self, question: &Q) -> Arc<CacheSlot<A>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.by_question.get(question) {
            return slot.clone();
        }
        slots.make_room(Instant::now());
        let slot = Arc::new(CacheSlot {
            known: tokio::sync::Mutex::new(None),
            answers: AtomicU64::new(0),
        });
        // If all entries are being fetched, this one is not shared.
        if slots.by_question.len() < NAMES {
            slots.by_question.insert(question.clone(), slot.clone());
        }
        slot
    }
}

/// Drops an expired answer once no caller waits for it.
fn forget_after_the_last<A>(slot: &Arc<CacheSlot<A>>, known: &mut Option<CachedAnswer<A>>) {
    let waiting = Arc::strong_count(slot) > 2;
    if !waiting && known.as_ref().is_some_and(|k| k.until <= Instant::now()) {
        *known = None;
    }
}

impl<Q: Clone + Eq + Hash, A> CacheSlots<Q, A> {
    /// Drops expired answers before a new query, and if necessary the one that expires first.
    fn make_room(&mut self, now: Instant) {
        if self.by_question.len() < NAMES && now < self.swept + SWEEP {
            return;
        }
        self.swept = now;
        // Entries that are being fetched are locked.
        let until = |slot: &Arc<CacheSlot<A>>| match slot.known.try_lock() {
            Ok(known) => Some(known.as_ref().map_or(now, |k| k.until)),
            Err(_) => None,
        };
        self.by_question
            .retain(|_, slot| until(slot).is_none_or(|until| now < until));
        if self.by_question.len() >= NAMES {
            let slots = self.by_question.iter();
            let known = slots.filter_map(|(question, slot)| Some((until(slot)?, question)));
            let first = known
                .min_by_key(|(until, _)| *until)
                .map(|(_, q)| q.clone());
            first.and_then(|question| self.by_question.remove(&question));
        }
    }
}

/// Sends a query to the cluster's DNS over a stream to one of `pods`.
pub(crate) async fn fetch<S, Q>(
    question: &Q,
    cluster: &Cluster,
    pods: &S,
) -> Result<Q::Answer, ConnectError>
where
    Q: exchange::StreamQuery,
    S: Service<Subscription> + Clone,
    S::Response: Stream,
    S::Error: Into<BoxError>,
{
    let mut asked: Vec<String> = Vec::new();
    loop {
        let mut pods_of_dns = cluster.dns().await?;
        let asked_already = |e: &Endpoint| asked.contains(&format!("{}:{}", e.pod, e.port));
        if !pods_of_dns.endpoints.iter().all(asked_already) {
            pods_of_dns.endpoints.retain(|e| !asked_already(e));
        }
        let stream = pods.clone().oneshot(pods_of_dns).await;
        let mut stream = stream.map_err(|e| classify(e.into()))?;
        let server = stream.via().to;
        match exchange::ask(&mut stream, question).await {
            Err(error) if error.is_the_servers() && asked.len() + 1 < ATTEMPTS => {
                tracing::debug!(server, %error, "trying another Pod of the cluster's DNS");
                asked.push(server);
            }
            answered => return answered.map_err(|e| failed(question, &server, e)),
        }
    }
}

fn failed(question: &impl Display, server: &str, error: DnsError) -> ConnectError {
    let refusal = match &error {
        DnsError::TimedOut(_) => Refusal::TimedOut,
        DnsError::Question(_) => Refusal::Internal,
        _ => Refusal::Unreachable,
    };
    let sentence = format!(
        "the cluster's DNS at {server} does not resolve {question}: {error}; check its log"
    );
    ConnectError::new(refusal, sentence)
}

impl Lasting for AnsweredAddresses {
    fn lasts(&self) -> Duration {
        self.ttl
    }

    fn describe(&self) -> String {
        let Self {
            addresses,
            alias,
            ttl,
        } = self;
        let addresses: Vec<_> = addresses.iter().map(|ip| ip.to_string()).collect();
        match (addresses.is_empty(), alias) {
            (false, _) => format!("is {} (for {ttl:?})", addresses.join(", ")),
            (true, Some(alias)) => format!("is another name for {alias} (for {ttl:?})"),
            (true, None) => format!("does not exist (for {ttl:?})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kubevpn_target::Name;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    /// Counts the queries, and answers with their number and this lifetime.
    #[derive(Default)]
    struct Server(AtomicUsize);

    impl Server {
        async fn answer(&self, ttl: u64) -> Result<AnsweredAddresses, ConnectError> {
            let n = self.0.fetch_add(1, Ordering::Relaxed) + 1;
            tokio::task::yield_now().await;
            Ok(AnsweredAddresses {
                addresses: vec![([10, 0, 0, u8::try_from(n % 256).unwrap()]).into()],
                alias: None,
                ttl: Duration::from_secs(ttl),
            })
        }

        fn asked(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_last_as_long_as_they_say() {
        let (dns, server) = (DnsCache::default(), Server::default());
        let x = name("x.test.");
        let first = dns.ask(&x, server.answer(30)).await.unwrap();
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(dns.clone().ask(&x, server.answer(30)).await.unwrap(), first);
        assert_eq!(server.asked(), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_ne!(dns.ask(&x, server.answer(0)).await.unwrap(), first);
        dns.ask(&x, server.answer(0)).await.unwrap();
        assert_eq!(server.asked(), 3, "a lifetime of zero is for one question");
        dns.ask(&name("y.test."), server.answer(30)).await.unwrap();
        assert_eq!(server.asked(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_not_repeated_at_once() {
        let (dns, server) = (DnsCache::default(), Server::default());
        let x = name("x.test.");
        let fail = async { Err(ConnectError::new(Refusal::Forbidden, "no")) };
        dns.ask(&x, fail).await.unwrap_err();
        let again = dns.ask(&x, server.answer(30)).await.unwrap_err();
        assert_eq!(again.refusal(), Refusal::Forbidden);
        tokio::time::advance(FAILURE).await;
        assert!(dns.ask(&x, server.answer(30)).await.is_ok());
    }

    #[tokio::test]
    async fn concurrent_queries_are_sent_once_and_survive_a_cancelled_one() {
        let (dns, server) = (DnsCache::default(), Server::default());
        let x = name("x.test.");
        {
            let never = dns.ask(&x, pending());
            let never = tokio::time::timeout(Duration::ZERO, never).await;
            assert!(never.is_err());
        }
        let many = (0..20).map(|_| dns.ask(&x, server.answer(30)));
        let answers = futures_util::future::join_all(many).await;
        assert_eq!(server.asked(), 1);
        assert!(answers.iter().all(Result::is_ok));
    }

    #[tokio::test(start_paused = true)]
    async fn the_cache_is_bounded() {
        let (dns, server) = (DnsCache::default(), Server::default());
        let remembered = || dns.slots.lock().unwrap().by_question.len();
        for i in 0..NAMES {
            let answer = AnsweredAddresses {
                addresses: Vec::new(),
                alias: None,
                ttl: Duration::from_secs(if i < 10 { 3600 } else { 30 }),
            };
            let known = async { Ok(answer) };
            dns.ask(&name(&format!("x{i}.test.")), known).await.unwrap();
        }
        assert_eq!(remembered(), NAMES);
        tokio::time::advance(Duration::from_secs(60)).await;
        dns.ask(&name("new.test."), server.answer(30))
            .await
            .unwrap();
        assert_eq!(remembered(), 11, "those that still hold, and the new one");
    }

    /// An answer with a lifetime of zero serves all callers that wait for it: they neither queue for an exchange each nor
    /// ask in parallel.
    #[tokio::test(start_paused = true)]
    async fn callers_at_one_time_share_an_answer_without_a_lifetime() {
        let (dns, server) = (DnsCache::default(), Server::default());
        let x = name("x.test.");
        for round in 1..4 {
            let begun = Instant::now();
            let many = (0..20).map(|_| {
                dns.ask(&x, async {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    server.answer(0).await
                })
            });
            let answers = futures_util::future::join_all(many).await;
            assert!(answers.iter().all(Result::is_ok));
            assert_eq!((begun.elapsed().as_millis(), server.asked()), (100, round));
        }
        let slots = dns.slots.lock().unwrap();
        let mut slots = slots.by_question.values();
        assert!(slots.all(|slot| slot.known.try_lock().unwrap().is_none()));
    }

    /// With more names than the cache holds, cached names and names being fetched are not all dropped.
    #[tokio::test(start_paused = true)]
    async fn one_name_too_many_costs_one_name() {
        let (dns, server) = (DnsCache::default(), Server::default());
        for i in 0..NAMES {
            let known = server.answer(30 + u64::from(i != 7));
            dns.ask(&name(&format!("x{i}.test.")), async {
                known.await.map(|a| AnsweredAddresses {
                    addresses: vec![],
                    ..a
                })
            })
            .await
            .unwrap();
        }
        dns.ask(&name("new.test."), async {
            Err(ConnectError::new(Refusal::Forbidden, "no"))
        })
        .await
        .unwrap_err();
        let slots = dns.slots.lock().unwrap();
        assert_eq!(slots.by_question.len(), NAMES);
        assert!(
            !slots.by_question.contains_key(&name("x7.test.")),
            "it would have been over first"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn expired_answers_are_dropped() {
        let (dns, server) = (DnsCache::default(), Server::default());
        let remembered = || {
            let slots = dns.slots.lock().unwrap();
            let slots = slots.by_question.values();
            let known = slots.filter(|slot| slot.known.try_lock().unwrap().is_some());
            known.count()
        };
        for (question, ttl) in [("a.test.", 3), ("b.test.", 60), ("c.test.", 0)] {
            dns.ask(&name(question), server.answer(ttl)).await.unwrap();
        }
        assert_eq!(remembered(), 2, "what may not be remembered is not held");
        tokio::time::advance(SWEEP).await;
        dns.ask(&name("d.test."), server.answer(60)).await.unwrap();
        assert_eq!(remembered(), 2, "b and d");
    }
}
