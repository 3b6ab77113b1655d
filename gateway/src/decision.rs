//! Act 2: events become commits.
//!
//! Every input is a transaction: plugins run in fresh sandboxes, what they do is buffered, and
//! one commit applies it if nothing that they read has changed; otherwise they run again.

pub mod authorization;
pub mod backlog;
pub mod conflict;
pub mod farewell;
pub mod input;
pub mod once;
pub mod pipeline;
pub mod plugin;
mod relay;
pub mod revocation;
pub mod token;
pub mod verdict;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::client::Client;
use crate::commit::{
    Commit, CommitId, Effect, FiredTimer, Grant, Millis, Position, Publication, SessionRecord, StateKey, TimerChange,
    TimerKey, Who,
};
use crate::engine::{DueTimer, Engine, EngineError, Outcome};
use crate::event::{Event, Payload, Refusal};
use crate::limits::PerSecond;
use crate::quota::{OverQuota, RoomsHere, Stored, StoredKind};
use crate::room::Room;
use crate::telemetry::labels;
use crate::tenant::{CallLimits, Limits, TenantId};
use crate::traffic::Traffic;
use backlog::{Backlog, Outage};
use conflict::Conflicts;
pub use input::{Accepted, Input, Returning};
use once::Once;
use pipeline::{Pipeline, Route};
use plugin::{Author, CallError, Invocation, Transaction};

/// How often a commit whose outcome is unknown is sent again before the client is told.
const AMBIGUOUS_RESENDS_MAX: u32 = 3;

/// How often a commit that the engine could not take is sent again while the engine is said to be there.
const UNAVAILABLE_RESENDS_MAX: u32 = 3;

/// How long such a commit rests: an engine that has just gone away is soon known to be.
const UNAVAILABLE_REST: Duration = Duration::from_millis(50);

/// How long one commit may take before its outcome counts as unknown.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the ephemeral publications of one input may take together.
const EPHEMERAL_TIMEOUT: Duration = Duration::from_secs(1);

/// What an input came to.
#[derive(Debug)]
pub struct Decided {
    /// Where its entry is in the log; the log's top when it had no effects; `None` when there was
    /// nothing to commit.
    pub position: Option<Position>,
    /// The answer to whoever caused it.
    pub reply: Option<Payload>,
    /// Did it change memberships? Then the answer waits until this node has applied them.
    pub memberships: bool,
    /// Rooms that were joined, with what was granted.
    pub joined: Vec<(Room, Grant)>,
    /// Rooms that were not, with the reason.
    pub refused: Vec<(Room, Refusal)>,
}

/// Why an input came to nothing. Nothing it did took effect.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Undecided {
    /// The token is good no more.
    #[error("{}", .0.message)]
    Unauthorized(Refusal),
    /// A plugin or the gateway said no.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// A plugin failed, or is not there.
    #[error("{}", .0.message)]
    Failed(Refusal),
    /// Not now: a plugin asked to be tried again or is not called for a while, too much waits, or commits kept
    /// changing what was read.
    #[error("{}", .0.message)]
    Later(Refusal),
    /// The engine does not answer.
    #[error("{}", .0.message)]
    Engine(Refusal),
    /// The timer that fired was replaced, cancelled or settled meanwhile.
    #[error("the timer is gone")]
    TimerGone,
}

impl Undecided {
    /// As the client is told.
    pub fn into_refusal(self) -> Refusal {
        match self {
            Undecided::Unauthorized(refusal)
            | Undecided::Refused(refusal)
            | Undecided::Failed(refusal)
            | Undecided::Later(refusal)
            | Undecided::Engine(refusal) => refusal,
            Undecided::TimerGone => Refusal::new("timer_gone", "the timer was settled meanwhile"),
        }
    }
}

