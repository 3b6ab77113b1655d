//! A commit: one script, tried again where nothing was done and another server, or a lease, may help.

use ::redis::Value;

use super::follow::{position, unexpected};
use super::frame::{self, Changes, Standing};
use super::keys::TenantKeys;
use super::{RedisEngine, age_ms, script, text};
use crate::client::ConnectionId;
use crate::commit::{Commit, StateKey};
use crate::engine::{COMMIT_ID_KEPT_MS, EngineError, Outcome};
use crate::quota::{OverQuota, StoredKind};
use crate::tenant::TenantId;

/// How often a commit with an arrival is sent to a Redis that does not know this node's lease; before each time the
/// node says that it lives.
const UNLEASED_MAX: usize = 3;

/// What the commit script answers.
enum Applied {
    Judged(Outcome),
    /// Nothing was applied: a connection that must be there is not.
    Absent,
    /// Nothing was applied: the leases do not know the node that registers a connection.
    Unleased,
    /// Nothing was applied: the other nodes have counted this one as gone.
    Fenced,
}

impl RedisEngine {
    /// Applies a commit; with `present`, only while that connection is registered.
    pub(super) async fn apply(
        &self,
        tenant: &TenantId,
        commit: &Commit,
        present: Option<&ConnectionId>,
    ) -> Result<Outcome, EngineError> {
        let effects = frame::encode_effects(&commit.effects)?;
        let view = self.view(tenant);
        for _ in 0..UNLEASED_MAX {
            let incarnation = self.nodes.incarnation();
            let standing = Standing {
                incarnation: &incarnation,
                view: view.as_deref(),
                present: present.map(ConnectionId::as_str),
                leases: self.nodes.leases(),
            };
            let changes = frame::encode_changes(tenant, commit, standing)?;
            match self.send(tenant, commit, &effects, &changes).await? {
                Applied::Judged(outcome) => return Ok(outcome),
                Applied::Absent => return Err(self.absent(tenant, commit, present)),
                Applied::Fenced => {
                    self.nodes.lost(&incarnation);
                    let why = "the other nodes have counted this one as gone";
                    return Err(EngineError::Unavailable(why.into()));
                }
                // If it was counted as gone meanwhile, it goes on as another.
                Applied::Unleased => self.nodes.show().await?,
            }
        }
        Err(EngineError::Unavailable("Redis loses this node's lease again and again".into()))
    }

    /// Redis may have forgotten it together with the log; whoever follows that looks at once.
    fn absent(&self, tenant: &TenantId, commit: &Commit, present: Option<&ConnectionId>) -> EngineError {
        let session = commit.session.as_ref().map(|record| &record.connection);
        match (present, session) {
            (Some(present), _) => EngineError::Absent(present.clone()),
            (None, Some(connection)) => {
                if let Ok(master) = self.router.to_tenant(tenant).master() {
                    master.subscriptions.look_again(&TenantKeys::of(tenant).channel());
                }
                EngineError::Absent(connection.clone())
            }
            (None, None) => EngineError::Corrupt("a connection was asked for that nobody named".into()),
        }
    }

    async fn send(
        &self,
        tenant: &TenantId,
        commit: &Commit,
        effects: &[u8],
        changes: &Changes,
    ) -> Result<Applied, EngineError> {
        let keys = TenantKeys::of(tenant);
        let (partition, channel) = (keys.partition().prefix(), keys.channel());
        let age_ms = age_ms(&self.options);
        let id_kept = (2 * COMMIT_ID_KEPT_MS).to_string();
        let entries = self.sizes.entries(tenant, effects.len()).to_string();
        let (age, step) = (age_ms.to_string(), (age_ms / 15).max(1).to_string());
        let route = self.router.to_tenant(tenant);
        let seen = route.epoch_seen().to_string();
        let names = [&*keys.log(), &*keys.meta(), &*keys.commit_id(&commit.id)];
        let mut tries = route.tries();
        let answer = loop {
            let link = tries.link().await?;
            let mut arguments: Vec<&[u8]> = vec![
                keys.base().as_bytes(),
                partition.as_bytes(),
                channel.as_bytes(),
                link.generation.as_bytes(),
                effects,
                &changes.packed,
                id_kept.as_bytes(),
                entries.as_bytes(),
                age.as_bytes(),
                step.as_bytes(),
                seen.as_bytes(),
            ];
            arguments.extend(changes.values.iter().map(|value| &**value));
            match script::COMMIT.run(&mut link.connection(), &names, &arguments).await {
                Ok(answer) => break answer,
                Err(error) => tries.again(&link, &error).await?,
            }
        };
        let applied = applied(answer)?;
        if let Applied::Judged(Outcome::Committed(position)) = &applied {
            route.saw(*position);
            self.memory.told(tenant, *position);
        }
        Ok(applied)
    }
}

fn applied(answer: Value) -> Result<Applied, EngineError> {
    let Value::Array(parts) = answer else { return Err(unexpected(&answer)) };
    let mut parts = parts.into_iter();
    let kind = text(parts.next().unwrap_or_default())?;
    let judged = |outcome| Ok(Applied::Judged(outcome));
    match &*kind {
        "committed" => judged(Outcome::Committed(position(&parts.next().unwrap_or_default())?)),
        "conflict" => judged(Outcome::Conflict(key(&mut parts)?)),
        "timer-gone" => judged(Outcome::TimerGone),
        "absent" => Ok(Applied::Absent),
        "unleased" => Ok(Applied::Unleased),
        "fenced" => Ok(Applied::Fenced),
        "over-quota" => judged(Outcome::OverQuota(over_quota(&mut parts)?)),
        "not-a-counter" => Err(EngineError::NotACounter(key(&mut parts)?)),
        other => Err(EngineError::Corrupt(format!("the commit script answered {other:?}"))),
    }
}

fn key(parts: &mut impl Iterator<Item = Value>) -> Result<StateKey, EngineError> {
    Ok(StateKey::stored(&text(parts.next().unwrap_or_default())?))
}

/// Reads what would have been beyond, by how much.
fn over_quota(parts: &mut impl Iterator<Item = Value>) -> Result<OverQuota, EngineError> {
    let kind = text(parts.next().unwrap_or_default())?;
    let kind = StoredKind::ALL.into_iter().find(|known| known.word() == kind);
    let kind = kind.ok_or_else(|| EngineError::Corrupt("a commit was refused for a limit that is none".into()))?;
    let mut number = || super::number(parts.next().unwrap_or_default());
    Ok(OverQuota { kind, value: number()?, limit: number()? })
}
