//! The HTTP side: upgrades, health, metrics, events from back ends, the admin API, the demo page.

mod admin;
mod api;
mod health;
mod pages;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, CONNECTION, CONTENT_TYPE,
    HOST, HeaderValue, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_VERSION, UPGRADE, VARY,
    WWW_AUTHENTICATE,
};
use hyper::http::HeaderMap;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::close::Blame;
use crate::connection::protocol::engineio::RequestError;
use crate::connection::server::{self, Answer, Body};
use crate::connection::socket::{Socket, Writer};
use crate::connection::upgrade::{self, Protocol};
use crate::delivery::outbox::{Next, Outbox, OutboxLimits, TryWrite};
use crate::gateway::{Gateway, LiveTenant, Slot};
use crate::session::{Claim, Hello, Session, farewell_timeout};
use crate::tenant::Limits;

pub use pages::welcome;

/// Answers requests.
pub struct Http {
    gateway: Arc<Gateway>,
}

/// What a path means.
enum Target {
    Json,
    SocketIo,
    Api(String),
    Health,
    Live,
    Ready,
    Metrics,
    Status,
    Demo(String),
    Admin,
    Unknown,
}

/// A path without its tenant: `/t/{tenant}/…` or `/…`.
fn target(path: &str) -> (Option<&str>, Target) {
    let (tenant, rest) = match path.strip_prefix("/t/").and_then(|rest| rest.split_once('/')) {
        Some((tenant, rest)) => (Some(tenant), rest),
        None => (None, path.strip_prefix('/').unwrap_or(path)),
    };
    let target = match rest {
        "ws" | "ws/" => Target::Json,
        "socket.io" | "socket.io/" => Target::SocketIo,
        "health" => Target::Health,
        "api/v1/health/live" => Target::Live,
        "api/v1/health/ready" => Target::Ready,
        "metrics" => Target::Metrics,
        "api/v1/ws/metrics" => Target::Status,
        "demo" | "demo/" => Target::Demo(String::new()),
        // The admin API is of all tenants, so it is under none.
        _ if tenant.is_none() && (rest == "admin" || rest.starts_with("admin/")) => Target::Admin,
        _ if rest.starts_with("api/v1/") => Target::Api(rest["api/v1".len()..].to_owned()),
        _ => match rest.strip_prefix("demo/") {
            Some(file) => Target::Demo(file.to_owned()),
            None => Target::Unknown,
        },
    };
    (tenant, target)
}

