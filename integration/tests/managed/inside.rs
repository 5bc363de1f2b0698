//! What is seen of a proxy: the page, the metrics and `status` say the same, and the metrics are the documented ones.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use kubevpn_scenarios::managed::{connection, id_of, listener};
use kubevpn_scenarios::{Curl, Socks};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{Rig, eventually, works};

/// A daemon's connection with a SOCKS and an admin listener: its ID, and where these are.
async fn open(rig: &Rig) -> (String, SocketAddr, SocketAddr) {
    let words = ["--socks-listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let said = rig.managed.connect(&rig.kubeconfig, &words).await.unwrap();
    let id = id_of(&said.with(0, &[]).unwrap()).unwrap();
    let status = rig.managed.status().await.unwrap();
    let at = |protocol| listener(&status, &id, protocol).unwrap();
    (id.clone(), at("socks"), at("admin"))
}

async fn get(url: &str, more: &[&str]) -> String {
    let words = [&["--noproxy", "*", url], more].concat();
    Curl::run(&words).await.unwrap().body
}

/// Each sample of a scrape, by its name and labels.
fn samples(scraped: &str) -> BTreeMap<String, f64> {
    let lines = scraped.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    lines.map(sample).collect()
}

/// The sum over the samples of one name.
fn sum(samples: &BTreeMap<String, f64>, name: &str) -> u64 {
    let of_name = |key: &str| key.split('{').next() == Some(name);
    let found: Vec<_> = samples.iter().filter(|(key, _)| of_name(key)).collect();
    assert!(!found.is_empty(), "no {name}");
    found.into_iter().map(|(_, value)| value).sum::<f64>() as u64
}

#[tokio::test]
async fn page_metrics_and_status_say_the_same() {
    let rig = Rig::start().await;
    let (id, socks, admin) = open(&rig).await;
    for _ in 0..3 {
        works(socks).await;
    }
    assert!(Socks::connect(socks, "productpage", 81).await.is_err());
    let mut held = Socks::connect(socks, "multi", 7007).await.unwrap();
    held.write_all(b"still here").await.unwrap();
    held.read_exact(&mut [0; 10]).await.unwrap();

    // The page's URL with its token is told to this user alone.
    let socket = rig.managed.home().join("daemon.sock");
    let api = format!("http://x/v1/connections/{id}");
    let by_socket = ["--unix-socket", socket.to_str().unwrap()];
    let pages: Vec<String> =
        serde_json::from_str(&get(&format!("{api}/pages"), &by_socket).await).unwrap();
    let jar = rig.managed.home().join("cookies");
    let jar = jar.to_str().unwrap();
    let page = async || {
        get(&pages[0], &["--cookie-jar", jar]).await;
        get(&format!("http://{admin}/"), &["--cookie", jar]).await
    };

    // Once the ends of the first ones have been seen.
    let settled = async {
        loop {
            let status = rig.managed.status().await.unwrap();
            let traffic = connection(&status, &id).unwrap()["Traffic"].clone();
            let scraped = samples(&get(&format!("http://{admin}/metrics"), &[]).await);
            let inside: Value =
                serde_json::from_str(&get(&format!("{api}/inside"), &by_socket).await).unwrap();
            let page = page().await;
            let totals = &inside["totals"];
            let rows = [
                ("OpenConnections", "kubevpn_connections_open", "open"),
                ("TotalConnections", "kubevpn_connections_total", "connected"),
                ("RefusedConnections", "kubevpn_refusals_total", "refused"),
            ];
            if traffic["OpenConnections"] == 1 && totals["open"] == 1 {
                for (in_status, metric, in_page) in rows {
                    let n = traffic[in_status].as_u64().unwrap();
                    assert_eq!(sum(&scraped, metric), n, "{metric}");
                    assert_eq!(totals[in_page], n, "{in_page}");
                    let shown = format!("<dd id=\"{in_page}\">{n}</dd>");
                    assert!(page.contains(&shown), "{shown} is not in {page}");
                }
                for (in_status, direction, total) in
                    [("BytesUp", "up", "up"), ("BytesDown", "down", "down")]
                {
                    let n = traffic[in_status].as_u64().unwrap();
                    let sample = format!("kubevpn_bytes_total{{direction=\"{direction}\"}}");
                    assert_eq!(scraped[&sample] as u64, n, "{sample}");
                    assert_eq!(totals[total], n);
                }
                let sessions = connection(&status, &id).unwrap()["Sessions"]
                    .as_u64()
                    .unwrap();
                assert_eq!(sum(&scraped, "kubevpn_sessions_open"), sessions);
                assert_eq!(
                    inside["sessions"].as_array().unwrap().len() as u64,
                    sessions
                );
                let refused = &inside["refusals"][0];
                assert_eq!(refused["refusal"], "no_such_port");
                assert!(page.contains("productpage:81"), "{page}");
                return inside;
            }
        }
    };
    let inside = eventually("one connection is open", settled).await;
    let live = &inside["connections"][0];
    assert_eq!(live["target"], "multi:7007");
    assert_eq!(live["up"], 10);
    assert_eq!(live["down"], 10);
    let own = held.local_addr().unwrap().to_string();
    assert_eq!(live["client"], own);

    // Cut from the page, with what the page has.
    let text = page().await;
    let csrf = text.split("data-csrf=\"").nth(1).unwrap();
    let csrf = csrf.split('"').next().unwrap();
    let form = format!("id={}&csrf={csrf}", live["id"]);
    let origin = format!("Origin: http://{admin}");
    let cut = ["--cookie", jar, "--header", &origin, "--data", &form];
    get(&format!("http://{admin}/cut"), &cut).await;
    let error = held.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    std::fs::remove_file(jar).unwrap();
    rig.managed.quit().await.unwrap();
}

/// A row of a table of docs/metrics.md: its cells, without the marks of code.
fn rows(page: &str, begin: &str) -> Vec<Vec<String>> {
    let lines = page.lines().skip_while(|line| !line.starts_with(begin));
    let lines = lines.skip(2).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().replace('`', "")).collect()
    };
    lines.map(cells).collect()
}

