//! The embedded engine: one process, its data in one redb file.
//!
//! On disk are state, timers, the ids of durable commits and artefacts. In memory are the logs, who is
//! connected and the sessions: they end with the process, and so every process begins a new epoch.
//!
//! Commits that only tell others something are appended at once, under their tenant's lock. All
//! others go through one thread, [`writer`], which shares a transaction and a disk flush among
//! those that wait. What was acknowledged with [`Durability::Immediate`] survives any death of
//! the process, and of the machine as far as its disk keeps what it has confirmed.
//!
//! Dropping the engine ends its feeds and waits for the thread, which finishes what was asked.

use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio_util::task::TaskTracker;

use self::store::{Due, Opened, Store, engine_error};
use self::stream::Streams;
use self::writer::{BuryJob, CommitJob, ForgetJob, Job, QUEUED_JOBS_MAX, Writer};
use super::log::Limits;
use super::{
    DeadTimer, DueTimer, Engine, EngineError, Follower, Health, KeyPage, Member, NodeStat, OldArtifact, Orphan,
    Outcome, Range, Registration, Seat, SeatLimits, Seating, TIMER_LEASE_MS, Tokens,
};
use crate::client::ConnectionId;
use crate::commit::{
    Commit, Entry, Millis, Position, Publication, SessionRecord, StateKey, TimerChange, TimerKey, Version, Versioned,
};
use crate::quota::Stored;
use crate::room::Room;
use crate::tenant::TenantId;

mod feed;
mod presence;
mod shared_limits;
mod store;
mod stream;
mod writer;

/// The largest artefact, in bytes.
pub const ARTIFACT_BYTES_MAX: usize = 64 << 20;

/// Tells the time, in milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> Millis + Send + Sync>;

/// When is a durable commit acknowledged?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// When it is on disk: nothing acknowledged is ever lost.
    #[default]
    Immediate,
    /// When it is in memory; it is on disk about a second later. A death of the process loses the
    /// last second, but never half a commit.
    Relaxed,
}

/// What may be chosen about an engine.
#[derive(Clone)]
pub struct Options {
    /// When a durable commit is acknowledged.
    pub durability: Durability,
    /// How many entries a tenant's log keeps at most.
    pub log_entries_max: usize,
    /// How much memory a tenant's log takes at most, in bytes.
    pub log_bytes_max: usize,
    /// How long a tenant's log keeps an entry, in milliseconds. Longer than the time within
    /// which clients may resume.
    pub log_age_max_ms: Millis,
    /// How much of the file is cached in memory, in bytes.
    pub cache_bytes: usize,
    /// Tells the time.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            durability: Durability::Immediate,
            log_entries_max: 20_000,
            log_bytes_max: 64 << 20,
            log_age_max_ms: 150_000,
            cache_bytes: 64 << 20,
            clock: Arc::new(system_time),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("durability", &self.durability)
            .field("log_entries_max", &self.log_entries_max)
            .field("log_bytes_max", &self.log_bytes_max)
            .field("log_age_max_ms", &self.log_age_max_ms)
            .field("cache_bytes", &self.cache_bytes)
            .finish_non_exhaustive()
    }
}

fn system_time() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else has the file open.
    #[error("{} is in use by another process; one gateway at a time can use an embedded engine", .0.display())]
    InUse(PathBuf),
    /// The file was written by another version.
    #[error("the data file has format {found}, this version reads format {expected}")]
    Format {
        /// The format's number in the file.
        found: u64,
        /// The only one that is understood.
        expected: u64,
    },
    /// The file cannot be read or written.
    #[error("the data file cannot be opened: {0}")]
    Store(#[source] redb::Error),
    /// The operating system gives no thread.
    #[error("no thread for the data file: {0}")]
    Thread(#[source] std::io::Error),
}

/// A timer that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingTimer {
    /// Which.
    pub key: TimerKey,
    /// When it is to fire.
    pub due: Millis,
    /// When it can be claimed: later than it is due if somebody has claimed it, or has given it back for a while.
    pub claimable: Millis,
}

