//! What the embedded engine keeps on disk: the tables, and how they are read and changed.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata as _, Table,
    TableDefinition, TableError, WriteTransaction,
};

mod artifacts;
mod forgetting;
mod totals;

pub(super) use self::forgetting::Forgotten;
use self::totals::{expired, of_cell};
use super::OpenError;
use super::writer::BuryJob;
use crate::commit::{Commit, CommitId, Millis, StateKey, TimerChange, TimerKey, Version, Versioned, Write};
use crate::engine::{COMMIT_ID_KEPT_MS, DEAD_TIMERS_MAX, DeadTimer, EngineError, KeyPage, Outcome};
use crate::quota::{Growth, Stored};
use crate::tenant::TenantId;

/// The layout below. A file with another number is refused.
const FORMAT: u64 = 2;

/// The same without totals: they are counted when such a file is opened.
const FORMAT_WITHOUT_TOTALS: u64 = 1;

/// How much one round of sweeping removes of each kind.
const SWEPT_MAX: usize = 1_000;

/// In place of a time: this value stays until it is deleted.
const NEVER: Millis = 0;

/// (tenant, key)
type StateRow = (&'static str, &'static str);
/// (version, expires at or [`NEVER`], value)
type StateCell = (u64, Millis, &'static [u8]);
/// (tenant, plugin, name)
type TimerRow = (&'static str, &'static str, &'static str);
/// (due, token, data)
type TimerCell = (Millis, u64, &'static str);

/// (bytes, keys, timers)
type TotalsCell = (u64, u64, u64);

/// (timer, due, attempts, data, why)
type DeadCell = (TimerRow, Millis, u32, &'static str, &'static str);

const STATE: TableDefinition<'_, StateRow, StateCell> = TableDefinition::new("state");
/// (expires at, tenant, key)
const EXPIRY: TableDefinition<'_, (Millis, &str, &str), ()> = TableDefinition::new("expiry");
const TIMERS: TableDefinition<'_, TimerRow, TimerCell> = TableDefinition::new("timers");
/// (due, token) → timer
const DUE: TableDefinition<'_, (Millis, u64), TimerRow> = TableDefinition::new("due");
/// (done at, number) → (tenant, commit id, epoch)
const DONE: TableDefinition<'_, (Millis, u64), (&str, &str, u64)> = TableDefinition::new("done");
/// `format`, `epoch` (the latest process's) and `number` (the latest version, token or such)
/// (number) → (timer, due, attempts, data, why)
const DEAD: TableDefinition<'_, u64, DeadCell> = TableDefinition::new("dead_timers");
/// tenant → (bytes, keys, timers) that its plugins keep
const TOTALS: TableDefinition<'_, &str, TotalsCell> = TableDefinition::new("totals");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

pub(super) fn engine_error(error: redb::Error) -> EngineError {
    match error {
        redb::Error::Corrupted(what) => EngineError::Corrupt(what),
        other => EngineError::Unavailable(format!("the embedded store: {other}")),
    }
}

/// The database.
#[derive(Debug)]
pub(super) struct Store {
    db: Database,
}

/// A store that was opened for a new process.
pub(super) struct Opened {
    pub(super) store: Store,
    /// This process's; larger than any earlier one's.
    pub(super) epoch: u64,
    /// The latest number that was given to a version, token or commit.
    pub(super) number: u64,
    /// The commits that may still be sent again, with the epoch they were done in.
    pub(super) done: Vec<(TenantId, CommitId, u64)>,
}

/// A timer whose time has come.
pub(super) struct Due {
    pub(super) tenant: String,
    pub(super) key: TimerKey,
    pub(super) due: Millis,
    pub(super) token: u64,
    pub(super) data: Arc<str>,
}

impl Store {
    /// Makes the tables where there are none and begins a new epoch, on disk.
    pub(super) fn start(db: Database, now: Millis) -> Result<Opened, OpenError> {
        let store = Store { db };
        match store.format().map_err(OpenError::Store)? {
            FORMAT | FORMAT_WITHOUT_TOTALS => store.begin_epoch(now).map_err(OpenError::Store),
            found => Err(OpenError::Format { found, expected: FORMAT }),
        }
    }

    fn format(&self) -> Result<u64, redb::Error> {
        let txn = self.db.begin_write()?;
        let meta = txn.open_table(META)?;
        Ok(stored(&meta, "format")?.unwrap_or(FORMAT))
    }

    fn begin_epoch(self, now: Millis) -> Result<Opened, redb::Error> {
        let txn = self.db.begin_write()?;
        let mut tables = Tables::open(&txn)?;
        let number = stored(&tables.meta, "number")?.unwrap_or(0);
        let epoch = now.max(stored(&tables.meta, "epoch")?.unwrap_or(0) + 1);
        if stored(&tables.meta, "format")? == Some(FORMAT_WITHOUT_TOTALS) {
            tables.count()?;
        }
        tables.meta.insert("format", FORMAT)?;
        tables.meta.insert("epoch", epoch)?;
        let mut done = Vec::new();
        for row in tables.done.range((now.saturating_sub(COMMIT_ID_KEPT_MS), 0)..)? {
            let row = row?.1;
            let (tenant, id, epoch) = row.value();
            if let Ok(tenant) = TenantId::parse(tenant) {
                done.push((tenant, CommitId::from(id), epoch));
            }
        }
        drop(tables);
        artifacts::open(&txn)?;
        txn.open_table(DEAD)?;
        txn.commit()?;
        Ok(Opened { store: self, epoch, number, done })
    }

    /// The values of keys now.
    pub(super) fn read(
        &self,
        tenant: &TenantId,
        keys: &[StateKey],
        now: Millis,
    ) -> Result<Vec<Option<Versioned>>, redb::Error> {
        let state = self.db.begin_read()?.open_table(STATE)?;
        let read = |key: &StateKey| {
            let Some(row) = state.get((tenant.as_str(), key.as_str()))? else { return Ok(None) };
            let (version, expires, value) = row.value();
            let version = Version(version.to_string().into());
            Ok(is_alive(expires, now).then(|| Versioned { value: Bytes::copy_from_slice(value), version }))
        };
        keys.iter().map(read).collect()
    }

    /// See [`Engine::stored`](crate::engine::Engine::stored).
    pub(super) fn stored(&self, tenant: &TenantId) -> Result<Stored, redb::Error> {
        let totals = self.db.begin_read()?.open_table(TOTALS)?;
        Ok(totals.get(tenant.as_str())?.map(|cell| of_cell(cell.value())).unwrap_or_default())
    }

    /// See [`Engine::list_keys`](crate::engine::Engine::list_keys).
    pub(super) fn list_keys(
        &self,
        tenant: &TenantId,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        now: Millis,
    ) -> Result<KeyPage, redb::Error> {
        let state = self.db.begin_read()?.open_table(STATE)?;
        let tenant = tenant.as_str();
        let start = match after.filter(|after| *after >= prefix) {
            Some(after) => Bound::Excluded((tenant, after)),
            None => Bound::Included((tenant, prefix)),
        };
        let mut page = KeyPage::default();
        for row in state.range::<(&str, &str)>((start, Bound::Unbounded))? {
            let (row, cell) = row?;
            let (of, key) = row.value();
            if of != tenant || !key.starts_with(prefix) {
                break;
            }
            if !is_alive(cell.value().1, now) {
                continue;
            }
            if page.keys.len() == limit {
                page.more = true;
                break;
            }
            page.keys.push(StateKey::stored(key));
        }
        Ok(page)
    }

    /// The earliest timers that are due and whose token is not to be skipped.
    pub(super) fn due(&self, now: Millis, limit: usize, skip: impl Fn(u64) -> bool) -> Result<Vec<Due>, redb::Error> {
        let txn = self.db.begin_read()?;
        let (index, timers) = (txn.open_table(DUE)?, txn.open_table(TIMERS)?);
        let mut found = Vec::new();
        for row in index.range(..=(now, u64::MAX))? {
            if found.len() == limit {
                break;
            }
            let (row, timer) = row?;
            let ((due, token), (tenant, plugin, name)) = (row.value(), timer.value());
            if skip(token) {
                continue;
            }
            let Some(cell) = timers.get((tenant, plugin, name))? else { continue };
            let data = cell.value().2.into();
            let key = TimerKey { plugin: plugin.into(), name: name.into() };
            found.push(Due { tenant: tenant.to_owned(), key, due, token, data });
        }
        Ok(found)
    }

    /// See [`Engine::bury_timer`](crate::engine::Engine::bury_timer). Answers the token that is settled.
    pub(super) fn bury(&self, job: &BuryJob, number: &mut u64) -> Result<Option<u64>, redb::Error> {
        let txn = self.db.begin_write()?;
        let (timer, row) = (&job.timer, (job.timer.tenant.as_str(), &*job.timer.key.plugin, &*job.timer.key.name));
        {
            let mut tables = Tables::open(&txn)?;
            let token = tables.timers.get(row)?.map(|cell| cell.value().1);
            if token.is_none() || token != timer.token.parse().ok() {
                return Ok(None);
            }
            tables.set_timer(timer.tenant.as_str(), &timer.key, None)?;
            let gone = Growth { timers: -i64::from(timer.key.is_of_plugins()), ..Growth::default() };
            tables.grow(timer.tenant.as_str(), gone)?;
            let mut dead = txn.open_table(DEAD)?;
            dead.insert(next(number), (row, timer.due, timer.attempt, &*timer.data, &*job.why))?;
            while dead.len()? > DEAD_TIMERS_MAX as u64 {
                dead.pop_first()?;
            }
            tables.finish(*number)?;
        }
        txn.commit()?;
        Ok(timer.token.parse().ok())
    }

    /// See [`Engine::dead_timers`](crate::engine::Engine::dead_timers).
    pub(super) fn dead(&self, tenant: &TenantId, limit: usize) -> Result<Vec<DeadTimer>, redb::Error> {
        let dead = self.db.begin_read()?.open_table(DEAD)?;
        let mut found = Vec::new();
        for row in dead.iter()?.rev() {
            let cell = row?.1;
            let ((of, plugin, name), due, attempts, data, why) = cell.value();
            if found.len() == limit {
                break;
            }
            if of == tenant.as_str() {
                let key = TimerKey { plugin: plugin.into(), name: name.into() };
                found.push(DeadTimer { key, due, data: data.into(), attempts, why: why.into() });
            }
        }
        Ok(found)
    }

    /// For [`judge`] without writing.
    pub(super) fn view(&self) -> Result<View, redb::Error> {
        let txn: ReadTransaction = self.db.begin_read()?;
        Ok(View { state: txn.open_table(STATE)?, timers: txn.open_table(TIMERS)? })
    }

    /// Begins what [`Tables`] change.
    pub(super) fn begin(&self) -> Result<WriteTransaction, redb::Error> {
        Ok(self.db.begin_write()?)
    }

    /// Puts on disk whatever was committed without waiting for the disk.
    pub(super) fn flush(&self) -> Result<(), redb::Error> {
        Ok(self.db.begin_write()?.commit()?)
    }

    /// Removes keys and commit ids whose time has passed, a bounded number. Is there more?
    /// What it removes is not there for anybody anyway, so it need not be on disk at once.
    pub(super) fn sweep(&self, now: Millis) -> Result<bool, redb::Error> {
        let forgotten = now.saturating_sub(2 * COMMIT_ID_KEPT_MS);
        let txn = self.db.begin_read()?;
        let expired = expired(&txn.open_table(EXPIRY)?, now)?;
        let done = txn.open_table(DONE)?.range(..(forgotten, 0))?.take(SWEPT_MAX);
        let done = done.map(|row| Ok(row?.0.value())).collect::<Result<Vec<_>, redb::StorageError>>()?;
        if expired.is_empty() && done.is_empty() {
            return Ok(false);
        }
        let mut txn = self.db.begin_write()?;
        txn.set_durability(redb::Durability::None)?;
        {
            let mut tables = Tables::open(&txn)?;
            tables.forget(&expired)?;
            for row in &done {
                tables.done.remove(*row)?;
            }
        }
        txn.commit()?;
        Ok(expired.len() == SWEPT_MAX || done.len() == SWEPT_MAX)
    }
}

fn stored(meta: &Table<'_, &'static str, u64>, name: &str) -> Result<Option<u64>, redb::Error> {
    Ok(meta.get(name)?.map(|value| value.value()))
}

fn is_alive(expires: Millis, now: Millis) -> bool {
    expires == NEVER || expires > now
}

/// What becomes of a commit.
pub(super) enum Verdict {
    /// Its writes, in their order, come to this, and the totals change so.
    Apply(Vec<Change>, Growth),
    /// It is not applied; this is the answer.
    Refuse(Result<Outcome, EngineError>),
}

/// What one key holds afterwards.
pub(super) enum Change {
    Put { value: Bytes, expires: Millis },
    Delete,
}

/// The tables that a verdict rests on, as they were last committed.
pub(super) struct View {
    state: ReadOnlyTable<StateRow, StateCell>,
    timers: ReadOnlyTable<TimerRow, TimerCell>,
}

impl View {
    pub(super) fn judge(&self, tenant: &TenantId, commit: &Commit, now: Millis) -> Result<Verdict, redb::Error> {
        judge(&self.state, &self.timers, tenant, commit, now)
    }
}

/// The tables within a transaction that changes them.
pub(super) struct Tables<'txn> {
    state: Table<'txn, StateRow, StateCell>,
    expiry: Table<'txn, (Millis, &'static str, &'static str), ()>,
    timers: Table<'txn, TimerRow, TimerCell>,
    due: Table<'txn, (Millis, u64), TimerRow>,
    done: Table<'txn, (Millis, u64), (&'static str, &'static str, u64)>,
    totals: Table<'txn, &'static str, TotalsCell>,
    meta: Table<'txn, &'static str, u64>,
}

/// Whose commit, and when.
#[derive(Clone, Copy)]
pub(super) struct Stamp<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) now: Millis,
    pub(super) epoch: u64,
}

