//! What one input reads and does, over all the plugins that see it.

use std::collections::HashMap;
use std::collections::btree_map::{BTreeMap, Entry};
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::failure::Hook;
use super::host::Rejection;
use super::usage::Used;
use crate::client::ConnectionId;
use crate::commit::{Commit, CommitId, Effect, Millis, Publication, StateKey, TimerChange, TimerKey, Versioned, Write};
use crate::engine::{Engine, EngineError};
use crate::event::Payload;
use crate::room::Room;
use crate::tenant::{CallLimits, TenantId};

/// How many connections of a room `presence.users` looks at.
pub const PRESENCE_CONNECTIONS_MAX: usize = 10_000;

/// How many rooms one input may list the users of.
pub const PRESENCE_ROOMS_MAX: usize = 16;

/// Which input, and which attempt at it.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// The same for every attempt at one input; becomes the commit's id.
    pub id: CommitId,
    /// 1 for the first.
    pub attempt: u32,
    /// When the gateway accepted the input.
    pub now: Millis,
}

/// What one input reads and does: shared by all plugins that see the input, so that they share one
/// overlay, one commit and one answer.
///
/// After a call that did not end well only its reads are left: whatever the outcome rests on can be
/// validated, and nothing happens.
pub struct Transaction {
    /// With a call while it runs; gone for good when that call is abandoned.
    work: Option<Box<Work>>,
    invocation: Invocation,
}

/// What a transaction comes to.
#[derive(Debug)]
pub struct Parts {
    /// To be committed. Its id is the invocation's.
    pub commit: Commit,
    /// What the sender is answered.
    pub reply: Option<Payload>,
    /// To be published once the commit has succeeded.
    pub ephemeral: Vec<Publication>,
    /// Who wrote state last, if anybody did.
    pub state_by: Option<Author>,
    /// Who set timers last, if anybody did.
    pub timers_by: Option<Author>,
}

/// The call that did something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// Of which plugin, by its name within the tenant.
    pub plugin: Arc<str>,
    /// What was called.
    pub hook: Hook,
}

impl Transaction {
    /// One that has read and done nothing.
    pub fn new(
        engine: Arc<dyn Engine>,
        tenant: TenantId,
        limits: Arc<CallLimits>,
        invocation: Invocation,
    ) -> Transaction {
        let work = Some(Box::new(Work::new(Some(engine), tenant, limits, invocation.clone())));
        Transaction { work, invocation }
    }

    /// One for a call without capabilities.
    pub(super) fn without_engine(tenant: TenantId, limits: Arc<CallLimits>) -> Transaction {
        let invocation = Invocation { id: CommitId::random(), attempt: 1, now: 0 };
        let work = Some(Box::new(Work::new(None, tenant, limits, invocation.clone())));
        Transaction { work, invocation }
    }

    /// Which input this is.
    pub fn invocation(&self) -> &Invocation {
        &self.invocation
    }

    /// Reads for the gateway itself: the outcome rests on it, and it counts against no limit of the tenant.
    pub(in crate::decision) async fn read(&mut self, keys: &[StateKey]) -> Result<Vec<Option<Bytes>>, EngineError> {
        let Some(work) = self.work.as_mut() else { return Err(EngineError::Unavailable("the call is over".into())) };
        let Some(engine) = work.engine.clone() else { return Err(EngineError::Unavailable("no engine".into())) };
        let found = engine.read(&work.tenant, keys).await?;
        let values = found.iter().map(|found| found.as_ref().map(|found| found.value.clone())).collect();
        work.reads.extend(keys.iter().cloned().zip(found));
        Ok(values)
    }

    pub(super) fn take(&mut self) -> Option<Box<Work>> {
        self.work.take()
    }

    pub(super) fn put_back(&mut self, work: Box<Work>) {
        self.work = Some(work);
    }

    pub(super) fn peek(&self) -> Option<&Work> {
        self.work.as_deref()
    }

