//! What a tenant's plugins say, gathered from all nodes for whoever looks at it now.
//!
//! Each node keeps the latest lines in its memory. One that is asked for them asks the others through the engine, with
//! publications that no log keeps, and goes on asking as long as somebody looks; nothing is stored. What cannot be sent
//! is counted and told, never waited for.

mod answering;

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::answering::Answering;
use crate::client::random_id;
use crate::commit::{Millis, Publication, now_ms};
use crate::decision::plugin::{JournalEntry, JournalTail};
use crate::engine::{EngineError, Feed};
use crate::event::Payload;
use crate::gateway::Gateway;
use crate::room::Room;
use crate::tenant::TenantId;

/// How many may look at the same time on one node.
pub const LISTENERS_MAX: usize = 32;

/// How many of them at one tenant's lines, so that its readers leave room for others'.
pub const LISTENERS_OF_TENANT_MAX: usize = 8;

/// The most lines of one node to begin with.
pub const LINES_MAX: usize = 1_000;

/// How long the other nodes are waited for to begin with.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the other nodes are asked to go on.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(4);

/// Batches that wait for whoever looks; more are dropped and counted.
const BATCHES_MAX: usize = 64;

/// Lines that are taken of the own journal at a time.
const LINES_AT_ONCE: usize = 200;

/// How long to wait before following again after it ended.
const FOLLOW_REST: Duration = Duration::from_secs(1);

/// The event that all of this goes by.
const EVENT: &str = "tail";

/// One line of a tenant's plugins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When, by the clock of its node.
    pub at_ms: Millis,
    /// Its node.
    pub server: Arc<str>,
    /// Counts from 1 on its node.
    pub seq: u64,
    /// Whose.
    pub plugin: Arc<str>,
    /// The SHA-256 of the component, in hexadecimal.
    pub digest: Arc<str>,
    /// How much it matters: `trace` to `error`.
    pub level: String,
    /// `log`, or `failure` where the gateway says it.
    pub kind: String,
    /// What; without control characters.
    pub message: String,
}

impl Line {
    fn of(entry: &JournalEntry, server: &Arc<str>) -> Line {
        Line {
            at_ms: entry.at_ms,
            server: server.clone(),
            seq: entry.seq,
            plugin: entry.plugin.clone(),
            digest: entry.digest.clone(),
            level: entry.level.word().to_owned(),
            kind: entry.kind.word().to_owned(),
            message: entry.message.clone(),
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Whose lines.
    pub tenant: TenantId,
    /// Only this plugin's.
    #[serde(default)]
    pub plugin: Option<String>,
    /// Only lines after this moment.
    #[serde(default)]
    pub after_ms: Millis,
    /// How many of the latest lines to begin with, at most [`LINES_MAX`].
    pub limit: usize,
    /// And those that come.
    #[serde(default)]
    pub follow: bool,
}

impl Wanted {
    fn takes(&self, entry: &JournalEntry) -> bool {
        entry.at_ms > self.after_ms && self.plugin.as_deref().is_none_or(|plugin| plugin == &*entry.plugin)
    }
}

/// Lines, and how many were lost before them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// In the order of their node.
    pub lines: Vec<Line>,
    /// Lines that could not be sent or kept.
    pub lost: u64,
}

/// What nodes say to each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "snake_case")]
enum Word {
    /// Say what you have, and go on for a while.
    Ask { id: String, server: Arc<str>, wanted: Wanted },
    /// This is what I have.
    Lines {
        id: String,
        server: Arc<str>,
        lines: Vec<Line>,
        lost: u64,
        /// Was that all there was to begin with?
        begun: bool,
    },
    /// Something of a later version.
    #[serde(other)]
    Other,
}

/// Whose lines somebody listens to, and where they go.
type Ear = (TenantId, mpsc::Sender<(Batch, bool)>);

/// Who looks on this node, and for whom it answers.
#[derive(Default)]
pub struct Tail {
    listening: Mutex<HashMap<String, Ear>>,
    answering: Answering,
}

/// As many look already as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "as many look at logs on this node already as may: {LISTENERS_MAX}, or {LISTENERS_OF_TENANT_MAX} of one tenant \
     (LISTENERS_MAX, LISTENERS_OF_TENANT_MAX)"
)]
pub struct TooMany;

/// Somebody who looks.
pub struct Listener {
    gateway: Arc<Gateway>,
    id: String,
    own: Arc<str>,
    wanted: Wanted,
    others: mpsc::Receiver<(Batch, bool)>,
    journal: JournalTail,
    /// The latest line of each node, so that none comes twice.
    latest: HashMap<Arc<str>, u64>,
    renewal: Instant,
}

/// Listens to what the nodes say to each other, until the gateway ends.
pub async fn run(gateway: Arc<Gateway>) {
    let stopping = gateway.tasks.stopping().clone();
    stopping
        .run_until_cancelled(async {
            loop {
                listen(&gateway).await;
                tokio::time::sleep(FOLLOW_REST).await;
            }
        })
        .await;
}

async fn listen(gateway: &Arc<Gateway>) {
    let Ok(mut follower) = gateway.engine.follow(&TenantId::catalog()).await else { return };
    while let Some(feed) = follower.feed.recv().await {
        let Feed::Ephemeral(publication) = feed else { continue };
        if &*publication.event != EVENT {
            continue;
        }
        let word = publication.data.first().and_then(|word| serde_json::from_value(word).ok());
        match word {
            Some(Word::Ask { id, server, wanted }) if *server != *gateway.server_id => {
                gateway.tail.answering.answer(gateway, id, wanted);
            }
            Some(Word::Lines { id, server, lines, lost, begun }) if *server != *gateway.server_id => {
                gateway.tail.hear(&id, Batch { lines, lost }, begun);
            }
            _ => {}
        }
    }
}

