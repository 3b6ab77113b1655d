//! What a member may look at: who is there, and what was said before.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{Answer, Session, argument, invalid, unavailable};
use crate::commit::{Grant, Position};
use crate::decision::{Input, Undecided};
use crate::engine::{EngineError, Health};
use crate::event::{Payload, Refusal};
use crate::gateway::LiveTenant;
use crate::reading::{HISTORY_LIMIT_MAX, Page, who_is_in};
use crate::room::Room;

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
        let page = Page::of(wanted.before.as_deref(), wanted.offset, wanted.limit).map_err(invalid)?;
        let page = self.page(tenant, &room, page).await?;
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

    async fn page(&self, tenant: &LiveTenant, room: &Room, page: Page) -> Result<Value, Refusal> {
        page.read(&*self.gateway.engine, &tenant.id, room).await.map_err(|error| unavailable(&error))
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
            let page = Page { before: joined.map(Position::next), offset: 0, limit: count.min(HISTORY_LIMIT_MAX) };
            match self.page(tenant, room, page).await {
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
        who_is_in(&**engine, &tenant.id, room).await.map_err(|error| unavailable(&error))
    }
}
