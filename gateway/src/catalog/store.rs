//! One change: what it read, what it writes, and whom it tells; committed whole or not at all.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{decode, encode};
use super::{Actor, Catalog, CatalogError, Changed, EVENT, Judged, PAGE_MAX, keys, room};
use crate::commit::{Commit, CommitId, Effect, Millis, Publication, StateKey, Version, Versioned, Write};
use crate::engine::{EngineError, KeyPage, Outcome};
use crate::event::Payload;

/// How often a change is tried again because something that it read had changed.
pub(super) const CHANGES_TRIED_MAX: u32 = 16;

/// How often a commit whose outcome is unknown is sent again.
const RESENDS_MAX: u32 = 3;

/// How long one commit, or one read, may take.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(10);

/// Keys that are read at once.
const KEYS_AT_ONCE: usize = 256;

/// A change in the making.
pub(super) struct Draft<'a> {
    catalog: &'a Catalog,
    commit: Commit,
    /// The token with which the change is made, if it is with one.
    token: Option<Judged>,
}

impl Draft<'_> {
    /// Reads a record; the change rests on its staying so.
    pub(super) async fn get<T: DeserializeOwned>(&mut self, key: StateKey) -> Result<Option<T>, CatalogError> {
        Ok(self.get_versioned(key).await?.map(|(record, _)| record))
    }

    /// The same, with the version that it was read at.
    pub(super) async fn get_versioned<T: DeserializeOwned>(
        &mut self,
        key: StateKey,
    ) -> Result<Option<(T, Version)>, CatalogError> {
        let (_, found) = self.catalog.read(std::slice::from_ref(&key)).await?.pop().unwrap_or((key.clone(), None));
        let record = found.as_ref().map(|found| decode(&key, &found.value)).transpose()?;
        let version = found.map(|found| found.version);
        self.rests_on(key, version.clone());
        Ok(record.zip(version))
    }

    /// The change is made with this token: it is made only if the token is then as it was when it was found good.
    pub(super) fn made_with(&mut self, token: &Judged) {
        self.rests_on(keys::token(&token.id), Some(token.version.clone()));
        self.token = Some(token.clone());
    }

    pub(super) fn rests_on(&mut self, key: StateKey, version: Option<Version>) {
        self.commit.reads.push((key, version));
    }

    /// Writes a record.
    pub(super) fn put<T: Serialize>(
        &mut self,
        key: StateKey,
        record: &T,
        ttl_ms: Option<Millis>,
    ) -> Result<(), CatalogError> {
        let bytes = encode(record)?;
        self.put_bytes(key, bytes.into(), ttl_ms);
        Ok(())
    }

    pub(super) fn put_bytes(&mut self, key: StateKey, value: Bytes, ttl_ms: Option<Millis>) {
        self.commit.writes.push((key, Write::Put { value, ttl_ms }));
    }

    pub(super) fn delete(&mut self, key: StateKey) {
        self.commit.writes.push((key, Write::Delete));
    }

    /// Adds to a counter.
    pub(super) fn add(&mut self, key: StateKey, number: i64) {
        self.commit.writes.push((key, Write::Add(number)));
    }

    /// Tells all nodes what has changed.
    pub(super) fn tell(&mut self, changed: &Changed) {
        if matches!(changed, Changed::Tenant { .. }) {
            self.add(StateKey::stored(keys::CHANGES), 1);
        }
        let data = serde_json::to_value(changed).unwrap_or_default();
        let publication = Publication { room: room(), event: EVENT.into(), data: Payload::one(&data), except: None };
        self.commit.effects.push(Effect::Publish(publication));
    }

    /// Commits it. `false`: something that it rests on has changed, and nothing was done.
    pub(super) async fn commit(self) -> Result<bool, CatalogError> {
        if self.catalog.send(self.commit).await? {
            return Ok(true);
        }
        match &self.token {
            Some(token) if !self.catalog.holds(token).await? => Err(CatalogError::Revoked),
            _ => Ok(false),
        }
    }
}

