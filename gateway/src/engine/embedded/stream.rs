//! What the embedded engine holds in memory of one tenant, under one lock: its log, who follows
//! it, who is where, the sessions, and the ids of the commits that were done. What its limits count has a lock of its own.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use xxhash_rust::xxh3::xxh3_128;

use super::feed::Feeder;
use super::presence::Presence;
use super::shared_limits::SharedLimits;
use crate::client::ConnectionId;
use crate::commit::{Commit, CommitId, Effect, Entry, Millis, Position, Publication, SessionRecord};
use crate::engine::log::{Limits, Log};
use crate::engine::{COMMIT_ID_KEPT_MS, EngineError, Follower, Member, Range, Registration};
use crate::room::Room;
use crate::tenant::TenantId;

/// How many commit ids a tenant's engine remembers in one generation. A tenant that commits more
/// within [`COMMIT_ID_KEPT_MS`] (16,000 a second) is remembered for a shorter time.
const COMMIT_IDS_MAX: usize = 1_000_000;

/// All tenants' streams. A tenant has one from its first use to the end of the process: what
/// would begin anew would need a new epoch.
#[derive(Debug)]
pub(super) struct Streams {
    epoch: u64,
    limits: Limits,
    of: RwLock<HashMap<TenantId, Arc<Stream>>>,
}

impl Streams {
    pub(super) fn new(epoch: u64, limits: Limits) -> Streams {
        Streams { epoch, limits, of: RwLock::default() }
    }

    pub(super) fn of(&self, tenant: &TenantId) -> Arc<Stream> {
        if let Some(stream) = self.of.read().get(tenant) {
            return Arc::clone(stream);
        }
        let fresh = || Arc::new(Stream::new(Log::new(self.epoch, self.limits)));
        Arc::clone(self.of.write().entry_ref(tenant).or_insert_with(fresh))
    }

    /// Forgets what is too old.
    pub(super) fn sweep(&self, now: Millis) {
        let streams: Vec<_> = self.of.read().values().cloned().collect();
        for stream in streams {
            stream.sweep(now);
        }
    }
}

/// One tenant's.
#[derive(Debug)]
pub(super) struct Stream {
    inner: Mutex<Inner>,
    /// What its limits count.
    pub(super) shared_limits: Mutex<SharedLimits>,
}

#[derive(Debug)]
struct Inner {
    log: Log,
    feeders: Vec<Feeder>,
    feeders_ever: u64,
    presence: Presence,
    /// Where memberships changed last.
    moved: Position,
    sessions: HashMap<Arc<str>, Session>,
    done: Done,
}

#[derive(Debug)]
struct Session {
    record: SessionRecord,
    expires: Millis,
}

impl Stream {
    fn new(log: Log) -> Stream {
        let inner = Inner {
            moved: log.top(),
            log,
            feeders: Vec::new(),
            feeders_ever: 0,
            presence: Presence::default(),
            sessions: HashMap::new(),
            done: Done::default(),
        };
        Stream { inner: Mutex::new(inner), shared_limits: Mutex::default() }
    }

    /// Makes a commit known: to the log, its followers, the registry and the sessions. Answers its
    /// position; one that was done before, is not done again.
    ///
    /// # Errors
    /// See [`check`](Stream::check).
    pub(super) fn append(&self, commit: &Commit, now: Millis) -> Result<Position, EngineError> {
        let inner = &mut *self.inner.lock();
        if let Some(position) = inner.done.position(&commit.id) {
            return Ok(position);
        }
        inner.check(commit)?;
        Ok(inner.append(commit, now))
    }

    /// The same for what is on disk already, and so not refused any more.
    pub(super) fn append_checked(&self, commit: &Commit, now: Millis) -> Position {
        let inner = &mut *self.inner.lock();
        inner.done.position(&commit.id).unwrap_or_else(|| inner.append(commit, now))
    }

    /// May the commit write its session's record?
    ///
    /// # Errors
    /// [`EngineError::Absent`] when it is the record of a connection that is not there and does not come with it.
    pub(super) fn check(&self, commit: &Commit) -> Result<(), EngineError> {
        self.inner.lock().check(commit)
    }

    /// Where a commit that was done is.
    pub(super) fn done(&self, id: &CommitId) -> Option<Position> {
        self.inner.lock().done.position(id)
    }

    /// Remembers a commit of an earlier process.
    pub(super) fn recall(&self, id: &CommitId, position: Position, now: Millis) {
        self.inner.lock().done.insert(id, position, now);
    }

    pub(super) fn ephemeral(&self, publication: Publication) {
        let publication = Arc::new(publication);
        for feeder in &self.inner.lock().feeders {
            feeder.ephemeral(&publication);
        }
    }

    /// Starts to follow. The task must run as long as the feed is read.
    pub(super) fn follow(self: &Arc<Self>) -> (Follower, impl Future<Output = ()> + Send + use<>) {
        let mut inner = self.inner.lock();
        inner.feeders_ever += 1;
        let position = inner.log.top();
        let (feeder, feed) = Feeder::new(inner.feeders_ever, position);
        let task = feeder.task(Arc::downgrade(self));
        inner.feeders.push(feeder);
        (Follower { position, feed }, task)
    }

