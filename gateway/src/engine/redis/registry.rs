//! The registry of who is connected, put right after a loss, and cleared of what the dead left.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ::redis::Value;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tracing::error;

use super::follow::unexpected;
use super::keys::{PARTITIONS, PartitionKeys, TenantKeys};
use super::nodes::{DEAD_KEPT_MS, Nodes};
use super::script;
use crate::client::ConnectionId;
use crate::commit::Position;
use crate::engine::{EngineError, Orphan, Registration};
use crate::tenant::TenantId;

/// Connections that one script registers.
const REGISTERED_AT_ONCE: usize = 200;

/// How often a node begins again that finds itself dead while it registers.
const ATTEMPTS_MAX: usize = 3;

/// Partitions that are looked at at once.
const PARTITIONS_AT_ONCE: usize = 64;

/// Which partitions hold nothing of a dead incarnation any more. Once fenced, nothing comes there again.
pub(super) type Cleared = Mutex<HashMap<String, HashSet<usize>>>;

/// `<namespace>\0<subject>\0<session>\0<incarnation>`; before there were incarnations, only the first two.
pub(super) fn read_connection(who: &str) -> Option<[&str; 3]> {
    let mut parts = who.split('\0');
    Some([parts.next()?, parts.next()?, parts.next().unwrap_or_default()])
}

/// This node's connections of a tenant.
pub(super) async fn registered(nodes: &Nodes, tenant: &TenantId) -> Result<Vec<ConnectionId>, EngineError> {
    let link = nodes.router.to_tenant(tenant).link().await?;
    let key = TenantKeys::of(tenant).partition().connections_of(&nodes.incarnation());
    let mut command = ::redis::cmd("SMEMBERS");
    command.arg(key);
    let names: Vec<String> = command.query_async(&mut link.connection()).await.map_err(|e| link.read_error(&e))?;
    let own = names.iter().filter_map(|name| name.split_once('/'));
    Ok(own.filter(|(of, _)| *of == tenant.as_str()).map(|(_, id)| ConnectionId::from(id)).collect())
}

/// What a node knows of its own connections of a tenant.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    /// Up to where it knows the log.
    pub(super) at: Position,
    pub(super) there: &'a [Registration],
    pub(super) gone: &'a [ConnectionId],
}

/// What the register script answers.
enum Registered {
    /// `false`: memberships have changed since.
    Exactly(bool),
    /// The leases do not know this incarnation.
    Unleased,
    /// This incarnation is dead.
    Fenced,
}

/// See [`Engine::register`](crate::engine::Engine::register).
pub(super) async fn register(
    nodes: &Nodes,
    tenant: &TenantId,
    known: Known<'_>,
    view: Option<&str>,
) -> Result<bool, EngineError> {
    for _ in 0..ATTEMPTS_MAX {
        let incarnation = nodes.incarnation();
        match register_as(nodes, &incarnation, tenant, known, view).await? {
            Registered::Exactly(exact) => return Ok(exact),
            Registered::Unleased => nodes.show().await?,
            Registered::Fenced => nodes.lost(&incarnation),
        }
    }
    Err(EngineError::Unavailable("this node is counted as gone, or forgotten, again and again".into()))
}

async fn register_as(
    nodes: &Nodes,
    incarnation: &str,
    tenant: &TenantId,
    known: Known<'_>,
    view: Option<&str>,
) -> Result<Registered, EngineError> {
    let keys = TenantKeys::of(tenant);
    let (partition, at) = (keys.partition().prefix(), known.at.to_string());
    let pages = known.there.chunks(REGISTERED_AT_ONCE).map(|page| (page, &[][..]));
    let pages = pages.chain(known.gone.chunks(REGISTERED_AT_ONCE).map(|page| (&[][..], page)));
    let mut exact = true;
    for (there, gone) in pages {
        let gone: Vec<&str> = gone.iter().map(ConnectionId::as_str).collect();
        let there: Vec<Vec<&str>> = there.iter().map(words).collect();
        let packed = rmp_serde::to_vec(&(there, gone, view, nodes.leases()));
        let packed = packed.map_err(|e| EngineError::Corrupt(e.to_string()))?;
        let arguments =
            [keys.base().as_bytes(), partition.as_bytes(), incarnation.as_bytes(), at.as_bytes(), packed.as_slice()];
        let link = nodes.router.to_tenant(tenant).link().await?;
        let names = [&*keys.log(), &*keys.meta()];
        let answer = script::REGISTER.run(&mut link.connection(), &names, &arguments).await;
        match answer.map_err(|e| link.write_error(&e))? {
            Value::BulkString(word) if word == b"ok" => {}
            Value::BulkString(word) if word == b"inexact" => exact = false,
            Value::BulkString(word) if word == b"unleased" => return Ok(Registered::Unleased),
            Value::BulkString(word) if word == b"fenced" => return Ok(Registered::Fenced),
            other => return Err(unexpected(&other)),
        }
    }
    Ok(Registered::Exactly(exact))
}

