//! Who changed what, before and after, without secrets.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::record::{FORMAT, decode};
use super::store::Draft;
use super::{Actor, Catalog, CatalogError, PAGE_MAX, PluginRecord, keys};
use crate::client::random_id;
use crate::commit::{Millis, now_ms};
use crate::config::{only_names, without_secrets, without_secrets_since};
use crate::tenant::TenantId;

/// How long audit records are kept, in milliseconds: 400 days.
pub const AUDIT_KEPT_MS: Millis = 400 * 24 * 3_600_000;

/// The longest text that a record shows, in bytes; of a longer one it says the length and the SHA-256.
const TEXT_BYTES_MAX: usize = 1 << 10;

/// How much of a record is for what was there before, and how much for what is there now, in bytes: with the rest it
/// has at most 16 KiB, for it is kept long, and whoever may change a tenant makes as many as it likes.
const SIDE_BYTES_MAX: usize = 7 << 10;

/// One change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// The format of whoever wrote it.
    #[serde(default)]
    pub format: u32,
    /// Its place among the others: later ones come first in the order of texts.
    pub id: String,
    /// When.
    pub at_ms: Millis,
    /// The name of the token with which it was done, or of the part of the gateway that did it.
    pub by: String,
    /// Whose it is; `None`: the gateway's.
    #[serde(default)]
    pub tenant: Option<TenantId>,
    /// What was done, for example `tenant.settings` or `rollout.start`.
    pub what: String,
    /// What it was done to: a plugin, a token.
    #[serde(default)]
    pub subject: String,
    /// What has changed, as it was; `null`: it was not there.
    #[serde(default)]
    pub before: Value,
    /// The same, as it is now; `null`: it is not there any more.
    #[serde(default)]
    pub after: Value,
}

/// A value without its long texts, of at most `limit` bytes of JSON: what does not fit is told by its length and SHA-256,
/// of objects member by member.
fn brief(value: Value, limit: usize) -> Value {
    if let Value::String(text) = &value
        && text.len() > TEXT_BYTES_MAX
    {
        return summary(text.as_bytes(), "bytes");
    }
    let json = value.to_string();
    let brief = match value {
        Value::Object(members) => {
            Value::Object(members.into_iter().map(|(name, value)| (name, brief(value, limit / 2))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(|item| brief(item, limit / 2)).collect()),
        other => other,
    };
    if brief.to_string().len() > limit { summary(json.as_bytes(), "bytes of JSON") } else { brief }
}

fn summary(bytes: &[u8], unit: &str) -> Value {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("({} {unit}, SHA-256 {digest})", bytes.len()).into()
}

/// Of two values what differs: of objects their differing members.
fn difference(before: Value, after: Value) -> (Value, Value) {
    match (before, after) {
        (Value::Object(before), Value::Object(mut after)) => {
            let (mut was, mut is) = (Map::new(), Map::new());
            for (name, old) in before {
                match after.remove(&name) {
                    Some(new) if new == old => {}
                    Some(new) => {
                        let (old, new) = difference(old, new);
                        was.insert(name.clone(), old);
                        is.insert(name, new);
                    }
                    None => {
                        was.insert(name, old);
                    }
                }
            }
            is.extend(after);
            (Value::Object(was), Value::Object(is))
        }
        other => other,
    }
}

/// What a record is to the audit log: no format, no times, no counters.
fn told<T: Serialize>(record: Option<&T>) -> Value {
    let mut value = record.and_then(|record| serde_json::to_value(record).ok()).unwrap_or(Value::Null);
    if let Value::Object(members) = &mut value {
        for name in ["format", "created_ms", "changed_ms", "revision"] {
            members.remove(name);
        }
    }
    value
}

/// The next id: each process's ids are in order; those of others by their clocks.
fn next_id() -> String {
    static LAST_US: AtomicU64 = AtomicU64::new(0);
    let now_us = now_ms().saturating_mul(1_000);
    let last = LAST_US.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(now_us.max(last + 1)));
    let us = now_us.max(last.unwrap_or_default() + 1);
    let noise: String = random_id().chars().filter(char::is_ascii_alphanumeric).take(6).collect();
    format!("{:016x}-{noise}", u64::MAX - us)
}

impl Draft<'_> {
    /// Says what this change is, with what differs between `before` and `after`. It then rests on the token of whoever
    /// makes it: one that is revoked while its request is still read changes nothing any more.
    pub(super) fn audit<T: Serialize>(
        &mut self,
        by: &Actor,
        tenant: Option<&TenantId>,
        what: &str,
        subject: &str,
        before: Option<&T>,
        after: Option<&T>,
    ) -> Result<(), CatalogError> {
        let (before, after) = difference(told(before), told(after));
        self.audit_of_values(by, tenant, what, subject, [&before, &after])
    }

    /// The same for a plugin. Of its own settings only the names are told: the log lives longer than their secrets
    /// should, and more people read it.
    pub(super) fn audit_of_plugin(
        &mut self,
        by: &Actor,
        tenant: &TenantId,
        what: &str,
        before: Option<&PluginRecord>,
        after: Option<&PluginRecord>,
    ) -> Result<(), CatalogError> {
        let name = before.or(after).map(|plugin| plugin.name.clone()).unwrap_or_default();
        let (mut before, mut after) = difference(told(before), told(after));
        for settings in [&mut before, &mut after].into_iter().filter_map(|value| value.get_mut("settings")) {
            *settings = only_names(settings);
        }
        self.audit_of_values(by, Some(tenant), what, &name, [&before, &after])
    }

    fn audit_of_values(
        &mut self,
        by: &Actor,
        tenant: Option<&TenantId>,
        what: &str,
        subject: &str,
        [before, after]: [&Value; 2],
    ) -> Result<(), CatalogError> {
        if let Some(token) = &by.token {
            self.made_with(token);
        }
        let record = AuditRecord {
            format: FORMAT,
            id: next_id(),
            at_ms: now_ms(),
            by: by.name.clone(),
            tenant: tenant.cloned(),
            what: what.into(),
            subject: subject.into(),
            before: brief(without_secrets(before), SIDE_BYTES_MAX),
            after: brief(without_secrets_since(before, after), SIDE_BYTES_MAX),
        };
        if let Some(tenant) = tenant {
            self.put_bytes(keys::audit_of(tenant, &record.id), "{}".into(), Some(AUDIT_KEPT_MS));
        }
        self.put(keys::audit(&record.id), &record, Some(AUDIT_KEPT_MS))
    }
}

