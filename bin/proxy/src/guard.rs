//! Rules about the targets that a program may connect to. They apply to a Service by any of its names and addresses.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use kubevpn_stack::Resolved;
use kubevpn_target::{ConnectError, Host, Refusal, Target};
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use crate::ClusterStack;
use crate::pac::AddressRange;

/// The targets of a rule.
///
/// | written | means |
/// |---|---|
/// | `db.shop` | the Service `db` of the namespace `shop`, by any of its names or its ClusterIP; a host of that name |
/// | `db` | the same in the active namespace |
/// | `*.shop`, `*.example.com` | every Service of the namespace `shop`, every host below a domain |
/// | `10.244.0.0/16`, `10.96.0.1`, `fd00::/8`, `[fd00::1]` | targets that are these addresses |
/// | `*` | everything |
/// | `db.shop:5432`, `*.shop:8000-8999`, `*:443`, `[fd00::1]:80` | the same, at these ports only |
///
/// ```
/// use kubevpn_proxy::TargetPattern;
/// for text in ["db.shop:5432", "*.shop", "10.244.0.0/16:8000-8999", "[fd00::1]:80", "*"] {
///     assert_eq!(text.parse::<TargetPattern>().unwrap().to_string(), text);
/// }
/// assert!("db.shop:http".parse::<TargetPattern>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPattern {
    host: HostPattern,
    ports: Option<RangeInclusive<u16>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPattern {
    Any,
    Name(String),
    /// Every name below this one.
    Below(String),
    Address(IpAddr),
    Range(AddressRange),
}

/// Error of a text that is not a [`TargetPattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "write a name, *.NAME, an address, a range as 10.0.0.0/8 or *, and :PORT or :FIRST-LAST where only these are meant"
)]
pub struct PatternError;

impl FromStr for TargetPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (host, ports) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or(PatternError)?;
                (host, rest.strip_prefix(':').ok_or(rest))
            }
            // An IPv6 address or range without a port has more than one colon.
            None => match text.split_once(':') {
                Some((host, ports)) if !ports.contains(':') => (host, Ok(ports)),
                _ => (text, Err("")),
            },
        };
        let ports = match ports {
            Ok(ports) => Some(read_ports(ports)?),
            Err("") => None,
            Err(_) => return Err(PatternError),
        };
        let host = read_host(host)?;
        Ok(Self { host, ports })
    }
}

fn read_ports(text: &str) -> Result<RangeInclusive<u16>, PatternError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 && !text.starts_with('+') => Ok(port),
        _ => Err(PatternError),
    };
    let (first, last) = (port(first)?, port(last)?);
    match first <= last {
        true => Ok(first..=last),
        false => Err(PatternError),
    }
}

fn read_host(text: &str) -> Result<HostPattern, PatternError> {
    if text == "*" {
        return Ok(HostPattern::Any);
    }
    if let Ok(range) = text.parse() {
        return Ok(HostPattern::Range(range));
    }
    let name = text.strip_prefix("*.");
    match (name, Host::parse(name.unwrap_or(text))) {
        (None, Ok(Host::Ip(ip))) => Ok(HostPattern::Address(ip)),
        (None, Ok(Host::Name(name))) => Ok(HostPattern::Name(name.as_str().into())),
        (Some(_), Ok(Host::Name(name))) => Ok(HostPattern::Below(name.as_str().into())),
        _ => Err(PatternError),
    }
}

impl fmt::Display for TargetPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_ports = self.ports.is_some();
        match &self.host {
            HostPattern::Any => f.write_str("*")?,
            HostPattern::Name(name) => f.write_str(name)?,
            HostPattern::Below(name) => write!(f, "*.{name}")?,
            HostPattern::Address(ip) if has_ports && ip.is_ipv6() => write!(f, "[{ip}]")?,
            HostPattern::Address(ip) => write!(f, "{ip}")?,
            HostPattern::Range(range) => {
                let text = range.to_string();
                match has_ports && text.contains(':') {
                    true => write!(f, "[{text}]")?,
                    false => f.write_str(&text)?,
                }
            }
        }
        match &self.ports {
            None => Ok(()),
            Some(ports) if ports.start() == ports.end() => write!(f, ":{}", ports.start()),
            Some(ports) => write!(f, ":{}-{}", ports.start(), ports.end()),
        }
    }
}

/// Names of a target, and its address if the target is an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Identity {
    names: Vec<String>,
    address: Option<IpAddr>,
}

