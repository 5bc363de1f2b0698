//! The flags that decide what a host means; the same for every command that dials.

use std::time::Duration;

use clap::{ArgAction, ValueEnum};
use kubevpn_stack::{
    ClusterSettings, ForwarderConfig, Outside, OwnListeners, Settings, TransportChoice,
};
use kubevpn_target::Name;
use serde::{Deserialize, Serialize};

use crate::exit::Failure;
use crate::proxy::Path;

/// What belongs to the cluster, and what becomes of the rest
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "camelCase", default)]
#[command(next_help_heading = "Names")]
pub(crate) struct PolicyArgs {
    /// DNS domain of the cluster [default: as CoreDNS is configured, else cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    cluster_domain: Option<String>,
    /// Names that end in this belong to the cluster too: its DNS is asked for them. May be given more than once
    #[arg(long, value_name = "SUFFIX", action = ArgAction::Append)]
    cluster_suffix: Vec<String>,
    /// Service of the cluster's DNS [default: kube-system/kube-dns]
    #[arg(long, value_name = "NAMESPACE/SERVICE")]
    cluster_dns: Option<String>,
    /// What to do with hosts outside the cluster
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    outside: OutsideArg,
    /// Hold a connection this long while a Service has no ready endpoint, e.g. 30s [default: refuse it at once]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    wait_ready: Option<Duration>,
    /// How port-forwards are carried: auto, or one of spdy, spdy-ws, ws
    #[arg(
        long,
        value_name = "NAME",
        default_value = "auto",
        help_heading = "Cluster"
    )]
    #[serde(with = "as_text")]
    transport: TransportChoice,
}

/// A transport in a state file, in the words of its flag.
mod as_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    use super::TransportChoice;

    pub(super) fn serialize<S: Serializer>(
        choice: &TransportChoice,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(choice)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<TransportChoice, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum OutsideArg {
    /// Refuse them
    #[default]
    Deny,
    /// Dial them from this machine
    Direct,
}

impl PolicyArgs {
    /// All but the namespace, which the kubeconfig knows, and our own listeners. What is wrong with a value is
    /// said here, before anything is bound.
    pub(crate) fn path(&self) -> Result<Path, Failure> {
        let settings = Settings {
            wait_ready: self.wait_ready.unwrap_or_default(),
            ..Settings::default()
        };
        let forwarder = ForwarderConfig {
            transport: self.transport,
            ..ForwarderConfig::default()
        };
        Ok(Path {
            cluster: self.cluster()?,
            forwarder,
            outside: match self.outside {
                OutsideArg::Deny => Outside::Deny,
                OutsideArg::Direct => Outside::Direct,
            },
            own: OwnListeners::default(),
            settings,
        })
    }

    fn cluster(&self) -> Result<ClusterSettings, Failure> {
        let name = |flag: &str, text: &str| {
            Name::parse(text).map_err(|error| Failure::Value(format!("{flag} {text}: {error}")))
        };
        let mut settings = ClusterSettings::default();
        if let Some(domain) = &self.cluster_domain {
            settings.domain = Some(name("--cluster-domain", domain)?);
        }
        for suffix in &self.cluster_suffix {
            let suffix = suffix.trim_start_matches('.');
            settings.suffixes.push(name("--cluster-suffix", suffix)?);
        }
        if let Some(dns) = &self.cluster_dns {
            let parts = dns.split_once('/').filter(|(a, b)| {
                let is_label = |label: &&str| Name::parse(label).is_ok() && !label.contains('.');
                [a, b].into_iter().all(is_label)
            });
            let Some((namespace, service)) = parts else {
                return Err(Failure::Value(format!(
                    "--cluster-dns {dns}: write NAMESPACE/SERVICE, as in kube-system/kube-dns"
                )));
            };
            settings.dns = (namespace.into(), service.into());
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        policy: PolicyArgs,
    }

    fn path(args: &[&str]) -> Result<Path, Failure> {
        let args = ["test"].iter().chain(args);
        let command = Command::try_parse_from(args).unwrap();
        command.policy.path()
    }

    fn cluster(args: &[&str]) -> Result<ClusterSettings, Failure> {
        path(args).map(|path| path.cluster)
    }

    #[test]
    fn what_becomes_of_the_rest() {
        let default = path(&[]).unwrap();
        assert_eq!(default.outside, Outside::Deny);
        assert_eq!(default.settings.wait_ready, Duration::ZERO);
        let path = path(&["--outside=direct", "--wait-ready=1m 30s"]).unwrap();
        assert_eq!(path.outside, Outside::Direct);
        assert_eq!(path.settings.wait_ready, Duration::from_secs(90));
    }

    #[test]
    fn what_belongs_to_the_cluster() {
        let settings = cluster(&[]).unwrap();
        assert_eq!((settings.domain, settings.suffixes.len()), (None, 0));
        let settings = cluster(&[
            "--cluster-domain=Corp.Example",
            "--cluster-suffix=.internal.example",
            "--cluster-suffix=stub.test",
            "--cluster-dns=openshift-dns/dns-default",
        ])
        .unwrap();
        assert_eq!(settings.domain, Name::parse("corp.example").ok());
        let suffixes: Vec<_> = settings.suffixes.iter().map(Name::as_str).collect();
        assert_eq!(suffixes, ["internal.example", "stub.test"]);
        assert_eq!(settings.dns, ("openshift-dns".into(), "dns-default".into()));
    }

    #[test]
    fn values_that_are_not_accepted() {
        for (arg, said) in [
            (
                "--cluster-domain=a..b",
                "--cluster-domain a..b: the name has an empty label",
            ),
            (
                "--cluster-suffix=a b",
                "--cluster-suffix a b: the name has the byte",
            ),
            (
                "--cluster-dns=kube-dns",
                "--cluster-dns kube-dns: write NAMESPACE/SERVICE",
            ),
            ("--cluster-dns=a/b/c", "--cluster-dns a/b/c: write"),
            ("--cluster-dns=a.b/c", "--cluster-dns a.b/c: write"),
        ] {
            let failure = cluster(&[arg]).unwrap_err();
            assert_eq!(failure.code(), 23, "{arg}");
            assert!(failure.to_string().starts_with(said), "{failure}");
        }
    }
}
