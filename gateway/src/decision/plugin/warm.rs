//! Instances that are kept from one call to the next, for plugins whose settings say so.
//!
//! Only of one version of one plugin of one tenant, and only after a call that ended well: a trap, a time-out, a limit
//! that was broken, a caller that went away end the instance. What a limit says holds for each call.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Store;
use wasmtime::component::Instance;

use super::host::Call;
use crate::tenant::WarmLimits;

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
    /// Among the idle ones of all plugins.
    _idle: OwnedSemaphorePermit,
}

/// The idle instances of one version of a plugin; the latest is used first.
pub(super) struct WarmPool {
    limits: WarmLimits,
    idle: Mutex<Vec<Idle>>,
    /// How many may idle, over all plugins of the node: so that those that run find places.
    places: Arc<Semaphore>,
}

impl WarmPool {
    pub(super) fn new(limits: WarmLimits, places: &Arc<Semaphore>) -> WarmPool {
        WarmPool { limits, idle: Mutex::default(), places: places.clone() }
    }

    /// Takes an idle instance.
    pub(super) fn take(&self) -> Option<Seat> {
        self.idle.lock().pop().map(|idle| idle.seat)
    }

    /// A call has ended well: takes it out, and keeps the instance where it may be kept.
    pub(super) fn put_back(&self, mut seat: Seat, pool: OwnedSemaphorePermit) -> Call {
        seat.calls += 1;
        let WarmLimits { idle_max, calls_max, memory_growth_bytes_max } = self.limits;
        let grown = seat.store.data().limiter.memory_bytes().saturating_sub(seat.born_bytes);
        let worn = seat.calls >= calls_max || grown > memory_growth_bytes_max;
        let place = if worn { None } else { self.places.clone().try_acquire_owned().ok() };
        let Some(place) = place else { return seat.store.into_data() };
        let nobody = seat.store.data().nobody();
        let call = std::mem::replace(seat.store.data_mut(), nobody);
        let mut idle = self.idle.lock();
        if idle.len() < idle_max {
            idle.push(Idle { seat, _pool: pool, _idle: place });
        }
        call
    }
}
