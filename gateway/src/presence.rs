//! Who is there, kept true: connections that dead nodes left behind are taken out, and what a loss took from the
//! registry is put back.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::client::{Client, Identity};
use crate::close::{Close, jitter};
use crate::commit::{Commit, CommitId, Effect, TimerChange, TimerKey};
use crate::decision::farewell::Farewell;
use crate::delivery::rooms::{Census, Rooms};
use crate::engine::{EngineError, NodeStat, Orphan, Outcome};
use crate::gateway::{Gateway, LiveTenant};

/// How often orphans are looked for, and the other nodes told how many connections this one has.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long looking rests when the engine does not answer, about.
const ERROR_REST: Duration = Duration::from_secs(1);
/// Orphans looked up at once.
const ORPHANS_AT_ONCE: usize = 200;
/// Orphans taken out at the same time by this node.
const REAPING_MAX: usize = 16;
/// The rest between two lookups while there are orphans: at most 20,000 a second are taken out by one node.
const REAPING_REST: Duration = Duration::from_millis(10);
/// How often the registry is compared with who is connected here, about: whoever could not be taken out is then.
const AUDIT_EVERY: Duration = Duration::from_secs(60);
/// How long one attempt to put the registry right may take.
const PUT_RIGHT_TIMEOUT: Duration = Duration::from_secs(30);

