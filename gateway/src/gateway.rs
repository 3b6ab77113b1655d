//! What the connections of one process share: the engine, the tenants, the plugin host.

mod snapshots;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use hashbrown::{HashMap, HashSet};
use parking_lot::{Mutex, RwLock};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::client::{ConnectionId, NAMESPACES_MAX, random_id};
use crate::commit::Position;
use crate::config::Config;
use crate::decision::Decisions;
use crate::decision::backlog::Backlog;
use crate::decision::pipeline::Pipeline;
use crate::decision::plugin::Host;
use crate::decision::token::{KeyError, Verifier, keep_those_tried};
use crate::delivery::rooms::{People, Rooms};
use crate::drain::Tasks;
use crate::engine::{Engine, EngineError, Health};
use crate::key_sets::{KeySets, same_keys};
use crate::rates::{KeyRates, UserRates};
use crate::seats::{HeldSeat, Seats};
use crate::tail::Tail;
use crate::tenant::{KeySetSource, Tenant, TenantId, VerifyingKey};
pub use snapshots::Snapshots;

/// The process, as its connections see it.
pub struct Gateway {
    /// Its settings.
    pub config: Config,
    /// Where commits go.
    pub engine: Arc<dyn Engine>,
    /// What the admin API keeps.
    pub catalog: Catalog,
    /// Who looks at log lines, on this node and on others.
    pub tail: Tail,
    /// Where plugins run.
    pub host: Arc<Host>,
    /// What waits for the engine.
    pub backlog: Arc<Backlog>,
    /// Where tasks are spawned.
    pub tasks: Tasks,
    /// Unique to this run of this node.
    pub server_id: String,
    /// When it started.
    pub started: Instant,
    /// The open WebSockets.
    pub connections: Slots,
    /// Is it able to take connections?
    pub ready: AtomicBool,
    tenants: RwLock<HashMap<TenantId, Arc<LiveTenant>>>,
}

/// A tenant with all that it needs to serve. Its settings, keys and components may change while it serves.
pub struct LiveTenant {
    /// Its name.
    pub id: TenantId,
    settings: ArcSwap<Tenant>,
    verifier: ArcSwap<Verifier>,
    /// Held while settings and keys are made anew from what they were.
    changing: Mutex<()>,
    /// Grows with each change of settings or keys.
    revision: AtomicU64,
    /// Where its key sets stand.
    pub key_sets: KeySets,
    /// Its components.
    pub pipeline: ArcSwap<Pipeline>,
    /// Its transactions.
    pub decisions: Decisions,
    /// What its users may say by event name.
    pub user_rates: UserRates,
    /// What its back ends may ask of its HTTP API.
    pub api_rates: KeyRates,
    /// Its open WebSockets on this node.
    pub connections: Slots,
    /// What its clients here count as on all nodes.
    pub seats: Arc<Seats>,
    /// Its timers that fire at the moment.
    pub firing: Slots,
    /// Its connections that have ended and are not out of their rooms yet.
    pub leaving: Leaving,
    /// What was last said about who is where.
    pub snapshots: Snapshots,
    retired: CancellationToken,
    users: Arc<Mutex<HashMap<Arc<str>, u32>>>,
    rooms: OnceCell<Rooms>,
}

impl Gateway {
    /// A gateway without tenants yet.
    pub fn new(config: Config, engine: Arc<dyn Engine>, host: Arc<Host>, tasks: Tasks) -> Gateway {
        Gateway {
            connections: Slots::new(config.max_connections),
            catalog: Catalog::of(&config, engine.clone()),
            config,
            tail: Tail::default(),
            engine,
            host,
            backlog: Backlog::of_node(),
            tasks,
            server_id: random_id(),
            started: Instant::now(),
            ready: AtomicBool::new(false),
            tenants: RwLock::default(),
        }
    }

    /// Takes a tenant into service, in place of one of the same name.
    pub fn serve_tenant(&self, tenant: LiveTenant) -> Arc<LiveTenant> {
        let tenant = Arc::new(tenant);
        self.tenants.write().insert(tenant.id.clone(), tenant.clone());
        tenant
    }

