//! The API as kube's clients see it, over HTTP/1.1 and HTTP/2.

mod common;

use std::pin::pin;

use common::{h1, h2, refusal, within};
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::api::{
    DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use kubevpn_sim::Sim;
use serde_json::json;

async fn sample() -> Sim {
    Sim::builder().sample().start().await.unwrap()
}

fn names<T: ResourceExt>(list: impl IntoIterator<Item = T>) -> Vec<String> {
    list.into_iter().map(|o| o.name_any()).collect()
}

#[tokio::test]
async fn objects_over_both_http_versions() {
    let sim = sample().await;
    for (client, version) in [(h1(&sim), 1), (h2(&sim), 2)] {
        sim.forget_requests();
        read_everything(client).await;
        let requests = sim.requests();
        assert!(requests.iter().all(|r| r.http == version), "{requests:?}");
        assert_eq!(
            (&*requests[0].verb, &*requests[0].resource),
            ("get", "services")
        );
        assert_eq!(
            (&*requests[0].namespace, &*requests[0].name),
            ("default", "multi")
        );
        assert_eq!(
            (requests[0].code, &*requests[0].user),
            (200, "kubernetes-admin")
        );
    }
    sim.shutdown().await;
}

async fn read_everything(client: Client) {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let multi = services.get("multi").await.unwrap().spec.unwrap();
    assert_eq!(multi.ports.unwrap().len(), 9);
    let ip = multi.cluster_ip.unwrap();
    assert!(ip.starts_with("10.96."), "{ip}");
    let address: Api<IPAddress> = Api::all(client.clone());
    let parent = address.get(&ip).await.unwrap().spec.unwrap().parent_ref;
    assert_eq!((&*parent.resource, &*parent.name), ("services", "multi"));

    let dual = services.get("dual").await.unwrap().spec.unwrap();
    let v6 = &dual.cluster_ips.unwrap()[1];
    assert!(v6.starts_with("fd00:96::"), "{v6}");
    assert_eq!(address.get(v6).await.unwrap().name_any(), *v6);
    let cidrs: Api<ServiceCIDR> = Api::all(client.clone());
    let cidrs = cidrs.get("kubernetes").await.unwrap().spec.unwrap().cidrs;
    assert_eq!(cidrs.unwrap(), ["10.96.0.0/16", "fd00:96::/112"]);

    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let of = |service: &str| {
        ListParams::default().labels(&format!("kubernetes.io/service-name={service}"))
    };
    // A named target port is resolved to the pod's number.
    let reviews = slices.list(&of("reviews")).await.unwrap().items.remove(0);
    let port = &reviews.ports.unwrap()[0];
    assert_eq!(
        (port.name.as_deref(), port.port),
        (Some("http"), Some(9080))
    );
    let endpoint = &reviews.endpoints[0];
    let pod = endpoint.target_ref.clone().unwrap().name.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let status = pods.get(&pod).await.unwrap().status.unwrap();
    assert_eq!(endpoint.addresses, [status.pod_ip.unwrap()]);
    // Both families have a slice, also one without endpoints, whose list is null.
    let dual = slices.list(&of("dual")).await.unwrap().items;
    let mut sizes: Vec<_> = dual
        .iter()
        .map(|s| (&*s.address_type, s.endpoints.len()))
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [("IPv4", 2), ("IPv6", 0)]);
    let db = slices.list(&of("db")).await.unwrap().items.remove(0);
    let hostnames: Vec<_> = db
        .endpoints
        .iter()
        .filter_map(|e| e.hostname.as_deref())
        .collect();
    assert_eq!(hostnames, ["db-0", "db-1"]);
    let notready = slices.list(&of("notready")).await.unwrap().items.remove(0);
    let conditions = notready.endpoints[0].conditions.clone().unwrap();
    assert_eq!(
        (conditions.ready, conditions.serving),
        (Some(false), Some(false))
    );

    let endpoints: Api<Endpoints> = Api::default_namespaced(client.clone());
    let notready = endpoints.get("notready").await.unwrap().subsets.unwrap();
    assert!(notready[0].addresses.is_none());
    assert_eq!(notready[0].not_ready_addresses.as_ref().unwrap().len(), 1);
    assert!(endpoints.get("empty").await.unwrap().subsets.is_none());
    assert_eq!(refusal(endpoints.get("manual").await).0, 404);

    let namespaces: Api<Namespace> = Api::all(client);
    let all = names(namespaces.list(&ListParams::default()).await.unwrap());
    assert_eq!(
        all,
        [
            "default",
            "kube-node-lease",
            "kube-public",
            "kube-system",
            "team-a"
        ]
    );
}