/// Takes orphans out until the node stops.
pub async fn run(gateway: Arc<Gateway>) {
    loop {
        let connections = gateway.connections.taken();
        gateway.engine.report(NodeStat { server: gateway.server_id.clone(), connections });
        let rest = match reap_some(&gateway).await {
            Ok(0) => LOOK_EVERY,
            Ok(_) => REAPING_REST,
            Err(error) => {
                tracing::debug!(%error, "connections of nodes that are gone cannot be taken out now");
                ERROR_REST + jitter(ERROR_REST)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = gateway.tasks.draining().cancelled() => return,
        }
    }
}

/// How many there were.
async fn reap_some(gateway: &Gateway) -> Result<usize, EngineError> {
    let orphans = gateway.engine.orphans(ORPHANS_AT_ONCE).await?;
    let found = orphans.len();
    let mut reaped = stream::iter(orphans).map(|orphan| reap(gateway, orphan)).buffer_unordered(REAPING_MAX);
    let (mut count, mut failed) = (0, None);
    while let Some(done) = reaped.next().await {
        match done {
            Ok(did) => count += u64::from(did),
            Err(error) => failed = Some(error),
        }
    }
    metrics::counter!("presence_reaped_total").increment(count);
    failed.map_or(Ok(found), Err)
}

async fn reap(gateway: &Gateway, orphan: Orphan) -> Result<bool, EngineError> {
    // Whichever node takes it out: if it does not serve the tenant, there are no handlers here to be told.
    let timers = match gateway.tenant(orphan.tenant.as_str()) {
        Some(tenant) => farewell(gateway, &tenant, &orphan).await?,
        None => Vec::new(),
    };
    gateway.engine.reap(&orphan, timers).await
}

/// What tells the handlers that the session is over, unless its client is back.
async fn farewell(
    gateway: &Gateway,
    tenant: &LiveTenant,
    orphan: &Orphan,
) -> Result<Vec<(TimerKey, TimerChange)>, EngineError> {
    let pipeline = tenant.pipeline.load_full();
    if !pipeline.handlers.iter().any(|(handler, _)| handler.exports.connection_events) {
        return Ok(Vec::new());
    }
    let record = match &*orphan.session {
        "" => None,
        session => gateway.engine.session(&orphan.tenant, session).await?,
    };
    let claims = match record {
        Some(record) if record.connection != orphan.connection => return Ok(Vec::new()),
        Some(record) => record.claims,
        None => "{}".into(),
    };
    let identity = Identity { subject: orphan.subject.clone(), claims, expires_at_s: None, key: None };
    let client = Client { connection: orphan.connection.clone(), identity, namespace: orphan.namespace.clone() };
    let name = if orphan.session.is_empty() { orphan.connection.as_str() } else { &orphan.session };
    let window = tenant.settings().limits.recovery_window_ms;
    Ok(Farewell::new(&client, Close::Fenced.word()).timers(&pipeline, name, window))
}

/// Puts the registry right whenever the tenant's log has lost something, until the node stops: every change of the
/// registry is an entry, so it has lost nothing where the log has not. Now and then it looks for connections that
/// nobody here stands for any more, whatever hindered their leaving.
pub async fn keep_registered(gateway: Arc<Gateway>, tenant: Arc<LiveTenant>, rooms: Rooms) {
    let mut resets = rooms.resets();
    let keep = async {
        loop {
            tokio::select! {
                reset = resets.changed() => {
                    if reset.is_err() {
                        return;
                    }
                    while let Err(why) = put_right(&gateway, &tenant, &rooms).await {
                        tracing::warn!(tenant = %tenant.id, why, "the registry cannot be put right yet");
                        tokio::time::sleep(ERROR_REST + jitter(ERROR_REST)).await;
                    }
                }
                () = tokio::time::sleep(AUDIT_EVERY + jitter(AUDIT_EVERY)) => {
                    if let Err(why) = audit(&gateway, &tenant, &rooms).await {
                        tracing::debug!(tenant = %tenant.id, why, "the registry cannot be looked through now");
                    }
                }
            }
        }
    };
    tokio::select! { () = keep => {}, () = gateway.tasks.stopping().cancelled() => {} }
}

/// Takes out those that the registry has and this node has not. The registry is read first: whoever is in it and not
/// attached afterwards has left.
async fn audit(gateway: &Gateway, tenant: &LiveTenant, rooms: &Rooms) -> Result<(), String> {
    let known = gateway.engine.registered(&tenant.id).await.map_err(|error| error.to_string())?;
    let Census { attached, .. } = rooms.census().await.map_err(|error| error.to_string())?;
    for id in known.into_iter().filter(|id| !attached.contains(id) && !tenant.leaving.contains(id)) {
        tracing::warn!(tenant = %tenant.id, "a connection that has left was still registered: it is taken out");
        let commit = Commit { effects: vec![Effect::Gone { id }], ..Commit::new(CommitId::random()) };
        tenant.decisions.commit_directly(commit).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Twice: a join that was committed before the first time found no connection, and may be applied here only after
/// the census. Joins after the first time find theirs.
async fn put_right(gateway: &Gateway, tenant: &LiveTenant, rooms: &Rooms) -> Result<(), String> {
    let all = async {
        register_again(gateway, tenant, rooms).await?;
        let nothing = Arc::new(Commit::new(CommitId::random()));
        let top = gateway.engine.commit(&tenant.id, nothing).await.map_err(|error| error.to_string())?;
        if let Outcome::Committed(top) = top {
            rooms.applied(top).await.map_err(|error| error.to_string())?;
        }
        let connections = register_again(gateway, tenant, rooms).await?;
        // Only those that are registered write records: so not before.
        rooms.record_again().await.map_err(|error| error.to_string())?;
        tracing::info!(tenant = %tenant.id, connections, "registered again after a loss");
        Ok(())
    };
    tokio::time::timeout(PUT_RIGHT_TIMEOUT, all).await.unwrap_or_else(|_| Err("no answer in time".into()))
}

async fn register_again(gateway: &Gateway, tenant: &LiveTenant, rooms: &Rooms) -> Result<usize, String> {
    let (engine, id) = (&gateway.engine, &tenant.id);
    // The registry first: whoever is in it and not attached afterwards has left.
    let known = engine.registered(id).await.map_err(|error| error.to_string())?;
    let Census { position, there, attached } = rooms.census().await.map_err(|error| error.to_string())?;
    let gone = |known: &crate::client::ConnectionId| !attached.contains(known) && !tenant.leaving.contains(known);
    let gone: Vec<_> = known.into_iter().filter(gone).collect();
    engine.register(id, position, &there, &gone).await.map_err(|error| error.to_string())?;
    Ok(there.len())
}
