//! The HTTP API of a tenant's own back ends, under `/t/{tenant}/api/v1`; `openapi.json` there describes it.
//!
//! A request is looked up ([`route`]), its key is looked at ([`key`]), and only then its body is read, within bounds
//! ([`body`]).

mod body;
mod connections;
mod denied;
mod events;
mod key;
mod publish;
mod revocations;
mod rooms;
mod route;

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::http::HeaderMap;
use hyper::{Method, Request, StatusCode};
use serde_json::Value;

use self::denied::Denied;
use self::route::{Call, Found, Route};
use super::{Answer, answer as plain_answer, json_answer};
use crate::connection::protocol::parse_namespace;
use crate::connection::upgrade;
use crate::decision::once::Once;
use crate::gateway::{Gateway, LiveTenant};
use crate::room::{ROOT_NAMESPACE, Room};

/// What the API is, for programs.
const DOCUMENT: &str = include_str!("api/openapi.json");

/// The header by which a request that is sent again is known.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The longest idempotency key, in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// What comes of a call: a JSON document, or why not.
type Done = Result<Value, Denied>;

/// A call whose key is good for it.
struct Asked {
    gateway: Arc<Gateway>,
    tenant: Arc<LiveTenant>,
    /// Who asks: the key's id.
    by: Arc<str>,
    method: Method,
    /// Path and query.
    target: String,
    /// What the path names: a connection, a user or a room.
    name: String,
    query: BTreeMap<String, String>,
    headers: HeaderMap,
    body: Option<Incoming>,
}

impl Asked {
    /// A parameter of the query; an empty one is none.
    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    fn number(&self, name: &str) -> Result<Option<usize>, Denied> {
        let Some(text) = self.parameter(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Denied::invalid(format!("{name} must be an integer, not {text:?}")))
    }

    /// The namespace of the query; without one the root.
    fn namespace(&self) -> Result<String, Denied> {
        namespace(self.parameter("namespace"))
    }

    /// The room that the path names, in the namespace of the query.
    fn room(&self) -> Result<Room, Denied> {
        room_in(&self.namespace()?, &self.name)
    }

    /// The name that the request has been given, so that it is done once.
    fn once(&self, body: &[u8]) -> Result<Option<Once>, Denied> {
        let Some(name) = self.headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
        if name.is_empty() || name.len() > IDEMPOTENCY_KEY_BYTES_MAX {
            let text = format!("Idempotency-Key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes, not {}", name.len());
            return Err(Denied::invalid(text));
        }
        let name = name.to_str().map_err(|_| Denied::invalid("Idempotency-Key must be printable ASCII"))?;
        let mut request = format!("{} {}\n", self.method, self.target).into_bytes();
        request.extend_from_slice(body);
        Ok(Some(Once::new(&self.by, name, &request)))
    }
}

fn namespace(given: Option<&str>) -> Result<String, Denied> {
    parse_namespace(given.unwrap_or(ROOT_NAMESPACE))
        .map(str::to_owned)
        .map_err(|error| Denied::invalid(error.to_string()))
}

/// A room by its name in a namespace, or by its full name.
fn room_in(namespace: &str, name: &str) -> Result<Room, Denied> {
    let room = if name.starts_with('/') { Room::parse(name).map(Some) } else { Room::parse_in(namespace, name) };
    let room = room.map_err(|error| Denied::invalid(error.to_string()))?;
    room.ok_or_else(|| Denied::invalid(format!("{name} is no room of {namespace}")))
}

/// Answers a request for `path` below `/api/v1`.
pub(super) async fn answer(
    gateway: &Arc<Gateway>,
    tenant: Option<Arc<LiveTenant>>,
    path: &str,
    request: Request<Incoming>,
) -> Answer {
    let found = route::find(request.method().as_str(), path);
    let tenant = tenant.or_else(|| gateway.tenant(gateway.config.default_tenant.as_ref()?.as_str()));
    let (label, done) = match (found, tenant) {
        (Found::Nothing, _) => {
            let text = "there is nothing here; /t/{tenant}/api/v1/openapi.json says what there is";
            ("none", Err(Denied::new(StatusCode::NOT_FOUND, "not_found", text)))
        }
        (Found::Methods(methods), _) => ("none", Err(Denied::methods(&methods))),
        (Found::Route(Route { call: Call::Document, path, .. }, _), _) => {
            (*path, Ok(plain_answer(StatusCode::OK, "application/json", DOCUMENT)))
        }
        (Found::Route(route, _), None) => {
            let text = format!("say whose: /t/{{tenant}}/api/v1{path}; the gateway has no default_tenant");
            (route.path, Err(Denied::new(StatusCode::NOT_FOUND, "unknown_tenant", text)))
        }
        (Found::Route(route, name), Some(tenant)) => (route.path, done(gateway, &tenant, route, name, request).await),
    };
    let mut answer = done.unwrap_or_else(Denied::answer);
    let status = answer.status().as_u16().to_string();
    metrics::counter!("api_requests_total", "route" => label, "status" => status).increment(1);
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

async fn done(
    gateway: &Arc<Gateway>,
    tenant: &Arc<LiveTenant>,
    route: &'static Route,
    name: String,
    request: Request<Incoming>,
) -> Result<Answer, Denied> {
    let by = key::permitted(&*gateway.engine, tenant, route, request.headers()).await?;
    let query = upgrade::query_parameters(request.uri().query()).into_iter().collect();
    let (head, body) = request.into_parts();
    let asked = Asked {
        gateway: gateway.clone(),
        tenant: tenant.clone(),
        by,
        target: head.uri.path_and_query().map_or("", |target| target.as_str()).to_owned(),
        method: head.method,
        name,
        query,
        headers: head.headers,
        body: Some(body),
    };
    call(route.call, asked).await.map(|body| json_answer(StatusCode::OK, &body))
}

async fn call(call: Call, asked: Asked) -> Done {
    match call {
        // Answered before a key is looked at.
        Call::Document => Err(Denied::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here")),
        Call::Raise => events::raise(asked).await,
        Call::Publish => publish::one(asked).await,
        Call::PublishBatch => publish::batch(asked).await,
        Call::Connection => connections::show(asked).await,
        Call::SendToConnection => connections::send(asked).await,
        Call::EndConnection => connections::end(asked).await,
        Call::UserConnections => connections::of_user(asked).await,
        Call::EndUserConnections => connections::end_of_user(asked).await,
        Call::Room => rooms::show(asked).await,
        Call::History => rooms::history(asked).await,
        Call::Join => rooms::join(asked).await,
        Call::Leave => rooms::leave(asked).await,
        Call::Revocations => revocations::list(asked).await,
        Call::Revoke => revocations::revoke(asked).await,
        Call::TakeBack => revocations::take_back(asked).await,
    }
}
