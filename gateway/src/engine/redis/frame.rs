//! Commits as bytes: in the log, on the channel, and as the commit script takes them.
//!
//! A log frame is the format byte, the time of the commit (8 bytes, big-endian; written by the script,
//! whose clock counts), in format 2 who came and went, and the effects. A message on the channel is `<epoch>-<seq> ` and the frame, or `~` and
//! an ephemeral publication behind its format byte.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::commit::{
    Commit, Effect, Entry, Millis, Position, PresenceChange, Publication, SessionRecord, TimerChange, Who, Write,
};
use crate::engine::EngineError;
use crate::room::Room;
use crate::tenant::TenantId;

use super::keys;

/// The format of a frame of effects, and of ephemeral publications; the script writes the same number.
const FORMAT: u8 = 1;

/// The format of a frame with presence changes before its effects.
const FORMAT_WITH_PRESENCE: u8 = 2;

/// Format byte and time.
const HEADER_BYTES: usize = 9;

/// The longest time to live and delay, in milliseconds (100 years): what Redis takes and Lua's
/// numbers hold exactly.
const AHEAD_MS_MAX: Millis = 100 * 365 * 24 * 3_600_000;

/// A message of the channel.
#[derive(Debug, Clone)]
pub(super) enum Message {
    /// A commit, not decoded yet.
    Entry(Position, Bytes),
    /// Something that is not in the log.
    Ephemeral(Bytes),
}

/// Reads a message's head; `None`: not one of ours.
pub(super) fn parse_message(message: Bytes) -> Option<Message> {
    if message.first() == Some(&b'~') {
        return Some(Message::Ephemeral(message.slice(1..)));
    }
    let head = message.iter().take(48).position(|b| *b == b' ')?;
    let position = Position::parse(std::str::from_utf8(&message[..head]).ok()?)?;
    Some(Message::Entry(position, message.slice(head + 1..)))
}

/// Reads a log frame.
pub(super) fn decode_entry(position: Position, frame: &[u8]) -> Result<Entry, EngineError> {
    let damaged = |why: String| EngineError::Corrupt(format!("entry {position}: {why}"));
    let (head, effects) =
        frame.split_at_checked(HEADER_BYTES).ok_or_else(|| damaged(format!("only {} bytes", frame.len())))?;
    let (format, at) = head.split_first().ok_or_else(|| damaged("empty".into()))?;
    let at = at.iter().fold(0, |at, byte| at << 8 | u64::from(*byte));
    let mut rest = effects;
    let presence = match *format {
        FORMAT => Vec::new(),
        FORMAT_WITH_PRESENCE => {
            let turns: Vec<(Room, Arc<str>, u8)> =
                rmp_serde::from_read(&mut rest).map_err(|e| damaged(e.to_string()))?;
            let turn = |(room, subject, joined)| PresenceChange { room, subject, joined: joined == 1 };
            turns.into_iter().map(turn).collect()
        }
        _ => return Err(damaged(format!("format {format}, this gateway reads {FORMAT} and {FORMAT_WITH_PRESENCE}"))),
    };
    let effects = rmp_serde::from_slice(rest).map_err(|e| damaged(e.to_string()))?;
    Ok(Entry { position, at, effects, presence })
}

/// What the commit script puts behind the header; empty for no effects.
pub(super) fn encode_effects(effects: &[Effect]) -> Result<Vec<u8>, EngineError> {
    if effects.is_empty() { Ok(Vec::new()) } else { encode(&effects) }
}

/// A whole message of the channel.
pub(super) fn encode_ephemeral(publication: &Publication) -> Result<Vec<u8>, EngineError> {
    let mut message = vec![b'~', FORMAT];
    rmp_serde::encode::write_named(&mut message, publication).map_err(|e| EngineError::Corrupt(e.to_string()))?;
    Ok(message)
}

/// Reads what follows the `~`.
pub(super) fn decode_ephemeral(bytes: &[u8]) -> Option<Publication> {
    let (format, publication) = bytes.split_first()?;
    if *format == FORMAT { rmp_serde::from_slice(publication).ok() } else { None }
}

