//! Traces of connections for an OpenTelemetry collector, in builds with the feature `otel`.
//!
//! ```text
//!   Journal ─▶ Events with traces ─▶ spans (SDK: sampler, limits) ─▶ batch ─▶ OTLP, http/protobuf
//! ```
//!
//! A connection becomes a trace when it ends: one span for the whole connection, and one for each step of its dial. If
//! connections end faster than they are exported, the journal drops events and counts them (`kubevpn_events_dropped_total`).
//! Spans that the collector does not accept are dropped too.
//!
//! Source: the OpenTelemetry specification 1.50, "OpenTelemetry Protocol Exporter" and "Environment Variable Specification".

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use kubevpn_proxy::ProxyView;
use kubevpn_proxy::journal::{AboutProxy, EndedConnection, Events, Stamped, Trace, redacted};
use kubevpn_target::{Origin, Target};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{
    Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor,
};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::exit::Failure;

/// Upper bound on spans in one request; the specification's default.
const BATCH: usize = 512;
/// Time that a span waits for others, unless `OTEL_BSP_SCHEDULE_DELAY` sets another; the specification's default.
const DELAY: Duration = Duration::from_secs(5);
/// Upper bound on an export, all its requests included. `OTEL_EXPORTER_OTLP_TIMEOUT` may lower it.
const REQUEST: Duration = Duration::from_secs(10);
/// Upper bound on the time that the end of the program waits for the last batch.
const LAST: Duration = Duration::from_secs(3);
/// Methods that are names of spans, as the semantic conventions for HTTP list them.
const METHODS: [&str; 10] = [
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE",
];
/// Upper bound on the characters of another method, which a client chooses.
const METHOD_LENGTH: usize = 32;

/// Exporter of traces. Clones share it.
#[derive(Clone)]
pub(crate) struct Export(Option<Arc<ExportTasks>>);

struct ExportTasks {
    delay: Duration,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// Number of connections whose traces were waiting when their task was aborted.
    unsent: Arc<AtomicU64>,
}

impl Export {
    /// Configured by the environment; exports nothing without an endpoint.
    pub(crate) fn of_environment() -> Self {
        if !is_wanted(|name| std::env::var(name).ok()) {
            return Self(None);
        }
        let delay = std::env::var("OTEL_BSP_SCHEDULE_DELAY").ok();
        let delay = delay.and_then(|delay| delay.parse().ok());
        Self(Some(Arc::new(ExportTasks {
            delay: delay.map_or(DELAY, |ms: u64| Duration::from_millis(ms.max(1))),
            tasks: Mutex::default(),
            unsent: Arc::default(),
        })))
    }

    /// Exports the connections of this proxy from now on, until its journal is closed. An error is a mistake in the
    /// environment.
    pub(crate) fn follow(&self, view: &ProxyView) -> Result<(), Failure> {
        let Some(exporting) = &self.0 else {
            return Ok(());
        };
        let exporter = exporter(view.about())?;
        let sender = TraceSender {
            events: view.journal().events_with_traces(),
            exporter,
            in_flight: 0,
            unsent: exporting.unsent.clone(),
        };
        let task = tokio::spawn(run(sender, exporting.delay));
        let mut tasks = exporting
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Proxies of a daemon come and go: tasks of those that ended are removed.
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
        Ok(())
    }