    /// Goes on filling a feed that was full; false when nobody reads it any more.
    pub(super) fn refill(&self, id: u64) -> bool {
        let inner = &mut *self.inner.lock();
        let feeder = inner.feeders.iter_mut().find(|feeder| feeder.id == id);
        feeder.is_some_and(|feeder| feeder.advance(&inner.log))
    }

    pub(super) fn unfollow(&self, id: u64) {
        self.inner.lock().feeders.retain(|feeder| feeder.id != id);
    }

    pub(super) fn range(&self, after: Position, limit: usize) -> Range {
        self.inner.lock().log.range(after, limit)
    }

    pub(super) fn history(&self, room: &Room, before: Option<Position>, limit: usize) -> Vec<Arc<Entry>> {
        self.inner.lock().log.history(room, before, limit)
    }

    pub(super) fn session(&self, session: &str, now: Millis) -> Option<SessionRecord> {
        let inner = self.inner.lock();
        inner.sessions.get(session).filter(|session| session.expires > now).map(|session| session.record.clone())
    }

    pub(super) fn members(&self, room: &Room, limit: usize) -> Vec<Member> {
        self.inner.lock().presence.members(room, limit)
    }

    pub(super) fn count(&self, room: &Room) -> usize {
        self.inner.lock().presence.count(room)
    }

    pub(super) fn connection(&self, id: &ConnectionId) -> Option<Registration> {
        self.inner.lock().presence.connection(id)
    }

    pub(super) fn connections(&self) -> Vec<ConnectionId> {
        self.inner.lock().presence.connections()
    }

    /// See [`Engine::register`](crate::engine::Engine::register).
    pub(super) fn register(&self, at: Position, there: &[Registration], gone: &[ConnectionId]) -> bool {
        let inner = &mut *self.inner.lock();
        let exact = inner.moved <= at;
        inner.presence.register(there, gone, exact);
        exact
    }

    /// Nothing of what was is known any more. Positions go on where they were.
    pub(super) fn forget(&self) {
        let inner = &mut *self.inner.lock();
        inner.log.clear();
        inner.moved = inner.log.top();
        inner.presence = Presence::default();
        inner.sessions.clear();
        *self.shared_limits.lock() = SharedLimits::default();
    }

    fn sweep(&self, now: Millis) {
        let mut inner = self.inner.lock();
        inner.log.trim(now);
        inner.sessions.retain(|_, session| session.expires > now);
        inner.done.forget(now);
    }
}

impl Inner {
    fn check(&self, commit: &Commit) -> Result<(), EngineError> {
        let Some(record) = &commit.session else { return Ok(()) };
        let arrives = |effect: &Effect| matches!(effect, Effect::Arrive { id, .. } if *id == record.connection);
        if self.presence.has(&record.connection) || commit.effects.iter().any(arrives) {
            return Ok(());
        }
        Err(EngineError::Absent(record.connection.clone()))
    }

    fn append(&mut self, commit: &Commit, now: Millis) -> Position {
        // One that went while the commit was on its way to the disk has no say in the session any more.
        let record = commit.session.as_ref().filter(|_| self.check(commit).is_ok());
        if !commit.effects.is_empty() {
            for effect in &commit.effects {
                self.presence.apply(effect);
            }
            let presence = self.presence.take_changes();
            self.log.push(now, commit.effects.clone(), presence);
            self.feeders.retain_mut(|feeder| feeder.offer(&self.log));
        }
        if let Some(record) = record {
            let session = Session { record: record.clone(), expires: now.saturating_add(record.ttl_ms) };
            self.sessions.insert(Arc::clone(&record.session), session);
        }
        let position = self.log.top();
        if commit.effects.iter().any(Effect::moves) {
            self.moved = position;
        }
        self.done.insert(&commit.id, position, now);
        position
    }
}

/// The ids of done commits, by hash, in two generations: an id is remembered for one to two times
/// [`COMMIT_ID_KEPT_MS`], and forgetting costs nothing per id.
#[derive(Debug, Default)]
struct Done {
    young: HashMap<u128, Position>,
    old: HashMap<u128, Position>,
    since: Millis,
}

impl Done {
    fn position(&self, id: &CommitId) -> Option<Position> {
        let id = xxh3_128(id.as_str().as_bytes());
        self.young.get(&id).or_else(|| self.old.get(&id)).copied()
    }

    fn insert(&mut self, id: &CommitId, position: Position, now: Millis) {
        self.forget(now);
        self.young.insert(xxh3_128(id.as_str().as_bytes()), position);
    }

    fn forget(&mut self, now: Millis) {
        if now.saturating_sub(self.since) >= COMMIT_ID_KEPT_MS || self.young.len() >= COMMIT_IDS_MAX {
            self.old = std::mem::take(&mut self.young);
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_id_is_remembered_for_its_time_and_not_for_ever() {
        let mut done = Done::default();
        let (id, position) = (CommitId::from("a"), Position { epoch: 1, seq: 1 });
        let start = 1_000_000;
        done.insert(&id, position, start);
        for later in (0..=COMMIT_ID_KEPT_MS).step_by(1_000) {
            done.insert(&CommitId::random(), position, start + later);
            assert_eq!(done.position(&id), Some(position), "{later} ms later");
        }
        done.forget(start + 2 * COMMIT_ID_KEPT_MS);
        assert_eq!(done.position(&id), None);
        assert!(done.young.is_empty());
    }
}