/// A session record as it is stored.
pub(super) fn decode_session(bytes: &[u8]) -> Result<SessionRecord, EngineError> {
    rmp_serde::from_slice(bytes).map_err(|e| EngineError::Corrupt(format!("session record: {e}")))
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, EngineError> {
    rmp_serde::to_vec_named(value).map_err(|e| EngineError::Corrupt(e.to_string()))
}

/// What a commit changes but for its effects, as the script takes it.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The structure; empty when there is none.
    pub(super) packed: Vec<u8>,
    /// Bytes that the structure names by their number, from 1: Redis's unpacker knows text only.
    pub(super) values: Vec<Bytes>,
}

/// The structure: arrays in arrays.
#[derive(Serialize)]
struct Packed<'a>(
    Vec<(&'a str, &'a str)>,
    Vec<(&'static str, &'a str, usize, i64)>,
    Vec<(String, i64, &'a str)>,
    Vec<Vec<String>>,
    Option<(&'a str, usize, i64, &'a str)>,
    Option<(String, &'a str)>,
    Option<&'a str>,
    &'a str,
    Option<&'a str>,
    Option<&'a str>,
    Option<(u64, u64, u64)>,
);

/// What the registry of presence needs beside the commit.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Standing<'a> {
    /// The incarnation that registers.
    pub(super) incarnation: &'a str,
    /// What the names of the documented keys start with, if they are kept.
    pub(super) view: Option<&'a str>,
    /// A connection that must be there, or nothing is applied.
    pub(super) present: Option<&'a str>,
    /// Where the leases are, if the script can look: whoever has none registers nobody.
    pub(super) leases: Option<&'a str>,
}

/// Packs a commit's changes.
pub(super) fn encode_changes(
    tenant: &TenantId,
    commit: &Commit,
    standing: Standing<'_>,
) -> Result<Changes, EngineError> {
    let record = commit.session.as_ref();
    let presence: Vec<_> = commit.effects.iter().filter_map(|effect| presence_change(effect, record)).collect();
    let Commit { reads, writes, timers, session, fired, .. } = commit;
    let state = !reads.is_empty() || !writes.is_empty() || !timers.is_empty() || fired.is_some();
    if !state && presence.is_empty() && session.is_none() {
        return Ok(Changes::default());
    }
    let mut values = Vec::new();
    let mut number = |value: Bytes| {
        values.push(value);
        values.len()
    };
    let writes = writes.iter().map(|(key, write)| match write {
        Write::Put { value, ttl_ms } => ("put", key.as_str(), number(value.clone()), ttl_ms.map_or(-1, ahead)),
        Write::Delete => ("delete", key.as_str(), 0, -1),
        Write::Add(delta) => ("add", key.as_str(), number(delta.to_string().into()), -1),
    });
    let writes = writes.collect();
    let session = match session {
        Some(record) => {
            let value = number(encode(record)?.into());
            Some((&*record.session, value, ahead(record.ttl_ms), record.connection.as_str()))
        }
        None => None,
    };
    let timers = timers.iter().map(|(key, change)| match change {
        TimerChange::Set { after_ms, data } => (keys::timer_member(tenant, key), ahead(*after_ms), &**data),
        TimerChange::Cancel => (keys::timer_member(tenant, key), -1, ""),
    });
    let packed = Packed(
        reads.iter().map(|(key, version)| (key.as_str(), version.as_ref().map_or("", |v| &*v.0))).collect(),
        writes,
        timers.collect(),
        presence,
        session,
        fired.as_ref().map(|fired| (keys::timer_member(tenant, &fired.key), &*fired.token)),
        standing.present,
        standing.incarnation,
        standing.view,
        standing.leases,
        commit.most.map(|most| (most.state_bytes, most.state_keys, most.timers)),
    );
    let packed = rmp_serde::to_vec(&packed).map_err(|e| EngineError::Corrupt(e.to_string()))?;
    Ok(Changes { packed, values })
}

/// Milliseconds from now, as Redis takes them.
pub(super) fn ahead(ms: Millis) -> i64 {
    ms.min(AHEAD_MS_MAX).cast_signed()
}

