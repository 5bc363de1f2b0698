//! The API server: from a request to its answer.
//!
//! In the order of the real one: what stands between client and server ([`Faults`](crate::Faults)), who
//! asks (401), whether they may (403), and then the resource (404, 405 and the rest).

mod discovery;
mod path;
mod read;
mod watch;
mod write;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use self::path::{Info, Resource};
pub(crate) use self::watch::WatchSignal;
use crate::access::{ANONYMOUS, Access, Deed};
use crate::audit;
use crate::cluster::SimCluster;
use crate::faults::{FaultAnswer, Reject};
use crate::kind::{ENDPOINTS, POD, ResourceKind};
use crate::link::Link;
use crate::portforward::{self, SimTransport};
use crate::status::Status;

pub(crate) type ApiBody = UnsyncBoxBody<Bytes, Infallible>;

/// The largest body a client may send.
const LARGEST: usize = 3 * 1024 * 1024;

/// The connection was reset instead of an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection was reset on command")]
pub(crate) struct Dropped;

/// Answers one request and writes it down.
pub(crate) async fn answer(
    cluster: Arc<SimCluster>,
    link: Link,
    request: Request<Incoming>,
) -> Result<Response<ApiBody>, Dropped> {
    let uri = request.uri();
    let info = Info::read(
        request.method(),
        uri.path(),
        uri.query().unwrap_or_default(),
    );
    let mut record = record(&request, &info);
    let token = token(request.headers());
    record.user = match token {
        Some(token) => cluster.access.user(token).unwrap_or_default(),
        None => ANONYMOUS.into(),
    };
    let response = obstructed(&cluster, &link, request, &info, &mut record).await;
    record.code = response.as_ref().map_or(0, |r| r.status().as_u16());
    tracing::debug!(
        verb = record.verb,
        uri = record.uri,
        code = record.code,
        "answered"
    );
    cluster.audit.push(record);
    response
}

/// What stands in the way, then the answer.
async fn obstructed(
    cluster: &Arc<SimCluster>,
    link: &Link,
    request: Request<Incoming>,
    info: &Info,
    record: &mut audit::AuditedRequest,
) -> Result<Response<ApiBody>, Dropped> {
    let upgrade = info.resource.as_ref().filter(|r| is_port_forward(r));
    if let Some(transport) = upgrade.and_then(|_| SimTransport::of(request.headers())) {
        match cluster.faults.rejected(transport) {
            None => {}
            Some(Reject::Status(code)) => return Ok(rejection(code)),
            Some(Reject::Drop) => return drop_link(link),
            Some(Reject::Hang) => return std::future::pending().await,
        }
    }
    let status = match cluster.faults.answer_to(record) {
        None => return Ok(real(cluster, link, request, info, record).await),
        Some(FaultAnswer::Delay(delay)) => {
            tokio::time::sleep(delay).await;
            return Ok(real(cluster, link, request, info, record).await);
        }
        Some(FaultAnswer::Drop) => return drop_link(link),
        Some(FaultAnswer::Hang) => return std::future::pending().await,
        Some(FaultAnswer::Unauthorized) => Status::unauthorized(),
        Some(FaultAnswer::Forbidden) => forbidden(&record.user, info),
        Some(FaultAnswer::Gone) => Status::too_old(1, cluster.world().store.revision()),
        Some(FaultAnswer::TooManyRequests) => Status::too_many_requests(),
        Some(FaultAnswer::InternalError) => Status::internal("a fault on command"),
        Some(FaultAnswer::Unavailable) => Status::unavailable(),
    };
    Ok(failure(&status))
}

async fn real(
    cluster: &Arc<SimCluster>,
    link: &Link,
    request: Request<Incoming>,
    info: &Info,
    record: &mut audit::AuditedRequest,
) -> Response<ApiBody> {
    if record.user.is_empty() {
        return failure(&Status::unauthorized());
    }
    if let Err(status) = impersonate(cluster, request.headers(), &mut record.user) {
        return failure(&status);
    }
    let Some(resource) = &info.resource else {
        return plain(cluster, info, &record.user);
    };
    if !allowed(cluster, &record.user, info.verb, resource) {
        return failure(&forbidden(&record.user, info));
    }
    if is_port_forward(resource) {
        let forward = forward(cluster, link, request, info, resource, &record.user);
        return forward.unwrap_or_else(|status| failure(&status));
    }
    let response = resources(cluster, request, info, resource).await;
    response.unwrap_or_else(|status| failure(&status))
}