/// See the [module's text](self).
pub struct EmbeddedEngine {
    shared: Arc<Shared>,
    /// `None` once it is dropped: that ends the writer.
    jobs: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
    /// Those that fill the feeds of slow followers.
    tasks: TaskTracker,
    health: watch::Sender<Health>,
    /// What this node, the only one, says of itself.
    stat: Mutex<NodeStat>,
}

/// What the writer and the callers use.
struct Shared {
    store: Store,
    streams: Streams,
    leases: Mutex<Leases>,
    clock: Clock,
    epoch: u64,
    /// A commit failed at the disk. redb takes no more then: somebody must look.
    failed: AtomicBool,
}

impl EmbeddedEngine {
    /// Opens a data file, or makes it where there is none. After an unclean death this takes
    /// longer: the file is checked.
    pub fn open(path: &Path, options: Options) -> Result<Arc<EmbeddedEngine>, OpenError> {
        let mut builder = redb::Database::builder();
        builder.set_cache_size(options.cache_bytes);
        let db = builder.create(path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(path.to_owned()),
            other => OpenError::Store(other.into()),
        })?;
        EmbeddedEngine::start(db, options)
    }

    /// An engine whose data ends with it.
    pub fn in_memory(options: Options) -> Result<Arc<EmbeddedEngine>, OpenError> {
        let backend = redb::backends::InMemoryBackend::new();
        let db = redb::Database::builder().create_with_backend(backend);
        EmbeddedEngine::start(db.map_err(|error| OpenError::Store(error.into()))?, options)
    }

    fn start(db: redb::Database, options: Options) -> Result<Arc<EmbeddedEngine>, OpenError> {
        let now = (options.clock)();
        let Opened { store, epoch, number, done } = Store::start(db, now)?;
        let limits = Limits {
            entries_max: options.log_entries_max,
            bytes_max: options.log_bytes_max,
            age_max_ms: options.log_age_max_ms,
        };
        let streams = Streams::new(epoch, limits);
        for (tenant, id, epoch) in done {
            // Its place in a log that is gone: before whatever comes now.
            streams.of(&tenant).recall(&id, Position { epoch, seq: 0 }, now);
        }
        let (leases, failed) = (Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { store, streams, leases, clock: options.clock, epoch, failed });
        let (jobs, queue) = sync_channel(QUEUED_JOBS_MAX);
        let writer = Writer { shared: Arc::clone(&shared), durability: options.durability, number, unflushed: false };
        let writer = std::thread::Builder::new()
            .name("embedded-writer".into())
            .spawn(move || writer.run(&queue))
            .map_err(OpenError::Thread)?;
        let (jobs, writer) = (Some(jobs), Some(writer));
        Ok(Arc::new(EmbeddedEngine {
            shared,
            jobs,
            writer,
            tasks: TaskTracker::new(),
            health: watch::channel(Health::Up).0,
            stat: Mutex::default(),
        }))
    }

    fn now(&self) -> Millis {
        (self.shared.clock)()
    }

    /// The timers of all tenants that have not fired, at most `limit`, in the order in which they were set to; each with
    /// when it can be claimed first.
    pub async fn pending_timers(&self, limit: usize) -> Result<Vec<PendingTimer>, EngineError> {
        self.aside(move |shared| {
            let leases = shared.leases.lock();
            let all = shared.store.due(Millis::MAX, limit, |_| false).map_err(engine_error)?;
            let pending = all.into_iter().map(|Due { key, due, token, .. }| {
                let leased = leases.0.get(&token).map_or(0, |lease| lease.until);
                PendingTimer { key, due, claimable: due.max(leased) }
            });
            Ok(pending.collect())
        })
        .await
    }

    /// Asks the writer and waits for its answer.
    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Result<T, EngineError> {
        let (answer, answered) = oneshot::channel();
        let queued = self.jobs.as_ref().map(|jobs| jobs.try_send(job(answer)));
        match queued {
            Some(Ok(())) => {}
            Some(Err(TrySendError::Full(_))) => {
                let why = format!("the disk is too slow: {QUEUED_JOBS_MAX} jobs wait for it, the most that may");
                return Err(EngineError::Unavailable(why));
            }
            Some(Err(TrySendError::Disconnected(_))) | None => {
                return Err(EngineError::Unavailable("the embedded store has stopped".into()));
            }
        }
        answered.await.map_err(|_| EngineError::Ambiguous("the embedded store stopped before it answered".into()))
    }

    /// Runs what reads many pages where it may block.
    async fn aside<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || read(&shared)).await;
        done.unwrap_or_else(|error| Err(EngineError::Unavailable(format!("reading was interrupted: {error}"))))
    }
}

