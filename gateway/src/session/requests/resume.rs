//! Coming back after connecting: for plain clients that did not name their session while they connected.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::{Answer, Session, argument, invalid, unavailable};
use crate::close::Close;
use crate::commit::Cursor;
use crate::event::{Payload, Refusal};
use crate::gateway::LiveTenant;
use crate::room::Room;
use crate::session::language::Language;
use crate::session::recovery::{Claim, Lost, Past, count, hand_over};

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
        if self.connections[index].resumed {
            return Err(invalid("a connection resumes once, before anything else"));
        }
        if *self.connections[index].session == *wanted.session {
            return Err(invalid("this is the session of this very connection"));
        }
        let claim = Claim { session: wanted.session, since: Some(since), heard_counts: false };
        let started = Instant::now();
        let resumed = self.catch_up(tenant, index, &claim).await;
        let (result, answer) = match resumed {
            Ok(Ok(answer)) => ("recovered", Ok(answer)),
            Ok(Err(Lost::Unavailable(error))) => ("unavailable", Err(unavailable(&error))),
            Ok(Err(lost)) => (lost.word(), Ok(not_recovered(&lost))),
            Err(refusal) => ("refused", Err(refusal)),
        };
        count(self.language.protocol(), result, started.elapsed());
        // What could not be done may be asked for again.
        self.connections[index].resumed = answer.is_ok();
        answer
    }

    async fn catch_up(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        claim: &Claim,
    ) -> Result<Result<Answer, Lost>, Refusal> {
        let (engine, limits) = (self.gateway.engine.clone(), &tenant.settings().limits);
        let client = &self.connections[index].client;
        let past = match Past::look(&*engine, &tenant.id, claim, client, limits).await {
            Ok(past) => past,
            Err(lost) => return Ok(Err(lost)),
        };
        self.outbox.hold();
        let answer = self.rejoin(tenant, index, past).await;
        let away = match &answer {
            Err(refusal) => ["engine_unavailable", "outcome_unknown"].contains(&&*refusal.code),
            Ok(answer) => matches!(answer, Err(Lost::Unavailable(_))),
        };
        if away {
            // What comes live would move its position over what it missed: it comes back with the one it has.
            self.outbox.discard_held();
            self.outbox.end(Close::EngineUnavailable);
        } else {
            self.outbox.release();
        }
        answer
    }

    async fn rejoin(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        mut past: Past,
    ) -> Result<Result<Answer, Lost>, Refusal> {
        let already: Vec<Room> = self.connections[index].local.grants.lock().keys().cloned().collect();
        let wanted: Vec<_> =
            past.rooms.iter().filter(|room| !already.contains(room)).map(|room| (room.clone(), None)).collect();
        let decided = self.join_all(tenant, index, &wanted, Some(&past.record), None).await?;
        // Live delivery of the rooms joined now starts right after this entry; up to it the log is read.
        let Some(until) = decided.position else { return Ok(Err(Lost::Gone)) };
        if let Err(lost) = past.read_until(&*self.gateway.engine, &tenant.id, until).await {
            return Ok(Err(lost));
        }
        let joined = decided.joined.iter().map(|(room, _)| room.clone()).collect();
        let arrived = self.connections[index].arrived.unwrap_or(until);
        // A handler may have brought it into a room only after it arrived.
        let id = &self.connections[index].client.connection;
        let held = already.into_iter().filter(|room| past.rooms.contains(room));
        let held = held.map(|room| (past.came_into(id, &room).unwrap_or(arrived).max(arrived), room));
        let held = held.map(|(position, room)| (room, position)).collect();
        let frames = past.frames(self.language.dialect(), joined, held, arrived, &tenant.settings().limits);
        let frames = match frames {
            Ok(frames) => frames,
            Err(lost) => return Ok(Err(lost)),
        };
        let missed = frames.len();
        hand_over(&self.outbox, frames);
        let is_refused = |room: &Room| decided.refused.iter().any(|(refused, _)| refused == room);
        let rooms: Vec<_> = past.rooms.iter().filter(|room| !is_refused(room)).map(Room::name).collect();
        let refused: Vec<_> = decided.refused.iter().map(|(room, _)| room.name()).collect();
        Ok(Ok(Answer::ack(&json!({
            "recovered": true, "rooms": rooms, "refused": refused, "missed": missed, "pos": until.to_string(),
        }))))
    }
}

fn not_recovered(lost: &Lost) -> Answer {
    let data = Payload::one(&lost.told());
    Answer { ack: data.clone(), events: vec![("reset", data)] }
}