#[tokio::test]
async fn selectors() {
    let sim = sample().await;
    let pods: Api<Pod> = Api::default_namespaced(h1(&sim));
    let list = async |p: ListParams| pods.list(&p).await.map(names);
    let db0 = pods
        .get("db-0")
        .await
        .unwrap()
        .status
        .unwrap()
        .pod_ip
        .unwrap();
    let by_ip = ListParams::default().fields(&format!("status.podIP={db0}"));
    assert_eq!(list(by_ip).await.unwrap(), ["db-0"]);
    let by_name = ListParams::default().fields("metadata.name=db-1,status.phase=Running");
    assert_eq!(list(by_name).await.unwrap(), ["db-1"]);
    let by_label = ListParams::default().labels("app in (db, api),!nosuch");
    assert_eq!(list(by_label).await.unwrap(), ["db-0", "db-1"]);
    let everywhere: Api<Pod> = Api::all(h1(&sim));
    let params = ListParams::default().fields("metadata.namespace=team-a");
    assert_eq!(everywhere.list(&params).await.unwrap().items.len(), 1);
    let unknown = list(ListParams::default().fields("spec.foo=x")).await;
    assert_eq!(
        refusal(unknown),
        (400, "field label not supported: spec.foo".into())
    );
}

#[tokio::test]
async fn refusals() {
    let sim = sample().await;
    let services: Api<Service> = Api::default_namespaced(h2(&sim));
    let (code, message) = refusal(services.get("nope").await);
    assert_eq!((code, &*message), (404, "services \"nope\" not found"));
    let other: Api<Service> = Api::namespaced(h2(&sim), "nowhere");
    assert!(
        other
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );

    let existing = services.get("reviews").await.unwrap();
    let (code, message) = refusal(
        services
            .create(&PostParams::default(), &reduced(&existing))
            .await,
    );
    assert_eq!(
        (code, &*message),
        (409, "services \"reviews\" already exists")
    );
    let mut stale = existing.clone();
    stale.metadata.resource_version = Some("1".into());
    let (code, message) = refusal(
        services
            .replace("reviews", &PostParams::default(), &stale)
            .await,
    );
    assert_eq!(code, 409);
    assert!(
        message.starts_with("Operation cannot be fulfilled on services \"reviews\""),
        "{message}"
    );
    let (how, which) = (DeleteParams::default(), ListParams::default());
    let (code, message) = refusal(services.delete_collection(&how, &which).await);
    let wanted = "the server does not allow this method on the requested resource";
    assert_eq!((code, &*message), (405, wanted));

    let old = Sim::builder().version("1.32").start().await.unwrap();
    let addresses: Api<IPAddress> = Api::all(h1(&old));
    let (code, message) = refusal(addresses.get("10.96.0.1").await);
    let wanted = "the server could not find the requested resource";
    assert_eq!((code, &*message), (404, wanted));
    let version = h1(&old).apiserver_version().await.unwrap();
    assert_eq!((&*version.major, &*version.minor), ("1", "32"));
}

/// Without what the server adds.
fn reduced(service: &Service) -> Service {
    let mut service = service.clone();
    service.metadata.resource_version = None;
    service.metadata.uid = None;
    service
}

