//! Converts facts to findings with advice. Pure functions.

mod access;
mod machine;

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use kubevpn_proxy::probe::PortForwardAccess;
use kubevpn_target::Host;

use self::access::of_rights;
use self::machine::{of_files, of_isolated, of_listener, of_lookup, of_ranges, of_variables};
use super::facts::{
    CheckFacts, CheckFailure, CredentialFacts, KubeconfigFacts, NameFacts, PortHolder,
    ProxyVariable, ServerFacts, Tried, Trust,
};
use crate::age::age;

/// A noticeable round trip: a new session to a Pod takes about five.
const SLOW: Duration = Duration::from_millis(300);
/// A clock this far off makes tokens and certificates look expired, or not valid yet.
const SKEW: u64 = 30;
/// Remaining lifetime at which credentials that are not renewed are a warning.
const SOON: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FindingLevel {
    Ok,
    Warning,
    Problem,
}

impl FindingLevel {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) topic: &'static str,
    pub(super) level: FindingLevel,
    /// The exit code of a problem.
    pub(super) code: u8,
    pub(super) text: String,
    /// Advice, unless the text contains it.
    pub(super) advice: Option<String>,
}

impl Finding {
    fn new(topic: &'static str, level: FindingLevel, text: impl Into<String>) -> Self {
        Self {
            topic,
            level,
            code: 0,
            text: text.into(),
            advice: None,
        }
    }

    fn ok(topic: &'static str, text: impl Into<String>) -> Self {
        Self::new(topic, FindingLevel::Ok, text)
    }

    fn warning(topic: &'static str, text: impl Into<String>) -> Self {
        Self::new(topic, FindingLevel::Warning, text)
    }

    fn problem(topic: &'static str, code: u8, text: impl Into<String>) -> Self {
        Self {
            code,
            ..Self::new(topic, FindingLevel::Problem, text)
        }
    }

    fn trouble(topic: &'static str, trouble: &CheckFailure) -> Self {
        Self::problem(topic, trouble.code, trouble.sentence.clone())
    }

    fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// All findings.
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
    /// A Role with the rights that are missing.
    pub(super) role: Option<String>,
}

impl Report {
    /// The exit code of the first problem; 0 without a problem.
    pub(super) fn code(&self) -> u8 {
        let first = self
            .findings
            .iter()
            .find(|f| f.level == FindingLevel::Problem);
        first.map_or(0, |finding| finding.code)
    }

    pub(super) fn count(&self, level: FindingLevel) -> usize {
        self.findings.iter().filter(|f| f.level == level).count()
    }
}

pub(super) fn report(facts: &CheckFacts) -> Report {
    let mut findings = Vec::new();
    let mut role = None;
    let kubeconfig = match &facts.kubeconfig {
        Some(Ok(kubeconfig)) => {
            findings.extend(of_kubeconfig(kubeconfig));
            Some(kubeconfig)
        }
        Some(Err(trouble)) => {
            findings.push(Finding::trouble("kubeconfig", trouble));
            None
        }
        None => None,
    };
    if let Some(kubeconfig) = kubeconfig {
        findings.extend(of_way(kubeconfig, facts));
        if let Some(server) = &facts.server {
            findings.extend(of_server(kubeconfig, server));
        }
        if let Some(credentials) = &facts.credentials {
            let refused = matches!(&facts.rights, Some(Err(_)));
            findings.push(of_credentials(kubeconfig, credentials, facts.now, refused));
        }
        if let Some(rights) = &facts.rights {
            let minor = match &facts.server {
                Some(Ok(server)) => server.minor,
                _ => None,
            };
            findings.extend(match rights {
                Ok(rights) => {
                    let access = of_rights(rights, minor, &kubeconfig.namespace);
                    role = access.role(kubeconfig);
                    access.findings
                }
                Err(trouble) => vec![Finding::warning(
                    "access",
                    format!("not known: {}", trouble.sentence),
                )],
            });
        }
    }
    findings.extend(of_transports(&facts.transports));
    findings.extend(facts.names.iter().flat_map(of_names));
    findings.extend(facts.ranges.iter().flat_map(of_ranges));
    findings.extend(facts.listener.as_ref().map(of_listener));
    findings.extend(of_variables(&facts.proxies));
    findings.extend(facts.lookup.as_ref().map(of_lookup));
    findings.extend(facts.files.map(of_files));
    findings.extend(facts.isolated.as_ref().map(of_isolated));
    Report { findings, role }
}