/// What an effect does to the registry of presence. The room of a connection is not kept: it
/// follows from the connection.
fn presence_change(effect: &Effect, record: Option<&SessionRecord>) -> Option<Vec<String>> {
    let text = |parts: &[&str]| Some(parts.iter().map(|part| (*part).to_owned()).collect());
    match effect {
        Effect::Arrive { id, subject, namespace } => text(&[
            "arrive",
            id.as_str(),
            subject,
            namespace,
            record.filter(|record| record.connection == *id).map_or("", |record| &record.session),
            Room::user(namespace, subject).as_str(),
            Room::everyone(namespace).as_str(),
        ]),
        Effect::Join { who: Who::Connection(id), room, .. } => text(&["join", id.as_str(), room.as_str()]),
        Effect::Leave { who: Who::Connection(id), room } => text(&["leave", id.as_str(), room.as_str()]),
        Effect::Join { who: Who::User(subject), room, .. } => {
            text(&["user-join", Room::user(room.namespace(), subject).as_str(), room.as_str()])
        }
        Effect::Leave { who: Who::User(subject), room } => {
            text(&["user-leave", Room::user(room.namespace(), subject).as_str(), room.as_str()])
        }
        Effect::Gone { id } => text(&["gone", id.as_str()]),
        Effect::Publish(_) | Effect::Disconnect { .. } | Effect::Revoke(_) => None,
    }
}

/// Does an entry publish to this room?
pub(super) fn publishes_to(entry: &Arc<Entry>, room: &Room) -> bool {
    entry.effects.iter().any(|effect| matches!(effect, Effect::Publish(publication) if publication.room == *room))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;

    fn publication() -> Publication {
        Publication {
            room: Room::parse("flat:a1").unwrap(),
            event: "hello".into(),
            data: Payload {
                args: r#"[{"_placeholder":true,"num":0}]"#.into(),
                attachments: vec![Bytes::from_static(b"\0\xff")],
            },
            except: None,
        }
    }

    #[test]
    fn an_entry_is_read_back_as_it_was_written() {
        let effects = vec![Effect::Publish(publication())];
        let mut message = b"1700000000000-7 \x01\0\0\x01\x8b\xcf\xe5\x68\0".to_vec();
        message.extend(encode_effects(&effects).unwrap());
        let Some(Message::Entry(position, frame)) = parse_message(message.into()) else { panic!("not an entry") };
        assert_eq!(position, Position { epoch: 1_700_000_000_000, seq: 7 });
        let at = 1_700_000_000_000;
        assert_eq!(decode_entry(position, &frame).unwrap(), Entry { position, at, effects, presence: Vec::new() });
    }

    #[test]
    fn an_entry_names_who_came_and_went() {
        let effects = vec![Effect::Gone { id: "c1".into() }];
        let turns = [("flat:a1", "bob", 1), ("flat:b2", "ann", 0)];
        let mut frame = b"\x02\0\0\x01\x8b\xcf\xe5\x68\0".to_vec();
        frame.extend(rmp_serde::to_vec(&turns).unwrap());
        frame.extend(encode_effects(&effects).unwrap());
        let entry = decode_entry(Position { epoch: 1, seq: 1 }, &frame).unwrap();
        let turn = |(room, subject, joined): (&str, &str, u8)| PresenceChange {
            room: Room::parse(room).unwrap(),
            subject: subject.into(),
            joined: joined == 1,
        };
        assert_eq!((entry.effects, entry.presence), (effects, turns.map(turn).to_vec()));
    }

    #[test]
    fn an_ephemeral_publication_is_read_back_as_it_was_written() {
        let Some(Message::Ephemeral(bytes)) = parse_message(encode_ephemeral(&publication()).unwrap().into()) else {
            panic!("not ephemeral")
        };
        assert_eq!(decode_ephemeral(&bytes), Some(publication()));
    }

    #[test]
    fn rubbish_is_refused_and_never_panics() {
        for bytes in [&b""[..], b"x", b"1-", b"1-1", b"-1 x", b"99999999999999999999-1 x", b" \xff"] {
            assert!(parse_message(Bytes::copy_from_slice(bytes)).is_none(), "{bytes:?}");
        }
        for frame in
            [&b""[..], b"\x01", b"\x03\0\0\0\0\0\0\0\0\x90", b"\x02\0\0\0\0\0\0\0\0\x90", b"\x01\0\0\0\0\0\0\0\0\xc1"]
        {
            assert!(decode_entry(Position { epoch: 1, seq: 1 }, frame).is_err(), "{frame:?}");
        }
        assert!(decode_ephemeral(b"").is_none() && decode_ephemeral(b"\x01\xc1").is_none());
    }
}