impl TargetPattern {
    fn is_about(&self, identity: &Identity, port: u16) -> bool {
        let is_at_port = self
            .ports
            .as_ref()
            .is_none_or(|ports| ports.contains(&port));
        let mut names = identity.names.iter();
        is_at_port
            && match &self.host {
                HostPattern::Any => true,
                HostPattern::Name(wanted) => names.any(|name| name == wanted),
                HostPattern::Below(domain) => names.any(|name| {
                    let below = name.strip_suffix(domain.as_str());
                    below.is_some_and(|below| below.len() > 1 && below.ends_with('.'))
                }),
                HostPattern::Address(wanted) => identity.address == Some(*wanted),
                HostPattern::Range(range) => identity.address.is_some_and(|ip| range.contains(ip)),
            }
    }
}

/// The rules of one program. If there are allowed targets, only these are permitted; a denied target never is.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    allow: Vec<TargetPattern>,
    deny: Vec<TargetPattern>,
    namespace: String,
    domain: String,
}

impl Rules {
    /// Rules whose names are resolved in `namespace`, in a cluster with this domain.
    pub fn new(
        allow: Vec<TargetPattern>,
        deny: Vec<TargetPattern>,
        namespace: &str,
        domain: &str,
    ) -> Self {
        let mut rules = Self {
            allow,
            deny,
            namespace: namespace.into(),
            domain: domain.into(),
        };
        let mut allow = std::mem::take(&mut rules.allow);
        let mut deny = std::mem::take(&mut rules.deny);
        for pattern in allow.iter_mut().chain(&mut deny) {
            match &mut pattern.host {
                HostPattern::Name(name) => {
                    let short = rules.short(name);
                    *name = match short.contains('.') {
                        true => short,
                        false => format!("{short}.{}", rules.namespace),
                    };
                }
                HostPattern::Below(name) => *name = rules.short(name),
                HostPattern::Any | HostPattern::Address(_) | HostPattern::Range(_) => {}
            }
        }
        Self {
            allow,
            deny,
            ..rules
        }
    }

    /// Whether everything is permitted.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// A name of the cluster in its short form: `db.shop` for `db.shop.svc.cluster.local`.
    fn short(&self, name: &str) -> String {
        let in_cluster = |name: &str| {
            let before = name.strip_suffix(self.domain.as_str())?;
            before.strip_suffix('.').map(str::to_owned)
        };
        let short = in_cluster(name).unwrap_or_else(|| name.to_owned());
        match short.strip_suffix(".svc") {
            Some(service) => service.to_owned(),
            None => short,
        }
    }

    fn check(&self, target: &Target, identity: &Identity) -> Result<(), ConnectError> {
        let port = target.port.get();
        let found = |patterns: &[TargetPattern]| {
            let mut about = patterns.iter().filter(|p| p.is_about(identity, port));
            about.next().map(ToString::to_string)
        };
        let why = match found(&self.deny) {
            Some(pattern) => format!("{target} is denied to this program, by the rule {pattern}"),
            None if self.allow.is_empty() || found(&self.allow).is_some() => return Ok(()),
            None => format!("{target} is none of the targets that this program is allowed"),
        };
        Err(ConnectError::new(Refusal::Denied, why))
    }
}

/// Looks up the Service of a target, as `namespace/name`.
type ServiceLookup = BoxCloneSyncService<Target, Option<String>, ConnectError>;

/// Rules, with the service that looks up targets. Clones share it.
#[derive(Clone)]
pub struct Guard {
    rules: Arc<Rules>,
    services: ServiceLookup,
}

impl Guard {
    /// Rules about the targets of one cluster.
    pub fn new(rules: Rules, cluster: &ClusterStack) -> Self {
        let cluster = cluster.clone();
        let services = tower::service_fn(move |target: Target| {
            let cluster = cluster.clone();
            async move {
                let resolve = cluster.get_ref();
                let resolved = resolve.resolve(&target.host, Some(target.port)).await?;
                Ok::<_, ConnectError>(match resolved {
                    Resolved::Pods(pods) => pods.service.clone(),
                    Resolved::ApiServer => Some("default/kubernetes".into()),
                    Resolved::Outside { .. } => None,
                })
            }
        });
        Self {
            rules: Arc::new(rules),
            services: BoxCloneSyncService::new(services),
        }
    }