impl From<CallError> for Undecided {
    fn from(error: CallError) -> Undecided {
        match error {
            CallError::Refused(refusal) => Undecided::Refused(refusal),
            CallError::Overloaded(message) => {
                Undecided::Later(Refusal { retry_after_ms: Some(1_000), ..Refusal::new("overloaded", message) })
            }
            // Why is in its log.
            CallError::Retry(_) => {
                let text = "a plugin asks for this to be tried again later";
                Undecided::Later(Refusal { retry_after_ms: Some(1_000), ..Refusal::new("unavailable", text) })
            }
            CallError::Failed(failure) => Undecided::Failed(failure.refusal("plugin_failed")),
            CallError::EngineUnavailable(message) => engine_unavailable(&message),
            CallError::BreakerOpen { message, retry_after_ms } => Undecided::Later(Refusal {
                retry_after_ms: Some(retry_after_ms),
                ..Refusal::new("plugin_unavailable", message)
            }),
        }
    }
}

fn engine_unavailable(message: &str) -> Undecided {
    // Names of servers are for the log, not for clients.
    tracing::debug!(message, "the engine is not available");
    let text = "the engine is not available";
    Undecided::Engine(Refusal { retry_after_ms: Some(1_000), ..Refusal::new("engine_unavailable", text) })
}

/// A commit was sent and no answer came: whoever caused it must not take it for undone.
fn unknown(refusal: Refusal) -> Refusal {
    let text = format!("it may or may not have been done; {}", refusal.message);
    Refusal { code: "outcome_unknown".into(), message: text, ..refusal }
}

/// What the gateway itself adds to the commit of an input, beside what plugins did.
#[derive(Debug, Default)]
struct Additions {
    effects: Vec<Effect>,
    session: Option<SessionRecord>,
    fired: Option<FiredTimer>,
    timers: Vec<(TimerKey, TimerChange)>,
    reply: Option<Payload>,
    joined: Vec<(Room, Grant)>,
    refused: Vec<(Room, Refusal)>,
}

/// Runs inputs of one tenant to their commit.
#[derive(Clone)]
pub struct Decisions {
    /// Whose.
    pub tenant: TenantId,
    /// Where commits go.
    pub engine: Arc<dyn Engine>,
    /// What the tenant's clients cause.
    pub traffic: Arc<Traffic>,
    limits: Arc<ArcSwap<CallLimits>>,
    conflicts: Arc<Conflicts>,
    published: Arc<PerSecond>,
    /// What the tenant's plugins may keep in all.
    most: Arc<ArcSwap<Stored>>,
    /// The rooms that its clients are in on this node.
    pub rooms_here: Arc<RoomsHere>,
    /// A commit met a connection that is not registered.
    absent: Arc<Notify>,
    backlog: Arc<Backlog>,
    revocation_count: revocation::Count,
}

/// How long a timer rests whose plugin is not a handler of the tenant at the moment, in milliseconds: it may come back,
/// not soon, and others' timers wait behind those that are tried.
const NO_HANDLER_REST_MS: Millis = 60_000;

impl Decisions {
    /// For one tenant; what waits for the engine has its places in `backlog`.
    pub fn new(tenant: TenantId, engine: Arc<dyn Engine>, limits: CallLimits, backlog: Arc<Backlog>) -> Decisions {
        Decisions {
            tenant,
            engine,
            traffic: Arc::default(),
            limits: Arc::new(ArcSwap::from_pointee(limits)),
            conflicts: Arc::default(),
            published: Arc::default(),
            most: Arc::new(ArcSwap::from_pointee(Limits::default().stored)),
            rooms_here: Arc::new(RoomsHere::new(Limits::default().rooms)),
            absent: Arc::default(),
            backlog,
            revocation_count: revocation::Count::default(),
        }
    }

    /// What one input may use up, from now on.
    pub fn set_limits(&self, limits: CallLimits) {
        self.limits.store(Arc::new(limits));
    }

    /// What the tenant may keep in all, and in how many rooms its clients may be on this node, from now on.
    pub fn set_totals(&self, limits: &Limits) {
        self.most.store(Arc::new(limits.stored));
        self.rooms_here.set_max(limits.rooms);
    }

    fn outage(&self, bytes: usize) -> Outage {
        Outage::new(&self.backlog, self.engine.health(&self.tenant), bytes)
    }