/// A JSON answer.
fn json_answer(status: StatusCode, body: &Value) -> Answer {
    answer(status, "application/json", body.to_string())
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Body::Whole(Full::new(body.into())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// A refusal, as every part of the HTTP side words it.
fn refusal(status: StatusCode, code: &str, message: &str) -> Answer {
    json_answer(status, &json!({ "error": { "code": code, "message": message } }))
}

/// Compares without telling by its time where the difference is.
fn same(given: &[u8], expected: &[u8]) -> bool {
    use sha2::{Digest, Sha256};
    let (given, expected) = (Sha256::digest(given), Sha256::digest(expected));
    given.iter().zip(expected.iter()).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

impl server::Service for Http {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Answer {
        let origin = request.headers().get(ORIGIN).cloned();
        let path = request.uri().path().to_owned();
        let (tenant_name, target) = target(&path);
        let tenant = tenant_name.and_then(|name| self.gateway.tenant(name));
        if let (Some(name), None) = (tenant_name, &tenant) {
            return refusal(StatusCode::NOT_FOUND, "unknown_tenant", &format!("there is no tenant {name:?} here"));
        }
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        let tenant = tenant.or_else(|| self.gateway.tenant_of_host(host?));
        let origins = match &tenant {
            // The admin API is of all tenants, whosever host it is called by.
            Some(tenant) if !matches!(target, Target::Admin) && !tenant.settings().origins.is_empty() => {
                tenant.settings().origins.clone()
            }
            _ => self.gateway.config.origins.clone(),
        };
        let allowed = upgrade::origin_allowed(request.headers(), &origins);
        let mut answer = if request.method() == Method::OPTIONS {
            preflight(allowed)
        } else if !allowed {
            match target {
                Target::SocketIo => engine_error(RequestError::Forbidden),
                _ => {
                    let text = "this origin may not call here (settings origins, CORS_ORIGIN)";
                    refusal(StatusCode::FORBIDDEN, "origin_not_allowed", text)
                }
            }
        } else {
            self.route(target, tenant, request, peer).await
        };
        if let (true, Some(origin)) = (allowed, origin) {
            answer.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            answer.headers_mut().append(VARY, HeaderValue::from_static("origin"));
        }
        answer
    }
}

fn preflight(allowed: bool) -> Answer {
    let mut answer = answer(if allowed { StatusCode::NO_CONTENT } else { StatusCode::FORBIDDEN }, "text/plain", "");
    if allowed {
        let headers = answer.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE, OPTIONS"));
        headers.insert(
            ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("authorization, content-type, idempotency-key"),
        );
    }
    answer
}

fn engine_error(error: RequestError) -> Answer {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST);
    answer(status, "application/json", error.body())
}

impl Http {
    /// For one gateway.
    pub fn new(gateway: Arc<Gateway>) -> Http {
        Http { gateway }
    }

    /// May whoever sends this see what names the tenants?
    fn may_measure(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = &self.gateway.config.metrics_token else { return true };
        upgrade::token(headers, None).is_some_and(|given| same(given.as_bytes(), &expected.0))
    }

    async fn route(
        &self,
        target: Target,
        tenant: Option<Arc<LiveTenant>>,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Answer {
        match (request.method(), target) {
            (&Method::GET, Target::Json) => self.upgrade(Protocol::Json, tenant, request, peer),
            (&Method::GET | &Method::POST, Target::SocketIo) => match socketio_request(&request) {
                Ok(()) => self.upgrade(Protocol::SocketIo, tenant, request, peer),
                Err(error) => engine_error(error),
            },
            (_, Target::Api(path)) => api::answer(&self.gateway, tenant, &path, request).await,
            (&Method::GET, Target::Health) => health::health(&self.gateway),
            (&Method::GET, Target::Live) => json_answer(StatusCode::OK, &json!({ "status": "live" })),
            (&Method::GET, Target::Ready) => health::ready(&self.gateway).await,
            (&Method::GET, Target::Metrics | Target::Status) if !self.may_measure(request.headers()) => {
                let text = "send the setting metrics_token as Authorization: Bearer";
                let mut answer = refusal(StatusCode::UNAUTHORIZED, "unauthorized", text);
                answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                answer
            }
            (&Method::GET, Target::Metrics) => health::metrics(&self.gateway),
            (&Method::GET, Target::Status) => health::status(&self.gateway),
            (&Method::GET, Target::Demo(file)) if self.gateway.config.demo => pages::demo(&self.gateway, &file),
            (_, Target::Admin) => admin::answer(&self.gateway, request, peer.ip()).await,
            (_, Target::Unknown | Target::Demo(_)) => {
                refusal(StatusCode::NOT_FOUND, "not_found", "there is nothing here")
            }
            (method, _) => refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                &format!("{method} is not for this address"),
            ),
        }
    }

    /// Takes a WebSocket: the answer is the handshake's, the session begins when it is sent.
    fn upgrade(
        &self,
        protocol: Protocol,
        tenant: Option<Arc<LiveTenant>>,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Answer {
        let accept = match upgrade::accept(request.headers()) {
            Ok(accept) => accept,
            Err(_) if protocol == Protocol::SocketIo => return engine_error(RequestError::BadRequest),
            Err(error) => {
                let mut answer = refusal(StatusCode::UPGRADE_REQUIRED, "not_an_upgrade", &error.to_string());
                answer.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
                answer.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                return answer;
            }
        };
        if self.gateway.tasks.draining().is_cancelled() {
            return busy("shutdown", "this node stops; come back in a moment");
        }
        let Some(namespace) = upgrade::namespace(request.uri().query()) else {
            return refusal(StatusCode::BAD_REQUEST, "invalid", "namespace must start with `/` and have no `#` or `,`");
        };
        let Some(slot) = self.gateway.connections.take() else {
            metrics::counter!("ws_connection_errors_total", "reason" => "server_full").increment(1);
            let text = format!("{} connections are open (setting max_connections)", self.gateway.connections.max());
            return busy("server_full", &text);
        };
        let mut query = upgrade::query_parameters(request.uri().query());
        // A session's name is as good as a key: components are not shown it.
        let session = if protocol == Protocol::Json { query.remove("session") } else { None };
        let claim = session.map(|session| Claim::of_query(session, query.remove("pos").as_deref()));
        let hello = Hello {
            protocol,
            tenant,
            namespace,
            token: upgrade::token(request.headers(), request.uri().query()),
            origin: request.headers().get(ORIGIN).and_then(|origin| origin.to_str().ok()).map(str::to_owned),
            host: request.headers().get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned),
            claim,
            query,
            address: peer,
        };
        let gateway = self.gateway.clone();
        self.gateway.tasks.spawn(async move {
            if let Some((stream, read_already)) = server::take_stream(request).await {
                converse(gateway, hello, stream, read_already, slot).await;
            }
        });
        let mut answer = answer(StatusCode::SWITCHING_PROTOCOLS, "text/plain", "");
        let headers = answer.headers_mut();
        headers.remove(CONTENT_TYPE);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        answer
    }
}

fn busy(code: &str, message: &str) -> Answer {
    let mut answer = refusal(StatusCode::SERVICE_UNAVAILABLE, code, message);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
    answer
}

/// Is it a WebSocket handshake of Engine.IO v4? Otherwise the protocol's own error. Polling is
/// not spoken here yet.
fn socketio_request(request: &Request<Incoming>) -> Result<(), RequestError> {
    let query = request.uri().query();
    if upgrade::query_parameter(query, "EIO").as_deref() != Some("4") {
        return Err(RequestError::UnsupportedVersion);
    }
    if upgrade::query_parameter(query, "transport").as_deref() != Some("websocket") {
        return Err(RequestError::UnknownTransport);
    }
    if upgrade::query_parameter(query, "sid").is_some() {
        return Err(RequestError::UnknownSession);
    }
    if request.method() == Method::GET { Ok(()) } else { Err(RequestError::BadHandshakeMethod) }
}

struct Direct(Writer);

impl TryWrite for Direct {
    fn try_write(&self, pieces: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
        self.0.try_write(pieces)
    }
}

/// Runs a session with its reader and its writer, and says how it ended.
async fn converse(gateway: Arc<Gateway>, hello: Hello, stream: tokio::net::TcpStream, read_already: Bytes, slot: Slot) {
    let limits = hello.tenant.as_ref().map_or_else(Limits::default, |tenant| tenant.settings().limits.clone());
    let (address, protocol) = (hello.address, hello.protocol);
    let label = if protocol == Protocol::Json { "json" } else { "socketio" };
    metrics::counter!("ws_connections_total", "protocol" => label).increment(1);
    let (socket, reader) = Socket::open(stream, read_already, limits.message_bytes);
    let outbox_limits = OutboxLimits { bytes: limits.outbox_bytes, messages: limits.outbox_messages };
    let outbox = Outbox::new(Arc::new(Direct(socket.writer.clone())), outbox_limits);
    let reader = gateway.tasks.spawn(reader);
    let writer = gateway.tasks.spawn(write(outbox.clone(), socket.writer.clone()));
    let close = Session::new(gateway, hello, socket, outbox, slot).run().await;
    // A client that takes nothing any more does not keep the node from forgetting it.
    let abort = writer.abort_handle();
    if tokio::time::timeout(farewell_timeout(), writer).await.is_err() {
        abort.abort();
    }
    reader.abort();
    metrics::counter!("ws_disconnections_total", "reason" => close.word()).increment(1);
    match close.blame() {
        Blame::Nobody => tracing::debug!(%address, protocol = label, reason = close.word(), "connection ended"),
        blame => {
            metrics::counter!("ws_connection_errors_total", "reason" => close.word()).increment(1);
            tracing::info!(%address, protocol = label, reason = close.word(), code = close.code(), ?blame, "connection ended");
        }
    }
}

/// Writes what the direct path left, until the last word is out.
async fn write(outbox: Arc<Outbox>, writer: Writer) {
    loop {
        match outbox.next().await {
            Next::Write(frames) => {
                if let Err(error) = writer.write_all(frames).await {
                    let slow = error.kind() == std::io::ErrorKind::TimedOut;
                    outbox.end(if slow { crate::close::Close::Slow } else { crate::close::Close::ConnectionLost });
                    return;
                }
            }
            Next::Done => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_compared_whole() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd") && !same(b"", b"abc") && !same(b"abcd", b"abc"));
    }
}
