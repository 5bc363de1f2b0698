//! What runs in a cluster, and with which flags.

use anyhow::{Context as _, Result};

use crate::process::LabProcess;
use crate::settings::{NODE, Settings};

/// One long-lived process of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ClusterDaemon {
    /// The API server's store.
    #[value(name = "etcd")]
    Etcd,
    /// What clients talk to.
    #[value(name = "kube-apiserver")]
    ApiServer,
    /// Makes pods of Deployments, EndpointSlices of Services, and so on.
    #[value(name = "kube-controller-manager")]
    ControllerManager,
    /// Gives pods a node.
    #[value(name = "kube-scheduler")]
    Scheduler,
    /// The init of the node's namespaces: without it, the node and all its pods are gone.
    #[value(name = "node")]
    Node,
    /// Lets the node and the pods reach the API server.
    #[value(name = "relay")]
    Relay,
    /// Runs containers, and carries the bytes of a port-forward.
    #[value(name = "containerd")]
    Containerd,
    /// The node's agent.
    #[value(name = "kubelet")]
    Kubelet,
    /// Answers for the fake pods.
    #[value(name = "kwok-echo")]
    KwokEcho,
    /// A controller that plays the kubelet of fake nodes.
    #[value(name = "kwok")]
    Kwok,
}

impl ClusterDaemon {
    /// In the order they start.
    pub(crate) const ALL: [Self; 10] = [
        Self::Etcd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Node,
        Self::Relay,
        Self::Containerd,
        Self::Kubelet,
        Self::KwokEcho,
        Self::Kwok,
    ];

