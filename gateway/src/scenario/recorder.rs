//! An engine that notes what is committed, and can have commits meet a change of what they rest on.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::client::ConnectionId;
use crate::commit::{
    Commit, Entry, Millis, Position, Publication, SessionRecord, StateKey, TimerChange, TimerKey, Version, Versioned,
};
use crate::engine::embedded::EmbeddedEngine;
use crate::engine::{
    DeadTimer, DueTimer, Engine, EngineError, Follower, Health, KeyPage, Member, NodeStat, OldArtifact, Orphan,
    Outcome, Range, Registration, Seat, SeatLimits, Seating, Tokens,
};
use crate::quota::Stored;
use crate::room::Room;
use crate::tenant::TenantId;

type Answer<T> = Result<T, EngineError>;

/// What was done since it was last taken.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    /// In order.
    pub(super) commits: Vec<Arc<Commit>>,
    /// In order.
    pub(super) ephemeral: Vec<Publication>,
    /// Commits that met a change.
    pub(super) conflicts: u32,
}

/// See the module's text.
pub(super) struct Recorder {
    inner: Arc<EmbeddedEngine>,
    recorded: Mutex<Recorded>,
    /// So many commits that rest on something are still to meet a change.
    to_meet: Mutex<u32>,
    /// Is what plugins read not to be had?
    is_away: AtomicBool,
}

impl Recorder {
    pub(super) fn new(inner: Arc<EmbeddedEngine>) -> Arc<Recorder> {
        let (recorded, to_meet, is_away) = Default::default();
        Arc::new(Recorder { inner, recorded, to_meet, is_away })
    }

    /// Takes what was recorded.
    pub(super) fn take(&self) -> Recorded {
        std::mem::take(&mut self.recorded.lock())
    }

    /// So many commits are to meet a change from now on; answers how many were still to meet one.
    pub(super) fn meet(&self, conflicts: u32) -> u32 {
        std::mem::replace(&mut self.to_meet.lock(), conflicts)
    }

    /// From now on, is what plugins read not to be had?
    pub(super) fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Release);
    }

    fn here(&self) -> Answer<()> {
        match self.is_away.load(Ordering::Acquire) {
            true => Err(EngineError::Unavailable("as the scenario has it".into())),
            false => Ok(()),
        }
    }

    /// The key that has changed, if one is to have.
    fn met(&self, commit: &Commit) -> Option<StateKey> {
        let (key, _) = commit.reads.first()?;
        let mut to_meet = self.to_meet.lock();
        *to_meet = to_meet.checked_sub(1)?;
        Some(key.clone())
    }
}

#[async_trait]
impl Engine for Recorder {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    async fn commit(&self, tenant: &TenantId, commit: Arc<Commit>) -> Answer<Outcome> {
        let outcome = match self.met(&commit) {
            Some(key) => Outcome::Conflict(key),
            None => self.inner.commit(tenant, commit.clone()).await?,
        };
        let mut recorded = self.recorded.lock();
        match outcome {
            Outcome::Committed(_) => recorded.commits.push(commit),
            Outcome::Conflict(_) => recorded.conflicts += 1,
            Outcome::TimerGone | Outcome::OverQuota(_) => {}
        }
        Ok(outcome)
    }

    async fn publish_ephemeral(&self, tenant: &TenantId, publication: Publication) -> Answer<()> {
        self.inner.publish_ephemeral(tenant, publication.clone()).await?;
        self.recorded.lock().ephemeral.push(publication);
        Ok(())
    }

    async fn follow(&self, tenant: &TenantId) -> Answer<Follower> {
        self.inner.follow(tenant).await
    }

    async fn range(&self, tenant: &TenantId, after: Position, limit: usize) -> Answer<Range> {
        self.inner.range(tenant, after, limit).await
    }

    async fn history(
        &self,
        tenant: &TenantId,
        room: &Room,
        before: Option<Position>,
        limit: usize,
    ) -> Answer<Vec<Arc<Entry>>> {
        self.inner.history(tenant, room, before, limit).await
    }

    async fn read(&self, tenant: &TenantId, keys: &[StateKey]) -> Answer<Vec<Option<Versioned>>> {
        self.here()?;
        self.inner.read(tenant, keys).await
    }

    async fn list_keys(&self, tenant: &TenantId, prefix: &str, after: Option<&str>, limit: usize) -> Answer<KeyPage> {
        self.here()?;
        self.inner.list_keys(tenant, prefix, after, limit).await
    }

    async fn stored(&self, tenant: &TenantId) -> Answer<Stored> {
        self.inner.stored(tenant).await
    }

