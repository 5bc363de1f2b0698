//! The rules, as messages to nf_tables. In the words of nft(8):
//!
//! ```text
//! table inet kubevpn {
//!     chain redirect {
//!         type nat hook output priority -100; policy accept;
//!         ip daddr 127.0.0.0/8 accept
//!         ip6 daddr ::1 accept
//!         udp dport 53 redirect to :DNS
//!         ip daddr 198.18.0.1 tcp dport != 53 accept
//!         ip6 daddr fc00::1 tcp dport != 53 accept
//!         meta l4proto tcp redirect to :TCP
//!     }
//!     chain refuse {
//!         type filter hook output priority 0; policy drop;
//!         ip daddr 127.0.0.0/8 accept
//!         ip6 daddr ::1 accept
//!         meta l4proto tcp accept
//!         ct status dnat accept
//!         ip daddr 198.18.0.1 accept
//!         ip6 daddr fc00::1 accept
//!     }
//! }
//! ```
//!
//! A packet that is dropped on its way out is an error of the call that sent it (EPERM), at once. The second chain sees
//! packets after the redirect; `ct status dnat` lets the answers to redirected queries pass, which have other sources.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::netlink::{
    ACK, APPEND, CREATE, REQUEST, attribute, message, nested, number, talk, text,
};
use crate::{ADDRESS_V4, ADDRESS_V6, DNS_PORT};

const TABLE: &str = "kubevpn";
const REDIRECT: &str = "redirect";
const REFUSE: &str = "refuse";

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;

/// Both families.
const INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;

const HOOK_OUTPUT: u32 = 3;
const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_STATUS: u32 = 2;
/// `IPS_DST_NAT`
const TRANSLATED: u32 = 1 << 5;

#[derive(Clone, Copy)]
enum Compare {
    Equal = 0,
    NotEqual = 1,
}

/// Sets the rules of a new network: TCP is redirected to one port of loopback, DNS queries to another.
pub(crate) fn set(tcp: u16, dns: u16) -> io::Result<()> {
    let (messages, acks) = messages(tcp, dns);
    talk(NETLINK_NETFILTER, &messages, acks)
}

/// All messages as one transaction, and the number of acknowledgements.
fn messages(tcp: u16, dns: u16) -> (Vec<u8>, usize) {
    let mut sequence = 0;
    let mut next = |kind, flags, family, resource: u16, attributes: &[u8]| {
        sequence += 1;
        let header = [&[family, 0][..], &resource.to_be_bytes()].concat();
        message(
            kind,
            REQUEST | flags,
            sequence,
            &[&header[..], attributes].concat(),
        )
    };
    let mut all = next(BATCH_BEGIN, 0, 0, SUBSYSTEM, &[]);
    all.extend(next(NEW_TABLE, ACK | CREATE, INET, 0, &text(1, TABLE)));
    let nat = chain(REDIRECT, "nat", PRIORITY_DSTNAT, ACCEPT);
    all.extend(next(NEW_CHAIN, ACK | CREATE, INET, 0, &nat));
    let filter = chain(REFUSE, "filter", PRIORITY_FILTER, DROP);
    all.extend(next(NEW_CHAIN, ACK | CREATE, INET, 0, &filter));
    let mut acks = 3;
    let redirect = redirect_rules(tcp, dns)
        .into_iter()
        .map(|rule| (REDIRECT, rule));
    let refuse = refuse_rules().into_iter().map(|rule| (REFUSE, rule));
    for (chain, expressions) in redirect.chain(refuse) {
        let rule = [
            text(1, TABLE),
            text(2, chain),
            nested(4, &expressions.concat()),
        ]
        .concat();
        all.extend(next(NEW_RULE, ACK | CREATE | APPEND, INET, 0, &rule));
        acks += 1;
    }
    all.extend(next(BATCH_END, 0, 0, SUBSYSTEM, &[]));
    (all, acks)
}

fn chain(name: &str, kind: &str, priority: i32, policy: u32) -> Vec<u8> {
    let hook = [
        number(1, HOOK_OUTPUT),
        attribute(2, &priority.to_be_bytes()),
    ]
    .concat();
    [
        text(1, TABLE),
        text(3, name),
        nested(4, &hook),
        number(5, policy),
        text(7, kind),
    ]
    .concat()
}

/// The expressions of one rule.
type RuleExpressions = Vec<Vec<u8>>;

fn redirect_rules(tcp: u16, dns: u16) -> Vec<RuleExpressions> {
    let port = DNS_PORT.to_be_bytes();
    let own = |mut rule: RuleExpressions| {
        rule.extend([meta(META_L4PROTO), compare(Compare::Equal, &[TCP])]);
        rule.extend([destination_port(), compare(Compare::NotEqual, &port)]);
        rule.push(accept());
        rule
    };
    let [v4, v6] = loopback().map(accepted);
    let [own_v4, own_v6] = own_addresses().map(own);
    let mut questions = protocol(UDP);
    questions.extend([destination_port(), compare(Compare::Equal, &port)]);
    questions.extend(redirect_to(dns));
    let mut rest = protocol(TCP);
    rest.extend(redirect_to(tcp));
    vec![v4, v6, questions, own_v4, own_v6, rest]
}

