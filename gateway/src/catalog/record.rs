//! What the catalog keeps, as JSON: every record says its format, and carries along what it does not know.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::CatalogError;
use crate::commit::{Millis, StateKey};
use crate::config::role_name;
use crate::tenant::{Pattern, Role, TenantId};

/// The format of records that this version writes, and the latest that it reads.
pub const FORMAT: u32 = 1;

/// The longest record, in bytes: room for the longest settings before and after a change.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// How many 10,000ths there are: a canary's share of users is counted in them.
pub const SHARES: u32 = 10_000;

fn format() -> u32 {
    FORMAT
}

/// A tenant that was made over the admin API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TenantRecord {
    /// [`FORMAT`] of whoever wrote it.
    #[serde(default = "format")]
    pub format: u32,
    /// Its name.
    pub name: TenantId,
    /// Its settings as written: the keys of a tenant's file, without `name` and `plugins`.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// Is it out of service?
    #[serde(default)]
    pub disabled: bool,
    /// When it was made.
    #[serde(default)]
    pub created_ms: Millis,
    /// When it, or a plugin of it, was changed last.
    #[serde(default)]
    pub changed_ms: Millis,
    /// Grows with each change of it or of a plugin of it.
    #[serde(default)]
    pub revision: u64,
    /// What a later version has added; kept as it is.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl TenantRecord {
    /// A new one.
    pub fn new(name: TenantId, settings: Map<String, Value>) -> TenantRecord {
        TenantRecord {
            format: FORMAT,
            name,
            settings,
            disabled: false,
            created_ms: 0,
            changed_ms: 0,
            revision: 0,
            more: Map::new(),
        }
    }
}

/// A named place in a tenant's pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PluginRecord {
    /// [`FORMAT`] of whoever wrote it.
    #[serde(default = "format")]
    pub format: u32,
    /// Its name within the tenant.
    pub name: Arc<str>,
    /// What it does.
    pub role: Role,
    /// Handlers see an event in the order of their positions, then of their names.
    #[serde(default)]
    pub position: u32,
    /// Event patterns that it handles, instead of those that its component declares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<Pattern>>,
    /// What `config.get` answers it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// Further keys of a `[[plugins]]` of a tenant's file, as written: `instances` and the like.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub options: Map<String, Value>,
    /// Is it left out of the pipeline?
    #[serde(default)]
    pub disabled: bool,
    /// Is it rolled back by itself when its breaker opens soon after an activation?
    #[serde(default)]
    pub auto_rollback: bool,
    /// Its versions, oldest first; never more than [`VERSIONS_KEPT_MAX`](super::VERSIONS_KEPT_MAX).
    #[serde(default)]
    pub versions: Vec<VersionRecord>,
    /// The version that runs.
    #[serde(default)]
    pub active: Option<u64>,
    /// Versions that ran before, the latest last.
    #[serde(default)]
    pub previous: Vec<u64>,
    /// A version that runs for some of the users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// The latest roll-out, on its way or ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// When it was changed last.
    #[serde(default)]
    pub changed_ms: Millis,
    /// What a later version has added; kept as it is.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl PluginRecord {
    /// A new one, without versions.
    pub fn new(name: &str, role: Role) -> PluginRecord {
        PluginRecord {
            format: FORMAT,
            name: name.into(),
            role,
            position: 0,
            events: None,
            settings: BTreeMap::new(),
            options: Map::new(),
            disabled: false,
            auto_rollback: false,
            versions: Vec::new(),
            active: None,
            previous: Vec::new(),
            canary: None,
            rollout: None,
            changed_ms: 0,
            more: Map::new(),
        }
    }

    /// What a `[[plugins]]` of a tenant's file would say, without name and component.
    pub fn document(&self) -> Map<String, Value> {
        let mut document = self.options.clone();
        document.insert("role".into(), role_name(self.role).into());
        if let Some(events) = &self.events {
            document.insert("events".into(), events.iter().map(|pattern| Value::from(&*pattern.0)).collect());
        }
        let settings = self.settings.iter().map(|(name, value)| (name.clone(), Value::from(&**value)));
        document.insert("settings".into(), Value::Object(settings.collect()));
        document
    }

    /// A version by its number.
    pub fn version(&self, number: u64) -> Option<&VersionRecord> {
        self.versions.iter().find(|version| version.version == number)
    }

    /// The roll-out that is on its way.
    pub fn rolling_out(&self) -> Option<&Rollout> {
        self.rollout.as_ref().filter(|rollout| rollout.ended.is_none())
    }

    /// Is this version the active one, the canary, on its way, or the one to go back to?
    pub fn needs(&self, number: u64) -> bool {
        self.active == Some(number)
            || self.canary.as_ref().is_some_and(|canary| canary.version == number)
            || self.rolling_out().is_some_and(|rollout| rollout.version == number)
            || self.previous.last() == Some(&number)
    }
}

/// One component of a plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// Its number, from 1.
    pub version: u64,
    /// The SHA-256 of the component, in hexadecimal; names the artefact.
    pub digest: Arc<str>,
    /// How long the component is.
    #[serde(default)]
    pub bytes: u64,
    /// What it calls itself.
    #[serde(default)]
    pub described_name: String,
    /// Its version in its own words.
    #[serde(default)]
    pub described_version: String,
    /// The event patterns that it declares.
    #[serde(default)]
    pub events: Vec<Pattern>,
    /// The interfaces that it imports.
    #[serde(default)]
    pub imports: Vec<String>,
    /// The interfaces that it exports.
    #[serde(default)]
    pub exports: Vec<String>,
    /// Who signed it; every node verifies it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// When it was uploaded.
    #[serde(default)]
    pub uploaded_ms: Millis,
    /// By whom.
    #[serde(default)]
    pub by: String,
    /// What a later version has added; kept as it is.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A detached signature of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The id of the tenant's signature key.
    pub key: String,
    /// The signature, in base64.
    pub value: String,
}

