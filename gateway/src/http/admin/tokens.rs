//! The API's own tokens, and what was done with them.

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::route::Need;
use super::token::needs;
use super::{Asked, Denied, Done, body, ok, scope_word, tenant};
use crate::catalog::{Actor, NewToken, Scope, TokenRecord};
use crate::tenant::TenantId;

/// How many audit records one call answers unless it says otherwise, and at most.
const AUDITED: usize = 50;
const AUDITED_MAX: usize = 500;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
    scope: Scope,
    tenant: Option<String>,
    expires_ms: Option<u64>,
}

/// Whoever asks.
pub(super) fn shown_actor(actor: &Actor) -> Value {
    json!({ "name": actor.name, "scope": scope_word(actor.scope), "tenant": actor.tenant })
}

fn shown(token: &TokenRecord) -> Value {
    json!({
        "id": token.id,
        "name": token.name,
        "scope": scope_word(token.scope),
        "tenant": token.tenant,
        "created_ms": token.created_ms,
        "expires_ms": token.expires_ms,
        "by": token.by,
    })
}

/// `GET /tokens`.
pub(super) async fn list(asked: Asked) -> Done {
    let mut tokens = asked.gateway.catalog.tokens().await?;
    tokens.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
    Ok(ok(json!({ "tokens": tokens.iter().map(shown).collect::<Vec<_>>() })))
}

/// `POST /tokens`: the only answer that holds a token's secret.
pub(super) async fn create(asked: Asked) -> Done {
    let Wanted { name, scope, tenant, expires_ms } = body::json(asked.body).await?;
    let named = |name: String| TenantId::parse(&name).map_err(|error| Denied::invalid(format!("tenant: {error}")));
    let new = NewToken { name, scope, tenant: tenant.map(named).transpose()?, expires_ms };
    let (record, secret) = asked.gateway.catalog.create_token(&asked.actor, new).await?;
    let mut body = shown(&record);
    body["secret"] = secret.into();
    Ok((StatusCode::CREATED, body))
}

/// `DELETE /tokens/{id}`.
pub(super) async fn revoke(asked: Asked) -> Done {
    asked.gateway.catalog.revoke_token(&asked.actor, &asked.names.id).await?;
    Ok((StatusCode::NO_CONTENT, Value::Null))
}

/// `GET /audit`: everything for an operator, its own tenant's for everybody else.
pub(super) async fn audit(asked: Asked) -> Done {
    let named = asked.query.text("tenant").map(tenant).transpose()?;
    let of = match (asked.actor.scope, named) {
        (Scope::Operator, named) => named,
        (_, None) => asked.actor.tenant.clone(),
        (_, named) if named == asked.actor.tenant => named,
        _ => return Err(needs(&asked.actor, Need::Operator)),
    };
    if asked.actor.scope != Scope::Operator && of.is_none() {
        return Err(needs(&asked.actor, Need::Operator));
    }
    let limit = asked.query.limit(AUDITED, AUDITED_MAX)?;
    let mut entries = Vec::new();
    let (catalog, before) = (&asked.gateway.catalog, asked.query.text("before"));
    let records = match &of {
        Some(tenant) if asked.actor.scope != Scope::Operator => catalog.audit_of_owner(tenant, before, limit).await?,
        of => catalog.audit(of.as_ref(), before, limit).await?,
    };
    for record in records {
        let mut entry = serde_json::to_value(&record).unwrap_or_default();
        if let Value::Object(entry) = &mut entry {
            entry.remove("format");
        }
        entries.push(entry);
    }
    Ok(ok(json!({ "entries": entries })))
}
