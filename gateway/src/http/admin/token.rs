//! Who asks, and whether they may.

use std::net::IpAddr;

use hyper::StatusCode;
use hyper::http::HeaderMap;
use tokio::time::Instant;

use super::denied::Denied;
use super::guesses::GUESSES;
use super::route::Need;
use super::scope_word;
use crate::catalog::{Actor, Scope};
use crate::connection::upgrade;
use crate::gateway::Gateway;
use crate::http::same;
use crate::tenant::TenantId;

/// What the audit log calls whoever has the token of the gateway's settings.
const OF_THE_SETTINGS: &str = "admin_token";

/// Whoever comes with the request's token. It is looked up each time: one that is revoked is worthless at once.
pub(super) async fn actor(gateway: &Gateway, headers: &HeaderMap, peer: IpAddr) -> Result<Actor, Denied> {
    let Some(token) = upgrade::token(headers, None).filter(|token| !token.is_empty()) else {
        return Err(nobody(gateway).await?);
    };
    if let Some(expected) = &gateway.config.admin_token
        && same(token.as_bytes(), &expected.0)
    {
        return Ok(Actor::gateway(OF_THE_SETTINGS));
    }
    let guess = GUESSES.may_try(peer, &token, gateway.config.admin.wrong_tokens_per_minute, Instant::now())?;
    match gateway.catalog.actor_of(&token).await {
        Ok(Some(actor)) => {
            guess.was_good();
            return Ok(actor);
        }
        Ok(None) => guess.was_wrong(),
        Err(error) => {
            guess.was_none();
            return Err(error.into());
        }
    }
    if is_off(gateway).await? {
        return Err(off());
    }
    Err(Denied::new(StatusCode::UNAUTHORIZED, "unauthorized", "this token is not, or not any more, good here"))
}

/// Is there no token that would be good?
async fn is_off(gateway: &Gateway) -> Result<bool, Denied> {
    Ok(gateway.config.admin_token.is_none() && !gateway.catalog.has_tokens().await?)
}

fn off() -> Denied {
    let text = "the admin API is off: start the gateway with the setting admin_token (POSTERN_ADMIN_TOKEN, 32 \
                characters or more) and send it as Authorization: Bearer";
    Denied::new(StatusCode::FORBIDDEN, "admin_disabled", text)
}

/// What whoever comes without a token hears.
async fn nobody(gateway: &Gateway) -> Result<Denied, Denied> {
    if is_off(gateway).await? {
        return Ok(off());
    }
    let text = "send a token of the admin API as Authorization: Bearer";
    Ok(Denied::new(StatusCode::UNAUTHORIZED, "unauthorized", text))
}

/// May whoever asks do this, to the tenant that the path names?
pub(super) fn permit(actor: &Actor, need: Need, tenant: Option<&TenantId>) -> Result<(), Denied> {
    let is_its_own = actor.tenant.is_some() && actor.tenant.as_ref() == tenant;
    let may = match (need, actor.scope) {
        (Need::Nothing | Need::Token, _) | (_, Scope::Operator) => true,
        (Need::Read, Scope::TenantAdmin | Scope::TenantRead) | (Need::Change, Scope::TenantAdmin) => is_its_own,
        (Need::Change, Scope::TenantRead) | (Need::Operator, _) => false,
    };
    if may { Ok(()) } else { Err(needs(actor, need)) }
}

/// The refusal that says what is needed and what there is.
pub(super) fn needs(actor: &Actor, need: Need) -> Denied {
    let of = actor.tenant.as_ref().map(|tenant| format!(" of {tenant}")).unwrap_or_default();
    let scope = scope_word(actor.scope);
    Denied::forbidden(format!("this needs {}; the token {:?} is {scope}{of}", need.words(), actor.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scope_may_what_it_is_for_and_only_its_own_tenant() {
        let tenant = |name| TenantId::parse(name).unwrap();
        let (own, other) = (tenant("own"), tenant("other"));
        let actor =
            |scope, tenant: Option<&TenantId>| Actor { name: "t".into(), scope, tenant: tenant.cloned(), token: None };
        let operator = actor(Scope::Operator, None);
        let admin = actor(Scope::TenantAdmin, Some(&own));
        let reader = actor(Scope::TenantRead, Some(&own));
        let may = |actor: &Actor, need, tenant: &TenantId| permit(actor, need, Some(tenant)).is_ok();
        for need in [Need::Token, Need::Read, Need::Change, Need::Operator] {
            assert!(may(&operator, need, &own) && may(&operator, need, &other));
        }
        assert!(may(&admin, Need::Read, &own) && may(&admin, Need::Change, &own) && may(&reader, Need::Read, &own));
        assert!(!may(&admin, Need::Read, &other) && !may(&admin, Need::Change, &other));
        assert!(!may(&reader, Need::Read, &other) && !may(&reader, Need::Change, &own));
        assert!(!may(&admin, Need::Operator, &own) && !may(&reader, Need::Operator, &own));
        // A damaged token without a tenant is nobody's.
        assert!(permit(&actor(Scope::TenantAdmin, None), Need::Read, None).is_err());
    }
}