impl Catalog {
    /// Says what is about to be done that is no change of the catalog, such as a revocation. Only what could be said
    /// may then be done.
    ///
    /// # Errors
    /// The engine; then it should not be done.
    pub async fn tell(
        &self,
        by: &Actor,
        tenant: &TenantId,
        what: &str,
        subject: &str,
        after: Option<&Value>,
    ) -> Result<(), CatalogError> {
        let mut draft = self.draft();
        draft.audit(by, Some(tenant), what, subject, None, after)?;
        if draft.commit().await? {
            return Ok(());
        }
        Err(CatalogError::Conflict("the token with which it is done has changed meanwhile; try again".into()))
    }

    /// What was changed, the latest first, of one tenant or of everything; after the record with the id `before`, at
    /// most `limit` and [`PAGE_MAX`].
    pub async fn audit(
        &self,
        tenant: Option<&TenantId>,
        before: Option<&str>,
        limit: usize,
    ) -> Result<Vec<AuditRecord>, CatalogError> {
        let prefix = tenant.map_or_else(|| keys::AUDIT.to_owned(), keys::audits_of);
        let after = before.map(|id| format!("{prefix}{id}"));
        let page = self.list(&prefix, after.as_deref(), limit.min(PAGE_MAX)).await?;
        let ids = page.keys.iter().filter_map(|key| key.as_str().strip_prefix(&*prefix)).map(keys::audit);
        let found = self.read(&ids.collect::<Vec<_>>()).await?;
        found.into_iter().filter_map(|(key, value)| Some(decode(&key, &value?.value))).collect()
    }

    /// The same of one tenant, without what somebody else did who had its name before.
    pub async fn audit_of_owner(
        &self,
        tenant: &TenantId,
        before: Option<&str>,
        limit: usize,
    ) -> Result<Vec<AuditRecord>, CatalogError> {
        let created = self.created_ms(Some(tenant)).await?.unwrap_or_default();
        let mut records = self.audit(Some(tenant), before, limit).await?;
        records.retain(|record| record.at_ms >= created);
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_differs_is_told_and_no_secret_is() {
        let before =
            json!({ "settings": { "relay": ["a"], "auth": { "keys": [{ "id": "k1", "secret": "s" }] } }, "same": 1 });
        let after = json!({ "settings": { "relay": ["a"], "auth": { "keys": [{ "id": "k2", "secret": "t" }] } }, "same": 1, "new": 2 });
        let (before, after) = difference(before, after);
        assert_eq!(
            without_secrets(&before),
            json!({ "settings": { "auth": { "keys": [{ "id": "k1", "secret": "(secret)" }] } } })
        );
        assert_eq!(without_secrets(&after)["settings"]["auth"]["keys"][0], json!({ "id": "k2", "secret": "(secret)" }));
        assert_eq!(after["new"], 2);
    }

    #[test]
    fn a_record_is_small_whatever_was_changed_and_says_how_much_it_was() {
        let long = "x".repeat(250_000);
        let value =
            brief(json!({ "settings": { "cors": ["a"], "greeting": long }, "role": "handler" }), SIDE_BYTES_MAX);
        assert_eq!((&value["settings"]["cors"][0], &value["role"]), (&json!("a"), &json!("handler")));
        let told = value["settings"]["greeting"].as_str().unwrap();
        assert!(told.starts_with("(250000 bytes, SHA-256 ") && told.len() < 100, "{told}");
        let many: Map<String, Value> = (0..10_000).map(|n| (format!("name-{n}"), json!(n))).collect();
        let named = Map::from_iter([(long.clone(), json!(1))]);
        let list: Vec<&str> = vec!["text"; 50_000];
        for large in [json!(many), json!({ "settings": many }), json!(named), json!(list), json!(long)] {
            let told = brief(json!({ "large": large, "small": 1 }), SIDE_BYTES_MAX);
            assert!(told.to_string().len() <= SIDE_BYTES_MAX, "{told}");
            assert_eq!(told["small"], 1);
        }
        let small = json!({ "settings": { "relay": ["a", "b"], "n": 1 } });
        assert_eq!(brief(small.clone(), SIDE_BYTES_MAX), small);
    }

    #[test]
    fn later_ids_come_first() {
        let ids: Vec<_> = (0..100).map(|_| next_id()).collect();
        assert!(ids.is_sorted_by(|a, b| a > b), "{ids:?}");
    }
}
