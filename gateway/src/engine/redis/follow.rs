//! Following a log: messages of the channel while they come without a hole, the log itself else.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::Value;
use bytes::Bytes;
use metrics::{Counter, Histogram, counter, histogram};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::backoff::{Backoff, jitter};
use super::frame::{self, Message};
use super::keys::TenantKeys;
use super::memory::Share;
use super::router::{Master, Route, Table};
use super::script;
use super::subscriptions::{Listener, Missed};
use crate::commit::{Entry, Position, now_ms};
use crate::engine::{EngineError, Feed, Range};
use crate::room::Room;

/// Entries read from the log at a time.
const PAGE_ENTRIES: usize = 500;

/// A log that says nothing for so long is looked at: a message may have been lost where nobody saw it.
const QUIET_MAX: Duration = Duration::from_secs(20);

/// Entries of the first page that is read of a log; the next are larger or smaller as their bytes say.
const FIRST_PAGE_ENTRIES: usize = 64;

/// A page with fewer bytes is followed by a larger one.
const PAGE_BYTES_MIN: usize = 128 * 1024;

/// A page with more bytes is followed by a smaller one: the connection carries all tenants' commits.
const PAGE_BYTES_MAX: usize = 512 * 1024;

/// Bytes of entries that are read at a time; the entry that goes beyond is the last.
const RANGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Log entries that [`history`] looks at, at most.
const HISTORY_SCAN_MAX: usize = 20_000;

/// After a reconnection, tenants wait up to so long before they read their logs.
const RECONNECT_JITTER: Duration = Duration::from_millis(250);

static LAG: LazyLock<Histogram> = LazyLock::new(|| histogram!("pubsub_lag_seconds"));
static CATCH_UP: LazyLock<Histogram> = LazyLock::new(|| histogram!("catch_up_seconds"));
static CAUGHT_UP: LazyLock<Counter> = LazyLock::new(|| counter!("catch_up_entries_total"));

/// The log of one tenant, to be read.
#[derive(Clone)]
pub(super) struct Log {
    pub(super) route: Route,
    pub(super) keys: TenantKeys,
}

/// An entry of the stream; markers, which begin epochs, have no frame.
type Raw = (Position, Option<Bytes>);

impl Log {
    /// The position of the latest entry. The log begins here if there is none.
    pub(super) async fn top(&self) -> Result<Position, EngineError> {
        let keys = [&*self.keys.log(), &*self.keys.meta()];
        let seen = self.route.epoch_seen().to_string();
        let mut tries = self.route.tries();
        loop {
            let link = tries.link().await?;
            let arguments = [link.generation.as_bytes(), seen.as_bytes()];
            match script::TOP.run(&mut link.connection(), &keys, &arguments).await {
                Ok(answer) => {
                    let top = position(&answer)?;
                    self.route.saw(top);
                    return Ok(top);
                }
                Err(error) => tries.again_to_read(&link, &error).await?,
            }
        }
    }

    /// The entries after a position, at most `limit`. A position can be resumed from exactly when its own entry
    /// is still there; so it is read along.
    pub(super) async fn range(&self, after: Position, limit: usize) -> Result<Range, EngineError> {
        let mut entries = Vec::new();
        let mut from = after;
        let (mut size, mut total) = (FIRST_PAGE_ENTRIES, 0);
        while entries.len() < limit && total <= RANGE_BYTES_MAX {
            let wanted = (limit - entries.len()).min(size);
            let page = self.page("XRANGE", &from.to_string(), "+", wanted + 1).await?;
            if page.first().is_none_or(|(first, _)| *first != from) {
                return Ok(Range::Gone);
            }
            let last = page.len() <= wanted;
            from = page.last().map_or(from, |(position, _)| *position);
            total += bytes_of(&page);
            size = next_size(size, &page);
            for (position, frame) in page.into_iter().skip(1) {
                if let Some(frame) = frame {
                    entries.push(Arc::new(frame::decode_entry(position, &frame)?));
                }
            }
            if last {
                break;
            }
        }
        Ok(Range::Entries(entries))
    }

    /// From where a follower goes on whose position is gone: nothing that it had comes again.
    async fn resume_after_loss(&self, lost: Position) -> Result<Position, EngineError> {
        let before = self.page("XREVRANGE", &lost.to_string(), "-", 1).await?;
        if let Some((position, _)) = before.first() {
            return Ok(*position);
        }
        if let Some((position, _)) = self.page("XRANGE", "-", "+", 1).await?.first() {
            return Ok(*position);
        }
        // Where there is no log, asking for its top begins one. Others may have written to it by then: it is gone
        // on with from where it begins, not from its top.
        let top = self.top().await?;
        Ok(self.page("XRANGE", "-", "+", 1).await?.first().map_or(top, |(position, _)| *position))
    }

