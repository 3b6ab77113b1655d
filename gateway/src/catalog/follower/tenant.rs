//! One tenant of the catalog on this node, brought up to date with its records.

use std::sync::Arc;

use super::shelf::{Key, Shelf};
use super::terms::{InForce, Terms, read};
use crate::catalog::{CatalogError, PluginRecord, Rollout, TenantRecord, VersionRecord};
use crate::commit::Millis;
use crate::decision::pipeline::{Pipeline, Unavailable};
use crate::decision::plugin::Plugin;
use crate::decision::token::Verifier;
use crate::gateway::{Gateway, LiveTenant};
use crate::tenant::{Role, Tenant, TenantId};

/// See the [module's text](self).
pub(super) struct TenantState {
    pub(super) id: TenantId,
    /// The record that it was brought up to last: when the tenant was made, its revision, and when it was changed. An
    /// engine that lost its latest writes gives a revision twice.
    at: Option<(Millis, u64, Millis)>,
    /// When the tenant that is served was made: another one of its name is somebody else's.
    created_ms: Option<Millis>,
    live: Option<Arc<LiveTenant>>,
    shelf: Arc<Shelf>,
    /// What its clients are held to.
    pub(super) terms: Arc<Terms>,
    /// How often in a row it could not be brought up to date.
    pub(super) failures: u32,
    /// Its record was lost, not deleted.
    pub(super) lost: bool,
}

/// What bringing a tenant up to date came to.
pub(super) enum Synced {
    /// It is not there any more.
    Gone,
    /// It is as its records say.
    Done {
        /// Versions that are on their way.
        rollouts: Vec<OnItsWay>,
    },
    /// It is not, or not altogether.
    Failed {
        /// All that is wrong.
        why: Vec<String>,
        /// May it be well in a while?
        again: bool,
        /// Versions that are on their way, where the records could be read: they do not wait for what is wrong.
        rollouts: Option<Vec<OnItsWay>>,
    },
}

/// A version that this node is to load.
pub(super) struct OnItsWay {
    pub(super) plugin: PluginRecord,
    pub(super) version: Option<VersionRecord>,
    pub(super) rollout: Rollout,
    pub(super) tenant: Arc<Tenant>,
    pub(super) shelf: Arc<Shelf>,
}

impl TenantState {
    pub(super) fn new(id: TenantId) -> TenantState {
        TenantState {
            id,
            at: None,
            created_ms: None,
            live: None,
            shelf: Arc::default(),
            terms: Arc::default(),
            failures: 0,
            lost: false,
        }
    }

    /// Is this the record that it was brought up to last?
    pub(super) fn is_at(&self, record: &TenantRecord) -> bool {
        self.at == Some(place(record))
    }

    /// Does it have clients, or may it? What is changed for those does not wait for tenants that are only just loaded.
    pub(super) fn is_served(&self) -> bool {
        self.live.is_some()
    }

    pub(super) async fn sync(mut self, gateway: Arc<Gateway>) -> (TenantState, Synced) {
        let terms = self.terms.clone();
        // What is read is put into force before anybody reads again.
        let mut in_force = terms.0.lock().await;
        let (record, plugins) = match gateway.catalog.whole(&self.id).await {
            Ok(Some(found)) => found,
            Ok(None) => {
                let synced = self.missing(&gateway, &mut in_force).await;
                return (self, synced);
            }
            Err(error) => {
                let again = matches!(error, CatalogError::Engine(_));
                return (self, Synced::Failed { why: vec![error.to_string()], again, rollouts: None });
            }
        };
        self.lost = false;
        if self.created_ms.is_some_and(|created| created != record.created_ms) {
            // Deleted and made anew since this node looked: nothing of the former owner stays.
            self.take_out(&gateway, &mut in_force).await;
        }
        let (tenant, verifier) = match read(&gateway, &record) {
            Ok(read) => read,
            Err(why) => return (self, Synced::Failed { why, again: false, rollouts: None }),
        };
        let new = match &mut *in_force {
            Some(in_force) => {
                // Who is disabled, or has lost a key, does not stay for as long as components compile.
                in_force.change(&record, tenant.clone(), verifier).await;
                None
            }
            None => Some(verifier),
        };
        drop(in_force);
        let synced = self.bring(&gateway, record, plugins, tenant, new).await;
        (self, synced)
    }

    /// There is no record of it: it was deleted, unless it was lost with the engine's data.
    async fn missing(&mut self, gateway: &Gateway, in_force: &mut Option<InForce>) -> Synced {
        if self.lost {
            match self.was_deleted(gateway).await {
                Ok(true) => {}
                Ok(false) => return Synced::Done { rollouts: Vec::new() },
                Err(error) => return Synced::Failed { why: vec![error.to_string()], again: true, rollouts: None },
            }
        }
        self.take_out(gateway, in_force).await;
        Synced::Gone
    }

    async fn was_deleted(&self, gateway: &Gateway) -> Result<bool, CatalogError> {
        match self.created_ms {
            Some(created_ms) => gateway.catalog.was_deleted(&self.id, created_ms).await,
            None => Ok(true),
        }
    }

    async fn take_out(&mut self, gateway: &Gateway, in_force: &mut Option<InForce>) {
        self.at = None;
        self.created_ms = None;
        self.shelf.keep(|_| false);
        if self.live.take().is_some() {
            gateway.remove_tenant(&self.id);
        }
        let Some(mut in_force) = in_force.take() else { return };
        // What its clients leave behind is nothing for the handlers of the next tenant of this name.
        in_force.live.pipeline.store(Arc::default());
        in_force.disable().await;
        tracing::info!(tenant = %self.id, "a tenant was deleted");
    }

