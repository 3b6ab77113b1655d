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

use super::{CatalogError, Changed, Feeder, News, TenantPage};
use crate::gateway::Gateway;
use crate::tenant::TenantId;
use breakers::Breakers;
use collector::Collector;
use look::{Found, Look};
use rollouts::Rollouts;
use statement::Statement;
use tenant::{Synced, TenantState};
use terms::Terms;

mod breakers;
mod collector;
mod look;
mod rollouts;
mod shelf;
mod statement;
mod tenant;
mod terms;

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

/// Tenants whose settings and keys are put into force at the same time, ahead of their components.
const HURRYING_MAX: usize = 16;

/// How long the first look may take before the node starts without those that are still being loaded.
pub const FIRST_LOOK_MAX: Duration = Duration::from_secs(120);

type Syncing = Pin<Box<dyn Future<Output = (TenantState, Synced)> + Send>>;
type Hurrying = Pin<Box<dyn Future<Output = ()> + Send>>;
type Counting = Pin<Box<dyn Future<Output = Result<u64, CatalogError>> + Send>>;

/// One that is being brought up to date.
struct Busy {
    /// Was it served already?
    is_served: bool,
    /// Is it served though its record was lost?
    lost: bool,
    terms: Arc<Terms>,
}

/// See the [module's text](self).
pub struct CatalogFollower {
    gateway: Arc<Gateway>,
    feeder: Option<Feeder>,
    /// Those that rest; the others are being brought up to date.
    resting: HashMap<TenantId, TenantState>,
    syncing: FuturesUnordered<Syncing>,
    /// Those that are being brought up to date.
    busy: HashMap<TenantId, Busy>,
    /// To be brought up to date, in this order, each once.
    due: VecDeque<TenantId>,
    /// The same of those that are served already: they go first.
    due_served: VecDeque<TenantId>,
    /// All that are in one of these lines.
    queued: HashSet<TenantId>,
    /// Those of the served ones that do not wait for that with their settings and keys, in this order, each once.
    urgent: VecDeque<TenantId>,
    /// The same.
    is_urgent: HashSet<TenantId>,
    hurrying: FuturesUnordered<Hurrying>,
    /// To be tried again.
    later: HashMap<TenantId, Instant>,
    rollouts: Rollouts,
    breakers: Breakers,
    collector: Collector,
    statement: Statement,
    /// How many changes there had been at the last look through everything.
    changes_seen: Option<u64>,
    /// How many there have been at least, news included: fewer means that the catalog was lost.
    changes_most: u64,
    /// Something was heard since they were counted.
    changes_heard: bool,
    /// Has something of the log been missed since then?
    missed: bool,
    look_at: Instant,
    look: Option<Look>,
    counting: Option<Counting>,
    /// Tenants that are written in files as well, and were told of.
    shadowed: HashSet<TenantId>,
}

