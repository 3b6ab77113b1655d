//! What holds for the calls of one plugin, where it has less than its tenant.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::admission::Admission;
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
}

impl OwnLimits {
    pub(super) fn new(own: PluginLimits) -> OwnLimits {
        OwnLimits { own, last: Mutex::default(), line: own.concurrent_calls.map(Admission::new) }
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

    /// Waits in the plugin's own line, if it has one.
    pub(super) async fn admit(&self, limits: &CallLimits) -> Result<Option<OwnedSemaphorePermit>, CallError> {
        let Some(line) = &self.line else { return Ok(None) };
        let end = Instant::now() + Duration::from_millis(limits.wall_ms.into());
        let place = timeout_at(end, line.enter(limits)).await;
        place.unwrap_or_else(|_| Err(line.late(limits))).map(Some)
    }
}
