//! The task that owns a tenant's delivery on this node: commands, the log's feed, and the engine's outages in turn.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::members::Members;
use super::{Command, People, Place};
use crate::commit::Position;
use crate::engine::{Feed, Health};
use crate::event::Payload;
use crate::telemetry::labels;
use crate::tenant::TenantId;

/// How many entries are handed out before anything is written: what came together is written together.
const ENTRIES_PER_BATCH: usize = 64;

/// How long the engine is away before clients are told: shorter outages are nothing but late answers.
const DEGRADED_AFTER: Duration = Duration::from_secs(1);

/// See the [module's text](self).
pub(super) struct Task {
    tenant: TenantId,
    members: Members,
    applied: watch::Sender<Position>,
    resets: watch::Sender<u64>,
    outage: Outage,
}

/// What the clients know of the engine.
struct Outage {
    health: watch::Receiver<Health>,
    /// Since when it is away, if they were told so.
    told: Option<Instant>,
}

impl Outage {
    /// Waits until there is something to tell: since when it is away, or `None` when it is back. May be dropped
    /// half-way.
    async fn news(&mut self) -> Option<Instant> {
        loop {
            let down = match *self.health.borrow_and_update() {
                Health::Up => None,
                Health::Down { since, .. } => Some(since),
            };
            match (down, self.told) {
                (None, Some(_)) => return None,
                (Some(since), None) if since.elapsed() >= DEGRADED_AFTER => return Some(since),
                _ => {}
            }
            let tell_at = down.filter(|_| self.told.is_none()).map(|since| since + DEGRADED_AFTER);
            let changed = async {
                // Without an engine there are no news any more.
                if self.health.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            match tell_at {
                Some(at) => tokio::select! { () = changed => {}, () = tokio::time::sleep_until(at) => {} },
                None => changed.await,
            }
        }
    }
}

impl Task {
    /// With nobody yet. `applied`: where the position goes up to which the log was handed out; `resets`: how often
    /// entries were lost.
    pub(super) fn new(
        tenant: TenantId,
        people: People,
        health: watch::Receiver<Health>,
        applied: watch::Sender<Position>,
        resets: watch::Sender<u64>,
    ) -> Task {
        Task { tenant, members: Members::of(people), applied, resets, outage: Outage { health, told: None } }
    }

    pub(super) async fn run(mut self, mut mailbox: mpsc::Receiver<Command>, mut feed: mpsc::Receiver<Feed>) {
        let mut batch = Vec::with_capacity(ENTRIES_PER_BATCH);
        loop {
            let announce_at = self.members.announcer.next_due();
            tokio::select! {
                // Commands first: a connection is attached before anything is committed for it.
                biased;
                command = mailbox.recv() => match command {
                    Some(Command::Census { answer }) => {
                        // Whoever asked may not wait any more.
                        let _ = answer.send(self.members.census(*self.applied.borrow()));
                    }
                    Some(command) => {
                        let after = *self.applied.borrow();
                        self.members.on_command(command, after);
                    }
                    None => return,
                },
                () = tokio::time::sleep_until(announce_at.unwrap_or_else(Instant::now)), if announce_at.is_some() => {
                    let after = *self.applied.borrow();
                    for announcement in self.members.announcer.due(Instant::now()) {
                        self.members.announce(&announcement, after);
                    }
                    self.members.flush();
                }
                away = self.outage.news() => self.on_outage(away),
                count = feed.recv_many(&mut batch, ENTRIES_PER_BATCH) => {
                    if count == 0 {
                        tracing::warn!(tenant = %self.tenant, "the engine ended the feed");
                        return;
                    }
                    for item in batch.drain(..) {
                        self.on_feed(item);
                    }
                    self.members.flush();
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn on_outage(&mut self, away: Option<Instant>) {
        let before = std::mem::replace(&mut self.outage.told, away);
        let after = *self.applied.borrow();
        match (away, before) {
            (Some(_), _) => {
                let data = serde_json::json!({ "code": "engine_unavailable" });
                self.members.tell_all("degraded", &Payload::one(&data), after);
            }
            (None, Some(since)) => {
                let after_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.members.tell_all("restored", &Payload::one(&serde_json::json!({ "after_ms": after_ms })), after);
            }
            (None, None) => {}
        }
    }

    fn on_feed(&mut self, item: Feed) {
        match item {
            Feed::Entry(entry) => {
                metrics::histogram!("delivery_lag_seconds").record(crate::commit::seconds_since(entry.at));
                let after = *self.applied.borrow();
                self.members.on_entry(&entry, after);
                self.applied.send_replace(entry.position);
            }
            Feed::Ephemeral(publication) => {
                let after = *self.applied.borrow();
                self.members.publish(&publication, Place::Passing(after));
            }
            Feed::Reset(position) => {
                metrics::counter!("delivery_resets_total", "tenant" => labels::of_tenant(self.tenant.as_str()))
                    .increment(1);
                // First, so that no word behind the reset carries a position that was lost.
                self.applied.send_replace(position);
                self.members.reset(position);
                self.resets.send_modify(|resets| *resets += 1);
            }
        }
    }
}