    /// As the component calls itself; also the name of its log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Node => "node",
            Self::Relay => "relay",
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KwokEcho => "kwok-echo",
            Self::Kwok => "kwok",
        }
    }

    /// Whether it lives in the node's namespaces, and dies with them.
    pub(crate) fn in_node(self) -> bool {
        matches!(self, Self::Containerd | Self::Kubelet)
    }

    /// Program, flags; `node` is the init of the node, for who needs one.
    pub(crate) fn command_line(
        self,
        s: &Settings,
        node: Option<LabProcess>,
    ) -> Result<Vec<String>> {
        let [service_v4, service_v6] = s.service_nets();
        let (api, etcd, node_ip) = (s.api_port(), s.etcd_port(), s.node_ip());
        let pki = s.path("pki");
        let hyperkube = s.path("bin/hyperkube");
        Ok(match self {
            Self::Etcd => {
                let client = format!("http://127.0.0.1:{etcd}");
                let peer = format!("http://127.0.0.1:{}", etcd + 1);
                vec![
                    hyperkube,
                    "etcd".into(),
                    "--name=e0".into(),
                    format!("--data-dir={}", s.path("etcd")),
                    "--unsafe-no-fsync".into(), // what it holds is forgotten by `down` anyway
                    "--log-level=warn".into(),
                    "--quota-backend-bytes=4294967296".into(),
                    format!("--listen-client-urls={client}"),
                    format!("--advertise-client-urls={client}"),
                    format!("--listen-peer-urls={peer}"),
                    format!("--initial-advertise-peer-urls={peer}"),
                    format!("--initial-cluster=e0={peer}"),
                ]
            }
            Self::ApiServer => vec![
                hyperkube,
                "kube-apiserver".into(),
                format!("--etcd-servers=http://127.0.0.1:{etcd}"),
                "--bind-address=127.0.0.1".into(),
                format!("--secure-port={api}"),
                // The Endpoints of `kubernetes` may not be loopback: the node's end of the veth pair, where
                // the relay listens.
                format!("--advertise-address={node_ip}"),
                format!("--service-cluster-ip-range={service_v4},{service_v6}"),
                "--allow-privileged".into(),
                "--authorization-mode=Node,RBAC".into(),
                "--profiling=false".into(),
                format!("--client-ca-file={pki}/ca.crt"),
                format!("--tls-cert-file={pki}/server.crt"),
                format!("--tls-private-key-file={pki}/server.key"),
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
                format!("--service-account-key-file={pki}/sa.key"),
                format!("--service-account-signing-key-file={pki}/sa.key"),
                format!("--requestheader-client-ca-file={pki}/ca.crt"),
                "--requestheader-allowed-names=front-proxy".into(),
                "--requestheader-username-headers=X-Remote-User".into(),
                "--requestheader-group-headers=X-Remote-Group".into(),
                // The API server dials the kubelet for a port-forward: by address, as no DNS knows node-1.
                format!("--kubelet-certificate-authority={pki}/ca.crt"),
                "--kubelet-preferred-address-types=InternalIP".into(),
                format!("--kubelet-client-certificate={pki}/apiserver-kubelet.crt"),
                format!("--kubelet-client-key={pki}/apiserver-kubelet.key"),
                // One line per request of a client, written before the request is done: tests count them.
                format!("--audit-policy-file={}", s.path("audit.yaml")),
                format!("--audit-log-path={}", s.path("log/audit.log")),
                "--audit-log-maxsize=50".into(),
                "--audit-log-maxbackup=4".into(),
                "--max-requests-inflight=2000".into(),
                "--max-mutating-requests-inflight=1000".into(),
            ],
            Self::ControllerManager => vec![
                hyperkube,
                "kube-controller-manager".into(),
                format!("--kubeconfig={pki}/kcm.kubeconfig"),
                "--secure-port=0".into(),
                "--leader-elect=false".into(),
                "--use-service-account-credentials".into(),
                "--kube-api-qps=500".into(),
                "--kube-api-burst=1000".into(),
                format!("--service-account-private-key-file={pki}/sa.key"),
                format!("--root-ca-file={pki}/ca.crt"),
            ],
            Self::Scheduler => vec![
                hyperkube,
                "kube-scheduler".into(),
                format!("--kubeconfig={pki}/scheduler.kubeconfig"),
                "--secure-port=0".into(),
                "--leader-elect=false".into(),
                "--kube-api-qps=500".into(),
                "--kube-api-burst=1000".into(),
            ],
            // In our directory before its cgroup namespace is made, so that the namespace is rooted there.
            // The inner process is the init of the pid namespace: it reaps, and when it is killed the kernel
            // ends all that ran in the node, and with that the mounts and the links.
            Self::Node => vec![
                "sh".into(),
                "-c".into(),
                r#"echo $$ >"$0/cgroup.procs" && exec "$@""#.into(),
                crate::node::cgroup(s)?.display().to_string(),
                "unshare".into(),
                "--mount".into(),
                "--net".into(),
                "--pid".into(),
                "--cgroup".into(),
                "--uts".into(),
                "--ipc".into(),
                "--fork".into(),
                "--kill-child".into(),
                "--propagation=private".into(),
                s.path("bin/echo"),
                "pause".into(),
            ],
            Self::Relay => vec![
                hyperkube,
                "relay".into(),
                format!(
                    "/proc/{}/ns/net",
                    node.context("there is no node for the relay")?.pid()
                ),
                format!("{node_ip}:{api}"),
                format!("127.0.0.1:{api}"),
            ],
            Self::Containerd => vec![
                "containerd".into(),
                "--config".into(),
                s.path("node/containerd.toml"),
            ],
            Self::Kubelet => vec![
                hyperkube,
                "kubelet".into(),
                format!("--config={}", s.path("node/kubelet.yaml")),
                format!("--kubeconfig={pki}/kubelet.kubeconfig"),
                format!("--root-dir={}", s.path("node/kubelet")),
                format!("--cert-dir={}", s.path("node/kubelet/pki")),
                format!("--hostname-override={NODE}"),
                format!("--node-ip={node_ip}"), // it refuses a loopback address: hence the veth pair
                "--v=2".into(),
            ],
            Self::KwokEcho => vec![
                "env".into(),
                "NAME=kwok".into(),
                format!("PORTS={}", s.kwok_port() + 1),
                s.path("bin/echo"),
            ],
            Self::Kwok => {
                let port = s.kwok_port();
                vec![
                    s.path("bin/kwok"),
                    format!("--kubeconfig={pki}/kwok.kubeconfig"),
                    format!("--config={}", s.path("kwok.yaml")),
                    format!("--config={}", s.path("kwok-stages.yaml")),
                    format!("--cidr={}", s.kwok_net()),
                    "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake".into(),
                    "--node-lease-duration-seconds=40".into(),
                    "--node-ip=127.0.0.1".into(),
                    format!("--node-port={port}"),
                    format!("--server-address=127.0.0.1:{port}"),
                    format!("--tls-cert-file={pki}/server.crt"),
                    format!("--tls-private-key-file={pki}/server.key"),
                ]
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn the_command_line_knows_the_same_names() {
        let names: Vec<_> = ClusterDaemon::value_variants()
            .iter()
            .map(|d| d.to_possible_value().unwrap().get_name().to_owned())
            .collect();
        assert_eq!(names, ClusterDaemon::ALL.map(ClusterDaemon::name));
    }
}