    /// Whether the rules permit a connection. A target that cannot be looked up is not permitted.
    pub(crate) async fn check(&self, target: &Target, is_ours: bool) -> Result<(), ConnectError> {
        if self.rules.is_empty() {
            return Ok(());
        }
        let mut identity = Identity::default();
        match &target.host {
            Host::Name(name) => identity.names.push(self.rules.short(name.as_str())),
            Host::Ip(ip) => identity.address = Some(*ip),
        }
        if !is_ours && let Some(service) = self.services.clone().oneshot(target.clone()).await? {
            let (namespace, name) = service.split_once('/').unwrap_or(("", service.as_str()));
            identity.names.push(format!("{name}.{namespace}"));
        }
        self.rules.check(target, &identity)
    }
}

#[cfg(test)]
mod tests {
    use kubevpn_target::Origin;

    use super::*;

    fn pattern(text: &str) -> TargetPattern {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn patterns() {
        for text in [
            "*",
            "*:443",
            "db",
            "db.shop:5432",
            "*.shop",
            "*.example.com:8000-8999",
            "10.0.0.1",
            "10.0.0.1:80",
            "10.0.0.0/8",
            "10.0.0.0/8:1-2",
            "fd00::1",
            "[fd00::1]:80",
            "fd00::/8",
            "[fd00::/8]:80",
        ] {
            assert_eq!(pattern(text).to_string(), text);
        }
        assert_eq!(pattern("[fd00::1]"), pattern("fd00::1"));
        assert_eq!(pattern("DB.Shop.:5432"), pattern("db.shop:5432"));
        for text in [
            "",
            ":80",
            "db:",
            "db:0",
            "db:+1",
            "db:80-",
            "db:9-8",
            "db:70000",
            "*.",
            "*db",
            "a b",
            "*.10.0.0.1",
            "10.0.0.0/33",
            "[fd00::1",
            "[fd00::1]80",
            "1.2.3",
        ] {
            assert_eq!(text.parse::<TargetPattern>(), Err(PatternError), "{text}");
        }
    }

    /// The rule that denies the target, if one does.
    fn verdict(rules: &Rules, to: &str, service: Option<&str>) -> Result<(), String> {
        let target = Target::parse(to, Origin::default()).unwrap();
        let mut identity = Identity::default();
        match &target.host {
            Host::Name(name) => identity.names.push(rules.short(name.as_str())),
            Host::Ip(ip) => identity.address = Some(*ip),
        }
        identity.names.extend(service.map(str::to_owned));
        rules.check(&target, &identity).map_err(|e| e.to_string())
    }

    fn rules(allow: &[&str], deny: &[&str]) -> Rules {
        let patterns = |texts: &[&str]| texts.iter().map(|text| pattern(text)).collect();
        Rules::new(patterns(allow), patterns(deny), "shop", "cluster.local")
    }

    #[test]
    fn a_service_is_denied_by_whatever_it_is_asked_for() {
        let rules = rules(&[], &["db:5432", "*.billing.svc", "10.244.0.0/16"]);
        for (to, service) in [
            ("db.shop.svc.cluster.local.:5432", None),
            ("db:5432", Some("db.shop")),
            ("10.96.0.7:5432", Some("db.shop")),
            ("10.96.0.8:80", Some("api.billing")),
            ("api.billing.svc:80", None),
            ("10.244.3.4:1", None),
        ] {
            assert!(verdict(&rules, to, service).is_err(), "{to}");
        }
        for (to, service) in [
            ("10.96.0.7:5433", Some("db.shop")),
            ("db.other:5432", None),
            ("billing:80", Some("billing.shop")),
            ("10.96.0.9:80", Some("web.shop")),
        ] {
            assert_eq!(verdict(&rules, to, service), Ok(()), "{to}");
        }
        let said = verdict(&rules, "10.96.0.7:5432", Some("db.shop")).unwrap_err();
        assert!(said.ends_with("by the rule db.shop:5432"), "{said}");
    }

    #[test]
    fn with_an_allowed_target_others_are_refused() {
        let rules = rules(&["*.shop", "*.example.com:443"], &["db.shop"]);
        let ok = |to: &str, service| verdict(&rules, to, service).is_ok();
        assert!(ok("10.96.0.9:80", Some("web.shop")));
        assert!(ok("api.example.com.:443", None));
        assert!(!ok("api.example.com.:80", None));
        assert!(!ok("example.com.:443", None));
        assert!(!ok("10.96.0.7:5432", Some("db.shop")));
        assert!(!ok("203.0.113.1:443", None));
    }
}
