//! The admin API's tokens: only a digest of each is kept.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::record::{FORMAT, decode};
use super::store::Tries;
use super::{Actor, Catalog, CatalogError, Judged, Scope, keys};
use crate::client::random_id;
use crate::commit::{Millis, Version, now_ms};
use crate::tenant::TenantId;

/// The most tokens that there are at a time.
pub const TOKENS_MAX: usize = 1_000;

/// The longest name of a token, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Names by which the audit log calls others than tokens: nobody's deeds are to look like theirs.
const RESERVED: [&str; 4] = ["admin_token", "breaker", "roll-out", "gateway"];

/// What such names begin with.
const RESERVED_PREFIX: &str = "api-key:";

/// What a token starts with, so that whoever finds one knows what it is.
const PREFIX: &str = "postern_";

/// How long a token's id is; what follows it is the secret.
const ID_BYTES: usize = 20;

/// How long the answer is remembered whether there are tokens.
const REMEMBERED_FOR: Duration = Duration::from_secs(1);

/// An answer that is looked for once in [`REMEMBERED_FOR`], however many want it: they wait for the same, errors included.
#[derive(Default)]
pub(super) struct Remembered(tokio::sync::Mutex<Option<(Instant, Result<bool, CatalogError>)>>);

impl Remembered {
    async fn get<F>(&self, look: impl FnOnce() -> F) -> Result<bool, CatalogError>
    where
        F: Future<Output = Result<bool, CatalogError>>,
    {
        let mut last = self.0.lock().await;
        match &*last {
            Some((at, answer)) if at.elapsed() < REMEMBERED_FOR => answer.clone(),
            _ => {
                let answer = look().await;
                *last = Some((Instant::now(), answer.clone()));
                answer
            }
        }
    }
}

/// A token, without what makes it one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The format of whoever wrote it.
    #[serde(default)]
    pub format: u32,
    /// Names it.
    pub id: String,
    /// What people call it; the audit log names it so.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// The only tenant that it may see.
    #[serde(default)]
    pub tenant: Option<TenantId>,
    /// When the tenant that it is for was made: it is no good for another one that has its name later. `None`: the
    /// tenant was in a file, or an earlier version of the gateway wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_created_ms: Option<Millis>,
    /// The SHA-256 of the token, in hexadecimal.
    pub digest: String,
    /// When it was made.
    #[serde(default)]
    pub created_ms: Millis,
    /// When it ends by itself; `None`: never.
    #[serde(default)]
    pub expires_ms: Option<Millis>,
    /// By whom it was made.
    #[serde(default)]
    pub by: String,
    /// What a later version has added; kept as it is.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A token that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// What people call it: 1 to 64 bytes.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// The only tenant that it may see; none for an operator, one for everybody else.
    pub tenant: Option<TenantId>,
    /// When it ends by itself, in milliseconds since the Unix epoch.
    pub expires_ms: Option<Millis>,
}

impl NewToken {
    fn check(&self) -> Result<(), CatalogError> {
        let mut mistakes = Vec::new();
        if !(1..=NAME_BYTES_MAX).contains(&self.name.len()) || self.name.chars().any(char::is_control) {
            mistakes.push(format!("name must have 1 to {NAME_BYTES_MAX} bytes, and no control characters"));
        }
        let name = self.name.trim().to_lowercase();
        if RESERVED.contains(&name.as_str()) || name.starts_with(RESERVED_PREFIX) {
            mistakes.push(format!("name: {:?} is what the audit log calls a part of the gateway", self.name));
        }
        match (self.scope, &self.tenant) {
            (Scope::Operator, Some(_)) => mistakes.push("an operator's token has no tenant".into()),
            (Scope::TenantAdmin | Scope::TenantRead, None) => mistakes.push("tenant is missing".into()),
            _ => {}
        }
        if self.expires_ms.is_some_and(|expires| expires <= now_ms()) {
            mistakes.push("expires_ms lies in the past".into());
        }
        if mistakes.is_empty() { Ok(()) } else { Err(CatalogError::Invalid(mistakes)) }
    }
}