    /// Runs an input: plugins within a transaction, then its commit; again, in fresh instances,
    /// while what it read has changed meanwhile. Losers of a conflict queue per key. While the engine is away it
    /// waits, a bounded time.
    pub async fn run(&self, pipeline: &Pipeline, input: Input<'_>) -> Result<Decided, Undecided> {
        self.run_once(pipeline, input, None).await
    }

    /// As [`run`](Decisions::run); what was done under the same name a moment ago is not done again, but answered again.
    pub async fn run_once(
        &self,
        pipeline: &Pipeline,
        input: Input<'_>,
        once: Option<&Once>,
    ) -> Result<Decided, Undecided> {
        self.run_accepted(pipeline, input, once, Accepted::now()).await
    }

    /// As [`run_once`](Decisions::run_once), for an input that has its id and its time already.
    pub async fn run_accepted(
        &self,
        pipeline: &Pipeline,
        input: Input<'_>,
        once: Option<&Once>,
        accepted: Accepted,
    ) -> Result<Decided, Undecided> {
        if matches!(input, Input::Event { .. }) {
            self.traffic.events.fetch_add(1, Ordering::Relaxed);
        }
        let Accepted { id, at: now } = accepted;
        let limits = self.limits.load_full();
        let pipeline = &*pipeline.of_user(input.subject());
        let mut turn = None;
        let mut outage = self.outage(input.bytes());
        let (mut attempt, mut published) = (0, 0);
        while attempt < limits.attempts {
            outage.over().await.map_err(Undecided::Engine)?;
            attempt += 1;
            let invocation = Invocation { id: id.clone(), attempt, now };
            let mut transaction =
                Transaction::new(self.engine.clone(), self.tenant.clone(), limits.clone(), invocation);
            let done = match once {
                Some(once) => once.done(&mut transaction).await,
                None => Ok(None),
            };
            let steps = match done {
                Ok(None) => self.steps(pipeline, &mut transaction, &input).await,
                Ok(Some(done)) => return self.answer_again(done, &mut outage).await,
                Err(undecided) => Err(undecided),
            };
            let mut parts = transaction.into_parts();
            let additions = match steps {
                Ok(additions) => additions,
                // Nothing was sent yet: it runs anew when the engine is back.
                Err(Undecided::Engine(_)) if outage.is_on() => {
                    attempt -= 1;
                    continue;
                }
                // A refusal rests on what was read, too: one torn by a commit in between runs again.
                Err(refused) => match self.validate(parts.commit, &mut outage).await? {
                    None => return Err(refused),
                    Some(key) => {
                        turn = self.lose(turn, &key).await;
                        continue;
                    }
                },
            };
            if turn.is_none()
                && let Some(key) = self.conflicts.contested(parts.commit.reads.iter().map(|(key, _)| key))
            {
                turn = self.conflicts.turn(key).await;
                if turn.is_some() {
                    // What was read before it waited is old now. It has not lost, though.
                    attempt -= 1;
                    continue;
                }
            }
            parts.commit.effects.extend(additions.effects);
            parts.commit.session = additions.session;
            parts.commit.fired = additions.fired;
            parts.commit.timers.extend(additions.timers);
            self.may_publish(&parts.commit.effects, parts.ephemeral.len(), &mut published)?;
            self.rooms_here.may_join(parts.commit.effects.iter().filter_map(joined)).map_err(Undecided::Failed)?;
            parts.commit.most = Some(**self.most.load());
            let reply = parts.reply.or(additions.reply);
            parts.commit.writes.extend(once.map(|once| once.record(id.clone(), reply.clone())));
            let memberships = parts.commit.effects.iter().any(|effect| !matches!(effect, Effect::Publish(_)));
            let position = match self.commit(parts.commit, &mut outage).await? {
                None => None,
                Some(Outcome::Committed(position)) => Some(position),
                Some(Outcome::TimerGone) => return Err(Undecided::TimerGone),
                Some(Outcome::OverQuota(over)) => {
                    let author = if over.kind == StoredKind::Timers { parts.timers_by } else { parts.state_by };
                    return Err(too_much(pipeline, author, &over, &id));
                }
                Some(Outcome::Conflict(key)) => {
                    turn = self.lose(turn, &key).await;
                    continue;
                }
            };
            self.publish_ephemeral(parts.ephemeral).await;
            return Ok(Decided { position, reply, memberships, joined: additions.joined, refused: additions.refused });
        }
        let text = format!(
            "other commits changed what this one had read, {} times in a row (setting call_limits.attempts)",
            limits.attempts
        );
        Err(Undecided::Later(Refusal { retry_after_ms: Some(100), ..Refusal::new("conflict", text) }))
    }

