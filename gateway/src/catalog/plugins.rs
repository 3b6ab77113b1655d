//! Plugins and their versions.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::store::{Draft, Tries};
use super::tenants::touched;
use super::{
    Actor, Canary, Catalog, CatalogError, Changed, NewVersion, PLUGIN_NAME_BYTES_MAX, PLUGINS_MAX, PluginRecord,
    TenantRecord, VERSIONS_KEPT_MAX, VersionRecord, keys,
};
use crate::commit::now_ms;
use crate::config::{Mistakes, plugin_from_json, role_name, tenant_from_json};
use crate::tenant::{NAME_FORM, PluginSettings, Role, TenantId, is_name};

/// Versions that are remembered as having run before.
pub const PREVIOUS_KEPT_MAX: usize = 10;

/// An uploaded version.
#[derive(Debug, Clone, PartialEq)]
pub struct AddedVersion {
    /// Its record.
    pub version: VersionRecord,
    /// Was the same component there already? Then nothing was changed.
    pub existed: bool,
}

/// A plugin about to be changed, with its tenant.
pub(super) struct Found<'a> {
    pub(super) draft: Draft<'a>,
    pub(super) tenant: TenantRecord,
    pub(super) plugin: Option<PluginRecord>,
}

impl Found<'_> {
    /// Commits the plugin as it is to be, with the tenant's next revision. `false`: somebody else was faster.
    pub(super) async fn commit(
        mut self,
        by: &Actor,
        what: &str,
        name: &str,
        after: Option<&PluginRecord>,
    ) -> Result<bool, CatalogError> {
        let id = &self.tenant.name;
        match after {
            Some(after) => self.draft.put(keys::plugin(id, name), after, None)?,
            None => self.draft.delete(keys::plugin(id, name)),
        }
        self.draft.put(keys::tenant(id), &touched(self.tenant.clone(), Some(&self.tenant)), None)?;
        self.draft.audit_of_plugin(by, id, what, self.plugin.as_ref(), after)?;
        self.draft.tell(&Changed::Tenant { tenant: id.clone() });
        self.draft.commit().await
    }
}

impl Catalog {
    /// A tenant's plugins, in their order.
    pub async fn plugins(&self, tenant: &TenantId) -> Result<Vec<PluginRecord>, CatalogError> {
        Ok(self.whole(tenant).await?.map(|(_, plugins)| plugins).unwrap_or_default())
    }

    /// One plugin.
    pub async fn plugin(&self, tenant: &TenantId, name: &str) -> Result<Option<PluginRecord>, CatalogError> {
        if !is_name(name, PLUGIN_NAME_BYTES_MAX) {
            return Ok(None);
        }
        self.draft().get(keys::plugin(tenant, name)).await
    }

