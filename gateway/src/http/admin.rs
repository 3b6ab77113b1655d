//! The admin API: tenants, plugins and tokens, changed on all nodes; `admin/openapi.json` describes it.
//!
//! A request is looked up ([`route`]), its token is looked at ([`token`]), and only then its body is read, within bounds
//! ([`body`]). What it changes is the [catalog](crate::catalog)'s; every node follows that.

mod body;
mod denied;
mod guesses;
mod keys;
mod logs;
mod plugins;
mod query;
mod rates;
mod revocations;
mod route;
mod tenants;
mod token;
mod tokens;
mod upload;
mod versions;

use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::http::HeaderMap;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};

use self::denied::Denied;
use self::query::Query;
use self::route::{Call, Found, Names, Need, Route};
use super::{Answer, answer as plain_answer, json_answer};
use crate::catalog::{Actor, Scope};
use crate::connection::server::Stay;
use crate::gateway::Gateway;
use crate::tenant::TenantId;

/// What the API is, for programs.
const DOCUMENT: &str = include_str!("admin/openapi.json");

/// What comes of a call: a status and a JSON document, or why not.
type Done = Result<(StatusCode, Value), Denied>;

/// A call whose token is good for it.
struct Asked {
    gateway: Arc<Gateway>,
    actor: Actor,
    /// The tenant that the path names.
    tenant: Option<TenantId>,
    names: Names,
    query: Query,
    headers: HeaderMap,
    body: Incoming,
    stay: Option<Stay>,
}

impl Asked {
    /// The tenant that the path names.
    fn tenant(&self) -> Result<&TenantId, Denied> {
        self.tenant.as_ref().ok_or_else(|| Denied::not_found("the address names no tenant"))
    }
}

/// Answers a request below `/admin`.
pub(super) async fn answer(gateway: &Arc<Gateway>, request: Request<Incoming>, peer: IpAddr) -> Answer {
    let found = route::find(request.method().as_str(), request.uri().path());
    let mut label = "none";
    let mut answer = match found {
        Found::Nothing => {
            Denied::not_found(format!("there is nothing here; {}/openapi.json says what there is", route::BASE))
                .answer()
        }
        Found::Methods(methods) => Denied::methods(&methods).answer(),
        Found::Route(Route { call: Call::Document, .. }, _) => {
            label = "/openapi.json";
            plain_answer(StatusCode::OK, "application/json", DOCUMENT)
        }
        Found::Route(route, names) => {
            label = route.path;
            // It goes on when whoever asked has gone: what is half done would be left to the next one.
            let (gateway, tasks) = (gateway.clone(), &gateway.tasks);
            match tasks.spawn(async move { done(&gateway, route, names, request, peer).await }).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(denied)) => denied.answer(),
                Err(error) => {
                    tracing::error!(%error, route = route.path, "a call of the admin API failed");
                    let text = "the gateway failed at this call, and its log says why: look before you repeat it";
                    Denied::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text).answer()
                }
            }
        }
    };
    let status = answer.status().as_u16().to_string();
    metrics::counter!("admin_requests_total", "route" => label, "status" => status).increment(1);
    // Answers are about tenants, and may hold a token's secret.
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

async fn done(
    gateway: &Arc<Gateway>,
    route: &'static Route,
    names: Names,
    request: Request<Incoming>,
    peer: IpAddr,
) -> Result<Answer, Denied> {
    let actor = token::actor(gateway, request.headers(), peer).await?;
    let named = matches!(route.need, Need::Read | Need::Change) || !names.tenant.is_empty();
    let tenant = if named { Some(tenant(&names.tenant)?) } else { None };
    token::permit(&actor, route.need, tenant.as_ref())?;
    if route.need == Need::Change {
        let what = if route.call == Call::Upload { rates::Counted::Uploads } else { rates::Counted::Changes };
        rates::count(&gateway.config.admin, &actor, what)?;
    }
    let stay = request.extensions().get::<Stay>().cloned();
    let query = Query::read(request.uri().query());
    let (head, body) = request.into_parts();
    let asked = Asked { gateway: gateway.clone(), actor, tenant, names, query, headers: head.headers, body, stay };
    if route.call == Call::Logs {
        return logs::logs(asked).await;
    }
    let (status, body) = call(route.call, asked).await?;
    Ok(if status == StatusCode::NO_CONTENT {
        plain_answer(status, "application/json", "")
    } else {
        json_answer(status, &body)
    })
}