    /// Answers what was answered when it was done.
    async fn answer_again(&self, done: once::Done, outage: &mut Outage) -> Result<Decided, Undecided> {
        // The engine knows where the commit of this id is.
        let position = match self.send(Arc::new(Commit::new(done.commit)), outage, true).await? {
            Outcome::Committed(position) => Some(position),
            _ => None,
        };
        let (joined, refused) = (Vec::new(), Vec::new());
        Ok(Decided { position, reply: done.reply, memberships: false, joined, refused })
    }

    /// One attempt, up to its commit.
    async fn steps(
        &self,
        pipeline: &Pipeline,
        transaction: &mut Transaction,
        input: &Input<'_>,
    ) -> Result<Additions, Undecided> {
        match input {
            Input::Connect { who, session, returning } => {
                revocation::check(transaction, &who.identity).await?;
                let given = authorization::connect(pipeline, transaction, who).await?;
                let Some(returning) = returning else {
                    return Ok(joining(who, given, Vec::new(), session, vec![arrival(who)]));
                };
                let (kept, new) = given.into_iter().partition(|(room, _)| returning.rooms.contains(room));
                let (kept, refused) = kept_rooms(pipeline, transaction, who, returning, kept).await?;
                // The order says which rooms it was in (see `Effect::Gone`).
                let mut back = joining(who, kept, refused, session, vec![arrival(who)]);
                back.came_back(pipeline, returning.record);
                let record = back.session.take().unwrap_or_else(|| session.clone());
                let mut all = joining(who, new, back.refused, &record, back.effects);
                all.joined.splice(0..0, back.joined);
                Ok(Additions { timers: back.timers, ..all })
            }
            Input::Join { who, wanted, session, resumed, request } => {
                let (mut joined, mut refused) = (Vec::new(), Vec::new());
                for (room, params) in *wanted {
                    match authorization::join(pipeline, transaction, who, room, params.as_ref()).await {
                        Ok(grant) => joined.push((room.clone(), grant)),
                        Err(Undecided::Engine(refusal)) => return Err(Undecided::Engine(refusal)),
                        Err(undecided) => refused.push((room.clone(), undecided.into_refusal())),
                    }
                }
                if let Some(event) = request.filter(|_| !joined.is_empty()) {
                    take_part(pipeline, transaction, event).await?;
                }
                // Whose arrival stands beside the other's going has come back as that one.
                let first = resumed.map(|_| arrival(who)).into_iter().collect();
                let mut additions = joining(who, joined, refused, session, first);
                if let Some(record) = resumed {
                    additions.came_back(pipeline, record);
                }
                Ok(additions)
            }
            Input::Event { event, may_publish } => match pipeline.route(transaction, event).await? {
                Route::Ignore => Ok(Additions::default()),
                Route::Relay => relay::relay(event, may_publish).map_err(Undecided::Refused),
                Route::Broadcast => relay::broadcast(event).map_err(Undecided::Refused),
                Route::Handlers(handlers) => {
                    for handler in handlers {
                        handler.handle(transaction, event).await?;
                    }
                    Ok(Additions::default())
                }
            },
            Input::Effects(effects) => Ok(Additions { effects: effects.to_vec(), ..Additions::default() }),
            Input::Request(event) => {
                take_part(pipeline, transaction, event).await?;
                Ok(Additions::default())
            }
            Input::Timer(timer) => {
                let Some(handler) = pipeline.handler(&timer.key.plugin) else {
                    let text = format!("the timer's plugin {:?} is not a handler of the tenant", timer.key.plugin);
                    let rest = Some(NO_HANDLER_REST_MS);
                    return Err(Undecided::Later(Refusal {
                        retry_after_ms: rest,
                        ..Refusal::new("plugin_unavailable", text)
                    }));
                };
                match farewell::Farewell::of(timer) {
                    Some(gone) if self.is_back(timer, &gone).await? => {}
                    Some(gone) => handler.disconnected(transaction, &gone.client(), &gone.reason).await?,
                    None => handler.fire(transaction, timer).await?,
                }
                let fired = FiredTimer { key: timer.key.clone(), token: timer.token.clone() };
                Ok(Additions { fired: Some(fired), ..Additions::default() })
            }
            Input::Connected { who, handshake } => {
                for (handler, _) in &pipeline.handlers {
                    if handler.exports.connection_events {
                        handler.connected(transaction, who, handshake).await?;
                    }
                }
                Ok(Additions::default())
            }
        }
    }

