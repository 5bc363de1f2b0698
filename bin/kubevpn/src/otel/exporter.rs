//! The SDK's part: the tracer that creates spans, and the client that sends them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kubevpn_proxy::journal::{AboutProxy, redacted};
use opentelemetry::trace::{SpanKind, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor,
};
use tokio::time::timeout;

use super::settings::CollectorSettings;
use crate::exit::Failure;

/// Creates the spans and sends them.
pub(super) struct Exporter {
    sends: SpanExporter,
    /// Upper bound on an export.
    limit: Duration,
    pub(super) made: FinishedSpans,
    pub(super) tracer: SdkTracer,
    /// Kept, because dropping it would shut down the tracer.
    _provider: SdkTracerProvider,
}

pub(super) fn exporter(about: &AboutProxy) -> Result<Exporter, Failure> {
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
pub(super) struct FinishedSpans(Arc<Mutex<Vec<SpanData>>>);

impl FinishedSpans {
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(super) fn take(&self) -> Vec<SpanData> {
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

/// Number of connections of a batch: each has exactly one span of kind server; its steps have other kinds.
pub(super) fn connections(batch: &[SpanData]) -> u64 {
    let is_whole = |span: &&SpanData| span.span_kind == SpanKind::Server;
    batch.iter().filter(is_whole).count() as u64
}

/// Sends a batch. The error is without credentials, which the endpoint may contain.
pub(super) async fn send(exporter: &Exporter, batch: Vec<SpanData>) -> Result<(), String> {
    match timeout(exporter.limit, exporter.sends.export(batch)).await {
        Ok(sent) => sent.map_err(|error| redacted(&error.to_string())),
        Err(_) => Err(format!("no answer within {:?}", exporter.limit)),
    }
}
