//! Services for users: ports, ready endpoints, and the URL or HOST:PORT.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};
use kubevpn_client::{Action, classify_api};
use kubevpn_target::{ConnectError, Refusal};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::out;

/// Time limit of one page of a list.
const ANSWER: Duration = Duration::from_secs(10);
/// Time limit of the search for an example, which delays the start.
const GLANCE: Duration = Duration::from_millis(500);
/// Objects of a page, and pages of a list.
const PAGE: u32 = 500;
const PAGES: usize = 10;
/// The label by which an EndpointSlice names its Service.
const OF_SERVICE: &str = "kubernetes.io/service-name";
/// Ports that probably speak HTTP, if neither name nor protocol says so.
const HTTP: [i32; 6] = [80, 3000, 5000, 8000, 8080, 9080];

/// The Services of one or all namespaces.
#[derive(Debug, Default)]
pub(super) struct ServiceList {
    pub(super) services: Vec<Service>,
    /// Ready endpoints of each Service, by namespace and name; `None` if they may not be listed.
    pub(super) ready: Option<BTreeMap<(String, String), usize>>,
    /// Whether there are more.
    pub(super) cut: bool,
}

impl ServiceList {
    /// The number of ready endpoints of a Service, if it is known.
    pub(super) fn ready(&self, service: &Service) -> Option<usize> {
        let ready = self.ready.as_ref()?;
        Some(ready.get(&name(service)).copied().unwrap_or_default())
    }
}

/// Namespace and name.
pub(super) fn name(service: &Service) -> (String, String) {
    let metadata = &service.metadata;
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// The TCP ports.
pub(super) fn ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    let ports = service
        .spec
        .iter()
        .flat_map(|spec| spec.ports.iter().flatten());
    ports.filter(|port| port.protocol.as_deref().is_none_or(|name| name == "TCP"))
}

/// Whether a port probably speaks HTTP.
fn is_http(port: &ServicePort) -> bool {
    let says = |text: &Option<String>| text.as_deref().map(|text| text.starts_with("http"));
    let secure = [&port.app_protocol, &port.name];
    if secure
        .into_iter()
        .flatten()
        .any(|text| text.starts_with("https"))
    {
        return false;
    }
    match (says(&port.app_protocol), says(&port.name)) {
        (Some(http), _) => http,
        (None, Some(true)) => true,
        _ => HTTP.contains(&port.port),
    }
}

/// The first port of HTTP as a URL, else the first port as HOST:PORT.
pub(super) fn address(service: &Service) -> Option<String> {
    let (namespace, name) = name(service);
    if let Some(port) = ports(service).find(|port| is_http(port)) {
        return Some(match port.port {
            80 => format!("http://{name}.{namespace}/"),
            port => format!("http://{name}.{namespace}:{port}/"),
        });
    }
    let port = ports(service).next()?;
    Some(format!("{name}.{namespace}:{}", port.port))
}

/// The Services of a namespace, or of all, with their ready endpoints.
pub(super) async fn list(
    client: &Client,
    namespace: Option<&str>,
) -> Result<ServiceList, ConnectError> {
    let (services, slices) = tokio::join!(
        services(client, namespace),
        all::<EndpointSlice>(client, namespace)
    );
    let (services, cut) = services?;
    Ok(ServiceList {
        services,
        ready: slices.ok().map(|(slices, _)| ready(&slices)),
        cut,
    })
}

/// The Services without endpoints, and whether there are more.
pub(super) async fn services(
    client: &Client,
    namespace: Option<&str>,
) -> Result<(Vec<Service>, bool), ConnectError> {
    all(client, namespace).await
}

async fn all<K>(client: &Client, namespace: Option<&str>) -> Result<(Vec<K>, bool), ConnectError>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let (resource, api_group) = (K::plural(&()), K::group(&()));
    let asked = Action {
        verb: "list",
        resource: &resource,
        api_group: &api_group,
        namespace,
        name: None,
    };
    pages(api, asked).await
}

