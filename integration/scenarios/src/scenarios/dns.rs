//! The DNS listener, asked by dig.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use tokio::net::UdpSocket;
use tokio::process::Command;

use super::scenario;
use crate::cluster::{client, cluster_ips, pod_ips};
use crate::proxy::PATIENCE;
use crate::{Context, Scenario};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("dns", names_and_addresses_over_udp_and_tcp, One),
        scenario!("dns", agrees_with_the_clusters_own, One),
        scenario!("dns", a_flood_of_garbage_leaves_it_answering, One),
    ]
}

/// What dig was told: the code, and the records without their lifetimes, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DigAnswer {
    status: String,
    answers: BTreeSet<String>,
    /// Whether a SOA says how long "no" lasts.
    soa: bool,
}

impl DigAnswer {
    pub(super) fn is(&self, status: &str, answers: &[&str]) -> bool {
        let ends = |answer: &&str| self.answers.iter().any(|a| a.ends_with(*answer));
        self.status == status && self.answers.len() == answers.len() && answers.iter().all(ends)
    }
}

/// Asks all the questions, each `NAME TYPE`, one after the other.
pub(super) async fn dig(
    server: SocketAddr,
    how: &[&str],
    questions: &[String],
) -> anyhow::Result<Vec<DigAnswer>> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("questions");
    std::fs::write(&file, questions.join("\n"))?;
    let mut command = Command::new("dig");
    command
        .arg(format!("@{}", server.ip()))
        .args(["-p", &server.port().to_string(), "-f"])
        .arg(&file)
        .args(["+noall", "+comments", "+answer", "+authority", "+nocookie"])
        .args(["+time=5", "+tries=3"])
        .args(how)
        .env("HOME", dir.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command
        .output()
        .await
        .context("starting dig: is it installed?")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let told = read(&text);
    anyhow::ensure!(
        told.len() == questions.len(),
        "{} answers to {} questions; dig says: {text}{}",
        told.len(),
        questions.len(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(told)
}

fn read(text: &str) -> Vec<DigAnswer> {
    let mut all: Vec<DigAnswer> = Vec::new();
    let mut in_answer = false;
    for line in text.lines() {
        if line.starts_with(";; ->>HEADER<<-") {
            let status = line
                .split("status: ")
                .nth(1)
                .and_then(|s| s.split(',').next());
            all.push(DigAnswer {
                status: status.unwrap_or("?").into(),
                answers: BTreeSet::new(),
                soa: false,
            });
        } else if line.starts_with(";;") {
            in_answer = line.starts_with(";; ANSWER");
        } else if let Some(told) = all.last_mut()
            && !line.is_empty()
            && !line.starts_with(';')
        {
            let words: Vec<_> = line.split_whitespace().collect();
            let [name, _ttl, _class, rest @ ..] = &words[..] else {
                continue;
            };
            match in_answer {
                true => drop(
                    told.answers
                        .insert(format!("{name} {}", rest.join(" ")).to_lowercase()),
                ),
                false => told.soa |= rest.first() == Some(&"SOA"),
            }
        }
    }
    all
}

async fn names_and_addresses_over_udp_and_tcp(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let api = client(&kubeconfig).await?;
    let ip = cluster_ips(&api, "default", "productpage")
        .await?
        .swap_remove(0);
    let db = pod_ips(&api, "default", "db").await?;
    let mut proxy = cx
        .proxy(&kubeconfig, &["--listen-dns", "127.0.0.1:0"])
        .await?;
    let server = proxy.dns().await?;
    let reverse: Vec<_> = ip.split('.').rev().collect();
    let domain = "svc.cluster.local.";
    let db: Vec<&str> = db.iter().map(String::as_str).collect();
    let expected: Vec<(String, &str, Vec<&str>)> = vec![
        (
            format!("productpage.default.{domain} A"),
            "NOERROR",
            vec![ip.as_str()],
        ),
        (
            format!("ProductPage.Default.{domain} A"),
            "NOERROR",
            vec![ip.as_str()],
        ),
        (
            format!("productpage.default.{domain} AAAA"),
            "NOERROR",
            vec![],
        ),
        (
            format!("productpage.default.{domain} TXT"),
            "NOERROR",
            vec![],
        ),
        (format!("db.default.{domain} A"), "NOERROR", db),
        (
            format!("_http._tcp.productpage.default.{domain} SRV"),
            "NOERROR",
            vec!["9080 productpage.default.svc.cluster.local."],
        ),
        (
            format!("{}.in-addr.arpa. PTR", reverse.join(".")),
            "NOERROR",
            vec!["productpage.default.svc.cluster.local."],
        ),
        (format!("nosuch.default.{domain} A"), "NXDOMAIN", vec![]),
        ("www.example.com. A".into(), "REFUSED", vec![]),
        ("1.2.0.192.in-addr.arpa. PTR".into(), "REFUSED", vec![]),
    ];
    let questions: Vec<_> = expected
        .iter()
        .map(|(question, ..)| question.clone())
        .collect();
    for how in [&[][..], &["+tcp"], &["+noedns"], &["+bufsize=512"]] {
        let told = dig(server, how, &questions).await?;
        for (told, (question, status, answers)) in told.iter().zip(&expected) {
            anyhow::ensure!(
                told.is(status, answers),
                "{question} {how:?}: {told:?}, not {status} {answers:?}\n{}",
                proxy.log()
            );
            let negative = answers.is_empty() && *status != "REFUSED";
            anyhow::ensure!(told.soa == negative, "{question} {how:?}: {told:?}");
        }
    }
    Ok(())
}

/// Some hundred names, of every object there is and of none: dig is told the same by us as by CoreDNS, which it
/// reaches through a forward.
async fn agrees_with_the_clusters_own(cx: Context) -> anyhow::Result<()> {
    const DNS: &str = "kube-dns.kube-system:53";
    let kubeconfig = cx.cluster.kubeconfig();
    let questions = questions(&client(&kubeconfig).await?).await?;
    anyhow::ensure!(questions.len() >= 300, "only {} questions", questions.len());
    let forward = format!("--forward=0:{DNS}");
    let mut proxy = cx
        .proxy(&kubeconfig, &["--listen-dns=127.0.0.1:0", &forward])
        .await?;
    // CoreDNS caches answers for 30 s, NXDOMAIN too, so other scenarios' questions would be answered as things were then.
    // Its cache keeps questions with the CD bit apart, and nothing else asks with it.
    let theirs = dig(proxy.forward(DNS).await?, &["+tcp", "+cd"], &questions).await?;
    let server = proxy.dns().await?;
    let mut differences = String::new();
    for how in [&[][..], &["+tcp"]] {
        let ours = dig(server, how, &questions).await?;
        for ((question, theirs), ours) in questions.iter().zip(&theirs).zip(&ours) {
            if ours != theirs {
                writeln!(
                    differences,
                    "{question} {how:?}:\n  theirs {theirs:?}\n  ours   {ours:?}"
                )?;
            }
        }
    }
    anyhow::ensure!(
        differences.is_empty(),
        "of {}:\n{differences}",
        questions.len()
    );
    Ok(())
}

/// Names of all Services, their ports and endpoints, Pods and addresses, and names that nothing has.
async fn questions(api: &kube::Client) -> anyhow::Result<Vec<String>> {
    let mut all = BTreeSet::new();
    let mut ask = |name: &str, kinds: &[&str]| {
        all.extend(kinds.iter().map(|kind| format!("{name} {kind}")));
    };
    // MX for all the types that no object has. TXT is asked for where CoreDNS agrees with itself: of a namespace it
    // says NODATA for every type but that one.
    const KINDS: [&str; 4] = ["A", "AAAA", "SRV", "MX"];
    let whole = kube::api::ListParams::default();
    for service in Api::<Service>::all(api.clone()).list(&whole).await? {
        let (Some(name), Some(namespace)) = (service.metadata.name, service.metadata.namespace)
        else {
            continue;
        };
        let spec = service.spec.unwrap_or_default();
        // What an alias leads to is CoreDNS's to say, and asked of it.
        let base = format!("{name}.{namespace}.svc.cluster.local.");
        ask(&base, &KINDS);
        ask(&base, &["TXT"]);
        ask(&format!("nobody.{base}"), &["A", "SRV"]);
        ask(&format!("_nothing._tcp.{base}"), &["SRV", "A"]);
        for port in spec.ports.unwrap_or_default() {
            let protocol = port.protocol.unwrap_or_default().to_lowercase();
            if let Some(port) = port.name {
                ask(
                    &format!("_{port}._{protocol}.{base}"),
                    &["SRV", "A", "AAAA"],
                );
            }
        }
        for ip in spec.cluster_ips.unwrap_or_default() {
            if let Some(name) = reverse(&ip) {
                ask(&name, &["PTR"]);
            }
        }
    }
    for slice in Api::<EndpointSlice>::all(api.clone()).list(&whole).await? {
        let labels = slice.metadata.labels.unwrap_or_default();
        let (Some(service), Some(namespace)) = (
            labels.get("kubernetes.io/service-name"),
            slice.metadata.namespace,
        ) else {
            continue;
        };
        for endpoint in slice.endpoints {
            for ip in &endpoint.addresses {
                let label = endpoint.hostname.clone();
                let label = label.unwrap_or_else(|| ip.replace(['.', ':'], "-"));
                let base = format!("{label}.{service}.{namespace}.svc.cluster.local.");
                ask(&base, &["A", "AAAA", "SRV"]);
                if let (Some(_), Some(name)) = (&endpoint.hostname, reverse(ip)) {
                    ask(&name, &["PTR"]);
                }
            }
        }
    }
    for pod in Api::<Pod>::all(api.clone()).list(&whole).await? {
        let ip = pod
            .status
            .and_then(|status| status.pod_ip)
            .unwrap_or_default();
        let namespace = pod.metadata.namespace.unwrap_or_default();
        let label = ip.replace(['.', ':'], "-");
        ask(
            &format!("{label}.{namespace}.pod.cluster.local."),
            &["A", "AAAA"],
        );
    }
    for name in [
        "cluster.local.",
        "svc.cluster.local.",
        "default.svc.cluster.local.",
        "team-a.svc.cluster.local.",
        "nosuch.svc.cluster.local.",
        "default.pod.cluster.local.",
        "x.nosuch.svc.cluster.local.",
        "a.b.c.d.default.svc.cluster.local.",
        "nosuch.cluster.local.",
        "dns-version.cluster.local.",
    ] {
        ask(name, &KINDS);
    }
    ask("dns-version.cluster.local.", &["TXT"]);
    for i in 0..40 {
        ask(
            &format!("nosuch-{i}.default.svc.cluster.local."),
            &["A", "AAAA"],
        );
    }
    Ok(all.into_iter().collect())
}

fn reverse(ip: &str) -> Option<String> {
    match ip.parse().ok()? {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            Some(format!("{d}.{c}.{b}.{a}.in-addr.arpa."))
        }
        IpAddr::V6(ip) => {
            let nibbles = ip.octets().into_iter().rev().flat_map(|b| [b & 15, b >> 4]);
            let nibbles: Vec<_> = nibbles.map(|n| format!("{n:x}")).collect();
            Some(format!("{}.ip6.arpa.", nibbles.join(".")))
        }
    }
}

/// Ten datagrams each millisecond, for three seconds.
const RATE: usize = 10;
const MILLIS: usize = 3000;

/// Random bytes, broken questions, names of others and names that nothing has. dig asks meanwhile, and is answered.
async fn a_flood_of_garbage_leaves_it_answering(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let mut proxy = cx
        .proxy(&kubeconfig, &["--listen-dns", "127.0.0.1:0"])
        .await?;
    let server = proxy.dns().await?;
    let good = ["productpage.default.svc.cluster.local. A".to_owned()];
    let told = dig(server, &[], &good).await?;
    let over = Arc::new(AtomicBool::new(false));
    let flood = tokio::spawn(flood(server, over.clone()));
    let mut answered = 0;
    while !over.load(Ordering::Relaxed) {
        for how in [&[][..], &["+tcp"]] {
            let again = dig(server, how, &good).await?;
            anyhow::ensure!(again == told, "{again:?} in the flood, {told:?} before");
            answered += 1;
        }
    }
    let sent = tokio::time::timeout(PATIENCE, flood).await???;
    anyhow::ensure!(
        sent >= RATE * MILLIS && answered >= 2,
        "{sent} sent, {answered} answered"
    );
    Ok(())
}

async fn flood(server: SocketAddr, over: Arc<AtomicBool>) -> anyhow::Result<usize> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(server).await?;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let question = |label: &str, domain: &str| {
        let mut bytes = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0".to_vec();
        for label in std::iter::once(label).chain(domain.split('.')) {
            bytes.push(u8::try_from(label.len()).unwrap_or_default());
            bytes.extend(label.as_bytes());
        }
        bytes.extend(b"\0\0\x01\0\x01");
        bytes
    };
    let mut sent = 0;
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    for _ in 0..MILLIS {
        tick.tick().await;
        for i in 0..RATE {
            let label = format!("x{:x}", next());
            let bytes = match i {
                0 => question(&label, "example.com"),
                1 if sent % 100 == 1 => question(&label, "default.svc.cluster.local"),
                2 => {
                    let mut bytes = question(&label, "default.svc.cluster.local");
                    let at = usize::try_from(next())? % bytes.len();
                    bytes[at] ^= 1 << (next() % 8);
                    bytes
                }
                3 => {
                    let mut bytes = question(&label, "default.svc.cluster.local");
                    bytes.truncate(usize::try_from(next())? % bytes.len());
                    bytes
                }
                _ => (0..next() % 100).map(|_| next().to_le_bytes()[0]).collect(),
            };
            // A full buffer drops it, as a network would.
            let _ = socket.try_send(&bytes);
            sent += 1;
        }
    }
    over.store(true, Ordering::Relaxed);
    Ok(sent)
}