impl Catalog {
    pub(super) fn draft(&self) -> Draft<'_> {
        self.draft_with(CommitId::random())
    }

    /// One that is done once, however often it is sent.
    pub(super) fn draft_with(&self, id: CommitId) -> Draft<'_> {
        Draft { catalog: self, commit: Commit::new(id), token: None }
    }

    /// Reads keys, as many as there are.
    pub(super) async fn read(&self, keys: &[StateKey]) -> Result<Vec<(StateKey, Option<Versioned>)>, CatalogError> {
        let mut found = Vec::with_capacity(keys.len());
        for some in keys.chunks(KEYS_AT_ONCE) {
            let values = in_time(self.engine().read(self.home(), some)).await?;
            found.extend(some.iter().cloned().zip(values));
        }
        Ok(found)
    }

    /// Is a token as it was when it was found good?
    async fn holds(&self, token: &Judged) -> Result<bool, CatalogError> {
        let found = self.read(&[keys::token(&token.id)]).await?.pop().and_then(|(_, found)| found);
        Ok(found.is_some_and(|found| found.version == token.version))
    }

    /// Asks again about whoever was let in a while ago.
    ///
    /// # Errors
    /// [`CatalogError::Revoked`] when the token with which it came was revoked, or has ended.
    pub async fn still_good(&self, by: &Actor) -> Result<(), CatalogError> {
        match &by.token {
            Some(token) if !self.holds(token).await? => Err(CatalogError::Revoked),
            _ => Ok(()),
        }
    }

    /// One page of keys.
    pub(super) async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<KeyPage, CatalogError> {
        Ok(in_time(self.engine().list_keys(self.home(), prefix, after, limit)).await?)
    }

    /// All keys with a beginning; more than `max` are too many.
    pub(super) async fn list_all(
        &self,
        prefix: &str,
        what: &'static str,
        max: usize,
    ) -> Result<Vec<StateKey>, CatalogError> {
        let mut all: Vec<StateKey> = Vec::new();
        loop {
            let after = all.last().map(|key| key.as_str().to_owned());
            let page = self.list(prefix, after.as_deref(), PAGE_MAX).await?;
            let over = !page.more || page.keys.is_empty();
            all.extend(page.keys);
            if all.len() > max {
                return Err(CatalogError::Limit { what, value: all.len(), limit: max });
            }
            if over {
                return Ok(all);
            }
        }
    }

    /// Sends a commit, again while its outcome is unknown.
    async fn send(&self, commit: Commit) -> Result<bool, CatalogError> {
        let commit = Arc::new(commit);
        let mut resent = 0;
        loop {
            match in_time(self.engine().commit(self.home(), commit.clone())).await {
                Ok(Outcome::Committed(_)) => return Ok(true),
                Ok(Outcome::Conflict(_)) => return Ok(false),
                Ok(Outcome::TimerGone | Outcome::OverQuota(_)) => {
                    return Err(EngineError::Corrupt("a timer or a quota where there was none".into()).into());
                }
                Err(EngineError::Ambiguous(_)) if resent < RESENDS_MAX => resent += 1,
                // An earlier one may have arrived.
                Err(EngineError::Unavailable(why)) if resent > 0 => return Err(EngineError::Ambiguous(why).into()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
    let silent = || EngineError::Ambiguous(format!("no answer within {} ms", ENGINE_TIMEOUT.as_millis()));
    tokio::time::timeout(ENGINE_TIMEOUT, answer).await.unwrap_or_else(|_| Err(silent()))
}

/// Counts how often a change was tried.
#[derive(Debug, Default)]
pub(super) struct Tries(u32);

impl Tries {
    /// Once more, if it may be.
    pub(super) async fn next(&mut self) -> Result<(), CatalogError> {
        if self.0 == CHANGES_TRIED_MAX {
            let text = format!("others changed the same {CHANGES_TRIED_MAX} times in a row; try again");
            return Err(CatalogError::Conflict(text));
        }
        if self.0 > 0 {
            tokio::time::sleep(Duration::from_millis(u64::from(self.0) * 3)).await;
        }
        self.0 += 1;
        Ok(())
    }
}