/// Says something to the other nodes.
async fn say(gateway: &Gateway, word: &Word) -> Result<(), EngineError> {
    let data = Payload::one(&serde_json::to_value(word).unwrap_or_default());
    let publication = Publication { room: Room::everyone("/"), event: EVENT.into(), data, except: None };
    gateway.engine.publish_ephemeral(&TenantId::catalog(), publication).await
}

impl Tail {
    fn hear(&self, id: &str, batch: Batch, begun: bool) {
        let mut listening = self.listening.lock();
        let Some((_, listener)) = listening.get(id) else { return };
        // Whoever looks and does not keep up misses lines; the numbers of those that follow tell.
        if let Err(mpsc::error::TrySendError::Closed(_)) = listener.try_send((batch, begun)) {
            listening.remove(id);
        }
    }
}

impl Listener {
    /// Begins to look.
    ///
    /// # Errors
    /// Too many look.
    pub fn new(gateway: &Arc<Gateway>, wanted: Wanted) -> Result<Listener, TooMany> {
        let wanted = Wanted { limit: wanted.limit.min(LINES_MAX), ..wanted };
        let (sender, others) = mpsc::channel(BATCHES_MAX);
        let id = random_id();
        let mut listening = gateway.tail.listening.lock();
        let of_tenant = listening.values().filter(|(tenant, _)| *tenant == wanted.tenant).count();
        if listening.len() >= LISTENERS_MAX || of_tenant >= LISTENERS_OF_TENANT_MAX {
            return Err(TooMany);
        }
        listening.insert(id.clone(), (wanted.tenant.clone(), sender));
        drop(listening);
        Ok(Listener {
            id,
            own: gateway.server_id.as_str().into(),
            journal: gateway.host.journal(&wanted.tenant).subscribe(),
            gateway: gateway.clone(),
            wanted,
            others,
            latest: HashMap::new(),
            renewal: Instant::now(),
        })
    }

    async fn ask(&mut self) -> Result<(), EngineError> {
        self.renewal = Instant::now() + RENEWAL_INTERVAL;
        let (id, server, wanted) = (self.id.clone(), self.own.clone(), self.wanted.clone());
        say(&self.gateway, &Word::Ask { id, server, wanted }).await
    }

    /// The latest lines of all nodes in the order of their times; `false`: not every node has answered.
    pub async fn collect(&mut self) -> (Vec<Line>, bool) {
        let deadline = Instant::now() + COLLECT_TIMEOUT;
        let live = self.gateway.engine.nodes();
        let mut missing = live.iter().filter(|node| *node.server != *self.own).count();
        let asked = self.ask().await.is_ok();
        let latest = self.gateway.host.journal(&self.wanted.tenant).latest(LINES_MAX);
        let own = latest.iter().filter(|entry| self.wanted.takes(entry)).map(|entry| Line::of(entry, &self.own));
        let mut lines = self.unseen(own.collect());
        while asked && missing > 0 {
            let Ok(Some((batch, begun))) = tokio::time::timeout_at(deadline, self.others.recv()).await else { break };
            missing -= usize::from(begun);
            lines.extend(self.unseen(batch.lines));
        }
        lines.sort_by(|a, b| (a.at_ms, &a.server, a.seq).cmp(&(b.at_ms, &b.server, b.seq)));
        lines.drain(..lines.len().saturating_sub(self.wanted.limit));
        (lines, asked && missing == 0)
    }

    /// What comes next, of this node or another.
    pub async fn next(&mut self) -> Batch {
        loop {
            tokio::select! {
                news = self.journal.next(LINES_AT_ONCE) => {
                    let taken = news.entries.iter().filter(|entry| self.wanted.takes(entry));
                    let lines = taken.map(|entry| Line::of(entry, &self.own)).collect();
                    let batch = Batch { lines: self.unseen(lines), lost: news.lost };
                    if batch != Batch::default() {
                        return batch;
                    }
                }
                Some((batch, _)) = self.others.recv() => {
                    let batch = Batch { lines: self.unseen(batch.lines), lost: batch.lost };
                    if batch != Batch::default() {
                        return batch;
                    }
                }
                () = tokio::time::sleep_until(self.renewal) => {
                    if let Err(error) = self.ask().await {
                        tracing::debug!(%error, "the other nodes could not be asked for their log lines");
                    }
                }
            }
        }
    }

    /// Those that have not come before: nodes that are asked again may begin again.
    fn unseen(&mut self, lines: Vec<Line>) -> Vec<Line> {
        let mut unseen = Vec::with_capacity(lines.len());
        for line in lines {
            let latest = self.latest.entry(line.server.clone()).or_default();
            if line.seq > *latest {
                *latest = line.seq;
                unseen.push(line);
            }
        }
        unseen
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.gateway.tail.listening.lock().remove(&self.id);
    }
}

/// A line of the gateway's own about what is missing; it has no number.
pub fn about_loss(server: &str, message: String) -> Line {
    Line {
        at_ms: now_ms(),
        server: server.into(),
        seq: 0,
        plugin: "".into(),
        digest: "".into(),
        level: "warn".into(),
        kind: "lost".into(),
        message,
    }
}