#[tokio::test]
async fn writes() {
    let sim = sample().await;
    let services: Api<Service> = Api::default_namespaced(h1(&sim));
    let made = json!({"metadata": {"name": "extra"},
        "spec": {"selector": {"app": "reviews"}, "ports": [{"port": 80, "targetPort": "web"}]}});
    let made: Service = serde_json::from_value(made).unwrap();
    let made = services
        .create(&PostParams::default(), &made)
        .await
        .unwrap();
    let ip = made.spec.clone().unwrap().cluster_ip.unwrap();
    assert!(sim.get("IPAddress", "", &ip).is_some());
    let slices = sim.list("EndpointSlice", "default");
    let slice = slices
        .iter()
        .find(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == "extra");
    assert_eq!(slice.unwrap()["ports"][0]["port"], 9080);

    let patch = Patch::Merge(json!({"spec": {"ports": [{"port": 81, "targetPort": 9080}]}}));
    let patched = services
        .patch("extra", &PatchParams::default(), &patch)
        .await
        .unwrap();
    let spec = patched.spec.unwrap();
    assert_eq!(
        (spec.ports.unwrap()[0].port, spec.cluster_ip),
        (81, Some(ip.clone()))
    );

    services
        .delete("extra", &DeleteParams::default())
        .await
        .unwrap();
    assert!(sim.get("IPAddress", "", &ip).is_none());
    let left = sim.list("EndpointSlice", "default");
    assert_eq!(left.len(), slices.len() - 1);
}

#[tokio::test]
async fn pages_stay_at_their_revision() {
    let sim = sample().await;
    let services: Api<Service> = Api::default_namespaced(h1(&sim));
    let all = names(services.list(&ListParams::default()).await.unwrap());
    let mut params = ListParams::default().limit(4);
    let first = services.list(&params).await.unwrap();
    assert_eq!(
        first.metadata.remaining_item_count,
        Some(all.len() as i64 - 4)
    );
    // Neither what goes nor what comes shows on the pages that follow.
    sim.delete("Service", "default", "reviews").unwrap();
    sim.apply("{apiVersion: v1, kind: Service, metadata: {name: zz}, spec: {ports: [{port: 1}]}}")
        .unwrap();
    let mut seen = names(first.items);
    params.continue_token = first.metadata.continue_;
    while params
        .continue_token
        .as_deref()
        .is_some_and(|t| !t.is_empty())
    {
        let page = services.list(&params).await.unwrap();
        params.continue_token.clone_from(&page.metadata.continue_);
        seen.extend(names(page.items));
    }
    assert_eq!(seen, all);

    let first = services
        .list(&ListParams::default().limit(1))
        .await
        .unwrap();
    sim.expire_watches();
    sim.set_ready("default", "db-0", false).unwrap();
    sim.expire_watches();
    params = ListParams::default().limit(1);
    params.continue_token = first.metadata.continue_;
    let (code, message) = refusal(services.list(&params).await);
    assert_eq!(code, 410);
    assert!(
        message.starts_with("The provided continue parameter is too old"),
        "{message}"
    );
}

/// The next event of a watch, in a few letters.
async fn next<T: ResourceExt>(
    events: &mut (impl StreamExt<Item = kube::Result<WatchEvent<T>>> + Unpin),
) -> String {
    match within(events.next())
        .await
        .expect("the watch ended")
        .unwrap()
    {
        WatchEvent::Added(o) => format!("+{}", o.name_any()),
        WatchEvent::Modified(o) => format!("~{}", o.name_any()),
        WatchEvent::Deleted(o) => format!("-{}", o.name_any()),
        WatchEvent::Bookmark(b) => format!("bookmark {}", b.metadata.resource_version),
        WatchEvent::Error(e) => format!("{} {}", e.code, e.reason),
    }
}