fn of_kubeconfig(kubeconfig: &KubeconfigFacts) -> Vec<Finding> {
    let files = match kubeconfig.files.is_empty() {
        true => "the service account of this Pod".to_owned(),
        false => kubeconfig.files.join(", "),
    };
    let named = |what: &str, name: &Option<String>| match name {
        Some(name) => format!("{what} {name}, "),
        None => String::new(),
    };
    let mut findings = vec![Finding::ok(
        "kubeconfig",
        format!(
            "{files}: {}{}namespace {}",
            named("context", &kubeconfig.context),
            named("user", &kubeconfig.user),
            kubeconfig.namespace
        ),
    )];
    let notes = kubeconfig.notes.iter().map(|note| {
        Finding::warning("kubeconfig", note.clone())
            .advice("nothing now: the entry is not used; correct or delete it some day")
    });
    findings.extend(notes);
    findings
}

/// The way to the API server: proxy, TLS, addresses.
fn of_way(kubeconfig: &KubeconfigFacts, facts: &CheckFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(proxy) = &kubeconfig.proxy {
        let from = match kubeconfig.proxy_of_env {
            true => "the environment",
            false => "the kubeconfig",
        };
        let same = |variable: &&ProxyVariable| same_place(&variable.url, proxy);
        let ours = facts.proxies.iter().filter(same).find(|variable| {
            kubeconfig.proxy_of_env && variable.held.as_ref().is_some_and(PortHolder::is_ours)
        });
        findings.push(match ours {
            Some(variable) => Finding::problem(
                "proxy",
                40,
                format!(
                    "the API server is asked through {}={}, which is a proxy of kubevpn's own",
                    variable.name, variable.url
                ),
            )
            .advice(format!(
                "unset {}, or set it with eval \"$(kubevpn env)\", which tells kubevpn of it",
                variable.name
            )),
            None => Finding::ok(
                "proxy",
                format!("to the API server through {proxy}, which {from} names"),
            ),
        });
    }
    let server = &kubeconfig.server;
    findings.push(match kubeconfig.trust {
        Trust::Kubeconfig => Finding::ok(
            "tls",
            format!("{server} has to show a certificate of the kubeconfig's certificate-authority"),
        ),
        Trust::System => Finding::ok(
            "tls",
            format!("{server} has to show a certificate that this system trusts"),
        ),
        Trust::Nobody => Finding::warning(
            "tls",
            format!("the certificate of {server} is not verified (insecure-skip-tls-verify): traffic can be intercepted"),
        )
        .advice("give the kubeconfig the cluster's certificate-authority"),
        Trust::Plain => Finding::warning(
            "tls",
            format!("{server} is asked without TLS: requests and data are sent in the clear, and the kubeconfig's credentials are not sent at all"),
        )
        .advice("use an https server, unless it is on this machine"),
    });
    let (fake, real): (Vec<_>, Vec<_>) = facts
        .addresses
        .iter()
        .partition(|address| Host::from(address.ip).is_fake_ip());
    if let Some(fake) = fake.first() {
        findings.push(
            Finding::warning(
                "dns",
                format!(
                    "this machine's DNS says that the API server is at {}, a made-up address (fake-ip) of a proxy or VPN program",
                    fake.ip
                ),
            )
            .advice("nothing if that program passes it on; else exclude the API server's name there"),
        );
    }
    let unrouted: Vec<_> = real.iter().filter(|address| !address.routed).collect();
    if let Some(first) = unrouted.first() {
        let text = format!(
            "there is no route to {}, an address of the API server",
            first.ip
        );
        findings.push(match unrouted.len() == real.len() {
            true => Finding::problem("route", 40, text).advice("connect to the network or VPN that has one"),
            false => Finding::warning(
                "route",
                format!("{text}: another of its addresses is used"),
            )
            .advice("nothing, unless the first connection is slow: then remove the address, or give this machine the route"),
        });
    }
    findings
}

