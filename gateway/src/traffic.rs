//! What a tenant's clients cause, counted where it happens until the accounts take it.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a tenant's clients cause, beside its plugins.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Events of clients and of the tenant's back end.
    pub events: AtomicU64,
    /// Publications that were committed or sent, by whomever.
    pub published: AtomicU64,
    /// Publications handed to a client of this node.
    pub deliveries: AtomicU64,
}

impl Traffic {
    /// What was counted since this was asked last, by the names that the accounts have for it.
    pub fn take(&self) -> [(&'static str, u64); 3] {
        let take = |number: &AtomicU64| number.swap(0, Ordering::Relaxed);
        [("events", take(&self.events)), ("published", take(&self.published)), ("deliveries", take(&self.deliveries))]
    }
}
