//! Which master holds what: a table of slots, one master for all of them unless it is a cluster.
//!
//! The table may be wrong at any time. A server that is asked for what it does not hold says so and does
//! nothing; then the table is read again (`cluster`) and the command tried again, a few times.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::redis::{Cmd, FromRedisValue, RedisError};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use super::backoff::jitter;
use super::dial::Dialer;
use super::keys::{self, PARTITIONS, PartitionKeys, SLOTS};
use super::link::{Commands, LINK_WAIT_MAX, Link, Place};
use super::subscriptions::Subscriptions;
use super::url::Address;
use crate::commit::Position;
use crate::engine::{EngineError, Health};
use crate::tenant::TenantId;

/// Tries of a command at which servers say that they do nothing.
const TRIES_MAX: u32 = 5;

/// The longest wait before the second try; it doubles with each.
const FIRST_PAUSE_MAX: Duration = Duration::from_millis(50);

/// Tenants of one master that read their logs at the same time after a loss.
const CATCH_UPS_MAX: usize = 16;

/// A slot that no master holds.
const NOBODY: u16 = u16::MAX;

/// One master with the connections to it.
pub(super) struct Master {
    pub(super) commands: Commands,
    pub(super) subscriptions: Subscriptions,
    /// One permit for each page of a log that is read to catch up.
    pub(super) catch_ups: Semaphore,
    stop: CancellationToken,
}

impl Master {
    fn start(dialer: &Dialer, place: Place, router: &Arc<Router>) -> Arc<Master> {
        let stop = router.stop.child_token();
        let (commands, supervisor) = Commands::supervised(dialer.clone(), place, router.clone(), stop.clone());
        router.tasks.spawn(supervisor);
        let (subscriptions, supervisor) =
            Subscriptions::supervised(dialer.clone(), commands.clone(), router.clone(), stop.clone());
        router.tasks.spawn(supervisor);
        Arc::new(Master { commands, subscriptions, catch_ups: Semaphore::new(CATCH_UPS_MAX), stop })
    }
}

/// Who holds which slot.
pub(super) struct Table {
    masters: Vec<(Address, Arc<Master>)>,
    /// The master's place in the list, for each slot.
    slots: Box<[u16]>,
}

impl Table {
    fn of(&self, slot: usize) -> Option<&Arc<Master>> {
        self.masters.get(usize::from(self.slots[slot])).map(|(_, master)| master)
    }

    /// Each master with its partitions; those without any are left out.
    fn shares(&self) -> Vec<(Arc<Master>, Vec<usize>)> {
        let mut shares: Vec<_> = self.masters.iter().map(|(_, master)| (master.clone(), Vec::new())).collect();
        for partition in 0..PARTITIONS {
            let at = usize::from(self.slots[keys::slot_of_partition(partition)]);
            if let Some((_, partitions)) = shares.get_mut(at) {
                partitions.push(partition);
            }
        }
        shares.retain(|(_, partitions)| !partitions.is_empty());
        shares
    }
}

