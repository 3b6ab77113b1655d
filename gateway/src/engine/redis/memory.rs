//! What this node's feeds were given last: clients that come back are served from it without asking Redis.
//!
//! It answers only what is certain. Of each followed tenant it has a stretch of one epoch without holes, whose end
//! is the last entry that the feed was given; it is not asked while this node knows of a later position (a commit
//! of its own that has not come back yet), and forgets everything with a reset and with a new epoch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use metrics::{Counter, Gauge, counter, gauge};
use parking_lot::Mutex;

use crate::commit::{Entry, Millis, Position};
use crate::engine::Range;
use crate::engine::log::{Limits, Log};
use crate::room::Room;
use crate::tenant::TenantId;

/// Entries of a tenant, at most: as many as one session reads that comes back.
const TENANT_ENTRIES_MAX: usize = 20_000;

/// Bytes of a tenant, about, at most; its latest entry stays, however large.
const TENANT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of all tenants, about; a tenant that gets an entry beyond it keeps that entry only.
const NODE_BYTES_MAX: usize = 256 * 1024 * 1024;

static BYTES: LazyLock<Gauge> = LazyLock::new(|| gauge!("log_memory_bytes"));
static FROM_MEMORY: LazyLock<Counter> = LazyLock::new(|| counter!("range_total", "source" => "memory"));
static FROM_LOG: LazyLock<Counter> = LazyLock::new(|| counter!("range_total", "source" => "log"));

/// One tenant's.
struct Held {
    log: Log,
    /// The largest position that a commit of this node was answered with.
    told: Position,
}

/// The memory of a node.
pub(super) struct Memory {
    limits: Limits,
    tenants: Mutex<HashMap<TenantId, Arc<Mutex<Held>>>>,
    bytes: AtomicUsize,
}

impl Memory {
    /// One that holds no more of a log than the log itself does.
    pub(super) fn new(log_entries_max: usize, log_age_max_ms: Millis) -> Arc<Memory> {
        let limits = Limits {
            entries_max: TENANT_ENTRIES_MAX.min(log_entries_max.max(1)),
            bytes_max: TENANT_BYTES_MAX,
            age_max_ms: log_age_max_ms,
        };
        Arc::new(Memory { limits, tenants: Mutex::default(), bytes: AtomicUsize::new(0) })
    }

    /// For the feed of a tenant that begins behind a position; `None` when another feed keeps it already.
    pub(super) fn share(self: &Arc<Self>, tenant: &TenantId, at: Position) -> Option<Share> {
        let mut tenants = self.tenants.lock();
        if tenants.contains_key(tenant) {
            return None;
        }
        let held = Arc::new(Mutex::new(Held { log: Log::after(at, self.limits), told: at }));
        tenants.insert(tenant.clone(), held.clone());
        Some(Share { memory: self.clone(), tenant: tenant.clone(), held })
    }

    /// A commit of this node is at this position.
    pub(super) fn told(&self, tenant: &TenantId, position: Position) {
        if let Some(held) = self.held(tenant) {
            let mut held = held.lock();
            held.told = held.told.max(position);
        }
    }

    /// See [`Engine::range`](crate::engine::Engine::range); `None`: the log has to be asked.
    pub(super) fn range(&self, tenant: &TenantId, after: Position, limit: usize, now: Millis) -> Option<Range> {
        // As in the log: a position can be resumed from when its own entry is there.
        let answer = self.current(tenant, now, |log| {
            let known = log.get(after.seq).is_some_and(|entry| entry.position == after);
            known.then(|| log.range(after, limit))
        });
        if answer.is_some() {
            FROM_MEMORY.increment(1)
        } else {
            FROM_LOG.increment(1)
        }
        answer
    }

    /// See [`Engine::history`](crate::engine::Engine::history); `None`: the log has to be asked, for it may hold
    /// older ones.
    pub(super) fn history(
        &self,
        tenant: &TenantId,
        room: &Room,
        before: Option<Position>,
        limit: usize,
        now: Millis,
    ) -> Option<Vec<Arc<Entry>>> {
        self.current(tenant, now, |log| {
            if before.is_some_and(|before| before > log.top()) {
                return None;
            }
            Some(log.history(room, before, limit)).filter(|found| found.len() == limit)
        })
    }

    /// Asks the stretch of a tenant, if it reaches as far as this node knows the log to.
    fn current<T>(&self, tenant: &TenantId, now: Millis, ask: impl FnOnce(&Log) -> Option<T>) -> Option<T> {
        let held = self.held(tenant)?;
        let mut held = held.lock();
        if held.log.top() < held.told {
            return None;
        }
        self.counted(&mut held.log, |log| log.trim(now));
        ask(&held.log)
    }

    fn held(&self, tenant: &TenantId) -> Option<Arc<Mutex<Held>>> {
        self.tenants.lock().get(tenant).cloned()
    }

