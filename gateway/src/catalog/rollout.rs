//! Which version runs: rolled out to all nodes, rolled back at once, or tried with some of the users.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::plugins::{PREVIOUS_KEPT_MAX, no_plugin};
use super::record::decode;
use super::store::Tries;
use super::{
    Actor, Canary, Catalog, CatalogError, Changed, Ended, FORMAT, PluginRecord, ReadyRecord, Rollout, SHARES, keys,
};
use crate::client::random_id;
use crate::commit::{Millis, now_ms};
use crate::engine::NodeStat;
use crate::tenant::TenantId;

/// How long nodes may take to load a version, unless the call says otherwise.
pub const ROLLOUT_DEADLINE: Duration = Duration::from_secs(30);

/// The shortest and the longest that a call can say.
const DEADLINE_MIN: Duration = Duration::from_millis(100);
const DEADLINE_MAX: Duration = Duration::from_secs(600);

/// How long what nodes said of a roll-out is kept, in milliseconds: an hour.
const READY_KEPT_MS: Millis = 3_600_000;

/// How long after an activation a version that keeps failing is rolled back by itself, in milliseconds: ten minutes.
/// What ran well for longer fails for another reason than that it is new.
pub const AUTO_ROLLBACK_WITHIN_MS: Millis = 600_000;

/// The most nodes whose word is listened to.
const NODES_MAX: usize = 4_096;

/// Where a roll-out stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RolloutState {
    /// Nodes are loading the version.
    Waiting,
    /// The version runs.
    Active,
    /// It does not; the one before goes on.
    Failed,
    /// There never was one.
    None,
}

/// What a node says of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Loaded.
    Ready,
    /// Nothing yet.
    Loading,
    /// It cannot load it.
    Failed,
}

/// One node in a roll-out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutNode {
    /// Which.
    pub server: String,
    /// How it is with it.
    pub state: NodeState,
    /// Why it cannot load the version.
    #[serde(default)]
    pub message: String,
}

/// A plugin's latest roll-out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutStatus {
    /// Of which version; `None`: there never was one.
    pub version: Option<u64>,
    /// Where it stands.
    pub state: RolloutState,
    /// When it goes on with the nodes that are ready; 0: there never was one.
    pub deadline_ms: Millis,
    /// Why it failed, or who was left behind.
    pub message: String,
    /// The live nodes, and those that said something.
    pub nodes: Vec<RolloutNode>,
}

/// What looking at a roll-out came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It waits for nodes.
    Waiting,
    /// There is none on its way any more.
    Over,
}