/// Reads a list page by page. Also returns whether there are more.
async fn pages<K>(api: Api<K>, asked: Action<'_>) -> Result<(Vec<K>, bool), ConnectError>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut found = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    for _ in 0..PAGES {
        let page = timeout(ANSWER, api.list(&params)).await.map_err(|_| {
            ConnectError::new(
                Refusal::TimedOut,
                format!(
                    "cannot {asked}: no answer within {} s: try again",
                    ANSWER.as_secs()
                ),
            )
        })?;
        let page = page.map_err(|error| classify_api(error, &asked))?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok((found, false)),
        }
    }
    Ok((found, true))
}

fn ready(slices: &[EndpointSlice]) -> BTreeMap<(String, String), usize> {
    let mut ready = BTreeMap::new();
    for slice in slices {
        let service = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(OF_SERVICE));
        let (Some(service), Some(namespace)) = (service, &slice.metadata.namespace) else {
            continue;
        };
        // A missing condition means ready.
        let is_ready = |conditions: Option<bool>| conditions != Some(false);
        let count = slice.endpoints.iter().filter(|endpoint| {
            is_ready(
                endpoint
                    .conditions
                    .as_ref()
                    .and_then(|conditions| conditions.ready),
            )
        });
        *ready
            .entry((namespace.clone(), service.clone()))
            .or_default() += count.count();
    }
    ready
}

/// The HTTP port of a Service, if it has one and may be read.
pub(super) async fn port_of_http(client: &Client, namespace: &str, name: &str) -> Option<i32> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let service = timeout(ANSWER, services.get(name)).await.ok()?.ok()?;
    let port = ports(&service).find(|port| is_http(port))?;
    Some(port.port)
}

/// A URL in the namespace that probably works, for output to a person; `None` if none is found quickly.
pub(super) async fn example(client: &Client, namespace: &str) -> Option<String> {
    if !std::io::stdout().is_terminal() || out::is_hushed() {
        return None;
    }
    let found = timeout(GLANCE, list(client, Some(namespace)))
        .await
        .ok()?
        .ok()?;
    let answered = |service: &&Service| found.ready(service).is_some_and(|ready| ready > 0);
    let addresses = found.services.iter().filter(answered).filter_map(address);
    let mut urls = addresses.filter(|address| address.starts_with("http://"));
    urls.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(ports: &str) -> Service {
        let text =
            format!("{{metadata: {{name: web, namespace: shop}}, spec: {{ports: [{ports}]}}}}");
        serde_yaml_ng::from_str(&text).unwrap()
    }

    #[test]
    fn address_is_a_url_for_http() {
        for (ports, wanted) in [
            ("{port: 80}", Some("http://web.shop/")),
            ("{port: 9080, name: http}", Some("http://web.shop:9080/")),
            ("{port: 81, appProtocol: http}", Some("http://web.shop:81/")),
            ("{port: 443, name: https}", Some("web.shop:443")),
            ("{port: 80, appProtocol: https}", Some("web.shop:80")),
            ("{port: 5432}, {port: 8080}", Some("http://web.shop:8080/")),
            ("{port: 5432, name: tcp-pg}", Some("web.shop:5432")),
            ("{port: 53, protocol: UDP}", None),
            ("", None),
        ] {
            assert_eq!(address(&service(ports)).as_deref(), wanted, "{ports}");
        }
    }

    #[test]
    fn endpoints_are_counted() {
        let slice = |name: &str, conditions: &str| -> EndpointSlice {
            let text = format!(
                "{{metadata: {{name: a, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}, addressType: IPv4, \
                 endpoints: [{{addresses: ['10.0.0.1'], conditions: {conditions}}}]}}"
            );
            serde_yaml_ng::from_str(&text).unwrap()
        };
        let slices = [
            slice("web", "{ready: true}"),
            slice("web", "{}"),
            slice("web", "{ready: false}"),
            slice("db", "{ready: false}"),
        ];
        let ready = ready(&slices);
        let of = |name: &str| ready.get(&("shop".to_owned(), name.to_owned())).copied();
        assert_eq!(
            (of("web"), of("db"), of("nosuch")),
            (Some(2), Some(0), None)
        );
    }
}
