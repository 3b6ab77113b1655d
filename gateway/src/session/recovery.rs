//! Coming back: exactly what was missed, or the word that it cannot be had.

mod replay;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::client::{Client, ConnectionId};
use crate::commit::{Cursor, Effect, Entry, Position, Publication, SessionRecord, Who};
use crate::connection::upgrade::Protocol;
use crate::delivery::outbox::Outbox;
use crate::delivery::rooms::{Dialect, Place};
use crate::engine::{Engine, EngineError, Range};
use crate::room::Room;
use crate::tenant::{Limits, TenantId};
use replay::{Replay, Thread};

/// Entries read at once.
const ENTRIES_PER_PAGE: usize = 500;

/// Entries that one resume reads at most; a client that missed more starts anew.
const ENTRIES_MAX: usize = 20_000;

/// What those entries publish, in bytes at most; to whatever rooms.
const ENTRIES_BYTES_MAX: usize = 64 << 20;

/// What a publication takes beside what it carries when it is written, in bytes at most; names of events and rooms come
/// with it.
const FRAME_OVERHEAD_BYTES: usize = 256;

/// What a client says of the session that it comes back to.
pub struct Claim {
    /// The session's secret name. Not to be logged.
    pub session: String,
    /// What it received last, as it says; `None`: it does not say, or cannot be understood.
    pub since: Option<Cursor>,
    /// Does the gateway's own knowledge of what it received count, too?
    pub heard_counts: bool,
}

impl Claim {
    /// Of a Socket.IO client's `auth` payload: `pid` and `offset`. The offset is missing when it has received no event.
    pub(super) fn of_auth(auth: Option<&str>) -> Option<Claim> {
        let auth: Value = serde_json::from_str(auth?).ok()?;
        let session = auth.get("pid")?.as_str()?.to_owned();
        let since = auth.get("offset").and_then(Value::as_str).and_then(Cursor::parse);
        // It answers a ping after it took the events before: what it answered for, it has.
        Some(Claim { session, since, heard_counts: true })
    }

    /// Of a plain client's query: `session` and `pos`.
    pub fn of_query(session: String, pos: Option<&str>) -> Claim {
        // A browser answers pings for a page that may not have seen what came before.
        Claim { session, since: pos.and_then(Cursor::parse), heard_counts: false }
    }
}

/// Why a session does not go on.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Lost {
    /// It was not kept longer, or ended.
    #[error("the session is not known any more")]
    Expired,
    /// It is somebody else's, or of another namespace; its name is not to be found out by trying.
    #[error("the session is not known any more")]
    Refused,
    /// What came after the client's position is not all there.
    #[error("the log does not reach back to this position")]
    Gone,
    /// More than it may be sent at once.
    #[error(
        "more was missed than fits (settings limits.outbox_messages, limits.outbox_bytes, limits.rooms_per_connection)"
    )]
    TooMuch,
    /// Nobody can say now.
    #[error("{0}")]
    Unavailable(EngineError),
}

impl Lost {
    /// What plain clients are told.
    pub(super) fn told(&self) -> Value {
        json!({ "recovered": false, "reason": self.to_string() })
    }

    /// For the metric.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Lost::Expired => "expired",
            Lost::Refused => "refused",
            Lost::Gone => "gone",
            Lost::TooMuch => "too_much",
            Lost::Unavailable(_) => "unavailable",
        }
    }
}

/// Counts how a coming back went.
pub(super) fn count(protocol: Protocol, result: &'static str, took: Duration) {
    let protocol = if protocol == Protocol::Json { "json" } else { "socketio" };
    metrics::counter!("resume_total", "protocol" => protocol, "result" => result).increment(1);
    metrics::histogram!("resume_seconds", "protocol" => protocol).record(took.as_secs_f64());
}

/// A session that can go on, with what its client has not seen.
pub(super) struct Past {
    pub(super) record: SessionRecord,
    /// What its client has seen last.
    pub(super) since: Cursor,
    /// Where it was when the log was read last.
    pub(super) rooms: Vec<Room>,
    entries: Vec<Arc<Entry>>,
    /// Up to where the log is read.
    read: Position,
}

