//! How many entries a log may hold, by how large they are: `XADD` bounds by number, memory is bytes.
//!
//! Each node counts what it commits itself. A tenant whose entries grow has fewer of them kept from the next ones on, so
//! that one that sends megabytes does not fill the memory that all share.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::tenant::TenantId;

/// Entries that are kept however large they are.
const ENTRIES_MIN: usize = 8;

/// An entry's part in the mean, as a fraction: one large one is not much, sixteen are.
const WEIGHT: usize = 16;

/// What an entry takes beside its frame, in bytes, about.
const OVERHEAD_BYTES: usize = 64;

/// The mean size of each tenant's latest entries.
#[derive(Debug)]
pub(super) struct Sizes {
    entries_max: usize,
    bytes_max: usize,
    means: Mutex<HashMap<TenantId, usize>>,
}

impl Sizes {
    pub(super) fn new(entries_max: usize, bytes_max: usize) -> Sizes {
        Sizes { entries_max: entries_max.max(1), bytes_max, means: Mutex::default() }
    }

    /// How many entries the log may hold once it has one of this size, too.
    pub(super) fn entries(&self, tenant: &TenantId, bytes: usize) -> usize {
        let bytes = bytes + OVERHEAD_BYTES;
        let mut means = self.means.lock();
        let mean = match means.get_mut(tenant) {
            Some(mean) => {
                *mean = (*mean * (WEIGHT - 1) + bytes) / WEIGHT;
                *mean
            }
            None => {
                means.insert(tenant.clone(), bytes);
                bytes
            }
        };
        (self.bytes_max / mean.max(1)).max(ENTRIES_MIN).min(self.entries_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_entries_leave_room_for_fewer_and_other_tenants_for_as_many_as_before() {
        let (acme, globex) = (TenantId::parse("acme").unwrap(), TenantId::parse("globex").unwrap());
        let sizes = Sizes::new(1_000, 1 << 20);
        assert_eq!(sizes.entries(&acme, 100), 1_000);
        assert_eq!(sizes.entries(&globex, 100), 1_000);
        for _ in 0..100 {
            sizes.entries(&acme, 64 << 10);
        }
        assert_eq!(sizes.entries(&acme, 64 << 10), 16, "a mebibyte of 64 KiB each, less what goes with them, rounded");
        for _ in 0..100 {
            sizes.entries(&acme, 10 << 20);
        }
        assert_eq!(sizes.entries(&acme, 10 << 20), ENTRIES_MIN);
        assert_eq!(sizes.entries(&globex, 100), 1_000);
        for _ in 0..300 {
            sizes.entries(&acme, 100);
        }
        assert_eq!(sizes.entries(&acme, 100), 1_000, "small ones again");
    }
}