/// All ways to the servers.
pub(super) struct Router {
    table: watch::Sender<Arc<Table>>,
    /// Somebody met a server that does not hold what the table says.
    doubts: Notify,
    /// Of each partition.
    health: Vec<watch::Sender<Health>>,
    epoch_seen: AtomicU64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Router {
    /// One without masters.
    pub(super) fn new(tasks: TaskTracker, stop: CancellationToken) -> Arc<Router> {
        let slots = vec![NOBODY; SLOTS].into_boxed_slice();
        let table = watch::Sender::new(Arc::new(Table { masters: Vec::new(), slots }));
        let health = (0..PARTITIONS).map(|_| watch::Sender::new(nobody(Instant::now()))).collect();
        Arc::new(Router { table, doubts: Notify::new(), health, epoch_seen: AtomicU64::new(0), tasks, stop })
    }

    /// From now on one master holds everything.
    pub(super) fn install_only(self: &Arc<Self>, dialer: &Dialer) {
        let master = Master::start(dialer, Place::Master, self);
        let slots = vec![0; SLOTS].into_boxed_slice();
        self.table.send_replace(Arc::new(Table { masters: vec![(dialer.target.servers[0].clone(), master)], slots }));
        self.tell_health();
    }

    /// From now on these hold the stretches of slots, from and to included; masters not named any more are left.
    pub(super) fn install(self: &Arc<Self>, dialer: &Dialer, stretches: &[(u16, u16, Address)]) {
        let old = self.table.borrow().clone();
        let mut masters: Vec<(Address, Arc<Master>)> = Vec::new();
        let mut slots = vec![NOBODY; SLOTS].into_boxed_slice();
        for (from, to, address) in stretches {
            let at = masters.iter().position(|(known, _)| known == address).unwrap_or_else(|| {
                let known = old.masters.iter().find(|(known, _)| known == address).map(|(_, master)| master.clone());
                let master = known.unwrap_or_else(|| Master::start(dialer, Place::At(address.clone()), self));
                masters.push((address.clone(), master));
                masters.len() - 1
            });
            let range = usize::from(*from).min(SLOTS)..(usize::from(*to) + 1).min(SLOTS);
            slots[range].fill(u16::try_from(at).unwrap_or(NOBODY));
        }
        let same = old.slots == slots
            && old.masters.len() == masters.len()
            && old.masters.iter().zip(&masters).all(|(one, other)| one.0 == other.0);
        if same {
            return;
        }
        let held = slots.iter().filter(|slot| **slot != NOBODY).count();
        info!(masters = masters.len(), slots = held, "the cluster's slots are held by other masters than before");
        for (address, master) in &old.masters {
            if !masters.iter().any(|(kept, _)| kept == address) {
                master.stop.cancel();
            }
        }
        self.table.send_replace(Arc::new(Table { masters, slots }));
        self.tell_health();
    }

    /// Somebody met a server that does not hold what the table says, or is not there.
    pub(super) fn doubt(&self) {
        self.doubts.notify_one();
    }

    /// Waits for a doubt.
    pub(super) async fn doubted(&self) {
        self.doubts.notified().await;
    }

    /// Tells those who asked how it is with a partition.
    pub(super) fn tell_health(&self) {
        let table = self.table.borrow().clone();
        for (partition, told) in self.health.iter().enumerate() {
            let master = table.of(keys::slot_of_partition(partition));
            told.send_if_modified(|told| {
                let now = match master {
                    Some(master) => master.commands.health(),
                    // Since when is told once.
                    None if *told == Health::Up => nobody(Instant::now()),
                    None => return false,
                };
                let changed = *told != now;
                *told = now;
                changed
            });
        }
    }

    /// How it is with a tenant.
    pub(super) fn health(&self, tenant: &TenantId) -> watch::Receiver<Health> {
        self.health[keys::partition_of(tenant)].subscribe()
    }

    /// Waits until a master can be used.
    pub(super) async fn ready(&self, patience: Duration) -> Result<(), EngineError> {
        let until = Instant::now() + patience;
        let mut table = self.table.subscribe();
        let late = || EngineError::Unavailable(format!("the servers named no masters within {patience:?}"));
        if timeout(patience, table.wait_for(|table| !table.masters.is_empty())).await.is_err() {
            return Err(late());
        }
        loop {
            let shares = self.shares();
            let mut last = late();
            for (master, _) in &shares {
                let left = until.saturating_duration_since(Instant::now());
                match master.commands.link_within(left / u32::try_from(shares.len()).unwrap_or(1)).await {
                    Ok(_) => return Ok(()),
                    Err(error) => last = error,
                }
            }
            if Instant::now() + LINK_WAIT_MAX / 10 >= until {
                return Err(last);
            }
            sleep(LINK_WAIT_MAX / 10).await;
        }
    }

    /// Each master with the partitions it holds.
    pub(super) fn shares(&self) -> Vec<(Arc<Master>, Vec<usize>)> {
        self.table.borrow().clone().shares()
    }

    /// The masters, for questions that any of them answers.
    pub(super) fn masters(&self) -> Vec<Arc<Master>> {
        self.table.borrow().masters.iter().map(|(_, master)| master.clone()).collect()
    }

    /// A control channel that the master with these commands holds.
    pub(super) fn control_of(&self, commands: &Commands) -> Option<String> {
        let shares = self.shares();
        let (_, partitions) = shares.iter().find(|(master, _)| master.commands.is(commands))?;
        partitions.first().map(|partition| PartitionKeys::of(*partition).control())
    }

    /// The way to a key, or to a shard channel.
    pub(super) fn to_key(self: &Arc<Self>, key: &str) -> Route {
        Route { router: self.clone(), slot: keys::slot_of(key) }
    }

    /// The way to everything of a partition.
    pub(super) fn to_partition(self: &Arc<Self>, partition: usize) -> Route {
        Route { router: self.clone(), slot: keys::slot_of_partition(partition) }
    }

    /// The way to everything of a tenant.
    pub(super) fn to_tenant(self: &Arc<Self>, tenant: &TenantId) -> Route {
        self.to_partition(keys::partition_of(tenant))
    }
}

fn nobody(since: Instant) -> Health {
    Health::Down { since, why: "no master is known".into() }
}

/// The way to one slot, whoever holds it.
#[derive(Clone)]
pub(super) struct Route {
    router: Arc<Router>,
    slot: usize,
}

impl Route {
    /// Who holds the slot now.
    pub(super) fn master(&self) -> Result<Arc<Master>, EngineError> {
        let master = self.router.table.borrow().of(self.slot).cloned();
        master.ok_or_else(|| {
            self.router.doubt();
            EngineError::Unavailable(format!("no master holds slot {}", self.slot))
        })
    }

