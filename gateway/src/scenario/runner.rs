//! Runs scenarios, one after the other, on one plugin host.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use super::comparison::{Difference, differences, filled};
use super::record::{Ended, Happened, Measured, Played};
use super::stage::Stage;
use super::{Action, Aspect, Expectation, Scenario, Step, everybody};
use crate::decision::plugin::{CodeCache, Compiler, Host, HostError, HostSettings, LoadError, Plugin, own_program};
use crate::engine::EngineError;
use crate::engine::embedded::OpenError;
use crate::room::ROOT_NAMESPACE;
use crate::tenant::Role;

/// Instances that exist at the same time: a scenario does one thing after the other.
const INSTANCES: u32 = 16;

/// The component that is tested.
#[derive(Debug, Clone)]
pub struct Tested {
    /// The plugin's name.
    pub name: String,
    /// What it is there for.
    pub role: Role,
    /// The component.
    pub component: Bytes,
}

/// Why a scenario cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// There is no plugin host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// There is no engine.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The engine does not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A component cannot be read.
    #[error("the plugin {plugin}: {why}")]
    Unreadable {
        /// Which.
        plugin: String,
        /// Why.
        why: String,
    },
    /// A component is not taken.
    #[error("the plugin {plugin} is not taken: {error}")]
    Load {
        /// Which.
        plugin: String,
        /// Why.
        error: LoadError,
    },
}

/// Runs scenarios.
pub struct Runner {
    pub(super) host: Arc<Host>,
    /// The authorizer of scenarios that name none.
    pub(super) everybody: Bytes,
    /// Of the scenarios that were run: their code is not compiled again.
    loaded: Mutex<Vec<Arc<Plugin>>>,
    runs: AtomicU64,
}

impl Runner {
    /// With a plugin host as a gateway has it. `cache`: where compiled code is kept from one time to the next.
    ///
    /// # Errors
    /// The machine has no room for it.
    pub fn new(cache: Option<CodeCache>) -> Result<Runner, RunnerError> {
        let compiler = Compiler::Worker(own_program());
        let settings = HostSettings { instances: INSTANCES, compiler, code_cache: cache, ..HostSettings::default() };
        let everybody =
            everybody::component().map_err(|why| RunnerError::Unreadable { plugin: "everybody".into(), why })?;
        Ok(Runner {
            host: Host::new(settings)?,
            everybody: everybody.into(),
            loaded: Mutex::default(),
            runs: AtomicU64::new(0),
        })
    }

    /// A number that no other run has.
    pub(super) fn number(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps a plugin's code at hand.
    pub(super) fn keep(&self, plugin: Arc<Plugin>) {
        self.loaded.lock().push(plugin);
    }

    /// Runs a scenario, up to the first step that does not end as expected.
    ///
    /// # Errors
    /// It cannot be run: a component is not taken.
    pub async fn run(&self, tested: &Tested, scenario: &Scenario) -> Result<Played, RunnerError> {
        let mut stage = Stage::set(self, tested, scenario).await?;
        let mut played = Played {
            scenario: scenario.name.clone(),
            file: scenario.source.clone(),
            plugin: tested.name.clone(),
            passed: false,
            steps: Vec::new(),
            differences: Vec::new(),
            memory_bytes_max: scenario.call_limits.memory_bytes,
            measured: Measured { cpu_us: 0, memory_peak_bytes: 0 },
        };
        (played.steps, played.differences) = stage.enter_all(scenario).await?;
        let mut kept = BTreeMap::new();
        for (index, step) in scenario.steps.iter().enumerate() {
            if !played.differences.is_empty() {
                break;
            }
            let (happened, differences) = play(&mut stage, index + 1, step, &mut kept).await?;
            played.steps.push(happened);
            played.differences = differences;
        }
        played.passed = played.differences.is_empty();
        played.measured = stage.measured();
        Ok(played)
    }
}

/// One step: what happens, and what of it was not expected.
async fn play(
    stage: &mut Stage,
    number: usize,
    step: &Step,
    kept: &mut BTreeMap<String, Value>,
) -> Result<(Happened, Vec<Difference>), RunnerError> {
    let happened = Happened { step: number, line: step.line, ..Happened::default() };
    stage.recorder.set_away(step.unavailable);
    let (happened, unmet) = stage.perform(happened, &step.action, step.conflicts, kept).await?;
    stage.recorder.set_away(false);
    let difference = |aspect, expected: Value, is: Value| Difference {
        step: number,
        line: step.line,
        what: happened.what.clone(),
        aspect,
        expected,
        happened: is,
    };
    let mut unkept = Vec::new();
    for (name, pointer) in &step.keep {
        match happened.reply.as_ref().and_then(|reply| reply.pointer(pointer)) {
            Some(value) => drop(kept.insert(name.clone(), value.clone())),
            None if happened.ended == Ended::Ok => {
                unkept.push(difference("keep", pointer.clone().into(), happened.reply.clone().unwrap_or_default()));
            }
            None => {}
        }
    }
    let expected: Vec<_> =
        step.expected.iter().map(|one| Expectation { value: filled(&one.value, kept), ..one.clone() }).collect();
    let state = stage.values(&keys(&expected)).await?;
    let mut found = differences(&happened, &expected, &state);
    found.append(&mut unkept);
    if unmet > 0 {
        let is = format!("{} of them: nothing else was committed that rests on what was read", step.conflicts - unmet);
        found.push(difference("conflict", step.conflicts.into(), is.into()));
    }
    Ok((happened, found))
}

/// The keys that expectations look at.
fn keys(expected: &[Expectation]) -> Vec<String> {
    let of = |one: &Expectation| match (one.aspect, &one.value) {
        (Aspect::State, Value::Object(named)) => named.keys().cloned().collect(),
        (Aspect::StateAbsent, Value::Array(keys)) => {
            keys.iter().filter_map(|key| key.as_str().map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    };
    expected.iter().flat_map(of).collect()
}

impl Scenario {
    /// Who is connected from the beginning, and where: all users, but those that a step brings in. Who does nothing is in
    /// `/`.
    pub(super) fn present(&self) -> Vec<(String, Arc<str>)> {
        let mut present = Vec::new();
        for user in self.users.keys() {
            let places = self.steps.iter().filter_map(|step| Some((step.action.actor()?, &step.action)));
            let own: Vec<_> = places.filter(|((actor, _), _)| *actor == *user).collect();
            let comes = |place: &Arc<str>| {
                own.iter().any(|((_, other), action)| *other == place && matches!(action, Action::Connect { .. }))
            };
            let mut places: Vec<Arc<str>> = own.iter().map(|((_, place), _)| (*place).clone()).collect();
            if places.is_empty() {
                places.push(ROOT_NAMESPACE.into());
            }
            places.sort_unstable();
            places.dedup();
            places.retain(|place| !comes(place));
            present.extend(places.into_iter().map(|place| (user.clone(), place)));
        }
        present
    }
}