    pub(super) async fn find(&self, tenant: &TenantId, name: &str) -> Result<Found<'_>, CatalogError> {
        self.writable(tenant)?;
        if !is_name(name, PLUGIN_NAME_BYTES_MAX) {
            let must = format!("a plugin's name is 1 to {PLUGIN_NAME_BYTES_MAX} of {NAME_FORM}, not {name:?}");
            return Err(CatalogError::Invalid(vec![must]));
        }
        let mut draft = self.draft();
        // All changes of a tenant's plugins rest on the tenant's revision: two of them never pass each other.
        let found: Option<TenantRecord> = draft.get(keys::tenant(tenant)).await?;
        let found = found.ok_or_else(|| CatalogError::NotFound { what: "tenant", name: tenant.to_string() })?;
        let plugin = draft.get(keys::plugin(tenant, name)).await?;
        Ok(Found { draft, tenant: found, plugin })
    }

    /// As [`change_tenant`](Catalog::change_tenant), for a plugin.
    pub async fn change_plugin(
        &self,
        by: &Actor,
        tenant: &TenantId,
        name: &str,
        what: &str,
        change: impl Fn(Option<PluginRecord>) -> Result<Option<PluginRecord>, CatalogError>,
    ) -> Result<Option<PluginRecord>, CatalogError> {
        let mut tries = Tries::default();
        loop {
            tries.next().await?;
            let found = self.find(tenant, name).await?;
            let after = change(found.plugin.clone())?.map(|after| PluginRecord {
                name: name.into(),
                changed_ms: now_ms(),
                ..after
            });
            if let Some(after) = &after {
                if !Self::is_as_judged(found.plugin.as_ref(), after) {
                    self.fits(tenant, after).await?;
                }
            } else if found.plugin.is_none() {
                return Ok(None);
            }
            if found.commit(by, what, name, after.as_ref()).await? {
                return Ok(after);
            }
        }
    }

    /// What is as it was is not judged again: what a later version finds wrong with it must not hinder whoever disables
    /// the plugin.
    fn is_as_judged(before: Option<&PluginRecord>, after: &PluginRecord) -> bool {
        before.is_some_and(|before| {
            (before.role, before.canary, before.document()) == (after.role, after.canary, after.document())
        })
    }

    /// Does a plugin go together with the tenant's others?
    async fn fits(&self, tenant: &TenantId, plugin: &PluginRecord) -> Result<(), CatalogError> {
        let mut mistakes = match plugin_from_json(&plugin.name, &plugin.document()) {
            Ok(settings) => self.beyond(tenant, &settings).await?,
            Err(Mistakes(mistakes)) => mistakes.iter().map(ToString::to_string).collect(),
        };
        if let Some(Canary { share, .. }) = plugin.canary.filter(|canary| canary.share > super::SHARES) {
            mistakes.push(format!("a canary's share is 0 to {} 10,000ths, not {share}", super::SHARES));
        }
        let others: Vec<_> =
            self.plugins(tenant).await?.into_iter().filter(|other| other.name != plugin.name).collect();
        if plugin.role != Role::Handler
            && let Some(other) = others.iter().find(|other| other.role == plugin.role)
        {
            let role = role_name(plugin.role);
            mistakes.push(format!("a tenant has at most one {role}, and {:?} is one", other.name));
        }
        if !mistakes.is_empty() {
            return Err(CatalogError::Invalid(mistakes));
        }
        if others.len() >= PLUGINS_MAX {
            return Err(CatalogError::Limit {
                what: "plugins of the tenant",
                value: others.len() + 1,
                limit: PLUGINS_MAX,
            });
        }
        Ok(())
    }

    /// Which limits of a plugin are more than its tenant's?
    async fn beyond(&self, tenant: &TenantId, plugin: &PluginSettings) -> Result<Vec<String>, CatalogError> {
        let Some(record) = self.tenant(tenant).await? else { return Ok(Vec::new()) };
        // Whatever else the settings have, the limits are looked at.
        let read = tenant_from_json(tenant, &Value::Object(record.settings), true);
        Ok(read.map(|(tenant, _)| plugin.limits.beyond(&tenant.call_limits)).unwrap_or_default())
    }

    /// Stores a component that was checked, and makes it a version of a plugin that there is. It becomes active only
    /// by [`activate`](Catalog::activate). The same component again answers the version that there is.
    pub async fn add_version(
        &self,
        by: &Actor,
        tenant: &TenantId,
        name: &str,
        new: NewVersion,
        bytes: Bytes,
    ) -> Result<AddedVersion, CatalogError> {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        // The record never names an artefact that is not there, and what cannot be recorded is not stored.
        self.still_good(by).await?;
        let plugin = self.find(tenant, name).await?.plugin.ok_or_else(|| no_plugin(name))?;
        if same_version(&plugin, &new).is_none() {
            self.with_version(tenant, plugin, &version_record(u64::MAX, new.clone(), size, by)).await?;
        }
        self.engine().put_artifact(&new.digest, bytes).await?;
        let mut tries = Tries::default();
        loop {
            tries.next().await?;
            let found = self.find(tenant, name).await?;
            let plugin = found.plugin.clone().ok_or_else(|| no_plugin(name))?;
            if let Some(version) = same_version(&plugin, &new) {
                self.look_again(tenant).await?;
                return Ok(AddedVersion { version: version.clone(), existed: true });
            }
            let number = plugin.versions.iter().map(|version| version.version).max().unwrap_or(0) + 1;
            let version = version_record(number, new.clone(), size, by);
            let plugin = self.with_version(tenant, plugin, &version).await?;
            if found.commit(by, "plugin.version", name, Some(&plugin)).await? {
                return Ok(AddedVersion { version, existed: false });
            }
        }
    }

    /// Has every node look at a tenant although its records are as they were: a component that was missing is there.
    async fn look_again(&self, tenant: &TenantId) -> Result<(), CatalogError> {
        let mut draft = self.draft();
        draft.tell(&Changed::Tenant { tenant: tenant.clone() });
        draft.commit().await.map(drop)
    }

    /// A plugin with one version more; of those that nothing needs the oldest go, as many as must.
    async fn with_version(
        &self,
        tenant: &TenantId,
        mut plugin: PluginRecord,
        version: &VersionRecord,
    ) -> Result<PluginRecord, CatalogError> {
        let others = self.plugins(tenant).await?;
        let others: u64 = others.iter().filter(|other| other.name != plugin.name).map(bytes_of).sum();
        let limit = self.inner.component_bytes_max;
        plugin.versions.push(version.clone());
        while plugin.versions.len() > VERSIONS_KEPT_MAX || others.saturating_add(bytes_of(&plugin)) > limit {
            let droppable = |old: &VersionRecord| old.version != version.version && !plugin.needs(old.version);
            let Some(index) = plugin.versions.iter().position(droppable) else { break };
            let dropped = plugin.versions.remove(index).version;
            plugin.previous.retain(|version| *version != dropped);
        }
        let value = others.saturating_add(bytes_of(&plugin));
        if value > limit {
            return Err(CatalogError::Limit {
                what: "bytes of the components of all of the tenant's plugins (admin.component_bytes_per_tenant)",
                value: usize::try_from(value).unwrap_or(usize::MAX),
                limit: usize::try_from(limit).unwrap_or(usize::MAX),
            });
        }
        plugin.changed_ms = now_ms();
        Ok(plugin)
    }

    /// A version's component.
    pub async fn component(&self, digest: &str) -> Result<Bytes, CatalogError> {
        let found = self.engine().artifact(digest).await?;
        found.ok_or_else(|| CatalogError::NotFound { what: "component", name: digest.into() })
    }
}

fn same_version<'a>(plugin: &'a PluginRecord, new: &NewVersion) -> Option<&'a VersionRecord> {
    plugin.versions.iter().find(|version| version.digest == new.digest && version.signature == new.signature)
}

/// The components of all of a plugin's versions.
fn bytes_of(plugin: &PluginRecord) -> u64 {
    plugin.versions.iter().fold(0, |bytes, version| bytes.saturating_add(version.bytes))
}

fn version_record(number: u64, new: NewVersion, bytes: u64, by: &Actor) -> VersionRecord {
    VersionRecord {
        version: number,
        digest: new.digest,
        bytes,
        described_name: new.described_name,
        described_version: new.described_version,
        events: new.events,
        imports: new.imports,
        exports: new.exports,
        signature: new.signature,
        uploaded_ms: now_ms(),
        by: by.name.clone(),
        more: Map::new(),
    }
}

pub(super) fn no_plugin(name: &str) -> CatalogError {
    CatalogError::NotFound { what: "plugin", name: name.into() }
}
