//! Metrics for Prometheus. Their names, labels and help are [`METRICS`], which docs/metrics.md repeats. The values of a
//! label are a closed set, and never contain a target or a client.

use std::fmt;

use kubevpn_conn::ENDS;
use kubevpn_stack::Transport;
use kubevpn_target::{Frontend, Refusal};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::journal::{Count2, NamedCounts, ProxyView, SESSION_HEALTHS, Tally, WATCH_HEALTHS};

/// A metric and its documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Name in Prometheus.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Labels of each sample.
    pub labels: &'static [&'static str],
    /// Help text, one sentence.
    pub help: &'static str,
}

const fn metric(
    name: &'static str,
    kind: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind,
        labels,
        help,
    }
}

/// All metrics, in the order of a scrape.
pub const METRICS: [Metric; 18] = [
    metric(
        "kubevpn_build",
        "gauge",
        &["version"],
        "1, with the version that runs",
    ),
    metric(
        "kubevpn_ready",
        "gauge",
        &[],
        "1 while clients are accepted, else 0",
    ),
    metric(
        "kubevpn_connections_open",
        "gauge",
        &["frontend"],
        "Connections that have a stream to their target",
    ),
    metric(
        "kubevpn_connections_total",
        "counter",
        &["frontend"],
        "Connections that got a stream to their target; for HTTP forwarding, requests",
    ),
    metric(
        "kubevpn_connections_ended_total",
        "counter",
        &["frontend", "end"],
        "Connections that ended, by how they did",
    ),
    metric(
        "kubevpn_refusals_total",
        "counter",
        &["frontend", "refusal"],
        "Connections that got no stream, by class",
    ),
    metric(
        "kubevpn_bytes_total",
        "counter",
        &["direction"],
        "Bytes relayed: up to targets, down from them",
    ),
    metric(
        "kubevpn_dial_seconds",
        "histogram",
        &["step"],
        "Time of the steps to a stream: resolve, session, stream, and total of all",
    ),
    metric(
        "kubevpn_sessions_open",
        "gauge",
        &["transport", "health"],
        "Port-forward sessions that are open",
    ),
    metric(
        "kubevpn_session_events_total",
        "counter",
        &["event"],
        "What became of port-forward sessions",
    ),
    metric(
        "kubevpn_streams_open",
        "gauge",
        &[],
        "Streams to Pods, those among them that wait for their end",
    ),
    metric(
        "kubevpn_unread_bytes",
        "gauge",
        &[],
        "Bytes received from Pods that their clients have not read",
    ),
    metric(
        "kubevpn_upgrades_total",
        "counter",
        &[],
        "Port-forward upgrades asked of the API server, refused ones among them",
    ),
    metric(
        "kubevpn_watches",
        "gauge",
        &["health"],
        "Selections of objects that are followed, by how",
    ),
    metric(
        "kubevpn_watch_events_total",
        "counter",
        &["event"],
        "Watches that were lost, and that came back",
    ),
    metric(
        "kubevpn_login_events_total",
        "counter",
        &["event"],
        "What became of the credentials",
    ),
    metric(
        "kubevpn_credentials_expiry_timestamp_seconds",
        "gauge",
        &[],
        "When the credentials in use end, as far as they say; not there where they do not",
    ),
    metric(
        "kubevpn_events_dropped_total",
        "counter",
        &[],
        "Events that a listener did not read fast enough, or could not pass on",
    ),
];

/// Format of a scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetricsFormat {
    /// Prometheus, 0.0.4.
    Text,
    OpenMetrics,
}

impl MetricsFormat {
    /// The format preferred by an `Accept` header.
    pub(crate) fn of(accept: Option<&str>) -> Self {
        match accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All metrics of a proxy, or of a process that has no proxy yet.
pub(crate) fn scrape(view: Option<&ProxyView>, is_ready: bool, format: MetricsFormat) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape {
        samples: samples(view, is_ready),
    }));
    let mut text = String::new();
    let written = match format {
        MetricsFormat::Text => prometheus_text::encode(&mut text, &registry),
        MetricsFormat::OpenMetrics => text::encode(&mut text, &registry),
    };
    // Writing to a string does not fail.
    debug_assert!(written.is_ok());
    text
}