impl CatalogFollower {
    /// Brings everything up to date once. What cannot be served does not hinder the start, nor what is not there after
    /// `first_look_max`.
    ///
    /// # Errors
    /// When the catalog cannot be read at all.
    pub async fn start(gateway: Arc<Gateway>, first_look_max: Duration) -> Result<CatalogFollower, CatalogError> {
        let mut follower = CatalogFollower {
            rollouts: Rollouts::new(gateway.clone()),
            breakers: Breakers::new(gateway.clone()),
            collector: Collector::new(gateway.clone()),
            statement: Statement::new(gateway.clone()),
            gateway,
            feeder: None,
            resting: HashMap::new(),
            syncing: FuturesUnordered::new(),
            busy: HashMap::new(),
            due: VecDeque::new(),
            due_served: VecDeque::new(),
            queued: HashSet::new(),
            urgent: VecDeque::new(),
            is_urgent: HashSet::new(),
            hurrying: FuturesUnordered::new(),
            later: HashMap::new(),
            changes_seen: None,
            changes_most: 0,
            changes_heard: false,
            missed: true,
            look_at: Instant::now() + SWEEP_EVERY,
            look: None,
            counting: None,
            shadowed: HashSet::new(),
        };
        follower.statement.first().await?;
        follower.begin_look();
        while let Some(mut look) = follower.look.take() {
            let found = look.next().await?;
            follower.found(look, found);
        }
        let all = async {
            while !follower.queued.is_empty() || !follower.syncing.is_empty() {
                follower.begin();
                if let Some((state, synced)) = follower.syncing.next().await {
                    follower.ended(state, synced);
                }
            }
        };
        if tokio::time::timeout(first_look_max, all).await.is_err() {
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
                () = self.collector.next() => {}
                () = self.statement.next() => {}
                Some(()) = self.hurrying.next() => {}
                found = found(&mut self.look) => self.looked(found),
                changes = counted(&mut self.counting) => self.counted(changes),
                _ = tick.tick() => self.on_tick(),
            }
        }
    }

    fn heard(&mut self, news: Option<Vec<News>>) {
        let Some(news) = news else {
            self.feeder = None;
            self.look_at = Instant::now();
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
                    self.look_at = Instant::now();
                }
            }
        }
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        self.rollouts.on_tick(now);
        let resting = self.resting.values().filter(|state| state.lost).map(|state| &state.id);
        let lost = || resting.chain(self.busy.iter().filter(|(_, busy)| busy.lost).map(|(id, _)| id));
        self.collector.on_tick(now);
        self.statement.on_tick(now, || lost().cloned().collect());
        let due: Vec<_> = self.later.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.later.remove(&id);
            self.dirty(id);
        }
        if self.changes_heard && self.counting.is_none() {
            self.changes_heard = false;
            let catalog = self.gateway.catalog.clone();
            self.counting = Some(Box::pin(async move { catalog.changes().await }));
        }
        if self.look_at <= now && self.look.is_none() {
            self.begin_look();
        }
    }

    fn counted(&mut self, changes: Result<u64, CatalogError>) {
        match changes {
            Ok(changes) => self.changes_most = self.changes_most.max(changes),
            Err(_) => self.changes_heard = true,
        }
    }

    /// Begins to look through all tenants. Followed first: what changes while the records are read is heard of.
    fn begin_look(&mut self) {
        self.look_at = Instant::now() + SWEEP_EVERY;
        // Until everything was looked through, however often that fails.
        self.missed |= self.feeder.is_none();
        let anyway = std::mem::take(&mut self.missed);
        self.look = Some(Look::begin(&self.gateway.catalog, self.feeder.is_some(), anyway));
    }

    fn looked(&mut self, found: Result<Found, CatalogError>) {
        let Some(look) = self.look.take() else { return };
        match found {
            Ok(found) => self.found(look, found),
            Err(error) => {
                tracing::warn!(%error, "the catalog cannot be looked through now");
                self.missed |= look.anyway;
                self.look_at = Instant::now() + ERROR_REST;
            }
        }
    }

    /// Goes on with a look, or ends it.
    fn found(&mut self, mut look: Look, found: Found) {
        let catalog = self.gateway.catalog.clone();
        match found {
            Found::Followed(feeder) => {
                self.feeder = Some(feeder);
                look.count(&catalog);
            }
            Found::Changes(changes) => {
                if look.anyway || self.changes_seen != Some(changes) {
                    // The catalog was lost with its engine's data: what was served goes on.
                    (look.changes, look.lost) = (changes, changes < self.changes_most);
                    look.page(&catalog, None);
                }
            }
            Found::Page(page) => match self.take_page(&mut look, page) {
                Some(next) => look.page(&catalog, Some(next)),
                None => self.end_look(&look),
            },
        }
        if !look.is_over() {
            self.look = Some(look);
        }
    }

    /// Answers what the next page comes after.
    fn take_page(&mut self, look: &mut Look, page: TenantPage) -> Option<String> {
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
            look.there.insert(record.name);
        }
        for (id, why) in page.unreadable {
            tracing::error!(tenant = %id, why, "a tenant's record cannot be read: what was served goes on");
            self.gateway.catalog.trouble(&id, vec![why]);
            look.there.insert(id);
        }
        page.next
    }

    fn end_look(&mut self, look: &Look) {
        let gone: Vec<_> = self.resting.keys().filter(|id| !look.there.contains(*id)).cloned().collect();
        if look.lost {
            metrics::counter!("catalog_losses_total").increment(1);
            tracing::error!(
                tenants = gone.len(),
                "the catalog has lost records with its engine's data: tenants that \
                are not in it any more are served as they were until this node stops"
            );
            self.statement.hurry();
        }
        for id in gone {
            let Some(state) = self.resting.get_mut(&id) else { continue };
            state.lost |= look.lost;
            if !state.lost {
                self.dirty(id);
            }
        }
        self.changes_seen = Some(look.changes);
        self.changes_most = if look.lost { look.changes } else { self.changes_most.max(look.changes) };
    }

    fn dirty(&mut self, id: TenantId) {
        let busy = self.busy.get(&id).is_some_and(|busy| busy.is_served);
        let is_served = busy || self.resting.get(&id).is_some_and(TenantState::is_served);
        if is_served && self.is_urgent.insert(id.clone()) {
            self.urgent.push_back(id.clone());
        }
        if self.queued.insert(id.clone()) {
            if is_served { &mut self.due_served } else { &mut self.due }.push_back(id);
        }
    }

    /// Begins to bring tenants up to date, as many as may be at the same time, each once; first those that are served.
    fn begin(&mut self) {
        let due = std::mem::take(&mut self.due_served);
        self.due_served = self.begin_some(due, true);
        let due = std::mem::take(&mut self.due);
        self.due = self.begin_some(due, false);
        self.hurry();
    }

    /// Those of the served ones that could not begin are held to what their records say all the same.
    fn hurry(&mut self) {
        while self.hurrying.len() < HURRYING_MAX {
            let Some(id) = self.urgent.pop_front() else { break };
            self.is_urgent.remove(&id);
            // It has begun since, and reads what is written now.
            if !self.queued.contains(&id) {
                continue;
            }
            let resting = || self.resting.get(&id).map(|state| &state.terms);
            if let Some(terms) = self.busy.get(&id).map(|busy| &busy.terms).or_else(resting) {
                self.hurrying.push(Box::pin(terms.clone().hurry(self.gateway.clone(), id)));
            }
        }
    }

    /// Answers those that wait. Looks at no more of them than there are places, and at those that are busy.
    fn begin_some(&mut self, mut due: VecDeque<TenantId>, served: bool) -> VecDeque<TenantId> {
        let mut places = SYNCING_MAX.saturating_sub(self.busy.values().filter(|busy| busy.is_served == served).count());
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
            let state = self.resting.remove(&id).unwrap_or_else(|| TenantState::new(id.clone()));
            self.busy.insert(id, Busy { is_served: served, lost: state.lost, terms: state.terms.clone() });
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

/// What the present step of a look finds; never, while nothing is looked through.
async fn found(look: &mut Option<Look>) -> Result<Found, CatalogError> {
    match look {
        Some(look) => look.next().await,
        None => std::future::pending().await,
    }
}

/// How many changes there have been; never, while nobody counts them.
async fn counted(counting: &mut Option<Counting>) -> Result<u64, CatalogError> {
    let Some(future) = counting else { return std::future::pending().await };
    let changes = future.await;
    *counting = None;
    changes
}

/// The next news; never, while nothing is followed.
async fn news(feeder: &mut Option<Feeder>) -> Option<Vec<News>> {
    match feeder {
        Some(feeder) => feeder.next().await,
        None => std::future::pending().await,
    }
}
