//! The catalog: the tenants, plugins, versions and tokens that the admin API keeps, its audit log and the accounts.
//!
//! It lives in the engine, under a tenant of its own that no name can collide with ([`TenantId::catalog`]), so both
//! engines keep it with what they promise anyway: each change is one commit that rests on the records as they were read,
//! holds the new record and its audit record, and tells every node in the order of one log what has changed. The
//! components themselves are the engine's artefacts, by digest.
//!
//! A record that a later version of the gateway wrote is refused ([`CatalogError::Later`]), never guessed at.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::commit::{Effect, Version};
use crate::config::{AdminLimits, Config};
use crate::engine::{Engine, EngineError, Feed, Follower};
use crate::room::Room;
use crate::tenant::TenantId;

mod audit;
mod collecting;
mod follower;
mod keys;
mod nodes;
mod plugins;
mod record;
mod rollout;
mod signed;
mod store;
mod tenants;
mod tokens;
mod usage;

pub use audit::{AUDIT_KEPT_MS, AuditRecord};
pub use collecting::COMPONENTS_KEPT_MS;
pub use follower::{CatalogFollower, FIRST_LOOK_MAX};
pub use nodes::NODE_SAID_MS;
pub use plugins::{AddedVersion, PREVIOUS_KEPT_MAX};
pub use record::{
    Canary, Ended, FORMAT, NewVersion, PluginRecord, RECORD_BYTES_MAX, ReadyRecord, Rollout, SHARES, Signature,
    TenantRecord, VersionRecord,
};
pub use rollout::{
    AUTO_ROLLBACK_WITHIN_MS, NodeState, ROLLOUT_DEADLINE, RolloutNode, RolloutState, RolloutStatus, Settled,
};
pub use tenants::TenantPage;
pub use tokens::{NewToken, TOKENS_MAX, TokenRecord};
pub use usage::{CONNECTIONS_PEAK, Gathered, USAGE_DELTAS_MAX, USAGE_KEPT_MS, UsageDelta, UsageRow, day_of};

/// The most tenants that the catalog holds.
pub const TENANTS_MAX: usize = 100_000;

/// The most plugins that a tenant has.
pub const PLUGINS_MAX: usize = 32;

/// Versions that a plugin keeps; the oldest that nothing needs are dropped.
pub const VERSIONS_KEPT_MAX: usize = 20;

/// The longest name of a plugin, in bytes.
pub const PLUGIN_NAME_BYTES_MAX: usize = 64;

/// The most records that one call answers.
pub const PAGE_MAX: usize = 1_000;

/// The event that tells nodes of a change.
const EVENT: &str = "changed";

/// See the [module's text](self). Cheap to clone.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<dyn Engine>,
    home: TenantId,
    /// Tenants that are written in files: nothing here changes them.
    files: HashMap<TenantId, PathBuf>,
    /// Are weak secrets only warned of?
    demo: bool,
    /// The components of all versions of one tenant together, in bytes.
    component_bytes_max: u64,
    /// What this node cannot serve as it is written.
    troubles: Mutex<BTreeMap<TenantId, Vec<String>>>,
    has_tokens: tokens::Remembered,
}

/// What a token, or a part of the gateway, may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Everything.
    Operator,
    /// One tenant: its plugins, keys and settings.
    TenantAdmin,
    /// One tenant: reading.
    TenantRead,
}

/// Who does something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The token's name, or the part of the gateway: `breaker`, `roll-out`.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// The only tenant that it may see; `None` for an operator.
    pub tenant: Option<TenantId>,
    /// The token of the catalog with which it came: every change that it makes rests on that. `None`: it came with the
    /// token of the gateway's settings, or is a part of the gateway.
    pub token: Option<Judged>,
}

/// A token of the catalog as it was found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    id: String,
    version: Version,
}

impl Actor {
    /// A part of the gateway, or whoever has its settings' token.
    pub fn gateway(part: &str) -> Actor {
        Actor { name: part.into(), scope: Scope::Operator, tenant: None, token: None }
    }
}

/// Why the catalog could not do it; nothing was done, but for [`EngineError::Ambiguous`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// There is none of this name.
    #[error("there is no {what} {name:?}")]
    NotFound {
        /// What kind of thing.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// There is one of this name already.
    #[error("there is a {what} {name:?} already")]
    Exists {
        /// What kind of thing.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// It does not go together with how things are.
    #[error("{0}")]
    Conflict(String),
    /// What was given is not valid; all that is wrong with it.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    /// More than there may be.
    #[error("{what}: {value}, at most {limit}")]
    Limit {
        /// What there are too many of.
        what: &'static str,
        /// How many there would be.
        value: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The tenant is written in a file.
    #[error("the tenant {tenant} is written in {}: change it there", .file.display())]
    ReadOnly {
        /// Which tenant.
        tenant: TenantId,
        /// Where.
        file: PathBuf,
    },
    /// A later version of the gateway wrote this.
    #[error(
        "the catalog's record {key} has format {format}, this version reads up to {FORMAT}: run the version that wrote it"
    )]
    Later {
        /// Which record.
        key: String,
        /// Its format.
        format: u32,
    },
    /// This cannot be read.
    #[error("the catalog's record {key} is damaged: {why}")]
    Damaged {
        /// Which record.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// The token was revoked, or has ended, since it was found good.
    #[error("this token is not good here any more: nothing was changed with it")]
    Revoked,
    /// The engine does not answer.
    #[error("{0}")]
    Engine(#[from] EngineError),
}

/// What a change concerns; every node is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Changed {
    /// A tenant or its plugins.
    Tenant {
        /// Which.
        tenant: TenantId,
    },
    /// A node has said how it is with a roll-out.
    Ready {
        /// Whose plugin.
        tenant: TenantId,
        /// Which plugin.
        plugin: Arc<str>,
    },
    /// Something that this version does not know.
    #[serde(other)]
    Other,
}

/// What a follower of the catalog is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// This has changed.
    Changed(Changed),
    /// Anything may have changed.
    Lost,
}