    /// Changes a stretch and keeps the sum.
    fn counted(&self, log: &mut Log, change: impl FnOnce(&mut Log)) {
        let before = log.bytes();
        change(log);
        let after = log.bytes();
        if after >= before {
            self.bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

/// The right to keep one tenant's entries; they are forgotten when it is dropped.
pub(super) struct Share {
    memory: Arc<Memory>,
    tenant: TenantId,
    held: Arc<Mutex<Held>>,
}

impl Share {
    /// The feed was given this entry.
    pub(super) fn keep(&self, entry: Arc<Entry>) {
        let position = entry.position;
        let before = Position { seq: position.seq.saturating_sub(1), ..position };
        let full = self.memory.bytes.load(Ordering::Relaxed) > NODE_BYTES_MAX;
        let mut held = self.held.lock();
        self.memory.counted(&mut held.log, |log| {
            if full || log.top() != before {
                *log = Log::after(before, self.memory.limits);
            }
            log.append(entry);
        });
        BYTES.set(self.memory.bytes.load(Ordering::Relaxed) as f64);
    }

    /// The largest position that a commit of this node was answered with, since the last loss.
    pub(super) fn told(&self) -> Position {
        self.held.lock().told
    }

    /// What was kept does not count any more; the feed goes on behind this position.
    pub(super) fn begin_after(&self, position: Position) {
        let mut held = self.held.lock();
        held.told = position;
        self.memory.counted(&mut held.log, |log| *log = Log::after(position, self.memory.limits));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.tenants.lock().remove(&self.tenant);
        let mut held = self.held.lock();
        self.memory.counted(&mut held.log, |log| *log = Log::after(Position { epoch: 0, seq: 0 }, self.memory.limits));
        // Whoever holds it at this moment still asks the log.
        held.told = Position { epoch: u64::MAX, seq: u64::MAX };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::{Effect, Publication};
    use crate::event::Payload;

    fn at(seq: u64) -> Position {
        Position { epoch: 7, seq }
    }

    fn entry(position: Position) -> Arc<Entry> {
        let publication = Publication {
            room: Room::parse("a").unwrap(),
            event: "said".into(),
            data: Payload { args: "1".into(), attachments: Vec::new() },
            except: None,
        };
        Arc::new(Entry { position, at: 1_000, effects: vec![Effect::Publish(publication)], presence: Vec::new() })
    }

    fn acme() -> TenantId {
        TenantId::parse("acme").unwrap()
    }

    fn kept(memory: &Arc<Memory>, seqs: std::ops::RangeInclusive<u64>) -> Share {
        let share = memory.share(&acme(), at(seqs.start() - 1)).unwrap();
        seqs.for_each(|seq| share.keep(entry(at(seq))));
        share
    }

    fn range(memory: &Memory, after: Position) -> Option<Vec<u64>> {
        match memory.range(&acme(), after, 100, 1_000)? {
            Range::Entries(entries) => Some(entries.iter().map(|entry| entry.position.seq).collect()),
            Range::Gone => panic!("memory does not know what the log has"),
        }
    }

    #[test]
    fn a_range_is_answered_exactly_where_memory_reaches() {
        let memory = Memory::new(100, 60_000);
        assert_eq!(range(&memory, at(1)), None, "nobody follows");
        let share = kept(&memory, 5..=7);
        assert_eq!(range(&memory, at(5)), Some(vec![6, 7]));
        assert_eq!(range(&memory, at(7)), Some(vec![]));
        assert_eq!((range(&memory, at(4)), range(&memory, at(8))), (None, None));
        assert_eq!(range(&memory, Position { epoch: 6, seq: 6 }), None);
        assert!(memory.share(&acme(), at(7)).is_none(), "one feed keeps it");
        drop(share);
        assert_eq!((range(&memory, at(6)), memory.bytes.load(Ordering::Relaxed)), (None, 0));
    }

    #[test]
    fn memory_that_is_behind_an_own_commit_is_not_asked() {
        let memory = Memory::new(100, 60_000);
        let share = kept(&memory, 1..=2);
        memory.told(&acme(), at(3));
        assert_eq!(range(&memory, at(1)), None);
        share.keep(entry(at(3)));
        assert_eq!(range(&memory, at(1)), Some(vec![2, 3]));
    }

    #[test]
    fn a_reset_and_a_new_epoch_begin_anew() {
        let memory = Memory::new(100, 60_000);
        let share = kept(&memory, 1..=5);
        share.begin_after(at(3));
        assert_eq!((range(&memory, at(2)), range(&memory, at(5)), range(&memory, at(3))), (None, None, None));
        share.keep(entry(at(4)));
        assert_eq!(range(&memory, at(4)), Some(vec![]));
        share.keep(entry(Position { epoch: 8, seq: 1 }));
        assert_eq!(range(&memory, at(4)), None);
        assert_eq!(range(&memory, Position { epoch: 8, seq: 1 }), Some(vec![]));
    }

    #[test]
    fn history_is_answered_when_there_is_enough_of_it() {
        let memory = Memory::new(100, 60_000);
        let _share = kept(&memory, 4..=7);
        let room = Room::parse("a").unwrap();
        let history = |before, limit| {
            let found = memory.history(&acme(), &room, before, limit, 1_000)?;
            Some(found.iter().map(|entry| entry.position.seq).collect::<Vec<_>>())
        };
        assert_eq!(history(None, 2), Some(vec![6, 7]));
        assert_eq!(history(Some(at(6)), 2), Some(vec![4, 5]));
        assert_eq!((history(Some(at(6)), 3), history(Some(at(8)), 1), history(None, 5)), (None, None, None));
    }

    #[test]
    fn what_the_log_does_not_keep_is_not_kept() {
        let memory = Memory::new(3, 60_000);
        let _share = kept(&memory, 1..=9);
        assert_eq!((range(&memory, at(6)), range(&memory, at(7))), (None, Some(vec![8, 9])));
        assert!(memory.range(&acme(), at(7), 9, 90_000).is_none(), "too old");
    }
}
