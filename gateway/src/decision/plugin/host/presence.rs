//! `presence`: who is where.

use super::{Call, Rejection, check_name};
use crate::room::{ROOM_NAME_BYTES_MAX, ROOT_NAMESPACE, Room};

/// The most users in one page.
const PAGE_USERS_MAX: u32 = 1_000;

fn room(name: &str) -> Result<Room, Rejection> {
    Room::parse(name).map_err(|error| Rejection::Invalid(error.to_string()))
}

pub(in super::super) async fn count(call: &mut Call, name: &str) -> Result<u32, Rejection> {
    call.may_read()?;
    let count = call.work.count(&room(name)?).await?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

pub(in super::super) async fn users(
    call: &mut Call,
    name: &str,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<String>, Rejection> {
    call.may_read()?;
    let users = call.work.users(&room(name)?).await?;
    let start = after.map_or(0, |after| users.partition_point(|user| **user <= *after));
    let limit = limit.clamp(1, PAGE_USERS_MAX) as usize;
    Ok(users[start..].iter().take(limit).map(|user| user.as_ref().to_owned()).collect())
}

/// In the root namespace and in that of the input: presence is kept by namespace.
pub(in super::super) async fn is_online(call: &mut Call, subject: &str) -> Result<bool, Rejection> {
    call.may_read()?;
    check_name("a subject", subject, ROOM_NAME_BYTES_MAX)?;
    if call.work.count(&Room::user(ROOT_NAMESPACE, subject)).await? > 0 {
        return Ok(true);
    }
    let namespace = call.namespace.clone();
    Ok(*namespace != *ROOT_NAMESPACE && call.work.count(&Room::user(&namespace, subject)).await? > 0)
}