    /// Waits for the last batches, but not longer than `at_once` and [`LAST`]. All journals have to be closed before.
    pub(crate) async fn end(self, at_once: impl Future<Output = ()>) {
        let Some(exporting) = self.0 else { return };
        let mut tasks = std::mem::take(
            &mut *exporting
                .tasks
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let ended = async {
            for task in &mut tasks {
                let _ended = task.await;
            }
        };
        tokio::select! {
            biased;
            () = ended => return,
            () = at_once => {}
            () = sleep(LAST) => {}
        }
        for task in tasks {
            task.abort();
            // A task that has been awaited to its end must not be awaited again.
            if !task.is_finished() {
                let _aborted = task.await;
            }
        }
        let connections = exporting.unsent.load(Ordering::Relaxed);
        if connections > 0 {
            tracing::warn!(
                connections,
                "the last traces were not taken by the collector in time"
            );
        }
    }
}

/// Whether an endpoint is set, and no variable disables traces.
fn is_wanted(variable: impl Fn(&str) -> Option<String>) -> bool {
    let of = |name: &str| variable(name).unwrap_or_default();
    let endpoints = [
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ];
    endpoints.iter().any(|name| !of(name).is_empty())
        && !of("OTEL_SDK_DISABLED").eq_ignore_ascii_case("true")
        && of("OTEL_TRACES_EXPORTER") != "none"
}

/// Settings of requests to the collector, from the environment.
#[derive(Debug, PartialEq, Eq)]
struct CollectorSettings {
    /// Upper bound on an export.
    limit: Duration,
    /// Name of the variable that has the endpoint.
    endpoint: &'static str,
}

impl CollectorSettings {
    /// An error names the variable, and not its value, which may contain a credential.
    fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let first = |names: [&'static str; 2]| {
            let set = |name| {
                let value = variable(name).filter(|value| !value.is_empty())?;
                Some((name, value))
            };
            names.into_iter().find_map(set)
        };
        let exporter = variable("OTEL_TRACES_EXPORTER").unwrap_or_default();
        if !["", "otlp", "none"].contains(&exporter.as_str()) {
            return Err(Failure::value(
                "traces cannot be exported: OTEL_TRACES_EXPORTER may be otlp or none; kubevpn has no other exporter",
            ));
        }
        let protocol = first([
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ]);
        if let Some((name, _)) = protocol.filter(|(_, value)| value != "http/protobuf") {
            return Err(Failure::value(format!(
                "traces cannot be exported: {name} may only be http/protobuf, which most collectors accept on port 4318"
            )));
        }
        let compression = first([
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
            "OTEL_EXPORTER_OTLP_COMPRESSION",
        ]);
        let known = ["none", "gzip"];
        if let Some((name, _)) = compression.filter(|(_, value)| !known.contains(&&**value)) {
            return Err(Failure::value(format!(
                "traces cannot be exported: {name} may be gzip or none"
            )));
        }
        let limit = first([
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
            "OTEL_EXPORTER_OTLP_TIMEOUT",
        ]);
        // The specification's 0 is no limit, so that ours applies.
        let limit = limit
            .and_then(|(_, ms)| ms.parse::<u64>().ok())
            .filter(|ms| *ms > 0);
        let endpoint = first([
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ]);
        Ok(Self {
            limit: limit.map_or(REQUEST, Duration::from_millis).min(REQUEST),
            endpoint: endpoint.map_or("OTEL_EXPORTER_OTLP_ENDPOINT", |(name, _)| name),
        })
    }
}

/// Creates the spans and sends them.
struct Exporter {
    sends: SpanExporter,
    /// Upper bound on an export.
    limit: Duration,
    made: FinishedSpans,
    tracer: SdkTracer,
    /// Kept, because dropping it would shut down the tracer.
    _provider: SdkTracerProvider,
}