fn words(one: &Registration) -> Vec<&str> {
    let own = [one.connection.as_str(), &one.subject, &one.namespace, &one.session];
    let rooms = one.rooms.iter().filter(|room| room.as_connection().is_none());
    own.into_iter().chain(rooms.map(|room| room.as_str())).collect()
}

/// See [`Engine::orphans`](crate::engine::Engine::orphans).
pub(super) async fn orphans(nodes: &Nodes, cleared: &Cleared, limit: usize) -> Result<Vec<Orphan>, EngineError> {
    for incarnation in nodes.unfinished() {
        let kept = nodes.kept(&incarnation).await?;
        let mut left = left_by(nodes, cleared, &incarnation, limit).await?;
        let all = left.len();
        if let Some(kept) = kept {
            left.retain(|orphan| !kept.has(&orphan.tenant));
            left.iter_mut().for_each(|orphan| orphan.retired = true);
        }
        if !left.is_empty() {
            return Ok(left);
        }
        // Others have their turn; these come when their places are over.
        if all > 0 {
            continue;
        }
        nodes.finished(&incarnation).await?;
        cleared.lock().remove(&incarnation);
    }
    Ok(Vec::new())
}

async fn left_by(nodes: &Nodes, cleared: &Cleared, dead: &str, limit: usize) -> Result<Vec<Orphan>, EngineError> {
    let open: Vec<usize> = {
        let cleared = cleared.lock();
        let clear = cleared.get(dead);
        (0..PARTITIONS).filter(|partition| clear.is_none_or(|clear| !clear.contains(partition))).collect()
    };
    let (mut left, mut failed) = (Vec::new(), None);
    for partitions in open.chunks(PARTITIONS_AT_ONCE) {
        let pages = partitions.iter().map(|partition| left_in(nodes, dead, *partition, limit));
        for (partition, page) in partitions.iter().zip(join_all(pages).await) {
            // One server that is away does not keep the others' in their rooms.
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            };
            if page.is_empty() {
                cleared.lock().entry(dead.to_owned()).or_default().insert(*partition);
            }
            left.extend(page);
        }
        if left.len() >= limit {
            break;
        }
    }
    left.truncate(limit);
    match failed {
        Some(error) if left.is_empty() => Err(error),
        _ => Ok(left),
    }
}

async fn left_in(nodes: &Nodes, dead: &str, partition: usize, limit: usize) -> Result<Vec<Orphan>, EngineError> {
    let keys = PartitionKeys::of(partition);
    let (limit, kept, tenants) = (limit.to_string(), DEAD_KEPT_MS.to_string(), keys.tenants());
    let arguments = [dead.as_bytes(), tenants.as_bytes(), limit.as_bytes(), kept.as_bytes()];
    let link = nodes.router.to_partition(partition).link().await?;
    let names = [&*keys.dead(), &*keys.connections_of(dead)];
    let answer = script::ORPHANS.run(&mut link.connection(), &names, &arguments).await;
    let answer = answer.map_err(|e| link.write_error(&e))?;
    let found: Vec<(String, String)> =
        ::redis::from_redis_value(answer).map_err(|e| EngineError::Corrupt(format!("orphans: {e}")))?;
    Ok(found.iter().filter_map(|(name, who)| orphan(name, who)).collect())
}

fn orphan(name: &str, who: &str) -> Option<Orphan> {
    let parts = name.split_once('/').and_then(|(tenant, id)| Some((TenantId::parse(tenant).ok()?, id)));
    let (Some((tenant, id)), Some([namespace, subject, session])) = (parts, read_connection(who)) else {
        error!(name, "an orphan cannot be read");
        return None;
    };
    let text = Arc::<str>::from;
    Some(Orphan {
        tenant,
        connection: ConnectionId::from(id),
        subject: text(subject),
        namespace: text(namespace),
        session: text(session),
        retired: false,
    })
}
