//! Instances that are kept from one call to the next, for plugins whose settings say so.
//!
//! A tenant has at most a quarter of the places where instances idle, and none for an instance that nobody has called for
//! a minute: what it does not use is there for others.
//!
//! Only of one version of one plugin of one tenant, and only after a call that ended well: a trap, a time-out, a limit
//! that was broken, a caller that went away end the instance. What a limit says holds for each call.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Store;
use wasmtime::component::Instance;

use super::host::Call;
use crate::tenant::WarmLimits;

/// Of the pool's instances one in so many may idle; the others are for calls.
const IDLE_SHARE: usize = 4;

/// Of those that may idle one in so many may be one tenant's.
const TENANT_SHARE: usize = 4;

/// How long an instance idles at most.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// How often the instances of all plugins are looked through for those that have idled too long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Where instances idle, of all plugins of the node.
pub(super) struct IdlePlaces {
    places: Arc<Semaphore>,
    places_of_tenant: usize,
    pools: Mutex<Pools>,
}

struct Pools {
    all: Vec<Weak<WarmPool>>,
    swept: Instant,
}

impl IdlePlaces {
    /// For a node that has so many instances.
    pub(super) fn new(instances: usize) -> IdlePlaces {
        let places = instances / IDLE_SHARE;
        IdlePlaces {
            places: Arc::new(Semaphore::new(places)),
            places_of_tenant: places.div_ceil(TENANT_SHARE),
            pools: Mutex::new(Pools { all: Vec::new(), swept: Instant::now() }),
        }
    }

    /// One tenant's places, over all its plugins.
    pub(super) fn of_tenant(&self) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(self.places_of_tenant))
    }

    fn add(&self, pool: &Arc<WarmPool>) {
        let all = &mut self.pools.lock().all;
        all.retain(|pool| pool.strong_count() > 0);
        all.push(Arc::downgrade(pool));
    }

    /// Ends what has idled too long, now and then.
    fn sweep(&self, now: Instant) {
        let pools: Vec<Arc<WarmPool>> = {
            let mut pools = self.pools.lock();
            if now.saturating_duration_since(pools.swept) < SWEEP_INTERVAL {
                return;
            }
            pools.swept = now;
            pools.all.iter().filter_map(Weak::upgrade).collect()
        };
        for pool in pools {
            // Ended outside of the lock: that takes a while.
            let old = pool.idle.lock().take_old(now);
            drop(old);
        }
    }
}

/// Things with the time of their putting in, the oldest first.
struct Aging<T>(Vec<(Instant, T)>);

impl<T> Aging<T> {
    fn put(&mut self, thing: T, now: Instant) {
        self.0.push((now, thing));
    }

    /// The latest.
    fn take(&mut self) -> Option<T> {
        self.0.pop().map(|(_, thing)| thing)
    }

    fn take_old(&mut self, now: Instant) -> Vec<T> {
        let old = self.0.partition_point(|(since, _)| now.saturating_duration_since(*since) > IDLE_TIME);
        self.0.drain(..old).map(|(_, thing)| thing).collect()
    }
}

/// A store with its instance, once there is one.
pub(super) struct Seat {
    pub(super) store: Store<Call>,
    pub(super) instance: Option<Instance>,
    /// Calls that it has served.
    calls: u32,
    /// Its memory when it began its first call, in bytes.
    born_bytes: usize,
}

impl Seat {
    /// One that has served nobody.
    pub(super) fn new(store: Store<Call>) -> Seat {
        Seat { store, instance: None, calls: 0, born_bytes: 0 }
    }

    /// Puts a new call in.
    pub(super) fn begin(&mut self, mut call: Call) {
        call.limiter.take_over(&self.store.data().limiter);
        *self.store.data_mut() = call;
    }

    /// The component is instantiated.
    pub(super) fn born(&mut self, instance: Instance) {
        self.instance = Some(instance);
        self.born_bytes = self.store.data().limiter.memory_bytes();
    }
}

/// An idle instance with its places.
struct Idle {
    seat: Seat,
    /// In the pool of instances, as for a running call.
    _pool: OwnedSemaphorePermit,
    /// Among the idle ones of the tenant, and of all.
    _idle: [OwnedSemaphorePermit; 2],
}

/// The idle instances of one version of a plugin; the latest is used first.
pub(super) struct WarmPool {
    limits: WarmLimits,
    idle: Mutex<Aging<Idle>>,
    places: Arc<IdlePlaces>,
    of_tenant: Arc<Semaphore>,
}

impl WarmPool {
    /// `of_tenant`: what [`IdlePlaces::of_tenant`] has made for the tenant.
    pub(super) fn new(limits: WarmLimits, places: &Arc<IdlePlaces>, of_tenant: &Arc<Semaphore>) -> Arc<WarmPool> {
        let (idle, places, of_tenant) = (Mutex::new(Aging(Vec::new())), places.clone(), of_tenant.clone());
        let pool = Arc::new(WarmPool { limits, idle, places, of_tenant });
        pool.places.add(&pool);
        pool
    }

    /// Takes an idle instance.
    pub(super) fn take(&self) -> Option<Seat> {
        let (old, idle) = {
            let mut idle = self.idle.lock();
            (idle.take_old(Instant::now()), idle.take())
        };
        drop(old);
        idle.map(|idle| idle.seat)
    }

    fn place(&self) -> Option<[OwnedSemaphorePermit; 2]> {
        let of_tenant = self.of_tenant.clone().try_acquire_owned().ok()?;
        Some([of_tenant, self.places.places.clone().try_acquire_owned().ok()?])
    }

    /// A call has ended well: takes it out, and keeps the instance where it may be kept.
    pub(super) fn put_back(&self, mut seat: Seat, pool: OwnedSemaphorePermit) -> Call {
        seat.calls += 1;
        let WarmLimits { idle_max, calls_max, memory_growth_bytes_max } = self.limits;
        let grown = seat.store.data().limiter.memory_bytes().saturating_sub(seat.born_bytes);
        let worn = seat.calls >= calls_max || grown > memory_growth_bytes_max;
        let now = Instant::now();
        self.places.sweep(now);
        let place = if worn { None } else { self.place() };
        let Some(place) = place else { return seat.store.into_data() };
        let nobody = seat.store.data().nobody();
        let call = std::mem::replace(seat.store.data_mut(), nobody);
        let mut idle = self.idle.lock();
        if idle.0.len() < idle_max {
            idle.put(Idle { seat, _pool: pool, _idle: place }, now);
        }
        call
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_idled_for_more_than_a_minute_ends_and_the_latest_is_used_first() {
        let mut idle = Aging(Vec::new());
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        for second in 0..5 {
            idle.put(second, after(second));
        }
        assert!(idle.take_old(after(60)).is_empty());
        assert_eq!(idle.take(), Some(4));
        assert_eq!(idle.take_old(after(62)), [0, 1]);
        assert_eq!(idle.take_old(after(600)), [2, 3]);
        assert_eq!(idle.take(), None);
    }

    #[test]
    fn a_tenant_has_a_quarter_of_the_places_and_at_least_one() {
        for (instances, places) in [(512, 32), (64, 4), (16, 1), (4, 1)] {
            assert_eq!(IdlePlaces::new(instances).of_tenant().available_permits(), places);
        }
    }
}
