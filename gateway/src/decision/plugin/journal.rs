//! The latest log lines and failures of a tenant's plugins on this node, for whoever looks: bounded, in memory only.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::failure::{Hook, MESSAGE_BYTES_MAX, tame};
use crate::commit::{Millis, now_ms};
use crate::limits::Bucket;
use crate::tenant::PerMinute;

/// Entries that are kept of one tenant.
pub const JOURNAL_ENTRIES_MAX: usize = 1_000;

/// What they hold together, in bytes of text.
pub const JOURNAL_BYTES_MAX: usize = 256 << 10;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    /// Its name in the contract and in the API.
    pub fn word(self) -> &'static str {
        match self {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

/// Who says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JournalKind {
    /// The component, with `log`.
    Log,
    /// The gateway: a call of it failed, or its breaker changed.
    Failure,
}

impl JournalKind {
    /// Its name in the API.
    pub fn word(self) -> &'static str {
        match self {
            JournalKind::Log => "log",
            JournalKind::Failure => "failure",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// Grows by one on this node. It begins with the time at which the journal was made, in microseconds since the
    /// Unix epoch, so that a later journal of the tenant goes on beyond an earlier one.
    pub seq: u64,
    /// When.
    pub at_ms: Millis,
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// The SHA-256 of its component, in hexadecimal: which version it was.
    pub digest: Arc<str>,
    /// What was called.
    pub hook: Hook,
    /// How much it matters.
    pub level: Level,
    /// Who says it.
    pub kind: JournalKind,
    /// How a call failed, as [`CallError::word`](super::CallError::word) has it; `None`: the line tells something else.
    pub failure: Option<&'static str>,
    /// At most [`MESSAGE_BYTES_MAX`] bytes, control characters escaped.
    pub message: String,
}

/// Whose line it is.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) plugin: Arc<str>,
    pub(super) digest: Arc<str>,
    pub(super) hook: Hook,
}

/// One tenant's journal on this node.
#[derive(Debug)]
pub struct Journal {
    ring: Mutex<Ring>,
    /// The number of the latest entry.
    latest: watch::Sender<u64>,
    lines: Mutex<Rate>,
}

#[derive(Debug)]
struct Ring {
    entries: VecDeque<Arc<JournalEntry>>,
    bytes: usize,
    seq: u64,
}

/// What log lines have left of their minute.
#[derive(Debug)]
struct Rate {
    per_minute: PerMinute,
    bucket: Bucket,
    /// Lines dropped since the last one that was let through.
    dropped: u64,
}

/// May a line be written?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// Yes; so many were dropped before it.
    Write {
        dropped: u64,
    },
    /// No, and it is the first that is dropped.
    FirstDropped,
    Dropped,
}

impl Journal {
    pub(super) fn new() -> Arc<Journal> {
        let rate = Rate { per_minute: None, bucket: Bucket::new(None, Instant::now()), dropped: 0 };
        let seq = now_ms().saturating_mul(1_000);
        let ring = Mutex::new(Ring { entries: VecDeque::new(), bytes: 0, seq });
        Arc::new(Journal { ring, latest: watch::Sender::new(seq), lines: Mutex::new(rate) })
    }

    /// Asks whether the tenant may write another line this minute.
    pub(super) fn may_write(&self, per_minute: PerMinute) -> Leave {
        let now = Instant::now();
        let mut rate = self.lines.lock();
        if rate.per_minute != per_minute {
            (rate.per_minute, rate.bucket) = (per_minute, Bucket::new(per_minute, now));
        }
        if rate.bucket.take(now).is_ok() {
            return Leave::Write { dropped: std::mem::take(&mut rate.dropped) };
        }
        rate.dropped += 1;
        if rate.dropped == 1 { Leave::FirstDropped } else { Leave::Dropped }
    }

    /// Adds a line; the oldest ones go.
    pub(super) fn add(&self, source: &Source, level: Level, kind: JournalKind, message: &str) {
        self.push(source, level, kind, None, message);
    }

    /// Adds that a call failed.
    pub(super) fn add_failure(&self, source: &Source, word: &'static str, message: &str) {
        self.push(source, Level::Error, JournalKind::Failure, Some(word), message);
    }

    fn push(&self, source: &Source, level: Level, kind: JournalKind, failure: Option<&'static str>, message: &str) {
        let message = tame(message, MESSAGE_BYTES_MAX);
        let Source { plugin, digest, hook } = source.clone();
        let mut ring = self.ring.lock();
        ring.seq += 1;
        let seq = ring.seq;
        ring.bytes += message.len();
        ring.entries.push_back(Arc::new(JournalEntry {
            seq,
            at_ms: now_ms(),
            plugin,
            digest,
            hook,
            level,
            kind,
            failure,
            message,
        }));
        while ring.entries.len() > JOURNAL_ENTRIES_MAX || ring.bytes > JOURNAL_BYTES_MAX {
            let Some(oldest) = ring.entries.pop_front() else { break };
            ring.bytes -= oldest.message.len();
        }
        drop(ring);
        self.latest.send_replace(seq);
    }

