//! The thread that all commits with something to check or to keep go through, in one order.
//!
//! It takes what waits, judges each commit by the state that those before it leave behind, writes
//! them in one transaction, waits for the disk once, and only then lets anybody hear of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashSet;
use tokio::sync::oneshot;

use super::store::{Forgotten, Stamp, Tables, Verdict, engine_error};
use super::{Durability, Shared};
use crate::commit::{Commit, CommitId, Millis, Position, StateKey, Version};
use crate::engine::{DueTimer, EngineError, Outcome};
use crate::tenant::TenantId;

/// How many jobs wait for the writer at most. More are refused: they would wait for seconds.
pub(super) const QUEUED_JOBS_MAX: usize = 4_096;

/// How many commits share one transaction at most.
const BATCH_COMMITS_MAX: usize = 512;

/// How often expired keys, sessions, commit ids and log entries are removed, and how
/// often relaxed commits are put on disk.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What the writer is asked for.
pub(super) enum Job {
    Commit(CommitJob),
    Artifact {
        digest: String,
        bytes: Bytes,
        answer: oneshot::Sender<Result<(), EngineError>>,
    },
    Bury(Box<BuryJob>),
    Forget(Box<ForgetJob>),
    #[cfg(test)]
    Sweep {
        answer: oneshot::Sender<()>,
    },
}

pub(super) struct CommitJob {
    pub(super) tenant: TenantId,
    pub(super) commit: Arc<Commit>,
    pub(super) answer: oneshot::Sender<Result<Outcome, EngineError>>,
}

/// A timer to be given up.
pub(super) struct BuryJob {
    pub(super) timer: DueTimer,
    pub(super) why: String,
    pub(super) answer: oneshot::Sender<Result<bool, EngineError>>,
}

/// A tenant of which nothing is to stay, while a key of it has this version.
pub(super) struct ForgetJob {
    pub(super) tenant: TenantId,
    pub(super) guard: StateKey,
    pub(super) version: Version,
    pub(super) answer: oneshot::Sender<Result<bool, EngineError>>,
}

/// What is decided about one commit of a batch.
enum Fate {
    /// To be appended now.
    Apply,
    /// The same id was done earlier.
    Done(Position),
    /// The same id is earlier in this batch.
    Again,
    Refused(Result<Outcome, EngineError>),
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) durability: Durability,
    /// The latest number given out.
    pub(super) number: u64,
    /// Something was committed that is not on disk yet.
    pub(super) unflushed: bool,
}

impl Writer {
    /// Works until nobody can ask any more.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let mut sweep_at = Instant::now() + SWEEP_EVERY;
        loop {
            match jobs.recv_timeout(sweep_at.saturating_duration_since(Instant::now())) {
                Ok(first) => self.work(first, jobs),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if Instant::now() >= sweep_at {
                let more = self.sweep();
                sweep_at = Instant::now() + if more { Duration::ZERO } else { SWEEP_EVERY };
            }
        }
        self.flush();
    }

    /// Does one job, or all commits that wait.
    fn work(&mut self, first: Job, jobs: &Receiver<Job>) {
        let mut batch = Vec::new();
        let mut job = Some(first);
        while let Some(next) = job.take() {
            match next {
                Job::Commit(commit) => batch.push(commit),
                Job::Artifact { digest, bytes, answer } => {
                    let put =
                        self.shared.store.put_artifact(&digest, &bytes, (self.shared.clock)()).map_err(engine_error);
                    let _ = answer.send(put);
                }
                Job::Bury(job) => {
                    let buried = self.shared.store.bury(&job, &mut self.number).map_err(engine_error);
                    if let Ok(Some(token)) = buried {
                        self.shared.leases.lock().settle(&[token]);
                    }
                    let _ = job.answer.send(buried.map(|token| token.is_some()));
                }
                Job::Forget(job) => {
                    let forgotten = self.forget(&job);
                    let _ = job.answer.send(forgotten);
                }
                #[cfg(test)]
                Job::Sweep { answer } => {
                    while self.sweep() {}
                    let _ = answer.send(());
                }
            }
            if batch.len() < BATCH_COMMITS_MAX {
                job = jobs.try_recv().ok();
            }
        }
        if !batch.is_empty() {
            self.commit(batch);
        }
    }

