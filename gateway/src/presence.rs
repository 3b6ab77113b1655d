//! Who is there, kept true: connections that dead nodes left behind are taken out, and what a loss took from the
//! registry is put back.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::client::{Client, Identity};
use crate::close::{Close, jitter};
use crate::commit::{TimerChange, TimerKey};
use crate::decision::farewell::Farewell;
use crate::delivery::rooms::{Census, Rooms};
use crate::engine::{EngineError, NodeStat, Orphan};
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
    let identity = Identity { subject: orphan.subject.clone(), claims, expires_at_s: None };
    let client = Client { connection: orphan.connection.clone(), identity, namespace: orphan.namespace.clone() };
    let name = if orphan.session.is_empty() { orphan.connection.as_str() } else { &orphan.session };
    let window = tenant.tenant.limits.recovery_window_ms;
    Ok(Farewell::new(&client, Close::Fenced.word()).timers(&pipeline, name, window))
}

/// Puts the registry right whenever the tenant's log has lost something, until the node stops: every change of the
/// registry is an entry, so it has lost nothing where the log has not.
pub async fn keep_registered(gateway: Arc<Gateway>, tenant: Arc<LiveTenant>, rooms: Rooms) {
    let mut resets = rooms.resets();
    let keep = async {
        while resets.changed().await.is_ok() {
            while let Err(why) = put_right(&gateway, &tenant, &rooms).await {
                tracing::warn!(tenant = %tenant.tenant.id, why, "the registry cannot be put right yet");
                tokio::time::sleep(ERROR_REST + jitter(ERROR_REST)).await;
            }
        }
    };
    tokio::select! { () = keep => {}, () = gateway.tasks.stopping().cancelled() => {} }
}

async fn put_right(gateway: &Gateway, tenant: &LiveTenant, rooms: &Rooms) -> Result<(), String> {
    let (engine, id) = (&gateway.engine, &tenant.tenant.id);
    let all = async {
        // The registry first: whoever is in it and not attached afterwards has left.
        let known = engine.registered(id).await.map_err(|error| error.to_string())?;
        let Census { position, there, attached } = rooms.census().await.map_err(|error| error.to_string())?;
        let gone = |known: &crate::client::ConnectionId| !attached.contains(known) && !tenant.leaving.contains(known);
        let gone: Vec<_> = known.into_iter().filter(gone).collect();
        engine.register(id, position, &there, &gone).await.map_err(|error| error.to_string())?;
        tracing::info!(tenant = %id, connections = there.len(), gone = gone.len(), "registered again after a loss");
        Ok(())
    };
    tokio::time::timeout(PUT_RIGHT_TIMEOUT, all).await.unwrap_or_else(|_| Err("no answer in time".into()))
}