    /// Has the session gone on with another connection? Its timer was set by a node that learned too late of it.
    async fn is_back(&self, timer: &DueTimer, gone: &farewell::Farewell) -> Result<bool, Undecided> {
        let record = self.engine.session(&self.tenant, farewell::Farewell::session(timer)).await;
        let record = record.map_err(|error| engine_unavailable(&error.to_string()))?;
        Ok(record.is_some_and(|record| record.connection != gone.connection))
    }

    /// Is there room for an input's publications?
    /// `paid`: what was already taken for an earlier attempt at the input.
    fn may_publish(&self, effects: &[Effect], ephemeral: usize, paid: &mut u64) -> Result<(), Undecided> {
        let all = effects.iter().filter(|effect| matches!(effect, Effect::Publish(_))).count() + ephemeral;
        let count = (all as u64).saturating_sub(*paid);
        let limit = self.limits.load().publications_per_second;
        self.published.take(count, limit.into(), tokio::time::Instant::now()).map_err(|wait| {
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
            let text = format!(
                "the tenant publishes too much: {count} more (call_limits.publications_per_second = {limit}); \
                 try again in {wait_ms} ms"
            );
            Undecided::Later(Refusal { retry_after_ms: Some(wait_ms), ..Refusal::new("rate_limit", text) })
        })?;
        *paid += count;
        Ok(())
    }

    /// Commits publications that grants allow, without any plugin, if there is room for them.
    pub async fn publish_directly(&self, commit: Commit) -> Result<Option<Position>, Undecided> {
        self.may_publish(&commit.effects, 0, &mut 0)?;
        self.commit_directly(commit).await
    }

    /// Commits without any plugin: a leave, a disconnect.
    pub async fn commit_directly(&self, commit: Commit) -> Result<Option<Position>, Undecided> {
        let mut outage = self.outage(commit.bytes());
        match self.commit(commit, &mut outage).await? {
            Some(Outcome::Committed(position)) => Ok(Some(position)),
            _ => Ok(None),
        }
    }

    /// Waits until a commit met a connection that is not registered: it was taken out, or its being there was lost.
    pub async fn met_absent(&self) {
        self.absent.notified().await;
    }

    /// Writes a session's record. If its connection is not registered now, a `patient` one waits for that, as an input
    /// does.
    pub async fn record(&self, session: SessionRecord, patient: bool) -> Result<(), Undecided> {
        let commit = Commit { session: Some(session), ..Commit::new(CommitId::random()) };
        let mut outage = self.outage(commit.bytes());
        self.send(Arc::new(commit), &mut outage, patient).await.map(drop)
    }

    /// Counts a lost conflict and waits for the turn to try again. Who had the turn on this key keeps it: then it was
    /// another node that won. A turn on another key is given back first.
    async fn lose(&self, turn: Option<conflict::Turn>, key: &StateKey) -> Option<conflict::Turn> {
        metrics::counter!("commit_conflicts_total", "tenant" => labels::of_tenant(self.tenant.as_str())).increment(1);
        if turn.as_ref().is_some_and(|turn| turn.is_on(key)) {
            return turn;
        }
        drop(turn);
        self.conflicts.turn(key).await
    }

