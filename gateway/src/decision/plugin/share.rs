//! What all plugins of a tenant share on this node: the line of their calls, their computing time, their journal, the
//! places of their idle instances.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::admission::Admission;
use super::budget::Budget;
use super::journal::Journal;
use crate::tenant::CallLimits;

/// One tenant's; lives as long as any of its plugins, so that neither a new version nor new settings begin anew.
#[derive(Debug)]
pub(super) struct Share {
    admission: Mutex<Arc<Admission>>,
    pub(super) budget: Arc<Budget>,
    pub(super) journal: Arc<Journal>,
    /// Its places for instances that idle.
    pub(super) idle: Arc<Semaphore>,
}

impl Share {
    pub(super) fn new(journal: Arc<Journal>, idle: Arc<Semaphore>) -> Arc<Share> {
        let admission = Mutex::new(Arc::new(Admission::new(CallLimits::default().concurrent_calls)));
        Arc::new(Share { admission, budget: Budget::new(), journal, idle })
    }

    /// The line of the tenant's calls: one for all its plugins, as long as the limit stays.
    pub(super) fn admission(&self, limits: &CallLimits) -> Arc<Admission> {
        let mut admission = self.admission.lock();
        if admission.concurrent_calls != limits.concurrent_calls {
            *admission = Arc::new(Admission::new(limits.concurrent_calls));
        }
        admission.clone()
    }
}
