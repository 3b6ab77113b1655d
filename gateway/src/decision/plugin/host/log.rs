//! `log`: lines for the tenant's log.

use super::Call;
use crate::decision::plugin::failure::{MESSAGE_BYTES_MAX, tame};
use crate::decision::plugin::journal::{JournalKind, Leave, Level};

/// Writes a line: the first `call_limits.log_lines` of a call, and `call_limits.log_lines_per_minute` of the tenant's
/// calls on this node.
pub(in super::super) fn log(call: &mut Call, level: Level, message: &str) {
    let limit = call.work.limits.log_lines;
    call.log_lines = call.log_lines.saturating_add(1);
    if call.log_lines > limit {
        if call.log_lines == limit + 1 {
            write(call, Level::Warn, &format!("more lines are dropped: call_limits.log_lines = {limit}"));
        }
        return;
    }
    let per_minute = call.work.limits.log_lines_per_minute;
    match call.journal.may_write(per_minute) {
        Leave::Write { dropped: 0 } => write(call, level, &tame(message, MESSAGE_BYTES_MAX)),
        Leave::Write { dropped } => {
            write(call, Level::Warn, &format!("{dropped} lines were dropped before this one"));
            write(call, level, &tame(message, MESSAGE_BYTES_MAX));
        }
        Leave::FirstDropped => {
            let limit = per_minute.map_or(0, std::num::NonZeroU32::get);
            let text = format!("lines are dropped until there is room: call_limits.log_lines_per_minute = {limit}");
            write(call, Level::Warn, &text);
        }
        Leave::Dropped => {}
    }
}

fn write(call: &Call, level: Level, line: &str) {
    call.journal.add(&call.source, level, JournalKind::Log, line);
    macro_rules! event {
        ($level:ident) => {
            tracing::event!(
                target: "postern::plugin",
                tracing::Level::$level,
                tenant = %call.work.tenant,
                plugin = %call.source.plugin,
                hook = call.source.hook.name(),
                "{line}"
            )
        };
    }
    match level {
        Level::Trace => event!(TRACE),
        Level::Debug => event!(DEBUG),
        Level::Info => event!(INFO),
        Level::Warn => event!(WARN),
        Level::Error => event!(ERROR),
    }
}