    /// Is everything still as it was read? One read, or none, cannot be torn.
    async fn validate(&self, commit: Commit, outage: &mut Outage) -> Result<Option<StateKey>, Undecided> {
        if commit.reads.len() < 2 {
            return Ok(None);
        }
        let reads = Commit { reads: commit.reads, ..Commit::new(CommitId::random()) };
        match self.send(Arc::new(reads), outage, true).await? {
            Outcome::Conflict(key) => Ok(Some(key)),
            _ => Ok(None),
        }
    }

    async fn commit(&self, commit: Commit, outage: &mut Outage) -> Result<Option<Outcome>, Undecided> {
        let nothing = commit.effects.is_empty()
            && commit.writes.is_empty()
            && commit.timers.is_empty()
            && commit.session.is_none()
            && commit.fired.is_none()
            && commit.reads.len() < 2;
        if nothing {
            return Ok(None);
        }
        self.send(Arc::new(commit), outage, true).await.map(Some)
    }

    /// Sends a commit, again with the same id while its outcome is unknown or the engine is away: what the
    /// components decided is not decided anew, for that would see its own outcome.
    /// One whose connection is not registered waits for that if it is `patient`.
    async fn send(&self, commit: Arc<Commit>, outage: &mut Outage, patient: bool) -> Result<Outcome, Undecided> {
        let started = std::time::Instant::now();
        let (mut ambiguous, mut unavailable) = (0, 0);
        loop {
            if let Err(refusal) = outage.over().await {
                return Err(Undecided::Engine(if ambiguous == 0 { refusal } else { unknown(refusal) }));
            }
            let answered = tokio::time::timeout(COMMIT_TIMEOUT, self.engine.commit(&self.tenant, commit.clone())).await;
            let result = answered.unwrap_or_else(|_| {
                Err(EngineError::Ambiguous(format!("no answer within {} ms", COMMIT_TIMEOUT.as_millis())))
            });
            metrics::histogram!("engine_commit_seconds").record(started.elapsed().as_secs_f64());
            match result {
                Ok(outcome) => {
                    if matches!(outcome, Outcome::Committed(_)) {
                        let published = commit.effects.iter().filter(|effect| matches!(effect, Effect::Publish(_)));
                        self.traffic.published.fetch_add(published.count() as u64, Ordering::Relaxed);
                    }
                    return Ok(outcome);
                }
                Err(EngineError::Ambiguous(why)) if ambiguous < AMBIGUOUS_RESENDS_MAX => {
                    ambiguous += 1;
                    metrics::counter!("commit_ambiguous_total").increment(1);
                    tracing::warn!(tenant = %self.tenant, why, ambiguous, "a commit's outcome is unknown: sent again");
                }
                Err(EngineError::Unavailable(_)) if outage.is_on() => {}
                Err(EngineError::Unavailable(_)) if unavailable < UNAVAILABLE_RESENDS_MAX => {
                    unavailable += 1;
                    tokio::time::sleep(UNAVAILABLE_REST).await;
                }
                // After a loss this node registers its connections again in a moment.
                Err(EngineError::Absent(id)) => {
                    self.absent.notify_one();
                    if !patient {
                        return Err(engine_unavailable(&EngineError::Absent(id).to_string()));
                    }
                    outage.registering().await.map_err(Undecided::Engine)?;
                }
                Err(EngineError::NotACounter(key)) => {
                    let text = format!("the value of {:?} is not a decimal counter", key.as_str());
                    return Err(Undecided::Failed(Refusal::new("plugin_failed", text)));
                }
                Err(error) => {
                    let undecided = engine_unavailable(&error.to_string());
                    return Err(if ambiguous == 0 {
                        undecided
                    } else {
                        Undecided::Engine(unknown(undecided.into_refusal()))
                    });
                }
            }
        }
    }