#[tokio::test]
async fn watches() {
    let sim = sample().await;
    for client in [h1(&sim), h2(&sim)] {
        let pods: Api<Pod> = Api::default_namespaced(client);
        let now = pods
            .list(&ListParams::default())
            .await
            .unwrap()
            .metadata
            .resource_version
            .unwrap();
        let params = WatchParams::default().labels("app=db");
        let mut events = pin!(pods.watch(&params, &now).await.unwrap());
        sim.set_ready("default", "db-0", false).unwrap();
        sim.set_ready("default", "db-0", true).unwrap();
        assert_eq!(next(&mut events).await, "~db-0");
        assert_eq!(next(&mut events).await, "~db-0");
        // What happens to others does not show; what stops to match is gone.
        let reviews = sim.pods("default", "reviews").remove(0);
        sim.set_ready("default", &reviews, false).unwrap();
        sim.set_ready("default", &reviews, true).unwrap();
        sim.apply("{apiVersion: v1, kind: Pod, metadata: {name: extra, labels: {app: db}}}")
            .unwrap();
        assert_eq!(next(&mut events).await, "+extra");
        sim.apply("{apiVersion: v1, kind: Pod, metadata: {name: extra, labels: {app: x}}}")
            .unwrap();
        assert_eq!(next(&mut events).await, "-extra");
        sim.bookmark_watches();
        assert!(next(&mut events).await.starts_with("bookmark "));
        sim.disconnect_watches();
        assert!(within(events.next()).await.is_none());

        // From 0: what is there, then what comes.
        let mut events = pin!(pods.watch(&params, "0").await.unwrap());
        assert_eq!(next(&mut events).await, "+db-0");
        assert_eq!(next(&mut events).await, "+db-1");
        sim.expire_watches();
        assert_eq!(next(&mut events).await, "410 Expired");
        assert!(within(events.next()).await.is_none());
        let mut events = pin!(pods.watch(&params, &now).await.unwrap());
        assert_eq!(next(&mut events).await, "410 Expired");
        sim.delete_pod("default", "extra").unwrap();
    }
}

/// kube's watcher keeps the right set through everything that interrupts it, both ways it can begin.
#[tokio::test]
async fn a_watcher_survives_interruptions() {
    for streaming in [false, true] {
        let sim = sample().await;
        let services: Api<Service> = Api::default_namespaced(h2(&sim));
        let mut config = watcher::Config::default().fields("metadata.name=reviews");
        if streaming {
            config = config.streaming_lists();
        }
        let mut events = pin!(watcher(services, config));
        assert_eq!(settled(&mut events).await, ["reviews"]);
        sim.disconnect_watches();
        sim.delete("Service", "default", "reviews").unwrap();
        assert_eq!(changed(&mut events).await, "-reviews");
        sim.expire_watches();
        sim.apply(REVIEWS).unwrap();
        sim.expire_watches();
        // After a 410 it lists again.
        assert_eq!(settled(&mut events).await, ["reviews"]);
        sim.reset_connections_of_watches();
        sim.delete("Service", "default", "reviews").unwrap();
        assert_eq!(changed(&mut events).await, "-reviews");
        let verbs: Vec<String> = sim.requests().into_iter().map(|r| r.verb).collect();
        assert_eq!(verbs.contains(&"list".to_owned()), !streaming, "{verbs:?}");
    }
}

const REVIEWS: &str = "{apiVersion: v1, kind: Service, metadata: {name: reviews}, spec: {selector: {app: reviews}, ports: [{port: 80}]}}";

trait Interrupt {
    fn reset_connections_of_watches(&self);
}

impl Interrupt for Sim {
    fn reset_connections_of_watches(&self) {
        assert!(self.faults().reset_connections() > 0);
    }
}

type Event = watcher::Result<watcher::Event<Service>>;

/// Skips to the end of the next listing and says what was in it.
async fn settled(events: &mut (impl StreamExt<Item = Event> + Unpin)) -> Vec<String> {
    let mut found = Vec::new();
    loop {
        match within(events.next()).await.unwrap() {
            Ok(watcher::Event::Init) => found.clear(),
            Ok(watcher::Event::InitApply(o)) => found.push(o.name_any()),
            Ok(watcher::Event::InitDone) => return found,
            _ => {}
        }
    }
}

/// Skips errors to the next change.
async fn changed(events: &mut (impl StreamExt<Item = Event> + Unpin)) -> String {
    loop {
        match within(events.next()).await.unwrap() {
            Ok(watcher::Event::Apply(o)) => return format!("+{}", o.name_any()),
            Ok(watcher::Event::Delete(o)) => return format!("-{}", o.name_any()),
            _ => {}
        }
    }
}

#[tokio::test]
async fn an_older_server_refuses_streaming_lists() {
    let sim = Sim::builder().version("1.33").start().await.unwrap();
    let services: Api<Service> = Api::default_namespaced(h1(&sim));
    let params = WatchParams::default().initial_events();
    let (code, message) = refusal(services.watch(&params, "0").await.map(|_| ()));
    assert_eq!(code, 422);
    assert!(
        message.contains("sendInitialEvents is forbidden for watch"),
        "{message}"
    );
}

