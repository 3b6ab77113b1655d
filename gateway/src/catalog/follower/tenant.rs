//! One tenant of the catalog on this node, brought up to date with its records.

use std::sync::Arc;

use serde_json::Value;

use super::shelf::{Key, Shelf};
use crate::catalog::{CatalogError, PluginRecord, Rollout, TenantRecord, VersionRecord};
use crate::commit::Millis;
use crate::config::{Mistakes, tenant_from_json};
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
    /// Settings as they were taken last.
    settings: Option<(Value, bool)>,
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
            settings: None,
            failures: 0,
            lost: false,
        }
    }

    /// Is this the record that it was brought up to last?
    pub(super) fn is_at(&self, record: &TenantRecord) -> bool {
        self.at == Some(place(record))
    }

    /// A tenant that was taken out of service and has followers of its log keeps them while anybody of it is here.
    pub(super) fn is_worth_keeping(&self) -> bool {
        self.live.as_ref().is_some_and(|live| {
            live.handed_out().is_some() && (live.connections.taken() > 0 || !live.leaving.is_empty())
        })
    }

    /// Does it have clients, or may it? What is changed for those does not wait for tenants that are only just loaded.
    pub(super) fn is_served(&self) -> bool {
        self.live.is_some()
    }

    pub(super) async fn sync(mut self, gateway: Arc<Gateway>) -> (TenantState, Synced) {
        let synced = match gateway.catalog.whole(&self.id).await {
            Ok(Some((record, plugins))) => self.bring(&gateway, record, plugins).await,
            Ok(None) if self.lost => Synced::Done { rollouts: Vec::new() },
            Ok(None) => {
                self.take_out(&gateway).await;
                Synced::Gone
            }
            Err(error) => {
                let again = matches!(error, CatalogError::Engine(_));
                Synced::Failed { why: vec![error.to_string()], again, rollouts: None }
            }
        };
        (self, synced)
    }

    async fn take_out(&mut self, gateway: &Gateway) {
        self.at = None;
        self.created_ms = None;
        self.settings = None;
        self.shelf.keep(|_| false);
        let Some(live) = gateway.remove_tenant(&self.id) else { return };
        // Its clients are told.
        let tenant = Tenant { disabled: true, ..Tenant::clone(&live.settings()) };
        let auth = tenant.auth.clone();
        if let Ok(verifier) = Verifier::new(&self.id, &auth) {
            live.change(tenant, verifier).await;
        }
        live.pipeline.store(Arc::default());
        tracing::info!(tenant = %self.id, "a tenant was deleted");
    }

    async fn bring(&mut self, gateway: &Arc<Gateway>, record: TenantRecord, plugins: Vec<PluginRecord>) -> Synced {
        self.lost = false;
        if self.created_ms.is_some_and(|created| created != record.created_ms) {
            // Deleted and made anew since this node looked: nothing of the former owner stays.
            self.take_out(gateway).await;
        }
        let settings = Value::Object(record.settings.clone());
        let tenant = match tenant_from_json(&self.id, &settings, gateway.config.demo) {
            Ok((tenant, _)) => Tenant { disabled: record.disabled, ..tenant },
            Err(Mistakes(mistakes)) => {
                let why = mistakes.iter().map(ToString::to_string).collect();
                return Synced::Failed { why, again: false, rollouts: None };
            }
        };
        let verifier = match Verifier::new(&self.id, &tenant.auth) {
            Ok(verifier) => verifier,
            Err(error) => return Synced::Failed { why: vec![error.to_string()], again: false, rollouts: None },
        };
        let settings = (settings, record.disabled);
        let new = match &self.live {
            Some(live) => {
                if self.settings.as_ref() != Some(&settings) {
                    // Who is disabled, or has lost a key, does not stay for as long as components compile.
                    live.change(tenant.clone(), verifier).await;
                }
                None
            }
            None => Some(verifier),
        };
        self.settings = Some(settings);
        let (pipeline, troubles) = self.pipeline(gateway, &tenant, &plugins).await;
        self.created_ms = Some(record.created_ms);
        self.take(gateway, tenant.clone(), new, pipeline);
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
    fn take(&mut self, gateway: &Arc<Gateway>, tenant: Tenant, new: Option<Verifier>, pipeline: Pipeline) {
        match (&self.live, new) {
            (Some(live), _) => {
                live.pipeline.store(Arc::new(pipeline));
                if gateway.tenant(self.id.as_str()).is_none() {
                    gateway.serve_again(live.clone());
                }
            }
            (None, None) => {}
            (None, Some(verifier)) => {
                gateway.serve_tenant(LiveTenant::new(tenant, verifier, pipeline, gateway));
                self.live = gateway.tenant(self.id.as_str());
                tracing::info!(tenant = %self.id, "a tenant of the catalog is served");
            }
        }
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
