//! Traces, as a collector gets them: the built program, and a collector in this process that decodes what it is sent.
//!
//! In builds with the feature `otel` alone: `cargo test -p kubevpn --features otel --test otel`.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kubevpn_scenarios::managed::Managed;
use kubevpn_scenarios::{Curl, Socks};
use kubevpn_sim::Sim;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Scalar;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::mpsc;

/// Of `trace.proto`.
const SERVER: i32 = 2;
const ERROR: i32 = 2;

/// What a collector was sent at once.
struct Batch {
    path: String,
    fields: BTreeMap<String, String>,
    body: Bytes,
    resource: BTreeMap<String, String>,
    spans: Vec<Span>,
}

/// A collector that answers with this status.
async fn collector(status: StatusCode) -> (SocketAddr, mpsc::Receiver<Batch>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, batches) = mpsc::channel(1024);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let sender = sender.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let sender = sender.clone();
                async move {
                    let batch = read(request).await;
                    let _unheard = sender.send(batch).await;
                    let mut answer = Response::new(Full::<Bytes>::default());
                    *answer.status_mut() = status;
                    Ok::<_, Infallible>(answer)
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, batches)
}

async fn read(request: Request<Incoming>) -> Batch {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let document = ExportTraceServiceRequest::decode(body.clone()).unwrap();
    let (mut resource, mut spans) = (BTreeMap::new(), Vec::new());
    for of_resource in document.resource_spans {
        resource.extend(words(&of_resource.resource.unwrap().attributes));
        for of_scope in of_resource.scope_spans {
            spans.extend(of_scope.spans);
        }
    }
    let fields = head.headers.iter().map(|(name, value)| {
        let value = value.to_str().unwrap().to_owned();
        (name.as_str().to_owned(), value)
    });
    Batch {
        path: head.uri.path().to_owned(),
        fields: fields.collect(),
        body,
        resource,
        spans,
    }
}

fn words(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let words = attributes.iter().map(|attribute| {
        let value = match &attribute.value {
            Some(AnyValue {
                value: Some(Scalar::StringValue(text)),
            }) => text.clone(),
            Some(AnyValue {
                value: Some(Scalar::IntValue(number)),
            }) => number.to_string(),
            other => panic!("{other:?}"),
        };
        (attribute.key.clone(), value)
    });
    words.collect()
}

/// A proxy in the foreground that exports to a collector.
struct ExportingProxy {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: ChildStderr,
    proxy: SocketAddr,
    admin: SocketAddr,
    _sim: (Sim, tempfile::TempDir, Managed),
}

impl ExportingProxy {
    async fn start(environment: &[(&str, &str)]) -> Self {
        let sim = Sim::builder().sample().start().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = sim.write_kubeconfig(dir.path()).unwrap();
        let managed = Managed::new(Path::new(env!("CARGO_BIN_EXE_kubevpn"))).unwrap();
        let words = [
            "proxy-out",
            "--kubeconfig",
            kubeconfig.to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
            "--metrics",
            "127.0.0.1:0",
            "-o",
            "json",
        ];
        let mut command = managed.command(&words);
        command
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = child.stderr.take().unwrap();
        let mut addresses = BTreeMap::new();
        while addresses.len() < 2 {
            let mut line = String::new();
            let read = eventually("it listens", stdout.read_line(&mut line)).await;
            assert_ne!(read.unwrap(), 0, "it has ended");
            let listens: Value = serde_json::from_str(&line).unwrap();
            let address: SocketAddr = listens["address"].as_str().unwrap().parse().unwrap();
            let protocol = listens["protocol"].as_str().unwrap().to_owned();
            addresses.insert(protocol, address);
        }
        let admin = addresses.remove("admin").unwrap();
        let (_, proxy) = addresses.pop_first().unwrap();
        Self {
            child,
            stdout,
            stderr,
            proxy,
            admin,
            _sim: (sim, dir, managed),
        }
    }

    /// Ends it as Ctrl-C does; what it has said on standard error.
    async fn end(mut self) -> String {
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status().await;
        assert!(sent.unwrap().success());
        let (mut said, mut rest) = (String::new(), String::new());
        let ended = async {
            self.stderr.read_to_string(&mut said).await.unwrap();
            self.stdout.read_to_string(&mut rest).await.unwrap();
            self.child.wait().await.unwrap()
        };
        eventually("its end", ended).await;
        said
    }
}

