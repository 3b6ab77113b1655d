//! What one scenario is played on: an engine in memory, a clock that only steps move, the plugins and who is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::Scenario;
use super::members::Members;
use super::record::{Happened, Measured, stored};
use super::recorder::Recorder;
use super::runner::{Runner, RunnerError, Tested};
use crate::commit::{CommitId, Millis, StateKey};
use crate::decision::Decisions;
use crate::decision::backlog::Backlog;
use crate::decision::pipeline::Pipeline;
use crate::decision::plugin::{Host, JOURNAL_ENTRIES_MAX, Journal, JournalKind, Plugin, UploadPolicy};
use crate::engine::Engine as _;
use crate::engine::embedded::{Durability, EmbeddedEngine, Options};
use crate::tenant::{CallLimits, Instances, Limits, PluginLimits, PluginSettings, Role, TenantId};

/// Bytes of a digest that an input's id is made of: as many as a random one has.
const ID_BYTES: usize = 15;

/// The name of the authorizer that lets everybody do everything.
const EVERYBODY: &str = "everybody";

/// A clock that somebody moves.
#[derive(Debug, Clone)]
pub(super) struct VirtualClock(Arc<AtomicU64>);

impl VirtualClock {
    pub(super) fn now(&self) -> Millis {
        self.0.load(Ordering::Acquire)
    }

    /// Never back.
    pub(super) fn advance_to(&self, at: Millis) {
        self.0.fetch_max(at, Ordering::AcqRel);
    }
}

/// See the module's text.
pub(super) struct Stage {
    pub(super) tenant: TenantId,
    pub(super) clock: VirtualClock,
    pub(super) engine: Arc<EmbeddedEngine>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) decisions: Decisions,
    pub(super) pipeline: Pipeline,
    pub(super) members: Members,
    pub(super) happened: Happened,
    pub(super) claims: BTreeMap<String, Value>,
    host: Arc<Host>,
    plugin: Arc<Plugin>,
    journal: Arc<Journal>,
    /// Up to here it was looked at.
    read_until: u64,
    scenario: String,
    inputs: u32,
}

impl Stage {
    pub(super) async fn set(runner: &Runner, tested: &Tested, scenario: &Scenario) -> Result<Stage, RunnerError> {
        let tenant = TenantId::parse(&format!("scenario-{}", runner.number()))
            .map_err(|error| RunnerError::Unreadable { plugin: tested.name.clone(), why: error.to_string() })?;
        let clock = VirtualClock(Arc::new(scenario.now.into()));
        let told = clock.clone();
        let options =
            Options { durability: Durability::Relaxed, clock: Arc::new(move || told.now()), ..Options::default() };
        let engine = EmbeddedEngine::in_memory(options)?;
        let recorder = Recorder::new(engine.clone());
        let limits = &scenario.call_limits;
        let (plugin, pipeline) = pipeline(runner, &tenant, tested, scenario, limits).await?;
        let backlog = Backlog::of_tenant(&Backlog::of_node());
        let decisions = Decisions::new(tenant.clone(), recorder.clone(), limits.clone(), backlog);
        decisions.set_totals(&Limits::default());
        let host = runner.host.clone();
        // What asking for descriptions needed is not the scenario's.
        host.take_usage();
        let journal = host.journal(&tenant);
        let read_until = journal.latest(1).last().map_or(0, |entry| entry.seq);
        Ok(Stage {
            tenant,
            clock,
            engine,
            recorder,
            decisions,
            pipeline,
            members: Members::default(),
            happened: Happened::default(),
            claims: scenario.users.clone(),
            host,
            plugin,
            journal,
            read_until,
            scenario: scenario.name.clone(),
            inputs: 0,
        })
    }

    /// The id of the next input: the same whenever the scenario is run.
    pub(super) fn next_id(&mut self) -> CommitId {
        self.inputs += 1;
        let digest = Sha256::digest(format!("{}\0{}", self.scenario, self.inputs));
        CommitId::from(&*URL_SAFE_NO_PAD.encode(&digest[..ID_BYTES]))
    }