/// The changes of the catalog, in order.
#[derive(Debug)]
pub struct Feeder(Follower);

impl Feeder {
    /// The next one; `None` when the engine ends.
    pub async fn next(&mut self) -> Option<Vec<News>> {
        Some(match self.0.feed.recv().await? {
            Feed::Reset(_) => vec![News::Lost],
            Feed::Ephemeral(_) => Vec::new(),
            Feed::Entry(entry) => entry.effects.iter().filter_map(changed).map(News::Changed).collect(),
        })
    }
}

fn changed(effect: &Effect) -> Option<Changed> {
    match effect {
        Effect::Publish(publication) if &*publication.event == EVENT && publication.room == room() => {
            serde_json::from_value(publication.data.first()?).ok()
        }
        _ => None,
    }
}

/// Where changes are told.
fn room() -> Room {
    Room::everyone("/")
}

impl Catalog {
    /// The catalog of an engine. `files`: the tenants that are written in files, and where. `demo`: weak secrets of
    /// tenants are no mistakes.
    pub fn new(engine: Arc<dyn Engine>, files: HashMap<TenantId, PathBuf>, demo: bool) -> Catalog {
        Catalog::bounded(engine, files, demo, AdminLimits::default().component_bytes_per_tenant)
    }

    /// The same, with so many bytes for the components of one tenant.
    pub fn bounded(
        engine: Arc<dyn Engine>,
        files: HashMap<TenantId, PathBuf>,
        demo: bool,
        component_bytes_max: u64,
    ) -> Catalog {
        let (home, troubles, has_tokens) = (TenantId::catalog(), Mutex::default(), tokens::Remembered::default());
        let inner = Inner { engine, home, files, demo, component_bytes_max, troubles, has_tokens };
        Catalog { inner: Arc::new(inner) }
    }

    /// The catalog of a gateway.
    pub fn of(config: &Config, engine: Arc<dyn Engine>) -> Catalog {
        let file = |id: &TenantId| config.tenants_dir.join(format!("{id}.toml"));
        let files = config.tenants.iter().map(|tenant| (tenant.id.clone(), file(&tenant.id)));
        Catalog::bounded(engine, files.collect(), config.demo, config.admin.component_bytes_per_tenant)
    }

    /// Follows the changes from now on.
    pub async fn follow(&self) -> Result<Feeder, CatalogError> {
        Ok(Feeder(self.engine().follow(self.home()).await?))
    }

    /// The file that a tenant is written in; such a tenant is not changed here.
    pub fn file_of(&self, tenant: &TenantId) -> Option<&PathBuf> {
        self.inner.files.get(tenant)
    }

    /// What of a tenant this node cannot serve as it is written; it goes on with what it served before.
    pub fn troubles(&self, tenant: &TenantId) -> Vec<String> {
        self.inner.troubles.lock().get(tenant).cloned().unwrap_or_default()
    }

    fn trouble(&self, tenant: &TenantId, why: Vec<String>) {
        let mut troubles = self.inner.troubles.lock();
        if why.is_empty() {
            troubles.remove(tenant);
        } else {
            troubles.insert(tenant.clone(), why);
        }
        #[expect(clippy::cast_precision_loss, reason = "there are at most 100,000 tenants")]
        metrics::gauge!("catalog_troubled_tenants").set(troubles.len() as f64);
    }

    /// How many changes of tenants and plugins there have been.
    pub async fn changes(&self) -> Result<u64, CatalogError> {
        let key = crate::commit::StateKey::stored(keys::CHANGES);
        let found = self.read(std::slice::from_ref(&key)).await?.pop().and_then(|(_, value)| value);
        let text = found.map(|found| String::from_utf8_lossy(&found.value).into_owned());
        Ok(text.and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    fn engine(&self) -> &Arc<dyn Engine> {
        &self.inner.engine
    }

    fn home(&self) -> &TenantId {
        &self.inner.home
    }

    /// # Errors
    /// When the tenant is written in a file.
    fn writable(&self, tenant: &TenantId) -> Result<(), CatalogError> {
        match self.file_of(tenant) {
            Some(file) => Err(CatalogError::ReadOnly { tenant: tenant.clone(), file: file.clone() }),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}