async fn eventually<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    waited.unwrap_or_else(|_| panic!("not within a minute: {what}"))
}

/// The batches until there is a whole connection for which this holds; the spans of its trace with the one of the whole first.
async fn trace(
    batches: &mut mpsc::Receiver<Batch>,
    fits: impl Fn(&BTreeMap<String, String>) -> bool,
) -> (Batch, Vec<Span>) {
    loop {
        let batch = eventually("a trace", batches.recv()).await.unwrap();
        let whole = batch.spans.iter().find(|span| {
            let is_whole = span.kind == SERVER;
            is_whole && fits(&words(&span.attributes))
        });
        if let Some(whole) = whole.cloned() {
            let steps = batch.spans.iter().filter(|span| {
                span.trace_id == whole.trace_id && span.parent_span_id == whole.span_id
            });
            let all = [&whole].into_iter().chain(steps).cloned().collect();
            return (batch, all);
        }
    }
}

#[tokio::test]
async fn otel_collector_gets_a_trace_of_each_connection() {
    let (address, mut batches) = collector(StatusCode::OK).await;
    let endpoint = format!("http://{address}");
    let exporting = ExportingProxy::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-collector-key=q7collector"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test",
        ),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ])
    .await;
    let proxy = format!("http://{}", exporting.proxy);
    let parent = "0af7651916cd43dd8448eb211c80319c";
    let field = format!("traceparent: 00-{parent}-b7ad6b7169203331-01");
    let url = "http://productpage:9080/";
    let asked = "http://jane:q7canary@productpage:9080/?page=2&token=q7canary";
    let secret = "Authorization: Bearer q7canary";
    let words_of_curl = [
        "--proxy",
        &proxy,
        "--header",
        &field,
        "--header",
        secret,
        "--request-target",
        asked,
        url,
    ];
    let answer = Curl::run(&words_of_curl).await.unwrap();
    assert_eq!(answer.json().unwrap()["service"], "productpage");

    let is_http = |words: &BTreeMap<String, String>| words["kubevpn.frontend"] == "http";
    let (batch, spans) = trace(&mut batches, is_http).await;
    assert_eq!(batch.path, "/v1/traces");
    assert_eq!(batch.fields["content-type"], "application/x-protobuf");
    assert_eq!(batch.fields["x-collector-key"], "q7collector");
    assert_eq!(batch.resource["service.name"], "kubevpn");
    assert_eq!(batch.resource["deployment.environment.name"], "test");
    let sent = String::from_utf8_lossy(&batch.body);
    assert!(!sent.contains("q7canary"), "{sent}");
    let (whole, steps) = spans.split_first().unwrap();
    assert_eq!(whole.name, "GET");
    assert_eq!(whole.trace_id, number(parent));
    assert_eq!(whole.parent_span_id, number("b7ad6b7169203331"));
    let found = words(&whole.attributes);
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("server.address", "productpage"),
        ("server.port", "9080"),
        ("kubevpn.end", "eof"),
        (
            "url.full",
            "http://REDACTED@productpage:9080/?page=2&token=REDACTED",
        ),
    ] {
        assert_eq!(found[name], value, "{name}");
    }
    assert!(found["kubevpn.pod"].starts_with("default/productpage-"));
    let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["resolve", "session", "stream"]);
    for step in steps {
        assert!(step.start_time_unix_nano >= whole.start_time_unix_nano);
        assert!(step.end_time_unix_nano >= step.start_time_unix_nano);
        assert!(step.end_time_unix_nano <= whole.end_time_unix_nano);
    }

    // Without a parent a trace of its own, and a connection that is no HTTP for the proxy has one too.
    let answer = Curl::get(exporting.proxy, url).await.unwrap();
    assert_eq!(answer.json().unwrap()["service"], "productpage");
    let is_socks = |words: &BTreeMap<String, String>| words["kubevpn.frontend"] == "socks5";
    let (_, spans) = trace(&mut batches, is_socks).await;
    assert_eq!(spans[0].name, "socks5");
    assert!(spans[0].parent_span_id.is_empty());
    assert_ne!(spans[0].trace_id, number(parent));

    // A parent that is not sampled is not recorded, as the specification's default has it; what comes after it is.
    let field = format!("traceparent: 00-{parent}-b7ad6b7169203331-00");
    Curl::run(&["--proxy", &proxy, "--header", &field, url])
        .await
        .unwrap();
    assert!(
        Socks::connect(exporting.proxy, "productpage", 81)
            .await
            .is_err()
    );
    let (_, spans) = trace(&mut batches, |_| true).await;
    let found = words(&spans[0].attributes);
    assert_eq!(found["error.type"], "no_such_port", "{found:?}");
    assert_eq!(found["kubevpn.end"], "refused");
    let status = spans[0].status.clone().unwrap();
    assert_eq!(status.code, ERROR);
    assert!(status.message.contains("81"), "{status:?}");
    exporting.end().await;
}

