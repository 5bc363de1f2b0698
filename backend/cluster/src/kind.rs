//! The kinds of objects that we read, and the fields that we keep.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, ContainerStatus, Endpoints, Namespace, Pod, PodSpec, PodStatus, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client};
use kubevpn_target::{ConnectError, Refusal};

use crate::fetch::{CallFailure, LimitedApi, ObjectKind, get};
use crate::objects::slices_of;
use crate::select::Select;

fn namespaced<K>(client: Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    }
}

fn identity(meta: &mut ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        namespace: meta.namespace.take(),
        name: meta.name.take(),
        uid: meta.uid.take(),
        ..ObjectMeta::default()
    }
}

impl ObjectKind for Service {
    fn api(client: Client, namespace: Option<&str>) -> Api<Self> {
        namespaced(client, namespace)
    }

    fn prune(&mut self) {
        self.metadata = identity(&mut self.metadata);
        if let Some(status) = &mut self.status {
            status.conditions = None;
        }
    }
}

impl ObjectKind for EndpointSlice {
    fn api(client: Client, namespace: Option<&str>) -> Api<Self> {
        namespaced(client, namespace)
    }

    fn prune(&mut self) {
        self.metadata = identity(&mut self.metadata);
        for endpoint in &mut self.endpoints {
            endpoint.deprecated_topology = None;
            endpoint.hints = None;
            endpoint.node_name = None;
            endpoint.zone = None;
        }
    }

    /// Slices have generated names; the Endpoints object has the Service's name.
    async fn get_alone(
        server: &LimitedApi,
        select: &Select,
    ) -> Option<Result<Vec<Self>, CallFailure>> {
        let Select::OfService { namespace, service } = select else {
            return None;
        };
        let endpoints = get::<Endpoints>(server, Some(namespace), service).await;
        Some(endpoints.map(|found| found.map(slices_of).unwrap_or_default()))
    }

    fn both(list: CallFailure, get: CallFailure) -> CallFailure {
        ConnectError::new(Refusal::Forbidden, format!("{list}; or: {get}")).into()
    }
}

impl ObjectKind for Endpoints {
    fn api(client: Client, namespace: Option<&str>) -> Api<Self> {
        namespaced(client, namespace)
    }

    fn prune(&mut self) {
        self.metadata = identity(&mut self.metadata);
    }
}

impl ObjectKind for Pod {
    fn api(client: Client, namespace: Option<&str>) -> Api<Self> {
        namespaced(client, namespace)
    }

    fn prune(&mut self) {
        let ports_of = |containers: Vec<Container>| {
            let ports_of = |container: Container| Container {
                ports: container.ports,
                ..Container::default()
            };
            containers.into_iter().map(ports_of).collect()
        };
        let states_of = |statuses: Vec<ContainerStatus>| {
            let state_of = |status: ContainerStatus| ContainerStatus {
                name: status.name,
                ready: status.ready,
                started: status.started,
                state: status.state,
                ..ContainerStatus::default()
            };
            statuses.into_iter().map(state_of).collect()
        };
        self.metadata = identity(&mut self.metadata);
        self.spec = self.spec.take().map(|spec| PodSpec {
            host_network: spec.host_network,
            subdomain: spec.subdomain,
            containers: ports_of(spec.containers),
            init_containers: spec.init_containers.map(ports_of),
            ..PodSpec::default()
        });
        self.status = self.status.take().map(|status| PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            conditions: status.conditions.map(|mut all| {
                all.retain(|c| c.status == "False");
                for condition in &mut all {
                    condition.last_probe_time = None;
                    condition.last_transition_time = None;
                }
                all
            }),
            container_statuses: status.container_statuses.map(states_of),
            init_container_statuses: status.init_container_statuses.map(states_of),
            ..PodStatus::default()
        });
    }
}

impl ObjectKind for IPAddress {
    const LISTED: bool = false;
    /// An IPAddress names a Service, whose own addresses are checked at each use.
    const TRUSTED: Duration = Duration::from_secs(5);

    fn api(client: Client, _: Option<&str>) -> Api<Self> {
        Api::all(client)
    }

    fn prune(&mut self) {
        self.metadata = identity(&mut self.metadata);
    }
}

impl ObjectKind for ServiceCIDR {
    fn api(client: Client, _: Option<&str>) -> Api<Self> {
        Api::all(client)
    }

    fn prune(&mut self) {
        self.metadata = identity(&mut self.metadata);
    }
}

impl ObjectKind for Namespace {
    const LISTED: bool = false;
    /// A namespace only distinguishes a missing Service from a host outside. Objects in a new namespace are found without
    /// it.
    const TRUSTED: Duration = Duration::from_secs(600);

    fn api(client: Client, _: Option<&str>) -> Api<Self> {
        Api::all(client)
    }

    fn prune(&mut self) {
        self.metadata = identity(&mut self.metadata);
    }
}

impl ObjectKind for ConfigMap {
    const LISTED: bool = false;

    fn api(client: Client, namespace: Option<&str>) -> Api<Self> {
        namespaced(client, namespace)
    }

    fn prune(&mut self) {
        self.metadata = identity(&mut self.metadata);
    }
}
