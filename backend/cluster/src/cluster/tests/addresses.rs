//! Targets that are addresses.

use super::*;

#[tokio::test]
async fn a_cluster_without_ip_addresses_is_listed() {
    let api = api();
    api.without("ipaddresses");
    let cluster = cluster(&api);
    assert_eq!(
        said(ask(&cluster, "10.96.0.40:80").await),
        "team/api-1:8080"
    );
    assert!(api.asked().contains(&"list services".to_owned()));
}

#[tokio::test]
async fn an_ip_address_object_spares_the_list() {
    let api = api();
    let cluster = cluster(&api);
    ask(&cluster, "10.96.0.10:80").await.unwrap();
    assert!(!api.asked().iter().any(|call| call == "list services"));
}

/// The name contains the namespace: no other namespace is read, and no other right is needed.
#[tokio::test]
async fn the_address_of_a_pod_in_a_namespace() {
    let api = api();
    api.apply(
        "
kind: Pod
metadata: {name: dual, namespace: team}
spec: {containers: []}
status: {phase: Running, podIP: 10.244.0.41, podIPs: [{ip: 10.244.0.41}, {ip: fd00::41}]}
",
    );
    api.allow_only(&["list pods team"]);
    let cluster = cluster(&api);
    for (target, wanted) in [
        ("10-244-0-40.team.pod:1", "team/api-1:1"),
        ("10-244-0-40.team.pod.cluster.local:1", "team/api-1:1"),
        ("fd00--41.team.pod:1", "team/dual:1"),
        (
            "10-244-0-99.team.pod.cluster.local:1",
            "name_not_found: nothing in the cluster is named 10-244-0-99.team.pod.cluster.local: \
             there is no pod team/10-244-0-99; try kubectl get services,pods -n team",
        ),
        (
            "10-244-0-11.default.pod.cluster.local:1",
            "forbidden: cannot tell whether pod default/10-244-0-11 exists: jane cannot get pods 10-244-0-11 in \
             namespace default: ask for a Role with apiGroups [\"\"], resources [\"pods\"], verbs [\"get\"]",
        ),
    ] {
        assert_eq!(said(ask(&cluster, target).await), wanted, "{target}");
    }
    for (name, wanted) in [
        ("10-244-0-40.team.pod.cluster.local", "10.244.0.40"),
        (
            "10-244-0-99.team.pod.cluster.local",
            "ask, or name_not_found",
        ),
        ("10-244-0-11.default.pod.cluster.local", "ask, or forbidden"),
    ] {
        let found = cluster
            .records(&Name::parse(name).unwrap(), RecordKind::A)
            .await;
        assert_eq!(known(found), wanted, "{name}");
    }
}

/// A node's address may be a Service's too; kube-proxy gives it to the Service.
#[tokio::test]
async fn an_external_address_goes_before_the_pods_of_the_node() {
    let api = api();
    assert_eq!(
        said(ask(&cluster(&api), "10.245.0.2:9100").await),
        "team/node-exporter:9100"
    );
    api.apply(
        "
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.10, externalIPs: [10.245.0.2], ports: [{name: http, port: 9100}]}
",
    );
    assert_eq!(
        said(ask(&cluster(&api), "10.245.0.2:9100").await),
        "default/web-1:8080 default/web-2:8080"
    );
}