fn refuse_rules() -> Vec<RuleExpressions> {
    let [v4, v6] = loopback().map(accepted);
    let [own_v4, own_v6] = own_addresses().map(accepted);
    let translated = vec![
        expression("ct", &[number(1, REGISTER), number(2, CT_STATUS)].concat()),
        masked(TRANSLATED),
        compare(Compare::NotEqual, &[0; 4]),
    ];
    vec![
        v4,
        v6,
        accepted(protocol(TCP)),
        accepted(translated),
        own_v4,
        own_v6,
    ]
}

fn loopback() -> [RuleExpressions; 2] {
    let v4 = vec![
        meta(META_NFPROTO),
        compare(Compare::Equal, &[NFPROTO_IPV4]),
        payload(NETWORK_HEADER, 16, 1),
        compare(Compare::Equal, &[127]),
    ];
    [v4, to_v6(std::net::Ipv6Addr::LOCALHOST)]
}

fn own_addresses() -> [RuleExpressions; 2] {
    let v4 = vec![
        meta(META_NFPROTO),
        compare(Compare::Equal, &[NFPROTO_IPV4]),
        payload(NETWORK_HEADER, 16, 4),
        compare(Compare::Equal, &ADDRESS_V4.octets()),
    ];
    [v4, to_v6(ADDRESS_V6)]
}

fn to_v6(ip: std::net::Ipv6Addr) -> RuleExpressions {
    vec![
        meta(META_NFPROTO),
        compare(Compare::Equal, &[NFPROTO_IPV6]),
        payload(NETWORK_HEADER, 24, 16),
        compare(Compare::Equal, &ip.octets()),
    ]
}

fn protocol(protocol: u8) -> RuleExpressions {
    vec![meta(META_L4PROTO), compare(Compare::Equal, &[protocol])]
}

fn accepted(mut rule: RuleExpressions) -> RuleExpressions {
    rule.push(accept());
    rule
}

// === expressions ===

fn expression(name: &str, attributes: &[u8]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, attributes)].concat())
}

fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(1, REGISTER), number(2, key)].concat())
}

fn payload(base: u32, offset: u32, length: u32) -> Vec<u8> {
    let attributes = [
        number(1, REGISTER),
        number(2, base),
        number(3, offset),
        number(4, length),
    ];
    expression("payload", &attributes.concat())
}

fn destination_port() -> Vec<u8> {
    payload(TRANSPORT_HEADER, 2, 2)
}

fn compare(how: Compare, value: &[u8]) -> Vec<u8> {
    let attributes = [
        number(1, REGISTER),
        number(2, how as u32),
        nested(3, &attribute(1, value)),
    ];
    expression("cmp", &attributes.concat())
}

fn masked(mask: u32) -> Vec<u8> {
    let attributes = [
        number(1, REGISTER),
        number(2, REGISTER),
        number(3, 4),
        nested(4, &attribute(1, &mask.to_ne_bytes())),
        nested(5, &attribute(1, &[0; 4])),
    ];
    expression("bitwise", &attributes.concat())
}

fn accept() -> Vec<u8> {
    let verdict = nested(2, &nested(2, &number(1, ACCEPT)));
    expression(
        "immediate",
        &[number(1, VERDICT_REGISTER), verdict].concat(),
    )
}

fn redirect_to(port: u16) -> [Vec<u8>; 2] {
    let value = nested(2, &attribute(1, &port.to_be_bytes()));
    [
        expression("immediate", &[number(1, REGISTER), value].concat()),
        expression("redir", &number(1, REGISTER)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These bytes were accepted by Linux 6.18. After a change, run `integration/scenarios/src/scenarios/isolated.rs`.
    #[test]
    fn one_transaction() {
        let (bytes, acks) = messages(15001, 15053);
        assert_eq!((bytes.len(), acks), (3752, 15));
        let kind = |at: usize| u16::from_ne_bytes([bytes[at + 4], bytes[at + 5]]);
        let (mut at, mut kinds) = (0, Vec::new());
        while at < bytes.len() {
            kinds.push(kind(at));
            let length = bytes[at..].first_chunk().map(|l| u32::from_ne_bytes(*l));
            at += length.unwrap() as usize;
        }
        assert_eq!(at, bytes.len());
        let [first, table, one, two, rules @ .., last] = &kinds[..] else {
            panic!("{kinds:?}");
        };
        assert_eq!([first, last], [&BATCH_BEGIN, &BATCH_END]);
        assert_eq!([table, one, two], [&NEW_TABLE, &NEW_CHAIN, &NEW_CHAIN]);
        assert!(rules.len() == 12 && rules.iter().all(|kind| *kind == NEW_RULE));
    }
}
