//! Every written form of a Service or Pod name: parsing only.
//!
//! Source: kubernetes.io "DNS for Services and Pods", whose specification is
//! github.com/kubernetes/dns/blob/master/docs/specification.md.

use std::fmt;
use std::iter::once;
use std::net::IpAddr;

use kubevpn_target::Name;

/// The names that belong to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    cluster: Name,
    suffixes: Vec<Name>,
}

impl Domain {
    /// A cluster domain, and suffixes whose names also belong to the cluster, although only its DNS knows them.
    pub fn new(cluster: Name, suffixes: impl IntoIterator<Item = Name>) -> Self {
        Self {
            cluster,
            suffixes: suffixes.into_iter().collect(),
        }
    }

    /// The domain that most clusters have.
    pub(crate) fn usual() -> Name {
        Name::parse("cluster.local").expect("a constant that is a name")
    }

    /// Whether a name is the cluster's by its ending.
    pub fn contains(&self, name: &Name) -> bool {
        self.endings()
            .any(|ending| before(name.as_str(), ending.as_str()).is_some())
    }

    /// What the cluster's names end in: its domain, then the suffixes.
    pub fn endings(&self) -> impl Iterator<Item = &Name> {
        once(&self.cluster).chain(&self.suffixes)
    }

    /// The domain that objects are looked up under.
    pub fn cluster(&self) -> &Name {
        &self.cluster
    }
}

impl Default for Domain {
    fn default() -> Self {
        Self::new(Self::usual(), [])
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cluster.as_str())
    }
}

/// The part before `.suffix`; empty if the name is the suffix itself.
pub(crate) fn before<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    match name.strip_suffix(suffix)? {
        "" => Some(""),
        rest => rest.strip_suffix('.'),
    }
}

/// One possible meaning of a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reading {
    Service {
        namespace: String,
        name: String,
    },
    /// One endpoint of a Service, by its hostname or its dashed address.
    Endpoint {
        namespace: String,
        service: String,
        hostname: String,
    },
    /// A Pod by its dashed address.
    PodAddress {
        namespace: String,
        ip: IpAddr,
    },
    /// A Pod by its name; no DNS has this form.
    Pod {
        namespace: String,
        name: String,
    },
}

impl Reading {
    pub(crate) fn namespace(&self) -> &str {
        match self {
            Self::Service { namespace, .. }
            | Self::Endpoint { namespace, .. }
            | Self::PodAddress { namespace, .. }
            | Self::Pod { namespace, .. } => namespace,
        }
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { namespace, name } => write!(f, "service {namespace}/{name}"),
            Self::Endpoint {
                namespace,
                service,
                hostname,
            } => write!(f, "endpoint {hostname} of service {namespace}/{service}"),
            Self::PodAddress { namespace, ip } => write!(f, "the pod {ip} in {namespace}"),
            Self::Pod { namespace, name } => write!(f, "pod {namespace}/{name}"),
        }
    }
}

/// The possible meanings of a name, in the search order of a Pod of `namespace`: under `<namespace>.svc.<domain>`,
/// `svc.<domain>`, `<domain>`, then as it is. An absolute name is read as it is.
pub(crate) fn readings(name: &Name, namespace: &str, domain: &Domain) -> Vec<Reading> {
    let text = name.as_str();
    let mut found = Vec::new();
    if !name.is_absolute() {
        read(&format!("{text}.{namespace}.svc"), &mut found);
        read(&format!("{text}.svc"), &mut found);
        read(text, &mut found);
    }
    if let Some(text) = before(text, domain.cluster.as_str()) {
        read(text, &mut found);
    }
    found
}

/// Whether the meaning of a name depends on the cluster's domain: `web.shop.svc.<something>`.
pub(crate) fn spells_domain(name: &Name) -> bool {
    let text = name.as_str();
    text.contains(".svc.") || text.contains(".pod.")
}

/// The names to ask the cluster's DNS for, in the search order of a Pod of `namespace`; all absolute. Names that are not
/// the cluster's are never asked for.
pub(crate) fn questions(name: &Name, namespace: &str, domain: &Domain) -> Vec<Name> {
    if domain.contains(name) {
        return vec![in_full(name)];
    }
    if name.is_absolute() {
        return Vec::new();
    }
    let text = name.as_str();
    [
        format!("{text}.{namespace}.svc.{domain}."),
        format!("{text}.svc.{domain}."),
        format!("{text}.{domain}."),
    ]
    .iter()
    .filter_map(|text| Name::parse(text).ok())
    .collect()
}

