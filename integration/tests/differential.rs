//! Does a name mean to us what it means to a Pod? Generated names, our answer beside that of the cluster's CoreDNS.
//!
//! Ours is what the objects say, before any DNS is asked: the ClusterIPs of an ordinary Service, the addresses that
//! a headless Service, an endpoint's or a Pod's name leads to, or where an ExternalName points. CoreDNS is asked over
//! TCP through kubectl's port-forward, name by name as a Pod's resolver would. What differs must be in [`KNOWN`], and
//! what is in there must still differ.

mod dns;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use kubevpn_client::{Env, KubeconfigArgs, Options, build, load};
use kubevpn_stack::{Answer, Candidates, Cluster, ClusterSettings};
use kubevpn_target::{Host, Refusal};
use lab::Lab;

use self::dns::Dns;
use self::names::{Case, Form, Objects};

/// How many names are made up, beside one of each kind.
const NAMES: usize = 300;

/// Repeats a run: the seed that it printed.
const SEED: &str = "KUBEVPN_SEED";

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meaning {
    Addresses(BTreeSet<IpAddr>),
    Alias(String),
    Nothing,
    /// A refusal other than that there is nothing.
    Refused(Refusal),
}

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(all) => {
                let all: Vec<_> = all.iter().map(IpAddr::to_string).collect();
                f.write_str(&all.join(" "))
            }
            Self::Alias(name) => write!(f, "another name for {name}"),
            Self::Nothing => f.write_str("nothing"),
            Self::Refused(refusal) => f.write_str(refusal.as_str()),
        }
    }
}

/// A way in which we differ from CoreDNS, and why that is right.
struct Difference {
    what: &'static str,
    why: &'static str,
    is: fn(&Case, &Meaning, &Meaning) -> bool,
}

const KNOWN: &[Difference] = &[
    Difference {
        what: "a Pod by its name",
        why: "<pod-name>.<namespace>.pod is our own form, for who may see Pods alone; no DNS has it",
        is: |case, ours, theirs| {
            case.form == Form::PodName
                && *theirs == Meaning::Nothing
                && matches!(ours, Meaning::Addresses(_))
        },
    },
    Difference {
        what: "a dashed address that no Pod has",
        why: "CoreDNS (`pods insecure`) says the address back without looking for a Pod; there is nothing to dial",
        is: |case, ours, theirs| {
            case.form == Form::PodAddress
                && *ours == Meaning::Nothing
                && matches!(theirs, Meaning::Addresses(_))
        },
    },
    Difference {
        what: "a Service without a TCP port",
        why: "its ClusterIP has a name, and nothing that port-forward could carry",
        is: |case, ours, theirs| {
            case.service == "udp"
                && *ours == Meaning::Refused(Refusal::NoSuchPort)
                && matches!(theirs, Meaning::Addresses(_))
        },
    },
    Difference {
        what: "a port's name before a Service's (_http._tcp.web)",
        why: "CoreDNS answers questions for addresses with those of the SRV record's targets; no object has such a \
              name, so it is asked of the DNS, and what that says is dialled",
        is: |case, ours, theirs| {
            case.form == Form::Srv
                && *ours == Meaning::Nothing
                && matches!(theirs, Meaning::Addresses(_))
        },
    },
];

pub(crate) async fn same_as_the_clusters_dns() -> anyhow::Result<()> {
    let lab = Lab::attach().await?;
    let mut objects = Objects::new();
    let compared = async {
        objects.create(&lab).await?;
        compare(&lab, &objects).await
    };
    let compared = compared.await;
    objects.delete(&lab).await?;
    compared
}

#[expect(clippy::print_stdout, reason = "the seed, and what was compared")]
async fn compare(lab: &Lab, objects: &Objects) -> anyhow::Result<()> {
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().with_context(|| format!("{SEED}={seed}"))?,
        Err(_) => fastrand::u64(..),
    };
    println!("{SEED}={seed}");
    let cluster = cluster(lab, objects)?;
    let mut dns = Dns::connect(lab).await?;
    dns.wait_for(&objects.last()).await?;
    let addresses = cluster_ips(lab).await?;
    let mut seen: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let (mut unlisted, mut same, mut found) = (Vec::new(), 0, 0);
    let cases = objects.cases(seed, NAMES);
    for case in &cases {
        let ours = ours(&cluster, &addresses, case).await?;
        let theirs = dns.resolve(&case.name, &objects.here).await?;
        if ours == theirs {
            same += 1;
            found += usize::from(ours != Meaning::Nothing);
            continue;
        }
        let line = format!("{}: {ours} by us, {theirs} by CoreDNS", case.name);
        match KNOWN.iter().find(|known| (known.is)(case, &ours, &theirs)) {
            Some(known) => seen.entry(known.what).or_default().push(line),
            None => unlisted.push(format!("{line} ({:?})", case.form)),
        }
    }
    println!(
        "{} names: {same} mean the same ({found} of them something)",
        cases.len()
    );
    for known in KNOWN {
        let lines = seen.get(known.what).map_or(&[][..], Vec::as_slice);
        println!("{}: {} differ, for {}", known.what, lines.len(), known.why);
    }
    ensure!(
        unlisted.is_empty(),
        "differences that nobody explained:\n{}",
        unlisted.join("\n")
    );
    let gone: Vec<_> = KNOWN
        .iter()
        .map(|k| k.what)
        .filter(|what| !seen.contains_key(what))
        .collect();
    ensure!(
        gone.is_empty(),
        "these no longer differ: {}",
        gone.join(", ")
    );
    ensure!(
        found > NAMES / 4,
        "only {found} names mean anything: that compares little"
    );
    Ok(())
}

