//! Tenants: made, changed, deleted with their plugins.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use super::record::{FORMAT, decode};
use super::store::Tries;
use super::{
    Actor, Catalog, CatalogError, Changed, PAGE_MAX, PLUGINS_MAX, PluginRecord, TENANTS_MAX, TenantRecord, keys,
};
use crate::commit::{Commit, CommitId, Millis, StateKey, Version, Write, now_ms};
use crate::config::{Mistakes, tenant_from_json};
use crate::engine::Outcome;
use crate::tenant::TenantId;

/// Keys of a deleted tenant that go with one commit.
const PURGED_AT_ONCE: usize = 200;

/// How many such commits the deletion makes; the rest go when the name is used again, with at most so many.
const PURGE_COMMITS_AT_ONCE: usize = 50;
const PURGE_COMMITS_MAX: usize = 5_000;

/// Tokens of a deleted tenant that go with the commit that deletes it; more of them are no good any more all the same,
/// as they name the tenant that they were made for.
const TOKENS_DELETED_MAX: usize = 400;

/// How often deleting what is left begins anew, because others do the same.
const GUARDS_MAX: usize = 16;

/// How long a guard that nobody takes away stays, in milliseconds: a minute.
const GUARD_MS: Millis = 60_000;

/// How long taking it away rests that did not succeed.
const UNGUARD_REST: Duration = Duration::from_millis(200);

/// In the deleted tenant's own values, as one of the gateway's.
fn guard_key() -> StateKey {
    StateKey::of("_gone", "guard")
}

/// That a tenant was deleted: whoever has its name next is not to find what it had stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GoneRecord {
    /// The format of whoever wrote it.
    pub(super) format: u32,
    /// When the tenant was deleted.
    pub(super) at_ms: Millis,
    /// Is what is stored under its name another's: of a tenant that some node has in a file?
    #[serde(default)]
    pub(super) stays: bool,
}

/// Some of the tenants.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantPage {
    /// Those that can be read, by name.
    pub tenants: Vec<TenantRecord>,
    /// Those that cannot, with the reason: written by a later version, or damaged.
    pub unreadable: Vec<(TenantId, String)>,
    /// The name to go on after; `None`: there are no more.
    pub next: Option<String>,
}

impl Catalog {
    /// The tenants whose names come after `after`, at most `limit` and [`PAGE_MAX`].
    pub async fn tenants(&self, after: Option<&str>, limit: usize) -> Result<TenantPage, CatalogError> {
        let after = after.map(|name| format!("{}{name}", keys::TENANTS));
        let page = self.list(keys::TENANTS, after.as_deref(), limit.clamp(1, PAGE_MAX)).await?;
        let name_of = |key: &StateKey| key.as_str().strip_prefix(keys::TENANTS).map(str::to_owned);
        let next = page.more.then(|| page.keys.last().and_then(name_of)).flatten();
        let mut tenants = TenantPage { tenants: Vec::new(), unreadable: Vec::new(), next };
        for (key, value) in self.read(&page.keys).await? {
            let Some(value) = value else { continue };
            match (decode(&key, &value.value), name_of(&key).and_then(|name| TenantId::parse(&name).ok())) {
                (Ok(record), _) => tenants.tenants.push(record),
                (Err(error), Some(id)) => tenants.unreadable.push((id, error.to_string())),
                (Err(error), None) => return Err(error),
            }
        }
        Ok(tenants)
    }

    /// A tenant; one that is written in a file is not found here.
    pub async fn tenant(&self, id: &TenantId) -> Result<Option<TenantRecord>, CatalogError> {
        self.draft().get(keys::tenant(id)).await
    }

    /// Was the tenant that was made then deleted? A record that is missing may also be lost with the engine's data.
    pub(super) async fn was_deleted(&self, id: &TenantId, created_ms: Millis) -> Result<bool, CatalogError> {
        let mark = self.draft().get::<GoneRecord>(keys::gone(id)).await?;
        Ok(mark.is_some_and(|mark| mark.at_ms >= created_ms))
    }

    /// A tenant with all its plugins, as they were at one moment.
    pub async fn whole(&self, id: &TenantId) -> Result<Option<(TenantRecord, Vec<PluginRecord>)>, CatalogError> {
        let mut all = vec![keys::tenant(id)];
        all.extend(self.list_all(&keys::plugins(id), "plugins of the tenant", PLUGINS_MAX).await?);
        let mut found = self.read(&all).await?.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let Some((key, tenant)) = found.next().filter(|(key, _)| *key == all[0]) else { return Ok(None) };
        let tenant = decode(&key, &tenant.value)?;
        let mut plugins: Vec<PluginRecord> =
            found.map(|(key, plugin)| decode(&key, &plugin.value)).collect::<Result<_, _>>()?;
        plugins.sort_by(|a, b| (a.position, &a.name).cmp(&(b.position, &b.name)));
        Ok(Some((tenant, plugins)))
    }

