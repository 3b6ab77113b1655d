//! A tenant's loaded components: those that run, and those that are ready to.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::catalog::{CatalogError, PluginRecord, VersionRecord};
use crate::config::{Mistakes, plugin_from_json};
use crate::decision::plugin::{LoadError, Plugin};
use crate::engine::EngineError;
use crate::gateway::Gateway;
use crate::tenant::Tenant;

/// What makes two loaded components the same: plugin, component, and all that they are loaded with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    plugin: Arc<str>,
    digest: Arc<str>,
    settings: String,
}

impl Key {
    pub(super) fn of(tenant: &Tenant, plugin: &PluginRecord, version: &VersionRecord) -> Key {
        let document = serde_json::Value::Object(plugin.document());
        // Limits are part of what a component is loaded with.
        let settings = format!("{document} {:?}", tenant.call_limits);
        Key { plugin: plugin.name.clone(), digest: version.digest.clone(), settings }
    }

    pub(super) fn plugin(&self) -> &str {
        &self.plugin
    }
}

/// Why a component is not there.
#[derive(Debug, Clone)]
pub(super) struct NotLoaded {
    pub(super) why: String,
    /// May it be there in a moment?
    pub(super) passing: bool,
}

/// See the [module's text](self).
#[derive(Default)]
pub(super) struct Shelf {
    loaded: Mutex<HashMap<Key, Arc<Plugin>>>,
}

impl Shelf {
    pub(super) fn get(&self, key: &Key) -> Option<Arc<Plugin>> {
        self.loaded.lock().get(key).cloned()
    }

    /// Lets go of what nobody needs any more.
    pub(super) fn keep(&self, needed: impl Fn(&Key) -> bool) {
        self.loaded.lock().retain(|key, _| needed(key));
    }

    /// A component, loaded if it is not yet: fetched by its digest, held against it, compiled and tried.
    pub(super) async fn load(
        &self,
        gateway: &Gateway,
        tenant: &Tenant,
        plugin: &PluginRecord,
        version: &VersionRecord,
    ) -> Result<Arc<Plugin>, NotLoaded> {
        let key = Key::of(tenant, plugin, version);
        if let Some(loaded) = self.get(&key) {
            return Ok(loaded);
        }
        let loaded = load(gateway, tenant, plugin, version).await?;
        self.loaded.lock().insert(key, loaded.clone());
        Ok(loaded)
    }
}

async fn load(
    gateway: &Gateway,
    tenant: &Tenant,
    plugin: &PluginRecord,
    version: &VersionRecord,
) -> Result<Arc<Plugin>, NotLoaded> {
    let settings = plugin_from_json(&plugin.name, &plugin.document()).map_err(|Mistakes(mistakes)| {
        let why: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        NotLoaded { why: why.join("; "), passing: false }
    })?;
    let bytes = gateway.catalog.component(&version.digest).await.map_err(|error| NotLoaded {
        passing: matches!(&error, CatalogError::Engine(error) if !matches!(error, EngineError::Corrupt(_))),
        why: error.to_string(),
    })?;
    let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if digest != *version.digest {
        let why = format!("the component has the SHA-256 {digest}, not {}: it was changed on its way", version.digest);
        return Err(NotLoaded { why, passing: false });
    }
    gateway
        .host
        .load(&tenant.id, &settings, &tenant.call_limits, bytes)
        .await
        .map_err(|error| NotLoaded { passing: matches!(error, LoadError::Stopping), why: error.to_string() })
}
