//! Tokens that are good no more, before their time.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::{Asked, Denied, Done, body};
use crate::catalog::{Actor, CatalogError, Scope};
use crate::decision::revocation::{Revocation, RevokedTokens};

/// Revocations of one page, unless the request says how many, and at most.
const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 200;

/// `GET /revocations?after=&limit=`
pub(super) async fn list(asked: Asked) -> Done {
    let limit = asked.number("limit")?.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Denied::invalid(format!("limit is 1 to {LIMIT_MAX}, not {limit}")));
    }
    let (revocations, next) = asked.tenant.decisions.revocations(asked.parameter("after"), limit).await?;
    Ok(json!({ "revocations": revocations, "next": next }))
}

/// `POST /revocations` `{subject, issued_before_s?, until_ms}` or `{token_id, until_ms}`
pub(super) async fn revoke(mut asked: Asked) -> Done {
    let body = body::whole(&mut asked).await?;
    let form = "{subject, issued_before_s?, until_ms} or {token_id, until_ms}";
    let revocation: Revocation = body::read(&body, form)?;
    revocation.check()?;
    tell(&asked, "revocation.put", &revocation.what, Some(&revocation.told())).await?;
    let position = asked.tenant.decisions.revoke(&revocation).await?;
    Ok(json!({ "pos": position.map(|position| position.to_string()) }))
}

/// `DELETE /revocations?subject=` or `?token_id=`
pub(super) async fn take_back(asked: Asked) -> Done {
    let what = match (asked.parameter("subject"), asked.parameter("token_id")) {
        (Some(subject), None) => RevokedTokens::Subject { subject: subject.into(), issued_before_s: None },
        (None, Some(id)) => RevokedTokens::Token { token_id: id.into() },
        _ => return Err(Denied::invalid("say which: subject or token_id")),
    };
    tell(&asked, "revocation.delete", &what, None).await?;
    asked.tenant.decisions.take_back(&what).await?;
    Ok(json!({}))
}

/// Says in the audit log what is about to be done; if that cannot be, it is not done.
async fn tell(asked: &Asked, what: &str, tokens: &RevokedTokens, after: Option<&Value>) -> Result<(), Denied> {
    let tenant = &asked.tenant.id;
    let by = Actor {
        name: format!("api-key:{}", asked.by),
        scope: Scope::TenantAdmin,
        tenant: Some(tenant.clone()),
        token: None,
    };
    let told = asked.gateway.catalog.tell(&by, tenant, what, &tokens.digest(), after).await;
    told.map_err(|error| match error {
        CatalogError::Engine(error) => error.into(),
        error => {
            tracing::warn!(%tenant, %error, "a revocation cannot be told to the audit log, so it is not done");
            Denied::new(StatusCode::SERVICE_UNAVAILABLE, "audit_unavailable", "the audit log cannot be written")
        }
    })
}
