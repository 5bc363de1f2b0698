//! This machine: routes into the cluster's ranges, the port to listen on, variables, DNS, limits.

use std::net::IpAddr;

use kubevpn_target::Host;

use super::super::facts::{ListenerFacts, Lookup, PortHolder, ProxyVariable, RangeFacts, Ranges};
use super::{Finding, same_place};

/// Open files that 8192 connections need, at two each.
const FILES: u64 = 2 * 8192 + 256;

pub(super) fn of_ranges(ranges: &Ranges) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (what, found) in [("Services", &ranges.services), ("Pods", &ranges.pods)] {
        let found = match found {
            Ok(found) if found.is_empty() => continue,
            Ok(found) => found,
            Err(why) => {
                findings.push(Finding::ok(
                    "ranges",
                    format!("those of {what} are not known: {why}"),
                ));
                continue;
            }
        };
        let all: Vec<_> = found.iter().map(|range| range.cidr.as_str()).collect();
        findings.push(Finding::ok(
            "ranges",
            format!("{what} have addresses of {}", all.join(", ")),
        ));
        let elsewhere = |range: &RangeFacts| Some((range.cidr.clone(), range.routed_by?));
        for (cidr, by) in found.iter().filter_map(elsewhere) {
            findings.push(
                Finding::warning(
                    "ranges",
                    format!("this machine has a route of its own to {cidr} of the {what}, by {by}: another VPN, or a network here, has the same addresses"),
                )
                .advice("ask for names and not for addresses, or end that VPN"),
            );
        }
    }
    findings
}

pub(super) fn of_listener(listener: &ListenerFacts) -> Finding {
    let ListenerFacts { address, state } = listener;
    let elsewhere = "choose another with --listen-socks, or end that program";
    match state {
        PortHolder::Free => Finding::ok("listener", format!("{address} is free")),
        PortHolder::Connection(id) => Finding::ok(
            "listener",
            format!(
                "{address} is the listener of connection {id} (kubevpn disconnect {id} frees it)"
            ),
        ),
        PortHolder::Process { pid, name } if state.is_ours() => Finding::ok(
            "listener",
            format!("{address} is in use by {name} (process {pid}), a proxy that runs already"),
        ),
        PortHolder::Process { pid, name } => Finding::problem(
            "listener",
            53,
            format!("{address} is in use by {name} (process {pid})"),
        )
        .advice(elsewhere),
        PortHolder::Somebody => {
            Finding::problem("listener", 53, format!("{address} is in use")).advice(elsewhere)
        }
        PortHolder::Refused(why) => Finding::problem(
            "listener",
            1,
            format!("{address} cannot be listened on: {why}"),
        )
        .advice("choose another with --listen-socks"),
    }
}

pub(super) fn of_variables(variables: &[ProxyVariable]) -> Vec<Finding> {
    const TOPIC: &str = "environment";
    let mut findings = Vec::new();
    let mut said: Vec<&str> = Vec::new();
    for ProxyVariable {
        name,
        url,
        held,
        known,
    } in variables
    {
        // Most variables are set in lower and upper case.
        if said.iter().any(|other| other.eq_ignore_ascii_case(name)) {
            continue;
        }
        said.push(name);
        let Some(held) = held else { continue };
        findings.push(match held {
            PortHolder::Free | PortHolder::Refused(_) => Finding::warning(
                TOPIC,
                format!("{name}={url}, and nothing listens there: programs of this shell fail"),
            )
            .advice(format!("unset {name}, or start the proxy")),
            held if held.is_ours() && *known => {
                Finding::ok(TOPIC, format!("{name}={url} is kubevpn's own, which it leaves out itself"))
            }
            held if held.is_ours() => Finding::warning(
                TOPIC,
                format!("{name}={url} is kubevpn's own, and kubectl and other programs of this shell use it for everything"),
            )
            .advice("set it with eval \"$(kubevpn env)\", which leaves out this machine and the API servers (NO_PROXY)"),
            _ => continue,
        });
    }
    let value = |wanted: &str| {
        let mut named = variables.iter();
        named.find(|variable| variable.name.eq_ignore_ascii_case(wanted))
    };
    if let (Some(all), Some(http)) = (value("ALL_PROXY"), value("HTTP_PROXY"))
        && all.held.as_ref().is_some_and(PortHolder::is_ours)
        && !same_place(&all.url, &http.url)
        && !http.held.as_ref().is_some_and(PortHolder::is_ours)
    {
        findings.push(
            Finding::warning(
                TOPIC,
                format!(
                    "{}={} goes before {}: http requests do not reach the cluster",
                    http.name, http.url, all.name
                ),
            )
            .advice("set them with eval \"$(kubevpn env)\", which replaces both"),
        );
    }
    findings
}

pub(super) fn of_lookup(lookup: &Lookup) -> Finding {
    const TOPIC: &str = "dns";
    let Lookup {
        name,
        addresses,
        real,
    } = lookup;
    let fake = |ip: &&IpAddr| Host::from(**ip).is_fake_ip();
    if let Some(fake) = addresses.iter().find(fake) {
        return Finding::warning(
            TOPIC,
            format!("this machine's DNS says {fake} to {name}, a made-up address (fake-ip) of a proxy or VPN program: programs that look names up themselves do not reach the cluster"),
        )
        .advice("let programs give names to the proxy (socks5h://, http://), or exclude the cluster's names in that program");
    }
    match addresses.first() {
        None => Finding::ok(
            TOPIC,
            "this machine's DNS does not know the cluster's names, as usual: give them to the proxy (socks5h://, http://)",
        ),
        Some(first) if real.is_some_and(|real| addresses.contains(&real)) => Finding::ok(
            TOPIC,
            format!("this machine's DNS knows the cluster's names ({name} is {first})"),
        ),
        Some(first) => Finding::warning(
            TOPIC,
            format!("this machine's DNS says {first} to {name}, which another VPN or cluster has: programs that look names up themselves go there"),
        )
        .advice("let programs give names to the proxy (socks5h://, http://), or end the other VPN"),
    }
}

pub(super) fn of_files(limit: Option<u64>) -> Finding {
    const TOPIC: &str = "files";
    match limit {
        Some(limit) if limit < FILES => Finding::warning(
            TOPIC,
            format!(
                "{limit} files may be open, enough for some {} connections at once",
                limit.saturating_sub(256) / 2
            ),
        )
        .advice(format!(
            "raise the hard limit (ulimit -Hn {FILES}), if you need more"
        )),
        _ => Finding::ok(
            TOPIC,
            "enough files may be open for 8192 connections at once",
        ),
    }
}

pub(super) fn of_isolated(possible: &Result<(), String>) -> Finding {
    const TOPIC: &str = "isolation";
    match possible {
        Ok(()) => Finding::ok(
            TOPIC,
            "run --isolated can give a command a network of its own",
        ),
        Err(why) => Finding::warning(TOPIC, why.as_str())
            .advice("nothing, unless you need run --isolated: see the book's page about one command in the cluster's network"),
    }
}
