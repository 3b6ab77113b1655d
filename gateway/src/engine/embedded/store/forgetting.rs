//! What a deleted tenant has left on disk besides its values.

use redb::{ReadableTable as _, Table};

use super::{DEAD, DeadCell, Store, Tables};
use crate::commit::{StateKey, TimerKey, Version};
use crate::quota::Growth;
use crate::tenant::TenantId;

/// Timers that go with one transaction: others wait for the disk meanwhile.
const TIMERS_AT_ONCE: usize = 5_000;

/// What came of it.
pub(in crate::engine::embedded) enum Forgotten {
    /// The guard has another version.
    Guarded,
    /// Some timers are gone, with these tokens; there are more.
    Some(Vec<u64>),
    /// The last of them.
    All(Vec<u64>),
}

impl Store {
    /// Removes timers of a tenant, and with the last of them those that were given up, if a key still has this version.
    pub(in crate::engine::embedded) fn forget_timers(
        &self,
        tenant: &TenantId,
        guard: &StateKey,
        version: &Version,
    ) -> Result<Forgotten, redb::Error> {
        let txn = self.db.begin_write()?;
        let (tokens, more) = {
            let mut tables = Tables::open(&txn)?;
            let is = tables.state.get((tenant.as_str(), guard.as_str()))?.map(|cell| cell.value().0);
            if is.is_none() || is != version.0.parse().ok() {
                return Ok(Forgotten::Guarded);
            }
            let timers = tables.timers_of(tenant, TIMERS_AT_ONCE)?;
            let (mut tokens, mut growth) = (Vec::with_capacity(timers.len()), Growth::default());
            for key in &timers {
                tokens.extend(tables.set_timer(tenant.as_str(), key, None)?);
                growth.timers -= i64::from(key.is_of_plugins());
            }
            tables.grow(tenant.as_str(), growth)?;
            let more = timers.len() == TIMERS_AT_ONCE;
            if !more {
                forget_dead(&mut txn.open_table(DEAD)?, tenant)?;
            }
            (tokens, more)
        };
        txn.commit()?;
        Ok(if more { Forgotten::Some(tokens) } else { Forgotten::All(tokens) })
    }
}

impl Tables<'_> {
    /// Some of a tenant's timers.
    fn timers_of(&self, tenant: &TenantId, limit: usize) -> Result<Vec<TimerKey>, redb::Error> {
        let mut found = Vec::new();
        for row in self.timers.range((tenant.as_str(), "", "")..)?.take(limit) {
            let row = row?.0;
            let (of, plugin, name) = row.value();
            if of != tenant.as_str() {
                break;
            }
            found.push(TimerKey { plugin: plugin.into(), name: name.into() });
        }
        Ok(found)
    }
}

fn forget_dead(dead: &mut Table<'_, u64, DeadCell>, tenant: &TenantId) -> Result<(), redb::Error> {
    Ok(dead.retain(|_, cell| cell.0.0 != tenant.as_str())?)
}