impl<'txn> Tables<'txn> {
    pub(super) fn open(txn: &'txn WriteTransaction) -> Result<Tables<'txn>, TableError> {
        Ok(Tables {
            state: txn.open_table(STATE)?,
            expiry: txn.open_table(EXPIRY)?,
            timers: txn.open_table(TIMERS)?,
            due: txn.open_table(DUE)?,
            done: txn.open_table(DONE)?,
            totals: txn.open_table(TOTALS)?,
            meta: txn.open_table(META)?,
        })
    }

    /// With what the tenant's plugins would keep then. What has expired goes first where it stands in the way.
    pub(super) fn judge(&mut self, tenant: &TenantId, commit: &Commit, now: Millis) -> Result<Verdict, redb::Error> {
        let changes = match judge(&self.state, &self.timers, tenant, commit, now)? {
            Verdict::Apply(changes, _) => changes,
            refused @ Verdict::Refuse(_) => return Ok(refused),
        };
        let mut growth = self.growth(tenant, commit, &changes)?;
        let Some(most) = &commit.most else { return Ok(Verdict::Apply(changes, growth)) };
        if self.stored(tenant)?.may_grow(growth, most).is_err() {
            self.forget(&expired(&self.expiry, now)?)?;
            growth = self.growth(tenant, commit, &changes)?;
        }
        Ok(match self.stored(tenant)?.may_grow(growth, most) {
            Ok(()) => Verdict::Apply(changes, growth),
            Err(over) => Verdict::Refuse(Ok(Outcome::OverQuota(over))),
        })
    }

    /// Applies a commit that may be. `number` goes up with everything that needs one; the tokens of
    /// timers that are there no more are added to `settled`.
    pub(super) fn apply(
        &mut self,
        stamp: Stamp<'_>,
        commit: &Commit,
        (changes, growth): (Vec<Change>, Growth),
        number: &mut u64,
        settled: &mut Vec<u64>,
    ) -> Result<(), redb::Error> {
        let tenant = stamp.tenant.as_str();
        self.grow(tenant, growth)?;
        for ((key, _), change) in commit.writes.iter().zip(changes) {
            self.change(tenant, key.as_str(), change, next(number))?;
        }
        if let Some(fired) = &commit.fired {
            settled.extend(self.set_timer(tenant, &fired.key, None)?);
        }
        for (key, change) in &commit.timers {
            let cell = match change {
                TimerChange::Set { after_ms, data } => {
                    Some((stamp.now.saturating_add(*after_ms), next(number), &**data))
                }
                TimerChange::Cancel => None,
            };
            settled.extend(self.set_timer(tenant, key, cell)?);
        }
        self.done.insert((stamp.now, next(number)), (tenant, commit.id.as_str(), stamp.epoch))?;
        Ok(())
    }

    /// Ends a transaction's changes: numbers given out are not given out again.
    pub(super) fn finish(mut self, number: u64) -> Result<(), redb::Error> {
        self.meta.insert("number", number)?;
        Ok(())
    }

    fn change(&mut self, tenant: &str, key: &str, change: Change, version: u64) -> Result<(), redb::Error> {
        let (expires, old) = match &change {
            Change::Put { value, expires } => {
                (*expires, self.state.insert((tenant, key), (version, *expires, &**value))?)
            }
            Change::Delete => (NEVER, self.state.remove((tenant, key))?),
        };
        let expired = old.map_or(NEVER, |old| old.value().1);
        if expired != expires {
            if expired != NEVER {
                self.expiry.remove((expired, tenant, key))?;
            }
            if expires != NEVER {
                self.expiry.insert((expires, tenant, key), ())?;
            }
        }
        Ok(())
    }

    /// Replaces or removes a timer; answers the token of the one that was there.
    fn set_timer(
        &mut self,
        tenant: &str,
        key: &TimerKey,
        cell: Option<(Millis, u64, &str)>,
    ) -> Result<Option<u64>, redb::Error> {
        let row = (tenant, &*key.plugin, &*key.name);
        let old = match cell {
            Some(cell) => self.timers.insert(row, cell)?,
            None => self.timers.remove(row)?,
        };
        let old = old.map(|old| (old.value().0, old.value().1));
        if let Some(old) = old {
            self.due.remove(old)?;
        }
        if let Some((due, token, _)) = cell {
            self.due.insert((due, token), row)?;
        }
        Ok(old.map(|(_, token)| token))
    }
}

fn next(number: &mut u64) -> u64 {
    *number += 1;
    *number
}

/// May this commit be applied to these tables, and what does it come to?
fn judge(
    state: &impl ReadableTable<StateRow, StateCell>,
    timers: &impl ReadableTable<TimerRow, TimerCell>,
    tenant: &TenantId,
    commit: &Commit,
    now: Millis,
) -> Result<Verdict, redb::Error> {
    let tenant = tenant.as_str();
    if let Some(fired) = &commit.fired {
        let timer = timers.get((tenant, &*fired.key.plugin, &*fired.key.name))?;
        if !timer.is_some_and(|timer| fired.token.parse() == Ok(timer.value().1)) {
            return Ok(Verdict::Refuse(Ok(Outcome::TimerGone)));
        }
    }
    for (key, version) in &commit.reads {
        let cell = state.get((tenant, key.as_str()))?;
        let is = cell.as_ref().map(|cell| cell.value()).filter(|cell| is_alive(cell.1, now)).map(|cell| cell.0);
        let holds = match version {
            None => is.is_none(),
            Some(version) => is.is_some() && is == version.0.parse().ok(),
        };
        if !holds {
            return Ok(Verdict::Refuse(Ok(Outcome::Conflict(key.clone()))));
        }
    }
    let mut changes = Vec::with_capacity(commit.writes.len());
    for (key, write) in &commit.writes {
        changes.push(match write {
            Write::Put { value, ttl_ms: None } => Change::Put { value: value.clone(), expires: NEVER },
            Write::Put { value, ttl_ms: Some(ttl) } => {
                Change::Put { value: value.clone(), expires: now.saturating_add(*ttl).max(1) }
            }
            Write::Delete => Change::Delete,
            Write::Add(delta) => {
                let cell = state.get((tenant, key.as_str()))?;
                let cell = cell.as_ref().map(|cell| cell.value()).filter(|cell| is_alive(cell.1, now));
                let (expires, value) = cell.map_or((NEVER, &b"0"[..]), |cell| (cell.1, cell.2));
                let Some(sum) = counter(value).and_then(|value| value.checked_add(*delta)) else {
                    return Ok(Verdict::Refuse(Err(EngineError::NotACounter(key.clone()))));
                };
                Change::Put { value: sum.to_string().into(), expires }
            }
        });
    }
    Ok(Verdict::Apply(changes, Growth::default()))
}

/// A decimal number in its one usual form.
fn counter(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    text.parse().ok().filter(|number: &i64| number.to_string() == text)
}

/// How many rows the tables have.
#[cfg(test)]
pub(super) struct Rows {
    pub(super) state: u64,
    pub(super) expiry: u64,
    pub(super) timers: u64,
    pub(super) due: u64,
    pub(super) done: u64,
}

#[cfg(test)]
impl Store {
    pub(super) fn rows(&self) -> Result<Rows, redb::Error> {
        use redb::ReadableTableMetadata;
        let txn = self.db.begin_read()?;
        Ok(Rows {
            state: txn.open_table(STATE)?.len()?,
            expiry: txn.open_table(EXPIRY)?.len()?,
            timers: txn.open_table(TIMERS)?.len()?,
            due: txn.open_table(DUE)?.len()?,
            done: txn.open_table(DONE)?.len()?,
        })
    }
}