impl Catalog {
    /// Begins to roll a version out: all nodes load it, then it becomes active everywhere. `deadline`, between 100 ms
    /// and 600 s, is how long that waits for nodes. One that is on its way already is replaced.
    pub async fn activate(
        &self,
        by: &Actor,
        tenant: &TenantId,
        name: &str,
        version: u64,
        deadline: Duration,
    ) -> Result<Rollout, CatalogError> {
        if !(DEADLINE_MIN..=DEADLINE_MAX).contains(&deadline) {
            let (min, max) = (DEADLINE_MIN.as_millis(), DEADLINE_MAX.as_millis());
            let text = format!("deadline_ms must be {min} to {max}, not {}", deadline.as_millis());
            return Err(CatalogError::Invalid(vec![text]));
        }
        let now = now_ms();
        let rollout = Rollout {
            id: random_id(),
            version,
            started_ms: now,
            deadline_ms: now.saturating_add(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)),
            by: by.name.clone(),
            ended: None,
        };
        self.change_versions(by, tenant, name, "rollout.start", |plugin| {
            known(plugin, version)?;
            if plugin.disabled {
                return Err(CatalogError::Conflict(format!("the plugin {name:?} is disabled: enable it first")));
            }
            plugin.rollout = Some(rollout.clone());
            Ok(())
        })
        .await?;
        Ok(rollout)
    }

    /// Makes an earlier version active at once: the one that ran before, or `version`. Ends a roll-out and a canary.
    /// Answers the version.
    pub async fn roll_back(
        &self,
        by: &Actor,
        tenant: &TenantId,
        name: &str,
        version: Option<u64>,
    ) -> Result<u64, CatalogError> {
        self.change_versions(by, tenant, name, "plugin.rollback", |plugin| {
            let Some(to) = version.or(plugin.previous.last().copied()) else {
                return Err(CatalogError::Conflict(format!(
                    "nothing older ran before version {} of {name:?}: name the version to run",
                    plugin.active.unwrap_or_default()
                )));
            };
            known(plugin, to)?;
            // What ran after it is not gone back to.
            if let Some(index) = plugin.previous.iter().rposition(|previous| *previous == to) {
                plugin.previous.truncate(index);
            }
            plugin.active = Some(to);
            plugin.canary = None;
            end(plugin, false, &format!("rolled back to version {to} by {}", by.name));
            Ok(())
        })
        .await?
        .active
        .ok_or_else(|| no_plugin(name))
    }

    /// Goes back from a version that keeps failing, where the plugin says so (`auto_rollback`): a canary of this digest
    /// ends, and a version of it that became active at most [`AUTO_ROLLBACK_WITHIN_MS`] ago is rolled back. Answers the
    /// version that is active then; `None`: nothing was done. Once, however many nodes ask for it.
    pub async fn fall_back(
        &self,
        tenant: &TenantId,
        name: &str,
        digest: &str,
        why: &str,
    ) -> Result<Option<u64>, CatalogError> {
        let by = Actor::gateway("breaker");
        let not_now = || CatalogError::Conflict("there is nothing to go back from".into());
        let changed = self.change_versions(&by, tenant, name, "plugin.rollback", |plugin| {
            let is = |version: u64| plugin.version(version).is_some_and(|version| *version.digest == *digest);
            if !plugin.auto_rollback {
                return Err(not_now());
            }
            if plugin.canary.is_some_and(|canary| is(canary.version)) {
                plugin.canary = None;
                return Ok(());
            }
            let active = plugin.active.filter(|active| is(*active)).ok_or_else(not_now)?;
            let new = plugin.rollout.as_ref().and_then(|rollout| Some((rollout.version, rollout.ended.clone()?)));
            let is_new = |(version, ended): &(u64, Ended)| {
                *version == active && ended.active && now_ms().saturating_sub(ended.at_ms) <= AUTO_ROLLBACK_WITHIN_MS
            };
            let (_, ended) = new.filter(is_new).ok_or_else(not_now)?;
            plugin.active = Some(plugin.previous.pop().ok_or_else(not_now)?);
            if let Some(rollout) = &mut plugin.rollout {
                let message = format!("rolled back by itself: {why}");
                rollout.ended = Some(Ended { active: false, message, ..ended });
            }
            Ok(())
        });
        match changed.await {
            Ok(plugin) => Ok(plugin.active),
            Err(CatalogError::Conflict(_) | CatalogError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets a version run for some of the users, or, with `None`, for nobody any more.
    pub async fn set_canary(
        &self,
        by: &Actor,
        tenant: &TenantId,
        name: &str,
        canary: Option<Canary>,
    ) -> Result<PluginRecord, CatalogError> {
        self.change_versions(by, tenant, name, "plugin.canary", |plugin| {
            if let Some(Canary { version, share }) = canary {
                known(plugin, version)?;
                if share > SHARES {
                    return Err(CatalogError::Invalid(vec!["percent must be 0 to 100".into()]));
                }
                if plugin.active.is_none() {
                    let text = format!("{name:?} has no active version for the other users: activate one first");
                    return Err(CatalogError::Conflict(text));
                }
            }
            plugin.canary = canary;
            Ok(())
        })
        .await
    }

    async fn change_versions(
        &self,
        by: &Actor,
        tenant: &TenantId,
        name: &str,
        what: &str,
        change: impl Fn(&mut PluginRecord) -> Result<(), CatalogError>,
    ) -> Result<PluginRecord, CatalogError> {
        let mut tries = Tries::default();
        loop {
            tries.next().await?;
            let found = self.find(tenant, name).await?;
            let mut plugin = found.plugin.clone().ok_or_else(|| no_plugin(name))?;
            change(&mut plugin)?;
            plugin.changed_ms = now_ms();
            if found.commit(by, what, name, Some(&plugin)).await? {
                return Ok(plugin);
            }
        }
    }

    /// How the latest roll-out of a plugin stands.
    pub async fn rollout(&self, tenant: &TenantId, name: &str) -> Result<RolloutStatus, CatalogError> {
        let plugin = self.plugin(tenant, name).await?.ok_or_else(|| no_plugin(name))?;
        let Some(rollout) = plugin.rollout else {
            let (state, nodes) = (RolloutState::None, Vec::new());
            return Ok(RolloutStatus { version: None, state, deadline_ms: 0, message: String::new(), nodes });
        };
        let nodes = self.nodes_of(tenant, name, &rollout, self.engine().nodes()).await?;
        let (state, message) = match rollout.ended {
            None => (RolloutState::Waiting, String::new()),
            Some(Ended { active: true, message, .. }) => (RolloutState::Active, message),
            Some(Ended { active: false, message, .. }) => (RolloutState::Failed, message),
        };
        let (version, deadline_ms) = (Some(rollout.version), rollout.deadline_ms);
        Ok(RolloutStatus { version, state, deadline_ms, message, nodes })
    }

    /// The live nodes and those that said something.
    async fn nodes_of(
        &self,
        tenant: &TenantId,
        name: &str,
        rollout: &Rollout,
        live: Vec<NodeStat>,
    ) -> Result<Vec<RolloutNode>, CatalogError> {
        let keys = self.list_all(&keys::ready_reports(tenant, name, &rollout.id), "nodes", NODES_MAX).await?;
        let mut nodes = Vec::with_capacity(keys.len());
        for (key, value) in self.read(&keys).await? {
            let Some(value) = value else { continue };
            let report: ReadyRecord = decode(&key, &value.value)?;
            let state = if report.ready { NodeState::Ready } else { NodeState::Failed };
            nodes.push(RolloutNode { server: report.server, state, message: report.message });
        }
        for live in live {
            if !live.server.is_empty() && !nodes.iter().any(|node| node.server == live.server) {
                let (state, message) = (NodeState::Loading, String::new());
                nodes.push(RolloutNode { server: live.server, state, message });
            }
        }
        nodes.sort_by(|a, b| a.server.cmp(&b.server));
        Ok(nodes)
    }

    /// Says how it is with a roll-out on a node: `Ok` when it has the version loaded, otherwise why it cannot.
    pub async fn report_ready(
        &self,
        tenant: &TenantId,
        name: &str,
        rollout: &str,
        server: &str,
        loaded: Result<(), String>,
    ) -> Result<(), CatalogError> {
        let (ready, message) = (loaded.is_ok(), loaded.err().unwrap_or_default());
        let record = ReadyRecord { format: FORMAT, server: server.into(), ready, message, at_ms: now_ms() };
        let mut draft = self.draft();
        draft.put(keys::ready(tenant, name, rollout, server), &record, Some(READY_KEPT_MS))?;
        draft.tell(&Changed::Ready { tenant: tenant.clone(), plugin: name.into() });
        draft.commit().await.map(drop)
    }

    /// Ends a roll-out if its time has come: the version becomes active when every live node has it loaded, or when
    /// the deadline is `over` and at least one has; a node that cannot load it ends it at once. Any node may do so,
    /// as often as it likes.
    pub async fn settle(
        &self,
        tenant: &TenantId,
        name: &str,
        rollout: &str,
        over: bool,
    ) -> Result<Settled, CatalogError> {
        let mut tries = Tries::default();
        loop {
            tries.next().await?;
            let found = self.find(tenant, name).await?;
            let Some(mut plugin) = found.plugin.clone() else { return Ok(Settled::Over) };
            let Some(on_its_way) = plugin.rolling_out().filter(|on_its_way| on_its_way.id == rollout).cloned() else {
                return Ok(Settled::Over);
            };
            // A node that has only just come is waited for as well.
            let live = self.engine().nodes_now().await?;
            let nodes = self.nodes_of(tenant, name, &on_its_way, live).await?;
            let Some(verdict) = verdict(&nodes, over) else { return Ok(Settled::Waiting) };
            let by = Actor::gateway(&on_its_way.by);
            let what = match verdict {
                Ok(message) => {
                    if let Some(before) = plugin.active.replace(on_its_way.version)
                        && before != on_its_way.version
                    {
                        plugin.previous.push(before);
                        let beyond = plugin.previous.len().saturating_sub(PREVIOUS_KEPT_MAX);
                        plugin.previous.drain(..beyond);
                    }
                    // For everybody now, so not for some any more.
                    plugin.canary = plugin.canary.filter(|canary| canary.version != on_its_way.version);
                    end(&mut plugin, true, &message);
                    "rollout.active"
                }
                Err(message) => {
                    end(&mut plugin, false, &message);
                    "rollout.failed"
                }
            };
            plugin.changed_ms = now_ms();
            if found.commit(&by, what, name, Some(&plugin)).await? {
                return Ok(Settled::Over);
            }
        }
    }
}

/// Does a roll-out end, and how?
fn verdict(nodes: &[RolloutNode], over: bool) -> Option<Result<String, String>> {
    if let Some(node) = nodes.iter().find(|node| node.state == NodeState::Failed) {
        return Some(Err(format!("node {} cannot load it: {}", node.server, node.message)));
    }
    let (ready, late): (Vec<_>, Vec<_>) = nodes.iter().partition(|node| node.state == NodeState::Ready);
    let late: Vec<_> = late.iter().map(|node| &*node.server).collect();
    match (ready.is_empty(), late.is_empty()) {
        (false, true) => Some(Ok(String::new())),
        (false, false) if over => Some(Ok(format!("not ready in time: {}", late.join(", ")))),
        (true, _) if over => Some(Err("no node was ready in time".into())),
        _ => None,
    }
}

fn end(plugin: &mut PluginRecord, active: bool, message: &str) {
    if let Some(rollout) = plugin.rollout.as_mut().filter(|rollout| rollout.ended.is_none()) {
        rollout.ended = Some(Ended { at_ms: now_ms(), active, message: message.into() });
    }
}

fn known(plugin: &PluginRecord, version: u64) -> Result<(), CatalogError> {
    match plugin.version(version) {
        Some(_) => Ok(()),
        None => Err(CatalogError::NotFound { what: "version", name: version.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(server: &str, state: NodeState) -> RolloutNode {
        RolloutNode { server: server.into(), state, message: "why".into() }
    }

    #[test]
    fn a_roll_out_ends_when_all_are_ready_one_cannot_or_time_is_over() {
        use NodeState::{Failed, Loading, Ready};
        let of = |states: &[NodeState], over| {
            let nodes: Vec<_> = states.iter().map(|state| node("n", *state)).collect();
            verdict(&nodes, over).map(|verdict| verdict.is_ok())
        };
        assert_eq!(of(&[Ready, Ready], false), Some(true));
        assert_eq!(of(&[Ready, Loading], false), None);
        assert_eq!(of(&[Ready, Loading], true), Some(true));
        assert_eq!(of(&[Loading, Loading], true), Some(false));
        assert_eq!(of(&[Ready, Failed], false), Some(false));
        assert_eq!(of(&[], false), None);
    }
}
