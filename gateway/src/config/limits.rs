//! The `[limits]` and `[call_limits]` of a tenant.

use std::ops::RangeInclusive;

use super::source::{Report, Section};
use crate::event::EVENT_NAME_BYTES_MAX;
use crate::tenant::{BreakerLimits, CallLimits, Limits, PluginLimits};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What clients may use up; what is not written has its default.
pub(super) fn limits(section: Option<Section<'_>>, report: &mut Report) -> Limits {
    let mut limits = Limits::default();
    let Some(mut given) = section else { return limits };
    if let Some(rate) = given.get("messages_per_minute").and_then(|rate| rate.rate(report)) {
        limits.messages_per_minute = rate;
    }
    if let Some(rates) = given.section("user_events_per_minute", report) {
        user_rates(&rates, &mut limits, report);
    }
    if let Some(rate) = given.get("api_requests_per_minute").and_then(|rate| rate.rate(report)) {
        limits.api_requests_per_minute = rate;
    }
    given.integer("connections_per_user", 1..=10_000_000, &mut limits.connections_per_user, report);
    given.integer("connections", 1..=10_000_000, &mut limits.connections, report);
    given.integer("message_bytes", KIB..=64 * MIB, &mut limits.message_bytes, report);
    given.integer("rooms_per_connection", 1..=65_536, &mut limits.rooms_per_connection, report);
    given.integer("rooms", 1..=10_000_000, &mut limits.rooms, report);
    given.integer("state_bytes", 0..=1 << 40, &mut limits.stored.state_bytes, report);
    given.integer("state_keys", 0..=1_000_000_000, &mut limits.stored.state_keys, report);
    given.integer("timers", 0..=100_000_000, &mut limits.stored.timers, report);
    given.integer("outbox_bytes", 64 * KIB..=1_024 * MIB, &mut limits.outbox_bytes, report);
    given.integer("recovery_window_ms", 100..=140_000, &mut limits.recovery_window_ms, report);
    given.integer("outbox_messages", 16..=1_048_576, &mut limits.outbox_messages, report);
    if limits.outbox_bytes < limits.message_bytes {
        let (outbox, message) = (limits.outbox_bytes, limits.message_bytes);
        let problem =
            format!("outbox_bytes ({outbox}) must be at least message_bytes ({message}), or no such message arrives");
        report.mistake(given.at.clone(), problem);
    }
    given.finish(report);
    limits
}

/// Written rates are added to the default ones; "unlimited" takes one away.
fn user_rates(rates: &Section<'_>, limits: &mut Limits, report: &mut Report) {
    for (event, given) in rates.iter() {
        if event.is_empty() || event.len() > EVENT_NAME_BYTES_MAX {
            report.mistake(given.at, format!("an event's name has 1 to {EVENT_NAME_BYTES_MAX} bytes"));
            continue;
        }
        match given.rate(report) {
            Some(Some(rate)) => {
                limits.user_events_per_minute.insert(event.into(), rate);
            }
            Some(None) => {
                limits.user_events_per_minute.remove(event);
            }
            None => {}
        }
    }
}