/// What is known of a component that was checked, and is to be a version.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NewVersion {
    /// The SHA-256 of the component, in hexadecimal.
    pub digest: Arc<str>,
    /// What it calls itself.
    pub described_name: String,
    /// Its version in its own words.
    pub described_version: String,
    /// The event patterns that it declares.
    pub events: Vec<Pattern>,
    /// The interfaces that it imports.
    pub imports: Vec<String>,
    /// The interfaces that it exports.
    pub exports: Vec<String>,
    /// Who signed it.
    pub signature: Option<Signature>,
}

/// A version for some of the users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// Which.
    pub version: u64,
    /// For how many users, in 10,000ths ([`SHARES`]).
    pub share: u32,
}

impl Canary {
    /// The share for a percentage from 0 to 100, to two places; `None` for any other number.
    pub fn of_percent(version: u64, percent: f64) -> Option<Canary> {
        if !(0.0..=100.0).contains(&percent) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and 10,000")]
        let share = (percent * f64::from(SHARES) / 100.0).round() as u32;
        Some(Canary { version, share })
    }

    /// The share as a percentage.
    pub fn percent(self) -> f64 {
        f64::from(self.share) * 100.0 / f64::from(SHARES)
    }
}

/// An activation on its way to all nodes, or how it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// Names it; nodes report to this name.
    pub id: String,
    /// What becomes active.
    pub version: u64,
    /// When it began.
    pub started_ms: Millis,
    /// When it goes on with the nodes that are ready.
    pub deadline_ms: Millis,
    /// Who began it.
    pub by: String,
    /// How it ended; `None`: it is on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

/// How a roll-out ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When.
    pub at_ms: Millis,
    /// Did the version become active?
    pub active: bool,
    /// Why not, or which nodes were not ready in time; may be empty.
    #[serde(default)]
    pub message: String,
}

/// A node's word on a roll-out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyRecord {
    /// [`FORMAT`] of whoever wrote it.
    #[serde(default = "format")]
    pub format: u32,
    /// The node.
    pub server: String,
    /// Has it the version loaded? Otherwise it cannot load it.
    pub ready: bool,
    /// Why not.
    #[serde(default)]
    pub message: String,
    /// When it said so.
    #[serde(default)]
    pub at_ms: Millis,
}

/// A record with nothing but its format.
#[derive(Deserialize)]
struct Head {
    #[serde(default = "format")]
    format: u32,
}

/// Reads a record.
///
/// # Errors
/// When a later version wrote it, or nobody did.
pub(super) fn decode<T: DeserializeOwned>(key: &StateKey, bytes: &[u8]) -> Result<T, CatalogError> {
    let damaged = |error: serde_json::Error| CatalogError::Damaged { key: key.as_str().into(), why: error.to_string() };
    let Head { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    if format > FORMAT {
        return Err(CatalogError::Later { key: key.as_str().into(), format });
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

/// Writes a record.
///
/// # Errors
/// When it is longer than [`RECORD_BYTES_MAX`].
pub(super) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, CatalogError> {
    let bytes = serde_json::to_vec(record).map_err(|error| CatalogError::Invalid(vec![error.to_string()]))?;
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(CatalogError::Limit {
            what: "bytes of a record (settings and all)",
            value: bytes.len(),
            limit: RECORD_BYTES_MAX,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> StateKey {
        StateKey::stored("/tenant/acme")
    }

    #[test]
    fn what_a_later_version_added_is_kept_and_a_later_format_is_refused() {
        let text = br#"{"format":1,"name":"acme","colour":"green","settings":{"relay":["a"]}}"#;
        let record: TenantRecord = decode(&key(), text).unwrap();
        let again: Value = serde_json::from_slice(&encode(&record).unwrap()).unwrap();
        assert_eq!((&again["colour"], &again["settings"]["relay"][0]), (&"green".into(), &"a".into()));
        let later = decode::<TenantRecord>(&key(), br#"{"format":2,"name":{"first":"acme"}}"#);
        assert!(matches!(&later, Err(CatalogError::Later { format: 2, .. })), "{later:?}");
        assert!(matches!(decode::<TenantRecord>(&key(), b"{}"), Err(CatalogError::Damaged { .. })));
    }

    #[test]
    fn a_record_that_is_too_long_is_refused_with_the_limit() {
        let settings = Map::from_iter([("x".to_owned(), Value::String("y".repeat(RECORD_BYTES_MAX)))]);
        let error = encode(&TenantRecord::new(TenantId::parse("acme").unwrap(), settings)).unwrap_err();
        assert!(error.to_string().contains("1048576"), "{error}");
    }

    #[test]
    fn percentages_are_counted_in_hundredths() {
        assert_eq!(Canary::of_percent(2, 12.5).map(|canary| (canary.share, canary.percent())), Some((1_250, 12.5)));
        for percent in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Canary::of_percent(2, percent), None);
        }
    }
}