/// Acts as the user a client with the right to do so asks for.
fn impersonate(cluster: &SimCluster, headers: &HeaderMap, user: &mut String) -> Result<(), Status> {
    let Some(wanted) = headers
        .get("impersonate-user")
        .and_then(|v| v.to_str().ok())
    else {
        return Ok(());
    };
    let deed = Deed {
        verb: "impersonate",
        group: "",
        resource: "users",
        namespace: "",
        name: wanted,
    };
    if !cluster.access.allows(user, deed) {
        let why = Access::why_not(user, deed);
        return Err(Status::forbidden("", "users", wanted, &why));
    }
    *user = wanted.into();
    Ok(())
}

fn allowed(cluster: &SimCluster, user: &str, verb: &str, resource: &Resource) -> bool {
    // Everybody may ask what they may do.
    if resource.group == "authorization.k8s.io" && user != ANONYMOUS {
        return true;
    }
    let full = full_name(resource);
    cluster.access.allows(user, deed(verb, resource, &full))
}

fn deed<'a>(verb: &'a str, r: &'a Resource, full: &'a str) -> Deed<'a> {
    Deed {
        verb,
        group: &r.group,
        resource: full,
        namespace: &r.namespace,
        name: &r.name,
    }
}

/// With its subresource: `pods/portforward`.
fn full_name(r: &Resource) -> String {
    match r.subresource.as_str() {
        "" => r.plural.clone(),
        sub => format!("{}/{sub}", r.plural),
    }
}

fn forbidden(user: &str, info: &Info) -> Status {
    match &info.resource {
        None => Status::forbidden_path(user, info.verb, &info.path),
        Some(r) => refused(user, info.verb, r),
    }
}

fn refused(user: &str, verb: &str, r: &Resource) -> Status {
    let why = Access::why_not(user, deed(verb, r, &full_name(r)));
    Status::forbidden(&r.group, &r.plural, &r.name, &why)
}

