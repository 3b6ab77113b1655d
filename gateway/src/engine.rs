//! The engine: a tenant's log, state, timers and sessions, and what is promised about them.
//!
//! # What every engine promises
//!
//! * **One log per tenant.** Every commit with effects gets the next [`Position`]: same
//!   epoch and `seq + 1`, or a new, larger epoch that starts at 1. Whoever follows a
//!   tenant sees its entries in that order, each once, without holes.
//! * **All or nothing.** [`Engine::commit`] applies everything in a [`Commit`] or nothing.
//!   It applies nothing when a key of the read set has another version than was read
//!   ([`Outcome::Conflict`]), when the fired timer is not there any more
//!   ([`Outcome::TimerGone`]), when the connection whose session it records is not registered
//!   ([`EngineError::Absent`]), when the tenant would keep too much ([`Outcome::OverQuota`]), or on any other error but [`EngineError::Ambiguous`].
//! * **Once.** A commit id that was applied is not applied again: the second call answers as
//!   the first did ([`Outcome::Committed`] with the same position), for at least
//!   [`COMMIT_ID_KEPT_MS`]. So after [`EngineError::Ambiguous`] the same commit is sent again.
//!   Where the log has begun anew since, the position is one of the epoch it was done in.
//! * **Durable before known.** A commit with writes, timers or a fired timer is as durable as
//!   the engine can make it before its entry is delivered or the call returns. Entries without
//!   those (relayed publications, joins) may be lost with the process; then the epoch grows, and
//!   nobody is told that they were not lost.
//! * **Reads are versioned.** [`Engine::read`] answers committed values; two reads of a key with
//!   equal versions saw the same value. A value whose time to live has passed is absent.
//! * **Following is exact.** [`Engine::follow`] answers a position and a feed that carries every
//!   entry after it, whatever is committed meanwhile. Where the engine cannot keep that
//!   promise (history is gone), the feed says [`Feed::Reset`] and goes on from there.
//! * **Totals are kept.** What a tenant's plugins keep in all ([`Stored`]) is counted within each commit, on whatever
//!   node; one that says what may be kept ([`Commit::most`]) and would go beyond it is not applied
//!   ([`Outcome::OverQuota`]). Values whose time to live has passed do not stand in the way of others.
//! * **Presence is of the living.** An entry names the users that came into rooms and went
//!   ([`Entry::presence`]); whoever is registered is counted until its [`Effect::Gone`](crate::commit::Effect::Gone).
//!   Connections of a node that died stay registered, as [`Engine::orphans`], until somebody has taken them out
//!   with [`Engine::reap`]; what a node registers after the others have counted it as gone, is refused.
//! * **Limits are of all nodes.** However many nodes ask at once, no more [`Seat`]s are taken than there may be, and a
//!   bucket grants no more [`Tokens`] than one minute's worth and what has flowed since. Seats of a node that died count
//!   until the engine has counted the node as gone.
//! * **Nothing is left of who is forgotten.** After [`Engine::forget`] no call answers anything of what the tenant had
//!   besides its values: its next entry is the first of its history, on every node.
//! * **Tenants are apart.** No call reads, changes or reveals anything of another tenant.
//!
//! One suite, `tests/it/engine_suite.rs`, holds every engine to this.

use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::client::ConnectionId;
use crate::commit::{
    Commit, Entry, Millis, Position, Publication, SessionRecord, StateKey, TimerChange, TimerKey, Version, Versioned,
};
use crate::quota::{OverQuota, Stored};
use crate::room::Room;
use crate::tenant::TenantId;

pub mod embedded;
mod log;
pub mod redis;
mod shared_limits;
pub(crate) use redis::mistake_in_url as mistake_in_redis_url;
pub use shared_limits::{Seat, SeatLimits, Seating, Tokens, Whose};

/// How long a commit id is remembered at least, in milliseconds.
pub const COMMIT_ID_KEPT_MS: Millis = 60_000;

/// How many entries a feed holds for a follower that does not take them; beyond that the
/// engine re-reads its log for it.
pub const FEED_ENTRIES_MAX: usize = 4_096;

/// How long a claimed timer stays with whoever claimed it, in milliseconds.
pub const TIMER_LEASE_MS: Millis = 30_000;

/// How long a node's seats count at least after it has said last that it has some, in milliseconds.
pub const SEATS_KEPT_MS: Millis = 180_000;

