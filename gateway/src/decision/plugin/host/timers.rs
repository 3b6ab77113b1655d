//! `timers`: durable timers of the plugin, by name.

use super::{Call, Rejection, check_name, json, too_large};
use crate::commit::{Millis, TimerChange, TimerKey};

/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// The furthest that a timer can be away, in milliseconds: 366 days.
const AFTER_MS_MAX: Millis = 366 * 24 * 3_600 * 1_000;

fn key(call: &Call, name: &str) -> Result<TimerKey, Rejection> {
    check_name("a timer's name", name, NAME_BYTES_MAX)?;
    if name.starts_with('/') {
        return Err(Rejection::Invalid("timers whose names start with `/` are the gateway's own".into()));
    }
    Ok(TimerKey { plugin: call.source.plugin.clone(), name: name.into() })
}

pub(in super::super) fn set(call: &mut Call, name: &str, after_ms: Millis, data: &str) -> Result<(), Rejection> {
    call.may_write()?;
    let key = key(call, name)?;
    if after_ms > AFTER_MS_MAX {
        return Err(Rejection::Invalid(format!("a timer is at most {AFTER_MS_MAX} milliseconds away")));
    }
    let limit = call.work.limits.state_value_bytes;
    if data.len() > limit {
        return Err(too_large(limit));
    }
    json::check(data).map_err(Rejection::Invalid)?;
    call.work.hand_over(name.len() + data.len())?;
    call.work.timer(key, TimerChange::Set { after_ms, data: data.into() })
}

pub(in super::super) fn cancel(call: &mut Call, name: &str) -> Result<(), Rejection> {
    call.may_write()?;
    let key = key(call, name)?;
    call.work.hand_over(name.len())?;
    call.work.timer(key, TimerChange::Cancel)
}