    /// The latest entries that publish to a room, oldest first.
    pub(super) async fn history(
        &self,
        room: &Room,
        before: Option<Position>,
        limit: usize,
    ) -> Result<Vec<Arc<Entry>>, EngineError> {
        let mut found = Vec::new();
        let mut end = before.map_or("+".to_owned(), |position| format!("({position}"));
        // Nothing is before the first position there can be, and Redis has no word for that.
        if before.is_some_and(|before| before <= Position { epoch: 0, seq: 0 }) {
            return Ok(found);
        }
        let (mut size, mut scanned) = (FIRST_PAGE_ENTRIES, 0);
        while scanned < HISTORY_SCAN_MAX {
            let page = self.page("XREVRANGE", &end, "-", size).await?;
            let Some((oldest, _)) = page.last() else { break };
            end = format!("({oldest}");
            let last = page.len() < size;
            scanned += page.len();
            size = next_size(size, &page);
            for (position, frame) in page {
                let Some(frame) = frame else { continue };
                let entry = Arc::new(frame::decode_entry(position, &frame)?);
                if found.len() < limit && frame::publishes_to(&entry, room) {
                    found.push(entry);
                }
            }
            if last || found.len() == limit {
                break;
            }
        }
        found.reverse();
        Ok(found)
    }

    async fn page(&self, command: &str, from: &str, to: &str, count: usize) -> Result<Vec<Raw>, EngineError> {
        let mut command = ::redis::cmd(command);
        command.arg(self.keys.log()).arg(from).arg(to).arg("COUNT").arg(count);
        let answer = self.route.ask(&command).await?;
        let Value::Array(entries) = answer else { return Err(unexpected(&answer)) };
        entries.into_iter().map(raw).collect()
    }
}

fn bytes_of(page: &[Raw]) -> usize {
    page.iter().flat_map(|(_, frame)| frame).map(Bytes::len).sum()
}

/// How many entries the page after this one has.
fn next_size(size: usize, page: &[Raw]) -> usize {
    match bytes_of(page) {
        few if few < PAGE_BYTES_MIN => (size * 2).min(PAGE_ENTRIES),
        many if many > PAGE_BYTES_MAX => (size / 4).max(1),
        _ => size,
    }
}

fn raw(entry: Value) -> Result<Raw, EngineError> {
    let Value::Array(parts) = entry else { return Err(unexpected(&entry)) };
    let mut parts = parts.into_iter();
    let (Some(id), Some(Value::Array(fields))) = (parts.next(), parts.next()) else {
        return Err(EngineError::Corrupt("an entry without id or fields".into()));
    };
    let mut fields = fields.into_iter();
    let frame = match (fields.next(), fields.next()) {
        (Some(Value::BulkString(name)), Some(Value::BulkString(frame))) if name == b"d" => Some(Bytes::from(frame)),
        _ => None,
    };
    Ok((position(&id)?, frame))
}

/// Reads a position that Redis answered.
pub(super) fn position(value: &Value) -> Result<Position, EngineError> {
    let text = match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok(),
        Value::SimpleString(text) => Some(text.as_str()),
        _ => None,
    };
    text.and_then(Position::parse).ok_or_else(|| unexpected(value))
}

/// An answer of a shape that Redis does not give.
pub(super) fn unexpected(value: &Value) -> EngineError {
    let kind = match value {
        Value::Nil => "nothing",
        Value::Array(_) => "a list of another length",
        _ => "a value of another kind",
    };
    EngineError::Corrupt(format!("Redis answered {kind}"))
}

/// Why the log is read although its entries come by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Hole,
    Epoch,
    Overflow,
    Reconnect,
    Quiet,
}

impl Cause {
    fn word(self) -> &'static str {
        match self {
            Cause::Hole => "hole",
            Cause::Epoch => "epoch",
            Cause::Overflow => "overflow",
            Cause::Reconnect => "reconnect",
            Cause::Quiet => "quiet",
        }
    }
}

impl From<Missed> for Cause {
    fn from(missed: Missed) -> Cause {
        match missed {
            Missed::Overflow => Cause::Overflow,
            Missed::Reconnect => Cause::Reconnect,
        }
    }
}

/// One feed at work.
pub(super) struct Pump {
    pub(super) log: Log,
    /// Who holds the log, and so the channel.
    pub(super) master: Arc<Master>,
    pub(super) changes: watch::Receiver<Arc<Table>>,
    pub(super) listener: Listener,
    pub(super) messages: mpsc::Receiver<Message>,
    pub(super) feed: mpsc::Sender<Feed>,
    /// Keeps what the feed was given; one feed of each tenant does.
    pub(super) share: Option<Share>,
    /// The last position that the feed was given.
    pub(super) at: Position,
}

/// The follower is gone.
struct Closed;

