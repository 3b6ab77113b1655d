//! Who is there, kept true: connections that dead nodes left behind are taken out, and what a loss took from the
//! registry is put back.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::{Client, Identity};
use crate::close::{Close, jitter};
use crate::commit::{Commit, CommitId, Effect, TimerChange, TimerKey};
use crate::decision::farewell::Farewell;
use crate::delivery::rooms::{Census, Rooms};
use crate::engine::{EngineError, Health, NodeStat, Orphan, Outcome};
use crate::gateway::{Gateway, LiveTenant};
use crate::tenant::TenantId;

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
/// How long after the engine is back it is compared, about: what it lost without a trace in the log is found then.
const AUDIT_AFTER_OUTAGE: Duration = Duration::from_secs(3);
/// How long comparing rests after a commit that met a connection which is not registered.
const ABSENT_REST: Duration = Duration::from_millis(200);
/// How long comparing waits for this node to apply the log.
const APPLIED_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one attempt to put the registry right may take.
const PUT_RIGHT_TIMEOUT: Duration = Duration::from_secs(30);
/// The rest before it is compared again because memberships changed meanwhile, about; longer each time, up to ten times.
const PUT_RIGHT_REST: Duration = Duration::from_millis(20);

/// Takes orphans out and keeps the registries of the tenants that are served here, until the node stops.
pub async fn run(gateway: Arc<Gateway>) {
    let mut kept = HashMap::new();
    loop {
        keep_new(&gateway, &mut kept);
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
            () = sleep(rest) => {}
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
    let settings = tenant.settings();
    let window = settings.limits.recovery_window_ms;
    // A node that retires sets the same timer: it is only put off, but where it may have fired already.
    if orphan.retired && u128::from(window) <= settings.presence_grace.as_millis() {
        return Ok(Vec::new());
    }
    let identity = Identity { subject: orphan.subject.clone(), claims, expires_at_s: None, key: None };
    let client = Client { connection: orphan.connection.clone(), identity, namespace: orphan.namespace.clone() };
    let name = if orphan.session.is_empty() { orphan.connection.as_str() } else { &orphan.session };
    Ok(Farewell::new(&client, Close::Fenced.word()).timers(&pipeline, name, window))
}

/// Starts to keep the registries of tenants that have their first connections. What their logs have lost until then is
/// not missed: resets are counted.
fn keep_new(gateway: &Arc<Gateway>, kept: &mut HashMap<TenantId, Weak<LiveTenant>>) {
    for tenant in gateway.tenants() {
        let Some(rooms) = tenant.started_rooms() else { continue };
        if kept.get(&tenant.id).is_some_and(|kept| std::ptr::eq(kept.as_ptr(), &*tenant)) {
            continue;
        }
        kept.insert(tenant.id.clone(), Arc::downgrade(&tenant));
        gateway.tasks.spawn(keep_registered(gateway.clone(), tenant.clone(), rooms.clone()));
    }
}

/// Puts the registry right whenever the tenant's log has lost something, until the node stops or the tenant is out of
/// service: then nobody is to be registered any more. What was registered after
/// a loss has no entry in the log, and may be lost without one: so now and then, after each outage, and when a commit
/// met a connection that should be there, the registry is compared with who is connected here.
async fn keep_registered(gateway: Arc<Gateway>, tenant: Arc<LiveTenant>, rooms: Rooms) {
    let mut resets = rooms.resets();
    let mut health = gateway.engine.health(&tenant.id);
    let keep = async {
        let mut audit_at = audit_time();
        loop {
            tokio::select! {
                reset = resets.changed() => {
                    if reset.is_err() {
                        return;
                    }
                    while let Err(why) = make_up_for_loss(&gateway, &tenant, &rooms).await {
                        tracing::warn!(tenant = %tenant.id, why, "the registry cannot be put right yet");
                        sleep(ERROR_REST + jitter(ERROR_REST)).await;
                    }
                }
                changed = health.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if *health.borrow_and_update() == Health::Up {
                        audit_at = audit_at.min(Instant::now() + AUDIT_AFTER_OUTAGE + jitter(AUDIT_AFTER_OUTAGE));
                    }
                }
                () = tenant.decisions.met_absent() => {
                    if let Err(why) = register_missing(&gateway, &tenant, &rooms).await {
                        tracing::debug!(tenant = %tenant.id, why, "who is missing in the registry cannot be found now");
                    }
                    // Commits of one that was taken out meet it again and again.
                    sleep(ABSENT_REST).await;
                }
                () = sleep_until(audit_at) => {
                    audit_at = audit_time();
                    if let Err(why) = audit(&gateway, &tenant, &rooms).await {
                        tracing::debug!(tenant = %tenant.id, why, "the registry cannot be looked through now");
                    }
                }
            }
        }
    };
    tokio::select! {
        () = keep => {}
        () = tenant.retired().cancelled() => {}
        () = gateway.tasks.stopping().cancelled() => {}
    }
}

fn audit_time() -> Instant {
    Instant::now() + AUDIT_EVERY + jitter(AUDIT_EVERY)
}