fn cluster(lab: &Lab, objects: &Objects) -> anyhow::Result<Cluster> {
    let kubeconfig = lab.kubeconfig().into_os_string();
    let args = KubeconfigArgs {
        kubeconfig: Some(kubeconfig.into()),
        ..KubeconfigArgs::default()
    };
    let config = load(&args, &Env::of_process())?.config;
    let client = build(config, &Options::new("kubevpn-differential"))?;
    let settings = ClusterSettings {
        namespace: objects.here.clone(),
        ..ClusterSettings::default()
    };
    Ok(Cluster::new(client, settings))
}

/// Of every Service, by `namespace/name`.
async fn cluster_ips(lab: &Lab) -> anyhow::Result<BTreeMap<String, BTreeSet<IpAddr>>> {
    let list = lab
        .kubectl(&["get", "services", "--all-namespaces", "-o", "json"])
        .await?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let services = list["items"].as_array().context("no items")?.iter();
    let one = |service: &serde_json::Value| {
        let meta = &service["metadata"];
        let name = format!("{}/{}", meta["namespace"].as_str()?, meta["name"].as_str()?);
        let ips = service["spec"]["clusterIPs"].as_array()?.iter();
        Some((
            name,
            ips.filter_map(|ip| ip.as_str()?.parse().ok()).collect(),
        ))
    };
    Ok(services.filter_map(one).collect())
}

async fn ours(
    cluster: &Cluster,
    addresses: &BTreeMap<String, BTreeSet<IpAddr>>,
    case: &Case,
) -> anyhow::Result<Meaning> {
    let host = Host::parse(&case.name).with_context(|| case.name.clone())?;
    let of_service = |service: &str| {
        let ips = addresses.get(service).cloned().unwrap_or_default();
        (!ips.is_empty()).then_some(Meaning::Addresses(ips))
    };
    Ok(match cluster.lookup(&host, None).await {
        Ok(Answer::Pods(candidates)) => {
            // An endpoint's or a Pod's own name is never that of the Service's address.
            let service = candidates.service.as_deref();
            let service =
                service.filter(|service| candidates.asked == format!("service {service}"));
            service
                .and_then(of_service)
                .unwrap_or_else(|| usable(&candidates))
        }
        Ok(Answer::ApiServer) => of_service("default/kubernetes").context("no such Service")?,
        Ok(Answer::Outside(outside)) => match outside.learned_from {
            Some(_) => Meaning::Alias(outside.host.to_string().trim_end_matches('.').to_owned()),
            None => Meaning::Nothing,
        },
        Ok(Answer::Dns(_)) => Meaning::Nothing,
        Err(error) if error.refusal() == Refusal::NameNotFound => Meaning::Nothing,
        Err(error) => Meaning::Refused(error.refusal()),
    })
}

/// The addresses that may be dialled, be they Pods' or not.
fn usable(candidates: &Candidates) -> Meaning {
    let pods = candidates
        .endpoints
        .iter()
        .map(|e| (e.readiness, e.addresses.clone()));
    let strays = candidates.strays.iter();
    let strays = strays.map(|s| {
        (
            s.readiness,
            s.address.parse::<IpAddr>().into_iter().collect(),
        )
    });
    let all: Vec<(_, Vec<IpAddr>)> = pods.chain(strays).collect();
    let best = all.iter().map(|(readiness, _)| *readiness).min();
    let best = all
        .into_iter()
        .filter(|(readiness, _)| Some(*readiness) == best);
    let addresses: BTreeSet<_> = best.flat_map(|(_, addresses)| addresses).collect();
    match candidates.usable() {
        Err(error) if error.refusal() == Refusal::NotReady => Meaning::Nothing,
        _ if addresses.is_empty() => Meaning::Nothing,
        _ => Meaning::Addresses(addresses),
    }
}