    /// Reads, changes, commits; again when somebody else was faster. `change` gets the tenant as it is and answers it
    /// as it is to be, `None` for none: then its plugins go with it. Answers the tenant as it is now.
    ///
    /// `what` names the change in the audit log, for example `tenant.settings`.
    pub async fn change_tenant(
        &self,
        by: &Actor,
        id: &TenantId,
        what: &str,
        change: impl Fn(Option<TenantRecord>) -> Result<Option<TenantRecord>, CatalogError>,
    ) -> Result<Option<TenantRecord>, CatalogError> {
        self.change_part(by, id, (what, ""), change).await
    }

    /// The same, where what is done is done to a part of the tenant, for example to a key: `(what, subject)` of its
    /// audit record.
    ///
    /// # Errors
    /// As those of [`change_tenant`](Catalog::change_tenant).
    pub async fn change_part(
        &self,
        by: &Actor,
        id: &TenantId,
        (what, subject): (&str, &str),
        change: impl Fn(Option<TenantRecord>) -> Result<Option<TenantRecord>, CatalogError>,
    ) -> Result<Option<TenantRecord>, CatalogError> {
        self.writable(id)?;
        let mut tries = Tries::default();
        loop {
            tries.next().await?;
            let mut draft = self.draft();
            let mut had_left = false;
            let before: Option<TenantRecord> = draft.get(keys::tenant(id)).await?;
            let after = match (change(before.clone())?, &before) {
                (None, None) => return Ok(None),
                (None, Some(_)) => {
                    let plugins = self.list_all(&keys::plugins(id), "plugins of the tenant", PLUGINS_MAX).await?;
                    plugins.into_iter().for_each(|key| draft.delete(key));
                    for token in self.tokens_of(id).await?.into_iter().take(TOKENS_DELETED_MAX) {
                        draft.delete(keys::token(&token.id));
                    }
                    draft.delete(keys::tenant(id));
                    let stays = self.is_kept(id).await?;
                    draft.put(keys::gone(id), &GoneRecord { format: FORMAT, at_ms: now_ms(), stays }, None)?;
                    draft.add(StateKey::stored(keys::TENANT_COUNT), -1);
                    None
                }
                // Nothing to tell of, and nothing for nodes to do.
                (Some(wanted), Some(before)) if wanted == *before => return Ok(Some(wanted)),
                (Some(wanted), before) => {
                    if before.is_none() {
                        self.room_for_a_tenant().await?;
                        // Whoever had this name before is somebody else. Without a mark, and with one that says so, what
                        // is stored under it is of a tenant that some node has in a file.
                        if let Some((mark, version)) = draft.get_versioned::<GoneRecord>(keys::gone(id)).await? {
                            had_left = !mark.stays && !self.is_kept(id).await?;
                            if had_left {
                                self.purge(id, &version, PURGE_COMMITS_MAX).await?;
                            }
                            draft.delete(keys::gone(id));
                        }
                        draft.add(StateKey::stored(keys::TENANT_COUNT), 1);
                    }
                    self.check_settings(id, &wanted, before.as_ref())?;
                    let after = touched(TenantRecord { name: id.clone(), ..wanted }, before.as_ref());
                    draft.put(keys::tenant(id), &after, None)?;
                    Some(after)
                }
            };
            draft.audit(by, Some(id), what, subject, before.as_ref(), after.as_ref())?;
            draft.tell(&Changed::Tenant { tenant: id.clone() });
            if draft.commit().await? {
                if had_left && let Err(error) = self.unguard_surely(id).await {
                    tracing::warn!(tenant = %id, %error, "whoever deletes what the former tenant has left is not stopped");
                }
                if after.is_none()
                    && let Err(error) = self.purge_deleted(id).await
                {
                    tracing::info!(tenant = %id, %error, "the rest of a deleted tenant's state goes when its name is used again");
                }
                return Ok(after);
            }
        }
    }

    async fn purge_deleted(&self, id: &TenantId) -> Result<(), CatalogError> {
        match self.draft().get_versioned::<GoneRecord>(keys::gone(id)).await? {
            Some((mark, version)) if !mark.stays => self.purge(id, &version, PURGE_COMMITS_AT_ONCE).await,
            // It was made anew, by whoever has purged it; or what is there is of a tenant of a file.
            _ => Ok(()),
        }
    }

    /// Deletes what a deleted tenant has left, while its name is marked with `mark`: as soon as somebody has the name
    /// anew, nothing more.
    ///
    /// What its plugins have stored goes in commits that rest on the values as they were before the mark was looked at.
    /// Whoever made the tenant meanwhile had deleted all of them, so a commit that comes too late meets none of them and
    /// is not done. The rest goes only while a key of the tenant's own, the guard, is as it was written before the mark
    /// was looked at; whoever makes the tenant [takes the guard away](Catalog::unguard).
    async fn purge(&self, id: &TenantId, mark: &Version, commits_max: usize) -> Result<(), CatalogError> {
        self.purge_values(id, mark, commits_max).await?;
        for _ in 0..GUARDS_MAX {
            let version = self.guard(id).await?;
            if !self.is_marked(id, mark).await? {
                return self.unguard(id).await;
            }
            if self.engine().forget(id, &guard_key(), &version).await? {
                return self.unguard(id).await;
            }
        }
        let what = "others delete what the tenant that had this name before has left; try again";
        Err(CatalogError::Conflict(what.into()))
    }

