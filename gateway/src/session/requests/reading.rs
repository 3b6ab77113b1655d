//! What a member may look at: who is there, and what was said before.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Answer, Session, argument, invalid, unavailable};
use crate::commit::{Effect, Entry, Grant, Position, Publication};
use crate::decision::{Input, Undecided};
use crate::engine::{EngineError, Health};
use crate::event::{Payload, Refusal};
use crate::gateway::LiveTenant;
use crate::room::Room;

/// Events that one page of history holds at most.
const HISTORY_LIMIT_MAX: usize = 200;
/// Events of a page when the client does not say how many.
const HISTORY_LIMIT_DEFAULT: usize = 50;
/// What a page of history holds at most, in bytes of arguments; at least one entry is always on it.
const HISTORY_BYTES_MAX: usize = 512 << 10;
/// Members that one answer names at most; the count is always whole.
const MEMBERS_MAX: usize = 1_000;

#[derive(Deserialize)]
struct HistoryArgument {
    room: String,
    before: Option<String>,
    #[serde(default)]
    offset: usize,
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct PresenceArgument {
    room: String,
}

impl Session {
    /// The room, if the client is in it and was granted what it asks for.
    fn granted(&self, index: usize, name: &str, what: &str, granted: fn(&Grant) -> bool) -> Result<Room, Refusal> {
        let local = &self.connections[index].local;
        let room = Room::parse_in(&local.namespace, name)
            .map_err(|error| invalid(error.to_string()))?
            .ok_or_else(|| Refusal::new("forbidden", format!("{name} belongs to another namespace")))?;
        let allowed = local.grants.lock().get(&room).is_some_and(granted);
        if allowed { Ok(room) } else { Err(Refusal::new("forbidden", format!("no grant for the {what} of {room}"))) }
    }

    pub(super) async fn history(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        data: &Payload,
    ) -> Result<Answer, Refusal> {
        let wanted: HistoryArgument = argument(data)?;
        let room = self.granted(index, &wanted.room, "history", |grant| grant.history)?;
        if let Some(reply) = self.handlers_history(tenant, index, data).await? {
            return Ok(Answer { ack: reply, events: Vec::new() });
        }
        let limit = wanted.limit.unwrap_or(HISTORY_LIMIT_DEFAULT);
        if limit == 0 || limit > HISTORY_LIMIT_MAX || wanted.offset > HISTORY_LIMIT_MAX * 10 {
            return Err(invalid(format!("limit is 1 to {HISTORY_LIMIT_MAX}, offset 0 to {}", HISTORY_LIMIT_MAX * 10)));
        }
        let before = match wanted.before.as_deref() {
            Some(text) => {
                Some(Position::parse(text).ok_or_else(|| invalid("before is a position, as in `pos` of an event"))?)
            }
            None => None,
        };
        let page = self.page(tenant, &room, before, wanted.offset, limit).await?;
        Ok(Answer::ack(&page))
    }

    /// Whoever keeps what is said in the room for longer than the log does answers for it.
    async fn handlers_history(
        &self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        data: &Payload,
    ) -> Result<Option<Payload>, Refusal> {
        let pipeline = tenant.pipeline.load_full();
        if pipeline.taking_part("history").is_ok_and(|handlers| handlers.is_empty()) {
            return Ok(None);
        }
        let event = self.connections[index].said("history", data);
        let decided = tenant.decisions.run(&pipeline, Input::Request(&event)).await;
        Ok(decided.map_err(Undecided::into_refusal)?.reply)
    }

    /// One page, oldest first. Entries are whole on a page: none is doubled or cut by the next.
    async fn page(
        &self,
        tenant: &LiveTenant,
        room: &Room,
        before: Option<Position>,
        offset: usize,
        limit: usize,
    ) -> Result<Value, Refusal> {
        let mut entries = self
            .gateway
            .engine
            .history(&tenant.id, room, before, offset + limit + 1)
            .await
            .map_err(|error| unavailable(&error))?;
        entries.truncate(entries.len().saturating_sub(offset));
        let fits = entries.len() - page_start(&entries, room);
        let page = &entries[entries.len().saturating_sub(limit.min(fits))..];
        let more = page.len() < entries.len();
        let next = page.first().filter(|_| more).map(|entry| entry.position.to_string());
        let events: Vec<Value> = page.iter().flat_map(|entry| events_of(entry, room)).collect();
        Ok(json!({ "room": room.name(), "events": events, "more": more, "before": next }))
    }

    /// Adds the latest events up to the join of a room that was just joined, where the tenant wants it and the
    /// grant allows. What comes after the join is delivered live; a page that cannot be had hinders no join.
    pub(super) async fn with_history(
        &self,
        tenant: &LiveTenant,
        index: usize,
        room: &Room,
        joined: Option<Position>,
        mut answer: Answer,
    ) -> Answer {
        let count = tenant.settings().history_on_join;
        let allowed = self.connections[index].local.grants.lock().get(room).is_some_and(|grant| grant.history);
        if count > 0 && allowed {
            match self.page(tenant, room, joined.map(Position::next), 0, count.min(HISTORY_LIMIT_MAX)).await {
                Ok(page) => answer.events.push(("history", Payload::one(&page))),
                Err(refusal) => {
                    tracing::warn!(tenant = %tenant.id, code = refusal.code, "no history on joining")
                }
            }
        }
        answer
    }

    pub(super) async fn presence(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        data: &Payload,
    ) -> Result<Answer, Refusal> {
        let wanted: PresenceArgument = argument(data)?;
        let room = self.granted(index, &wanted.room, "presence", |grant| grant.presence)?;
        let answer = match self.who_is_in(tenant, &room).await {
            Ok(answer) => {
                tenant.snapshots.keep(&room, &answer);
                answer
            }
            // What was so a while ago is better than nothing, as long as it says so.
            Err(refusal) => tenant.snapshots.stale(&room).ok_or(refusal)?,
        };
        Ok(Answer::ack(&answer))
    }

    async fn who_is_in(&self, tenant: &LiveTenant, room: &Room) -> Result<Value, Refusal> {
        let engine = &self.gateway.engine;
        if let Health::Down { why, .. } = &*engine.health(&tenant.id).borrow() {
            return Err(unavailable(&EngineError::Unavailable(why.to_string())));
        }
        let count = engine.count(&tenant.id, room).await.map_err(|error| unavailable(&error))?;
        let members = engine.members(&tenant.id, room, MEMBERS_MAX).await.map_err(|error| unavailable(&error))?;
        let mut users: Vec<&str> = members.iter().map(|member| &*member.subject).collect();
        users.dedup();
        Ok(json!({ "room": room.name(), "count": count, "users": users }))
    }
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
