//! How many calls of a tenant run and wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

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
    _tenant: Option<OwnedSemaphorePermit>,
    _pool: OwnedSemaphorePermit,
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

    /// Waits in the tenant's line, then for a place in the pool. A trial does not stand in the line: a
    /// tenant whose calls fill it must be able to load something better.
    pub(super) async fn admit(
        &self,
        pool: &Arc<Semaphore>,
        limits: &CallLimits,
        trial: bool,
    ) -> Result<Admitted, CallError> {
        let wait = Duration::from_millis(limits.wall_ms.into());
        let enter = async {
            let tenant = if trial { None } else { Some(self.enter(limits).await?) };
            let pool = pool.clone().acquire_owned().await.map_err(|_| stopping())?;
            Ok(Admitted { _tenant: tenant, _pool: pool })
        };
        timeout(wait, enter).await.unwrap_or_else(|_| {
            Err(CallError::Overloaded(format!(
                "waited {} ms in line behind other plugin calls: call_limits.concurrent_calls = {}, \
                 call_limits.wall_ms = {}",
                limits.wall_ms, self.concurrent_calls, limits.wall_ms
            )))
        })
    }

    async fn enter(&self, limits: &CallLimits) -> Result<OwnedSemaphorePermit, CallError> {
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

pub(super) fn stopping() -> CallError {
    CallError::Overloaded("the gateway is stopping".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(waiting_calls: usize) -> CallLimits {
        CallLimits { waiting_calls, wall_ms: 100, ..CallLimits::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_line_calls_are_refused_and_the_setting_is_named() {
        let (admission, pool) = (Admission::new(1), Arc::new(Semaphore::new(10)));
        let first = admission.admit(&pool, &limits(1), false).await.unwrap();
        let one = limits(1);
        let (second, third) = tokio::join!(admission.admit(&pool, &one, false), admission.admit(&pool, &one, false));
        assert!(second.unwrap_err().to_string().contains("waited 100 ms"));
        assert!(third.unwrap_err().to_string().contains("call_limits.waiting_calls = 1"));
        drop(first);
        assert!(admission.admit(&pool, &limits(0), false).await.is_ok(), "those that gave up left the line");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_does_not_stand_in_the_line() {
        let (admission, pool) = (Admission::new(1), Arc::new(Semaphore::new(10)));
        let first = admission.admit(&pool, &limits(0), false).await.unwrap();
        assert!(admission.admit(&pool, &limits(0), true).await.is_ok());
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_leaves_the_line() {
        let (admission, pool) = (Admission::new(1), Arc::new(Semaphore::new(10)));
        let first = admission.admit(&pool, &limits(1), false).await.unwrap();
        let given_up = timeout(Duration::from_millis(10), admission.admit(&pool, &limits(1), false)).await;
        assert!(given_up.is_err());
        assert_eq!(admission.waiting.load(Ordering::Relaxed), 0);
        drop(first);
    }
}