    /// Takes a tenant out of service, for good: the next one of its name is another. Whoever is connected stays until
    /// the tenant is told that it is disabled ([`LiveTenant::change`]); with the last of them its delivery ends.
    pub fn remove_tenant(&self, id: &TenantId) -> Option<Arc<LiveTenant>> {
        let removed = self.tenants.write().remove(id);
        if let Some(removed) = &removed {
            removed.retired.cancel();
            removed.seats.retire();
        }
        removed
    }

    /// A tenant by name.
    pub fn tenant(&self, name: &str) -> Option<Arc<LiveTenant>> {
        self.tenants.read().get(&TenantId::parse(name).ok()?).cloned()
    }

    /// The tenant of a `Host` header, where one has that name among its hosts.
    pub fn tenant_of_host(&self, host: &str) -> Option<Arc<LiveTenant>> {
        let name = host.rsplit_once(':').map_or(host, |(name, _port)| name).to_ascii_lowercase();
        let tenants = self.tenants.read();
        let of_host = tenants.values().filter(|tenant| tenant.settings.load().hosts.contains(&name));
        // Where two have it, one of a file goes first; every node answers with the same.
        of_host.min_by_key(|tenant| (self.catalog.file_of(&tenant.id).is_none(), &tenant.id)).cloned()
    }

    /// All tenants.
    pub fn tenants(&self) -> Vec<Arc<LiveTenant>> {
        self.tenants.read().values().cloned().collect()
    }
}

impl LiveTenant {
    /// Timers of one tenant that fire at the same time on this node, so that it does not delay others'.
    pub const FIRING_MAX: u32 = 32;

    /// A tenant with its loaded components.
    pub fn new(tenant: Tenant, verifier: Verifier, pipeline: Pipeline, gateway: &Gateway) -> LiveTenant {
        let (engine, backlog) = (gateway.engine.clone(), Backlog::of_tenant(&gateway.backlog));
        let decisions = Decisions::new(tenant.id.clone(), engine, tenant.call_limits.clone(), backlog);
        decisions.set_totals(&tenant.limits);
        LiveTenant {
            decisions,
            connections: Slots::new(tenant.limits.connections),
            firing: Slots::new(LiveTenant::FIRING_MAX),
            leaving: Leaving::new(tenant.limits.connections),
            id: tenant.id.clone(),
            settings: ArcSwap::from_pointee(tenant),
            verifier: ArcSwap::from_pointee(verifier),
            changing: Mutex::default(),
            revision: AtomicU64::new(1),
            key_sets: KeySets::default(),
            pipeline: ArcSwap::from_pointee(pipeline),
            seats: Arc::default(),
            user_rates: UserRates::default(),
            api_rates: KeyRates::default(),
            snapshots: Snapshots::default(),
            retired: CancellationToken::new(),
            users: Arc::default(),
            rooms: OnceCell::new(),
        }
    }

    /// Its settings as they are now.
    pub fn settings(&self) -> Arc<Tenant> {
        self.settings.load_full()
    }

    /// Its keys as they are now.
    pub fn verifier(&self) -> Arc<Verifier> {
        self.verifier.load_full()
    }

    /// Another number whenever settings or keys are others.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Is it out of service for good? Whoever keeps something of it up to date lets go of it then.
    pub fn retired(&self) -> &CancellationToken {
        &self.retired
    }

    /// Other settings and keys, from now on. Open connections take the limits that concern them; those whose key is
    /// gone, or whose tenant is disabled, end. Components are another matter ([`pipeline`](LiveTenant::pipeline)).
    pub async fn change(&self, mut tenant: Tenant, mut verifier: Verifier) {
        self.connections.set_max(tenant.limits.connections);
        self.leaving.max.store(tenant.limits.connections as usize, Ordering::Release);
        self.decisions.set_limits(tenant.call_limits.clone());
        self.decisions.set_totals(&tenant.limits);
        {
            let _changing = self.changing.lock();
            if keep_fetched(&self.settings.load(), &mut tenant) {
                match Verifier::new(&tenant.id, &tenant.auth) {
                    Ok(with_fetched) => verifier = with_fetched,
                    Err(error) => tracing::warn!(tenant = %self.id, %error, "fetched keys do not go with the others"),
                }
            }
            self.verifier.store(Arc::new(verifier));
            self.settings.store(Arc::new(tenant));
        }
        self.has_changed().await;
    }