    /// What it comes to. After a call that did not end well that is the reads alone; after a call
    /// that was dropped half-way it is nothing at all.
    pub fn into_parts(self) -> Parts {
        let mut commit = Commit::new(self.invocation.id);
        let Some(work) = self.work else {
            return Parts { commit, reply: None, ephemeral: Vec::new(), state_by: None, timers_by: None };
        };
        commit.reads = work.reads.into_iter().map(|(key, read)| (key, read.map(|read| read.version))).collect();
        commit.writes = work.writes.into_iter().collect();
        commit.timers = work.timers.into_iter().collect();
        commit.effects = work.effects;
        let Work { reply, ephemeral, state_by, timers_by, .. } = *work;
        Parts { commit, reply, ephemeral, state_by, timers_by }
    }
}

/// The inside of a transaction: travels into the sandbox's store and out again.
pub(super) struct Work {
    engine: Option<Arc<dyn Engine>>,
    pub(super) tenant: TenantId,
    pub(super) limits: Arc<CallLimits>,
    pub(super) invocation: Invocation,
    /// What was read, once per key: later reads answer the same.
    reads: BTreeMap<StateKey, Option<Versioned>>,
    writes: BTreeMap<StateKey, Write>,
    timers: BTreeMap<TimerKey, TimerChange>,
    effects: Vec<Effect>,
    ephemeral: Vec<Publication>,
    reply: Option<Payload>,
    state_by: Option<Author>,
    timers_by: Option<Author>,
    users: HashMap<Room, Arc<[Arc<str>]>>,
    keys: usize,
    output_bytes: usize,
    publications: usize,
    memberships: usize,
    /// What the running call used.
    pub(super) used: Used,
    failed: bool,
    /// The first thing that the engine could not answer.
    pub(super) engine_error: Option<String>,
    /// Since when the call waits for the engine, if it does.
    pub(super) waiting_since: Option<Instant>,
}

/// The answer to one that has used up a limit.
pub(super) fn quota(what: &str, setting: &str, limit: impl std::fmt::Display) -> Rejection {
    Rejection::Quota(format!("{what}: call_limits.{setting} = {limit}"))
}

impl Work {
    fn new(engine: Option<Arc<dyn Engine>>, tenant: TenantId, limits: Arc<CallLimits>, invocation: Invocation) -> Work {
        Work {
            engine,
            tenant,
            limits,
            invocation,
            reads: BTreeMap::new(),
            writes: BTreeMap::new(),
            timers: BTreeMap::new(),
            effects: Vec::new(),
            ephemeral: Vec::new(),
            reply: None,
            state_by: None,
            timers_by: None,
            users: HashMap::new(),
            keys: 0,
            output_bytes: 0,
            publications: 0,
            memberships: 0,
            used: Used::default(),
            failed: false,
            engine_error: None,
            waiting_since: None,
        }
    }

    /// In an instance that idles.
    pub(super) fn nobody(tenant: TenantId, limits: Arc<CallLimits>) -> Work {
        let invocation = Invocation { id: CommitId::from(""), attempt: 0, now: 0 };
        Work::new(None, tenant, limits, invocation)
    }

    /// A call did not end well: of everything only the reads stay, from now on.
    pub(super) fn discard(&mut self) {
        self.failed = true;
        self.writes.clear();
        self.timers.clear();
        self.effects.clear();
        self.ephemeral.clear();
        self.reply = None;
    }

    /// What a call that ended well leaves of a transaction in which another one had not.
    pub(super) fn settle(&mut self) {
        if self.failed {
            self.discard();
        }
    }

    /// A call has ended: takes what it used, and notes whose doing what is left is.
    pub(super) fn take_used(&mut self, plugin: &Arc<str>, hook: Hook) -> Used {
        let used = std::mem::take(&mut self.used);
        let author = || Some(Author { plugin: plugin.clone(), hook });
        if used.keys_written > 0 {
            self.state_by = author();
        }
        if used.timers_set > 0 {
            self.timers_by = author();
        }
        used
    }

    fn engine(&self) -> Result<(Arc<dyn Engine>, TenantId), Rejection> {
        Ok((self.engine.clone().ok_or(Rejection::Denied)?, self.tenant.clone()))
    }