fn number(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

/// What waits for its batch is sent at the end.
#[tokio::test]
async fn otel_last_batch_is_sent_at_the_end() {
    let (address, mut batches) = collector(StatusCode::OK).await;
    let endpoint = format!("http://{address}");
    let exporting = ExportingProxy::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
    ])
    .await;
    assert!(
        Socks::connect(exporting.proxy, "productpage", 81)
            .await
            .is_err()
    );
    exporting.end().await;
    let (_, spans) = trace(&mut batches, |_| true).await;
    assert_eq!(spans[0].name, "socks5");
}

/// A collector that takes nothing costs its traces, which are counted, and no connection.
#[tokio::test]
async fn otel_collector_that_refuses_is_counted() {
    let (address, mut batches) = collector(StatusCode::BAD_REQUEST).await;
    let endpoint = format!("http://{address}");
    let exporting = ExportingProxy::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ])
    .await;
    assert!(
        Socks::connect(exporting.proxy, "productpage", 81)
            .await
            .is_err()
    );
    trace(&mut batches, |_| true).await;
    let url = format!("http://{}/metrics", exporting.admin);
    let counted = async {
        loop {
            let scraped = Curl::run(&[&url]).await.unwrap();
            if scraped.body.contains("kubevpn_events_dropped_total 1\n") {
                break;
            }
        }
    };
    eventually("it is counted", counted).await;
    let said = exporting.end().await;
    assert_eq!(said.matches("traces were not taken").count(), 1, "{said}");
}

/// The address of a collector that accepts connections and never answers.
async fn silent_collector() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            kept.push(listener.accept().await.unwrap());
        }
    });
    address
}

/// A collector that never answers, and a port without one, cost their traces, which are counted, and no connection.
#[tokio::test]
async fn otel_collector_that_does_not_answer_is_counted() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed_address = closed.local_addr().unwrap();
    drop(closed);
    for address in [silent_collector().await, closed_address] {
        let endpoint = format!("http://{address}");
        let exporting = ExportingProxy::start(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "200"),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ])
        .await;
        let url = "http://productpage:9080/";
        let answer = Curl::get(exporting.proxy, url).await.unwrap();
        assert_eq!(answer.json().unwrap()["service"], "productpage");
        let metrics = format!("http://{}/metrics", exporting.admin);
        let counted = async {
            loop {
                let scraped = Curl::run(&[&metrics]).await.unwrap();
                if scraped.body.contains("kubevpn_events_dropped_total 1\n") {
                    break;
                }
            }
        };
        eventually("it is counted", counted).await;
        exporting.end().await;
    }
}

/// The end does not wait for a collector that never answers, and says how many traces are lost.
#[tokio::test]
async fn otel_end_counts_what_is_lost() {
    let address = silent_collector().await;
    let endpoint = format!("http://{address}");
    let exporting = ExportingProxy::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
    ])
    .await;
    for _ in 0..2 {
        let url = "http://productpage:9080/";
        Curl::get(exporting.proxy, url).await.unwrap();
    }
    let said = exporting.end().await;
    assert!(
        said.contains("not taken by the collector in time"),
        "{said}"
    );
    assert!(said.contains("connections=2"), "{said}");
}

/// What is no endpoint is known at the start.
#[tokio::test]
async fn otel_endpoint_that_is_none_is_an_error() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = sim.write_kubeconfig(dir.path()).unwrap();
    let managed = Managed::new(Path::new(env!("CARGO_BIN_EXE_kubevpn"))).unwrap();
    let words = [
        "proxy-out",
        "--kubeconfig",
        kubeconfig.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
    ];
    let mut command = managed.command(&words);
    command.env(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "http://jane:q7canary@[collector",
    );
    let ended = eventually("its end", command.output()).await.unwrap();
    assert_eq!(ended.status.code(), Some(23), "{ended:?}");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{said}");
    assert!(!said.contains("q7canary"), "{said}");
}