/// What a call may use up; what is not written has its default.
pub(super) fn call_limits(section: Option<Section<'_>>, report: &mut Report) -> CallLimits {
    let mut limits = CallLimits::default();
    let Some(mut given) = section else { return limits };
    given.integer("cpu_ms", 1..=10_000, &mut limits.cpu_ms, report);
    given.integer("wall_ms", 1..=60_000, &mut limits.wall_ms, report);
    given.integer("memory_bytes", 64 * KIB..=1_024 * MIB, &mut limits.memory_bytes, report);
    given.integer("host_calls", 1..=1_000_000, &mut limits.host_calls, report);
    given.integer("output_bytes", KIB..=64 * MIB, &mut limits.output_bytes, report);
    given.integer("state_keys", 1..=4_096, &mut limits.state_keys, report);
    given.integer("state_value_bytes", 1..=MIB, &mut limits.state_value_bytes, report);
    given.integer("publications", 0..=4_096, &mut limits.publications, report);
    given.integer("timers", 0..=1_024, &mut limits.timers, report);
    given.integer("memberships", 0..=4_096, &mut limits.memberships, report);
    given.integer("log_lines", 0..=1_024, &mut limits.log_lines, report);
    given.integer("concurrent_calls", 1..=4_096, &mut limits.concurrent_calls, report);
    given.integer("waiting_calls", 0..=1_048_576, &mut limits.waiting_calls, report);
    given.integer("attempts", 1..=64, &mut limits.attempts, report);
    given.integer("cpu_ms_per_second", 0..=1_024_000, &mut limits.cpu_ms_per_second, report);
    given.integer("publications_per_second", 0..=10_000_000, &mut limits.publications_per_second, report);
    if let Some(rate) = given.get("log_lines_per_minute").and_then(|rate| rate.rate(report)) {
        limits.log_lines_per_minute = rate;
    }
    if let Some(section) = given.section("breaker", report) {
        limits.breaker = breaker(section, report);
    }
    if limits.wall_ms < limits.cpu_ms {
        let problem = format!("wall_ms ({}) must be at least cpu_ms ({})", limits.wall_ms, limits.cpu_ms);
        report.mistake(given.at.clone(), problem);
    }
    given.finish(report);
    limits
}

/// What a plugin's calls may use up where that is less than the tenant's.
pub(super) fn plugin_limits(section: Option<Section<'_>>, report: &mut Report) -> PluginLimits {
    let mut limits = PluginLimits::default();
    let Some(mut given) = section else { return limits };
    let mut read = Own { given: &mut given, report };
    read.own("cpu_ms", 1..=10_000, &mut limits.cpu_ms);
    read.own("wall_ms", 1..=60_000, &mut limits.wall_ms);
    read.own("memory_bytes", 64 * KIB..=1_024 * MIB, &mut limits.memory_bytes);
    read.own("host_calls", 1..=1_000_000, &mut limits.host_calls);
    read.own("output_bytes", KIB..=64 * MIB, &mut limits.output_bytes);
    read.own("state_keys", 1..=4_096, &mut limits.state_keys);
    read.own("state_value_bytes", 1..=MIB, &mut limits.state_value_bytes);
    read.own("publications", 0..=4_096, &mut limits.publications);
    read.own("timers", 0..=1_024, &mut limits.timers);
    read.own("memberships", 0..=4_096, &mut limits.memberships);
    read.own("log_lines", 0..=1_024, &mut limits.log_lines);
    read.own("concurrent_calls", 1..=4_096, &mut limits.concurrent_calls);
    read.own("cpu_ms_per_second", 1..=1_024_000, &mut limits.cpu_ms_per_second);
    given.finish(report);
    limits
}

/// Reads numbers that may be left out.
struct Own<'a, 'b> {
    given: &'a mut Section<'b>,
    report: &'a mut Report,
}

impl Own<'_, '_> {
    fn own<T: TryFrom<u64>>(&mut self, key: &'static str, range: RangeInclusive<u64>, into: &mut Option<T>) {
        *into = self.given.get(key).and_then(|number| number.integer(range, self.report));
    }
}

/// When a hook that keeps failing is not called any more.
fn breaker(mut given: Section<'_>, report: &mut Report) -> BreakerLimits {
    let mut limits = BreakerLimits::default();
    given.integer("failure_percent", 0..=100, &mut limits.failure_percent, report);
    given.integer("calls_min", 1..=1_000_000, &mut limits.calls_min, report);
    given.integer("window_ms", 100..=600_000, &mut limits.window_ms, report);
    given.integer("rest_ms", 10..=600_000, &mut limits.rest_ms, report);
    given.integer("rest_max_ms", 10..=3_600_000, &mut limits.rest_max_ms, report);
    if limits.rest_max_ms < limits.rest_ms {
        let problem = format!("rest_max_ms ({}) must be at least rest_ms ({})", limits.rest_max_ms, limits.rest_ms);
        report.mistake(given.at.clone(), problem);
    }
    given.finish(report);
    limits
}