async fn call(call: Call, asked: Asked) -> Done {
    match call {
        // Answered before a token is looked at, and piece by piece.
        Call::Document | Call::Logs => Err(Denied::not_found("there is nothing here")),
        Call::WhoAmI => Ok(ok(tokens::shown_actor(&asked.actor))),
        Call::Nodes => Ok(ok(nodes(&asked.gateway))),
        Call::Tenants => tenants::list(asked).await,
        Call::CreateTenant => tenants::create(asked).await,
        Call::Tenant => tenants::show(asked).await,
        Call::DeleteTenant => tenants::delete(asked).await,
        Call::ChangeSettings => tenants::change_settings(asked).await,
        Call::DisableTenant => tenants::disable(asked, true).await,
        Call::EnableTenant => tenants::disable(asked, false).await,
        Call::Usage => tenants::usage(asked).await,
        Call::Keys => keys::list(asked).await,
        Call::Key => keys::show(asked).await,
        Call::PutKey => keys::put(asked).await,
        Call::DeleteKey => keys::delete(asked).await,
        Call::Revocations => revocations::list(asked).await,
        Call::Revoke => revocations::revoke(asked).await,
        Call::TakeBack => revocations::take_back(asked).await,
        Call::Plugins => plugins::list(asked).await,
        Call::Plugin => plugins::show(asked).await,
        Call::PutPlugin => plugins::put(asked).await,
        Call::DeletePlugin => plugins::delete(asked).await,
        Call::DisablePlugin => plugins::disable(asked, true).await,
        Call::EnablePlugin => plugins::disable(asked, false).await,
        Call::Versions => versions::list(asked).await,
        Call::Upload => upload::upload(asked).await,
        Call::Activate => versions::activate(asked).await,
        Call::RollBack => versions::roll_back(asked).await,
        Call::PutCanary => versions::put_canary(asked).await,
        Call::DeleteCanary => versions::delete_canary(asked).await,
        Call::Rollout => versions::rollout(asked).await,
        Call::Audit => tokens::audit(asked).await,
        Call::Tokens => tokens::list(asked).await,
        Call::CreateToken => tokens::create(asked).await,
        Call::RevokeToken => tokens::revoke(asked).await,
    }
}

fn ok(body: Value) -> (StatusCode, Value) {
    (StatusCode::OK, body)
}

/// A tenant by the name in an address. Who asks for what can be no name hears that there is none.
fn tenant(name: &str) -> Result<TenantId, Denied> {
    TenantId::parse(name).map_err(|_| no_tenant(name))
}

fn no_tenant(name: &str) -> Denied {
    Denied::not_found(format!("there is no tenant {name:?}"))
}

/// The live nodes; this one's number is of now, the others' are a few seconds old.
fn nodes(gateway: &Gateway) -> Value {
    let own = json!({ "server": gateway.server_id, "connections": gateway.connections.taken() });
    let others = gateway.engine.nodes().into_iter().filter(|node| {
        // One that has only just come has not said its name yet.
        node.server != gateway.server_id && !node.server.is_empty()
    });
    let others = others.map(|node| json!({ "server": node.server, "connections": node.connections }));
    json!({ "nodes": std::iter::once(own).chain(others).collect::<Vec<_>>() })
}

/// A scope as the API writes it.
fn scope_word(scope: Scope) -> &'static str {
    match scope {
        Scope::Operator => "operator",
        Scope::TenantAdmin => "tenant-admin",
        Scope::TenantRead => "tenant-read",
    }
}
