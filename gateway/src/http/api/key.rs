//! Who asks, and whether they may.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::http::HeaderMap;
use sha2::{Digest as _, Sha256};

use super::denied::Denied;
use super::route::Route;
use crate::connection::upgrade;
use crate::engine::Engine;
use crate::gateway::LiveTenant;
use crate::rates::Shared;
use crate::tenant::{ApiRight, BACKEND_TOKEN_ID, Tenant};

/// The id of the key that comes with a request, if it is good for this.
pub(super) async fn permitted(
    engine: &dyn Engine,
    tenant: &LiveTenant,
    route: &Route,
    headers: &HeaderMap,
) -> Result<Arc<str>, Denied> {
    let settings = tenant.settings();
    if settings.backend_token.is_none() && settings.api_keys.is_empty() {
        let text = "this tenant's HTTP API is off (settings backend_token, api_keys)";
        return Err(Denied::new(StatusCode::FORBIDDEN, "forbidden", text));
    }
    let given = upgrade::token(headers, None).unwrap_or_default();
    let Some((id, may)) = key(&settings, &given) else {
        let text = "send a key of the tenant as Authorization: Bearer (one of api_keys, or the backend_token)";
        return Err(Denied::new(StatusCode::UNAUTHORIZED, "unauthorized", text));
    };
    if settings.disabled {
        return Err(Denied::new(StatusCode::FORBIDDEN, "tenant_disabled", "the tenant is disabled or deleted"));
    }
    if let Some(right) = route.right.filter(|right| !may.contains(right)) {
        let has = may.iter().map(|right| right.word()).collect::<Vec<_>>().join(", ");
        let text = format!("this needs a key with the right {}; {id:?} has {has} (setting api_keys.may)", right.word());
        return Err(Denied::new(StatusCode::FORBIDDEN, "forbidden", text));
    }
    let rate = settings.limits.api_requests_per_minute;
    let shared = Shared { engine, tenant: &tenant.id };
    let taken = tenant.api_rates.take(shared, &id, rate).await;
    taken.map_err(|refusal| Denied::because(StatusCode::TOO_MANY_REQUESTS, refusal))?;
    Ok(id)
}

/// Which of the tenant's keys is it, and what is that good for? All are compared, whole, so that the time tells nothing.
fn key(settings: &Tenant, given: &str) -> Option<(Arc<str>, Vec<ApiRight>)> {
    let digest: [u8; 32] = Sha256::digest(given).into();
    let same = |other: &[u8; 32]| digest.iter().zip(other).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0;
    let mut found = None;
    for key in &settings.api_keys {
        if same(&key.digest) {
            found = Some((key.id.clone(), key.may.clone()));
        }
    }
    if let Some(token) = &settings.backend_token
        && same(&Sha256::digest(&token.0).into())
    {
        found = Some((BACKEND_TOKEN_ID.into(), ApiRight::ALL.to_vec()));
    }
    found
}