    /// Waits for the engine, and notes since when.
    async fn wait<T>(&mut self, answer: impl Future<Output = Result<T, EngineError>> + Send) -> Result<T, Rejection> {
        self.waiting_since = Some(Instant::now());
        let answer = answer.await;
        self.waiting_since = None;
        answer.map_err(|error| self.unavailable(&error))
    }

    fn unavailable(&mut self, error: &EngineError) -> Rejection {
        self.engine_error.get_or_insert_with(|| error.to_string());
        Rejection::Unavailable
    }

    /// Counts bytes that a call hands over.
    pub(super) fn hand_over(&mut self, bytes: usize) -> Result<(), Rejection> {
        let limit = self.limits.output_bytes;
        let total = self.output_bytes.saturating_add(bytes);
        if total > limit {
            let what = format!("a call hands over at most {limit} bytes, with this it would be {total}");
            return Err(quota(&what, "output_bytes", limit));
        }
        self.output_bytes = total;
        self.used.output_bytes += bytes as u64;
        Ok(())
    }

    fn touch(&mut self, key: &StateKey) -> Result<(), Rejection> {
        if self.reads.contains_key(key) || self.writes.contains_key(key) {
            return Ok(());
        }
        let limit = self.limits.state_keys;
        if self.keys >= limit {
            return Err(quota(&format!("a call reads and writes at most {limit} keys"), "state_keys", limit));
        }
        self.keys += 1;
        Ok(())
    }

    /// The values of keys, with what was written before; one round trip for all that is not known.
    pub(super) async fn get(&mut self, keys: &[StateKey]) -> Result<Vec<Option<Bytes>>, Rejection> {
        let mut unknown: Vec<StateKey> = Vec::new();
        for key in keys {
            let written = matches!(self.writes.get(key), Some(Write::Put { .. } | Write::Delete));
            if !written && !self.reads.contains_key(key) && !unknown.contains(key) {
                self.touch(key)?;
                unknown.push(key.clone());
            }
        }
        if !unknown.is_empty() {
            let (engine, tenant) = self.engine()?;
            let values = self.wait(engine.read(&tenant, &unknown)).await?;
            if values.len() != unknown.len() {
                return Err(self.unavailable(&EngineError::Corrupt("an answer of the wrong length".into())));
            }
            self.used.keys_read += values.len() as u64;
            self.used.read_bytes += values.iter().flatten().map(|read| read.value.len() as u64).sum::<u64>();
            self.reads.extend(unknown.into_iter().zip(values));
        }
        keys.iter().map(|key| self.known(key)).collect()
    }

    fn known(&self, key: &StateKey) -> Result<Option<Bytes>, Rejection> {
        let read = || self.reads.get(key).and_then(|read| read.as_ref()).map(|read| read.value.clone());
        match self.writes.get(key) {
            None => Ok(read()),
            Some(Write::Delete) => Ok(None),
            Some(Write::Put { value, .. }) => Ok(Some(value.clone())),
            Some(Write::Add(delta)) => counter(read().as_deref())
                .and_then(|base| base.checked_add(*delta))
                .map(|sum| Some(sum.to_string().into()))
                .ok_or_else(not_a_counter),
        }
    }

    /// Buffers a put or a delete.
    pub(super) fn write(&mut self, key: StateKey, write: Write) -> Result<(), Rejection> {
        self.touch(&key)?;
        self.used.keys_written += 1;
        if let Write::Put { value, .. } = &write {
            self.used.written_bytes += value.len() as u64;
        }
        self.writes.insert(key, write);
        Ok(())
    }