#[tokio::test(start_paused = true)]
async fn controllers() {
    let sim = Sim::builder().plain().sample().start().await.unwrap();
    let ready = |service: &str| -> Vec<String> {
        let slices = sim.list("EndpointSlice", "default");
        let of = |s: &&serde_json::Value| {
            s["metadata"]["labels"]["kubernetes.io/service-name"] == service
        };
        let endpoints = slices
            .iter()
            .filter(of)
            .flat_map(|s| s["endpoints"].as_array())
            .flatten();
        let ready = endpoints.filter(|e| e["conditions"]["ready"] == true);
        ready
            .map(|e| e["targetRef"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ready("productpage").len(), 2);
    sim.scale("default", "productpage", 250).unwrap();
    assert_eq!(ready("productpage").len(), 250);
    let slices = sim.list("EndpointSlice", "default");
    let many = slices
        .iter()
        .filter(|s| s["metadata"]["generateName"] == "productpage-");
    let mut sizes: Vec<_> = many
        .map(|s| s["endpoints"].as_array().unwrap().len())
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [50, 100, 100]);
    sim.scale("default", "productpage", 1).unwrap();
    assert_eq!(ready("productpage").len(), 1);

    // A Deployment's pod is replaced at once, by another name and address.
    let old = sim.pods("default", "reviews").remove(0);
    let ip = |pod: &str| sim.get("Pod", "default", pod).unwrap()["status"]["podIP"].clone();
    let old_ip = ip(&old);
    sim.delete_pod("default", &old).unwrap();
    let new = sim.pods("default", "reviews").remove(0);
    assert_ne!((&*old, old_ip), (&*new, ip(&new)));
    assert_eq!(ready("reviews"), [new]);
    // A StatefulSet's pod when the old one is gone, by the same name.
    let uid = |pod: &str| {
        sim.get("Pod", "default", pod)
            .map(|p| p["metadata"]["uid"].clone())
    };
    let old = uid("db-0");
    sim.delete_pod("default", "db-0").unwrap();
    assert_eq!(ready("db"), ["db-1"]);
    tokio::time::sleep(std::time::Duration::from_millis(1001)).await;
    assert_eq!(ready("db"), ["db-0", "db-1"]);
    assert_ne!(uid("db-0"), old);

    sim.set_ready("default", "db-1", false).unwrap();
    assert_eq!(ready("db"), ["db-0"]);
    // One that drains is serving and not ready.
    sim.terminate_pod("default", "db-0").unwrap();
    assert!(ready("db").is_empty());
    let db = sim.list("EndpointSlice", "default");
    let db = db
        .iter()
        .find(|s| s["metadata"]["generateName"] == "db-")
        .unwrap();
    let conditions = json!({"ready": false, "serving": true, "terminating": true});
    assert_eq!(db["endpoints"][0]["conditions"], conditions);
    // A namespace takes everything in it along.
    sim.delete("Namespace", "", "team-a").unwrap();
    for kind in ["Pod", "Service", "EndpointSlice", "Endpoints", "Deployment"] {
        assert!(sim.list(kind, "team-a").is_empty(), "{kind}");
    }
}

#[tokio::test]
async fn slow_starters_turn_ready() {
    let sim = Sim::builder().start().await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(h1(&sim));
    sim.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: slow, labels: {app: slow}}, spec: {containers: [
           {name: echo, env: [{name: READY_AFTER, value: 20ms}], readinessProbe: {}}]}}",
    )
    .unwrap();
    let events = pods.watch(&WatchParams::default(), "0").await.unwrap();
    let turned = events.try_filter(|e| {
        let pod = match e {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => pod,
            other => panic!("{other:?}"),
        };
        let conditions = pod.status.clone().unwrap().conditions.unwrap();
        let ready = conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        std::future::ready(ready)
    });
    within(pin!(turned).next()).await.unwrap().unwrap();
    assert_eq!(sim.pods("default", "slow"), ["slow"]);
}
