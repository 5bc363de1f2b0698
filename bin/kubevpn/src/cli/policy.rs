//! Flags of the policy, shared by all commands that dial.

use std::time::Duration;

use clap::{ArgAction, ValueEnum};
use kubevpn_proxy::{DnsService, DomainName, Policy};
use kubevpn_stack::{Outside, TransportChoice};
use kubevpn_target::Name;

use crate::exit::Failure;

/// Names of the cluster, and the handling of other hosts
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Names")]
pub(crate) struct PolicyArgs {
    /// DNS domain of the cluster [default: read from the configuration of CoreDNS, else cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    cluster_domain: Option<String>,
    /// Resolve names that end in SUFFIX with the cluster's DNS, too. May be given more than once
    #[arg(long, value_name = "SUFFIX", action = ArgAction::Append)]
    cluster_suffix: Vec<String>,
    /// Service of the cluster's DNS [default: kube-system/kube-dns]
    #[arg(long, value_name = "NAMESPACE/SERVICE")]
    cluster_dns: Option<String>,
    /// What to do with hosts outside the cluster
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    outside: OutsideArg,
    /// Wait up to DURATION for a Service without a ready endpoint, e.g. 30s [default: refuse the connection at once]
    #[arg(long, value_name = "DURATION", value_parser = super::duration)]
    wait_ready: Option<Duration>,
    /// Protocol of port-forwards: auto to use what works, else spdy, spdy-ws (SPDY in WebSocket) or ws (v4.channel in
    /// WebSocket)
    #[arg(
        long,
        value_name = "NAME",
        default_value = "auto",
        help_heading = "Cluster"
    )]
    transport: TransportChoice,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum OutsideArg {
    /// Refuse them
    #[default]
    Deny,
    /// Dial them from this machine
    Direct,
}

impl PolicyArgs {
    /// Checks the values, before anything is bound.
    pub(crate) fn policy(&self) -> Result<Policy, Failure> {
        let name = |flag: &str, text: &str| {
            let name = Name::parse(text).map(DomainName::from);
            name.map_err(|error| Failure::value(format!("{flag} {text}: {error}")))
        };
        let domain = self.cluster_domain.as_deref();
        let suffixes = self.cluster_suffix.iter();
        let dns = self.cluster_dns.as_deref();
        Ok(Policy {
            cluster_domain: domain
                .map(|text| name("--cluster-domain", text))
                .transpose()?,
            cluster_suffix: suffixes
                .map(|text| name("--cluster-suffix", text.trim_start_matches('.')))
                .collect::<Result<_, _>>()?,
            cluster_dns: dns
                .map(|text| {
                    text.parse::<DnsService>()
                        .map_err(|error| Failure::value(format!("--cluster-dns {text}: {error}")))
                })
                .transpose()?,
            outside: match self.outside {
                OutsideArg::Deny => Outside::Deny,
                OutsideArg::Direct => Outside::Direct,
            },
            wait_ready: self.wait_ready,
            transport: self.transport,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use kubevpn_proxy::StackConfig;
    use kubevpn_stack::OwnListeners;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        policy: PolicyArgs,
    }

    fn stack(args: &[&str]) -> Result<StackConfig, Failure> {
        let args = ["test"].iter().chain(args);
        let policy = Command::try_parse_from(args).unwrap().policy.policy()?;
        Ok(policy.stack("shop", OwnListeners::default()))
    }

    #[test]
    fn hosts_outside_are_denied_or_dialled() {
        let default = stack(&[]).unwrap();
        assert_eq!(default.outside, Outside::Deny);
        assert_eq!(default.settings.wait_ready, Duration::ZERO);
        assert_eq!(default.cluster.namespace, "shop");
        let direct = stack(&["--outside=direct", "--wait-ready=1m 30s"]).unwrap();
        assert_eq!(direct.outside, Outside::Direct);
        assert!(direct.cluster.unseen_is_outside && !default.cluster.unseen_is_outside);
        assert_eq!(direct.settings.wait_ready, Duration::from_secs(90));
    }

    #[test]
    fn suffixes_and_domain_are_parsed() {
        let settings = stack(&[]).unwrap().cluster;
        assert_eq!((settings.domain, settings.suffixes.len()), (None, 0));
        let settings = stack(&[
            "--cluster-domain=Corp.Example",
            "--cluster-suffix=.internal.example",
            "--cluster-suffix=stub.test",
            "--cluster-dns=openshift-dns/dns-default",
        ])
        .unwrap()
        .cluster;
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
                "--cluster-suffix a b: the name has the character",
            ),
            (
                "--cluster-dns=kube-dns",
                "--cluster-dns kube-dns: write NAMESPACE/SERVICE",
            ),
            ("--cluster-dns=a/b/c", "--cluster-dns a/b/c: write"),
            ("--cluster-dns=a.b/c", "--cluster-dns a.b/c: write"),
        ] {
            let Err(Failure::Api(error)) = stack(&[arg]) else {
                panic!("{arg} is accepted");
            };
            assert_eq!(error.code, kubevpn_daemon::Code::InvalidValue, "{arg}");
            assert!(error.message.starts_with(said), "{error}");
        }
    }
}