/// How many timers that were given up are kept; per partition, where there are several.
pub const DEAD_TIMERS_MAX: usize = 1_000;

/// Can a tenant's commits be applied now? What the engine last saw; a call may still find it otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Yes, as far as is known.
    Up,
    /// No: the server that holds the tenant does not answer.
    Down {
        /// Since when.
        since: Instant,
        /// What was seen last.
        why: Arc<str>,
    },
}

/// What became of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Applied. The position is the entry's, or the log's top when there were no effects.
    Committed(Position),
    /// Nothing was applied: this key has changed since it was read.
    Conflict(StateKey),
    /// Nothing was applied: the fired timer was replaced, cancelled or settled meanwhile.
    TimerGone,
    /// Nothing was applied: the tenant's plugins would keep more than they may ([`Commit::most`]).
    OverQuota(OverQuota),
}

/// Why an engine could not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// It was not done and would not be now: try later.
    #[error("the engine is not available: {0}")]
    Unavailable(String),
    /// It may have been done: send the same commit again.
    #[error("the engine did not answer: {0}")]
    Ambiguous(String),
    /// Nothing was applied: the commit writes the session record of a connection that is not registered. It was taken
    /// out, or was lost with the log; then its node registers it again in a moment, and the same commit may be sent again.
    #[error("the connection {0:?} is not registered")]
    Absent(ConnectionId),
    /// An `Add` met a value that is no decimal number; nothing was applied.
    #[error("the value of {0:?} is not a decimal counter")]
    NotACounter(StateKey),
    /// What is stored cannot be read.
    #[error("the engine's data is damaged: {0}")]
    Corrupt(String),
}

/// What a follower is handed.
#[derive(Debug, Clone)]
pub enum Feed {
    /// The next entry.
    Entry(Arc<Entry>),
    /// Something that is not in the log; may be dropped or come twice.
    Ephemeral(Arc<Publication>),
    /// Entries were lost. What follows starts after this position.
    Reset(Position),
}

/// One node's view of one tenant. Dropping it ends the feed.
#[derive(Debug)]
pub struct Follower {
    /// The feed carries everything after this.
    pub position: Position,
    /// In order.
    pub feed: mpsc::Receiver<Feed>,
}

/// A piece of the log.
#[derive(Debug, Clone)]
pub enum Range {
    /// The entries after the position asked for, in order, at most as many as asked for.
    Entries(Vec<Arc<Entry>>),
    /// They are not all there any more, or the position is not one of this log.
    Gone,
}

/// One page of keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyPage {
    /// In order, as stored.
    pub keys: Vec<StateKey>,
    /// Are there more after the last one?
    pub more: bool,
}

/// A timer whose time has come, leased for [`TIMER_LEASE_MS`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueTimer {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub key: TimerKey,
    /// When it was to fire.
    pub due: Millis,
    /// What it was set with.
    pub data: Arc<str>,
    /// Goes into [`Commit::fired`].
    pub token: Arc<str>,
    /// 1 for the first claim.
    pub attempt: u32,
}

/// A connection as presence knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Who.
    pub subject: Arc<str>,
    /// With which connection.
    pub connection: ConnectionId,
}

/// A connection as its node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Which.
    pub connection: ConnectionId,
    /// Whose.
    pub subject: Arc<str>,
    /// Where it speaks.
    pub namespace: Arc<str>,
    /// The secret name of its session.
    pub session: Arc<str>,
    /// Its rooms, `user:` and `everyone` included.
    pub rooms: Vec<Room>,
}

/// A registered connection whose node is gone for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub connection: ConnectionId,
    /// Who it was.
    pub subject: Arc<str>,
    /// Where it spoke.
    pub namespace: Arc<str>,
    /// The name of its session; empty: not known.
    pub session: Arc<str>,
    /// Did its node retire? Then it has seen to telling that the connection ended.
    pub retired: bool,
}

/// What a node tells the others of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeStat {
    /// Unique to this run of the node.
    pub server: String,
    /// Its open WebSockets.
    pub connections: u32,
}

/// A timer that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadTimer {
    /// Which.
    pub key: TimerKey,
    /// When it was to fire.
    pub due: Millis,
    /// What it was set with.
    pub data: Arc<str>,
    /// How often it was claimed.
    pub attempts: u32,
    /// Why it was given up.
    pub why: Arc<str>,
}