    /// Best effort by contract: what cannot be sent now is dropped, and counted.
    pub async fn publish_ephemeral(&self, publications: Vec<Publication>) {
        let mut left = publications.len() as u64;
        self.traffic.published.fetch_add(left, Ordering::Relaxed);
        let all = async {
            for publication in publications {
                if self.engine.publish_ephemeral(&self.tenant, publication).await.is_ok() {
                    left -= 1;
                }
            }
        };
        // What is left then is dropped with the rest.
        let _ = tokio::time::timeout(EPHEMERAL_TIMEOUT, all).await;
        metrics::counter!("ephemeral_dropped_total").increment(left);
    }
}

/// The room that an effect brings members into.
fn joined(effect: &Effect) -> Option<&Room> {
    match effect {
        Effect::Join { room, .. } => Some(room),
        _ => None,
    }
}

/// The tenant would keep more than it may: told to whoever caused it, and to the plugin's developer.
fn too_much(pipeline: &Pipeline, author: Option<Author>, over: &OverQuota, input: &CommitId) -> Undecided {
    let plugin = author.and_then(|author| Some((pipeline.handler(&author.plugin)?, author.hook)));
    let message = match plugin {
        Some((plugin, hook)) => plugin.went_over(hook, over, input).to_string(),
        None => over.to_string(),
    };
    Undecided::Failed(over.refusal(message))
}

/// Lets the handlers that name a request of the gateway's see it.
async fn take_part(pipeline: &Pipeline, transaction: &mut Transaction, event: &Event) -> Result<(), Undecided> {
    for handler in pipeline.taking_part(&event.name)? {
        handler.handle(transaction, event).await?;
    }
    Ok(())
}

fn arrival(who: &Client) -> Effect {
    Effect::Arrive {
        id: who.connection.clone(),
        subject: who.identity.subject.clone(),
        namespace: who.namespace.clone(),
    }
}

/// Of the rooms of a session that comes back those that it may stay in, beside `kept`. Only a decision
/// takes one away: while nobody can decide, nobody comes back.
async fn kept_rooms(
    pipeline: &Pipeline,
    transaction: &mut Transaction,
    who: &Client,
    returning: &Returning<'_>,
    mut kept: Vec<(Room, Grant)>,
) -> Result<(Vec<(Room, Grant)>, Vec<(Room, Refusal)>), Undecided> {
    let mut refused = Vec::new();
    for room in returning.rooms {
        if kept.iter().any(|(other, _)| other == room) {
            continue;
        }
        match authorization::join(pipeline, transaction, who, room, None).await {
            Ok(grant) => kept.push((room.clone(), grant)),
            Err(Undecided::Refused(refusal) | Undecided::Failed(refusal)) => refused.push((room.clone(), refusal)),
            Err(undecided) => return Err(undecided),
        }
    }
    Ok((kept, refused))
}

impl Additions {
    /// Takes out the connection that a session had before, and cancels the telling of its end.
    fn came_back(&mut self, pipeline: &Pipeline, record: &SessionRecord) {
        self.effects.push(Effect::Gone { id: record.connection.clone() });
        self.timers.extend(farewell::cancelled(pipeline, &record.session));
    }
}

/// What joining adds: the memberships, and the record that lets the client come back to them.
fn joining(
    who: &Client,
    joined: Vec<(Room, Grant)>,
    refused: Vec<(Room, Refusal)>,
    session: &SessionRecord,
    mut effects: Vec<Effect>,
) -> Additions {
    let mut session = session.clone();
    for (room, grant) in &joined {
        // Joining again where one is already changes nothing, and leaves no trace in the log.
        if session.rooms.insert(room.clone(), *grant) == Some(*grant) {
            continue;
        }
        let who = Who::Connection(who.connection.clone());
        effects.push(Effect::Join { who, room: room.clone(), grant: *grant });
    }
    let session = (!effects.is_empty()).then_some(session);
    Additions { effects, session, joined, refused, ..Additions::default() }
}
