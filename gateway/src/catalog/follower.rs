//! One node's view of the catalog: builds and changes the tenants that it serves, as the catalog says.
//!
//! It is told of each change in the order of the catalog's log, and looks through everything now and then, and whenever
//! something of that log was lost. Each tenant is brought up to date by itself, one change after the other; a slow
//! compilation holds up nobody else. What cannot be served leaves what was served before as it is: it is told in the log,
//! in metrics and by [`Catalog::troubles`](super::Catalog::troubles).
//!
//! Whoever rolls a version out writes it into the plugin's record. Every node then loads it beside what runs, says so,
//! and whichever sees that all have it makes it active; see [`rollouts`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::{CatalogError, Changed, Feeder, News, PAGE_MAX};
use crate::gateway::Gateway;
use crate::tenant::TenantId;
use breakers::Breakers;
use rollouts::Rollouts;
use tenant::{Synced, TenantState};

mod breakers;
mod rollouts;
mod shelf;
mod tenant;

/// How often everything is looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// How long following rests when the engine does not answer, and a tenant that could not be brought up to date.
const ERROR_REST: Duration = Duration::from_secs(1);

/// The longest that such a tenant rests: each failure doubles it.
const ERROR_REST_MAX: Duration = Duration::from_secs(60);

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(200);

/// Tenants that are brought up to date at the same time: of those that are served already, and of the others.
const SYNCING_MAX: usize = 16;

/// How long the first look may take before the node starts without.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(120);

type Syncing = Pin<Box<dyn Future<Output = (TenantState, Synced)> + Send>>;

/// See the [module's text](self).
pub struct CatalogFollower {
    gateway: Arc<Gateway>,
    feeder: Option<Feeder>,
    /// Those that rest; the others are being brought up to date.
    resting: HashMap<TenantId, TenantState>,
    syncing: FuturesUnordered<Syncing>,
    /// Those that are being brought up to date; `true`: they were served already.
    busy: HashMap<TenantId, bool>,
    /// To be brought up to date, in this order, each once.
    due: VecDeque<TenantId>,
    /// The same of those that are served already: they go first.
    due_served: VecDeque<TenantId>,
    /// All that are in one of these lines.
    queued: HashSet<TenantId>,
    /// To be tried again.
    later: HashMap<TenantId, Instant>,
    rollouts: Rollouts,
    breakers: Breakers,
    /// How many changes there had been at the last look through everything.
    changes_seen: Option<u64>,
    /// How many there have been at least, news included: fewer means that the catalog was lost.
    changes_most: u64,
    /// Something was heard since they were counted.
    changes_heard: bool,
    /// Has something of the log been missed since then?
    missed: bool,
    sweep_at: Instant,
    /// Tenants that are written in files as well, and were told of.
    shadowed: HashSet<TenantId>,
}

impl CatalogFollower {
    /// Brings everything up to date once. What cannot be served does not hinder the start.
    ///
    /// # Errors
    /// When the catalog cannot be read at all.
    pub async fn start(gateway: Arc<Gateway>) -> Result<CatalogFollower, CatalogError> {
        let mut follower = CatalogFollower {
            rollouts: Rollouts::new(gateway.clone()),
            breakers: Breakers::new(gateway.clone()),
            gateway,
            feeder: None,
            resting: HashMap::new(),
            syncing: FuturesUnordered::new(),
            busy: HashMap::new(),
            due: VecDeque::new(),
            due_served: VecDeque::new(),
            queued: HashSet::new(),
            later: HashMap::new(),
            changes_seen: None,
            changes_most: 0,
            changes_heard: false,
            missed: false,
            sweep_at: Instant::now() + SWEEP_EVERY,
            shadowed: HashSet::new(),
        };
        // Followed first: what changes while the records are read is heard of.
        follower.feeder = Some(follower.gateway.catalog.follow().await?);
        follower.sweep(true).await?;
        let all = async {
            while !follower.queued.is_empty() || !follower.syncing.is_empty() {
                follower.begin();
                if let Some((state, synced)) = follower.syncing.next().await {
                    follower.ended(state, synced);
                }
            }
        };
        if tokio::time::timeout(FIRST_LOOK_MAX, all).await.is_err() {
            tracing::warn!(
                left = follower.busy.len() + follower.queued.len(),
                "tenants of the catalog are still being loaded"
            );
        }
        Ok(follower)
    }

