//! What each plugin uses: counted call by call, taken now and then by whoever keeps the accounts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::tenant::TenantId;

/// What calls used, over all attempts, whether they took effect or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Used {
    /// Bytes handed to the gateway: payloads, names, keys, values.
    pub(super) output_bytes: u64,
    pub(super) keys_read: u64,
    pub(super) read_bytes: u64,
    pub(super) keys_written: u64,
    pub(super) written_bytes: u64,
    pub(super) timers_set: u64,
    pub(super) publications: u64,
}

/// The names of what is counted, as the accounts and the metric's label `what` have them.
const NAMES: [&str; 12] = [
    "calls",
    "failures",
    "cpu-us",
    "host-calls",
    "log-lines",
    "output-bytes",
    "state-keys-read",
    "state-bytes-read",
    "state-keys-written",
    "state-bytes-written",
    "timers-set",
    "publications",
];

/// What one plugin used since it was last taken.
#[derive(Debug, Default)]
pub(super) struct Account([AtomicU64; NAMES.len()]);

/// What one plugin used in a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginUsage {
    /// Whose.
    pub tenant: TenantId,
    /// Which, by its name within the tenant.
    pub plugin: Arc<str>,
    /// How much of what; nothing that is zero.
    pub used: Vec<(&'static str, u64)>,
}

impl Account {
    /// A call has ended, or was not let through.
    pub(super) fn call(&self, failed: bool) {
        self.add(0, 1);
        self.add(1, u64::from(failed));
    }

    /// A call that had ended well came to nothing after all.
    pub(super) fn failed(&self) {
        self.add(1, 1);
    }

    /// What a call that ran used.
    pub(super) fn used(&self, cpu: Duration, host_calls: u32, log_lines: usize, used: &Used) {
        let cpu_us = u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX);
        let numbers = [
            cpu_us,
            host_calls.into(),
            log_lines as u64,
            used.output_bytes,
            used.keys_read,
            used.read_bytes,
            used.keys_written,
            used.written_bytes,
            used.timers_set,
            used.publications,
        ];
        for (what, number) in numbers.into_iter().enumerate() {
            self.add(what + 2, number);
        }
    }

    fn add(&self, what: usize, number: u64) {
        if number > 0 {
            self.0[what].fetch_add(number, Ordering::Relaxed);
        }
    }

    /// Empties it.
    pub(super) fn take(&self) -> Vec<(&'static str, u64)> {
        let all = NAMES.iter().zip(&self.0).map(|(name, number)| (*name, number.swap(0, Ordering::Relaxed)));
        all.filter(|(_, number)| *number > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_not_taken_again() {
        let account = Account::default();
        let used = Used { output_bytes: 7, publications: 2, ..Used::default() };
        account.call(true);
        account.used(Duration::from_micros(50), 3, 1, &used);
        let all = [("calls", 1), ("failures", 1), ("cpu-us", 50), ("host-calls", 3), ("log-lines", 1)];
        assert_eq!(account.take()[..5], all);
        assert_eq!(account.take(), []);
        account.call(false);
        assert_eq!(account.take(), [("calls", 1)]);
    }
}
