//! What holds for the calls of one plugin, where it has less than its tenant.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::admission::{Admission, slowed_down};
use super::budget::Budget;
use super::failure::CallError;
use crate::tenant::{CallLimits, PluginLimits};

/// One plugin's.
#[derive(Debug)]
pub(super) struct OwnLimits {
    own: PluginLimits,
    /// Those of the tenant that were asked about last, and what came of them.
    last: Mutex<Option<(Arc<CallLimits>, Arc<CallLimits>)>>,
    /// The plugin's own line, where fewer of its calls run at a time than of the tenant's.
    line: Option<Admission>,
    /// The plugin's own computing time, where it has less than the tenant.
    budget: Arc<Budget>,
}

impl OwnLimits {
    pub(super) fn new(own: PluginLimits) -> OwnLimits {
        let line = own.concurrent_calls.map(Admission::new);
        OwnLimits { own, last: Mutex::default(), line, budget: Budget::new() }
    }

    /// What holds where this is the tenant's.
    pub(super) fn within(&self, tenants: &Arc<CallLimits>) -> Arc<CallLimits> {
        if self.own == PluginLimits::default() {
            return tenants.clone();
        }
        let mut last = self.last.lock();
        match &*last {
            Some((of, known)) if Arc::ptr_eq(of, tenants) => known.clone(),
            _ => {
                let narrowed = Arc::new(self.own.within(tenants));
                *last = Some((tenants.clone(), narrowed.clone()));
                narrowed
            }
        }
    }

    /// The plugin's own computing time, with how much of it there is a second; 0: no less than the tenant's.
    pub(super) fn budget(&self) -> (&Arc<Budget>, u32) {
        (&self.budget, self.own.cpu_ms_per_second.unwrap_or(0))
    }

    /// Waits in the plugin's own line, if it has one, and for its own computing time.
    pub(super) async fn admit(&self, limits: &CallLimits) -> Result<Option<OwnedSemaphorePermit>, CallError> {
        let end = Instant::now() + Duration::from_millis(limits.wall_ms.into());
        let place = match &self.line {
            Some(line) => Some(timeout_at(end, line.enter(limits)).await.unwrap_or_else(|_| Err(line.late(limits)))?),
            None => None,
        };
        if self.own.cpu_ms_per_second.is_some() {
            timeout_at(end, self.budget.clear()).await.map_err(|_| slowed_down(limits))?;
        }
        Ok(place)
    }
}