impl Pump {
    /// Feeds until the follower is gone or `stop` is cancelled.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let feed = self.feed.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = feed.closed() => {}
            _ = self.pump() => {}
        }
    }

    async fn pump(&mut self) -> Result<(), Closed> {
        loop {
            let quiet_until = Instant::now() + QUIET_MAX;
            tokio::select! {
                biased;
                changed = self.changes.changed() => {
                    changed.map_err(|_| Closed)?;
                    self.go_to_master().await?;
                }
                missed = self.listener.behind() => self.catch_up(missed.into()).await?,
                message = self.messages.recv() => match message {
                    Some(message) => self.take(message).await?,
                    None => return Err(Closed),
                },
                () = sleep_until(quiet_until) => self.catch_up(Cause::Quiet).await?,
            }
        }
    }

    /// Listens where the log is now, if that is elsewhere than before.
    async fn go_to_master(&mut self) -> Result<(), Closed> {
        let mut backoff = Backoff::new();
        loop {
            if let Ok(master) = self.log.route.master() {
                if Arc::ptr_eq(&master, &self.master) {
                    return Ok(());
                }
                if let Ok((listener, messages)) = master.subscriptions.listen(self.log.keys.channel()).await {
                    (self.listener, self.messages, self.master) = (listener, messages, master);
                    return self.catch_up(Cause::Reconnect).await;
                }
            }
            sleep(backoff.next()).await;
        }
    }

    async fn take(&mut self, message: Message) -> Result<(), Closed> {
        match message {
            Message::Ephemeral(bytes) => {
                if let Some(publication) = frame::decode_ephemeral(&bytes) {
                    // Dropped first under pressure: that is what ephemeral means.
                    _ = self.feed.try_send(Feed::Ephemeral(Arc::new(publication)));
                }
                Ok(())
            }
            Message::Entry(position, _) if position <= self.at => Ok(()),
            Message::Entry(position, frame) if position == self.at.next() => {
                match frame::decode_entry(position, &frame) {
                    Ok(entry) => {
                        let here = now_ms().saturating_add_signed(self.master.commands.ahead_ms());
                        LAG.record(Duration::from_millis(here.saturating_sub(entry.at)));
                        self.give(Arc::new(entry)).await
                    }
                    Err(_) => self.catch_up(Cause::Hole).await,
                }
            }
            Message::Entry(position, _) if position.epoch > self.at.epoch => self.catch_up(Cause::Epoch).await,
            Message::Entry(..) => self.catch_up(Cause::Hole).await,
        }
    }

    async fn give(&mut self, entry: Arc<Entry>) -> Result<(), Closed> {
        let position = entry.position;
        // A commit of this node was answered, and the log went on without it: what was acknowledged is lost.
        let told = self.share.as_ref().map(Share::told);
        if told.is_some_and(|told| told.epoch < position.epoch && told > self.at) {
            warn!(base = self.log.keys.base(), at = %self.at, ?told, "commits that were answered are lost");
            self.reset(self.at).await?;
        }
        self.feed.send(Feed::Entry(entry.clone())).await.map_err(|_| Closed)?;
        if let Some(share) = &self.share {
            share.keep(entry);
        }
        self.log.route.saw(position);
        self.at = position;
        Ok(())
    }

    async fn reset(&mut self, position: Position) -> Result<(), Closed> {
        // First: nothing that was lost is to be read from memory when the follower knows of it.
        if let Some(share) = &self.share {
            share.begin_after(position);
        }
        self.feed.send(Feed::Reset(position)).await.map_err(|_| Closed)?;
        self.at = position;
        Ok(())
    }

    /// Reads the log up to its top, however long the server takes to answer.
    async fn catch_up(&mut self, cause: Cause) -> Result<(), Closed> {
        let (since, from) = (Instant::now(), self.at);
        if cause == Cause::Reconnect {
            sleep(jitter(RECONNECT_JITTER)).await;
        }
        let mut backoff = Backoff::new();
        loop {
            self.listener.catching_up();
            match self.catch_up_once().await {
                Ok(Ok(())) => break,
                Ok(Err(closed)) => return Err(closed),
                Err(EngineError::Corrupt(why)) => {
                    error!(base = self.log.keys.base(), why, "an entry of the log cannot be read: it is skipped");
                    let skipped = self.log.page("XRANGE", &format!("({}", self.at), "+", 1).await;
                    if let Some((position, _)) = skipped.ok().and_then(|page| page.into_iter().next()) {
                        self.reset(position).await?;
                    }
                }
                Err(why) => warn!(base = self.log.keys.base(), %why, "cannot catch up with the log yet"),
            }
            sleep(backoff.next()).await;
        }
        CATCH_UP.record(since.elapsed());
        if self.at != from {
            counter!("log_gaps_total", "cause" => cause.word()).increment(1);
        }
        Ok(())
    }

    async fn catch_up_once(&mut self) -> Result<Result<(), Closed>, EngineError> {
        loop {
            let range = {
                // Never closed; held while the log is read, not while the follower takes what was read.
                let _permit = self.master.catch_ups.acquire().await;
                self.log.range(self.at, PAGE_ENTRIES).await?
            };
            match range {
                Range::Gone => {
                    let position = self.log.resume_after_loss(self.at).await?;
                    warn!(base = self.log.keys.base(), lost = %self.at, resumed = %position, "entries are lost");
                    if let Err(closed) = self.reset(position).await {
                        return Ok(Err(closed));
                    }
                }
                Range::Entries(entries) => {
                    // A short answer may be one of few large entries.
                    let last = entries.is_empty();
                    CAUGHT_UP.increment(entries.len() as u64);
                    for entry in entries {
                        if let Err(closed) = self.give(entry).await {
                            return Ok(Err(closed));
                        }
                    }
                    if last {
                        return Ok(Ok(()));
                    }
                }
            }
        }
    }
}