    /// Buffers an addition, on top of what the call has written.
    pub(super) fn add(&mut self, key: StateKey, delta: i64) -> Result<(), Rejection> {
        self.touch(&key)?;
        self.used.keys_written += 1;
        match self.writes.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Write::Add(delta));
            }
            Entry::Occupied(mut entry) => {
                let base = match entry.get() {
                    Write::Add(sum) => Some(*sum),
                    Write::Delete => Some(0),
                    Write::Put { value, .. } => counter(Some(value)),
                };
                let sum = base.and_then(|base| base.checked_add(delta)).ok_or_else(not_a_counter)?;
                let write = match entry.get() {
                    Write::Add(_) => Write::Add(sum),
                    Write::Delete => Write::Put { value: sum.to_string().into(), ttl_ms: None },
                    Write::Put { ttl_ms, .. } => Write::Put { value: sum.to_string().into(), ttl_ms: *ttl_ms },
                };
                entry.insert(write);
            }
        }
        Ok(())
    }

    /// A page of stored keys, straight from the engine.
    pub(super) async fn list_keys(
        &mut self,
        prefix: &StateKey,
        after: Option<&StateKey>,
        limit: usize,
    ) -> Result<crate::engine::KeyPage, Rejection> {
        let (engine, tenant) = self.engine()?;
        self.wait(engine.list_keys(&tenant, prefix.as_str(), after.map(StateKey::as_str), limit)).await
    }

    /// How many connections are in a room.
    pub(super) async fn count(&mut self, room: &Room) -> Result<usize, Rejection> {
        let (engine, tenant) = self.engine()?;
        self.wait(engine.count(&tenant, room)).await
    }

    /// The subjects in a room, each once, in order; the same whenever the input asks.
    pub(super) async fn users(&mut self, room: &Room) -> Result<Arc<[Arc<str>]>, Rejection> {
        if let Some(users) = self.users.get(room) {
            return Ok(users.clone());
        }
        if self.users.len() >= PRESENCE_ROOMS_MAX {
            return Err(Rejection::Quota(format!("a call lists the users of at most {PRESENCE_ROOMS_MAX} rooms")));
        }
        let (engine, tenant) = self.engine()?;
        let members = self.wait(engine.members(&tenant, room, PRESENCE_CONNECTIONS_MAX)).await?;
        let mut subjects: Vec<Arc<str>> = members.into_iter().map(|member| member.subject).collect();
        subjects.sort_unstable();
        subjects.dedup();
        let users: Arc<[Arc<str>]> = subjects.into();
        self.users.insert(room.clone(), users.clone());
        Ok(users)
    }

    /// Buffers a timer's change.
    pub(super) fn timer(&mut self, key: TimerKey, change: TimerChange) -> Result<(), Rejection> {
        let limit = self.limits.timers;
        if self.timers.len() >= limit && !self.timers.contains_key(&key) {
            return Err(quota(&format!("a call sets and cancels at most {limit} timers"), "timers", limit));
        }
        self.used.timers_set += u64::from(matches!(change, TimerChange::Set { .. }));
        self.timers.insert(key, change);
        Ok(())
    }

    /// Buffers the answer; the last one counts.
    pub(super) fn reply(&mut self, data: Payload) {
        self.reply = Some(data);
    }

    /// Buffers a publication.
    pub(super) fn publish(&mut self, publication: Publication, ephemeral: bool) -> Result<(), Rejection> {
        let limit = self.limits.publications;
        if self.publications >= limit {
            return Err(quota(&format!("a call publishes at most {limit} times"), "publications", limit));
        }
        self.publications += 1;
        self.used.publications += 1;
        if ephemeral {
            self.ephemeral.push(publication);
        } else {
            self.effects.push(Effect::Publish(publication));
        }
        Ok(())
    }

    /// Buffers a join, a leave or a disconnect.
    pub(super) fn membership(&mut self, effect: Effect) -> Result<(), Rejection> {
        let limit = self.limits.memberships;
        if self.memberships >= limit {
            let what = format!("a call joins, leaves and disconnects at most {limit} times");
            return Err(quota(&what, "memberships", limit));
        }
        self.memberships += 1;
        self.effects.push(effect);
        Ok(())
    }
}

/// A publication of what a call hands over.
pub(super) fn publication(room: Room, event: &str, data: Payload, except: Option<ConnectionId>) -> Publication {
    Publication { room, event: event.into(), data, except }
}

fn counter(value: Option<&[u8]>) -> Option<i64> {
    match value {
        None => Some(0),
        Some(value) => std::str::from_utf8(value).ok()?.parse().ok(),
    }
}

fn not_a_counter() -> Rejection {
    Rejection::Invalid("the value is not a decimal counter of 64 bits, or the sum is not".into())
}

#[cfg(test)]
mod tests;