    /// Another content of one of its key sets. Answers whether it was another one; a source that the tenant does not
    /// name any more changes nothing.
    ///
    /// # Errors
    /// A key that cannot be used; nothing is changed then.
    pub async fn put_key_set(&self, source: &KeySetSource, mut keys: Vec<VerifyingKey>) -> Result<bool, KeyError> {
        let ends = {
            let _changing = self.changing.lock();
            let mut tenant = Tenant::clone(&self.settings.load());
            let left_out = keep_those_tried(&tenant.auth.keys, &mut keys);
            if left_out > 0 {
                tracing::warn!(tenant = %self.id, %source, left_out, "a key set has more keys of an algorithm than are tried");
            }
            let Some(set) = tenant.auth.key_sets.iter_mut().find(|set| set.source == *source) else { return Ok(false) };
            if same_keys(&set.keys, &keys) {
                return Ok(false);
            }
            let gone = set.keys.iter().any(|key| !keys.contains(key));
            set.keys = keys;
            let verifier = Verifier::new(&tenant.id, &tenant.auth)?;
            let ends = gone && tenant.auth.key_sets_end_connections;
            self.verifier.store(Arc::new(verifier));
            self.settings.store(Arc::new(tenant));
            ends
        };
        if ends {
            self.has_changed().await;
        }
        Ok(true)
    }

    /// Every session of this node looks at settings and keys anew.
    async fn has_changed(&self) {
        self.revision.fetch_add(1, Ordering::AcqRel);
        let presence_events = self.settings.load().presence_events.clone();
        if let Some(rooms) = self.rooms.get()
            && rooms.changed(presence_events).await.is_err()
        {
            tracing::warn!(tenant = %self.id, "the delivery of the tenant has ended: its clients are not told of the change");
        }
    }

    /// Its delivery on this node; follows the tenant's log from the first connection on.
    pub async fn rooms(self: &Arc<Self>, gateway: &Arc<Gateway>) -> Result<&Rooms, EngineError> {
        if let Some(rooms) = self.rooms.get() {
            return Ok(rooms);
        }
        // Those that come while the engine is away do not wait one behind the other.
        if let Health::Down { why, .. } = &*gateway.engine.health(&self.id).borrow() {
            return Err(EngineError::Unavailable(why.to_string()));
        }
        self.rooms
            .get_or_try_init(|| async {
                let follower = gateway.engine.follow(&self.id).await?;
                // The tenant's own limit may grow meanwhile.
                let connections_max = gateway.config.max_connections as usize * NAMESPACES_MAX;
                let presence_events = self.settings().presence_events.clone();
                let (traffic, here) = (self.decisions.traffic.clone(), self.decisions.rooms_here.clone());
                let (id, health) = (self.id.clone(), gateway.engine.health(&self.id));
                let people = People { presence_events, traffic, here };
                Ok(Rooms::start(id, follower, health, connections_max, people, &gateway.tasks))
            })
            .await
    }

    /// Its delivery, if it follows the log.
    pub fn started_rooms(&self) -> Option<&Rooms> {
        self.rooms.get()
    }

    /// Up to where this node has handed out its log; `None` while nobody of it is here.
    pub fn handed_out(&self) -> Option<Position> {
        self.rooms.get().map(Rooms::position)
    }

    /// Takes one of a user's connections on this node; `None` when it has as many as it may. A client that comes back may be one
    /// more: the connection that it comes back from is ended with that.
    pub fn user_slot(&self, subject: &Arc<str>, comes_back: bool) -> Option<UserSlot> {
        let mut users = self.users.lock();
        let count = users.entry(subject.clone()).or_default();
        if *count >= self.settings.load().limits.connections_per_user.saturating_add(u32::from(comes_back)) {
            return None;
        }
        *count += 1;
        Some(UserSlot { users: self.users.clone(), subject: subject.clone(), _seat: None })
    }
}

