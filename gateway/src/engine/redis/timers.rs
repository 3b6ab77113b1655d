//! Timers of all tenants: 256 sorted sets, one a partition, and one clock, Redis's.

use std::sync::Arc;

use ::redis::{FromRedisValue as _, Value};
use futures_util::future::join_all;
use tracing::error;

use super::follow::unexpected;
use super::keys::{self, PartitionKeys};
use super::link::Link;
use super::router::Router;
use super::script;
use crate::commit::Millis;
use crate::engine::{DueTimer, EngineError};

/// Timers claimed at a time, at most.
const CLAIM_MAX: usize = 1_000;

/// Leases due timers for `lease_ms`, earliest first, at most `limit`.
pub(super) async fn claim(router: &Router, lease_ms: Millis, limit: usize) -> Result<Vec<DueTimer>, EngineError> {
    let limit = limit.min(CLAIM_MAX);
    if limit == 0 {
        return Ok(Vec::new());
    }
    let due = router.shares().into_iter().map(|(master, partitions)| async move {
        let link = master.commands.link().await?;
        let due = due_timers(&link, &partitions, limit).await?;
        Ok::<_, EngineError>((link, due))
    });
    let mut failed = None;
    let (mut links, mut all) = (Vec::new(), Vec::new());
    for answer in join_all(due).await {
        match answer {
            Ok((link, due)) => {
                all.extend(due.into_iter().map(|(score, partition)| (score, links.len(), partition)));
                links.push(link);
            }
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

/// Gives a leased timer back.
pub(super) async fn release(router: &Arc<Router>, timer: &DueTimer, after_ms: Millis) -> Result<(), EngineError> {
    let link = router.to_tenant(&timer.tenant).link().await?;
    let partition = PartitionKeys::of(keys::partition_of(&timer.tenant));
    let keys = [&*partition.timers_due(), &*partition.timers_held()];
    let member = keys::timer_member(&timer.tenant, &timer.key);
    let (attempt, after) = (timer.attempt.to_string(), super::frame::ahead(after_ms).to_string());
    let arguments = [member.as_bytes(), timer.token.as_bytes(), attempt.as_bytes(), after.as_bytes()];
    let answer = script::RELEASE_TIMER.run(&mut link.connection(), &keys, &arguments).await;
    match answer.map_err(|e| link.write_error(&e))? {
        Value::Int(_) => Ok(()),
        other => Err(unexpected(&other)),
    }
}
