//! How many calls of a tenant run and wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::budget::Budget;
use super::failure::CallError;
use crate::tenant::CallLimits;

/// The calls of one tenant: so many run, so many wait in line, more are refused.
#[derive(Debug)]
pub(super) struct Admission {
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// What `running` was made with.
    pub(super) concurrent_calls: usize,
}

/// Places that a call holds until its instance is gone.
#[derive(Debug)]
pub(super) struct Admitted {
    tenant: Option<OwnedSemaphorePermit>,
    pool: OwnedSemaphorePermit,
}

impl Admitted {
    /// The place in the tenant's line, and that in the pool.
    pub(super) fn into_parts(self) -> (Option<OwnedSemaphorePermit>, OwnedSemaphorePermit) {
        (self.tenant, self.pool)
    }
}

struct InLine<'a>(&'a AtomicUsize);

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    pub(super) fn new(concurrent_calls: usize) -> Admission {
        let permits = concurrent_calls.clamp(1, Semaphore::MAX_PERMITS);
        Admission { running: Arc::new(Semaphore::new(permits)), waiting: AtomicUsize::new(0), concurrent_calls }
    }

    /// Waits in the tenant's line, then for its computing time, then for a place in the pool. A trial does not stand
    /// in the line: a tenant whose calls fill it must be able to load something better.
    pub(super) async fn admit(
        &self,
        pool: &Arc<Semaphore>,
        budget: &Budget,
        limits: &CallLimits,
        trial: bool,
    ) -> Result<Admitted, CallError> {
        let end = Instant::now() + Duration::from_millis(limits.wall_ms.into());
        let tenant = if trial {
            None
        } else {
            let place = timeout_at(end, self.enter(limits)).await.unwrap_or_else(|_| Err(self.late(limits)))?;
            if limits.cpu_ms_per_second > 0 {
                // Here and not in the pool, whose places are everybody's.
                timeout_at(end, budget.clear()).await.map_err(|_| slowed_down(limits))?;
            }
            Some(place)
        };
        match timeout_at(end, pool.clone().acquire_owned()).await {
            Ok(Ok(pool)) => Ok(Admitted { tenant, pool }),
            Ok(Err(_)) => Err(stopping()),
            Err(_) => Err(self.late(limits)),
        }
    }

    pub(super) fn late(&self, limits: &CallLimits) -> CallError {
        CallError::Overloaded(format!(
            "waited {} ms in line behind other plugin calls: call_limits.concurrent_calls = {}, \
             call_limits.wall_ms = {}",
            limits.wall_ms, self.concurrent_calls, limits.wall_ms
        ))
    }

    /// Waits for a place; too many may not wait.
    pub(super) async fn enter(&self, limits: &CallLimits) -> Result<OwnedSemaphorePermit, CallError> {
        if let Ok(permit) = self.running.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _in_line = InLine(&self.waiting);
        if before >= limits.waiting_calls {
            return Err(CallError::Overloaded(format!(
                "{before} plugin calls of the tenant wait already: call_limits.waiting_calls = {}, \
                 call_limits.concurrent_calls = {}",
                limits.waiting_calls, self.concurrent_calls
            )));
        }
        self.running.clone().acquire_owned().await.map_err(|_| stopping())
    }
}

/// The tenant's computing time, or the plugin's own, was used up all the while that a call may take.
pub(super) fn slowed_down(limits: &CallLimits) -> CallError {
    CallError::Overloaded(format!(
        "waited for computing time, within call_limits.wall_ms = {}: the calls of the tenant, or of this plugin, together \
         have call_limits.cpu_ms_per_second = {}",
        limits.wall_ms, limits.cpu_ms_per_second
    ))
}

pub(super) fn stopping() -> CallError {
    CallError::Overloaded("the gateway is stopping".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::plugin::budget::Purse;
    use tokio::time::timeout;

    fn limits(waiting_calls: usize) -> CallLimits {
        CallLimits { waiting_calls, wall_ms: 100, ..CallLimits::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_line_calls_are_refused_and_the_setting_is_named() {
        let (admission, pool, budget) = (Admission::new(1), Arc::new(Semaphore::new(10)), Budget::new());
        let first = admission.admit(&pool, &budget, &limits(1), false).await.unwrap();
        let one = limits(1);
        let (second, third) =
            tokio::join!(admission.admit(&pool, &budget, &one, false), admission.admit(&pool, &budget, &one, false));
        assert!(second.unwrap_err().to_string().contains("waited 100 ms"));
        assert!(third.unwrap_err().to_string().contains("call_limits.waiting_calls = 1"));
        drop(first);
        assert!(admission.admit(&pool, &budget, &limits(0), false).await.is_ok(), "those that gave up left the line");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_in_debt_waits_outside_the_pool_and_the_setting_is_named() {
        let (admission, pool, budget) = (Admission::new(1), Arc::new(Semaphore::new(10)), Budget::new());
        let mut purse = Purse::new([(&budget, 1_000), (&budget, 0)]).unwrap();
        purse.reserve();
        purse.settle(Duration::from_millis(1_050));
        let debtor = CallLimits { cpu_ms_per_second: 1_000, ..limits(1) };
        let begun = Instant::now();
        assert!(admission.admit(&pool, &budget, &debtor, false).await.is_ok());
        assert!(begun.elapsed() >= Duration::from_millis(50), "{:?}", begun.elapsed());
        purse.reserve();
        purse.settle(Duration::from_secs(1));
        let waiting = admission.admit(&pool, &budget, &debtor, false);
        let watch = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            pool.available_permits()
        };
        let (late, free) = tokio::join!(waiting, watch);
        assert_eq!(free, 10);
        assert!(late.unwrap_err().to_string().contains("call_limits.cpu_ms_per_second = 1000"));
        assert!(admission.admit(&pool, &budget, &debtor, true).await.is_ok(), "a trial does not wait");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_does_not_stand_in_the_line() {
        let (admission, pool, budget) = (Admission::new(1), Arc::new(Semaphore::new(10)), Budget::new());
        let first = admission.admit(&pool, &budget, &limits(0), false).await.unwrap();
        assert!(admission.admit(&pool, &budget, &limits(0), true).await.is_ok());
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_leaves_the_line() {
        let (admission, pool, budget) = (Admission::new(1), Arc::new(Semaphore::new(10)), Budget::new());
        let first = admission.admit(&pool, &budget, &limits(1), false).await.unwrap();
        let given_up = timeout(Duration::from_millis(10), admission.admit(&pool, &budget, &limits(1), false)).await;
        assert!(given_up.is_err());
        assert_eq!(admission.waiting.load(Ordering::Relaxed), 0);
        drop(first);
    }
}