impl Past {
    /// Looks whether the session is there, is this client's, and whether what it missed can be had whole. Nothing is
    /// changed by looking.
    pub(super) async fn look(
        engine: &dyn Engine,
        tenant: &TenantId,
        claim: &Claim,
        client: &Client,
        limits: &Limits,
    ) -> Result<Past, Lost> {
        let record = engine.session(tenant, &claim.session).await.map_err(Lost::Unavailable)?.ok_or(Lost::Expired)?;
        if record.subject != client.identity.subject || record.namespace != client.namespace {
            return Err(Lost::Refused);
        }
        // It stands in for a position that is too old or not said, never for one that the log has lost.
        let counts = |heard: &Position| claim.heard_counts && claim.since.is_none_or(|since| since.position <= *heard);
        let heard = record.heard.filter(counts).map(|position| Cursor { position, part: None });
        let mut lost = Lost::Gone;
        for since in claim.since.into_iter().chain(heard) {
            match read_after(engine, tenant, since, &record).await {
                Ok((entries, read)) => {
                    let rooms = Thread::new(&record, &entries).rooms();
                    if rooms.len() > limits.rooms_per_connection {
                        return Err(Lost::TooMuch);
                    }
                    let rooms: Vec<_> = rooms.into_iter().collect();
                    let past = Past { record, since, rooms, entries, read };
                    past.check_size(limits)?;
                    return Ok(past);
                }
                // Another position may still be there.
                Err(Lost::Gone) => {}
                Err(other @ Lost::Unavailable(_)) => return Err(other),
                Err(other) => lost = other,
            }
        }
        Err(lost)
    }

    /// Before anything is changed: a client that gets only a part of it gets nothing.
    fn check_size(&self, limits: &Limits) -> Result<(), Lost> {
        let missed = self.missed(self.rooms.clone(), Vec::new(), self.read);
        let written = |publication: &Publication| {
            let names = publication.event.len() + publication.room.as_str().len();
            // Binary attachments are base64 for plain clients: a third more.
            FRAME_OVERHEAD_BYTES + names + publication.data.bytes() + publication.data.bytes() / 2
        };
        let bytes: usize = missed.iter().map(|(publication, _)| written(publication)).sum();
        fits(missed.len(), bytes, limits)
    }

    /// Reads on up to the entry with which the session came back.
    pub(super) async fn read_until(
        &mut self,
        engine: &dyn Engine,
        tenant: &TenantId,
        until: Position,
    ) -> Result<(), Lost> {
        while self.read < until {
            let range = engine.range(tenant, self.read, ENTRIES_PER_PAGE).await.map_err(Lost::Unavailable)?;
            let Range::Entries(page) = range else { return Err(Lost::Gone) };
            // The entry was committed: where it is not, the log has lost it.
            self.read = page.last().ok_or(Lost::Gone)?.position;
            let record = &self.record;
            let read = page.into_iter().filter(|entry| entry.position <= until && concerns(entry, record));
            self.entries.extend(read);
            if self.entries.len() > ENTRIES_MAX {
                return Err(Lost::TooMuch);
            }
        }
        Ok(())
    }

    /// Did others move the session while it came back, after it was looked at and before this entry?
    pub(super) fn was_moved(&self, before: Position) -> bool {
        let entries: Vec<_> = self.entries.iter().filter(|entry| entry.position < before).cloned().collect();
        !Thread::new(&self.record, &entries).rooms().into_iter().eq(self.rooms.iter().cloned())
    }

    /// Where a connection of the session's user came into a room last, as far as the log was read.
    pub(super) fn came_into(&self, connection: &ConnectionId, room: &Room) -> Option<Position> {
        let means = |who: &Who| match who {
            Who::Connection(id) => id == connection,
            Who::User(subject) => *subject == self.record.subject,
        };
        let joins = |effect: &Effect| matches!(effect, Effect::Join { who, room: to, .. } if to == room && means(who));
        self.entries.iter().rev().find(|entry| entry.effects.iter().any(joins)).map(|entry| entry.position)
    }

    /// What was missed, encoded. `joined` rooms are live from the end of what was read on, `held` ones since
    /// the position that is given with each, the gateway's own since `arrived`.
    pub(super) fn frames(
        &self,
        dialect: Dialect,
        joined: Vec<Room>,
        held: Vec<(Room, Position)>,
        arrived: Position,
        limits: &Limits,
    ) -> Result<Vec<(Bytes, Cursor)>, Lost> {
        let missed = self.missed(joined, held, arrived);
        let frame = |(publication, cursor)| ((dialect.event)(publication, Place::Logged(cursor)), cursor);
        let frames: Vec<_> = missed.into_iter().map(frame).collect();
        fits(frames.len(), frames.iter().map(|(frame, _)| frame.len()).sum(), limits)?;
        Ok(frames)
    }

    fn missed(&self, joined: Vec<Room>, held: Vec<(Room, Position)>, arrived: Position) -> Vec<(&Publication, Cursor)> {
        Replay::new(Thread::new(&self.record, &self.entries), self.since, joined, held, arrived).publications()
    }
}

