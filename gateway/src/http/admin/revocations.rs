//! A tenant's tokens that are good no more, before their time.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};

use super::{Asked, Denied, Done, body, no_tenant, ok};
use crate::decision::Undecided;
use crate::decision::revocation::{Revocation, RevokedTokens};
use crate::gateway::LiveTenant;

/// Revocations of one page, unless the request says how many, and at most.
const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 200;

/// The tenant that the path names, as this node serves it.
fn served(asked: &Asked) -> Result<Arc<LiveTenant>, Denied> {
    let tenant = asked.tenant()?;
    asked.gateway.tenant(tenant.as_str()).ok_or_else(|| no_tenant(tenant.as_str()))
}

/// `GET /tenants/{tenant}/revocations?after=&limit=`.
pub(super) async fn list(asked: Asked) -> Done {
    let limit = asked.query.limit(LIMIT_DEFAULT, LIMIT_MAX)?;
    let found = served(&asked)?.decisions.revocations(asked.query.text("after"), limit).await;
    let (revocations, next) = found.map_err(|error| {
        tracing::warn!(%error, "the admin API cannot reach the engine");
        unavailable()
    })?;
    Ok(ok(json!({ "revocations": revocations, "next": next })))
}

/// `POST /tenants/{tenant}/revocations`: connections that hold such tokens end.
pub(super) async fn revoke(asked: Asked) -> Done {
    let tenant = served(&asked)?;
    let revocation: Revocation = body::json(asked.body).await?;
    revocation.check().map_err(denied)?;
    // The tenant's log knows nothing of the API's tokens.
    asked.gateway.catalog.still_good(&asked.actor).await?;
    let (catalog, digest) = (&asked.gateway.catalog, revocation.what.digest());
    catalog.tell(&asked.actor, &tenant.id, "revocation.put", &digest, Some(&revocation.told())).await?;
    tenant.decisions.revoke(&revocation).await.map_err(denied)?;
    // Whose tokens they are is the tenant's matter, not the log's.
    tracing::info!(tenant = %tenant.id, by = asked.actor.name, "tokens were revoked over the admin API");
    Ok(ok(json!(revocation)))
}

/// `DELETE /tenants/{tenant}/revocations?subject=` or `?token_id=`.
pub(super) async fn take_back(asked: Asked) -> Done {
    let what = match (asked.query.text("subject"), asked.query.text("token_id")) {
        (Some(subject), None) => RevokedTokens::Subject { subject: subject.into(), issued_before_s: None },
        (None, Some(id)) => RevokedTokens::Token { token_id: id.into() },
        _ => return Err(Denied::invalid("say which: subject or token_id")),
    };
    let tenant = served(&asked)?;
    asked.gateway.catalog.tell(&asked.actor, &tenant.id, "revocation.delete", &what.digest(), None).await?;
    tenant.decisions.take_back(&what).await.map_err(denied)?;
    tracing::info!(tenant = %tenant.id, by = asked.actor.name, "a revocation was taken back over the admin API");
    Ok((StatusCode::NO_CONTENT, Value::Null))
}

fn denied(undecided: Undecided) -> Denied {
    match undecided {
        Undecided::Refused(refusal) if refusal.code == "limit" => {
            Denied::new(StatusCode::UNPROCESSABLE_ENTITY, "limit", refusal.message)
        }
        Undecided::Refused(refusal) => Denied::invalid(refusal.message),
        Undecided::Later(refusal) => Denied::busy(refusal.message),
        _ => unavailable(),
    }
}

fn unavailable() -> Denied {
    let text = "the engine does not answer: look whether it was done, then repeat";
    Denied::new(StatusCode::SERVICE_UNAVAILABLE, "engine_unavailable", text)
}
