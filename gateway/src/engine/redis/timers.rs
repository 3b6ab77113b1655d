//! Timers of all tenants: 256 sorted sets, one a partition, and one clock, Redis's.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{FromRedisValue as _, Value};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::error;

use super::follow::unexpected;
use super::keys::{self, PARTITIONS, PartitionKeys};
use super::link::Link;
use super::router::Router;
use super::script;
use crate::commit::Millis;
use crate::engine::{DEAD_TIMERS_MAX, DeadTimer, DueTimer, EngineError};
use crate::tenant::TenantId;

/// Timers claimed at a time, at most.
const CLAIM_MAX: usize = 1_000;

/// When the partitions of other nodes are looked at too: one that nobody looks after must not wait for long.
pub(super) struct Sweeps {
    every: Duration,
    last: Mutex<Option<Instant>>,
}

impl Sweeps {
    pub(super) fn new(every: Duration) -> Sweeps {
        Sweeps { every, last: Mutex::new(None) }
    }

    /// The partitions to look at now.
    pub(super) fn due(&self, own: Vec<usize>) -> Vec<usize> {
        let mut last = self.last.lock();
        if last.is_some_and(|last| last.elapsed() < self.every) {
            return own;
        }
        *last = Some(Instant::now());
        (0..PARTITIONS).collect()
    }
}

/// Leases due timers of these partitions for `lease_ms`, earliest first, at most `limit`.
pub(super) async fn claim(
    router: &Router,
    wanted: &[usize],
    lease_ms: Millis,
    limit: usize,
) -> Result<Vec<DueTimer>, EngineError> {
    let limit = limit.min(CLAIM_MAX);
    if limit == 0 {
        return Ok(Vec::new());
    }
    let due = router.shares().into_iter().map(|(master, mut partitions)| async move {
        partitions.retain(|partition| wanted.contains(partition));
        if partitions.is_empty() {
            return Ok(None);
        }
        let link = master.commands.link().await?;
        let due = due_timers(&link, &partitions, limit).await?;
        Ok::<_, EngineError>(Some((link, due)))
    });
    let mut failed = None;
    let (mut links, mut all) = (Vec::new(), Vec::new());
    for answer in join_all(due).await {
        match answer {
            Ok(Some((link, due))) => {
                all.extend(due.into_iter().map(|(score, partition)| (score, links.len(), partition)));
                links.push(link);
            }
            Ok(None) => {}
            Err(error) => failed = Some(error),
        }
    }
    let shares = shares(all, limit);
    let claims = shares.iter().map(|(at, partition, share)| claim_in(&links[*at], *partition, lease_ms, *share));
    let mut claimed = Vec::new();
    for answer in join_all(claims).await {
        match answer {
            Ok(timers) => claimed.extend(timers),
            Err(error) => failed = Some(error),
        }
    }
    // What was leased is handed out; what failed comes with the next claim.
    match failed {
        Some(error) if claimed.is_empty() => Err(error),
        _ => {
            claimed.sort_by_key(|timer| timer.due);
            Ok(claimed)
        }
    }
}

/// When the earliest due timers of one master are due, and in which of its partitions: one round trip where nothing
/// is due.
async fn due_timers(link: &Link, partitions: &[usize], limit: usize) -> Result<Vec<(f64, usize)>, EngineError> {
    let due = due_partitions(link, partitions).await?;
    if due.is_empty() {
        return Ok(Vec::new());
    }
    let mut stretches = ::redis::pipe();
    for (partition, now) in &due {
        let name = PartitionKeys::of(*partition).timers_due();
        let stretch = stretches.cmd("ZRANGE").arg(name).arg("-inf").arg(*now).arg("BYSCORE");
        stretch.arg("LIMIT").arg(0).arg(limit).arg("WITHSCORES");
    }
    let answers: Vec<Value> = stretches.query_async(&mut link.connection()).await.map_err(|e| link.read_error(&e))?;
    let mut all = Vec::new();
    for ((partition, _), answer) in due.iter().zip(answers) {
        all.extend(scored(answer)?.into_iter().map(|(_, score)| (score, *partition)));
    }
    Ok(all)
}

/// Redis's time, and the partitions whose first timer is due: one round trip for all.
async fn due_partitions(link: &Link, partitions: &[usize]) -> Result<Vec<(usize, f64)>, EngineError> {
    let mut heads = ::redis::pipe();
    heads.cmd("TIME");
    for partition in partitions {
        heads.cmd("ZRANGE").arg(PartitionKeys::of(*partition).timers_due()).arg(0).arg(0).arg("WITHSCORES");
    }
    let answers: Vec<Value> = heads.query_async(&mut link.connection()).await.map_err(|e| link.read_error(&e))?;
    let mut answers = answers.into_iter();
    let time = answers.next().unwrap_or_default();
    let (seconds, micros): (f64, f64) =
        ::redis::from_redis_value(time).map_err(|e| EngineError::Corrupt(e.to_string()))?;
    let now = (seconds * 1_000.0 + micros / 1_000.0).floor();
    let mut due = Vec::new();
    for (partition, head) in partitions.iter().zip(answers) {
        if let Some((_, first)) = scored(head)?.into_iter().next()
            && first <= now
        {
            due.push((*partition, now));
        }
    }
    Ok(due)
}