/// The name as it is, with nothing to be searched for.
pub(crate) fn in_full(name: &Name) -> Name {
    Name::parse(&format!("{}.", name.as_str())).unwrap_or_else(|_| name.clone())
}

/// Reads what stands before the cluster domain.
fn read(text: &str, found: &mut Vec<Reading>) {
    let labels: Vec<_> = text.split('.').collect();
    if !labels.iter().all(|label| is_object_label(label)) {
        return;
    }
    match *labels {
        [name, namespace, "svc"] => found.push(Reading::Service {
            namespace: namespace.into(),
            name: name.into(),
        }),
        [hostname, service, namespace, "svc"] => found.push(Reading::Endpoint {
            namespace: namespace.into(),
            service: service.into(),
            hostname: hostname.into(),
        }),
        // The name of a Pod may have dots.
        [ref pod @ .., namespace, "pod"] if !pod.is_empty() => {
            if let [label] = *pod
                && let Some(ip) = undash(label)
            {
                found.push(Reading::PodAddress {
                    namespace: namespace.into(),
                    ip,
                });
            }
            found.push(Reading::Pod {
                namespace: namespace.into(),
                name: pod.join("."),
            });
        }
        _ => {}
    }
}

/// A label an object can be named by (RFC 1123), in lower case.
pub(crate) fn is_object_label(label: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(label.bytes().next())
        && edge(label.bytes().last())
        && label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// The address a label stands for, as the cluster's DNS writes it: `10-244-0-5`, `2001-db8--5`.
pub(crate) fn undash(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse().map(IpAddr::V6))
        .ok()
}

/// How a name is treated if no object has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown<'a> {
    /// The name belongs to this cluster and does not exist.
    Cluster,
    /// The name belongs to this cluster if its last label is an existing namespace; otherwise it is a host outside.
    LastLabel(&'a str),
}

