//! Habits of kubectl's users: flags before the command, `svc/NAME`, `pod/NAME`, URLs.

use std::ffi::OsString;
use std::num::NonZeroU16;

use kubevpn_target::{Host, Origin, Target};

use crate::exit::Failure;

/// Flags that kubectl accepts before the command, each with a value.
const GLOBAL: [&str; 5] = [
    "-n",
    "--namespace",
    "--context",
    "--kubeconfig",
    "--cluster",
];

/// The words with such flags moved behind the command, where clap accepts them.
pub(crate) fn in_order(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words = words.into_iter();
    let mut ordered: Vec<_> = words.next().into_iter().collect();
    let mut moved = Vec::new();
    let verb = loop {
        let Some(word) = words.next() else { break None };
        let text = word.to_str().unwrap_or_default();
        let joined = text
            .split_once('=')
            .is_some_and(|(flag, _)| GLOBAL.contains(&flag));
        if joined {
            moved.push(word);
        } else if GLOBAL.contains(&text) {
            moved.push(word);
            moved.extend(words.next());
        } else if text.starts_with('-') {
            // A global flag of ours, without a value or with it after an equals sign.
            ordered.push(word);
        } else {
            break Some(word);
        }
    };
    ordered.extend(verb);
    ordered.extend(moved);
    ordered.extend(words);
    ordered
}

/// Parses a host with an optional port: `HOST[:PORT]`, `svc/NAME`, `pod/NAME` or a URL.
pub(super) fn target(text: &str, namespace: &str) -> Result<(Host, Option<NonZeroU16>), Failure> {
    let refused = |error: &dyn std::fmt::Display| Failure::value(format!("{text}: {error}"));
    let mut default = None;
    let mut rest = text;
    for (scheme, port) in [("http://", 80), ("https://", 443)] {
        if let Some(url) = text.strip_prefix(scheme) {
            default = NonZeroU16::new(port);
            let authority = url.split(['/', '?', '#']).next().unwrap_or_default();
            rest = authority
                .rsplit_once('@')
                .map_or(authority, |(_, host)| host);
        }
    }
    let named = match rest.split_once('/') {
        None => rest.to_owned(),
        Some(("svc" | "service" | "services", name)) => name.to_owned(),
        Some(("pod" | "pods" | "po", name)) => {
            let (name, port) = name.split_at(name.find(':').unwrap_or(name.len()));
            format!("{name}.{namespace}.pod{port}")
        }
        Some((kind, _)) => {
            return Err(refused(&format_args!(
                "a {kind} has no address: name its Service (kubevpn services lists them), or a Pod as pod/NAME"
            )));
        }
    };
    // An IPv6 address without a port has colons, too.
    if let Ok(host) = Host::parse(&named) {
        return Ok((host, default));
    }
    if !named.contains(':') {
        let host = Host::parse(&named).map_err(|error| refused(&error))?;
        return Ok((host, default));
    }
    let target = Target::parse(&named, Origin::default()).map_err(|error| refused(&error))?;
    Ok((target.host, Some(target.port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_code;

    #[test]
    fn flags_before_the_verb() {
        let ordered = |text: &str| {
            let words = in_order(text.split(' ').map(OsString::from));
            words
                .join(OsString::from(" ").as_os_str())
                .into_string()
                .unwrap()
        };
        for (typed, meant) in [
            ("kubevpn status", "kubevpn status"),
            (
                "kubevpn -n shop run curl -n 5",
                "kubevpn run -n shop curl -n 5",
            ),
            (
                "kubevpn --context=a -v resolve web",
                "kubevpn -v resolve --context=a web",
            ),
            (
                "kubevpn run -n shop -- x -n y",
                "kubevpn run -n shop -- x -n y",
            ),
            ("kubevpn --help", "kubevpn --help"),
            ("kubevpn -n", "kubevpn -n"),
        ] {
            assert_eq!(ordered(typed), meant);
        }
    }

    #[test]
    fn hosts_with_and_without_a_port() {
        let read = |text: &str| {
            let (host, port) = target(text, "shop").unwrap();
            (host.to_string(), port.map_or(0, NonZeroU16::get))
        };
        for (text, host, port) in [
            ("web", "web", 0),
            ("web.shop:80", "web.shop", 80),
            ("10.0.0.1", "10.0.0.1", 0),
            ("10.0.0.1:80", "10.0.0.1", 80),
            ("fd00::1", "fd00::1", 0),
            ("[fd00::1]", "fd00::1", 0),
            ("[fd00::1]:80", "fd00::1", 80),
            ("svc/web", "web", 0),
            ("service/web:80", "web", 80),
            ("pod/web-0", "web-0.shop.pod", 0),
            ("pod/web-0:80", "web-0.shop.pod", 80),
            ("http://web/", "web", 80),
            ("https://web.shop", "web.shop", 443),
            ("http://u:p@web:9080/x?y#z", "web", 9080),
            ("http://[fd00::1]:80/", "fd00::1", 80),
        ] {
            assert_eq!(read(text), (host.to_owned(), port), "{text}");
        }
        for bad in [
            "",
            "web:0",
            "web:x",
            "a b",
            "web:80:81",
            "[web]:80",
            "deploy/web",
            "http://",
        ] {
            let failure = target(bad, "shop").unwrap_err();
            assert_eq!(exit_code(&failure), 23, "{bad}");
        }
    }
}
