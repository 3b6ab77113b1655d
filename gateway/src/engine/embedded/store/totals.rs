//! What tenants' plugins keep in all: one row a tenant, changed in the transaction of whatever changes it.

use redb::ReadableTable;

use super::{Change, SWEPT_MAX, Tables, TotalsCell};
use crate::commit::{Commit, Millis, StateKey, TimerChange, TimerKey};
use crate::quota::{Growth, Stored};
use crate::tenant::TenantId;

/// When, whose and which.
pub(super) type Expired = (Millis, String, String);

/// The first values whose time has passed, a bounded number.
pub(super) fn expired(
    expiry: &impl ReadableTable<(Millis, &'static str, &'static str), ()>,
    now: Millis,
) -> Result<Vec<Expired>, redb::Error> {
    let mut found = Vec::new();
    for row in expiry.range(..(now + 1, "", ""))?.take(SWEPT_MAX) {
        let row = row?.0;
        let (at, tenant, key) = row.value();
        found.push((at, tenant.to_owned(), key.to_owned()));
    }
    Ok(found)
}

pub(super) fn of_cell((state_bytes, state_keys, timers): TotalsCell) -> Stored {
    Stored { state_bytes, state_keys, timers }
}

impl Tables<'_> {
    pub(super) fn stored(&self, tenant: &TenantId) -> Result<Stored, redb::Error> {
        Ok(self.totals.get(tenant.as_str())?.map(|cell| of_cell(cell.value())).unwrap_or_default())
    }

    /// How a commit changes the totals.
    pub(super) fn growth(&self, tenant: &TenantId, commit: &Commit, changes: &[Change]) -> Result<Growth, redb::Error> {
        let (mut growth, tenant) = (Growth::default(), tenant.as_str());
        for ((key, _), change) in commit.writes.iter().zip(changes).filter(|((key, _), _)| key.is_of_plugins()) {
            let from = self.state.get((tenant, key.as_str()))?.map(|cell| key.stored_bytes(cell.value().2.len()));
            let to = match change {
                Change::Put { value, .. } => Some(key.stored_bytes(value.len())),
                Change::Delete => None,
            };
            growth.resize(from, to);
        }
        let fired = commit.fired.as_ref().map(|fired| &fired.key);
        growth.timers -= i64::from(fired.is_some_and(TimerKey::is_of_plugins));
        for (key, change) in commit.timers.iter().filter(|(key, _)| key.is_of_plugins()) {
            let there = fired != Some(key) && self.timers.get((tenant, &*key.plugin, &*key.name))?.is_some();
            growth.timers += i64::from(matches!(change, TimerChange::Set { .. })) - i64::from(there);
        }
        Ok(growth)
    }

    /// Changes the totals of a tenant.
    pub(super) fn grow(&mut self, tenant: &str, growth: Growth) -> Result<(), redb::Error> {
        if growth == Growth::default() {
            return Ok(());
        }
        let now = self.totals.get(tenant)?.map(|cell| of_cell(cell.value())).unwrap_or_default();
        let Stored { state_bytes, state_keys, timers } = now.after(growth);
        self.totals.insert(tenant, (state_bytes, state_keys, timers))?;
        Ok(())
    }

    /// Removes values whose time has passed.
    pub(super) fn forget(&mut self, expired: &[Expired]) -> Result<(), redb::Error> {
        for (at, tenant, key) in expired {
            self.expiry.remove((*at, tenant.as_str(), key.as_str()))?;
            let bytes = self.state.remove((tenant.as_str(), key.as_str()))?.map(|cell| cell.value().2.len());
            let (key, mut growth) = (StateKey::stored(key), Growth::default());
            if let Some(bytes) = bytes.filter(|_| key.is_of_plugins()) {
                growth.resize(Some(key.stored_bytes(bytes)), None);
            }
            self.grow(tenant, growth)?;
        }
        Ok(())
    }

    /// Counts everything, once.
    pub(super) fn count(&mut self) -> Result<(), redb::Error> {
        let mut all = std::collections::BTreeMap::<String, Growth>::new();
        for row in self.state.iter()? {
            let (row, cell) = row?;
            let ((tenant, key), bytes) = (row.value(), cell.value().2.len());
            let key = StateKey::stored(key);
            if key.is_of_plugins() {
                all.entry(tenant.to_owned()).or_default().resize(None, Some(key.stored_bytes(bytes)));
            }
        }
        for row in self.timers.iter()? {
            let row = row?.0;
            let (tenant, plugin, name) = row.value();
            let counts = TimerKey { plugin: plugin.into(), name: name.into() }.is_of_plugins();
            all.entry(tenant.to_owned()).or_default().timers += i64::from(counts);
        }
        all.iter().try_for_each(|(tenant, growth)| self.grow(tenant, *growth))
    }
}
