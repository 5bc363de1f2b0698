//! What CoreDNS says in its own configuration: pure reading of a Corefile.
//!
//! Source: coredns.io manual "Configuration" for the syntax, the plugin `kubernetes` for its line.

use kubevpn_target::Name;

/// The zones that the plugin `kubernetes` answers for, less the reverse ones: the first is the cluster's domain.
///
/// A plugin that names none has those of its server block. What cannot be read is passed over.
pub(crate) fn cluster_zones(corefile: &str) -> Vec<Name> {
    let mut zones = Vec::new();
    // The names of the server block we are in, and how deep in braces.
    let mut block: Vec<&str> = Vec::new();
    let mut depth = 0_usize;
    for line in corefile.lines() {
        let words = || line.split_whitespace().take_while(|w| !w.starts_with('#'));
        let names = || words().filter(|w| !matches!(*w, "{" | "}"));
        match depth {
            0 => block.extend(names()),
            1 if words().next() == Some("kubernetes") => {
                let mut named = names().skip(1).peekable();
                match named.peek() {
                    Some(_) => zones.extend(named.filter_map(zone)),
                    None => zones.extend(block.iter().filter_map(|key| zone(key))),
                }
            }
            _ => {}
        }
        for word in words() {
            match word {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                _ => continue,
            }
            if depth == 0 {
                block.clear();
            }
        }
    }
    zones
}

/// `cluster.local`, `dns://cluster.local:53`, `a.example,`; not the root, a network or a reverse zone.
fn zone(key: &str) -> Option<Name> {
    let key = key.trim_end_matches(',');
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let key = key.split(':').next()?;
    let name = Name::parse(key).ok()?;
    (!name.as_str().ends_with(".arpa")).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(corefile: &str) -> Vec<String> {
        let zones = cluster_zones(corefile);
        zones.iter().map(Name::to_string).collect()
    }

    #[test]
    fn as_kubeadm_writes_it() {
        let corefile = "
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes corp.example in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30
}";
        assert_eq!(zones(corefile), ["corp.example"]);
    }

    #[test]
    fn other_ways_to_write_it() {
        // More than one; on one line; with comments.
        assert_eq!(
            zones(". {\nkubernetes Cluster.Local. corp.example # kubernetes no.example\n}"),
            ["cluster.local.", "corp.example"]
        );
        // The zones of the server block, and those of the block alone.
        assert_eq!(
            zones("a.example:53, dns://b.example:1053 {\n kubernetes {\n ttl 5\n }\n}\n. {\n}"),
            ["a.example", "b.example"]
        );
        assert_eq!(
            zones("stub.example:53 {\n forward . 10.0.0.1\n}\ncluster.local {\n kubernetes\n}"),
            ["cluster.local"]
        );
    }

    #[test]
    fn what_says_nothing() {
        for corefile in [
            "",
            "}}}\n{ { kubernetes x.example",
            "# kubernetes a.example",
            ". {\n#kubernetes a.example\n}",
            ". {\n  hosts {\n    kubernetes a.example\n  }\n}",
            ".:53 {\n  kubernetes\n}",
            ". {\n  kubernetes 10.0.0.0/24 in-addr.arpa {$DOMAIN}\n}",
        ] {
            assert!(zones(corefile).is_empty(), "{corefile}");
        }
    }
}
