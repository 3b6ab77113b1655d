//! `log`: lines for the tenant's log.

use super::Call;
use crate::decision::plugin::failure::{MESSAGE_BYTES_MAX, tame};

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// Writes a line, the first `call_limits.log_lines` times.
pub(in super::super) fn log(call: &mut Call, level: Level, message: &str) {
    let limit = call.work.limits.log_lines;
    call.log_lines = call.log_lines.saturating_add(1);
    if call.log_lines > limit {
        if call.log_lines == limit + 1 {
            let text = format!("more lines are dropped: call_limits.log_lines = {limit}");
            write(call, Level::Warn, &text);
        }
        return;
    }
    write(call, level, &tame(message, MESSAGE_BYTES_MAX));
}

fn write(call: &Call, level: Level, line: &str) {
    macro_rules! event {
        ($level:ident) => {
            tracing::event!(
                target: "postern::plugin",
                tracing::Level::$level,
                tenant = %call.work.tenant,
                plugin = %call.plugin,
                hook = call.hook.name(),
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
