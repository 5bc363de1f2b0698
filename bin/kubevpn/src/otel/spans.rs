//! The spans of a connection, their names and their attributes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use kubevpn_proxy::journal::{EndedConnection, Stamped, Trace, redacted};
use kubevpn_target::{Origin, Target};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;

/// Methods that are names of spans, as the semantic conventions for HTTP list them.
const METHODS: [&str; 10] = [
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE",
];
/// Upper bound on the characters of another method, which a client chooses.
const METHOD_LENGTH: usize = 32;

/// The spans of an ended connection.
pub(super) fn trace(tracer: &SdkTracer, stamped: &Stamped) {
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
pub(super) struct TracedConnection<'a> {
    ended: EndedConnection<'a>,
    trace: &'a Trace,
}

impl<'a> TracedConnection<'a> {
    /// `None` for other events, and for clients that closed without asking for a target.
    pub(super) fn of(stamped: &'a Stamped) -> Option<Self> {
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
    fn clients_have_an_address_and_a_port() {
        assert_eq!(client_place("127.0.0.1:80"), ("127.0.0.1".into(), Some(80)));
        assert_eq!(client_place("[::1]:80"), ("::1".into(), Some(80)));
        assert_eq!(client_place("a socket"), ("a socket".into(), None));
        assert!(is_known("GET") && !is_known("get") && !is_known("BREW"));
    }
}