/// An artefact that nobody has stored or kept for some time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OldArtifact {
    /// When it was stored or kept last, by the engine's clock, in milliseconds since the Unix epoch.
    pub last: Millis,
    /// Its SHA-256.
    pub digest: String,
}

/// What a gateway needs of its engine. The promises are in the [module's text](self).
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// For the log line and metrics: `embedded` or `redis`.
    fn name(&self) -> &'static str;

    /// Applies a commit.
    async fn commit(&self, tenant: &TenantId, commit: Arc<Commit>) -> Result<Outcome, EngineError>;

    /// Sends something to the followers that the log does not keep.
    async fn publish_ephemeral(&self, tenant: &TenantId, publication: Publication) -> Result<(), EngineError>;

    /// Follows a tenant's log from its present top. One feed per tenant and node is enough.
    async fn follow(&self, tenant: &TenantId) -> Result<Follower, EngineError>;

    /// The entries after a position, at most `limit`; fewer where they are large. None: there are no more.
    async fn range(&self, tenant: &TenantId, after: Position, limit: usize) -> Result<Range, EngineError>;

    /// The latest publications of a room that the log still holds, before `before` if given,
    /// oldest first, at most `limit`.
    async fn history(
        &self,
        tenant: &TenantId,
        room: &Room,
        before: Option<Position>,
        limit: usize,
    ) -> Result<Vec<Arc<Entry>>, EngineError>;

    /// The values of keys, in their order; absent ones are `None`.
    async fn read(&self, tenant: &TenantId, keys: &[StateKey]) -> Result<Vec<Option<Versioned>>, EngineError>;

    /// The keys that start with `prefix`, in order, after `after`, at most `limit`. Both are
    /// stored forms.
    async fn list_keys(
        &self,
        tenant: &TenantId,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<KeyPage, EngineError>;

    /// What a tenant's plugins keep. A value whose time to live has just passed may still count for a moment.
    async fn stored(&self, tenant: &TenantId) -> Result<Stored, EngineError>;

    /// Timers of any tenant that are due, at most `limit`, earliest first. Each is leased: until the
    /// lease ends or [`release_timer`](Engine::release_timer) is called no other claim answers it.
    async fn claim_timers(&self, limit: usize) -> Result<Vec<DueTimer>, EngineError>;

    /// Gives a claimed timer back, to be claimed again `after_ms` from now.
    async fn release_timer(&self, timer: &DueTimer, after_ms: Millis) -> Result<(), EngineError>;

    /// The same for one that was not tried: this claim does not count as an attempt.
    async fn postpone_timer(&self, timer: &DueTimer, after_ms: Millis) -> Result<(), EngineError>;

    /// Gives a claimed timer up: it is removed and kept among the latest [`DEAD_TIMERS_MAX`] dead ones. `false`: it
    /// is not there any more.
    async fn bury_timer(&self, timer: &DueTimer, why: &str) -> Result<bool, EngineError>;

    /// A tenant's timers that were given up, latest first, at most `limit`.
    async fn dead_timers(&self, tenant: &TenantId, limit: usize) -> Result<Vec<DeadTimer>, EngineError>;

    /// A session record that has not expired. Only a connection that is registered, before or with the commit, writes
    /// one: another has gone, and the session may have gone on without it ([`EngineError::Absent`]).
    async fn session(&self, tenant: &TenantId, session: &str) -> Result<Option<SessionRecord>, EngineError>;

    /// Who is in a room, in order, at most `limit`.
    async fn members(&self, tenant: &TenantId, room: &Room, limit: usize) -> Result<Vec<Member>, EngineError>;

    /// How many connections are in a room.
    async fn count(&self, tenant: &TenantId, room: &Room) -> Result<usize, EngineError>;

    /// A connection of whatever node, as the registry has it. Its session's name may be left out.
    async fn connection(&self, tenant: &TenantId, id: &ConnectionId) -> Result<Option<Registration>, EngineError>;

    /// What the registry says of this node's connections of a tenant.
    async fn registered(&self, tenant: &TenantId) -> Result<Vec<ConnectionId>, EngineError>;

    /// Puts the registry right after a loss, with what this node knows up to `at`: `there` are registered with their
    /// rooms, `gone` are not. Nothing is logged. `false`: memberships have been committed since `at`, so that rooms
    /// too many may be registered; done again with what is known then, it is put right.
    async fn register(
        &self,
        tenant: &TenantId,
        at: Position,
        there: &[Registration],
        gone: &[ConnectionId],
    ) -> Result<bool, EngineError>;

    /// Connections that dead nodes left registered, at most `limit`; the same again until they are
    /// [reaped](Engine::reap).
    async fn orphans(&self, limit: usize) -> Result<Vec<Orphan>, EngineError>;

    /// Takes an orphan out, with its [`Effect::Gone`](crate::commit::Effect::Gone) in the log, and sets timers; both
    /// or nothing, and once, however many nodes do it. `false`: it is not there any more.
    async fn reap(&self, orphan: &Orphan, timers: Vec<(TimerKey, TimerChange)>) -> Result<bool, EngineError>;

    /// Takes a seat, if there is one of the user's and one of the tenant's; again is the same as once. `instead_of`: the
    /// seat of this earlier connection of the same user is given back with that, whatever node had it.
    async fn take_seat(
        &self,
        tenant: &TenantId,
        seat: &Seat,
        limits: SeatLimits,
        instead_of: Option<&ConnectionId>,
    ) -> Result<Seating, EngineError>;

    /// Says which seats this node has and gives others of its own back. Those that it has are there afterwards, whatever
    /// the limits are. Those of a node that has not said so for [`SEATS_KEPT_MS`] may be forgotten. Answers how many of
    /// the tenant are taken then, on all nodes; 0 where nothing was said.
    async fn keep_seats(&self, tenant: &TenantId, kept: &[Seat], given_back: &[Seat]) -> Result<u32, EngineError>;

    /// Takes up to `wanted` tokens out of a tenant's bucket of that name, which holds one minute's worth and is refilled
    /// evenly; one that was never used is full. What was taken is not given back.
    async fn take_tokens(
        &self,
        tenant: &TenantId,
        bucket: &str,
        per_minute: NonZeroU32,
        wanted: NonZeroU32,
    ) -> Result<Tokens, EngineError>;

    /// What this node tells the others of itself from now on.
    fn report(&self, stat: NodeStat);

    /// The nodes that live, this one first, as they were a few seconds ago.
    fn nodes(&self) -> Vec<NodeStat>;

    /// The same, asked for now: a node that has been there for less than a beat is among them.
    async fn nodes_now(&self) -> Result<Vec<NodeStat>, EngineError>;

    /// This node serves nobody any more. What it leaves registered is orphaned, of each tenant so many milliseconds from
    /// now; of tenants that are not named as soon as of the first.
    async fn retire(&self, after_ms: &[(TenantId, Millis)]) -> Result<(), EngineError>;

    /// Forgets what a tenant has left besides its values, while the key `guard` has this version: who is registered,
    /// sessions, seats, timers (also those that were given up), and the log: nothing earlier can be resumed from or is
    /// history afterwards. Buckets of tokens may stay for their minute. `false`: the guard has another version; what was
    /// forgotten until then stays so.
    async fn forget(&self, tenant: &TenantId, guard: &StateKey, version: &Version) -> Result<bool, EngineError>;

    /// Stores an artefact under its SHA-256 (64 hexadecimal digits). One that is there is as young as a new one.
    async fn put_artifact(&self, digest: &str, bytes: Bytes) -> Result<(), EngineError>;

    /// An artefact by its SHA-256.
    async fn artifact(&self, digest: &str) -> Result<Option<Bytes>, EngineError>;

    /// Artefacts whose digests begin with a byte and that were neither stored nor [kept](Engine::keep_artifacts) for so
    /// many milliseconds, the longest first, at most `limit`. Some that an earlier version stored may be left out.
    async fn old_artifacts(&self, first: u8, age_ms: Millis, limit: usize) -> Result<Vec<OldArtifact>, EngineError>;

    /// Those of these artefacts that are there are as young as new ones. Their digests begin with the same byte.
    async fn keep_artifacts(&self, digests: &[String]) -> Result<(), EngineError>;

    /// Deletes an artefact, unless it was stored or kept since it was found old. Is it gone?
    async fn delete_artifact(&self, old: &OldArtifact) -> Result<bool, EngineError>;

    /// Is it able to serve now? For readiness.
    async fn ping(&self) -> Result<(), EngineError>;

    /// How it is with a tenant, and how that changes. It ends with the engine.
    fn health(&self, tenant: &TenantId) -> watch::Receiver<Health>;
}
