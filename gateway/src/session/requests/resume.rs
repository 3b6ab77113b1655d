//! Coming back: exactly what was missed, or the word that it cannot be had.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::{Answer, Session, argument, invalid};
use crate::commit::{Cursor, Effect, Entry, Position, SessionRecord};
use crate::engine::Range;
use crate::event::{Payload, Refusal};
use crate::gateway::LiveTenant;
use crate::room::Room;
use crate::session::language::Language;

/// Entries that one resume reads at most; a client that missed more starts anew.
const ENTRIES_MAX: usize = 20_000;
/// Entries read at once.
const ENTRIES_PER_PAGE: usize = 500;

#[derive(Deserialize)]
struct ResumeArgument {
    session: String,
    pos: String,
}

impl Session {
    /// Rejoins the session's rooms (each authorized again) and delivers what was published there
    /// since, before anything newer.
    pub(super) async fn resume(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        data: &Payload,
    ) -> Result<Answer, Refusal> {
        if !matches!(self.language, Language::Json) {
            return Err(Refusal::new("unknown_event", "resume is for plain WebSocket clients"));
        }
        let wanted: ResumeArgument = argument(data)?;
        let since = Cursor::parse(&wanted.pos).ok_or_else(|| invalid("pos is the `pos` of the last event received"))?;
        let record = self.session_record(tenant, index, &wanted.session).await?;
        let Some(record) = record else {
            return Ok(not_recovered("the session is not known any more"));
        };
        self.outbox.hold();
        let answer = self.catch_up(tenant, index, &record, since).await;
        self.outbox.release();
        answer
    }

    async fn session_record(
        &self,
        tenant: &LiveTenant,
        index: usize,
        session: &str,
    ) -> Result<Option<SessionRecord>, Refusal> {
        let record = self
            .gateway
            .engine
            .session(&tenant.tenant.id, session)
            .await
            .map_err(|error| Refusal::new("engine_unavailable", error.to_string()))?;
        let client = &self.connections[index].client;
        Ok(record.filter(|record| record.subject == client.identity.subject && record.namespace == client.namespace))
    }

    async fn catch_up(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        record: &SessionRecord,
        since: Cursor,
    ) -> Result<Answer, Refusal> {
        let wanted: Vec<_> = record.rooms.keys().map(|room| (room.clone(), None)).collect();
        let decided = self.join_all(tenant, index, &wanted).await?;
        let joined: Vec<Room> = decided.joined.iter().map(|(room, _)| room.clone()).collect();
        // Live delivery starts right after this entry; up to it the log is read.
        let until = match decided.position {
            Some(position) => position,
            None => tenant
                .rooms(&self.gateway)
                .await
                .map_err(|error| Refusal::new("engine_unavailable", error.to_string()))?
                .position(),
        };
        let Some(missed) = self.missed(tenant, since, until).await? else {
            return Ok(not_recovered("the log does not reach back to this position"));
        };
        let connection = &self.connections[index];
        let client = &connection.client;
        let own = [
            Room::connection(&client.namespace, &record.connection),
            Room::user(&client.namespace, &client.identity.subject),
            Room::everyone(&client.namespace),
        ];
        let mut delivered = 0_usize;
        for entry in &missed {
            // What came to its own rooms since it arrived has reached it already.
            let own: &[Room] = if connection.arrived.is_some_and(|at| entry.position <= at) { &own } else { &[] };
            delivered += self.deliver_missed(entry, &joined, own, since, record);
        }
        let names: Vec<_> = joined.iter().map(Room::name).collect();
        let refused: Vec<_> = decided.refused.iter().map(|(room, _)| room.name()).collect();
        Ok(Answer::ack(&json!({
            "recovered": true, "rooms": names, "refused": refused, "missed": delivered, "pos": until.to_string(),
        })))
    }

    /// The entries after `since` up to `until`; the entry of `since` itself too if only a part of it was seen.
    async fn missed(
        &self,
        tenant: &LiveTenant,
        since: Cursor,
        until: Position,
    ) -> Result<Option<Vec<Arc<Entry>>>, Refusal> {
        let mut after = since.position;
        if since.part.is_some() {
            after.seq = after.seq.saturating_sub(1);
        }
        let mut missed = Vec::new();
        while after < until {
            let range = self.gateway.engine.range(&tenant.tenant.id, after, ENTRIES_PER_PAGE).await;
            let page = match range.map_err(|error| Refusal::new("engine_unavailable", error.to_string()))? {
                Range::Entries(page) => page,
                Range::Gone => return Ok(None),
            };
            let Some(last) = page.last() else { return Ok((after >= until).then_some(missed)) };
            after = last.position;
            missed.extend(page.into_iter().filter(|entry| entry.position <= until));
            if missed.len() > ENTRIES_MAX {
                return Ok(None);
            }
        }
        Ok((since.position.epoch == until.epoch).then_some(missed))
    }

    fn deliver_missed(
        &self,
        entry: &Entry,
        joined: &[Room],
        own: &[Room],
        since: Cursor,
        record: &SessionRecord,
    ) -> usize {
        let publications: Vec<_> = entry
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Publish(publication) => Some(publication),
                _ => None,
            })
            .collect();
        let mut delivered = 0;
        for (number, publication) in publications.iter().enumerate() {
            let seen = entry.position == since.position && since.part.is_some_and(|part| number <= part);
            let sender = publication.except.as_ref() == Some(&record.connection);
            if seen || sender || !(joined.contains(&publication.room) || own.contains(&publication.room)) {
                continue;
            }
            let part = (number + 1 < publications.len()).then_some(number);
            let cursor = Cursor { position: entry.position, part };
            self.outbox.push_before_held((self.language.dialect().event)(publication, Some(cursor)));
            delivered += 1;
        }
        delivered
    }
}

fn not_recovered(reason: &str) -> Answer {
    let data = json!({ "recovered": false, "reason": reason });
    Answer { ack: Payload::one(&data), events: vec![("reset", Payload::one(&data))] }
}