/// Half of the outbox: live events need room behind what was missed.
fn fits(messages: usize, bytes: usize, limits: &Limits) -> Result<(), Lost> {
    let fits = messages <= limits.outbox_messages / 2 && bytes <= limits.outbox_bytes / 2;
    if fits { Ok(()) } else { Err(Lost::TooMuch) }
}

/// Puts what was missed before everything that is held back.
pub(super) fn hand_over(outbox: &Outbox, frames: Vec<(Bytes, Cursor)>) {
    for (frame, cursor) in frames {
        outbox.push_missed(frame, cursor);
    }
}

/// The entries after `since` up to the present end of the log, and that end; the entry of `since` itself too if only a
/// part of it was seen. Whether the position is one of the log at all, the engine says.
async fn read_after(
    engine: &dyn Engine,
    tenant: &TenantId,
    since: Cursor,
    record: &SessionRecord,
) -> Result<(Vec<Arc<Entry>>, Position), Lost> {
    let mut read = since.position;
    if since.part.is_some() {
        read.seq = read.seq.checked_sub(1).ok_or(Lost::Gone)?;
    }
    let (mut entries, mut count, mut bytes) = (Vec::<Arc<Entry>>::new(), 0, 0);
    loop {
        let range = engine.range(tenant, read, ENTRIES_PER_PAGE).await.map_err(Lost::Unavailable)?;
        let Range::Entries(page) = range else { return Err(Lost::Gone) };
        let last = page.is_empty();
        read = page.last().map_or(read, |entry| entry.position);
        count += page.len();
        let page: Vec<_> = page.into_iter().filter(|entry| concerns(entry, record)).collect();
        bytes += page.iter().map(|entry| published_bytes(entry)).sum::<usize>();
        entries.extend(page);
        if count > ENTRIES_MAX || bytes > ENTRIES_BYTES_MAX {
            return Err(Lost::TooMuch);
        }
        if last {
            break;
        }
    }
    if since.part.is_some() && entries.first().is_none_or(|first| first.position != since.position) {
        return Err(Lost::Gone);
    }
    Ok((entries, read))
}

fn published_bytes(entry: &Entry) -> usize {
    let published = |effect: &Effect| match effect {
        Effect::Publish(publication) => publication.data.bytes(),
        _ => 0,
    };
    entry.effects.iter().map(published).sum()
}

/// May the entry matter to a session? When many come back at once, most of what they missed is each other's coming and
/// going: an arrival's entry speaks of that connection only, and being gone alone moves nobody else.
fn concerns(entry: &Entry, record: &SessionRecord) -> bool {
    let mut others_arrival = false;
    let mut memberships = false;
    for effect in &entry.effects {
        match effect {
            Effect::Publish(publication) if publication.room.namespace() == &*record.namespace => return true,
            Effect::Arrive { subject, .. } if *subject == record.subject => return true,
            Effect::Arrive { .. } => others_arrival = true,
            Effect::Join { .. } | Effect::Leave { .. } => memberships = true,
            Effect::Publish(_) | Effect::Gone { .. } | Effect::Disconnect { .. } | Effect::Revoke(_) => {}
        }
    }
    memberships && !others_arrival
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::Grant;
    use crate::event::Payload;

    #[test]
    fn others_coming_and_going_is_not_looked_at_again_and_all_else_is() {
        let record = SessionRecord {
            session: "s".into(),
            connection: "c1".into(),
            subject: "bob".into(),
            namespace: "/".into(),
            claims: "{}".into(),
            rooms: Default::default(),
            ttl_ms: 1,
            heard: None,
        };
        let room = |name: &str| Room::parse(name).unwrap();
        let arrive =
            |id: &str, subject: &str| Effect::Arrive { id: id.into(), subject: subject.into(), namespace: "/".into() };
        let join =
            |id: &str| Effect::Join { who: Who::Connection(id.into()), room: room("a:1"), grant: Grant::default() };
        let gone = |id: &str| Effect::Gone { id: id.into() };
        let say = |name: &str| {
            let (event, data) = ("said".into(), Payload::empty());
            Effect::Publish(Publication { room: room(name), event, data, except: None })
        };
        for (effects, expected) in [
            (vec![arrive("x2", "eve"), join("x2"), gone("x1")], false),
            (vec![gone("x1")], false),
            (vec![say("/events#a")], false),
            (vec![arrive("c2", "bob"), gone("c1"), join("c2")], true),
            (vec![join("c1")], true),
            (vec![join("x1")], true),
            (vec![gone("x1"), say("a:1")], true),
            (vec![arrive("x2", "eve"), say("a:1")], true),
        ] {
            let entry = Entry { position: Position { epoch: 1, seq: 1 }, at: 0, effects, presence: Vec::new() };
            assert_eq!(concerns(&entry, &record), expected, "{entry:?}");
        }
    }
}
