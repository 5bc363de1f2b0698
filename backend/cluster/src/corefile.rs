//! CoreDNS's configuration: a pure parser of a Corefile.
//!
//! Source: coredns.io manual "Configuration" for the syntax, the plugin `kubernetes` for its line.

use kubevpn_target::Name;

use crate::name::before;

/// The zones of the plugin `kubernetes` without reverse zones: the first is the cluster's domain.
///
/// A plugin without zones has those of its server block. Lines that cannot be parsed are skipped.
pub(crate) fn cluster_zones(corefile: &str) -> Vec<Name> {
    let mut zones = Vec::new();
    // The names of the current server block, and the depth of braces.
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

/// Plugins that have no names of their own and do not forward a query before `kubernetes` has seen it. The last ones come
/// after `kubernetes`, which decides finally for its zones.
const WITHOUT_NAMES: [&str; 19] = [
    "bind",
    "bufsize",
    "cache",
    "cancel",
    "debug",
    "errors",
    "health",
    "log",
    "loadbalance",
    "metadata",
    "nsid",
    "pprof",
    "prometheus",
    "ready",
    "reload",
    "trace",
    "forward",
    "loop",
    "whoami",
];

/// Lines of the plugin `kubernetes` that add no names beyond those of objects.
const OF_OBJECTS: [&str; 7] = [
    "pods",
    "ttl",
    "resyncperiod",
    "namespaces",
    "labels",
    "namespace_labels",
    "ignore",
];

/// A server block, or a snippet.
#[derive(Default)]
struct Block<'a> {
    keys: Vec<&'a str>,
    plugins: Vec<Plugin<'a>>,
}

/// Its name and arguments, and the lines in its braces.
struct Plugin<'a> {
    words: Vec<&'a str>,
    lines: Vec<Vec<&'a str>>,
}

fn blocks(corefile: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut block = Block::default();
    let mut depth = 0_usize;
    for line in corefile.lines() {
        let words = || line.split_whitespace().take_while(|w| !w.starts_with('#'));
        let named: Vec<_> = words().filter(|w| !matches!(*w, "{" | "}")).collect();
        match (depth, block.plugins.last_mut()) {
            (_, _) if named.is_empty() => {}
            (0, _) => block.keys.extend(named),
            (1, _) | (_, None) => block.plugins.push(Plugin {
                words: named,
                lines: Vec::new(),
            }),
            (_, Some(plugin)) => plugin.lines.push(named),
        }
        for word in words() {
            match word {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                _ => continue,
            }
            if depth == 0 {
                blocks.push(std::mem::take(&mut block));
            }
        }
    }
    // A block without a closing brace is not interpreted.
    if depth > 0 {
        return Vec::new();
    }
    blocks.push(block);
    blocks
}

/// Whether CoreDNS, by this configuration, may know names under the domain that no object has: from another plugin, from
/// `kubernetes` itself, or from another server block. An unknown plugin counts as one that may.
pub(crate) fn adds_names(corefile: &str, domain: &Name) -> bool {
    let blocks = blocks(corefile);
    let mut blocks = blocks
        .iter()
        .filter(|b| !b.keys.is_empty() || !b.plugins.is_empty());
    let (Some(block), None) = (blocks.next(), blocks.next()) else {
        return true;
    };
    let of_kubernetes = |p: &&Plugin<'_>| p.words.first() == Some(&"kubernetes");
    if block.plugins.iter().filter(of_kubernetes).count() != 1 {
        return true;
    }
    block.plugins.iter().any(|plugin| match *plugin.words {
        ["kubernetes", ref zones @ ..] => {
            let zones = if zones.is_empty() {
                &block.keys[..]
            } else {
                zones
            };
            let has_domain = zones
                .iter()
                .filter_map(|key| zone(key))
                .any(|z| is_same(&z, domain));
            !has_domain || plugin.lines.iter().any(|line| !is_of_objects(line))
        }
        // A separate hosts file is not read here. The machine's own has no names of a cluster.
        ["hosts"] => plugin.lines.iter().any(|line| match **line {
            ["fallthrough" | "no_reverse" | "reload" | "ttl", ..] => false,
            [_, ref names @ ..] => names.iter().any(|name| is_under(name, domain)),
            [] => false,
        }),
        [name, ..] => !WITHOUT_NAMES.contains(&name),
        [] => true,
    })
}

fn is_of_objects(line: &[&str]) -> bool {
    match *line {
        ["fallthrough", ref zones @ ..] => {
            !zones.is_empty() && zones.iter().all(|zone| zone.ends_with(".arpa"))
        }
        [option, ..] => OF_OBJECTS.contains(&option),
        [] => true,
    }
}

fn is_same(one: &Name, other: &Name) -> bool {
    one.as_str() == other.as_str()
}

fn is_under(name: &str, domain: &Name) -> bool {
    let name = Name::parse(name);
    name.map_or(true, |name| {
        before(name.as_str(), domain.as_str()).is_some()
    })
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
    use crate::Domain;

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
    fn what_the_dns_may_know_beyond_the_objects() {
        let adds = |corefile: &str| adds_names(corefile, &Domain::usual());
        let with = |plugins: &str, options: &str| {
            format!(
                ".:53 {{\n  errors\n  health {{\n    lameduck 5s\n  }}\n  ready\n  kubernetes cluster.local in-addr.arpa ip6.arpa {{\n\
                 \u{20}   pods insecure\n    fallthrough in-addr.arpa ip6.arpa\n    ttl 30\n{options}\n  }}\n  prometheus :9153\n{plugins}\n\
                 \u{20} forward . /etc/resolv.conf {{\n    max_concurrent 1000\n  }}\n  cache 30 {{\n    disable success cluster.local\n  }}\n\
                 \u{20} loop\n  reload\n  loadbalance\n}}\n"
            )
        };
        for (plugins, options) in [
            ("", ""),
            ("log", "namespaces shop"),
            ("hosts {\n  198.51.100.80 x.example\n  fallthrough\n}", ""),
            ("# rewrite name a b", ""),
        ] {
            let corefile = with(plugins, options);
            assert!(!adds(&corefile), "{corefile}");
        }
        for (plugins, options) in [
            (
                "rewrite name old.shop.svc.cluster.local web.shop.svc.cluster.local",
                "",
            ),
            ("template IN A cluster.local {\n  answer x\n}", ""),
            ("import custom/*.override", ""),
            ("hosts {\n  10.0.0.1 db.cluster.local\n}", ""),
            ("hosts /etc/coredns/NodeHosts {\n  ttl 60\n}", ""),
            ("file db.cluster.local cluster.local", ""),
            ("autopath @kubernetes", ""),
            ("kubernetes other.example", ""),
            ("", "fallthrough"),
            ("", "endpoint_pod_names"),
            ("", "multicluster clusterset.local"),
        ] {
            let corefile = with(plugins, options);
            assert!(adds(&corefile), "{corefile}");
        }
        let usual = with("", "");
        for corefile in [
            "",
            "}}}\n{ {",
            ". {\n  kubernetes other.example\n}",
            ". {\n  forward . 10.0.0.1\n}",
            &format!("{usual}svc.cluster.local:53 {{\n  forward . 10.0.0.1\n}}"),
            &format!("(snippet) {{\n  errors\n}}\n{usual}"),
            &format!("{usual}import more"),
            usual.trim_end().trim_end_matches('}'),
        ] {
            assert!(adds(corefile), "{corefile}");
        }
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
