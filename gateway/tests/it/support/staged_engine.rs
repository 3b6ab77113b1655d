//! A real engine with a staged fault: reads take their time, or are not answered, or are not checked, memberships
//! that were committed are lost, or it is away for a while; or what a node sees of the catalog is not as it is.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use postern::client::ConnectionId;
use postern::commit::{
    Commit, Effect, Entry, Millis, Position, Publication, SessionRecord, StateKey, TimerChange, TimerKey, Version,
    Versioned,
};
use postern::engine::{
    DeadTimer, DueTimer, Engine, EngineError, FEED_ENTRIES_MAX, Feed, Follower, Health, KeyPage, Member, NodeStat,
    OldArtifact, Orphan, Outcome, Range, Registration, Seat, SeatLimits, Seating, Tokens,
};
use postern::quota::Stored;
use postern::room::Room;
use postern::tenant::TenantId;
use tokio::sync::{mpsc, watch};

type Answer<T> = Result<T, EngineError>;

/// How an answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Answers {
    /// As it is.
    #[default]
    Well,
    /// Not until it is well again.
    Silent,
    /// That the engine is not available.
    Away,
}

/// What is wrong with one node's view now.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Reads of the catalog's records.
    pub(crate) records: watch::Sender<Answers>,
    /// What the looks through the whole catalog read: which tenants there are, and how many changes there were.
    pub(crate) sweeps: watch::Sender<Answers>,
    /// Components by their digest.
    pub(crate) components: watch::Sender<Answers>,
    /// Reads of what plugins have stored.
    pub(crate) state: watch::Sender<Answers>,
    /// Do the catalog's changes come as a loss of its log?
    pub(crate) deaf: AtomicBool,
    /// Is the catalog seen without any record?
    pub(crate) empty: AtomicBool,
    /// How often somebody asked for a component.
    pub(crate) components_asked: AtomicUsize,
    /// How often somebody asked how many changes there were: a look through the catalog begins with it.
    pub(crate) sweeps_asked: AtomicUsize,
}

impl Faults {
    async fn read(&self, tenant: &TenantId, keys: &[StateKey]) -> Answer<bool> {
        if *tenant != TenantId::catalog() {
            return answered(&self.state).await.map(|()| false);
        }
        if keys.iter().any(|key| key.as_str() == CHANGES) {
            self.sweeps_asked.fetch_add(1, Ordering::AcqRel);
            answered(&self.sweeps).await?;
        } else {
            answered(&self.records).await?;
        }
        Ok(self.empty.load(Ordering::Acquire))
    }

    async fn listed(&self, tenant: &TenantId, prefix: &str) -> Answer<bool> {
        if *tenant != TenantId::catalog() {
            return Ok(false);
        }
        answered(if prefix == TENANTS { &self.sweeps } else { &self.records }).await?;
        Ok(self.empty.load(Ordering::Acquire))
    }
}

/// How many changes of the catalog there were.
const CHANGES: &str = "/count/changes";
/// Where its tenants are.
const TENANTS: &str = "/tenant/";

async fn answered(how: &watch::Sender<Answers>) -> Answer<()> {
    let mut how = how.subscribe();
    let how = how.wait_for(|how| *how != Answers::Silent).await.map(|how| *how);
    match how {
        Ok(Answers::Away) => Err(EngineError::Unavailable("as the test has it".into())),
        _ => Ok(()),
    }
}

pub(crate) struct StagedEngine {
    inner: Arc<dyn Engine>,
    /// `None`: reads are not answered at all.
    delay: Option<Duration>,
    /// Are commits checked against what they read?
    reads_checked: bool,
    /// Do entries with an arrival or a join come as a loss?
    loses: Arc<AtomicBool>,
    /// Are reads and the giving back of timers refused now?
    is_away: Arc<AtomicBool>,
    /// Of the timers that were claimed, in order.
    attempts: Arc<Mutex<Vec<u32>>>,
    faults: Arc<Faults>,
}

impl StagedEngine {
    fn new(inner: Arc<dyn Engine>, delay: Option<Duration>) -> StagedEngine {
        let (loses, is_away, attempts, faults) = Default::default();
        StagedEngine { inner, delay, reads_checked: true, loses, is_away, attempts, faults }
    }

    /// What one node sees of the catalog and of components is as `faults` say.
    pub(crate) fn faulty(inner: Arc<dyn Engine>, faults: Arc<Faults>) -> Arc<StagedEngine> {
        Arc::new(StagedEngine { faults, ..StagedEngine::new(inner, Some(Duration::ZERO)) })
    }

    pub(crate) fn slow(inner: Arc<dyn Engine>, delay: Duration) -> Arc<StagedEngine> {
        Arc::new(StagedEngine::new(inner, Some(delay)))
    }