    async fn claim_timers(&self, limit: usize) -> Answer<Vec<DueTimer>> {
        self.inner.claim_timers(limit).await
    }

    async fn release_timer(&self, timer: &DueTimer, after_ms: Millis) -> Answer<()> {
        self.inner.release_timer(timer, after_ms).await
    }

    async fn postpone_timer(&self, timer: &DueTimer, after_ms: Millis) -> Answer<()> {
        self.inner.postpone_timer(timer, after_ms).await
    }

    async fn bury_timer(&self, timer: &DueTimer, why: &str) -> Answer<bool> {
        self.inner.bury_timer(timer, why).await
    }

    async fn dead_timers(&self, tenant: &TenantId, limit: usize) -> Answer<Vec<DeadTimer>> {
        self.inner.dead_timers(tenant, limit).await
    }

    async fn session(&self, tenant: &TenantId, session: &str) -> Answer<Option<SessionRecord>> {
        self.inner.session(tenant, session).await
    }

    async fn members(&self, tenant: &TenantId, room: &Room, limit: usize) -> Answer<Vec<Member>> {
        self.here()?;
        self.inner.members(tenant, room, limit).await
    }

    async fn count(&self, tenant: &TenantId, room: &Room) -> Answer<usize> {
        self.here()?;
        self.inner.count(tenant, room).await
    }

    async fn connection(&self, tenant: &TenantId, id: &ConnectionId) -> Answer<Option<Registration>> {
        self.inner.connection(tenant, id).await
    }

    async fn registered(&self, tenant: &TenantId) -> Answer<Vec<ConnectionId>> {
        self.inner.registered(tenant).await
    }

    async fn register(
        &self,
        tenant: &TenantId,
        at: Position,
        there: &[Registration],
        gone: &[ConnectionId],
    ) -> Answer<bool> {
        self.inner.register(tenant, at, there, gone).await
    }

    async fn orphans(&self, limit: usize) -> Answer<Vec<Orphan>> {
        self.inner.orphans(limit).await
    }

    async fn reap(&self, orphan: &Orphan, timers: Vec<(TimerKey, TimerChange)>) -> Answer<bool> {
        self.inner.reap(orphan, timers).await
    }

    async fn take_seat(
        &self,
        tenant: &TenantId,
        seat: &Seat,
        limits: SeatLimits,
        instead_of: Option<&ConnectionId>,
    ) -> Answer<Seating> {
        self.inner.take_seat(tenant, seat, limits, instead_of).await
    }

    async fn keep_seats(&self, tenant: &TenantId, kept: &[Seat], given_back: &[Seat]) -> Answer<u32> {
        self.inner.keep_seats(tenant, kept, given_back).await
    }

    async fn take_tokens(
        &self,
        tenant: &TenantId,
        bucket: &str,
        per_minute: NonZeroU32,
        wanted: NonZeroU32,
    ) -> Answer<Tokens> {
        self.inner.take_tokens(tenant, bucket, per_minute, wanted).await
    }

    fn report(&self, stat: NodeStat) {
        self.inner.report(stat);
    }

    fn nodes(&self) -> Vec<NodeStat> {
        self.inner.nodes()
    }

    async fn nodes_now(&self) -> Answer<Vec<NodeStat>> {
        self.inner.nodes_now().await
    }

    async fn retire(&self, after_ms: &[(TenantId, Millis)]) -> Answer<()> {
        self.inner.retire(after_ms).await
    }

    async fn forget(&self, tenant: &TenantId, guard: &StateKey, version: &Version) -> Answer<bool> {
        self.inner.forget(tenant, guard, version).await
    }

    async fn put_artifact(&self, digest: &str, bytes: Bytes) -> Answer<()> {
        self.inner.put_artifact(digest, bytes).await
    }

    async fn artifact(&self, digest: &str) -> Answer<Option<Bytes>> {
        self.inner.artifact(digest).await
    }

    async fn old_artifacts(&self, first: u8, age_ms: Millis, limit: usize) -> Answer<Vec<OldArtifact>> {
        self.inner.old_artifacts(first, age_ms, limit).await
    }

    async fn keep_artifacts(&self, digests: &[String]) -> Answer<()> {
        self.inner.keep_artifacts(digests).await
    }

    async fn delete_artifact(&self, old: &OldArtifact) -> Answer<bool> {
        self.inner.delete_artifact(old).await
    }

    async fn ping(&self) -> Answer<()> {
        self.inner.ping().await
    }

    fn health(&self, tenant: &TenantId) -> watch::Receiver<Health> {
        self.inner.health(tenant)
    }
}