/// The rule for names that no object has. `svc` and `pod` are not top-level domains: a name that ends in one was meant
/// for the cluster.
pub(crate) fn unknown<'a>(name: &'a Name, domain: &Domain) -> Unknown<'a> {
    match name.as_str().rsplit_once('.') {
        None | Some((_, "svc" | "pod")) => Unknown::Cluster,
        Some(_) if domain.contains(name) => Unknown::Cluster,
        Some((_, last)) => Unknown::LastLabel(last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(name: &str) -> Vec<String> {
        let name = Name::parse(name).unwrap();
        let found = readings(&name, "shop", &Domain::default());
        found.iter().map(Reading::to_string).collect()
    }

    #[test]
    fn every_form_of_a_service() {
        assert_eq!(read_as("web"), ["service shop/web"]);
        assert_eq!(
            read_as("web.team"),
            ["endpoint web of service shop/team", "service team/web"]
        );
        assert_eq!(
            read_as("web.team.svc"),
            ["endpoint web of service svc/team", "service team/web"]
        );
        for name in [
            "web.team.svc.cluster.local",
            "web.team.svc.cluster.local.",
            "WEB.Team.SVC.Cluster.Local",
        ] {
            assert_eq!(read_as(name), ["service team/web"], "{name}");
        }
    }

    #[test]
    fn endpoints_and_pods() {
        assert_eq!(
            read_as("db-0.db"),
            ["endpoint db-0 of service shop/db", "service db/db-0"]
        );
        assert_eq!(
            read_as("db-0.db.team"),
            ["endpoint db-0 of service team/db"]
        );
        assert_eq!(
            read_as("db-0.db.team.svc.cluster.local"),
            ["endpoint db-0 of service team/db"]
        );
        assert_eq!(
            read_as("web-0.team.pod"),
            ["endpoint web-0 of service pod/team", "pod team/web-0"]
        );
        assert_eq!(read_as("a.b.team.pod"), ["pod team/a.b"]);
        assert_eq!(
            read_as("10-244-0-5.team.pod.cluster.local"),
            ["the pod 10.244.0.5 in team", "pod team/10-244-0-5"]
        );
        assert_eq!(
            read_as("fd00--5.team.pod.cluster.local"),
            ["the pod fd00::5 in team", "pod team/fd00--5"]
        );
    }

    #[test]
    fn a_trailing_dot_ends_the_search() {
        for name in ["web.", "web.team.", "web.team.svc.", "web-0.team.pod."] {
            assert!(read_as(name).is_empty(), "{name}");
        }
    }

    #[test]
    fn what_no_object_can_be_named() {
        for name in [
            "_http._tcp.web.team.svc.cluster.local",
            "-web.team.svc.cluster.local",
            "web-.team.svc.cluster.local",
            "team.svc.cluster.local",
            "team.pod.cluster.local",
            "svc.cluster.local.",
            "a.b.c.team.svc.cluster.local",
            "web.team.svc.cluster.localx",
            "web.team.svcluster.local",
            "a.very.long.host.example.com",
        ] {
            let found: Vec<_> = read_as(name);
            assert!(found.is_empty(), "{name} was read as {found:?}");
        }
        // Two or three labels can name an endpoint of a Service: only the cluster can tell.
        assert_eq!(
            read_as("cluster.local"),
            [
                "endpoint cluster of service shop/local",
                "service local/cluster"
            ]
        );
        assert_eq!(
            read_as("www.example.com"),
            ["endpoint www of service com/example"]
        );
    }

    #[test]
    fn another_domain() {
        let domain = Domain::new(Name::parse("Corp.Example.").unwrap(), []);
        let name = Name::parse("web.team.svc.corp.example").unwrap();
        let found = readings(&name, "shop", &domain);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].to_string(), "service team/web");
        assert_eq!(domain.to_string(), "corp.example");
        let name = Name::parse("web.team.svc.cluster.local").unwrap();
        assert!(readings(&name, "shop", &domain).is_empty());
    }

    #[test]
    fn what_the_dns_is_asked() {
        let domain = Domain::new(Domain::usual(), [Name::parse("internal.example").unwrap()]);
        let asked = |text: &str| {
            let names = questions(&Name::parse(text).unwrap(), "shop", &domain);
            let names: Vec<_> = names.iter().map(Name::to_string).collect();
            names.join(" ")
        };
        let searched = |text: &str| {
            let domains = [
                "shop.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
            ];
            domains.map(|domain| format!("{text}.{domain}.")).join(" ")
        };
        assert_eq!(asked("web"), searched("web"));
        assert_eq!(asked("web.team.svc"), searched("web.team.svc"));
        assert_eq!(asked("x.cluster.local"), "x.cluster.local.");
        assert_eq!(asked("x.cluster.local."), "x.cluster.local.");
        assert_eq!(asked("Db.Internal.Example"), "db.internal.example.");
        assert_eq!(asked("web."), "");
        assert_eq!(asked("web.team."), "");
        let long = [
            "x".repeat(60),
            "y".repeat(60),
            "z".repeat(60),
            "w".repeat(55),
        ]
        .join(".");
        assert_eq!(
            asked(&long),
            format!("{long}.cluster.local."),
            "as far as it fits"
        );
    }

    #[test]
    fn whose_a_name_is() {
        let domain = Domain::new(Domain::usual(), [Name::parse("internal.example").unwrap()]);
        let of = |text: &str| match unknown(&Name::parse(text).unwrap(), &domain) {
            Unknown::Cluster => "cluster".to_owned(),
            Unknown::LastLabel(last) => last.to_owned(),
        };
        assert_eq!(of("web"), "cluster");
        assert_eq!(of("web."), "cluster");
        assert_eq!(of("web.team.svc"), "cluster");
        assert_eq!(of("web-0.team.pod"), "cluster");
        assert_eq!(of("x.cluster.local"), "cluster");
        assert_eq!(of("cluster.local"), "cluster");
        assert_eq!(of("db.internal.example"), "cluster");
        assert_eq!(of("db.xinternal.example"), "example");
        assert_eq!(of("www.example.com"), "com");
        assert_eq!(of("web.team"), "team");
    }

    #[test]
    fn dashed_addresses() {
        let ip = |s: &str| Some(s.parse::<IpAddr>().unwrap());
        assert_eq!(undash("10-0-0-1"), ip("10.0.0.1"));
        assert_eq!(undash("2001-db8-0-0-0-0-0-1"), ip("2001:db8::1"));
        assert_eq!(undash("2001-db8--1"), ip("2001:db8::1"));
        assert_eq!(undash("10-0-0"), None);
        assert_eq!(undash("10-0-0-256"), None);
        assert_eq!(undash("web-0"), None);
        assert_eq!(undash("db"), None);
    }
}