/// New settings keep what was fetched from the URLs that the old ones name, too. Answers whether there is any.
fn keep_fetched(old: &Tenant, new: &mut Tenant) -> bool {
    let mut kept = false;
    for set in new.auth.key_sets.iter_mut().filter(|set| set.keys.is_empty()) {
        if let Some(before) = old.auth.key_sets.iter().find(|before| before.source == set.source) {
            set.keys.clone_from(&before.keys);
            keep_those_tried(&new.auth.keys, &mut set.keys);
            kept |= !set.keys.is_empty();
        }
    }
    kept
}

/// One connection of a user; given back when dropped.
#[derive(Debug)]
pub struct UserSlot {
    users: Arc<Mutex<HashMap<Arc<str>, u32>>>,
    subject: Arc<str>,
    _seat: Option<HeldSeat>,
}

impl UserSlot {
    /// Counts on all nodes, too, from here on.
    pub fn seated(self, seat: HeldSeat) -> UserSlot {
        let mut slot = self;
        slot._seat = Some(seat);
        slot
    }

    /// Whose it is.
    pub fn subject(&self) -> &Arc<str> {
        &self.subject
    }
}

impl Drop for UserSlot {
    fn drop(&mut self) {
        let mut users = self.users.lock();
        if let Some(count) = users.get_mut(&self.subject) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.subject);
            }
        }
    }
}

/// Connections that keep their places for a while, at most as many as the tenant may have on this node.
#[derive(Debug)]
pub struct Leaving {
    connections: Mutex<HashSet<ConnectionId>>,
    max: AtomicUsize,
}

impl Leaving {
    fn new(max: u32) -> Leaving {
        Leaving { connections: Mutex::default(), max: AtomicUsize::new(max as usize) }
    }

    /// `false`: there are too many already.
    pub fn enter(&self, id: &ConnectionId) -> bool {
        let mut connections = self.connections.lock();
        connections.len() < self.max.load(Ordering::Acquire) && connections.insert(id.clone())
    }

    /// It is out, or left to others.
    pub fn exit(&self, id: &ConnectionId) {
        self.connections.lock().remove(id);
    }

    /// Is nobody on the way out?
    pub fn is_empty(&self) -> bool {
        self.connections.lock().is_empty()
    }

    /// Is it one of them?
    pub fn contains(&self, id: &ConnectionId) -> bool {
        self.connections.lock().contains(id)
    }
}

/// A number of places.
#[derive(Debug, Clone)]
pub struct Slots {
    taken: Arc<AtomicU32>,
    max: Arc<AtomicU32>,
    /// The most that were taken at once since somebody asked.
    peak: Arc<AtomicU32>,
}

impl Slots {
    /// All free.
    pub fn new(max: u32) -> Slots {
        Slots { taken: Arc::default(), max: Arc::new(AtomicU32::new(max)), peak: Arc::default() }
    }

    /// Takes one; `None` when all are taken.
    pub fn take(&self) -> Option<Slot> {
        let max = self.max();
        let before = self
            .taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| (taken < max).then_some(taken + 1))
            .ok()?;
        self.peak.fetch_max(before + 1, Ordering::Relaxed);
        Some(Slot(self.taken.clone()))
    }

    /// The most that were taken at once since the last time this was asked.
    pub fn take_peak(&self) -> u32 {
        self.peak.swap(self.taken(), Ordering::Relaxed)
    }

    /// How many are taken.
    pub fn taken(&self) -> u32 {
        self.taken.load(Ordering::Acquire)
    }

    /// How many there are.
    pub fn max(&self) -> u32 {
        self.max.load(Ordering::Acquire)
    }

    /// So many from now on; those that are taken beyond it stay until they are given back.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Ordering::Release);
    }
}

/// One place; given back when dropped.
#[derive(Debug)]
pub struct Slot(Arc<AtomicU32>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back_when_whoever_had_them_is_gone() {
        let slots = Slots::new(2);
        let (one, two) = (slots.take(), slots.take());
        assert!(one.is_some() && two.is_some() && slots.take().is_none());
        drop(one);
        assert_eq!(slots.taken(), 1);
        assert_eq!([slots.take_peak(), slots.take_peak()], [2, 1]);
        assert!(slots.take().is_some());
    }
}