    /// Follows the catalog until the node stops.
    pub async fn run(mut self) {
        let stopping = self.gateway.tasks.stopping().clone();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.begin();
            tokio::select! {
                () = stopping.cancelled() => return,
                news = news(&mut self.feeder) => self.heard(news),
                Some((state, synced)) = self.syncing.next() => self.ended(state, synced),
                () = self.rollouts.next() => {}
                () = self.breakers.next() => {}
                _ = tick.tick() => self.on_tick().await,
            }
        }
    }

    fn heard(&mut self, news: Option<Vec<News>>) {
        let Some(news) = news else {
            self.feeder = None;
            self.sweep_at = Instant::now();
            return;
        };
        for news in news {
            match news {
                News::Changed(Changed::Tenant { tenant }) => {
                    self.changes_heard = true;
                    self.dirty(tenant);
                }
                News::Changed(Changed::Ready { tenant, plugin }) => self.rollouts.reported(&tenant, &plugin),
                News::Changed(Changed::Other) => {}
                News::Lost => {
                    // How many changes there had been stays known: it tells a loss of the catalog from a loss of its log.
                    self.missed = true;
                    self.sweep_at = Instant::now();
                }
            }
        }
    }

    async fn on_tick(&mut self) {
        let now = Instant::now();
        self.rollouts.on_tick(now);
        let due: Vec<_> = self.later.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.later.remove(&id);
            self.dirty(id);
        }
        if self.changes_heard
            && let Ok(changes) = self.gateway.catalog.changes().await
        {
            self.changes_heard = false;
            self.changes_most = self.changes_most.max(changes);
        }
        if self.sweep_at > now {
            return;
        }
        self.sweep_at = now + SWEEP_EVERY;
        if let Err(error) = self.look().await {
            tracing::warn!(%error, "the catalog cannot be looked through now");
            self.sweep_at = Instant::now() + ERROR_REST;
        }
    }

    async fn look(&mut self) -> Result<(), CatalogError> {
        if self.feeder.is_none() {
            self.feeder = Some(self.gateway.catalog.follow().await?);
            // Until everything was looked through, however often that fails.
            self.missed = true;
        }
        self.sweep(self.missed).await?;
        self.missed = false;
        Ok(())
    }

    fn dirty(&mut self, id: TenantId) {
        if !self.queued.insert(id.clone()) {
            return;
        }
        let is_served = self.busy.get(&id).copied().unwrap_or_default();
        if is_served || self.resting.get(&id).is_some_and(TenantState::is_served) {
            self.due_served.push_back(id);
        } else {
            self.due.push_back(id);
        }
    }

    /// Looks through all tenants, if anything has changed since the last time.
    async fn sweep(&mut self, anyway: bool) -> Result<(), CatalogError> {
        let catalog = self.gateway.catalog.clone();
        let changes = catalog.changes().await?;
        if !anyway && self.changes_seen == Some(changes) {
            return Ok(());
        }
        // The catalog was lost with its engine's data: what was served goes on.
        let lost = changes < self.changes_most;
        let mut there = HashSet::new();
        let mut after: Option<String> = None;
        loop {
            let page = catalog.tenants(after.as_deref(), PAGE_MAX).await?;
            for record in page.tenants {
                let state = self.resting.get_mut(&record.name);
                let current = state.is_some_and(|state| {
                    // It is there again: from now on its deletion counts.
                    state.lost = false;
                    state.is_at(&record)
                });
                if !current {
                    self.dirty(record.name.clone());
                }
                there.insert(record.name);
            }
            for (id, why) in page.unreadable {
                tracing::error!(tenant = %id, why, "a tenant's record cannot be read: what was served goes on");
                catalog.trouble(&id, vec![why]);
                there.insert(id);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let gone: Vec<_> = self.resting.keys().filter(|id| !there.contains(*id)).cloned().collect();
        if lost {
            metrics::counter!("catalog_losses_total").increment(1);
            tracing::error!(
                tenants = gone.len(),
                "the catalog has lost records with its engine's data: tenants that \
                are not in it any more are served as they were until this node stops"
            );
            for id in gone {
                if let Some(state) = self.resting.get_mut(&id) {
                    state.lost = true;
                }
            }
        } else {
            for id in gone {
                if self.resting.get(&id).is_some_and(|state| !state.lost) {
                    self.dirty(id);
                }
            }
        }
        (self.changes_seen, self.changes_most) = (Some(changes), changes);
        Ok(())
    }

    /// Begins to bring tenants up to date, as many as may be at the same time, each once; first those that are served.
    fn begin(&mut self) {
        let due = std::mem::take(&mut self.due_served);
        self.due_served = self.begin_some(due, true);
        let due = std::mem::take(&mut self.due);
        self.due = self.begin_some(due, false);
    }

    /// Answers those that wait. Looks at no more of them than there are places, and at those that are busy.
    fn begin_some(&mut self, mut due: VecDeque<TenantId>, served: bool) -> VecDeque<TenantId> {
        let mut places = SYNCING_MAX.saturating_sub(self.busy.values().filter(|busy| **busy == served).count());
        let mut wait = Vec::new();
        while places > 0 {
            let Some(id) = due.pop_front() else { break };
            if self.busy.contains_key(&id) {
                wait.push(id);
                continue;
            }
            self.queued.remove(&id);
            if let Some(file) = self.gateway.catalog.file_of(&id) {
                if self.shadowed.insert(id.clone()) {
                    let file = file.display();
                    tracing::warn!(tenant = %id, %file, "a tenant of the catalog is also written in a file: the file counts");
                }
                continue;
            }
            places -= 1;
            self.busy.insert(id.clone(), served);
            let state = self.resting.remove(&id).unwrap_or_else(|| TenantState::new(id));
            self.syncing.push(Box::pin(state.sync(self.gateway.clone())));
        }
        for id in wait.into_iter().rev() {
            due.push_front(id);
        }
        due
    }

    fn ended(&mut self, mut state: TenantState, synced: Synced) {
        let id = state.id.clone();
        self.busy.remove(&id);
        match synced {
            Synced::Gone => {
                self.rollouts.forget(&id);
                self.gateway.catalog.trouble(&id, Vec::new());
                if state.is_worth_keeping() {
                    self.resting.insert(id, state);
                }
            }
            Synced::Done { rollouts } => {
                state.failures = 0;
                self.rollouts.follow(&id, rollouts);
                self.resting.insert(id, state);
            }
            Synced::Failed { why, again, rollouts } => {
                tracing::error!(tenant = %id, ?why, "a tenant of the catalog cannot be served as it is written; what was served goes on");
                self.gateway.catalog.trouble(&id, why);
                if let Some(rollouts) = rollouts {
                    self.rollouts.follow(&id, rollouts);
                }
                if again {
                    let rest = ERROR_REST.saturating_mul(1 << state.failures.min(6)).min(ERROR_REST_MAX);
                    state.failures += 1;
                    self.later.insert(id.clone(), Instant::now() + rest);
                }
                self.resting.insert(id, state);
            }
        }
    }
}

/// The next news; never, while nothing is followed.
async fn news(feeder: &mut Option<Feeder>) -> Option<Vec<News>> {
    match feeder {
        Some(feeder) => feeder.next().await,
        None => std::future::pending().await,
    }
}