/// A path that is no resource.
fn plain(cluster: &SimCluster, info: &Info, user: &str) -> Response<ApiBody> {
    if !cluster.access.allows_path(user, &info.path) {
        return failure(&Status::forbidden_path(user, info.verb, &info.path));
    }
    let health = ["/readyz", "/livez", "/healthz"];
    if health.contains(&info.path.as_str()) {
        return text(StatusCode::OK, "ok");
    }
    match discovery::answer(&cluster.options, info) {
        Some(value) => object(StatusCode::OK, &value),
        None => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

fn is_port_forward(r: &Resource) -> bool {
    r.group.is_empty() && r.plural == "pods" && r.subresource == "portforward"
}

fn forward(
    cluster: &Arc<SimCluster>,
    link: &Link,
    request: Request<Incoming>,
    info: &Info,
    r: &Resource,
    user: &str,
) -> Result<Response<ApiBody>, Status> {
    if !matches!(info.verb, "get" | "create") {
        return Err(Status::method_not_allowed());
    }
    let transport = SimTransport::of(request.headers());
    // Since 1.35 a WebSocket needs what SPDY's POST needs, although it is a GET.
    let socket = matches!(
        transport,
        Some(SimTransport::Tunnel | SimTransport::Channel)
    );
    let strict = cluster.options.minor >= 35 && socket;
    if strict && info.verb == "get" && !allowed(cluster, user, "create", r) {
        return Err(refused(user, "create", r));
    }
    let missing = || Status::not_found(&POD, &r.name);
    let uid = {
        let world = cluster.world();
        let pod = world.store.get(&POD, &r.namespace, &r.name);
        let uid = &pod.ok_or_else(missing)?["metadata"]["uid"];
        uid.as_str().unwrap_or_default().to_owned()
    };
    let pod = cluster.network.get(&uid).ok_or_else(|| {
        Status::bad_request(format!("pod {} does not have a host assigned", r.name))
    })?;
    let ports = info.query.get("ports").map_or(&[][..], Vec::as_slice);
    portforward::upgrade(cluster, link, request, pod, user, ports)
}

async fn resources(
    cluster: &Arc<SimCluster>,
    request: Request<Incoming>,
    info: &Info,
    r: &Resource,
) -> Result<Response<ApiBody>, Status> {
    if r.group == "authorization.k8s.io" && r.plural == "selfsubjectaccessreviews" {
        return review(cluster, request).await;
    }
    if !discovery::has_group(&r.group, &r.version) {
        return Ok(text(StatusCode::NOT_FOUND, "404 page not found\n"));
    }
    let kind = ResourceKind::served(&r.group, &r.version, &r.plural, cluster.options.minor);
    let kind = kind.filter(|kind| match r.subresource.as_str() {
        "" => true,
        "status" => kind.has_status,
        _ => false,
    });
    let kind = kind.ok_or_else(Status::no_such_resource)?;
    if !accepts_json(request.headers()) {
        return Err(Status::not_acceptable());
    }
    if *request.method() == Method::HEAD {
        return Err(Status::method_not_allowed());
    }
    let answer = objects(cluster, request, info, r, kind).await;
    let mut response = answer.unwrap_or_else(|status| failure(&status));
    if *kind == ENDPOINTS && cluster.options.minor >= 33 {
        let warning = HeaderValue::from_static(
            "299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\"",
        );
        response.headers_mut().insert(header::WARNING, warning);
    }
    Ok(response)
}

async fn objects(
    cluster: &Arc<SimCluster>,
    request: Request<Incoming>,
    info: &Info,
    r: &Resource,
    kind: &'static ResourceKind,
) -> Result<Response<ApiBody>, Status> {
    if r.subresource == "status" {
        return status(cluster, request, info, r, kind).await;
    }
    let named = !r.name.is_empty();
    let everywhere = kind.namespaced && r.namespace.is_empty();
    let (code, value) = match info.verb {
        "get" => (StatusCode::OK, read::get(cluster, kind, r)?),
        "list" => (StatusCode::OK, read::list(cluster, kind, r, info).await?),
        "watch" => {
            let body = watch::watch(cluster, kind, r, info)?;
            return Ok(json_response(StatusCode::OK, body));
        }
        "create" if !named && !everywhere => {
            let body = body(request, "application/json").await?;
            write::create(cluster, kind, r, &body)?
        }
        "update" if named => {
            let body = body(request, "application/json").await?;
            write::update(cluster, kind, r, &body)?
        }
        "patch" if named => {
            let body = body(request, "application/merge-patch+json").await?;
            write::patch(cluster, kind, r, &body)?
        }
        "delete" => write::delete(cluster, kind, r)?,
        _ => return Err(Status::method_not_allowed()),
    };
    Ok(object(code, &value))
}

/// The status alone, which clients other than its controller have no business to change.
async fn status(
    cluster: &Arc<SimCluster>,
    request: Request<Incoming>,
    info: &Info,
    r: &Resource,
    kind: &'static ResourceKind,
) -> Result<Response<ApiBody>, Status> {
    let value = match info.verb {
        "get" => read::get(cluster, kind, r)?,
        "patch" => {
            let body = body(request, "application/merge-patch+json").await?;
            write::patch_status(cluster, kind, r, &body)?
        }
        _ => return Err(Status::method_not_allowed()),
    };
    Ok(object(StatusCode::OK, &value))
}

/// SelfSubjectAccessReview: whether the one who asks may do something.
async fn review(
    cluster: &SimCluster,
    request: Request<Incoming>,
) -> Result<Response<ApiBody>, Status> {
    if *request.method() != Method::POST {
        return Err(Status::method_not_allowed());
    }
    let mut user = token(request.headers())
        .and_then(|t| cluster.access.user(t))
        .unwrap_or_else(|| ANONYMOUS.to_owned());
    impersonate(cluster, request.headers(), &mut user)?;
    let body = body(request, "application/json").await?;
    let mut review: Value = serde_json::from_slice(&body).map_err(|e| {
        Status::bad_request(format!("couldn't get version/kind; json parse error: {e}"))
    })?;
    let spec = &review["spec"];
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let allowed = if let Some(path) = spec["nonResourceAttributes"]["path"].as_str() {
        cluster.access.allows_path(&user, path)
    } else {
        let asked = &spec["resourceAttributes"];
        let resource = Resource {
            group: text(&asked["group"]),
            plural: text(&asked["resource"]),
            subresource: text(&asked["subresource"]),
            namespace: text(&asked["namespace"]),
            name: text(&asked["name"]),
            ..Resource::default()
        };
        let full = full_name(&resource);
        cluster
            .access
            .allows(&user, deed(&text(&asked["verb"]), &resource, &full))
    };
    review["kind"] = "SelfSubjectAccessReview".into();
    review["apiVersion"] = "authorization.k8s.io/v1".into();
    if review["metadata"].is_null() {
        review["metadata"] = json!({});
    }
    review["status"] = json!({"allowed": allowed});
    Ok(object(StatusCode::CREATED, &review))
}

async fn body(request: Request<Incoming>, accepted: &str) -> Result<Bytes, Status> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.map_or(accepted, |v| v.to_str().unwrap_or_default());
    if kind.split(';').next().map(str::trim) != Some(accepted) {
        return Err(Status::unsupported_media_type(accepted));
    }
    let body = Limited::new(request.into_body(), LARGEST).collect().await;
    let body = body.map_err(|_| Status::too_large(LARGEST))?;
    Ok(body.to_bytes())
}

fn accepts_json(headers: &HeaderMap) -> bool {
    let Some(accept) = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()) else {
        return true;
    };
    accept.split(',').any(|part| {
        let kind = part.split(';').next().unwrap_or_default().trim();
        let table = part.contains("as=");
        ["application/json", "application/*", "*/*"].contains(&kind) && !table
    })
}

