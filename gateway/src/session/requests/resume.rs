//! Coming back: exactly what was missed, or the word that it cannot be had.

mod replay;

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::{Answer, Session, argument, invalid, unavailable};
use crate::commit::{Cursor, Entry, Position, SessionRecord};
use crate::engine::Range;
use crate::event::{Payload, Refusal};
use crate::gateway::LiveTenant;
use crate::room::Room;
use crate::session::language::Language;
use replay::Replay;

/// Entries read at once.
const ENTRIES_PER_PAGE: usize = 500;

/// Entries that one resume reads at most; a client that missed more starts anew.
const ENTRIES_MAX: usize = 20_000;

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
        if std::mem::replace(&mut self.connections[index].resumed, true) {
            return Err(invalid("a connection resumes once, before anything else"));
        }
        if *self.connections[index].session == *wanted.session {
            return Err(invalid("this is the session of this very connection"));
        }
        let Some(record) = self.session_record(tenant, index, &wanted.session).await? else {
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
        let record =
            self.gateway.engine.session(&tenant.tenant.id, session).await.map_err(|error| unavailable(&error))?;
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
        let already: Vec<Room> = self.connections[index].local.grants.lock().keys().cloned().collect();
        let wanted: Vec<_> =
            record.rooms.keys().filter(|room| !already.contains(room)).map(|room| (room.clone(), None)).collect();
        let decided = self.join_all(tenant, index, &wanted, Some(&record.session)).await?;
        // Live delivery of the rooms joined now starts right after this entry; up to it the log is read.
        let until = match decided.position {
            Some(position) => position,
            None => tenant.rooms(&self.gateway).await.map_err(|error| unavailable(&error))?.position(),
        };
        let Some(missed) = self.missed(tenant, since, until).await? else {
            return Ok(not_recovered("the log does not reach back to this position"));
        };
        let connection = &self.connections[index];
        let joined = decided.joined.iter().map(|(room, _)| room.clone());
        let held = already.into_iter().filter(|room| record.rooms.contains_key(room));
        let replay = Replay::new(record, since, joined.collect(), held.collect(), connection.arrived.unwrap_or(until));
        let event = self.language.dialect().event;
        let frames: Vec<_> =
            replay.publications(&missed).map(|(publication, cursor)| event(publication, Some(cursor))).collect();
        let limits = &tenant.tenant.limits;
        let bytes: usize = frames.iter().map(bytes::Bytes::len).sum();
        if frames.len() > limits.outbox_messages / 2 || bytes > limits.outbox_bytes / 2 {
            return Ok(not_recovered("more was missed than fits the outbox (setting limits.outbox_bytes)"));
        }
        let count = frames.len();
        for frame in frames {
            self.outbox.push_before_held(frame);
        }
        let names: Vec<_> =
            record.rooms.keys().filter(|room| !is_refused(&decided.refused, room)).map(Room::name).collect();
        let refused: Vec<_> = decided.refused.iter().map(|(room, _)| room.name()).collect();
        Ok(Answer::ack(&json!({
            "recovered": true, "rooms": names, "refused": refused, "missed": count, "pos": until.to_string(),
        })))
    }

    /// The entries after `since` up to `until`; the entry of `since` itself too if only a part of it was seen.
    async fn missed(
        &self,
        tenant: &LiveTenant,
        since: Cursor,
        until: Position,
    ) -> Result<Option<Vec<Arc<Entry>>>, Refusal> {
        if since.position.epoch != until.epoch || since.position > until {
            return Ok(None);
        }
        let mut after = since.position;
        if since.part.is_some() {
            after.seq = after.seq.saturating_sub(1);
        }
        let mut missed = Vec::new();
        while after < until {
            let range = self.gateway.engine.range(&tenant.tenant.id, after, ENTRIES_PER_PAGE).await;
            let Range::Entries(page) = range.map_err(|error| unavailable(&error))? else { return Ok(None) };
            let Some(last) = page.last() else { return Ok(None) };
            after = last.position;
            missed.extend(page.into_iter().filter(|entry| entry.position <= until));
            if missed.len() > ENTRIES_MAX {
                return Ok(None);
            }
        }
        Ok(Some(missed))
    }
}

fn is_refused(refused: &[(Room, Refusal)], room: &Room) -> bool {
    refused.iter().any(|(refused, _)| refused == room)
}

fn not_recovered(reason: &str) -> Answer {
    let data = json!({ "recovered": false, "reason": reason });
    Answer { ack: Payload::one(&data), events: vec![("reset", Payload::one(&data))] }
}
