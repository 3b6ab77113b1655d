//! A tenant's loaded components: those that run, and those that are ready to.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::catalog::{CatalogError, PluginRecord, VersionRecord};
use crate::config::{Mistakes, plugin_from_json};
use crate::decision::plugin::{Plugin, SignatureError, digest, verify};
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
    let (bytes, digest) = digest_of(bytes).await.map_err(|why| NotLoaded { why, passing: true })?;
    if digest != *version.digest {
        let why = format!("the component has the SHA-256 {digest}, not {}: it was changed on its way", version.digest);
        return Err(NotLoaded { why, passing: false });
    }
    // Before anything of it is compiled, and against the keys that the tenant has now.
    signed(tenant, plugin, version).map_err(|error| NotLoaded { why: error.to_string(), passing: false })?;
    let loaded = gateway.host.load(&tenant.id, &settings, &tenant.call_limits, bytes).await;
    loaded.map_err(|error| NotLoaded { passing: error.is_passing(), why: error.to_string() })
}

fn signed(tenant: &Tenant, plugin: &PluginRecord, version: &VersionRecord) -> Result<(), SignatureError> {
    let written = version.signature.as_ref().map(|signature| format!("{}:{}", signature.key, signature.value));
    let signature = written.map(|written| written.parse()).transpose()?;
    let (keys, required) = (&tenant.signature_keys, tenant.require_signature);
    verify(&tenant.id, &plugin.name, &version.digest, keys, required, signature.as_ref()).map(drop)
}

/// The SHA-256 of a component, taken where it may take its time.
async fn digest_of(bytes: Bytes) -> Result<(Bytes, String), String> {
    let digest = tokio::task::spawn_blocking(move || {
        let digest = digest(&bytes);
        (bytes, digest)
    });
    digest.await.map_err(|error| format!("the node is stopping: {error}"))
}