/// Samples of a metric, by the values of its labels.
struct Samples {
    metric: &'static Metric,
    values: Vec<(Vec<&'static str>, MetricValue)>,
}

enum MetricValue {
    Number(u64),
    Seconds(f64),
    Histogram(Histogram),
}

fn samples(view: Option<&ProxyView>, is_ready: bool) -> Vec<Samples> {
    let tally = view.map(ProxyView::tally).unwrap_or_default();
    METRICS
        .iter()
        .map(|metric| Samples {
            metric,
            values: values(metric.name, &tally, is_ready),
        })
        .collect()
}

fn values(metric: &str, tally: &Tally, is_ready: bool) -> Vec<(Vec<&'static str>, MetricValue)> {
    let one = |n: u64| vec![(Vec::new(), MetricValue::Number(n))];
    let frontends = || Frontend::ALL.into_iter().map(Frontend::as_str);
    match metric {
        "kubevpn_build" => vec![(vec![env!("CARGO_PKG_VERSION")], MetricValue::Number(1))],
        "kubevpn_ready" => one(is_ready.into()),
        "kubevpn_connections_open" => each(frontends(), &tally.counts.open),
        "kubevpn_connections_total" => each(frontends(), &tally.counts.connected),
        "kubevpn_connections_ended_total" => {
            pairs(frontends(), ENDS.into_iter(), &tally.counts.ended)
        }
        "kubevpn_refusals_total" => {
            let refusals = Refusal::ALL.into_iter().map(Refusal::as_str);
            pairs(frontends(), refusals, &tally.counts.refused)
        }
        "kubevpn_bytes_total" => vec![
            (vec!["up"], MetricValue::Number(tally.up)),
            (vec!["down"], MetricValue::Number(tally.down)),
        ],
        "kubevpn_dial_seconds" => tally
            .dials
            .iter()
            .map(|(step, histogram)| (vec![*step], MetricValue::Histogram(histogram.clone())))
            .collect(),
        "kubevpn_sessions_open" => {
            let transports = Transport::ALL.into_iter().map(Transport::as_str);
            pairs(transports, SESSION_HEALTHS.into_iter(), &tally.sessions)
        }
        "kubevpn_session_events_total" => each(
            ["opened", "suspected", "recovered", "ended"].into_iter(),
            &tally.counts.session_events,
        ),
        "kubevpn_streams_open" => one(tally.streams),
        "kubevpn_unread_bytes" => one(tally.unread),
        "kubevpn_upgrades_total" => one(tally.upgrades),
        "kubevpn_watches" => each(WATCH_HEALTHS.into_iter(), &tally.watches),
        "kubevpn_watch_events_total" => {
            each(["lost", "back"].into_iter(), &tally.counts.watch_events)
        }
        "kubevpn_login_events_total" => each(
            ["logged_in", "failed", "refused"].into_iter(),
            &tally.counts.login_events,
        ),
        "kubevpn_credentials_expiry_timestamp_seconds" => {
            let expires = tally.expires.iter();
            expires
                .map(|at| (Vec::new(), MetricValue::Seconds(*at)))
                .collect()
        }
        "kubevpn_events_dropped_total" => one(tally.dropped),
        other => unreachable!("{other} has no value"),
    }
}

/// A sample for each possible name, 0 included: a rate needs the first value.
fn each(
    names: impl Iterator<Item = &'static str>,
    values: &NamedCounts,
) -> Vec<(Vec<&'static str>, MetricValue)> {
    let value = |name| {
        let n = values.get(name).copied().unwrap_or_default();
        (vec![name], MetricValue::Number(n))
    };
    names.map(value).collect()
}

fn pairs(
    first: impl Iterator<Item = &'static str>,
    second: impl Iterator<Item = &'static str> + Clone,
    values: &Count2,
) -> Vec<(Vec<&'static str>, MetricValue)> {
    let all = first.flat_map(|a| second.clone().map(move |b| (a, b)));
    let value = |(a, b)| {
        let n = values.get(&(a, b)).copied().unwrap_or_default();
        (vec![a, b], MetricValue::Number(n))
    };
    all.map(value).collect()
}

/// One scrape.
struct Scrape {
    samples: Vec<Samples>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Samples { metric, values } in &self.samples {
            let kind = match metric.kind {
                "counter" => MetricType::Counter,
                "gauge" => MetricType::Gauge,
                _ => MetricType::Histogram,
            };
            // The library appends it again.
            let name = metric.name.strip_suffix("_total").unwrap_or(metric.name);
            if values.is_empty() {
                continue;
            }
            let mut encoder = encoder.encode_descriptor(name, metric.help, None, kind)?;
            for (labels, value) in values {
                let labels: Vec<_> = metric
                    .labels
                    .iter()
                    .copied()
                    .zip(labels.iter().copied())
                    .collect();
                let encoder = encoder.encode_family(&labels)?;
                encode(value, kind, encoder)?;
            }
        }
        Ok(())
    }
}

fn encode(value: &MetricValue, kind: MetricType, encoder: MetricEncoder<'_>) -> fmt::Result {
    match value {
        MetricValue::Number(n) if kind == MetricType::Counter => {
            ConstCounter::new(*n).encode(encoder)
        }
        MetricValue::Number(n) => ConstGauge::new(*n).encode(encoder),
        MetricValue::Seconds(at) => ConstGauge::new(*at).encode(encoder),
        MetricValue::Histogram(histogram) => histogram.encode(encoder),
    }
}
