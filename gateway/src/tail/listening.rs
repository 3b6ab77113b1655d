//! Somebody who looks at lines, and what the nodes say to each other for that.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::answering::answer;
use super::{Batch, LINES_MAX, LISTENERS_MAX, LISTENERS_OF_TENANT_MAX, Line, TooMany, Wanted, Word};
use crate::client::random_id;
use crate::commit::Publication;
use crate::decision::plugin::JournalTail;
use crate::engine::{EngineError, Feed};
use crate::event::Payload;
use crate::gateway::Gateway;
use crate::room::Room;
use crate::tenant::TenantId;

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
                answer(gateway, id, wanted);
            }
            Some(Word::Lines { id, server, lines, lost, begun }) if *server != *gateway.server_id => {
                gateway.tail.hear(&id, Batch { lines, lost }, begun);
            }
            _ => {}
        }
    }
}

/// Says something to the other nodes.
pub(super) async fn say(gateway: &Gateway, word: &Word) -> Result<(), EngineError> {
    let data = Payload::one(&serde_json::to_value(word).unwrap_or_default());
    let publication = Publication { room: Room::everyone("/"), event: EVENT.into(), data, except: None };
    gateway.engine.publish_ephemeral(&TenantId::catalog(), publication).await
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