fn exporter(about: &AboutProxy) -> Result<Exporter, Failure> {
    let settings = CollectorSettings::of(|name| std::env::var(name).ok())?;
    // The library does not pass its time limit to a client that it is given.
    let limit = settings.limit;
    let sends = SpanExporter::builder().with_http();
    let sends = match hyper_rustls::HttpsConnectorBuilder::new().with_native_roots() {
        Ok(builder) => {
            let connector = builder.https_or_http().enable_http1().build();
            sends.with_http_client(HyperClient::new(connector, limit, None))
        }
        // An image may have no certificates. A collector beside this program is reached by plain http and needs none.
        Err(error) => {
            tracing::debug!(%error, "no collector can be reached by https");
            sends.with_http_client(HyperClient::with_default_connector(limit, None))
        }
    };
    let sends = sends.build();
    // The library's error contains the endpoint with its password, even where no redaction finds it in what is no URL.
    let mut sends = sends.map_err(|_| {
        Failure::value(format!(
            "traces cannot be exported: {} is not the URL of a collector",
            settings.endpoint
        ))
    })?;
    let mut resource = Resource::builder();
    let is_named = std::env::var_os("OTEL_SERVICE_NAME").is_some()
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|own| {
            own.split(',')
                .any(|pair| pair.trim().starts_with("service.name="))
        });
    if !is_named {
        resource = resource.with_service_name("kubevpn");
    }
    let words = [
        ("service.version", &about.version),
        ("service.instance.id", &about.connection),
        ("k8s.cluster.name", &about.cluster),
        ("k8s.namespace.name", &about.namespace),
    ];
    let words = words.into_iter().filter(|(_, word)| !word.is_empty());
    let words = words.map(|(name, word)| KeyValue::new(name, word.clone()));
    let resource = resource.with_attributes(words).build();
    sends.set_resource(&resource);
    let made = FinishedSpans::default();
    let provider = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_span_processor(made.clone())
        .build();
    Ok(Exporter {
        sends,
        limit,
        made,
        tracer: provider.tracer("kubevpn"),
        _provider: provider,
    })
}

/// Spans that have not been sent yet.
#[derive(Clone, Debug, Default)]
struct FinishedSpans(Arc<Mutex<Vec<SpanData>>>);