impl Drop for EmbeddedEngine {
    fn drop(&mut self) {
        self.tasks.close();
        self.jobs = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the embedded engine's writer has panicked");
        }
    }
}

impl fmt::Debug for EmbeddedEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedEngine").field("epoch", &self.shared.epoch).finish_non_exhaustive()
    }
}

#[async_trait]
impl Engine for EmbeddedEngine {
    fn name(&self) -> &'static str {
        "embedded"
    }

    async fn commit(&self, tenant: &TenantId, commit: Arc<Commit>) -> Result<Outcome, EngineError> {
        if commit.reads.is_empty() && !commit.is_durable() {
            return self.shared.streams.of(tenant).append(&commit, self.now()).map(Outcome::Committed);
        }
        let tenant = tenant.clone();
        self.ask(|answer| Job::Commit(CommitJob { tenant, commit, answer })).await?
    }

    async fn publish_ephemeral(&self, tenant: &TenantId, publication: Publication) -> Result<(), EngineError> {
        self.shared.streams.of(tenant).ephemeral(publication);
        Ok(())
    }

    async fn follow(&self, tenant: &TenantId) -> Result<Follower, EngineError> {
        let (follower, task) = self.shared.streams.of(tenant).follow();
        self.tasks.spawn(task);
        Ok(follower)
    }

    async fn range(&self, tenant: &TenantId, after: Position, limit: usize) -> Result<Range, EngineError> {
        Ok(self.shared.streams.of(tenant).range(after, limit))
    }

    async fn history(
        &self,
        tenant: &TenantId,
        room: &Room,
        before: Option<Position>,
        limit: usize,
    ) -> Result<Vec<Arc<Entry>>, EngineError> {
        Ok(self.shared.streams.of(tenant).history(room, before, limit))
    }

    async fn read(&self, tenant: &TenantId, keys: &[StateKey]) -> Result<Vec<Option<Versioned>>, EngineError> {
        // Here and not aside: a few lookups in memory take less time than a change of threads.
        self.shared.store.read(tenant, keys, self.now()).map_err(engine_error)
    }

    async fn list_keys(
        &self,
        tenant: &TenantId,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<KeyPage, EngineError> {
        let (tenant, prefix, after) = (tenant.clone(), prefix.to_owned(), after.map(str::to_owned));
        let now = self.now();
        self.aside(move |shared| {
            shared.store.list_keys(&tenant, &prefix, after.as_deref(), limit, now).map_err(engine_error)
        })
        .await
    }

    async fn stored(&self, tenant: &TenantId) -> Result<Stored, EngineError> {
        self.shared.store.stored(tenant).map_err(engine_error)
    }

    async fn claim_timers(&self, limit: usize) -> Result<Vec<DueTimer>, EngineError> {
        let now = self.now();
        self.aside(move |shared| {
            // Locked before it reads: whatever is settled afterwards ends the lease that is
            // given here.
            let mut leases = shared.leases.lock();
            let due = shared.store.due(now, limit, |token| leases.is_leased(token, now)).map_err(engine_error)?;
            due.into_iter().map(|due| claimed(due, &mut leases, now)).collect()
        })
        .await
    }

    async fn release_timer(&self, timer: &DueTimer, after_ms: Millis) -> Result<(), EngineError> {
        let until = self.now().saturating_add(after_ms);
        if let Ok(token) = timer.token.parse() {
            self.shared.leases.lock().release(token, timer.attempt, until);
        }
        Ok(())
    }

    async fn postpone_timer(&self, timer: &DueTimer, after_ms: Millis) -> Result<(), EngineError> {
        let until = self.now().saturating_add(after_ms);
        if let Ok(token) = timer.token.parse() {
            self.shared.leases.lock().postpone(token, timer.attempt, until);
        }
        Ok(())
    }

    async fn bury_timer(&self, timer: &DueTimer, why: &str) -> Result<bool, EngineError> {
        let (timer, why) = (timer.clone(), why.to_owned());
        self.ask(|answer| Job::Bury(Box::new(BuryJob { timer, why, answer }))).await?
    }

    async fn dead_timers(&self, tenant: &TenantId, limit: usize) -> Result<Vec<DeadTimer>, EngineError> {
        let tenant = tenant.clone();
        self.aside(move |shared| shared.store.dead(&tenant, limit).map_err(engine_error)).await
    }

    async fn session(&self, tenant: &TenantId, session: &str) -> Result<Option<SessionRecord>, EngineError> {
        Ok(self.shared.streams.of(tenant).session(session, self.now()))
    }

    async fn members(&self, tenant: &TenantId, room: &Room, limit: usize) -> Result<Vec<Member>, EngineError> {
        Ok(self.shared.streams.of(tenant).members(room, limit))
    }

    async fn count(&self, tenant: &TenantId, room: &Room) -> Result<usize, EngineError> {
        Ok(self.shared.streams.of(tenant).count(room))
    }

    async fn connection(&self, tenant: &TenantId, id: &ConnectionId) -> Result<Option<Registration>, EngineError> {
        Ok(self.shared.streams.of(tenant).connection(id))
    }

    async fn registered(&self, tenant: &TenantId) -> Result<Vec<ConnectionId>, EngineError> {
        Ok(self.shared.streams.of(tenant).connections())
    }

    async fn register(
        &self,
        tenant: &TenantId,
        at: Position,
        there: &[Registration],
        gone: &[ConnectionId],
    ) -> Result<bool, EngineError> {
        Ok(self.shared.streams.of(tenant).register(at, there, gone))
    }

    /// None: the only node's registry ends with it.
    async fn orphans(&self, _limit: usize) -> Result<Vec<Orphan>, EngineError> {
        Ok(Vec::new())
    }

    async fn reap(&self, _orphan: &Orphan, _timers: Vec<(TimerKey, TimerChange)>) -> Result<bool, EngineError> {
        Ok(false)
    }

    async fn take_seat(
        &self,
        tenant: &TenantId,
        seat: &Seat,
        limits: SeatLimits,
        instead_of: Option<&ConnectionId>,
    ) -> Result<Seating, EngineError> {
        Ok(self.shared.streams.of(tenant).shared_limits.lock().take(seat, limits, instead_of))
    }

    async fn keep_seats(&self, tenant: &TenantId, kept: &[Seat], given_back: &[Seat]) -> Result<u32, EngineError> {
        let stream = self.shared.streams.of(tenant);
        let mut counted = stream.shared_limits.lock();
        kept.iter().for_each(|seat| counted.keep(seat));
        given_back.iter().for_each(|seat| counted.give_back(seat));
        Ok(counted.count())
    }

    async fn take_tokens(
        &self,
        tenant: &TenantId,
        bucket: &str,
        per_minute: NonZeroU32,
        wanted: NonZeroU32,
    ) -> Result<Tokens, EngineError> {
        let now = self.now();
        Ok(self.shared.streams.of(tenant).shared_limits.lock().take_tokens(bucket, per_minute, wanted, now))
    }

    fn report(&self, stat: NodeStat) {
        *self.stat.lock() = stat;
    }

    fn nodes(&self) -> Vec<NodeStat> {
        vec![self.stat.lock().clone()]
    }

    async fn nodes_now(&self) -> Result<Vec<NodeStat>, EngineError> {
        Ok(self.nodes())
    }

    async fn retire(&self, _after_ms: &[(TenantId, Millis)]) -> Result<(), EngineError> {
        Ok(())
    }

    async fn forget(&self, tenant: &TenantId, guard: &StateKey, version: &Version) -> Result<bool, EngineError> {
        let (tenant, guard, version) = (tenant.clone(), guard.clone(), version.clone());
        self.ask(|answer| Job::Forget(Box::new(ForgetJob { tenant, guard, version, answer }))).await?
    }

    async fn put_artifact(&self, digest: &str, bytes: Bytes) -> Result<(), EngineError> {
        if bytes.len() > ARTIFACT_BYTES_MAX {
            let why = format!("an artefact has at most {ARTIFACT_BYTES_MAX} bytes, this one has {}", bytes.len());
            return Err(EngineError::Unavailable(why));
        }
        let digest = digest.to_owned();
        self.ask(|answer| Job::Artifact { digest, bytes, answer }).await?
    }

    async fn artifact(&self, digest: &str) -> Result<Option<Bytes>, EngineError> {
        let digest = digest.to_owned();
        self.aside(move |shared| shared.store.artifact(&digest).map_err(engine_error)).await
    }

    async fn old_artifacts(&self, first: u8, age_ms: Millis, limit: usize) -> Result<Vec<OldArtifact>, EngineError> {
        let before = self.now().saturating_sub(age_ms);
        self.aside(move |shared| shared.store.old_artifacts(first, before, limit).map_err(engine_error)).await
    }

    async fn keep_artifacts(&self, digests: &[String]) -> Result<(), EngineError> {
        let (digests, now) = (digests.to_vec(), self.now());
        self.aside(move |shared| shared.store.keep_artifacts(&digests, now).map_err(engine_error)).await
    }

    async fn delete_artifact(&self, old: &OldArtifact) -> Result<bool, EngineError> {
        let old = old.clone();
        self.aside(move |shared| shared.store.delete_artifact(&old).map_err(engine_error)).await
    }

    async fn ping(&self) -> Result<(), EngineError> {
        if self.writer.as_ref().is_none_or(JoinHandle::is_finished) {
            return Err(EngineError::Unavailable("the embedded store has stopped".into()));
        }
        if self.shared.failed.load(Ordering::Relaxed) {
            return Err(EngineError::Unavailable("the disk has failed; restart when it is well again".into()));
        }
        self.shared.store.view().map_err(engine_error).map(drop)
    }

    /// A store in this process is not away: a disk that fails is told with each call.
    fn health(&self, _tenant: &TenantId) -> watch::Receiver<Health> {
        self.health.subscribe()
    }
}