    /// The latest entries, oldest first, at most `limit`.
    pub fn latest(&self, limit: usize) -> Vec<Arc<JournalEntry>> {
        let ring = self.ring.lock();
        ring.entries.iter().skip(ring.entries.len().saturating_sub(limit)).cloned().collect()
    }

    /// The entries after the one with this number, oldest first, at most `limit`.
    pub fn after(&self, seq: u64, limit: usize) -> Vec<Arc<JournalEntry>> {
        let ring = self.ring.lock();
        let start = ring.entries.partition_point(|entry| entry.seq <= seq);
        ring.entries.iter().skip(start).take(limit).cloned().collect()
    }

    /// Everything from now on.
    pub fn subscribe(self: &Arc<Self>) -> JournalTail {
        let latest = self.latest.subscribe();
        let seen = *latest.borrow();
        JournalTail { journal: self.clone(), latest, seen }
    }
}

/// Follows a journal. Whoever is slow misses what went from the ring meanwhile, and is told how much.
#[derive(Debug)]
pub struct JournalTail {
    journal: Arc<Journal>,
    latest: watch::Receiver<u64>,
    seen: u64,
}

/// What a journal had next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalNews {
    /// Entries that were gone before they could be taken.
    pub lost: u64,
    /// In order, at least one.
    pub entries: Vec<Arc<JournalEntry>>,
}

impl JournalTail {
    /// Waits for what comes next and takes at most `limit` of it.
    pub async fn next(&mut self, limit: usize) -> JournalNews {
        loop {
            let entries = self.journal.after(self.seen, limit.max(1));
            if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
                let lost = first.seq - self.seen - 1;
                self.seen = last.seq;
                return JournalNews { lost, entries };
            }
            // The journal, which this keeps, never closes.
            let _ = self.latest.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn source() -> Source {
        Source { plugin: "p".into(), digest: "d".into(), hook: Hook::Handle }
    }

    fn say(journal: &Journal, message: &str) {
        journal.add(&source(), Level::Info, JournalKind::Log, message);
    }

    #[tokio::test]
    async fn it_keeps_the_latest_lines_and_no_more_bytes_than_it_may() {
        let journal = Journal::new();
        for n in 0..JOURNAL_ENTRIES_MAX + 5 {
            say(&journal, &n.to_string());
        }
        let all = journal.latest(usize::MAX);
        assert_eq!((all.len(), all[0].message.as_str()), (JOURNAL_ENTRIES_MAX, "5"));
        assert_eq!(journal.latest(2)[0].message, "1003");
        for _ in 0..JOURNAL_ENTRIES_MAX {
            say(&journal, &"x".repeat(10_000));
        }
        let all = journal.latest(usize::MAX);
        assert_eq!(all.len(), JOURNAL_BYTES_MAX / MESSAGE_BYTES_MAX);
        assert_eq!(all[0].message.len(), MESSAGE_BYTES_MAX);
    }

    #[tokio::test]
    async fn whoever_follows_gets_every_line_in_order_or_is_told_how_many_are_lost() {
        let journal = Journal::new();
        say(&journal, "before");
        let mut tail = journal.subscribe();
        say(&journal, "one");
        say(&journal, "two");
        let news = tail.next(1).await;
        assert_eq!((news.lost, news.entries[0].message.as_str()), (0, "one"));
        assert_eq!(tail.next(10).await.entries[0].message, "two");
        let (news, ()) = tokio::join!(tail.next(10), async { say(&journal, "three") });
        assert_eq!(news.entries[0].message, "three");
        for n in 0..JOURNAL_ENTRIES_MAX + 7 {
            say(&journal, &n.to_string());
        }
        assert_eq!(tail.next(10).await.lost, 7);
    }

    #[tokio::test]
    async fn a_line_cannot_break_a_terminal() {
        let journal = Journal::new();
        say(&journal, "\u{1b}]0;title\u{7}\nfake line");
        assert_eq!(journal.latest(1)[0].message, "\\u{1b}]0;title\\u{7}\\nfake line");
    }

    #[tokio::test(start_paused = true)]
    async fn lines_beyond_a_minutes_worth_are_dropped_and_counted() {
        let (journal, two) = (Journal::new(), NonZeroU32::new(2));
        let asked: Vec<_> = (0..5).map(|_| journal.may_write(two)).collect();
        let write = Leave::Write { dropped: 0 };
        assert_eq!(asked, [write, write, Leave::FirstDropped, Leave::Dropped, Leave::Dropped]);
        tokio::time::advance(std::time::Duration::from_secs(30)).await;
        assert_eq!(journal.may_write(two), Leave::Write { dropped: 3 });
    }
}
