//! Addresses shared by several Services (a load balancer's), or by a Service and a node.

use std::time::Duration;

use super::keeping::{prove, questions, settle};
use super::*;

/// A Service of a load balancer, and its Pod of the same name.
fn balanced(name: &str, ingress: &str, port: u16) -> String {
    format!(
        "
kind: Service
metadata: {{name: {name}}}
spec: {{type: LoadBalancer, clusterIP: 10.96.9.{port}, selector: {{app: {name}}}, ports: [{{port: {port}}}]}}
status: {{loadBalancer: {{ingress: [{{ip: {ingress}}}]}}}}
---
kind: EndpointSlice
metadata: {{name: {name}-x, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
endpoints: [{{addresses: [10.244.9.{port}], targetRef: {{kind: Pod, name: {name}}}}}]
ports: [{{port: 8080}}]
"
    )
}

#[tokio::test(start_paused = true)]
async fn the_service_with_the_port_is_meant() {
    let api = api();
    api.apply(&balanced("a", "203.0.113.50", 80))
        .apply(&balanced("b", "203.0.113.50", 84))
        .apply(&balanced("c", "203.0.113.50", 85));
    let cluster = cluster(&api);
    let targets = [
        ("203.0.113.50:84", "default/b:8080"),
        ("203.0.113.50:80", "default/a:8080"),
        ("203.0.113.50:85", "default/c:8080"),
        (
            "203.0.113.50:90",
            "no_such_port: service default/a has no TCP port 90, it has 80",
        ),
    ];
    for (target, wanted) in targets {
        assert_eq!(said(ask(&cluster, target).await), wanted, "{target}");
    }
    settle().await;
    questions(&api);
    for (target, wanted) in targets {
        assert_eq!(said(ask(&cluster, target).await), wanted, "{target}");
    }
    assert_eq!(questions(&api), Vec::<String>::new());
    // The port goes from one to another.
    api.apply(&balanced("a", "203.0.113.50", 84))
        .apply(&balanced("b", "203.0.113.50", 80));
    settle().await;
    for (target, wanted) in [
        ("203.0.113.50:84", "default/a:8080"),
        ("203.0.113.50:80", "default/b:8080"),
    ] {
        assert_eq!(said(ask(&cluster, target).await), wanted, "{target}");
    }
}

/// k3s: the load balancer's address is the node's.
#[tokio::test(start_paused = true)]
async fn a_node_keeps_the_ports_that_no_service_takes() {
    let api = api();
    api.apply(&balanced("a", "10.245.0.2", 80));
    let targets = [
        ("10.245.0.2:9100", "team/node-exporter:9100"),
        ("10.245.0.2:80", "default/a:8080"),
        ("10.245.0.2:9200", "team/node-agent:9200"),
        (
            "10.245.0.2:90",
            "no_such_port: service default/a has no TCP port 90, it has 80",
        ),
    ];
    for first in targets {
        let cluster = cluster(&api);
        for (target, wanted) in [first].into_iter().chain(targets) {
            assert_eq!(said(ask(&cluster, target).await), wanted, "{target}");
        }
        prove(&api).await;
        questions(&api);
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(61)).await;
            for (target, wanted) in targets {
                assert_eq!(said(ask(&cluster, target).await), wanted, "{target}");
            }
        }
        assert_eq!(questions(&api), Vec::<String>::new());
    }
    let cluster = cluster(&api);
    ask(&cluster, "10.245.0.2:9100").await.unwrap();
    api.apply(&balanced("b", "10.245.0.2", 9100).replace(".9100", ".91"));
    settle().await;
    let taken = said(ask(&cluster, "10.245.0.2:9100").await);
    assert_eq!(taken, "default/b:8080");
    api.delete("services", "default", "b");
    settle().await;
    let back = said(ask(&cluster, "10.245.0.2:9100").await);
    assert_eq!(back, "team/node-exporter:9100");
}

/// Without the right to Services, it is tried no more often than any other missing right.
#[tokio::test(start_paused = true)]
async fn a_node_without_a_right_to_services() {
    let api = api();
    api.allow_only(&["list pods *", "watch pods *"]);
    let cluster = cluster(&api);
    let target = "10.245.0.2:9100";
    for _ in 0..2 {
        let found = said(ask(&cluster, target).await);
        assert_eq!(found, "team/node-exporter:9100");
    }
    prove(&api).await;
    questions(&api);
    tokio::time::sleep(Duration::from_secs(60)).await;
    ask(&cluster, target).await.unwrap();
    assert_eq!(questions(&api), Vec::<String>::new());
}
