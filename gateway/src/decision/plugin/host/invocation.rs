//! `invocation`: facts about the running call.

use std::time::Duration;

use super::Call;
use crate::commit::Millis;

pub(in super::super) fn id(call: &Call) -> String {
    call.work.invocation.id.as_str().to_owned()
}

pub(in super::super) fn attempt(call: &Call) -> u32 {
    call.work.invocation.attempt
}

pub(in super::super) fn now(call: &Call) -> Millis {
    call.work.invocation.now
}

/// Computing time left, in whole milliseconds.
pub(in super::super) fn remaining(call: &Call) -> Millis {
    let budget = Duration::from_millis(call.work.limits.cpu_ms.into());
    u64::try_from(budget.saturating_sub(call.meter.spent()).as_millis()).unwrap_or(u64::MAX)
}
