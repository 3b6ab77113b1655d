//! What a plugin's calls may use up where that is less than what its tenant's may.

use std::fmt::Display;

use super::CallLimits;

/// The `call_limits` of a plugin of its own; what is not given is its tenant's. None is ever more than the tenant's: where
/// that is lowered later, the smaller one holds. What an input's plugins do together (keys, publications, timers, bytes
/// handed over) is counted together, whichever plugin runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names are those of `CallLimits`")]
pub struct PluginLimits {
    pub cpu_ms: Option<u32>,
    pub wall_ms: Option<u32>,
    pub memory_bytes: Option<usize>,
    pub host_calls: Option<u32>,
    pub output_bytes: Option<usize>,
    pub state_keys: Option<usize>,
    pub state_value_bytes: Option<usize>,
    pub publications: Option<usize>,
    pub timers: Option<usize>,
    pub memberships: Option<usize>,
    pub log_lines: Option<usize>,
    pub concurrent_calls: Option<usize>,
    pub cpu_ms_per_second: Option<u32>,
}

impl PluginLimits {
    /// What holds for the plugin's calls.
    pub fn within(&self, tenants: &CallLimits) -> CallLimits {
        fn least<T: Ord + Copy>(own: Option<T>, tenants: T) -> T {
            own.map_or(tenants, |own| own.min(tenants))
        }
        CallLimits {
            cpu_ms: least(self.cpu_ms, tenants.cpu_ms),
            wall_ms: least(self.wall_ms, tenants.wall_ms),
            memory_bytes: least(self.memory_bytes, tenants.memory_bytes),
            host_calls: least(self.host_calls, tenants.host_calls),
            output_bytes: least(self.output_bytes, tenants.output_bytes),
            state_keys: least(self.state_keys, tenants.state_keys),
            state_value_bytes: least(self.state_value_bytes, tenants.state_value_bytes),
            publications: least(self.publications, tenants.publications),
            timers: least(self.timers, tenants.timers),
            memberships: least(self.memberships, tenants.memberships),
            log_lines: least(self.log_lines, tenants.log_lines),
            concurrent_calls: least(self.concurrent_calls, tenants.concurrent_calls),
            // 0 is without limit.
            cpu_ms_per_second: match (self.cpu_ms_per_second, tenants.cpu_ms_per_second) {
                (Some(own), 0) => own,
                (own, tenants) => least(own, tenants),
            },
            ..tenants.clone()
        }
    }

    /// What of it is more than the tenant's, for whoever writes it.
    pub fn beyond(&self, tenants: &CallLimits) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |name: &str, own: Option<&dyn Display>, tenants: &dyn Display, more: bool| {
            if let Some(own) = own.filter(|_| more) {
                found.push(format!(
                    "call_limits.{name} = {own} is more than the tenant's own call_limits.{name} = {tenants}: only the \
                     operator raises that"
                ));
            }
        };
        macro_rules! check {
            ($($name:ident),+) => {
                $(check(
                    stringify!($name),
                    self.$name.as_ref().map(|own| own as &dyn Display),
                    &tenants.$name,
                    self.$name.is_some_and(|own| own > tenants.$name),
                );)+
            };
        }
        check!(
            cpu_ms,
            wall_ms,
            memory_bytes,
            host_calls,
            output_bytes,
            state_keys,
            state_value_bytes,
            publications,
            timers,
            memberships,
            log_lines,
            concurrent_calls
        );
        let (own, tenants) = (self.cpu_ms_per_second, tenants.cpu_ms_per_second);
        let more = tenants > 0 && own.is_some_and(|own| own > tenants);
        check("cpu_ms_per_second", own.as_ref().map(|own| own as &dyn Display), &tenants, more);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_one_holds_and_what_is_more_is_told_with_both_values() {
        let tenants = CallLimits { cpu_ms: 50, host_calls: 10, ..CallLimits::default() };
        let own = PluginLimits { cpu_ms: Some(20), host_calls: Some(11), ..PluginLimits::default() };
        let limits = own.within(&tenants);
        assert_eq!((limits.cpu_ms, limits.host_calls, limits.wall_ms), (20, 10, tenants.wall_ms));
        let beyond = own.beyond(&tenants);
        assert_eq!(beyond.len(), 1);
        assert!(beyond[0].contains("host_calls = 11") && beyond[0].contains("host_calls = 10"), "{beyond:?}");
        assert!(PluginLimits::default().beyond(&tenants).is_empty());
        let own = PluginLimits { cpu_ms_per_second: Some(500), ..PluginLimits::default() };
        for (tenants, holds, mistakes) in [(0, 500, 0), (1_000, 500, 0), (100, 100, 1)] {
            let tenants = CallLimits { cpu_ms_per_second: tenants, ..CallLimits::default() };
            assert_eq!((own.within(&tenants).cpu_ms_per_second, own.beyond(&tenants).len()), (holds, mistakes));
        }
    }
}
