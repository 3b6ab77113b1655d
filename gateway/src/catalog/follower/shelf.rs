//! A tenant's loaded components: those that run, and those that are ready to.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::catalog::signed::signed;
use crate::catalog::{CatalogError, PluginRecord, VersionRecord};
use crate::config::{Mistakes, plugin_from_json};
use crate::decision::plugin::{Plugin, digest};
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
    pub(super) passing: Passing,
    /// Is it of somebody whom the tenant does not trust, or not any more? Then nothing of the plugin runs.
    pub(super) distrusted: bool,
}

/// May what went wrong be well in a while?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passing {
    /// No.
    No,
    /// Perhaps: a few times more it is tried.
    Perhaps,
    /// Yes.
    Yes,
}

impl Passing {
    /// How often in a row something is tried that may be well in a while.
    const TRIED_MAX: u32 = 5;

    /// Is it tried again after so many failures?
    pub(super) fn again(self, failures: u32) -> bool {
        match self {
            Passing::No => false,
            Passing::Perhaps => failures < Passing::TRIED_MAX,
            Passing::Yes => true,
        }
    }
}

impl NotLoaded {
    fn new(why: impl ToString, passing: bool) -> NotLoaded {
        let passing = if passing { Passing::Yes } else { Passing::No };
        NotLoaded { why: why.to_string(), passing, distrusted: false }
    }
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
        // What runs is held against the keys that the tenant has now, too.
        signed(tenant, plugin, version)
            .map_err(|error| NotLoaded { distrusted: true, ..NotLoaded::new(error, false) })?;
        let key = Key::of(tenant, plugin, version);
        if let Some(loaded) = self.get(&key) {
            return Ok(loaded);
        }
        let loaded = load(gateway, tenant, plugin, version).await?;
        // Somebody else may have been faster: that one may run already.
        Ok(self.loaded.lock().entry(key).or_insert(loaded).clone())
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
        NotLoaded::new(why.join("; "), false)
    })?;
    let bytes = gateway.catalog.component(&version.digest).await.map_err(|error| {
        // An artefact that is missing may be uploaded again.
        let passing = match &error {
            CatalogError::Engine(error) => !matches!(error, EngineError::Corrupt(_)),
            error => matches!(error, CatalogError::NotFound { .. }),
        };
        NotLoaded::new(error, passing)
    })?;
    let (bytes, digest) = digest_of(bytes).await.map_err(|why| NotLoaded::new(why, true))?;
    if digest != *version.digest {
        let why = format!("the component has the SHA-256 {digest}, not {}: it was changed on its way", version.digest);
        return Err(NotLoaded::new(why, false));
    }
    let loaded = gateway.host.load(&tenant.id, &settings, &tenant.call_limits, bytes).await;
    loaded.map_err(|error| {
        let passing = if error.is_slow() { Passing::Perhaps } else { NotLoaded::new("", error.is_passing()).passing };
        NotLoaded { passing, ..NotLoaded::new(error, false) }
    })
}

/// The SHA-256 of a component, taken where it may take its time.
async fn digest_of(bytes: Bytes) -> Result<(Bytes, String), String> {
    let digest = tokio::task::spawn_blocking(move || {
        let digest = digest(&bytes);
        (bytes, digest)
    });
    digest.await.map_err(|error| format!("the node is stopping: {error}"))
}