/// How many of the `limit` earliest timers each partition has, and its master's place.
fn shares(mut all: Vec<(f64, usize, usize)>, limit: usize) -> Vec<(usize, PartitionKeys, usize)> {
    all.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut counts = std::collections::BTreeMap::<(usize, usize), usize>::new();
    for (_, at, partition) in all.into_iter().take(limit) {
        *counts.entry((at, partition)).or_default() += 1;
    }
    counts.into_iter().map(|((at, partition), count)| (at, PartitionKeys::of(partition), count)).collect()
}

/// Members with scores, as RESP3 answers them: pairs.
fn scored(value: Value) -> Result<Vec<(String, f64)>, EngineError> {
    Vec::<(String, f64)>::from_redis_value(value).map_err(|e| EngineError::Corrupt(e.to_string()))
}

async fn claim_in(
    link: &Link,
    partition: PartitionKeys,
    lease_ms: Millis,
    share: usize,
) -> Result<Vec<DueTimer>, EngineError> {
    let keys = [&*partition.timers_due(), &*partition.timers_held()];
    let (share, lease) = (share.to_string(), lease_ms.to_string());
    let arguments = [share.as_bytes(), lease.as_bytes()];
    let answer = script::CLAIM_TIMERS.run(&mut link.connection(), &keys, &arguments).await;
    let Value::Array(timers) = answer.map_err(|e| link.write_error(&e))? else {
        return Err(EngineError::Corrupt("a claim was not answered with a list".into()));
    };
    // One that cannot be read must not hold up the others.
    Ok(timers
        .into_iter()
        .filter_map(|timer| due_timer(timer).inspect_err(|why| error!(%why, "a timer is skipped")).ok())
        .collect())
}

fn due_timer(timer: Value) -> Result<DueTimer, EngineError> {
    type Parts = (String, String, u32, Millis, String);
    let (member, token, attempt, due, data): Parts =
        ::redis::from_redis_value(timer).map_err(|e| EngineError::Corrupt(e.to_string()))?;
    let (tenant, key) = keys::parse_timer_member(&member)
        .ok_or_else(|| EngineError::Corrupt(format!("{member:?} is no timer of a tenant")))?;
    Ok(DueTimer { tenant, key, due, data: data.into(), token: token.into(), attempt })
}

/// Gives a leased timer back; does the claim count as an attempt?
pub(super) async fn release(
    router: &Arc<Router>,
    timer: &DueTimer,
    after_ms: Millis,
    counts: bool,
) -> Result<(), EngineError> {
    let link = router.to_tenant(&timer.tenant).link().await?;
    let partition = PartitionKeys::of(keys::partition_of(&timer.tenant));
    let keys = [&*partition.timers_due(), &*partition.timers_held()];
    let member = keys::timer_member(&timer.tenant, &timer.key);
    let (attempt, after) = (timer.attempt.to_string(), super::frame::ahead(after_ms).to_string());
    let counts = if counts { &b"1"[..] } else { b"0" };
    let arguments = [member.as_bytes(), timer.token.as_bytes(), attempt.as_bytes(), after.as_bytes(), counts];
    let answer = script::RELEASE_TIMER.run(&mut link.connection(), &keys, &arguments).await;
    match answer.map_err(|e| link.write_error(&e))? {
        Value::Int(_) => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// Gives a timer up. `false`: it is not there any more.
pub(super) async fn bury(router: &Arc<Router>, timer: &DueTimer, why: &str) -> Result<bool, EngineError> {
    let link = router.to_tenant(&timer.tenant).link().await?;
    let partition = PartitionKeys::of(keys::partition_of(&timer.tenant));
    let meta = keys::TenantKeys::of(&timer.tenant).meta();
    let keys = [&*partition.timers_due(), &*partition.timers_held(), &*partition.timers_dead(), &*meta];
    let (member, kept) = (keys::timer_member(&timer.tenant, &timer.key), DEAD_TIMERS_MAX.to_string());
    let arguments = [member.as_bytes(), timer.token.as_bytes(), why.as_bytes(), kept.as_bytes()];
    let answer = script::BURY_TIMER.run(&mut link.connection(), &keys, &arguments).await;
    match answer.map_err(|e| link.write_error(&e))? {
        Value::Int(did) => Ok(did == 1),
        other => Err(unexpected(&other)),
    }
}

/// A tenant's timers that were given up, latest first.
pub(super) async fn dead(router: &Arc<Router>, tenant: &TenantId, limit: usize) -> Result<Vec<DeadTimer>, EngineError> {
    type Letter = (String, Vec<String>);
    let link = router.to_tenant(tenant).link().await?;
    let mut command = ::redis::cmd("XREVRANGE");
    command.arg(PartitionKeys::of(keys::partition_of(tenant)).timers_dead()).arg("+").arg("-");
    let letters: Vec<Letter> = command.query_async(&mut link.connection()).await.map_err(|e| link.read_error(&e))?;
    let own = letters.iter().filter_map(|(_, fields)| dead_timer(fields)).filter(|(of, _)| of == tenant);
    Ok(own.take(limit).map(|(_, timer)| timer).collect())
}

/// Reads `timer`, `held` and `why`, names and values in turn.
fn dead_timer(fields: &[String]) -> Option<(TenantId, DeadTimer)> {
    let field = |name: &str| fields.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str());
    let (tenant, key) = keys::parse_timer_member(field("timer")?)?;
    let mut held = field("held")?.splitn(4, '\n').skip(1);
    let (attempts, due, data) = (held.next()?.parse().ok()?, held.next()?.parse().ok()?, held.next()?.into());
    Some((tenant, DeadTimer { key, due, data, attempts, why: field("why")?.into() }))
}