    async fn bring(
        &mut self,
        gateway: &Arc<Gateway>,
        record: TenantRecord,
        plugins: Vec<PluginRecord>,
        tenant: Tenant,
        new: Option<Verifier>,
    ) -> Synced {
        let (pipeline, troubles) = self.pipeline(gateway, &tenant, &plugins).await;
        self.created_ms = Some(record.created_ms);
        self.take(gateway, &record, tenant.clone(), new, pipeline).await;
        let again = troubles.iter().any(|trouble| trouble.passing.again(self.failures));
        let why: Vec<_> = troubles.into_iter().map(|trouble| trouble.why).collect();
        gateway.catalog.trouble(&self.id, why.clone());
        if !why.is_empty() && !again {
            tracing::error!(tenant = %self.id, ?why, "some plugins cannot run on this node");
        }
        let tenant = Arc::new(tenant);
        let on_its_way = |plugin: PluginRecord| {
            let rollout = plugin.rolling_out()?.clone();
            let version = plugin.version(rollout.version).cloned();
            Some(OnItsWay { plugin, version, rollout, tenant: tenant.clone(), shelf: self.shelf.clone() })
        };
        let rollouts = plugins.into_iter().filter_map(on_its_way).collect();
        if again {
            return Synced::Failed { why, again, rollouts: Some(rollouts) };
        }
        self.at = Some(place(&record));
        Synced::Done { rollouts }
    }

    /// Components, from now on, and the tenant with them if it was not served. Whatever runs ends with what it began with.
    async fn take(
        &mut self,
        gateway: &Arc<Gateway>,
        record: &TenantRecord,
        tenant: Tenant,
        new: Option<Verifier>,
        pipeline: Pipeline,
    ) {
        if let Some(live) = &self.live {
            return live.pipeline.store(Arc::new(pipeline));
        }
        let Some(verifier) = new else { return };
        let live = gateway.serve_tenant(LiveTenant::new(tenant, verifier, pipeline, gateway));
        *self.terms.0.lock().await = Some(InForce::of(record, live.clone()));
        self.live = Some(live);
        tracing::info!(tenant = %self.id, "a tenant of the catalog is served");
    }

    /// The pipeline that the records ask for. A plugin whose version cannot be loaded stays as it was; one that was
    /// not there is said to be unavailable, and so is one that the tenant does not trust, whatever ran before.
    async fn pipeline(
        &self,
        gateway: &Gateway,
        tenant: &Tenant,
        plugins: &[PluginRecord],
    ) -> (Pipeline, Vec<super::shelf::NotLoaded>) {
        let before = self.live.as_ref().map(|live| live.pipeline.load_full());
        let mut pipeline =
            Pipeline { relay: tenant.relay.clone(), broadcast: tenant.broadcast.clone(), ..Pipeline::default() };
        let mut troubles = Vec::new();
        for plugin in plugins.iter().filter(|plugin| !plugin.disabled) {
            let trouble = |version: u64, mut trouble: super::shelf::NotLoaded| {
                trouble.why = format!("plugin {}, version {version}: {}", plugin.name, trouble.why);
                trouble
            };
            let Some(active) = plugin.active.and_then(|active| plugin.version(active)) else { continue };
            match self.shelf.load(gateway, tenant, plugin, active).await {
                Ok(loaded) => pipeline.add(plugin.role, loaded, plugin.events.clone()),
                Err(error) => {
                    match before.as_ref().filter(|_| !error.distrusted).and_then(|before| running(before, plugin)) {
                        Some(running) => pipeline.add(plugin.role, running, plugin.events.clone()),
                        None => pipeline.unavailable.push(unavailable(plugin, active)),
                    }
                    troubles.push(trouble(active.version, error));
                }
            }
            let Some(canary) = plugin.canary else { continue };
            let Some(version) = plugin.version(canary.version) else { continue };
            match self.shelf.load(gateway, tenant, plugin, version).await {
                Ok(loaded) => pipeline.try_with(loaded, plugin.events.clone(), canary.share),
                Err(error) => {
                    // Its users have what they had, or the active version.
                    let running = before
                        .as_ref()
                        .filter(|_| !error.distrusted)
                        .and_then(|before| before.canaries.iter().find(|canary| canary.plugin.name == plugin.name));
                    if let Some(running) = running.filter(|running| *running.plugin.digest == *version.digest) {
                        pipeline.try_with(running.plugin.clone(), plugin.events.clone(), canary.share);
                    }
                    troubles.push(trouble(canary.version, error));
                }
            }
        }
        self.shelf.keep(|key| {
            plugins.iter().filter(|plugin| &*plugin.name == key.plugin()).any(|plugin| {
                let needed = plugin.versions.iter().filter(|version| plugin.needs(version.version));
                needed.map(|version| Key::of(tenant, plugin, version)).any(|needed| needed == *key)
            })
        });
        (pipeline, troubles)
    }
}

/// What tells a record from all others of its name.
fn place(record: &TenantRecord) -> (Millis, u64, Millis) {
    (record.created_ms, record.revision, record.changed_ms)
}

/// What runs of a plugin, whatever its version.
fn running(pipeline: &Pipeline, plugin: &PluginRecord) -> Option<Arc<Plugin>> {
    let running = match plugin.role {
        Role::Authorizer => pipeline.authorizer.as_ref(),
        Role::Router => pipeline.router.as_ref(),
        Role::Handler => pipeline.handler(&plugin.name),
    };
    running.filter(|running| running.name == plugin.name).cloned()
}

fn unavailable(plugin: &PluginRecord, version: &VersionRecord) -> Unavailable {
    Unavailable {
        name: plugin.name.clone(),
        role: plugin.role,
        patterns: plugin.events.clone().unwrap_or_else(|| version.events.clone()),
    }
}