    /// Told when somebody else may hold it.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<Table>> {
        self.router.table.subscribe()
    }

    /// How it is with the slot: as with the partition that is in the same stretch of slots.
    pub(super) fn health(&self) -> watch::Receiver<Health> {
        self.router.health[self.slot * PARTITIONS / SLOTS].subscribe()
    }

    /// The connection to it, after a short wait if there is none at the moment.
    pub(super) async fn link(&self) -> Result<Link, EngineError> {
        self.master()?.commands.link().await
    }

    /// The largest epoch that this node has seen, of any tenant: what begins anew is larger, even on a server
    /// that has forgotten everything and whose clock is behind.
    pub(super) fn epoch_seen(&self) -> u64 {
        self.router.epoch_seen.load(Ordering::Relaxed)
    }

    /// Takes note of a position.
    pub(super) fn saw(&self, position: Position) {
        self.router.epoch_seen.fetch_max(position.epoch, Ordering::Relaxed);
    }

    /// For one command: the tries it has.
    pub(super) fn tries(&self) -> Tries<'_> {
        Tries { route: self, done: 0 }
    }

    /// One command that may be done twice: when the connection breaks, it is tried on the next.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, EngineError> {
        let mut tries = self.tries();
        loop {
            let link = tries.link().await?;
            match command.query_async(&mut link.connection()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => tries.again_to_read(&link, &error).await?,
            }
        }
    }
}

/// Tries at one command.
pub(super) struct Tries<'a> {
    route: &'a Route,
    done: u32,
}

impl Tries<'_> {
    /// The connection for the next one.
    pub(super) async fn link(&self) -> Result<Link, EngineError> {
        self.route.link().await
    }

    /// After an error of something that changes data: waits when nothing was done and another server may do it.
    pub(super) async fn again(&mut self, link: &Link, error: &RedisError) -> Result<(), EngineError> {
        let told = link.write_error(error);
        if Link::is_elsewhere(error) { self.pause(told).await } else { Err(told) }
    }

    /// The same for something that changes nothing: a connection that broke is reason enough, too.
    pub(super) async fn again_to_read(&mut self, link: &Link, error: &RedisError) -> Result<(), EngineError> {
        let told = link.read_error(error);
        let broken = error.is_connection_dropped();
        if broken && self.done == 0 {
            link.give_up();
            self.done = 1;
            return Ok(());
        }
        if Link::is_elsewhere(error) { self.pause(told).await } else { Err(told) }
    }

    async fn pause(&mut self, told: EngineError) -> Result<(), EngineError> {
        self.done += 1;
        if self.done >= TRIES_MAX {
            return Err(told);
        }
        sleep(jitter(FIRST_PAUSE_MAX * 2_u32.pow(self.done))).await;
        Ok(())
    }
}