    pub(crate) fn away(inner: Arc<dyn Engine>) -> Arc<StagedEngine> {
        Arc::new(StagedEngine::new(inner, None))
    }

    /// Commits as if nothing had been read.
    pub(crate) fn unchecked(inner: Arc<dyn Engine>) -> Arc<StagedEngine> {
        Arc::new(StagedEngine { reads_checked: false, ..StagedEngine::new(inner, Some(Duration::ZERO)) })
    }

    /// While the switch is on, loses arrivals and joins after it has acknowledged them, as a server does that is
    /// replaced by one that lags behind.
    pub(crate) fn losing(inner: Arc<dyn Engine>, loses: Arc<AtomicBool>) -> Arc<StagedEngine> {
        Arc::new(StagedEngine { loses, ..StagedEngine::new(inner, Some(Duration::ZERO)) })
    }

    /// While the switch is on, reads nothing and takes no timer back.
    pub(crate) fn leaving(inner: Arc<dyn Engine>, is_away: Arc<AtomicBool>) -> Arc<StagedEngine> {
        Arc::new(StagedEngine { is_away, ..StagedEngine::new(inner, Some(Duration::ZERO)) })
    }

    /// Which attempts the claims of timers were.
    pub(crate) fn attempts(&self) -> Vec<u32> {
        self.attempts.lock().clone()
    }

    fn here(&self) -> Answer<()> {
        match self.is_away.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(EngineError::Unavailable("as the test has it".into())),
        }
    }
}

fn is_lost(entry: &Entry) -> bool {
    entry.effects.iter().any(|effect| matches!(effect, Effect::Arrive { .. } | Effect::Join { .. }))
}

#[async_trait::async_trait]
impl Engine for StagedEngine {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    async fn commit(&self, tenant: &TenantId, commit: Arc<Commit>) -> Answer<Outcome> {
        if self.reads_checked {
            return self.inner.commit(tenant, commit).await;
        }
        let unchecked = Commit { reads: Vec::new(), ..Commit::clone(&commit) };
        self.inner.commit(tenant, Arc::new(unchecked)).await
    }
    async fn publish_ephemeral(&self, tenant: &TenantId, publication: Publication) -> Answer<()> {
        self.inner.publish_ephemeral(tenant, publication).await
    }
    async fn stored(&self, tenant: &TenantId) -> Answer<Stored> {
        self.inner.stored(tenant).await
    }
    async fn follow(&self, tenant: &TenantId) -> Answer<Follower> {
        let Follower { position, feed: mut whole } = self.inner.follow(tenant).await?;
        let (sender, feed) = mpsc::channel(FEED_ENTRIES_MAX);
        let (loses, faults) = (self.loses.clone(), self.faults.clone());
        let is_catalog = *tenant == TenantId::catalog();
        #[expect(clippy::disallowed_methods, reason = "it ends with the feed that it reads")]
        tokio::task::spawn(async move {
            while let Some(item) = whole.recv().await {
                let item = match item {
                    Feed::Entry(entry) if loses.load(Ordering::Acquire) && is_lost(&entry) => {
                        Feed::Reset(entry.position)
                    }
                    Feed::Entry(entry) if is_catalog && faults.deaf.load(Ordering::Acquire) => {
                        Feed::Reset(entry.position)
                    }
                    item => item,
                };
                if sender.send(item).await.is_err() {
                    return;
                }
            }
        });
        Ok(Follower { position, feed })
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
        let Some(delay) = self.delay else {
            return Err(EngineError::Unavailable("as the test has it".into()));
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if self.faults.read(tenant, keys).await? {
            return Ok(vec![None; keys.len()]);
        }
        self.inner.read(tenant, keys).await
    }
    async fn list_keys(&self, tenant: &TenantId, prefix: &str, after: Option<&str>, limit: usize) -> Answer<KeyPage> {
        if self.faults.listed(tenant, prefix).await? {
            return Ok(KeyPage::default());
        }
        self.inner.list_keys(tenant, prefix, after, limit).await
    }
    async fn claim_timers(&self, limit: usize) -> Answer<Vec<DueTimer>> {
        let claimed = self.inner.claim_timers(limit).await?;
        self.attempts.lock().extend(claimed.iter().map(|timer| timer.attempt));
        Ok(claimed)
    }
    async fn release_timer(&self, timer: &DueTimer, after_ms: Millis) -> Answer<()> {
        self.inner.release_timer(timer, after_ms).await
    }
    async fn postpone_timer(&self, timer: &DueTimer, after_ms: Millis) -> Answer<()> {
        self.here()?;
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
        self.inner.members(tenant, room, limit).await
    }
    async fn count(&self, tenant: &TenantId, room: &Room) -> Answer<usize> {
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
        self.here()?;
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
        self.faults.components_asked.fetch_add(1, Ordering::AcqRel);
        answered(&self.faults.components).await?;
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
