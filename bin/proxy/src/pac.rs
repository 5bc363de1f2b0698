//! The PAC file, which sends a browser's requests for the cluster to the proxy.
//!
//! The file decides by the name alone. With `dnsResolve`, or `isInNet` on a name, a browser would query this machine's DNS
//! for names of the cluster, and wait for it.

use std::fmt::Write as _;

/// Contents of the file.
#[derive(Debug)]
pub struct PacFacts {
    /// Address of the HTTP listener, as `127.0.0.1:3128`, and of the SOCKS5 listener.
    pub http: Option<String>,
    pub socks: Option<String>,
    /// Suffixes of names of the cluster.
    pub endings: Vec<String>,
    /// The active namespace.
    pub namespace: String,
    /// Its Services.
    pub services: KnownList,
    /// Services of other namespaces, as `web.shop`.
    pub elsewhere: KnownList,
    /// The ranges of ClusterIPs.
    pub service_ranges: KnownList,
    /// Further ranges, given by the user.
    pub ranges: Vec<AddressRange>,
    /// HTTP proxy for all other hosts, as `host:port`; `None` reaches them directly.
    pub upstream: Option<String>,
}

/// A list that may be incomplete.
#[derive(Debug)]
pub enum KnownList {
    /// The list when it was last read, and why it could not be read since.
    Listed(Vec<String>, Option<String>),
    /// Reason why it was never read.
    Not(String),
}

/// An address range, as `10.244.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct AddressRange {
    base: std::net::IpAddr,
    length: u8,
}

impl std::str::FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text} is no range of addresses: write e.g. 10.244.0.0/16");
        let (base, length) = text.split_once('/').ok_or_else(wrong)?;
        let base: std::net::IpAddr = base.parse().map_err(|_| wrong())?;
        let length: u8 = length.parse().map_err(|_| wrong())?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        if length > most {
            return Err(wrong());
        }
        Ok(Self { base, length })
    }
}

impl std::fmt::Display for AddressRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.length)
    }
}

impl TryFrom<String> for AddressRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> Self {
        range.to_string()
    }
}

impl AddressRange {
    pub(crate) fn contains(self, ip: std::net::IpAddr) -> bool {
        use std::net::IpAddr;
        let bits = |ip| match ip {
            IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
            IpAddr::V6(ip) => ip.to_bits(),
        };
        let mask = !u128::MAX.checked_shr(self.length.into()).unwrap_or(0);
        self.base.is_ipv4() == ip.is_ipv4() && (bits(self.base) ^ bits(ip)) & mask == 0
    }