fn token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    value.strip_prefix("Bearer ").map(str::trim)
}

fn record(request: &Request<Incoming>, info: &Info) -> audit::AuditedRequest {
    let header = |name| {
        let value: Option<&HeaderValue> = request.headers().get(name);
        value
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let uri = request.uri();
    let r = info.resource.clone().unwrap_or_default();
    audit::AuditedRequest {
        verb: info.verb.into(),
        group: r.group,
        resource: r.plural,
        subresource: r.subresource,
        namespace: r.namespace,
        name: r.name,
        uri: uri
            .path_and_query()
            .map_or_else(String::new, ToString::to_string),
        user: String::new(),
        user_agent: header(header::USER_AGENT),
        http: if request.version() == Version::HTTP_2 {
            2
        } else {
            1
        },
        code: 0,
    }
}

fn drop_link(link: &Link) -> Result<Response<ApiBody>, Dropped> {
    link.reset();
    Err(Dropped)
}

/// What a middlebox says.
fn rejection(code: u16) -> Response<ApiBody> {
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::FORBIDDEN);
    let body = format!("<html><body><h1>{code}</h1></body></html>\n");
    respond(code, "text/html", full(body))
}

pub(crate) fn failure(status: &Status) -> Response<ApiBody> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = object(code, &status.object());
    if let Some(seconds) = status.retry_after() {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn object(code: StatusCode, value: &Value) -> Response<ApiBody> {
    json_response(code, full(format!("{value}\n")))
}

fn json_response(code: StatusCode, body: ApiBody) -> Response<ApiBody> {
    respond(code, "application/json", body)
}

pub(crate) fn text(code: StatusCode, body: &str) -> Response<ApiBody> {
    respond(code, "text/plain; charset=utf-8", full(body.to_owned()))
}

fn respond(code: StatusCode, kind: &'static str, body: ApiBody) -> Response<ApiBody> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

pub(crate) fn full(body: String) -> ApiBody {
    Full::new(Bytes::from(body)).boxed_unsync()
}