#[tokio::test]
async fn metrics_are_those_of_the_page_of_documentation() {
    let rig = Rig::start().await;
    let (_, socks, admin) = open(&rig).await;
    works(socks).await;
    let url = format!("http://{admin}/metrics");
    let scraped = get(&url, &[]).await;
    let page = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/metrics.md"
    ))
    .unwrap();
    let documented = rows(&page, "| metric |");
    // Names, kinds and help, in the same order; one is there only where credentials say when they end.
    let said: Vec<_> = scraped
        .lines()
        .filter(|line| line.starts_with("# "))
        .collect();
    let optional = "kubevpn_credentials_expiry_timestamp_seconds";
    let mut expected = Vec::new();
    for row in &documented {
        let [name, kind, _, help] = &row[..] else {
            panic!("{row:?}");
        };
        if name != optional || scraped.contains(optional) {
            expected.push(format!("# HELP {name} {help}"));
            expected.push(format!("# TYPE {name} {kind}"));
        }
    }
    assert_eq!(said, expected);
    // Labels, and their values.
    let values = rows(&page, "| label |");
    let classes = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/proxy-out.md"
    ))
    .unwrap();
    for sample in samples(&scraped).keys() {
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let histogram = ["_bucket", "_sum", "_count"];
        let row = documented.iter().find(|row| {
            let mut names = histogram.iter().map(|end| format!("{}{end}", row[0]));
            row[0] == name || (row[1] == "histogram" && names.any(|n| n == name))
        });
        let row = row.unwrap_or_else(|| panic!("{name} is not documented"));
        let labels = labels.trim_end_matches('}').split("\",");
        let labels = labels.filter(|label| !label.is_empty());
        let mut found = BTreeSet::new();
        for label in labels {
            let (key, value) = label.split_once("=\"").unwrap();
            let value = value.trim_end_matches('"');
            if key == "le" || key == "version" {
                found.extend((key == "version").then(|| key.to_owned()));
                continue;
            }
            found.insert(key.to_owned());
            let of_label = values.iter().find(|row| row[0] == key).unwrap();
            let words = of_label[1].split([' ', ',', ';']);
            let known = words.clone().any(|word| word == value);
            let class = key == "refusal" && classes.contains(&format!("`{value}`"));
            assert!(known || class, "{key} of {name} may not be {value}");
        }
        let documented: BTreeSet<_> = row[2]
            .split(", ")
            .filter(|label| !label.is_empty())
            .map(str::to_owned)
            .collect();
        assert_eq!(found, documented, "labels of {name}");
    }
    // The other format, for whoever asks for it.
    let accept = [
        "--header",
        "Accept: application/openmetrics-text;version=1.0.0",
    ];
    let scraped = get(&url, &accept).await;
    assert!(scraped.ends_with("# EOF\n"), "{scraped}");
    rig.managed.quit().await.unwrap();
}
