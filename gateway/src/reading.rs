//! What can be looked at, by members and by a tenant's own back end: who is there, and what was said before.

use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::commit::{Effect, Entry, Position, Publication};
use crate::engine::{Engine, EngineError};
use crate::room::Room;
use crate::tenant::TenantId;

/// Events that one page of history holds at most.
pub const HISTORY_LIMIT_MAX: usize = 200;
/// Events of a page when nobody says how many.
const HISTORY_LIMIT_DEFAULT: usize = 50;
/// Events that a page may leave out at the end.
const HISTORY_OFFSET_MAX: usize = HISTORY_LIMIT_MAX * 10;
/// What a page of history holds at most, in bytes of arguments; at least one entry is always on it.
const HISTORY_BYTES_MAX: usize = 512 << 10;
/// Members that one answer names at most; the count is always whole.
pub const MEMBERS_MAX: usize = 1_000;

/// Which page of a room's history.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Only what is before it; `None`: up to the latest.
    pub before: Option<Position>,
    /// Entries left out at the end.
    pub offset: usize,
    /// Entries on it, from 1 to [`HISTORY_LIMIT_MAX`].
    pub limit: usize,
}

impl Page {
    /// As it is asked for; the error says what is possible.
    pub fn of(before: Option<&str>, offset: usize, limit: Option<usize>) -> Result<Page, String> {
        let limit = limit.unwrap_or(HISTORY_LIMIT_DEFAULT);
        if limit == 0 || limit > HISTORY_LIMIT_MAX || offset > HISTORY_OFFSET_MAX {
            return Err(format!("limit is 1 to {HISTORY_LIMIT_MAX}, offset 0 to {HISTORY_OFFSET_MAX}"));
        }
        let parse = |text| Position::parse(text).ok_or("before is a position, as in `pos` of an event");
        Ok(Page { before: before.map(parse).transpose()?, offset, limit })
    }

    /// The page, oldest first. Entries are whole on a page: none is doubled or cut by the next.
    ///
    /// # Errors
    /// The engine cannot be asked.
    pub async fn read(self, engine: &dyn Engine, tenant: &TenantId, room: &Room) -> Result<Value, EngineError> {
        let Page { before, offset, limit } = self;
        let mut entries = engine.history(tenant, room, before, offset + limit + 1).await?;
        entries.truncate(entries.len().saturating_sub(offset));
        let fits = entries.len() - page_start(&entries, room);
        let page = &entries[entries.len().saturating_sub(limit.min(fits))..];
        let more = page.len() < entries.len();
        let next = page.first().filter(|_| more).map(|entry| entry.position.to_string());
        let events: Vec<Value> = page.iter().flat_map(|entry| events_of(entry, room)).collect();
        Ok(json!({ "room": room.name(), "events": events, "more": more, "before": next }))
    }
}

/// How many connections are in a room, and the users, in order.
///
/// # Errors
/// The engine cannot be asked.
pub async fn who_is_in(engine: &dyn Engine, tenant: &TenantId, room: &Room) -> Result<Value, EngineError> {
    let count = engine.count(tenant, room).await?;
    let members = engine.members(tenant, room, MEMBERS_MAX).await?;
    let mut users: Vec<&str> = members.iter().map(|member| &*member.subject).collect();
    users.dedup();
    Ok(json!({ "room": room.name(), "count": count, "users": users }))
}

/// The first of the latest entries that fit on a page together.
fn page_start(entries: &[Arc<Entry>], room: &Room) -> usize {
    let mut bytes = 0;
    for (index, entry) in entries.iter().enumerate().rev() {
        bytes += publications(entry, room).map(|publication| publication.data.args.len()).sum::<usize>();
        if bytes > HISTORY_BYTES_MAX {
            return (index + 1).min(entries.len() - 1);
        }
    }
    0
}

fn publications<'a>(entry: &'a Entry, room: &'a Room) -> impl Iterator<Item = &'a Publication> {
    entry.effects.iter().filter_map(move |effect| match effect {
        Effect::Publish(publication) if publication.room == *room => Some(publication),
        _ => None,
    })
}

/// The publications of an entry to a room, as clients see them.
fn events_of(entry: &Entry, room: &Room) -> Vec<Value> {
    publications(entry, room)
        .map(|publication| {
            let args: Vec<&RawValue> = serde_json::from_str(&publication.data.args).unwrap_or_default();
            let mut event = json!({ "event": &*publication.event, "pos": entry.position.to_string(), "at": entry.at });
            match args.as_slice() {
                [] => {}
                [one] => event["data"] = serde_json::from_str(one.get()).unwrap_or_default(),
                _ => event["args"] = serde_json::from_str(&publication.data.args).unwrap_or_default(),
            }
            event
        })
        .collect()
}