impl Catalog {
    /// All tokens, in no particular order; those that have ended are not there.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, CatalogError> {
        let keys = self.list_all(keys::TOKENS, "tokens", TOKENS_MAX * 2).await?;
        let found = self.read(&keys).await?;
        found.into_iter().filter_map(|(key, value)| Some(decode(&key, &value?.value))).collect()
    }

    /// Are there any? Told as it was [`REMEMBERED_FOR`] ago at most: whoever has no token asks this, as often as they like.
    pub async fn has_tokens(&self) -> Result<bool, CatalogError> {
        self.inner.has_tokens.get(|| async { Ok(!self.list(keys::TOKENS, None, 1).await?.keys.is_empty()) }).await
    }

    /// Makes a token. The text is shown once: nothing keeps it.
    pub async fn create_token(&self, by: &Actor, new: NewToken) -> Result<(TokenRecord, String), CatalogError> {
        new.check()?;
        if let Some(tenant) = &new.tenant
            && self.file_of(tenant).is_none()
            && self.tenant(tenant).await?.is_none()
        {
            // Whoever makes that tenant later is not meant: the token would never be good.
            return Err(CatalogError::NotFound { what: "tenant", name: tenant.to_string() });
        }
        let tokens = self.tokens().await?;
        let count = tokens.len();
        if tokens.iter().any(|token| token.name == new.name) {
            return Err(CatalogError::Exists { what: "token", name: new.name });
        }
        if count >= TOKENS_MAX {
            return Err(CatalogError::Limit { what: "tokens", value: count + 1, limit: TOKENS_MAX });
        }
        let id = random_id();
        let text = format!("{PREFIX}{id}{}{}", random_id(), random_id());
        let now = now_ms();
        let record = TokenRecord {
            format: FORMAT,
            id: id.clone(),
            name: new.name,
            scope: new.scope,
            tenant_created_ms: self.created_ms(new.tenant.as_ref()).await?,
            tenant: new.tenant,
            digest: digest(&text),
            created_ms: now,
            expires_ms: new.expires_ms,
            by: by.name.clone(),
            more: Map::new(),
        };
        let mut draft = self.draft();
        let ttl_ms = record.expires_ms.map(|expires| expires.saturating_sub(now).max(1));
        draft.put(keys::token(&id), &record, ttl_ms)?;
        draft.audit(by, record.tenant.as_ref(), "token.create", &id, None, Some(&told(&record)))?;
        if !draft.commit().await? {
            return Err(CatalogError::Conflict("the token could not be made: try again".into()));
        }
        Ok((record, text))
    }

    /// Ends a token, on all nodes at once.
    pub async fn revoke_token(&self, by: &Actor, id: &str) -> Result<TokenRecord, CatalogError> {
        let missing = || CatalogError::NotFound { what: "token", name: id.into() };
        if !is_id(id) {
            return Err(missing());
        }
        let mut tries = Tries::default();
        loop {
            tries.next().await?;
            let mut draft = self.draft();
            let record: TokenRecord = draft.get(keys::token(id)).await?.ok_or_else(missing)?;
            draft.delete(keys::token(id));
            draft.audit(by, record.tenant.as_ref(), "token.revoke", id, Some(&told(&record)), None)?;
            if draft.commit().await? {
                return Ok(record);
            }
        }
    }

    /// All tokens that are for one tenant.
    pub(super) async fn tokens_of(&self, tenant: &TenantId) -> Result<Vec<TokenRecord>, CatalogError> {
        let mut tokens = self.tokens().await?;
        tokens.retain(|token| token.tenant.as_ref() == Some(tenant));
        Ok(tokens)
    }

    /// When the tenant was made; `None`: it is none of the catalog's.
    pub(super) async fn created_ms(&self, tenant: Option<&TenantId>) -> Result<Option<Millis>, CatalogError> {
        let Some(tenant) = tenant.filter(|tenant| self.file_of(tenant).is_none()) else { return Ok(None) };
        Ok(self.tenant(tenant).await?.map(|tenant| tenant.created_ms))
    }

    /// The token that this text is; `None`: it is none, or not any more.
    pub async fn token_of(&self, text: &str) -> Result<Option<TokenRecord>, CatalogError> {
        Ok(self.judge(text).await?.map(|(record, _)| record))
    }

    /// Whoever comes with this text as a token; `None`: it is none, or not any more.
    pub async fn actor_of(&self, text: &str) -> Result<Option<Actor>, CatalogError> {
        Ok(self.judge(text).await?.map(|(TokenRecord { id, name, scope, tenant, .. }, version)| Actor {
            name,
            scope,
            tenant,
            token: Some(Judged { id, version }),
        }))
    }

    async fn judge(&self, text: &str) -> Result<Option<(TokenRecord, Version)>, CatalogError> {
        let Some(id) = text.strip_prefix(PREFIX).and_then(|rest| rest.get(..ID_BYTES)).filter(|id| is_id(id)) else {
            return Ok(None);
        };
        let found: Option<(TokenRecord, Version)> = self.draft().get_versioned(keys::token(id)).await?;
        let found = found.filter(|(record, _)| {
            let alive = record.expires_ms.is_none_or(|expires| now_ms() < expires);
            // Digests of secrets: where they differ tells nothing of the secret.
            alive && record.id == id && record.digest == digest(text)
        });
        let Some((record, version)) = found else { return Ok(None) };
        let of_this = match self.created_ms(record.tenant.as_ref()).await? {
            Some(created) => record.tenant_created_ms.map_or(record.created_ms >= created, |of| of == created),
            None => record.tenant_created_ms.is_none(),
        };
        Ok(of_this.then_some((record, version)))
    }
}

/// What the audit log shows of a token.
fn told(record: &TokenRecord) -> Value {
    serde_json::json!({ "name": record.name, "scope": record.scope, "tenant": record.tenant, "expires_ms": record.expires_ms })
}

fn is_id(id: &str) -> bool {
    id.len() == ID_BYTES && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::engine::EngineError;

    #[tokio::test(start_paused = true)]
    async fn however_many_ask_whether_there_are_tokens_the_engine_is_asked_once_a_second() {
        let (looked, remembered) = (Cell::new(0), Remembered::default());
        let look = async |answer: Result<bool, CatalogError>| {
            looked.set(looked.get() + 1);
            tokio::time::sleep(Duration::from_millis(10)).await;
            answer
        };
        let none = || remembered.get(|| look(Ok(false)));
        let answers = futures_util::future::join_all((0..100).map(|_| none())).await;
        assert!(answers.into_iter().all(|answer| !answer.unwrap()));
        assert_eq!(looked.get(), 1);
        // What has changed is seen a second later, also that the engine is away.
        tokio::time::advance(REMEMBERED_FOR).await;
        assert!(remembered.get(|| look(Ok(true))).await.unwrap());
        assert!(none().await.unwrap());
        tokio::time::advance(REMEMBERED_FOR).await;
        let away = || remembered.get(|| look(Err(EngineError::Unavailable("away".into()).into())));
        assert!(away().await.is_err() && none().await.is_err());
        assert_eq!(looked.get(), 3);
    }
}
