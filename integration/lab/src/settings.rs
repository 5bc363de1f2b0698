//! Where the lab keeps its things and which addresses it uses: the environment, read once.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::versions::Versions;

/// The node's name, and its host name.
pub(crate) const NODE: &str = "node-1";

/// Where a second instance's numbers may go before they meet a third's: ports, and one octet of each network.
const INSTANCES: u8 = 8;

/// Machines that tests may make at a time, numbered from 0.
pub(crate) const MACHINES: u8 = 32;

/// Everything that two labs on one machine must not share.
#[derive(Debug)]
pub(crate) struct Settings {
    /// What this cluster is made of, and all that it writes; gone after `down`, but for the logs.
    state: PathBuf,
    /// What outlives clusters: built programs, unpacked packages, images.
    cache: PathBuf,
    instance: u8,
    pub(crate) versions: Versions,
}

/// A file of this crate: Go sources, configuration, manifests.
pub(crate) fn source(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("cluster")
        .join(relative)
}

impl Settings {
    /// `KUBEVPN_LAB_DIR`, `KUBEVPN_LAB_CACHE` and `KUBEVPN_LAB_INSTANCE` (0, the default, to 7: a number
    /// of its own for each lab that runs at the same time).
    pub(crate) fn from_env() -> Result<Self> {
        Self::new(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn new(var: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let instance = match var("KUBEVPN_LAB_INSTANCE") {
            None => 0,
            Some(text) => text
                .to_str()
                .and_then(|text| text.parse().ok())
                .filter(|n| *n < INSTANCES)
                .with_context(|| {
                    format!(
                        "KUBEVPN_LAB_INSTANCE={} is not 0 to {}",
                        text.display(),
                        INSTANCES - 1
                    )
                })?,
        };
        let state = var("KUBEVPN_LAB_DIR")
            .map(PathBuf::from)
            .unwrap_or_else(|| {
                let dir = var("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
                dir.join(match instance {
                    0 => "kubevpn-lab".to_owned(),
                    n => format!("kubevpn-lab-{n}"),
                })
            });
        let cache = match (var("KUBEVPN_LAB_CACHE"), var("XDG_CACHE_HOME"), var("HOME")) {
            (Some(cache), _, _) => PathBuf::from(cache),
            (None, Some(xdg), _) => PathBuf::from(xdg).join("kubevpn-lab"),
            (None, None, Some(home)) => PathBuf::from(home).join(".cache/kubevpn-lab"),
            (None, None, None) => {
                anyhow::bail!("no place for built programs: set HOME or KUBEVPN_LAB_CACHE")
            }
        };
        for (what, dir) in [("state", &state), ("cache", &cache)] {
            ensure!(
                dir.is_absolute(),
                "the {what} directory {} is not an absolute path",
                dir.display()
            );
            // It goes into configuration files and command lines of programs that split on these.
            ensure!(
                dir.to_str()
                    .is_some_and(|text| !text.contains([' ', ',', '"', '\n'])),
                "the {what} directory {} has a character in it that some daemon would trip over",
                dir.display()
            );
        }
        let versions = match Versions::read(&state)? {
            Some(versions) => versions,
            None => Versions::default_of_repository()?,
        };
        Ok(Self {
            state,
            cache,
            instance,
            versions,
        })
    }

    #[cfg(test)]
    pub(crate) fn in_dir(dir: &Path) -> Self {
        Self {
            state: dir.to_owned(),
            cache: dir.join("cache"),
            instance: 0,
            versions: Versions::default_of_repository().expect("the sources are there"),
        }
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// A file of this cluster, as text for a command line.
    pub(crate) fn path(&self, relative: &str) -> String {
        format!("{}/{relative}", self.state.display())
    }

    pub(crate) fn api_port(&self) -> u16 {
        6443 + u16::from(self.instance)
    }

    pub(crate) fn api_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_port())
    }

    /// For clients; the next one is for peers.
    pub(crate) fn etcd_port(&self) -> u16 {
        2379 + 2 * u16::from(self.instance)
    }

    /// The fake kubelet of kwok; the next one answers for its pods.
    pub(crate) fn kwok_port(&self) -> u16 {
        10247 + 2 * u16::from(self.instance)
    }

    /// The host's end of the veth pair to the node.
    pub(crate) fn link(&self) -> String {
        format!("kvlab{}", self.instance)
    }

    pub(crate) fn host_ip(&self) -> String {
        format!("10.245.{}.1", self.instance)
    }

    pub(crate) fn node_ip(&self) -> String {
        format!("10.245.{}.2", self.instance)
    }

    /// An address on the link to a machine that tests make; each of the [`MACHINES`] has a /29.
    pub(crate) fn machine_net(&self, machine: u8, host: u8) -> String {
        format!("10.246.{}.{}", self.instance, 8 * machine + host)
    }

    /// An address on the link between two such machines.
    pub(crate) fn vpn_net(&self, machine: u8, host: u8) -> String {
        format!("10.247.{}.{}", self.instance, 8 * machine + host)
    }

    /// An address in a VPN between two such machines.
    pub(crate) fn tunnel_net(&self, machine: u8, host: u8) -> String {
        format!("10.248.{}.{}", self.instance, 8 * machine + host)
    }

    /// Known only inside the node's network namespace.
    pub(crate) fn pod_net(&self) -> String {
        format!("10.244.{}.0/24", self.instance)
    }

    /// One network per family, IPv4 first.
    pub(crate) fn service_nets(&self) -> [String; 2] {
        let n = 96 + u16::from(self.instance);
        [format!("10.{n}.0.0/16"), format!("fd00:{n}::/112")]
    }

    /// The address of the Service `kube-dns`.
    pub(crate) fn dns_ip(&self) -> String {
        format!("10.{}.0.10", 96 + u16::from(self.instance))
    }

    /// The address of the Service `kubernetes`, the first of its network.
    pub(crate) fn api_service_ip(&self) -> String {
        format!("10.{}.0.1", 96 + u16::from(self.instance))
    }

    /// Where a program of the host finds the cluster's names, if something listens: on loopback, and nobody else's.
    pub(crate) fn resolver_ip(&self) -> String {
        format!("127.53.{}.1", self.instance)
    }

    /// A port of the host's loopback, for what a test publishes there.
    pub(crate) fn published_port(&self) -> u16 {
        28_000 + u16::from(self.instance)
    }

    /// For fake pods.
    pub(crate) fn kwok_net(&self) -> String {
        format!("10.{}.0.0/16", 230 + u16::from(self.instance))
    }

    /// What nobody can reach from the host, and the metric of the routes that say so: a stray direct dial
    /// fails at once and never leaves the machine. 198.51.100.0/24 (RFC 5737) is what the manifests use
    /// for hosts outside the cluster. The metric tells the routes of two labs apart.
    pub(crate) fn fence(&self) -> ([String; 5], String) {
        let [v4, v6] = self.service_nets();
        let nets = [
            self.pod_net(),
            v4,
            v6,
            self.kwok_net(),
            "198.51.100.0/24".to_owned(),
        ];
        (nets, (50 + u16::from(self.instance)).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(vars: &[(&str, &str)]) -> Result<Settings> {
        let vars: Vec<(String, OsString)> = vars
            .iter()
            .map(|(name, value)| ((*name).to_owned(), OsString::from(value)))
            .collect();
        Settings::new(move |name| {
            vars.iter()
                .find(|(n, _)| n == name)
                .map(|(_, value)| value.clone())
        })
    }

    #[test]
    fn the_default_is_outside_the_repository() {
        let s = settings(&[("HOME", "/home/me")]).unwrap();
        assert_eq!(s.state(), Path::new("/tmp/kubevpn-lab"));
        assert_eq!(s.cache(), Path::new("/home/me/.cache/kubevpn-lab"));
        let s = settings(&[
            ("HOME", "/home/me"),
            ("XDG_CACHE_HOME", "/cache"),
            ("TMPDIR", "/scratch"),
        ])
        .unwrap();
        assert_eq!(s.path("kubeconfig"), "/scratch/kubevpn-lab/kubeconfig");
        assert_eq!(s.cache(), Path::new("/cache/kubevpn-lab"));
    }

    #[test]
    fn instances_share_nothing() {
        let all: Vec<Settings> = (0..INSTANCES)
            .map(|n| settings(&[("HOME", "/h"), ("KUBEVPN_LAB_INSTANCE", &n.to_string())]).unwrap())
            .collect();
        let mut numbers: Vec<String> = all
            .iter()
            .flat_map(|s| {
                let (nets, metric) = s.fence();
                let ports = [
                    s.api_port(),
                    s.etcd_port(),
                    s.etcd_port() + 1,
                    s.kwok_port(),
                    s.kwok_port() + 1,
                ];
                let ports = ports.map(|port| port.to_string());
                let names = [
                    s.link(),
                    s.host_ip(),
                    s.machine_net(0, 1),
                    s.machine_net(MACHINES - 1, 7),
                    s.vpn_net(0, 1),
                    s.tunnel_net(0, 1),
                    s.resolver_ip(),
                    s.path(""),
                    metric,
                ];
                nets.into_iter()
                    .take(4)
                    .chain(ports)
                    .chain(names)
                    .collect::<Vec<_>>()
            })
            .collect();
        let before = numbers.len();
        numbers.sort();
        numbers.dedup();
        assert_eq!(numbers.len(), before);
    }

    #[test]
    fn a_bad_value_is_named() {
        for (vars, word) in [
            (
                vec![("HOME", "/h"), ("KUBEVPN_LAB_INSTANCE", "8")],
                "KUBEVPN_LAB_INSTANCE=8",
            ),
            (
                vec![("HOME", "/h"), ("KUBEVPN_LAB_INSTANCE", "x")],
                "KUBEVPN_LAB_INSTANCE=x",
            ),
            (vec![("HOME", "/h"), ("KUBEVPN_LAB_DIR", "lab")], "absolute"),
            (vec![("HOME", "/h"), ("TMPDIR", "/my files")], "/my files"),
            (vec![], "KUBEVPN_LAB_CACHE"),
        ] {
            let message = settings(&vars).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
