//! Calls to the API server, with every failure classified.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, ListParams};
use kube::{Client, Resource};
use kubevpn_client::{Action, classify_api, is_unconnected};
use kubevpn_target::{ConnectError, Refusal};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tower::retry::budget::{Budget, TpsBudget};

use crate::select::Select;

/// The error of a failed call. It is shared, because one call may answer several waiters.
pub(crate) type CallFailure = Arc<ConnectError>;

/// How long objects without a watch are believed.
pub(crate) const TRUSTED: Duration = Duration::from_secs(2);

/// How long one call may take, its body included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Limit on simultaneous calls; further ones wait, within their own time limit.
const CALLS: usize = 256;

/// Repetitions a second that need no answered call, averaged over [`REPEATED_WITHIN`], and how many each answered call allows.
const REPEATED: u32 = 1;
const REPEATED_WITHIN: Duration = Duration::from_secs(10);
const PER_ANSWER: f32 = 0.2;

/// Objects per page of a list, and how many pages at most.
const PAGE: u32 = 500;
const PAGES: usize = 100;

/// The API server. Clones share the limit on simultaneous calls, and the budget of repetitions.
#[derive(Clone)]
pub(crate) struct LimitedApi {
    pub(crate) client: Client,
    calls: Arc<Semaphore>,
    repetitions: Arc<TpsBudget>,
}

impl LimitedApi {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            calls: Arc::new(Semaphore::new(CALLS)),
            repetitions: Arc::new(TpsBudget::new(REPEATED_WITHIN, REPEATED, PER_ANSWER)),
        }
    }
}

/// A kind of object that we read.
pub(crate) trait ObjectKind:
    Resource<DynamicType = ()> + Clone + Debug + PartialEq + DeserializeOwned + Send + Sync + 'static
{
    /// Whether the kind is listed and watched; otherwise it is read by name only.
    const LISTED: bool = true;

    /// How long one read is believed.
    const TRUSTED: Duration = TRUSTED;

    fn api(client: Client, namespace: Option<&str>) -> Api<Self>;

    /// Removes the fields that are not used, which is most of an object.
    fn prune(&mut self);

    /// Reads a selection by name, without the right to list; `None` if that is impossible.
    fn get_alone(
        server: &LimitedApi,
        select: &Select,
    ) -> impl Future<Output = Option<Result<Vec<Self>, CallFailure>>> + Send {
        async move {
            let Select::Named { namespace, name } = select else {
                return None;
            };
            let namespace = Some(namespace.as_str()).filter(|n| !n.is_empty());
            Some(
                get::<Self>(server, namespace, name)
                    .await
                    .map(Vec::from_iter),
            )
        }
    }

    /// The error if neither list nor get is allowed: it names the lesser right.
    fn both(_list: CallFailure, get: CallFailure) -> CallFailure {
        get
    }
}

pub(crate) fn is_forbidden(failure: &ConnectError) -> bool {
    failure.refusal() == Refusal::Forbidden
}

/// A call's verb and selection, for error texts.
#[derive(Clone, Copy)]
pub(crate) struct Doing<'a> {
    pub(crate) verb: &'a str,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: Option<&'a str>,
}

impl Doing<'_> {
    fn with_action<K: ObjectKind, T>(&self, say: impl FnOnce(&Action<'_>) -> T) -> T {
        say(&Action {
            verb: self.verb,
            resource: &K::plural(&()),
            api_group: &K::group(&()),
            namespace: self.namespace,
            name: self.name,
        })
    }

    /// Classifies the error of a call.
    pub(crate) fn failed<K: ObjectKind>(&self, error: kube::Error) -> CallFailure {
        self.with_action::<K, _>(|action| classify_api(error, action))
            .into()
    }

    /// Repeats the call once if its connection broke before the answer was complete, within a budget for all calls: those of
    /// a server that is away are not doubled. An answer with a status is not repeated here: the client has done that within
    /// its own budget.
    async fn call<K: ObjectKind, T, F>(
        &self,
        server: &LimitedApi,
        ask: impl Fn() -> F,
    ) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let failed = |error| self.failed::<K>(error);
        let twice = async {
            // The semaphore is never closed.
            let _turn = server.calls.acquire().await;
            let (failure, broke) = match ask().await {
                Ok(answer) => {
                    server.repetitions.deposit();
                    return Ok(answer);
                }
                Err(error) => {
                    let broke = !matches!(error, kube::Error::Api(_)) && !is_unconnected(&error);
                    (failed(error), broke)
                }
            };
            let repeats =
                broke && failure.refusal() == Refusal::ClusterAway && server.repetitions.withdraw();
            if !repeats {
                return Err(failure);
            }
            tracing::debug!("{failure}; trying again");
            ask().await.map_err(failed)
        };
        match timeout(PATIENCE, twice).await {
            Ok(answer) => answer,
            Err(_) => Err(self.with_action::<K, _>(|action| {
                let sentence = format!(
                    "cannot {action}: the API server did not finish its answer within {PATIENCE:?}: try again"
                );
                ConnectError::new(Refusal::TimedOut, sentence).into()
            })),
        }
    }
}

/// One object; `None` when it, or its kind, does not exist.
pub(crate) async fn get<K: ObjectKind>(
    server: &LimitedApi,
    namespace: Option<&str>,
    name: &str,
) -> Result<Option<K>, CallFailure> {
    let doing = Doing {
        verb: "get",
        namespace,
        name: Some(name),
    };
    let api = K::api(server.client.clone(), namespace);
    doing.call::<K, _, _>(server, || api.get_opt(name)).await
}

/// Passes every object of the selection to `keep`, page by page. Returns the list's resource version.
pub(crate) async fn list<K: ObjectKind>(
    server: &LimitedApi,
    select: &Select,
    mut keep: impl FnMut(K),
) -> Result<String, CallFailure> {
    let mut next = None;
    for _ in 0..PAGES {
        let page = page(server, select, PAGE, next, &mut keep).await?;
        next = page.next;
        if next.is_none() {
            return Ok(page.version);
        }
    }
    let most = PAGE as usize * PAGES;
    let kind = K::plural(&());
    let sentence = format!("cannot list {kind}: there are more than {most}, ask by name");
    Err(ConnectError::new(Refusal::Overloaded, sentence).into())
}

/// Passes at most `most` objects of the selection to `keep`.
pub(crate) async fn first_page<K: ObjectKind>(
    server: &LimitedApi,
    select: &Select,
    most: u32,
    keep: impl FnMut(K),
) -> Result<(), CallFailure> {
    page(server, select, most, None, keep).await.map(|_| ())
}

struct ListPage {
    version: String,
    /// The continue token of the next page.
    next: Option<String>,
}

async fn page<K: ObjectKind>(
    server: &LimitedApi,
    select: &Select,
    size: u32,
    from: Option<String>,
    keep: impl FnMut(K),
) -> Result<ListPage, CallFailure> {
    let doing = Doing {
        verb: "list",
        namespace: select.namespace(),
        name: None,
    };
    let params = ListParams {
        field_selector: select.fields(),
        label_selector: select.labels(),
        limit: Some(size),
        continue_token: from,
        ..ListParams::default()
    };
    let api = K::api(server.client.clone(), select.namespace());
    let page = doing.call::<K, _, _>(server, || api.list(&params)).await?;
    page.items.into_iter().for_each(keep);
    Ok(ListPage {
        version: page.metadata.resource_version.unwrap_or_default(),
        next: page.metadata.continue_.filter(|token| !token.is_empty()),
    })
}