    fn commit(&mut self, batch: Vec<CommitJob>) {
        let now = (self.shared.clock)();
        let mut settled = Vec::new();
        let fates = if batch.iter().any(|job| job.commit.is_durable()) {
            self.write(&batch, now, &mut settled)
        } else {
            self.check(&batch, now)
        };
        match fates {
            Ok(fates) => {
                self.shared.leases.lock().settle(&settled);
                for (job, fate) in batch.into_iter().zip(fates) {
                    let outcome = self.publish(&job, fate, now);
                    // Whoever does not wait for the answer any more may ask again.
                    let _ = job.answer.send(outcome);
                }
            }
            Err(error) => {
                for job in batch {
                    let _ = job.answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Lets everybody know of one commit, which is on disk if it must be.
    fn publish(&self, job: &CommitJob, fate: Fate, now: Millis) -> Result<Outcome, EngineError> {
        match fate {
            // Appending what was appended a moment ago answers where it is.
            Fate::Apply | Fate::Again => {
                Ok(Outcome::Committed(self.shared.streams.of(&job.tenant).append_checked(&job.commit, now)))
            }
            Fate::Done(position) => Ok(Outcome::Committed(position)),
            Fate::Refused(answer) => answer,
        }
    }

    /// On the thread of all commits that read or keep something: none of them comes in between.
    fn forget(&self, job: &ForgetJob) -> Result<bool, EngineError> {
        loop {
            let forgotten = self.shared.store.forget_timers(&job.tenant, &job.guard, &job.version);
            let (tokens, all) = match forgotten.map_err(engine_error)? {
                Forgotten::Guarded => return Ok(false),
                Forgotten::Some(tokens) => (tokens, false),
                Forgotten::All(tokens) => (tokens, true),
            };
            self.shared.leases.lock().settle(&tokens);
            if all {
                self.shared.streams.of(&job.tenant).forget();
                return Ok(true);
            }
        }
    }

    /// Judges commits that change nothing on disk.
    fn check(&self, batch: &[CommitJob], now: Millis) -> Result<Vec<Fate>, EngineError> {
        let view = self.shared.store.view().map_err(engine_error)?;
        let judge = |job: &CommitJob| {
            if let Some(position) = self.done(job) {
                return Ok(Fate::Done(position));
            }
            if let Err(absent) = self.recordable(job) {
                return Ok(Fate::Refused(Err(absent)));
            }
            Ok(match view.judge(&job.tenant, &job.commit, now).map_err(engine_error)? {
                Verdict::Apply(..) => Fate::Apply,
                Verdict::Refuse(answer) => Fate::Refused(answer),
            })
        };
        batch.iter().map(judge).collect()
    }

    /// Judges commits and puts on disk what those that may be change.
    fn write(&mut self, batch: &[CommitJob], now: Millis, settled: &mut Vec<u64>) -> Result<Vec<Fate>, EngineError> {
        let mut txn = self.shared.store.begin().map_err(engine_error)?;
        if self.durability == Durability::Relaxed {
            txn.set_durability(redb::Durability::None).map_err(|error| engine_error(error.into()))?;
        }
        let tables = Tables::open(&txn).map_err(|error| engine_error(error.into()))?;
        let fates = self.fill(tables, batch, now, settled).map_err(engine_error)?;
        if let Err(error) = txn.commit() {
            // Nobody can say what is on disk until it is opened again.
            tracing::error!(%error, "the embedded store could not commit");
            self.shared.failed.store(true, Ordering::Relaxed);
            return Err(EngineError::Ambiguous(format!("the embedded store: {error}")));
        }
        self.unflushed = self.durability == Durability::Relaxed;
        Ok(fates)
    }

    fn fill(
        &mut self,
        mut tables: Tables<'_>,
        batch: &[CommitJob],
        now: Millis,
        settled: &mut Vec<u64>,
    ) -> Result<Vec<Fate>, redb::Error> {
        let mut applied: HashSet<(&TenantId, &CommitId)> = HashSet::new();
        let mut fates = Vec::with_capacity(batch.len());
        for job in batch {
            let fate = match self.done(job) {
                Some(position) => Fate::Done(position),
                None if applied.contains(&(&job.tenant, &job.commit.id)) => Fate::Again,
                None if let Err(absent) = self.recordable(job) => Fate::Refused(Err(absent)),
                None => match tables.judge(&job.tenant, &job.commit, now)? {
                    Verdict::Apply(changes, growth) => {
                        if job.commit.is_durable() {
                            let stamp = Stamp { tenant: &job.tenant, now, epoch: self.shared.epoch };
                            tables.apply(stamp, &job.commit, (changes, growth), &mut self.number, settled)?;
                        }
                        applied.insert((&job.tenant, &job.commit.id));
                        Fate::Apply
                    }
                    Verdict::Refuse(answer) => Fate::Refused(answer),
                },
            };
            fates.push(fate);
        }
        tables.finish(self.number)?;
        Ok(fates)
    }

    /// May the commit write its session's record?
    fn recordable(&self, job: &CommitJob) -> Result<(), EngineError> {
        self.shared.streams.of(&job.tenant).check(&job.commit)
    }

    /// Where the commit is, if it was done earlier.
    fn done(&self, job: &CommitJob) -> Option<Position> {
        self.shared.streams.of(&job.tenant).done(&job.commit.id)
    }

    /// Is there more to sweep?
    fn sweep(&mut self) -> bool {
        let now = (self.shared.clock)();
        self.shared.streams.sweep(now);
        self.flush();
        self.shared.store.sweep(now).unwrap_or_else(|error| {
            tracing::warn!(%error, "the embedded store could not be swept");
            false
        })
    }

    fn flush(&mut self) {
        if std::mem::take(&mut self.unflushed)
            && let Err(error) = self.shared.store.flush()
        {
            self.unflushed = true;
            tracing::error!(%error, "relaxed commits could not be put on disk");
        }
    }
}
