//! The API calls: one question, one answer, every failure classified.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{Api, ListParams};
use kube::{Client, Resource};
use kubevpn_client::{Action, classify_api};
use kubevpn_target::{ConnectError, Refusal};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// A failed call. Shared: one call may answer many who wait.
pub(crate) type Failure = Arc<ConnectError>;

/// How long one call may take, its body included.
const PATIENCE: Duration = Duration::from_secs(30);

/// Objects per page of a list, and how many pages at most.
const PAGE: u32 = 500;
const PAGES: usize = 100;

/// What the API server keeps and we read.
pub(crate) trait Object:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

/// Which objects of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Select {
    /// `None` for all namespaces.
    pub(crate) namespace: Option<String>,
    pub(crate) fields: Option<String>,
    pub(crate) labels: Option<String>,
}

impl Select {
    fn params(&self) -> ListParams {
        ListParams {
            field_selector: self.fields.clone(),
            label_selector: self.labels.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        }
    }
}

pub(crate) fn is_forbidden(failure: &ConnectError) -> bool {
    failure.refusal() == Refusal::Forbidden
}

/// What is being asked about objects of one kind, for the sentences about it.
#[derive(Clone, Copy)]
pub(crate) struct Doing<'a> {
    pub(crate) verb: &'a str,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: Option<&'a str>,
}

impl Doing<'_> {
    fn with_action<K: Object, T>(&self, say: impl FnOnce(&Action<'_>) -> T) -> T {
        say(&Action {
            verb: self.verb,
            resource: &K::plural(&()),
            api_group: &K::group(&()),
            namespace: self.namespace,
            name: self.name,
        })
    }

    /// Classifies what went wrong.
    pub(crate) fn failed<K: Object>(&self, error: kube::Error) -> Failure {
        self.with_action::<K, _>(|action| classify_api(error, action))
            .into()
    }

    async fn call<K: Object, T>(
        &self,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Failure> {
        match timeout(PATIENCE, call).await {
            Ok(answer) => answer.map_err(|error| self.failed::<K>(error)),
            Err(_) => Err(self.with_action::<K, _>(|action| {
                let sentence = format!(
                    "cannot {action}: the API server did not finish its answer within {PATIENCE:?}: try again"
                );
                ConnectError::new(Refusal::TimedOut, sentence).into()
            })),
        }
    }
}

/// One object of a namespace; `None` when it does not exist.
pub(crate) async fn get<K>(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<K>, Failure>
where
    K: Object + Resource<Scope = NamespaceResourceScope>,
{
    let doing = Doing {
        verb: "get",
        namespace: Some(namespace),
        name: Some(name),
    };
    let api = Api::<K>::namespaced(client.clone(), namespace);
    doing.call::<K, _>(api.get_opt(name)).await
}

/// One object that has no namespace; `None` when it, or its kind, does not exist.
pub(crate) async fn get_global<K>(client: &Client, name: &str) -> Result<Option<K>, Failure>
where
    K: Object + Resource<Scope = ClusterResourceScope>,
{
    let doing = Doing {
        verb: "get",
        namespace: None,
        name: Some(name),
    };
    let api = Api::<K>::all(client.clone());
    doing.call::<K, _>(api.get_opt(name)).await
}

/// Hands every object of the selection to `keep`, page by page.
pub(crate) async fn list<K>(
    client: &Client,
    select: &Select,
    mut keep: impl FnMut(K),
) -> Result<(), Failure>
where
    K: Object + Resource<Scope = NamespaceResourceScope>,
{
    let doing = Doing {
        verb: "list",
        namespace: select.namespace.as_deref(),
        name: None,
    };
    let api = match &select.namespace {
        Some(namespace) => Api::<K>::namespaced(client.clone(), namespace),
        None => Api::<K>::all(client.clone()),
    };
    let mut params = select.params();
    for _ in 0..PAGES {
        let page = doing.call::<K, _>(api.list(&params)).await?;
        page.items.into_iter().for_each(&mut keep);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(()),
        }
    }
    let most = PAGE as usize * PAGES;
    let kind = K::plural(&());
    let sentence = format!("cannot list {kind}: there are more than {most}, ask by name");
    Err(ConnectError::new(Refusal::Overloaded, sentence).into())
}