fn claimed(due: Due, leases: &mut Leases, now: Millis) -> Result<DueTimer, EngineError> {
    let tenant = TenantId::parse(&due.tenant).map_err(|error| EngineError::Corrupt(error.to_string()))?;
    let attempt = leases.lease(due.token, now);
    Ok(DueTimer { tenant, key: due.key, due: due.due, data: due.data, token: due.token.to_string().into(), attempt })
}

/// Which timers are claimed, by token. A timer that is settled has none, so there are at most as
/// many as timers.
#[derive(Debug, Default)]
struct Leases(HashMap<u64, Lease>);

#[derive(Debug)]
struct Lease {
    until: Millis,
    attempt: u32,
}

impl Leases {
    fn is_leased(&self, token: u64, now: Millis) -> bool {
        self.0.get(&token).is_some_and(|lease| lease.until > now)
    }

    /// Answers how many times the timer has been claimed now.
    fn lease(&mut self, token: u64, now: Millis) -> u32 {
        let lease = self.0.entry(token).or_insert(Lease { until: now, attempt: 0 });
        lease.until = now.saturating_add(TIMER_LEASE_MS);
        lease.attempt = lease.attempt.saturating_add(1);
        lease.attempt
    }

    /// Only whoever made the latest claim can give it back.
    fn release(&mut self, token: u64, attempt: u32, until: Millis) {
        if let Some(lease) = self.0.get_mut(&token)
            && lease.attempt == attempt
        {
            lease.until = until;
        }
    }

    /// As [`release`](Leases::release), and as if the claim had not been.
    fn postpone(&mut self, token: u64, attempt: u32, until: Millis) {
        if let Some(lease) = self.0.get_mut(&token)
            && lease.attempt == attempt
        {
            lease.until = until;
            lease.attempt = lease.attempt.saturating_sub(1);
        }
    }

    fn settle(&mut self, tokens: &[u64]) {
        for token in tokens {
            self.0.remove(token);
        }
    }
}

#[cfg(test)]
mod tests;