/// Nobody stays whose token was revoked in an entry that was lost, and everybody is registered.
async fn make_up_for_loss(gateway: &Gateway, tenant: &LiveTenant, rooms: &Rooms) -> Result<(), String> {
    end_revoked(tenant, rooms).await?;
    put_right(gateway, tenant, rooms).await
}

/// Ends the connections that hold revoked tokens, whatever hindered the log's telling so.
async fn end_revoked(tenant: &LiveTenant, rooms: &Rooms) -> Result<(), String> {
    let mut after = None;
    loop {
        let (revoked, next) = tenant.decisions.revoked(after.as_deref()).await.map_err(|error| error.to_string())?;
        if !revoked.is_empty() {
            rooms.revoke(revoked).await.map_err(|error| error.to_string())?;
        }
        after = next;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Registers whom the registry has not and this node has. Whom others took out is not among them: the registry is read,
/// and this node has applied all that was committed until then before it says who is here. Nor is whoever arrived
/// meanwhile, whom the registry has when it is read again.
async fn register_missing(gateway: &Gateway, tenant: &LiveTenant, rooms: &Rooms) -> Result<(), String> {
    let (engine, id) = (&gateway.engine, &tenant.id);
    let mut known = HashSet::new();
    known.extend(engine.registered(id).await.map_err(|error| error.to_string())?);
    let nothing = Arc::new(Commit::new(CommitId::random()));
    let top = engine.commit(id, nothing).await.map_err(|error| error.to_string())?;
    if let Outcome::Committed(top) = top {
        let applied = tokio::time::timeout(APPLIED_TIMEOUT, rooms.applied(top)).await;
        applied.map_err(|_| "this node is late in applying the log")?.map_err(|error| error.to_string())?;
    }
    let Census { there, .. } = rooms.census().await.map_err(|error| error.to_string())?;
    known.extend(engine.registered(id).await.map_err(|error| error.to_string())?);
    let missing = there.iter().filter(|one| !known.contains(&one.connection)).count();
    if missing == 0 {
        return Ok(());
    }
    tracing::warn!(tenant = %tenant.id, missing, "connections are not registered any more");
    put_right(gateway, tenant, rooms).await
}

/// Takes out those that the registry has and this node has not, and the other way round. The registry is read first:
/// whoever is in it and not attached afterwards has left.
async fn audit(gateway: &Gateway, tenant: &LiveTenant, rooms: &Rooms) -> Result<(), String> {
    register_missing(gateway, tenant, rooms).await?;
    let known = gateway.engine.registered(&tenant.id).await.map_err(|error| error.to_string())?;
    let Census { attached, .. } = rooms.census().await.map_err(|error| error.to_string())?;
    for id in known.into_iter().filter(|id| !attached.contains(id) && !tenant.leaving.contains(id)) {
        tracing::warn!(tenant = %tenant.id, "a connection that has left was still registered: it is taken out");
        let commit = Commit { effects: vec![Effect::Gone { id }], ..Commit::new(CommitId::random()) };
        tenant.decisions.commit_directly(commit).await.map_err(|error| error.to_string())?;
    }
    end_revoked(tenant, rooms).await
}

/// Registers until nothing moved between looking and registering: what is committed in between may be a join that is
/// applied here only later, or a leaving that would be undone.
async fn put_right(gateway: &Gateway, tenant: &LiveTenant, rooms: &Rooms) -> Result<(), String> {
    let all = async {
        let (mut connections, mut exact) = register_again(gateway, tenant, rooms).await?;
        // Only those that are registered write records: so not before.
        rooms.record_again().await.map_err(|error| error.to_string())?;
        let mut rounds = 1;
        while !exact {
            sleep(jitter(PUT_RIGHT_REST * rounds.min(10))).await;
            (connections, exact) = register_again(gateway, tenant, rooms).await?;
            rounds += 1;
        }
        tracing::info!(tenant = %tenant.id, connections, rounds, "registered again after a loss");
        Ok(())
    };
    tokio::time::timeout(PUT_RIGHT_TIMEOUT, all)
        .await
        .unwrap_or_else(|_| Err("memberships change too fast, or there is no answer in time".into()))
}

/// How many connections were registered, and whether the registry says just that now.
async fn register_again(gateway: &Gateway, tenant: &LiveTenant, rooms: &Rooms) -> Result<(usize, bool), String> {
    let (engine, id) = (&gateway.engine, &tenant.id);
    // The registry first: whoever is in it and not attached afterwards has left.
    let known = engine.registered(id).await.map_err(|error| error.to_string())?;
    let Census { position, there, attached } = rooms.census().await.map_err(|error| error.to_string())?;
    let gone = |known: &crate::client::ConnectionId| !attached.contains(known) && !tenant.leaving.contains(known);
    let gone: Vec<_> = known.into_iter().filter(gone).collect();
    let exact = engine.register(id, position, &there, &gone).await.map_err(|error| error.to_string())?;
    Ok((there.len(), exact))
}
