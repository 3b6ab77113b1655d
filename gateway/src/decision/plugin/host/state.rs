//! `state`: the plugin's keys and values, and those that the tenant's plugins share.

use bytes::Bytes;

use super::{Call, Rejection, check_name, too_large};
use crate::commit::{Millis, StateKey, Write};

/// The longest key, in bytes.
const KEY_BYTES_MAX: usize = 512;

/// The most keys in one page.
const PAGE_KEYS_MAX: u32 = 256;

/// The longest time to live, in milliseconds: ten years.
const TTL_MS_MAX: Millis = 3_660 * 24 * 3_600 * 1_000;

fn key(call: &Call, key: &str) -> Result<StateKey, Rejection> {
    check_name("a key", key, KEY_BYTES_MAX)?;
    Ok(StateKey::of(&call.source.plugin, key))
}

pub(in super::super) async fn get(call: &mut Call, name: &str) -> Result<Option<Bytes>, Rejection> {
    Ok(get_many(call, std::slice::from_ref(&name)).await?.pop().flatten())
}

pub(in super::super) async fn get_many<S: AsRef<str> + Sync>(
    call: &mut Call,
    names: &[S],
) -> Result<Vec<Option<Bytes>>, Rejection> {
    call.may_read()?;
    let limit = call.work.limits.state_keys;
    if names.len() > limit {
        let what = format!("a call reads and writes at most {limit} keys, these are {}", names.len());
        return Err(super::super::transaction::quota(&what, "state_keys", limit));
    }
    let keys = names.iter().map(|name| key(call, name.as_ref())).collect::<Result<Vec<_>, _>>()?;
    call.work.get(&keys).await
}

/// A page of keys as the plugin names them, and where the next one starts.
pub(in super::super) async fn list_keys(
    call: &mut Call,
    prefix: &str,
    after: Option<&str>,
    limit: u32,
) -> Result<(Vec<String>, Option<String>), Rejection> {
    call.may_read()?;
    if !prefix.is_empty() {
        check_name("a key's beginning", prefix, KEY_BYTES_MAX)?;
    }
    let own = StateKey::of(&call.source.plugin, "");
    let from = after.map(|after| key(call, after)).transpose()?;
    let prefix = StateKey::of(&call.source.plugin, prefix);
    let page = call.work.list_keys(&prefix, from.as_ref(), limit.clamp(1, PAGE_KEYS_MAX) as usize).await?;
    let keys: Vec<String> = page
        .keys
        .iter()
        .map(|key| key.as_str().strip_prefix(own.as_str()).unwrap_or(key.as_str()).to_owned())
        .collect();
    let next = if page.more { keys.last().cloned() } else { None };
    Ok((keys, next))
}

pub(in super::super) fn put(
    call: &mut Call,
    name: &str,
    value: Vec<u8>,
    ttl_ms: Option<Millis>,
) -> Result<(), Rejection> {
    call.may_write()?;
    let key = key(call, name)?;
    let limit = call.work.limits.state_value_bytes;
    if value.len() > limit {
        return Err(too_large(limit));
    }
    if ttl_ms.is_some_and(|ttl| !(1..=TTL_MS_MAX).contains(&ttl)) {
        return Err(Rejection::Invalid(format!("a time to live is 1 to {TTL_MS_MAX} milliseconds")));
    }
    call.work.hand_over(name.len() + value.len())?;
    call.work.write(key, Write::Put { value: value.into(), ttl_ms })
}

pub(in super::super) fn delete(call: &mut Call, name: &str) -> Result<(), Rejection> {
    call.may_write()?;
    let key = key(call, name)?;
    call.work.hand_over(name.len())?;
    call.work.write(key, Write::Delete)
}

pub(in super::super) fn add(call: &mut Call, name: &str, delta: i64) -> Result<(), Rejection> {
    call.may_write()?;
    let key = key(call, name)?;
    call.work.hand_over(name.len())?;
    call.work.add(key, delta)
}