impl FinishedSpans {
    fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn take(&self) -> Vec<SpanData> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl SpanProcessor for FinishedSpans {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Events of a proxy, and the exporter of its traces.
struct TraceSender {
    events: Events,
    exporter: Exporter,
    /// Number of connections in the current request.
    in_flight: u64,
    /// Gets the number of connections that were not sent, when this is dropped.
    unsent: Arc<AtomicU64>,
}

impl Drop for TraceSender {
    fn drop(&mut self) {
        let mut unsent = self.in_flight + connections(&self.exporter.made.take());
        while let Some(event) = self.events.next_now() {
            unsent += u64::from(TracedConnection::of(&event).is_some());
        }
        self.events.lost(unsent);
        self.unsent.fetch_add(unsent, Ordering::Relaxed);
    }
}

/// Number of connections of a batch: each has exactly one span of kind server; its steps have other kinds.
fn connections(batch: &[SpanData]) -> u64 {
    let is_whole = |span: &&SpanData| span.span_kind == SpanKind::Server;
    batch.iter().filter(is_whole).count() as u64
}

/// Sends batches until the events end. Events wait in the journal during a request.
async fn run(mut sender: TraceSender, delay: Duration) {
    let mut ticks = interval(delay);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    let mut failing = false;
    loop {
        let (is_due, is_over) = tokio::select! {
            event = sender.events.next() => match event {
                Some(event) => {
                    trace(&sender.exporter.tracer, &event);
                    (sender.exporter.made.len() >= BATCH, false)
                }
                None => (true, true),
            },
            _ = ticks.tick() => (true, false),
        };
        let batch = match is_due {
            true => sender.exporter.made.take(),
            false => Vec::new(),
        };
        if !batch.is_empty() {
            let connections = connections(&batch);
            sender.in_flight = connections;
            let failed = send(&sender.exporter, batch).await.err();
            sender.in_flight = 0;
            if let Some(error) = &failed {
                sender.events.lost(connections);
                // Logged once until a request succeeds again: otherwise each batch would log a line. The last batch is an
                // exception, because nobody can read its number in the metrics.
                if is_over {
                    tracing::warn!(%error, connections, "the last traces were not taken by the collector");
                } else if !failing {
                    tracing::warn!(%error, connections, "traces were not taken by the collector");
                }
            }
            failing = failed.is_some();
        }
        if is_over {
            return;
        }
    }
}

/// Sends a batch. The error is without credentials, which the endpoint may contain.
async fn send(exporter: &Exporter, batch: Vec<SpanData>) -> Result<(), String> {
    match timeout(exporter.limit, exporter.sends.export(batch)).await {
        Ok(sent) => sent.map_err(|error| redacted(&error.to_string())),
        Err(_) => Err(format!("no answer within {:?}", exporter.limit)),
    }
}

/// The spans of an ended connection.
fn trace(tracer: &SdkTracer, stamped: &Stamped) {
    let Some(ended) = TracedConnection::of(stamped) else {
        return;
    };
    let Some((began, over)) = ended.times() else {
        return;
    };
    let span = tracer
        .span_builder(ended.name())
        .with_kind(SpanKind::Server)
        .with_start_time(began)
        .with_attributes(ended.attributes());
    let parent = parent(ended.trace);
    let context = parent.with_span(tracer.build_with_context(span, &parent));
    let span = context.span();
    if let Some(error) = ended.failure() {
        span.set_status(Status::error(error));
    }
    for step in &ended.trace.steps {
        let from = began + seconds(step.after);
        let builder = tracer
            .span_builder(step.name.clone())
            .with_kind(SpanKind::Internal)
            .with_start_time(from);
        let mut span = tracer.build_with_context(builder, &context);
        span.end_with_timestamp(from + seconds(step.seconds));
    }
    span.end_with_timestamp(over);
}

/// The parent span that the HTTP request names in `traceparent`; none is created without it.
fn parent(trace: &Trace) -> Context {
    let mut fields = HashMap::new();
    if let Some(parent) = &trace.parent {
        fields.insert("traceparent".to_owned(), parent.clone());
    }
    TraceContextPropagator::new().extract_with_context(&Context::new(), &fields)
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// A connection that has ended and is to become a trace.
struct TracedConnection<'a> {
    ended: EndedConnection<'a>,
    trace: &'a Trace,
}

impl<'a> TracedConnection<'a> {
    /// `None` for other events, and for clients that closed without asking for a target.
    fn of(stamped: &'a Stamped) -> Option<Self> {
        let ended = EndedConnection::of(stamped).filter(|ended| ended.target.is_some())?;
        let trace = ended.trace?;
        Some(Self { ended, trace })
    }

    /// Start and end.
    fn times(&self) -> Option<(SystemTime, SystemTime)> {
        let time = |text: &str| Some(SystemTime::from(text.parse::<Timestamp>().ok()?));
        Some((time(&self.trace.began)?, time(self.ended.at)?))
    }

    /// Name of the span: one of few values, as the specification asks.
    fn name(&self) -> String {
        match self.ended.exchange {
            Some(exchange) => match is_known(&exchange.method) {
                true => exchange.method.clone(),
                false => "HTTP".to_owned(),
            },
            None => self.ended.frontend.to_owned(),
        }
    }

    /// Attributes, named by the semantic conventions if these have a name.
    fn attributes(&self) -> Vec<KeyValue> {
        let ended = &self.ended;
        let mut all = vec![
            KeyValue::new("kubevpn.connection.id", integer(ended.id)),
            KeyValue::new("kubevpn.frontend", ended.frontend.to_owned()),
            KeyValue::new("kubevpn.end", ended.end.to_owned()),
            KeyValue::new("kubevpn.bytes.up", integer(ended.up)),
            KeyValue::new("kubevpn.bytes.down", integer(ended.down)),
        ];
        let mut add = |name: &'static str, value: Option<Value>| {
            all.extend(value.map(|value| KeyValue::new(name, value)));
        };
        let word = |word: &str| (!word.is_empty()).then(|| Value::from(word.to_owned()));
        add("kubevpn.pod", word(ended.via));
        add("kubevpn.transport", word(ended.transport));
        add("error.type", ended.refusal.and_then(word));
        if let Some(client) = ended.client {
            let (address, port) = client_place(client);
            add("client.address", word(&address));
            add("client.port", port.map(Value::from));
        }
        let target = ended.target.and_then(|target| {
            let target = Target::parse(target, Origin::default()).ok()?;
            Some((target.host.to_string(), i64::from(target.port.get())))
        });
        if let Some((host, port)) = target {
            add("server.address", word(&host));
            add("server.port", Some(port.into()));
        }
        if let Some(exchange) = ended.exchange {
            match is_known(&exchange.method) {
                true => add("http.request.method", word(&exchange.method)),
                false => {
                    add("http.request.method", word("_OTHER"));
                    let original: String = exchange.method.chars().take(METHOD_LENGTH).collect();
                    add("http.request.method_original", word(&original));
                }
            }
            let status = exchange.status.map(|status| i64::from(status).into());
            add("http.response.status_code", status);
            add("url.full", word(&redacted(&exchange.url)));
        }
        all
    }

    /// Reason why the connection got no stream, or broke.
    fn failure(&self) -> Option<String> {
        self.ended.error.map(redacted)
    }
}

fn is_known(method: &str) -> bool {
    METHODS.contains(&method)
}

/// Address and port of a client; other clients, e.g. of a Unix socket, have no port.
fn client_place(client: &str) -> (String, Option<i64>) {
    match client.parse::<SocketAddr>() {
        Ok(place) => (place.ip().to_string(), Some(i64::from(place.port()))),
        Err(_) => (client.to_owned(), None),
    }
}

fn integer(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_exported_without_an_endpoint() {
        let with = |set: &[(&str, &str)]| {
            is_wanted(|name| {
                let mut found = set.iter().filter(|(set, _)| *set == name);
                found.next().map(|(_, value)| (*value).to_owned())
            })
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector/x");
        assert!(with(&[endpoint]) && with(&[traces]));
        assert!(!with(&[]));
        assert!(!with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]));
        assert!(!with(&[endpoint, ("OTEL_SDK_DISABLED", "True")]));
        assert!(!with(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]));
        assert!(with(&[endpoint, ("OTEL_TRACES_EXPORTER", "otlp")]));
    }

    #[test]
    fn settings_that_are_not_possible_are_errors_without_values() {
        let with = |set: &[(&str, &str)]| {
            CollectorSettings::of(|name| {
                let mut found = set.iter().filter(|(set, _)| *set == name);
                found.next().map(|(_, value)| (*value).to_owned())
            })
        };
        for (name, value) in [
            ("OTEL_TRACES_EXPORTER", "q7console"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "q7zstd"),
        ] {
            let failure = with(&[(name, value)]).unwrap_err();
            let said = failure.message();
            assert!(said.contains(name) && !said.contains(value), "{said}");
        }
        let limit = |set: &[(&str, &str)]| with(set).unwrap().limit;
        let (all, traces) = (
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        );
        assert_eq!(limit(&[]), REQUEST);
        assert_eq!(limit(&[(all, "200")]), Duration::from_millis(200));
        assert_eq!(
            limit(&[(all, "200"), (traces, "300")]),
            Duration::from_millis(300)
        );
        for none in ["0", "60000", "soon"] {
            assert_eq!(limit(&[(all, none)]), REQUEST, "{none}");
        }
        assert!(with(&[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")]).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_a_task_unless_it_is_at_once() {
        let ended = async |at_once: bool| {
            let task = tokio::spawn(std::future::pending());
            let export = Export(Some(Arc::new(ExportTasks {
                delay: DELAY,
                tasks: Mutex::new(vec![task]),
                unsent: Arc::default(),
            })));
            let again = async {
                if !at_once {
                    std::future::pending().await
                }
            };
            let begun = tokio::time::Instant::now();
            export.end(again).await;
            begun.elapsed()
        };
        assert!(ended(true).await < LAST);
        assert!(ended(false).await >= LAST);
    }

    #[test]
    fn clients_have_an_address_and_a_port() {
        assert_eq!(client_place("127.0.0.1:80"), ("127.0.0.1".into(), Some(80)));
        assert_eq!(client_place("[::1]:80"), ("::1".into(), Some(80)));
        assert_eq!(client_place("a socket"), ("a socket".into(), None));
        assert!(is_known("GET") && !is_known("get") && !is_known("BREW"));
    }
}
