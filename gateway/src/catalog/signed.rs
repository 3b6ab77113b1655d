//! Whether a tenant trusts a version: its signature, held against the keys that the tenant has now.

use serde_json::Value;

use super::{Catalog, CatalogError, PluginRecord, TenantRecord, VersionRecord};
use crate::config::{Mistakes, tenant_from_json};
use crate::decision::plugin::{SignatureError, verify};
use crate::tenant::Tenant;

/// # Errors
/// The version has no signature where the tenant wants one, or one that does not hold.
pub(super) fn signed(tenant: &Tenant, plugin: &PluginRecord, version: &VersionRecord) -> Result<(), SignatureError> {
    let written = version.signature.as_ref().map(|signature| format!("{}:{}", signature.key, signature.value));
    let signature = written.map(|written| written.parse()).transpose()?;
    let (keys, required) = (&tenant.signature_keys, tenant.require_signature);
    verify(&tenant.id, &plugin.name, &version.digest, keys, required, signature.as_ref()).map(drop)
}

impl Catalog {
    /// The versions that the tenant's plugins run or try, and that it does not trust as its settings are: no node calls
    /// them. Each with why.
    ///
    /// # Errors
    /// The engine's, or the settings cannot be read.
    pub async fn distrusted(&self, tenant: &TenantRecord) -> Result<Vec<String>, CatalogError> {
        let settings = settings(tenant, self.inner.demo)?;
        let mut distrusted = Vec::new();
        for plugin in self.plugins(&tenant.name).await? {
            let chosen = [plugin.active, plugin.canary.map(|canary| canary.version)].into_iter().flatten();
            for version in chosen.filter_map(|version| plugin.version(version)) {
                if let Err(error) = signed(&settings, &plugin, version) {
                    distrusted.push(format!("plugin {}, version {}: {error}", plugin.name, version.version));
                }
            }
        }
        Ok(distrusted)
    }
}

fn settings(tenant: &TenantRecord, demo: bool) -> Result<Tenant, CatalogError> {
    let parsed = tenant_from_json(&tenant.name, &Value::Object(tenant.settings.clone()), demo);
    let (parsed, _) = parsed
        .map_err(|Mistakes(mistakes)| CatalogError::Invalid(mistakes.iter().map(ToString::to_string).collect()))?;
    Ok(parsed)
}

/// Holds the versions that `after` runs, tries or rolls out, and `before` did not, against the tenant's keys.
///
/// # Errors
/// [`CatalogError::Conflict`]: the tenant does not trust one of them; nodes would not run it.
pub(super) fn trusted(
    tenant: &TenantRecord,
    before: &PluginRecord,
    after: &PluginRecord,
    demo: bool,
) -> Result<(), CatalogError> {
    let chosen = |plugin: &PluginRecord| {
        let on_its_way = plugin.rolling_out().map(|rollout| rollout.version);
        [plugin.active, plugin.canary.map(|canary| canary.version), on_its_way]
    };
    let was = chosen(before);
    let new: Vec<_> = chosen(after).into_iter().flatten().filter(|version| !was.contains(&Some(*version))).collect();
    if new.is_empty() {
        return Ok(());
    }
    let parsed = settings(tenant, demo)?;
    for version in new.into_iter().filter_map(|version| after.version(version)) {
        signed(&parsed, after, version).map_err(|error| {
            let (name, number) = (&after.name, version.version);
            CatalogError::Conflict(format!("no node would run version {number} of {name:?}: {error}"))
        })?;
    }
    Ok(())
}
