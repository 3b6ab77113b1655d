//! The demo pages, in demo mode only: visitor approvals, and one event through a whole cluster.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue};
use serde_json::{Value, json};

use super::{Answer, answer, json_answer, refusal};
use crate::commit::now_ms;
use crate::decision::token::sign;
use crate::gateway::{Gateway, LiveTenant};
use crate::tenant::KeyMaterial;

/// The tenant that the page of visitor approvals shows.
const DEMO_TENANT: &str = "green-valley";
/// The tenant of the cluster's page.
const CLUSTER_TENANT: &str = "team-hub";
/// What its clients are in, so that it is the namespace whose everyone gets `test-event`.
const CLUSTER_NAMESPACE: &str = "/events";
/// How long the page's tokens last, in seconds.
const TOKEN_TTL_S: u64 = 12 * 3_600;
/// What the page may load and talk to.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; base-uri 'none'; frame-ancestors 'self'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// `GET /demo/{file}`.
pub(super) fn demo(gateway: &Arc<Gateway>, file: &str) -> Answer {
    let (content_type, body): (_, &'static [u8]) = match file {
        "" => (HTML, include_bytes!("pages/demo.html")),
        "demo.css" => ("text/css; charset=utf-8", include_bytes!("pages/demo.css")),
        "demo.js" => (SCRIPT, include_bytes!("pages/demo.js")),
        "demo_cards.js" => (SCRIPT, include_bytes!("pages/demo_cards.js")),
        "demo_link.js" => (SCRIPT, include_bytes!("pages/demo_link.js")),
        "demo_log.js" => (SCRIPT, include_bytes!("pages/demo_log.js")),
        "socket.io.min.js" => (SCRIPT, include_bytes!("pages/socket.io.min.js")),
        "icon.svg" => ("image/svg+xml", include_bytes!("pages/icon.svg")),
        "cluster" => (HTML, include_bytes!("pages/cluster.html")),
        "cluster.css" => ("text/css; charset=utf-8", include_bytes!("pages/cluster.css")),
        "cluster.js" => (SCRIPT, include_bytes!("pages/cluster.js")),
        "cluster_link.js" => (SCRIPT, include_bytes!("pages/cluster_link.js")),
        "theme.js" => (SCRIPT, include_bytes!("pages/theme.js")),
        "tokens.json" => return tokens(gateway),
        "cluster_tokens.json" => return cluster_tokens(gateway),
        _ => return refusal(StatusCode::NOT_FOUND, "not_found", "the demo has no such file"),
    };
    let mut answer = answer(StatusCode::OK, content_type, body);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer
}

/// Ready-made tokens of the people on the page.
fn tokens(gateway: &Arc<Gateway>) -> Answer {
    let Some(tenant) = gateway.tenant(DEMO_TENANT) else {
        return refusal(StatusCode::NOT_FOUND, "unknown_tenant", "the demo needs the tenant green-valley");
    };
    let people = demo_people(&tenant);
    let timeout_ms = tenant
        .settings()
        .plugins
        .iter()
        .find_map(|plugin| plugin.settings.get("timeout_ms")?.parse::<u64>().ok())
        .unwrap_or(120_000);
    json_answer(StatusCode::OK, &json!({ "tenant": DEMO_TENANT, "timeout_ms": timeout_ms, "tokens": people }))
}

/// Ready-made tokens of the members on the cluster's page.
fn cluster_tokens(gateway: &Arc<Gateway>) -> Answer {
    let Some(tenant) = gateway.tenant(CLUSTER_TENANT) else {
        return refusal(StatusCode::NOT_FOUND, "unknown_tenant", "this page needs the tenant team-hub");
    };
    let members = ["ana", "ben", "cleo"].map(|member| (member, json!({ "sub": member, "projects": ["p1"] })));
    let tokens = signed(&tenant, members);
    json_answer(StatusCode::OK, &json!({ "tenant": CLUSTER_TENANT, "namespace": CLUSTER_NAMESPACE, "tokens": tokens }))
}

/// What a person who has just started the demo wants to know.
pub fn welcome(gateway: &Gateway, address: SocketAddr) -> Option<String> {
    let tenant = gateway.tenant(DEMO_TENANT)?;
    let host = if address.ip().is_unspecified() { "localhost".to_owned() } else { address.ip().to_string() };
    let url = format!("http://{host}:{}", address.port());
    let mut text =
        format!("\nPostern's demo is open at {url}/demo\n\nTokens of the tenant {DEMO_TENANT}, good for 12 hours:\n");
    for (person, token) in demo_people(&tenant).as_object()? {
        text += &format!("\n  {person}\n  {}\n", token.as_str()?);
    }
    let backend = tenant.settings().backend_token.as_ref().map(|token| String::from_utf8_lossy(&token.0).into_owned());
    if let Some(backend) = backend {
        let event = json!({
            "event": "visitor_create",
            "data": { "society_id": DEMO_TENANT, "flat_id": "A-101", "visitor_name": "Meera" },
        });
        text += &format!(
            "\nA visitor from the society's own back end:\n\n  curl -s {url}/t/{DEMO_TENANT}/api/v1/events \\\n    \
             -H 'authorization: Bearer {backend}' \\\n    -d '{event}'\n"
        );
    }
    Some(text)
}

/// `{guard, resident1, resident2}` with a token each; those that cannot be signed are missing.
fn demo_people(tenant: &LiveTenant) -> Value {
    let people = [
        ("guard", json!({"sub": "guard-ravi", "name": "Ravi Kumar", "role": "guard", "flats": []})),
        ("resident1", json!({"sub": "resident-asha", "name": "Asha Patel", "role": "resident", "flats": ["A-101"]})),
        (
            "resident2",
            json!({"sub": "resident-vikram", "name": "Vikram Patel", "role": "resident", "flats": ["A-101", "A-102"]}),
        ),
    ];
    signed(tenant, people.map(|(person, claims)| (person, with_society(claims))))
}

fn with_society(mut claims: Value) -> Value {
    claims["society_id"] = DEMO_TENANT.into();
    claims
}

/// A token of a tenant for each of these claims, good from now on; those that cannot be signed are missing.
fn signed<const N: usize>(tenant: &LiveTenant, people: [(&str, Value); N]) -> Value {
    let settings = tenant.settings();
    let key = settings.auth.keys.iter().find_map(|key| match &key.material {
        KeyMaterial::Secret(secret) => Some((key, secret)),
        KeyMaterial::Pem(_) | KeyMaterial::Jwk(_) => None,
    });
    let mut tokens = serde_json::Map::new();
    for (person, mut claims) in people {
        let now_s = now_ms() / 1_000;
        claims["tenant"] = tenant.id.as_str().into();
        claims["iat"] = now_s.into();
        claims["exp"] = (now_s + TOKEN_TTL_S).into();
        let (Some((key, secret)), Value::Object(claims)) = (key, claims) else { continue };
        if let Ok(token) = sign(key.id.as_deref(), key.algorithm, secret, &claims) {
            tokens.insert(person.into(), token.into());
        }
    }
    Value::Object(tokens)
}