    async fn purge_values(&self, id: &TenantId, mark: &Version, commits_max: usize) -> Result<(), CatalogError> {
        for _ in 0..commits_max {
            let mut keys = self.engine().list_keys(id, "", None, PURGED_AT_ONCE).await?.keys;
            keys.retain(|key| *key != guard_key());
            if keys.is_empty() {
                return Ok(());
            }
            let found = self.engine().read(id, &keys).await?;
            if !self.is_marked(id, mark).await? {
                return Ok(());
            }
            let reads = keys.iter().cloned().zip(found.into_iter().map(|found| found.map(|found| found.version)));
            let reads = reads.collect();
            let writes = keys.into_iter().map(|key| (key, Write::Delete)).collect();
            let commit = Commit { reads, writes, ..Commit::new(CommitId::random()) };
            if let Outcome::Conflict(_) = self.engine().commit(id, Arc::new(commit)).await? {
                tracing::debug!(tenant = %id, "somebody else deletes or writes what a deleted tenant has stored");
            }
        }
        let (what, limit) = ("keys of the tenant that had this name before", commits_max * PURGED_AT_ONCE);
        Err(CatalogError::Limit { what, value: limit + 1, limit })
    }

    async fn is_marked(&self, id: &TenantId, mark: &Version) -> Result<bool, CatalogError> {
        let marked = self.read(&[keys::gone(id)]).await?.pop().and_then(|(_, found)| found);
        Ok(marked.is_some_and(|marked| marked.version == *mark))
    }

    /// Writes the guard. Answers its version.
    async fn guard(&self, id: &TenantId) -> Result<Version, CatalogError> {
        self.write_guard(id, Write::Put { value: "1".into(), ttl_ms: Some(GUARD_MS) }).await?;
        let found = self.engine().read(id, &[guard_key()]).await?.pop().flatten();
        let gone = || CatalogError::Conflict("somebody makes the same tenant; try again".into());
        found.map(|found| found.version).ok_or_else(gone)
    }

    /// Whoever still deletes what the former tenant of this name has left, is stopped.
    async fn unguard(&self, id: &TenantId) -> Result<(), CatalogError> {
        self.write_guard(id, Write::Delete).await
    }

    /// The same, tried again while a guard can be in force.
    async fn unguard_surely(&self, id: &TenantId) -> Result<(), CatalogError> {
        let end = Instant::now() + Duration::from_millis(GUARD_MS);
        loop {
            match self.unguard(id).await {
                Err(error) if Instant::now() < end => {
                    tracing::debug!(tenant = %id, %error, "the guard of what a former tenant has left is not taken away yet");
                    tokio::time::sleep(UNGUARD_REST).await;
                }
                ended => return ended,
            }
        }
    }

    async fn write_guard(&self, id: &TenantId, write: Write) -> Result<(), CatalogError> {
        let commit = Commit { writes: vec![(guard_key(), write)], ..Commit::new(CommitId::random()) };
        self.engine().commit(id, Arc::new(commit)).await?;
        Ok(())
    }

    /// Settings that are as they were are not judged again: what a later version finds wrong with them must not hinder
    /// whoever disables the tenant.
    fn check_settings(
        &self,
        id: &TenantId,
        wanted: &TenantRecord,
        before: Option<&TenantRecord>,
    ) -> Result<(), CatalogError> {
        if before.is_some_and(|before| before.settings == wanted.settings) {
            return Ok(());
        }
        match tenant_from_json(id, &Value::Object(wanted.settings.clone()), self.inner.demo) {
            Ok(_) => Ok(()),
            Err(Mistakes(mistakes)) => Err(CatalogError::Invalid(mistakes.iter().map(ToString::to_string).collect())),
        }
    }

    /// About: tenants that are made at the same moment do not count each other.
    async fn room_for_a_tenant(&self) -> Result<(), CatalogError> {
        let key = StateKey::stored(keys::TENANT_COUNT);
        let found = self.read(std::slice::from_ref(&key)).await?.pop().and_then(|(_, value)| value);
        let count: usize =
            found.and_then(|found| String::from_utf8_lossy(&found.value).parse().ok()).unwrap_or_default();
        if count >= TENANTS_MAX {
            return Err(CatalogError::Limit { what: "tenants", value: count + 1, limit: TENANTS_MAX });
        }
        Ok(())
    }
}

/// The tenant with its next revision. One that is made anew goes on above whatever its name had before: by the clock.
pub(super) fn touched(tenant: TenantRecord, before: Option<&TenantRecord>) -> TenantRecord {
    let now = now_ms();
    let (created_ms, revision) = before.map_or((now, now), |before| (before.created_ms, before.revision));
    TenantRecord { created_ms, changed_ms: now, revision: revision + 1, ..tenant }
}