/// Whether two URLs name the same host and port.
fn same_place(one: &str, other: &str) -> bool {
    let place = |url: &str| {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        rest.trim_end_matches('/').to_ascii_lowercase()
    };
    place(one) == place(other)
}

fn of_server(
    kubeconfig: &KubeconfigFacts,
    server: &Result<ServerFacts, CheckFailure>,
) -> Vec<Finding> {
    let server = match server {
        Ok(server) => server,
        Err(trouble) => return vec![Finding::trouble("api-server", trouble)],
    };
    let version = server.version.as_deref().unwrap_or("an unknown version");
    let round_trip = server.round_trip.max(Duration::from_micros(1));
    let trips = (server.first.as_secs_f64() / round_trip.as_secs_f64()).round();
    // A longer time is caused by this machine or the server, not by the line.
    let trips = match trips <= 20.0 {
        true => format!(" ({trips} of them)"),
        false => String::new(),
    };
    let text = format!(
        "{} runs {version}; a round trip takes {}, the first answer took {}{trips}",
        kubeconfig.server,
        milliseconds(server.round_trip),
        milliseconds(server.first),
    );
    let mut findings = vec![match server.round_trip > SLOW {
        true => Finding::warning("api-server", text)
            .advice("expect a second or two for the first connection to each Pod; those that follow are faster"),
        false => Finding::ok("api-server", text),
    }];
    if let Some(ahead) = server.ahead {
        let off = ahead.unsigned_abs();
        let way = if ahead > 0 { "ahead of" } else { "behind" };
        findings.push(match off > SKEW {
            true => Finding::warning(
                "clock",
                format!(
                    "this machine's clock is {} {way} the API server's: credentials look expired, or not valid yet",
                    age(off)
                ),
            )
            .advice("set the clock (timedatectl set-ntp true), or have the server's set"),
            false => Finding::ok("clock", "this machine and the API server agree on the time"),
        });
    }
    findings
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn of_credentials(
    kubeconfig: &KubeconfigFacts,
    credentials: &CredentialFacts,
    now: Option<SystemTime>,
    refused: bool,
) -> Finding {
    const TOPIC: &str = "credentials";
    let user = kubeconfig.user.as_deref().unwrap_or("of the flags");
    let shown = credentials.shown.clone().unwrap_or_default();
    let what = match (shown.certificate, shown.token, shown.password) {
        (true, true, _) => "client certificate and token",
        (true, ..) => "client certificate",
        (_, true, _) => "token",
        (_, _, true) => "password",
        _ => "no credentials",
    };
    let now = now.unwrap_or(SystemTime::UNIX_EPOCH);
    let ended = |at: SystemTime| now.duration_since(at).ok();
    let log_in = match &shown.plugin {
        Some(plugin) => format!("log in again: the plugin {plugin} makes new credentials"),
        None => "log in again, or ask who manages the cluster for a new kubeconfig".to_owned(),
    };
    if let Some(past) = shown.expires.and_then(ended) {
        let text = format!(
            "the {what} of user {user} expired {} ago",
            age(past.as_secs())
        );
        return match &credentials.trouble {
            Some(trouble) => Finding::problem(TOPIC, trouble.code, text).advice(log_in),
            // The transport was not tried, or was skipped.
            None if refused => Finding::problem(
                TOPIC,
                32,
                format!("{text}: the API server takes you for anonymous, who may do nothing here"),
            )
            .advice(log_in),
            None => Finding::warning(
                TOPIC,
                format!("{text}, and the API server takes it: one of the two clocks is wrong"),
            )
            .advice("set this machine's clock, or log in again"),
        };
    }
    if let Some(trouble) = &credentials.trouble {
        return Finding::trouble(TOPIC, trouble);
    }
    if shown.is_none() {
        let text = match kubeconfig.trust {
            Trust::Plain => format!(
                "no token, password or certificate of user {user} is sent over plain http, as kubectl sends none: the API \
                 server takes you for anonymous"
            ),
            _ => format!("user {user} has none: the API server takes you for anonymous"),
        };
        let finding = match refused {
            true => Finding::problem(TOPIC, 32, format!("{text}, who may do nothing here")),
            false => Finding::warning(TOPIC, text),
        };
        return finding.advice("log in, or pass --token or another --user, if access is missing");
    }
    let text = format!("the API server accepts the {what} of user {user}");
    let Some(expires) = shown.expires else {
        return Finding::ok(TOPIC, format!("{text}, which does not say when it expires"));
    };
    let left = expires.duration_since(now).unwrap_or_default();
    let text = format!(
        "{text}, until {} (in {})",
        utc(expires),
        age(left.as_secs())
    );
    match shown.plugin.as_deref() {
        Some(plugin) => Finding::ok(TOPIC, format!("{text}; the plugin {plugin} renews it")),
        None if left < SOON && !shown.renewable => Finding::warning(TOPIC, text).advice(log_in),
        None => Finding::ok(TOPIC, text),
    }
}

fn utc(time: SystemTime) -> String {
    // A date that cannot be represented is far in the future.
    Timestamp::try_from(time)
        .map_or_else(|_| "a distant day".to_owned(), |time| format!("{time:.0}"))
}

fn of_transports(tried: &[Tried]) -> Vec<Finding> {
    const TOPIC: &str = "transport";
    let works = |tried: &&Tried| matches!(tried.came, Ok(PortForwardAccess::Open { .. }));
    let any = tried.iter().any(|tried| works(&tried));
    let mut findings = Vec::new();
    for Tried { transport, came } in tried {
        match came {
            Ok(way @ PortForwardAccess::Open { .. }) => {
                findings.push(Finding::ok(TOPIC, format!("{transport}: {way}")));
            }
            // The finding is the same for all transports.
            Ok(way) if findings.is_empty() => findings.push(
                Finding::warning(TOPIC, way.to_string())
                    .advice("kubevpn check HOST:PORT tries it with a Service of yours"),
            ),
            Ok(_) => {}
            Err(trouble) if any => findings.push(
                Finding::warning(
                    TOPIC,
                    format!("{transport} does not work: {}", trouble.sentence),
                )
                .advice("nothing: kubevpn takes a transport that works"),
            ),
            Err(trouble) => findings.push(Finding::problem(
                TOPIC,
                trouble.code,
                format!("{transport} does not work: {}", trouble.sentence),
            )),
        }
    }
    findings
}

fn of_names(names: &NameFacts) -> Vec<Finding> {
    let mut findings = vec![Finding::ok(
        "names",
        format!("names of the cluster end in {}", names.domain),
    )];
    findings.extend(names.dns.as_ref().map(|dns| match dns {
        Ok(0) => Finding::warning("names", "the cluster's DNS has no ready endpoint")
            .advice("nothing for Services and Pods, which are found without it; names that only it knows are not"),
        Ok(1) => Finding::ok("names", "the cluster's DNS has one ready endpoint"),
        Ok(n) => Finding::ok("names", format!("the cluster's DNS has {n} ready endpoints")),
        Err(why) => Finding::warning("names", format!("the cluster's DNS cannot be reached: {why}"))
            .advice("nothing for Services and Pods, which are found without it; --cluster-dns names another"),
    }));
    findings
}

#[cfg(test)]
mod tests;