    /// The address as the file compares it: numbers of 16 bits.
    fn groups(self) -> Vec<u16> {
        match self.base {
            std::net::IpAddr::V4(ip) => {
                let [a, b, c, d] = ip.octets();
                vec![u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
            }
            std::net::IpAddr::V6(ip) => ip.segments().to_vec(),
        }
    }
}

/// Upper bound on listed Services: with this many, there may be more.
const MOST: usize = 500;

/// Functions of the file, in ECMAScript 5, which all PAC engines support.
const SCRIPT: &str = include_str!("pac/script.js");

/// The text of the file.
pub fn text(facts: &PacFacts) -> String {
    let mut file = String::from(
        "// Which hosts go through kubevpn into the cluster. Point the browser at this file, or at /proxy.pac of the\n\
         // proxy itself, which is always up to date.\n",
    );
    let mut ranges = facts.ranges.clone();
    match &facts.service_ranges {
        KnownList::Listed(found, failed) => {
            ranges.extend(
                found
                    .iter()
                    .filter_map(|text| text.parse::<AddressRange>().ok()),
            );
            if let Some(why) = failed {
                comment(
                    &mut file,
                    &format!("The ranges of ClusterIPs are those last seen ({why})."),
                );
            }
        }
        KnownList::Not(why) => comment(
            &mut file,
            &format!(
                "Not known: the ranges of ClusterIPs ({why}). Addresses of Services go past the proxy unless \
                 the settings name them."
            ),
        ),
    }
    let mut complete = false;
    if let KnownList::Listed(_, Some(why)) = &facts.services {
        comment(
            &mut file,
            &format!(
                "The Services of namespace {} are those last seen ({why}).",
                facts.namespace
            ),
        );
    }
    let services = match &facts.services {
        KnownList::Listed(services, _) if services.len() < MOST => {
            complete = true;
            &services[..]
        }
        KnownList::Listed(services, _) => {
            comment(
                &mut file,
                &format!(
                    "Namespace {} has {MOST} Services or more: those beyond go through the proxy when written with the \
                     namespace or in full.",
                    facts.namespace
                ),
            );
            &services[..]
        }
        KnownList::Not(why) => {
            comment(
                &mut file,
                &format!(
                    "Not known: the Services of namespace {} ({why}). Their names go through the proxy when written \
                     with the namespace or in full.",
                    facts.namespace
                ),
            );
            &[]
        }
    };
    let elsewhere = match &facts.elsewhere {
        KnownList::Listed(services, failed) => {
            if let Some(why) = failed {
                comment(
                    &mut file,
                    &format!("The Services of other namespaces are those last seen ({why})."),
                );
            }
            &services[..]
        }
        KnownList::Not(why) => {
            comment(
                &mut file,
                &format!(
                    "Not known: the Services of other namespaces ({why}). They go through the proxy when written as \
                     SERVICE.NAMESPACE.svc."
                ),
            );
            &[]
        }
    };
    let elsewhere = elsewhere.iter().filter(|service| !is_like_a_site(service));
    let ways = [
        // HTTP precedes SOCKS5: a browser takes a SOCKS proxy that refuses for broken, and shows the reason of an HTTP
        // proxy.
        facts.http.as_ref().map(|addr| format!("PROXY {addr}")),
        facts.socks.as_ref().map(|addr| format!("SOCKS5 {addr}")),
    ];
    let ways: Vec<_> = ways.into_iter().flatten().collect();
    let rest = match &facts.upstream {
        Some(upstream) => format!("PROXY {upstream}"),
        None => "DIRECT".into(),
    };
    let ranges = ranges.iter().map(|range| {
        let groups: Vec<_> = range.groups().iter().map(u16::to_string).collect();
        format!("[[{}], {}]", groups.join(", "), range.length)
    });
    let ranges: Vec<_> = ranges.collect();
    let _ = write!(
        file,
        "var CLUSTER = {};\nvar REST = {};\nvar ENDINGS = {};\nvar NAMESPACE = {};\nvar SERVICES = {};\nvar ELSEWHERE = {};\n\
         var COMPLETE = {complete};\nvar RANGES = [{}];\n\n{SCRIPT}",
        quoted(&ways.join("; ")),
        quoted(&rest),
        list(&facts.endings),
        quoted(&facts.namespace),
        list(services),
        list(elsewhere),
        ranges.join(", ")
    );
    file
}

/// Whether a Service of another namespace could be a web site, and is left to it: its namespace is named like a country's
/// domain or one of the original top-level domains.
fn is_like_a_site(service: &str) -> bool {
    const FIRST: [&str; 7] = ["com", "edu", "gov", "int", "mil", "net", "org"];
    let namespace = service.rsplit('.').next().unwrap_or_default();
    namespace.len() == 2 || FIRST.contains(&namespace)
}

/// A comment line. Text from outside cannot end it.
fn comment(file: &mut String, line: &str) {
    let line: String = line
        .chars()
        .map(|c| match c {
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => ' ',
            c => c,
        })
        .take(500)
        .collect();
    let _ = writeln!(file, "// {line}");
}

/// A JavaScript string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text)
        .to_string()
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

fn list(all: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let all: Vec<_> = all.into_iter().map(|text| quoted(text.as_ref())).collect();
    format!("[{}]", all.join(", "))
}

#[cfg(test)]
mod tests;