    /// Takes over what was logged; answers the word of the last call that failed.
    pub(super) fn read_journal(&mut self) -> Option<&'static str> {
        let entries = self.journal.after(self.read_until, JOURNAL_ENTRIES_MAX);
        let mut word = None;
        for entry in entries {
            self.read_until = entry.seq;
            word = entry.failure.or(word);
            let whose = if entry.plugin == self.plugin.name { String::new() } else { format!("{}: ", entry.plugin) };
            let told = if entry.kind == JournalKind::Failure { "the gateway: " } else { "" };
            self.happened.logged.push(format!("{}: {whose}{told}{}", entry.level.word(), entry.message));
        }
        word
    }

    /// A key as the tested plugin names it.
    pub(super) fn own_name(&self, key: &StateKey) -> String {
        let own = key.as_str().strip_prefix(&*self.plugin.name).and_then(|rest| rest.strip_prefix('/'));
        own.unwrap_or(key.as_str()).to_owned()
    }

    /// The values of keys of the tested plugin.
    pub(super) async fn values(&self, names: &[String]) -> Result<BTreeMap<String, Option<Vec<u8>>>, RunnerError> {
        let keys: Vec<_> = names.iter().map(|name| StateKey::of(&self.plugin.name, name)).collect();
        let values = self.engine.read(&self.tenant, &keys).await?;
        let values = values.into_iter().map(|value| value.map(|found| found.value.to_vec()));
        Ok(names.iter().cloned().zip(values).collect())
    }

    /// What is stored now under keys that were written.
    pub(super) async fn note_state(&mut self, keys: &[StateKey]) -> Result<(), RunnerError> {
        let values = self.engine.read(&self.tenant, keys).await?;
        for (key, value) in keys.iter().zip(values) {
            let value = value.map(|found| stored(&found.value)).unwrap_or_default();
            self.happened.state.insert(self.own_name(key), value);
        }
        Ok(())
    }

    /// The tested plugin's timers.
    pub(super) async fn note_timers(&mut self) -> Result<(), RunnerError> {
        let now = self.clock.now();
        for timer in self.engine.pending_timers(usize::MAX).await? {
            if timer.key.plugin == self.plugin.name && timer.key.is_of_plugins() {
                self.happened.timers.insert(timer.key.name.to_string(), timer.due.saturating_sub(now));
            }
        }
        Ok(())
    }

    /// What the tested plugin needed since the scenario began.
    pub(super) fn measured(&self) -> Measured {
        let used = self.host.take_usage().into_iter();
        let own = used.filter(|one| one.tenant == self.tenant && one.plugin == self.plugin.name);
        let cpu_us = own.flat_map(|one| one.used).filter(|(what, _)| *what == "cpu-us").map(|(_, number)| number).sum();
        Measured { cpu_us, memory_peak_bytes: self.plugin.memory_peak_bytes() }
    }
}

/// Loads what the scenario needs, as a gateway loads an upload; answers the tested plugin, too.
async fn pipeline(
    runner: &Runner,
    tenant: &TenantId,
    tested: &Tested,
    scenario: &Scenario,
    limits: &CallLimits,
) -> Result<(Arc<Plugin>, Pipeline), RunnerError> {
    let mut pipeline =
        Pipeline { relay: scenario.relay.clone(), broadcast: scenario.broadcast.clone(), ..Pipeline::default() };
    let settings = plain(&tested.name, tested.role, scenario.settings.clone());
    let plugin = load(runner, tenant, &settings, limits, tested.component.clone()).await?;
    pipeline.add(tested.role, plugin.clone(), None);
    for settings in &scenario.plugins {
        let component = std::fs::read(&settings.component).map_err(|error| RunnerError::Unreadable {
            plugin: settings.name.to_string(),
            why: format!("cannot read {}: {error}", settings.component.display()),
        })?;
        let other = load(runner, tenant, settings, limits, component.into()).await?;
        pipeline.add(settings.role, other, settings.events.clone());
    }
    if pipeline.authorizer.is_none() {
        let settings = plain(EVERYBODY, Role::Authorizer, BTreeMap::new());
        pipeline.add(Role::Authorizer, load(runner, tenant, &settings, limits, runner.everybody.clone()).await?, None);
    }
    Ok((plugin, pipeline))
}

fn plain(name: &str, role: Role, settings: BTreeMap<String, String>) -> PluginSettings {
    PluginSettings {
        name: name.into(),
        role,
        component: std::path::PathBuf::new(),
        events: None,
        settings,
        instances: Instances::Fresh,
        limits: PluginLimits::default(),
    }
}

async fn load(
    runner: &Runner,
    tenant: &TenantId,
    settings: &PluginSettings,
    limits: &CallLimits,
    component: Bytes,
) -> Result<Arc<Plugin>, RunnerError> {
    let failed = |error| RunnerError::Load { plugin: settings.name.to_string(), error };
    let plugin = runner.host.load(tenant, settings, limits, component.clone()).await.map_err(failed)?;
    runner.keep(plugin.clone());
    // The rest of what an upload is held against.
    let policy =
        UploadPolicy { plugin: settings, limits, signature_keys: &[], require_signature: false, signature: None };
    runner.host.check(tenant, &policy, component).await.map_err(failed)?;
    Ok(plugin)
}
