//! What can be seen of the cluster: one method per question, each with its ladder of access rights.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::IPAddress;
use kube::Client;
use kubevpn_target::{ConnectError, Refusal};
use tokio::time::Instant;

use crate::fetch::{Failure, Select, get, get_global, is_forbidden, list};
use crate::index::{pod_addresses, service_addresses, slices_of};
use crate::trail::Trail;

/// How long an answer that nothing watches is trusted.
const TRUSTED: Duration = Duration::from_secs(1);

/// Something that was looked for in more places than may be seen.
pub(crate) struct Seen<T> {
    pub(crate) found: T,
    /// Why one of the places could not be searched.
    pub(crate) hidden: Option<Failure>,
}

pub(crate) struct View {
    client: Client,
    /// The active namespace: where to look when all namespaces may not be searched.
    namespace: String,
}

impl View {
    pub(crate) fn new(client: Client, namespace: String) -> Self {
        Self { client, namespace }
    }

    /// A Service by its name.
    pub(crate) async fn service(
        &self,
        namespace: &str,
        name: &str,
        trail: &mut Trail,
    ) -> Result<Option<Service>, Failure> {
        trail.stale_at(Instant::now() + TRUSTED);
        get::<Service>(&self.client, namespace, name).await
    }

    /// The endpoints of a Service: its EndpointSlices, or for those who may not list them its Endpoints.
    pub(crate) async fn slices(
        &self,
        namespace: &str,
        service: &str,
        trail: &mut Trail,
    ) -> Result<Vec<EndpointSlice>, Failure> {
        trail.stale_at(Instant::now() + TRUSTED);
        let select = Select {
            namespace: Some(namespace.to_owned()),
            labels: Some(format!("kubernetes.io/service-name={service}")),
            fields: None,
        };
        let mut slices = Vec::new();
        let refused = match list(&self.client, &select, |s: EndpointSlice| slices.push(s)).await {
            Ok(()) => return Ok(slices),
            Err(failure) if is_forbidden(&failure) => failure,
            Err(failure) => return Err(failure),
        };
        trail.step(|| format!("endpoint slices: {refused}; trying the Endpoints object"));
        match get::<Endpoints>(&self.client, namespace, service).await {
            Ok(endpoints) => Ok(endpoints.map(slices_of).unwrap_or_default()),
            Err(also) if is_forbidden(&also) => Err(both(&refused, &also)),
            Err(failure) => Err(failure),
        }
    }

    /// A Pod by its name.
    pub(crate) async fn pod(
        &self,
        namespace: &str,
        name: &str,
        trail: &mut Trail,
    ) -> Result<Option<Pod>, Failure> {
        trail.stale_at(Instant::now() + TRUSTED);
        get::<Pod>(&self.client, namespace, name).await
    }

    /// The Pods with an address, in all namespaces, else in the active one.
    ///
    /// The selector knows the first of a Pod's addresses only; the others take a list of all Pods.
    pub(crate) async fn pods_at(
        &self,
        ip: IpAddr,
        trail: &mut Trail,
    ) -> Result<Seen<Vec<Pod>>, Failure> {
        trail.stale_at(Instant::now() + TRUSTED);
        let mut select = Select {
            fields: Some(format!("status.podIP={ip}")),
            ..Select::default()
        };
        let (mut found, hidden) = self.everywhere(&mut select, |_: &Pod| true, trail).await?;
        if found.is_empty() {
            select.fields = None;
            let has = |pod: &Pod| pod_addresses(pod).any(|a| a == ip);
            let mut pods = Vec::new();
            list(&self.client, &select, |pod| {
                if has(&pod) {
                    pods.push(pod);
                }
            })
            .await?;
            found = pods;
        }
        Ok(Seen { found, hidden })
    }

    /// The Service with an address.
    pub(crate) async fn service_at(
        &self,
        ip: IpAddr,
        trail: &mut Trail,
    ) -> Result<Seen<Option<Service>>, Failure> {
        match get_global::<IPAddress>(&self.client, &ip.to_string()).await {
            Ok(Some(object)) => {
                let parent = object.spec.map(|spec| spec.parent_ref);
                if let Some(parent) = parent
                    && parent.resource == "services"
                    && let Some(namespace) = parent.namespace
                {
                    trail.step(|| format!("{ip} is of service {namespace}/{}", parent.name));
                    let found = self.service(&namespace, &parent.name, trail).await?;
                    let found = found.filter(|s| service_addresses(s).any(|a| a == ip));
                    if found.is_some() {
                        let hidden = None;
                        return Ok(Seen { found, hidden });
                    }
                }
            }
            Ok(None) => {}
            Err(failure) if is_forbidden(&failure) => trail.step(|| failure.to_string()),
            Err(failure) => return Err(failure),
        }
        let mut select = Select::default();
        let has = |service: &Service| service_addresses(service).any(|a| a == ip);
        let (found, hidden) = self.everywhere(&mut select, has, trail).await?;
        Ok(Seen {
            found: found.into_iter().next(),
            hidden,
        })
    }

    /// Lists in all namespaces; where that is forbidden, in the active one. `select` is left at what was
    /// searched.
    async fn everywhere<K>(
        &self,
        select: &mut Select,
        wanted: impl Fn(&K) -> bool,
        trail: &mut Trail,
    ) -> Result<(Vec<K>, Option<Failure>), Failure>
    where
        K: crate::fetch::Object + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    {
        let mut found = Vec::new();
        let mut keep = |object: K| {
            if wanted(&object) {
                found.push(object);
            }
        };
        match list(&self.client, select, &mut keep).await {
            Ok(()) => Ok((found, None)),
            Err(failure) if is_forbidden(&failure) => {
                trail.step(|| failure.to_string());
                select.namespace = Some(self.namespace.clone());
                match list(&self.client, select, &mut keep).await {
                    Ok(()) => Ok((found, Some(failure))),
                    Err(also) if is_forbidden(&also) => Ok((found, Some(also))),
                    Err(failure) => Err(failure),
                }
            }
            Err(failure) => Err(failure),
        }
    }

    pub(crate) async fn has_namespace(&self, name: &str) -> Result<bool, Failure> {
        let found = get_global::<Namespace>(&self.client, name).await?;
        Ok(found.is_some())
    }
}

/// Two rules, either of which would do.
fn both(one: &ConnectError, other: &ConnectError) -> Failure {
    let sentence = format!("{one}; or: {other}");
    ConnectError::new(Refusal::Forbidden, sentence).into()
}
